"""The published weights by name: where they lie, what they weigh, under which licence they come.

`minisd download NAME` fetches one, and `minisd.load(NAME)` opens it from then on, also offline. A
broken download goes on where it stopped, unless the file has changed there in the meantime. What
arrived is held against its size and its sha256 before it gets its name; where no sha256 is
published, the first download's is noted next to it and holds for those to come.
"""

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from minisd.checkpoints.first_bytes import size_in_words
from minisd.checkpoints.hub import RemoteFile, look_up, mark_path, receive_rest, short_reason
from minisd.config import WEIGHTS
from minisd.files.json_files import read_json
from minisd.files.sha256 import file_sha256

NOTE_FILE = "source.json"  # beside a download: where it came from, and its sha256
FOLDER_VARIABLE = "MINISD_WEIGHTS"  # environment variable: where downloads are kept


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


def cache_dir() -> Path:
    """Where downloads are kept. ValueError: this user has no home folder to keep them in."""
    try:
        return Path(os.environ.get(FOLDER_VARIABLE) or "~/.cache/minisd").expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"no home folder is known here: set {FOLDER_VARIABLE} to a folder."
        ) from error


def local_path(source: str | Path) -> Path:
    """The path of a source: of a shipped or published file, given by name, or of any other.

    ValueError: a published one that was not downloaded yet, or that is no regular file.
    """
    if source in SHIPPED:
        return WEIGHTS / SHIPPED[str(source)]
    if source not in OFFICIAL:
        return Path(source)
    path = cache_dir() / str(source) / OFFICIAL[source].file
    way = f"fetch it with `minisd download {source}`"
    if not os.path.exists(path):
        raise ValueError(f"{source} is not on this machine: {way}.")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is no file: delete it, then {way}.")
    return path


def describe_official(name: str) -> str:
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

    A second download of the same name waits for the first. Raises ValueError, in one sentence, for
    an unknown name; where no repository has the file any more; where the connection breaks (the
    next call goes on from there); where the folder has no room or may not be written; where what
    arrived is not what was published (it is deleted).
    """
    describe_official(name)
    path = cache_dir() / name / OFFICIAL[name].file
    if os.path.exists(path) and not broken_downloads(path):
        return local_path(name)
    try:
        with one_at_a_time(path.parent):
            if not path.exists():  # another process may have fetched it in the meantime
                fetch(name, path, endpoint)
            elif notes := [left for left in broken_downloads(path) if is_note(left)]:
                os.replace(notes[0], path.with_name(NOTE_FILE))  # a kill came between file and note
            for left in broken_downloads(path):
                left.unlink()
    except (OSError, NotImplementedError) as error:  # the latter: a disk without locks
        why = f"{path.parent} cannot be written ({short_reason(error)})"
        raise ValueError(f"{why}: set {FOLDER_VARIABLE} to another folder.") from error
    return local_path(name)


def broken_downloads(path: Path) -> list[Path]:
    """What broken downloads of a file have left next to it."""
    return list(path.parent.glob(f"{path.name}.from-*"))


def is_note(left: Path) -> bool:
    """Whether fetch() was about to move this to its place as the note of a file that is there."""
    return left.suffix == ".mark" and left.read_bytes().startswith(b"{")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Makes the folder, and lets one process or thread in; the others wait, and say so.

    The system takes the lock back when its process ends, however it ends. The empty file NAME.lock
    stays, because another process may be waiting for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        running = f"another download of {folder.name} is running"
        warnings.warn(f"{running}: waiting for it to end.", stacklevel=4)
        held = lock.acquire()
    with held:
        yield


def fetch(name: str, path: Path, endpoint: str | None) -> None:
    """Get the file from the first repository that has it. ValueError as download().

    The file gets its name before the note does: wherever this stops, no note speaks of a file that
    was never here. The next download() then moves the note too.
    """
    official, note = OFFICIAL[name], path.with_name(NOTE_FILE)
    noted = None
    if not official.sha256 and note.exists():
        noted = read_json(note).get("sha256")
    for repository in official.repositories:
        part = path.with_name(f"{path.name}.from-{repository.replace('/', '-')}.part")
        revision = official.revisions.get(repository, "main")
        remote = look_up(repository, revision, path.name, part, endpoint)
        if remote is None or is_another(remote, official):
            continue
        size = remote.size or official.size or 0
        if size <= 0:  # an end could not be told from a break
            raise ValueError(
                f"{repository} does not say how large {path.name} is: try again later."
            )
        receive_rest(remote, size, part, repository, path.name)
        digest = verify(part, official, noted, remote)
        revision = remote.revision or "unknown"
        said = {"repository": repository, "revision": revision, "sha256": digest}
        mark_path(part).write_text(json.dumps(said, indent=1), encoding="utf-8")
        os.replace(part, path)
        os.replace(mark_path(part), note)
        return
    sources = " or ".join(official.repositories)
    way = f"find {official.file} elsewhere, and give minisd its path"
    raise ValueError(f"{name} is no longer at {sources}: {way}.")


def is_another(remote: RemoteFile, official: Official) -> bool:
    """Whether a server has, under the same name, another file than the published one."""
    if remote.sha256 and official.sha256:
        return remote.sha256 != official.sha256
    return bool(remote.size and official.size) and remote.size != official.size


def verify(part: Path, official: Official, noted: str | None, remote: RemoteFile) -> str:
    """The sha256 of what arrived, once it is the published one; where none is published, the noted
    one; where none is noted, the server's. ValueError: it is another; the part is deleted.
    """
    digest, way = file_sha256(part), "try again later"
    known = {"published one": official.sha256, "one of the first download": noted}
    known = {**known, "one that its server states": remote.sha256}
    whose, expected = next(((who, one) for who, one in known.items() if one), (None, None))
    if digest == expected or (expected is None and not is_text(part)):
        return digest
    part.unlink()
    mark_path(part).unlink(missing_ok=True)
    if expected == noted:
        way = f"if that is meant, delete {part.with_name(NOTE_FILE)} and fetch again"
    wrong = f"with the sha256 {digest}, which is not the {whose}" if whose else "as text"
    raise ValueError(f"{official.file} arrived {wrong}, and was deleted: {way}.")


def is_text(path: Path) -> bool:
    """Whether a file starts like a server's page, and not like any weights."""
    with open(path, "rb") as file:
        return not re.search(rb"[\x00-\x08]", file.read(512))
