"""Download one file from the Hugging Face hub. A broken download can be continued.

A downloaded file never grows beyond the size that the server promised. The server cannot choose
where minisd writes the file.
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
    """What a server states about a file.

    address: the URL from which the file can be downloaded
    size: the number of bytes. None: the server does not state the size
    revision: the commit of the repository. None: the server does not state the commit
    mark: a text that changes when the file changes. It is the file's ETag (in HTTP, the name of a
        file's version). If the server states no ETag, it is the commit. None: the server states no
        ETag and no commit
    sha256: the sha256 of a large file. The hub stores a large file at another address, and states
        its sha256 as the ETag. None: the file is not large, and its sha256 is not known
    """

    address: str
    size: int | None
    revision: str | None
    mark: str | None
    sha256: str | None


def look_up(
    repository: str, revision: str, file: str, part: Path, endpoint: str | None
) -> RemoteFile | None:
    """Ask the server about a file.

    part: the path of the unfinished download. An error states how much of the file is already there
    endpoint: the URL of the server. None: the usual hub

    Returns None if the repository, the commit or the file does not exist.

    Raises ValueError if the server does not answer, if it refuses, or if it redirects to an address
    that is less safe, such as http instead of https.
    """
    try:
        from huggingface_hub import errors, file_download, hf_hub_url
    except ImportError as error:
        raise ValueError("huggingface_hub is missing: run pip install 'minisd[hub]'.") from error
    absent = (errors.RepositoryNotFoundError, errors.DisabledRepoError)
    url = hf_hub_url(repository, file, revision=revision, endpoint=endpoint)
    try:
        found = file_download.get_hf_file_metadata(url, endpoint=endpoint)
    except Exception as error:  # the errors of several libraries have many types
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
    """A file that cannot grow beyond `size` bytes, even if a hostile server sends more bytes."""

    def __init__(self, path: Path, size: int):
        super().__init__(io.FileIO(path, "a"))
        self.size = size

    def write(self, block: bytes) -> int:
        if self.tell() + len(block) > self.size:
            raise ValueError(f"the server sent more than {self.size} bytes")
        return super().write(block)


def receive_rest(remote: RemoteFile, size: int, part: Path, repository: str, file: str) -> None:
    """Download the missing bytes of a file, and append them to the unfinished download.

    If the unfinished download belongs to another version of the file, it is deleted first.

    size: the size of the whole file in bytes
    part: the path of the unfinished download
    file: minisd's name for the file

    Raises ValueError in two cases. If the download breaks off, the unfinished download is kept. If
    the server sends data that does not continue the unfinished download, the unfinished download
    is deleted. Raises OSError if the unfinished download cannot be written.
    """
    from huggingface_hub import file_download

    delete_unless_same(remote, size, part)
    growing = PartFile(part, size)
    # "identity" asks for data that is not compressed, because a download of compressed data cannot
    # be continued. The progress bar shows `file`.
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
            unfit = f"{repository} sent data that does not continue {part.name}"
            message = f"{unfit} ({short_reason(error)}), so minisd deleted {part.name}: "
            message += "run the same command again to start over."
        raise ValueError(message) from error


def delete_unless_same(remote: RemoteFile, size: int, part: Path) -> None:
    """Delete an unfinished download if it belongs to another version of the file.

    A small file next to the unfinished download shows the version. It contains the mark of the file
    (see RemoteFile) and the size of the whole file. If the unfinished download is deleted, the
    small file gets the mark and the size of the new version.

    size: the size of the whole file in bytes
    part: the path of the unfinished download
    """
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
    """The message about a download that could not start, or that broke off."""
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
        return f"{part.parent} has no room left for {file}: free some space, or use another disk."
    if is_offline(error) and not part.exists():
        advice = f"connect this machine, or use another machine to download it from {repository}"
        offline = f"there is no network to download {file} ({short_reason(error)})"
        return f"{offline}: {advice} and give minisd the file's path."
    size = part.stat().st_size if part.is_file() else 0
    kept = f"minisd kept {size_in_words(size)}" if size else "minisd kept nothing"
    advice = "run the same command again to continue"
    return f"the download of {file} broke off ({short_reason(error)}). {kept}: {advice}."


def http_status(error: Exception) -> int | None:
    """The HTTP status of the server's answer. None: the server did not answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def short_reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_offline(error: BaseException | None) -> bool:
    """Whether an error occurred because the machine has no network or cannot find the server."""
    unreachable = (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH)
    offline = isinstance(error, socket.gaierror) or getattr(error, "errno", None) in unreachable
    return offline or (error is not None and is_offline(error.__cause__ or error.__context__))
