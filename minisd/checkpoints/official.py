"""The published weights by name: where they lie, what they weigh, under which licence they come.

`minisd download NAME` fetches one, and `minisd.load(NAME)` opens it from then on, also offline. A
broken download goes on where it stopped. What arrived is held against its sha256 before it gets its
name; where none is published, the first download's is noted beside it and holds for those to come.
"""

import errno
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minisd.checkpoints.prediction import sha256
from minisd.checkpoints.read import read_json, size_in_words
from minisd.config import WEIGHTS

NOTE = "source.json"  # beside a download: where it came from, and its sha256
FOLDER = "MINISD_WEIGHTS"  # environment variable: where downloads are kept


@dataclass(frozen=True)
class Official:
    """One published file. size, sha256: None where no source states them.

    revisions: repository -> the commit that was seen to hold the file; the newest of the others
    """

    repositories: list[str]  # the same file, in the order to be tried
    file: str
    licence: str
    size: int | None = None  # bytes
    sha256: str | None = None
    revisions: Mapping[str, str] = field(default_factory=dict)


OFFICIAL = {
    name: Official(**fields)
    for name, fields in read_json(Path(__file__).with_suffix(".json")).items()
}

# What comes with minisd, name -> file in weights/. A name means this file wherever a path may
# stand, even if a file or folder here is called the same: write ./mini for that.
SHIPPED = {
    name: file for name, (file, _) in read_json(Path(__file__).with_name("shipped.json")).items()
}


def kept() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "minisd")


def local(source: str | Path) -> Path:
    """The path of a source: of a shipped or published file, given by name, or of any other.

    ValueError: a published one that was not downloaded yet.
    """
    if source in SHIPPED:
        return WEIGHTS / SHIPPED[str(source)]
    if source not in OFFICIAL:
        return Path(source)
    path = kept() / str(source) / OFFICIAL[source].file
    if not path.exists():
        fetch = f"fetch it with `minisd download {source}`"
        raise ValueError(f"{source} is not on this machine: {fetch}.")
    return path


def about(name: str) -> str:
    """Size, licence and sources of a published file, to be read before it is fetched.

    ValueError: an unknown name.
    """
    if name not in OFFICIAL:
        raise ValueError(f"{name!r} is no published file known here: choose {', '.join(OFFICIAL)}.")
    official = OFFICIAL[name]
    size = size_in_words(official.size) if official.size else "size unknown"
    checksum = official.sha256 or "unknown: it will be noted the first time, and checked from then"
    seen = [f"{one} at {official.revisions.get(one, 'main')}" for one in official.repositories]
    what = f"{official.file}, {size}, licence {official.licence}"
    return f"{name}: {what}, from {' or '.join(seen)}, sha256 {checksum}"


def download(name: str, endpoint: str | None = None) -> Path:
    """Fetch a published file, unless it is there already. Returns its path.

    endpoint: of another server that answers like the hub

    Raises ValueError, in one sentence, for an unknown name; where no repository has the file any
    more; where the connection breaks (the next call goes on from there); where the disk is full;
    where what arrived is not what was published (it is deleted).
    """
    about(name)
    official, folder = OFFICIAL[name], kept() / name
    path = folder / official.file
    if path.exists():
        return path
    for repository in official.repositories:
        part = folder / f"{official.file}.from-{repository.replace('/', '-')}.part"
        revision = fetch(repository, official, part, endpoint)
        if revision is None:
            continue
        digest = checked(part, name)
        note = {"repository": repository, "revision": revision, "sha256": digest}
        (folder / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
        os.replace(part, path)
        return path
    sources = " or ".join(official.repositories)
    way = f"find {official.file} elsewhere, and give minisd its path"
    raise ValueError(f"{name} is no longer at {sources}: {way}.")


def fetch(repository: str, official: Official, part: Path, endpoint: str | None) -> str | None:
    """Append what is missing to the part. ValueError as download().

    Returns the revision; None where there is no such repository, commit or file.
    """
    try:
        from huggingface_hub import errors, file_download, hf_hub_url
    except ImportError as error:
        raise ValueError("downloads need huggingface_hub: pip install 'minisd[hub]'.") from error
    file, revision = official.file, official.revisions.get(repository, "main")
    absent = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    try:
        url = hf_hub_url(repository, file, revision=revision, endpoint=endpoint)
        part.parent.mkdir(parents=True, exist_ok=True)
        there = file_download.get_hf_file_metadata(url, endpoint=endpoint)
        with open(part, "ab") as growing:
            size = {"resume_size": growing.tell(), "expected_size": there.size}
            file_download.http_get(there.location, growing, **size)
    except Exception as error:  # the library below may raise its own, or the system's
        gated = isinstance(error, errors.GatedRepoError)
        if isinstance(error, (*absent, errors.EntryNotFoundError)) and not gated:
            return None
        raise ValueError(what_broke(error, part, repository, file)) from error
    return there.commit_hash or "unknown"


def what_broke(error: Exception, part: Path, repository: str, file: str) -> str:
    """The sentence for a download that did not begin, or did not get to its end."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"offline mode is on: switch it off to fetch {file}."
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} wants a login: `hf auth login` first."
    if isinstance(error, errors.HfHubHTTPError):
        return f"{repository} cannot give {file} ({str(error).splitlines()[0]}): try again later."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{part.parent} has no room left for {file}: make some."
    if is_offline(error) and not part.exists():
        way = f"connect this machine, or fetch the file on another one from {repository}"
        return f"there is no network to fetch {file} by ({error}): {way} and give minisd its path."
    got = size_in_words(part.stat().st_size) if part.exists() else "nothing"
    again = "give the same command again to go on from there"
    return f"the download of {file} broke off, {got} of it are kept ({error}): {again}."


def is_offline(error: BaseException | None) -> bool:
    """Whether no name could be looked up or no network be reached, by what caused the error."""
    unreachable = (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH)
    here = isinstance(error, socket.gaierror) or getattr(error, "errno", None) in unreachable
    return here or (error is not None and is_offline(error.__cause__ or error.__context__))


def checked(part: Path, name: str) -> str:
    """The sha256 of what arrived. ValueError: it is not the published one, nor, where none is
    published, the one noted at the first download; the part is deleted.
    """
    digest, note = sha256(part), part.parent / NOTE
    expected = OFFICIAL[name].sha256
    whose, way = "published one", "try again later"
    if expected is None:
        whose, way = "one of the first download", f"if that is meant, delete {note} and fetch again"
        expected = read_json(note)["sha256"] if note.exists() else digest
    if digest != expected:
        part.unlink()
        arrived = f"{OFFICIAL[name].file} arrived with the sha256 {digest}"
        raise ValueError(f"{arrived}, which is not the {whose}, and was deleted: {way}.")
    return digest
