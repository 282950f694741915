"""One file from the hub: what its server says of it, and the rest of a download that broke off.

No more is written than the size that was promised, and nothing that a server says decides where.
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
    """What a server says of a file. size: bytes    revision: the commit

    mark: the ETag, or else the commit: it changes with the file. None where there is neither
    sha256: the ETag of a large file, which the hub keeps at another address; None for others
    """

    address: str
    size: int | None
    revision: str | None
    mark: str | None
    sha256: str | None


def look_up(
    repository: str, revision: str, file: str, part: Path, endpoint: str | None
) -> RemoteFile | None:
    """What the server says; None where there is no such repository, commit or file.

    part: what was kept of the file. ValueError: the server cannot be reached, refuses, or sends to
    an address that is less safe than its own.
    """
    try:
        from huggingface_hub import errors, file_download, hf_hub_url
    except ImportError as error:
        raise ValueError("downloads need huggingface_hub: pip install 'minisd[hub]'.") from error
    absent = (errors.RepositoryNotFoundError, errors.DisabledRepoError)
    url = hf_hub_url(repository, file, revision=revision, endpoint=endpoint)
    try:
        there = file_download.get_hf_file_metadata(url, endpoint=endpoint)
    except Exception as error:  # the library below may raise its own, or the system's
        gated = isinstance(error, errors.GatedRepoError)
        if (isinstance(error, absent) or http_status(error) in (404, 410)) and not gated:
            return None
        raise ValueError(download_error(error, part, repository, file)) from error
    address, etag, commit = urljoin(url, there.location), there.etag, there.commit_hash
    if (scheme := urlsplit(address).scheme) not in ("https", urlsplit(url).scheme):
        unsafe = f"{repository} sends {file} by {scheme!r}, which is not safe"
        raise ValueError(f"{unsafe}: try again later, or from another network.")
    large = address != url and len(etag or "") == 64
    return RemoteFile(address, there.size, commit, etag or commit, etag if large else None)


class PartFile(io.BufferedWriter):
    """A file that grows up to a size in bytes. A server may send more, or without end."""

    def __init__(self, path: Path, size: int):
        super().__init__(io.FileIO(path, "a"))
        self.size = size

    def write(self, block: bytes) -> int:
        if self.tell() + len(block) > self.size:
            raise ValueError(f"there are more than {self.size} bytes")
        return super().write(block)


def receive_rest(remote: RemoteFile, size: int, part: Path, repository: str, file: str) -> None:
    """Append to the part what is missing of the size. A part of another file is deleted first.

    ValueError: the download breaks off (the part stays), or does not fit the part (it is deleted).
    OSError: the part cannot be written.
    """
    from huggingface_hub import file_download

    delete_unless_same(remote, size, part)
    growing = PartFile(part, size)
    # packed bytes cannot be continued; without its name, one from the server is shown
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
            unfit = f"{repository} sent what does not continue {part.name}, which was deleted"
            message = f"{unfit} ({short_reason(error)}): give the same command again to start over."
        raise ValueError(message) from error


def delete_unless_same(remote: RemoteFile, size: int, part: Path) -> None:
    """Only a part that is known to be of the same file is continued: its mark lies next to it."""
    known, said = mark_path(part), f"{remote.mark} {size}"
    same = remote.mark and known.is_file() and known.read_bytes() == said.encode()
    regular = part.is_file() and not part.is_symlink()
    if not (same and regular and part.stat().st_size <= size):
        part.unlink(missing_ok=True)
        known.write_bytes(said.encode())


def mark_path(part: Path) -> Path:
    return part.with_suffix(".mark")


# ---- what went wrong -------------------------------------------------------------------------


def download_error(error: Exception, part: Path, repository: str, file: str) -> str:
    """The sentence for a download that did not begin, or did not get to its end."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"offline mode is on: switch it off to fetch {file}."
    if isinstance(error, errors.GatedRepoError) or http_status(error) == 401:
        return f"{repository} wants a login: `hf auth login` first."
    if http_status(error):
        return (
            f"{repository} cannot give {file} (it answers {http_status(error)}): try again later."
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{part.parent} has no room left for {file}: make some, or use another disk."
    if is_offline(error) and not part.exists():
        way = f"connect this machine, or fetch the file on another one from {repository}"
        offline = f"there is no network to fetch {file} by ({short_reason(error)})"
        return f"{offline}: {way} and give minisd its path."
    size = part.stat().st_size if part.is_file() else 0
    got = size_in_words(size) if size else "nothing"
    again = "give the same command again to go on from there"
    return (
        f"the download of {file} broke off, {got} of it are kept ({short_reason(error)}): {again}."
    )


def http_status(error: Exception) -> int | None:
    """The HTTP status that a server refused with."""
    return getattr(getattr(error, "response", None), "status_code", None)


def short_reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_offline(error: BaseException | None) -> bool:
    """Whether no name could be looked up or no network be reached, by what caused the error."""
    unreachable = (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH)
    here = isinstance(error, socket.gaierror) or getattr(error, "errno", None) in unreachable
    return here or (error is not None and is_offline(error.__cause__ or error.__context__))
