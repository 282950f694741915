"""Find and download published weights by name. registry.json lists their repositories and sizes.

`minisd download NAME` downloads a file. Then `minisd.load(NAME)` opens the file, also offline. If a
download breaks, the next call continues it, unless the file on the server has changed. A downloaded
file gets its final name only if its size and its sha256 equal the published ones. If no sha256 is
published, minisd writes the sha256 of the first download next to the file. Later downloads of the
same file must have this sha256.
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

NOTE_FILE = "source.json"  # lies next to a download; states its source and its sha256
FOLDER_VARIABLE = "MINISD_WEIGHTS"  # environment variable: the folder of all downloads


@dataclass(frozen=True)
class Official:
    """A published file, and where to download it.

    size, sha256: None if they are not published
    revisions: repository -> the commit that holds the file. If a repository is missing here, minisd
        takes the file from the newest commit of this repository
    """

    repositories: list[str]  # all have the same file; download() tries them in this order
    file: str
    licence: str
    size: int | None = None  # bytes
    sha256: str | None = None
    revisions: Mapping[str, str] = field(default_factory=dict)


OFFICIAL = {
    name: Official(**fields)
    for name, fields in read_json(Path(__file__).with_suffix(".json")).items()
}

# The models that come with minisd: name -> file in weights/. The name "mini" always means the file
# of minisd. To open your own file or folder with the name mini, write ./mini.
SHIPPED = {
    name: file for name, (file, _) in read_json(Path(__file__).with_name("shipped.json")).items()
}


def cache_dir() -> Path:
    """The folder of all downloads. Raises ValueError if this user has no home folder."""
    try:
        return Path(os.environ.get(FOLDER_VARIABLE) or "~/.cache/minisd").expanduser()
    except RuntimeError as error:
        raise ValueError(f"you have no home folder: set {FOLDER_VARIABLE} to a folder.") from error


def local_path(source: str | Path) -> Path:
    """The path of a file of weights on this machine.

    source: the name of a shipped or published file, or the path of any other file

    Raises ValueError if a published file is not downloaded yet, or if there is a folder in the
    place of the file.
    """
    if source in SHIPPED:
        return WEIGHTS / SHIPPED[str(source)]
    if source not in OFFICIAL:
        return Path(source)
    path = cache_dir() / str(source) / OFFICIAL[source].file
    command = f"`minisd download {source}`"
    if not os.path.exists(path):
        raise ValueError(f"{source} is not on this machine: download it with {command}.")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not a file: delete it, then run {command}.")
    return path


def describe_official(name: str) -> str:
    """The size, licence and sources of a published file, in one line.

    Raises ValueError if no published file has this name.
    """
    if name not in OFFICIAL:
        raise ValueError(f"{name!r} is no published file: choose one of {', '.join(OFFICIAL)}.")
    official = OFFICIAL[name]
    size = size_in_words(official.size) if official.size else "size unknown"
    checksum = official.sha256 or "unknown (later downloads must equal the first)"
    sources = [f"{one} at {official.revisions.get(one, 'main')}" for one in official.repositories]
    what = f"{official.file}, {size}, licence {official.licence}"
    return f"{name}: {what}, from {' or '.join(sources)}, sha256 {checksum}"


def download(name: str, endpoint: str | None = None) -> Path:
    """Download a published file if it is not on this machine yet. Returns the path of the file.

    endpoint: the address of a server that answers like the hub (huggingface.co). None: the hub

    If another process is downloading the same file, this function waits until that download ends.

    Raises ValueError if the name is unknown, if no repository has the file any more, if the
    connection breaks, if the disk is full, if the folder is not writable, or if the received file
    differs from the published file. If the connection breaks, the next call continues the download.
    If the received file differs from the published file, minisd deletes the received file.
    """
    describe_official(name)
    path = cache_dir() / name / OFFICIAL[name].file
    if os.path.exists(path) and not broken_downloads(path):
        return local_path(name)
    try:
        with one_at_a_time(path.parent):
            if not path.exists():  # another process may have downloaded it in the meantime
                fetch(name, path, endpoint)
            elif notes := [left for left in broken_downloads(path) if is_note(left)]:
                os.replace(notes[0], path.with_name(NOTE_FILE))  # fetch() was killed
            for left in broken_downloads(path):
                left.unlink()
    except (OSError, NotImplementedError) as error:  # NotImplementedError: the disk has no locks
        reason = f"{path.parent} cannot be written ({short_reason(error)})"
        raise ValueError(f"{reason}: set {FOLDER_VARIABLE} to another folder.") from error
    return local_path(name)


def broken_downloads(path: Path) -> list[Path]:
    """The unfinished files that broken downloads of `path` left in the folder of `path`."""
    return list(path.parent.glob(f"{path.name}.from-*"))


def is_note(left: Path) -> bool:
    """Whether an unfinished file is a complete note: the source and the sha256 of a download.

    fetch() writes the note under a temporary name, and renames it to NOTE_FILE at the end. If
    fetch() is killed before that, the note keeps its temporary name.

    left: a file that broken_downloads() lists
    """
    return left.suffix == ".mark" and left.read_bytes().startswith(b"{")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Create the folder, and hold a lock on the folder during the `with` block.

    Only one process or thread can hold the lock at a time. All others warn the user and wait. If
    the process with the lock is killed, the system releases the lock.

    The lock is an empty file with the name of the folder and the ending .lock. The file is never
    deleted, because another process may be waiting for it.
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
    """Download a file from the first repository that has it. Also write a note about the download.

    name: a name in OFFICIAL
    path: where the file should be
    endpoint: see download()

    The note is a small file (NOTE_FILE) that states the source and the sha256 of the download. The
    downloaded file gets its final name first. The note gets its final name second. So a note never
    describes a file that does not exist. If the process is killed between these two steps, the next
    download() renames the note.

    Raises what download() raises.
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
        if size <= 0:  # without a size, a broken download would look complete
            unknown = f"{repository} does not state the size of {path.name}"
            raise ValueError(f"{unknown}: try again later.")
        receive_rest(remote, size, part, repository, path.name)
        digest = verify(part, official, noted, remote)
        revision = remote.revision or "unknown"
        source = {"repository": repository, "revision": revision, "sha256": digest}
        mark_path(part).write_text(json.dumps(source, indent=1), encoding="utf-8")
        os.replace(part, path)
        os.replace(mark_path(part), note)
        return
    sources = " or ".join(official.repositories)
    advice = f"find {official.file} elsewhere, and give minisd the path of your copy"
    raise ValueError(f"{name} is no longer at {sources}: {advice}.")


def is_another(remote: RemoteFile, official: Official) -> bool:
    """Whether the file on the server differs from the published file with the same name."""
    if remote.sha256 and official.sha256:
        return remote.sha256 != official.sha256
    return bool(remote.size and official.size) and remote.size != official.size


def verify(part: Path, official: Official, noted: str | None, remote: RemoteFile) -> str:
    """Check the sha256 of a downloaded file. Returns this sha256.

    The sha256 must equal the first of these values that is known:

    1. the published sha256
    2. the sha256 of the first download
    3. the sha256 that the server states

    If none of these values is known, any file is accepted, except a text (such as a web page).

    part: the downloaded file
    noted: the sha256 of the first download. None: this is the first download

    If the file is wrong, deletes the file and raises ValueError.
    """
    digest, advice = file_sha256(part), "try again later"
    known = {"published one": official.sha256, "one of the first download": noted}
    known = {**known, "one that its server states": remote.sha256}
    whose, expected = next(((who, one) for who, one in known.items() if one), (None, None))
    if digest == expected or (expected is None and not is_text(part)):
        return digest
    part.unlink()
    mark_path(part).unlink(missing_ok=True)
    if expected == noted:
        advice = f"to accept the new file, delete {part.with_name(NOTE_FILE)} and try again"
    wrong = f"has the sha256 {digest} instead of the {whose}" if whose else "is only a text"
    raise ValueError(f"The received {official.file} {wrong}. minisd deleted it: {advice}.")


def is_text(path: Path) -> bool:
    """Whether a file begins with text, such as a web page. Weights do not begin with text."""
    with open(path, "rb") as file:
        return not re.search(rb"[\x00-\x08]", file.read(512))
