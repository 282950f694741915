"""Download one file from the hub: ask the server about it, and continue a broken download.

A file never grows beyond the promised size, and a server has no say in where it is written.
"""

import errno
import io
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from minisd.checkpoints.first_bytes import size_in_words
from minisd.files.whole_files import FULL


@dataclass(frozen=True)
class RemoteFile:
    """What a server states about a file. size: bytes    revision: the commit

    mark: the ETag, or the commit if there is no ETag. It changes when the file changes. None: the
        server states neither
    sha256: the ETag of a large file, which the hub keeps at another address. None for other files
    """

    address: str
    size: int | None
    revision: str | None
    mark: str | None
    sha256: str | None


def look_up(
    repository: str, revision: str, file: str, part: Path, endpoint: str | None
) -> RemoteFile | None:
    """Ask the server about a file. Returns None if the repository, commit or file does not exist.

    part: the part of the file that is already downloaded. ValueError: nobody answers, the server
    refuses, or it redirects to an address that is less safe than its own.
    """
    try:
        from huggingface_hub import errors, file_download, hf_hub_url
    except ImportError as error:
        raise ValueError("downloads need huggingface_hub: pip install 'minisd[hub]'.") from error
    absent = (errors.RepositoryNotFoundError, errors.DisabledRepoError)
    url = hf_hub_url(repository, file, revision=revision, endpoint=endpoint)
    try:
        found = file_download.get_hf_file_metadata(url, endpoint=endpoint)
    except Exception as error:  # of many types, from several libraries
        gated = isinstance(error, errors.GatedRepoError)
        if (isinstance(error, absent) or http_status(error) in (404, 410)) and not gated:
            return None
        raise ValueError(download_error(error, part, repository, file)) from error
    address, etag, commit = urljoin(url, found.location), found.etag, found.commit_hash
    if (scheme := urlsplit(address).scheme) not in ("https", urlsplit(url).scheme):
        unsafe = f"{repository} sends {file} over {scheme!r}, which is not safe"
        raise ValueError(f"{unsafe}: try again later, or from another network.")
    large = address != url and len(etag or "") == 64
    return RemoteFile(address, found.size, commit, etag or commit, etag if large else None)


class PartFile(io.BufferedWriter):
    """A file that refuses to grow beyond `size` bytes, because a server may send without end."""

    def __init__(self, path: Path, size: int):
        super().__init__(io.FileIO(path, "a"))
        self.size = size

    def write(self, block: bytes) -> int:
        if self.tell() + len(block) > self.size:
            raise ValueError(f"the server sent more than {self.size} bytes")
        return super().write(block)


def receive_rest(remote: RemoteFile, size: int, part: Path, repository: str, file: str) -> None:
    """Download what is missing, and append it to `part`. Deletes a part of another file first.

    size: of the whole file, in bytes
    ValueError: the download breaks off (the part stays), or the server sent something that cannot
    continue the part (the part is deleted). OSError: the part cannot be written.
    """
    from huggingface_hub import file_download

    delete_unless_same(remote, size, part)
    growing = PartFile(part, size)
    # A compressed answer could not be continued. The progress bar shows our name for the file.
    how = {"headers": {"Accept-Encoding": "identity"}, "displayed_filename": file}
    sizes = {"resume_size": growing.tell(), "expected_size": size}
    try:
        with growing:
            file_download.http_get(remote.address, growing, **sizes, **how)
            growing.flush()
            os.fsync(growing.fileno())
    except Exception as error:
        message = download_error(error, part, repository, file)
        if isinstance(error, ValueError) or http_status(error) == 416:
            part.unlink()
            unfit = f"{repository} sent data that does not continue {part.name}, which was deleted"
            message = f"{unfit} ({short_reason(error)}): run the same command again to start over."
        raise ValueError(message) from error


def delete_unless_same(remote: RemoteFile, size: int, part: Path) -> None:
    """Delete the part unless it belongs to the same file: the mark next to it shows this."""
    mark_file, mark = mark_path(part), f"{remote.mark} {size}".encode()
    same = remote.mark and mark_file.is_file() and mark_file.read_bytes() == mark
    regular = part.is_file() and not part.is_symlink()
    if not (same and regular and part.stat().st_size <= size):
        part.unlink(missing_ok=True)
        mark_file.write_bytes(mark)


def mark_path(part: Path) -> Path:
    return part.with_suffix(".mark")


# ---- errors ----------------------------------------------------------------------------------


def download_error(error: Exception, part: Path, repository: str, file: str) -> str:
    """The message for a download that could not start or broke off."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"offline mode is on: switch it off to download {file}."
    if isinstance(error, errors.GatedRepoError) or http_status(error) == 401:
        return f"{repository} wants a login: run `hf auth login` first."
    if http_status(error):
        return (
            f"{repository} cannot give {file} (it answers {http_status(error)}): try again later."
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{part.parent} has no room left for {file}: free some, or use another disk."
    if is_offline(error) and not part.exists():
        advice = f"connect this machine, or download the file on another one from {repository}"
        offline = f"there is no network to download {file} ({short_reason(error)})"
        return f"{offline}: {advice} and give minisd its path."
    size = part.stat().st_size if part.is_file() else 0
    kept = f"{size_in_words(size)} of it are kept" if size else "nothing of it is kept"
    advice = "run the same command again to continue"
    return f"the download of {file} broke off, {kept} ({short_reason(error)}): {advice}."


def http_status(error: Exception) -> int | None:
    """The HTTP status of the server's answer, if the error came from one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def short_reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_offline(error: BaseException | None) -> bool:
    """Whether the cause of an error is that no name or network can be reached."""
    unreachable = (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH)
    offline = isinstance(error, socket.gaierror) or getattr(error, "errno", None) in unreachable
    return offline or (error is not None and is_offline(error.__cause__ or error.__context__))
