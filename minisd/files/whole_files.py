"""Write files that appear under their names only when they are complete.

A file is written in a new folder next to its destination (.minisd-unfinished-…), then moved. The
writer holds a lock in that folder (filelock). The system frees the lock when the process ends, even
if it was killed. So whoever can take the lock knows that the writer is gone, and may remove the
folder. Process numbers cannot show this, because several containers use the same ones.
"""

import errno
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from filelock import FileLock, Timeout
from safetensors import SafetensorError

UNFINISHED = ".minisd-unfinished-"
LOCK, CONTENT = "lock", "content"  # the two entries of an unfinished folder
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, the largest file
DAY = 24 * 60 * 60  # seconds


@contextmanager
def written_whole(path: Path, folder: bool = False) -> Iterator[Path]:
    """Give a file or folder to write into. It gets the name `path` when everything is written.

    It is created at once, so that a missing permission shows before the work starts. It is removed
    on any error. The bytes are on the disk (fsync) before the move: some disks report only then
    that they are full, and the machine itself may stop. The files get the permissions of the user's
    other files. If `path` is a link, the file that it points to is replaced. The folder is swept
    first (see sweep).

    Raises ValueError if the file cannot be created, or cannot be written to the end.
    """
    if os.path.isdir(path):  # os.path returns False for an impossible name, where Path raises
        raise ValueError(f"{path} is a folder: give the name of a file in it.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a regular file: give another name.")
    target = Path(os.path.realpath(path)) if os.path.islink(path) else path
    sweep(target.parent)
    try:
        own, lock = locked_folder(target.parent)
    except OSError as error:
        raise ValueError(f"{path} cannot be written {reason_and_advice(error)}.") from error
    unfinished = own / CONTENT / target.name
    try:
        (own / CONTENT).mkdir()
        unfinished.mkdir() if folder else unfinished.touch()
        mode = unfinished.stat().st_mode & 0o666  # safetensors makes its files private
        yield unfinished
        for file in [*unfinished.rglob("*")] if folder else [unfinished]:
            if file.is_file():
                finish(file, mode)
        os.replace(unfinished, target)
    except (OSError, SafetensorError) as error:
        if not comes_from_writing(error, own):
            raise
        raise ValueError(f"{path} cannot be written {reason_and_advice(error)}.") from error
    finally:
        remove(own, lock)


def write_text(path: Path, text: str) -> None:
    """Write a text file, with "\\n" as line ends on every system. ValueError: this fails."""
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


def save_picture(picture, path: Path, **settings) -> None:
    """Write a PIL picture. settings: arguments of its save(). ValueError: this fails."""
    with written_whole(path) as unfinished:
        picture.save(unfinished, **settings)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless it exists. ValueError: this fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {path} {reason_and_advice(error)}.") from error


def sweep(folder: Path) -> None:
    """Remove unfinished folders that killed writers left behind: those whose lock is free.

    The locks of other machines may be invisible here. So their folders stay for a day.
    """
    with suppress(OSError):  # we may not list the folder
        for own in sorted(folder.glob(f"{UNFINISHED}*")):
            with suppress(OSError):  # somebody holds the lock, or we may not take it
                sweep_one(own)


def sweep_one(own: Path) -> None:
    """Remove one unfinished folder. OSError: its writer is still at work, or may be."""
    known = re.fullmatch(rf"{re.escape(UNFINISHED)}([0-9a-f]{{8}})-\w{{8}}", own.name)
    if known is None or own.is_symlink() or not own.is_dir():
        return
    if not (own / LOCK).is_file():
        own.rmdir()  # OSError if it is not empty: then it is not ours
        return
    if known[1] != this_kernel() and time.time() - (own / LOCK).stat().st_mtime < DAY:
        return
    lock = FileLock(own / LOCK)
    lock.acquire(timeout=0)
    remove(own, lock)


def locked_folder(parent: Path) -> tuple[Path, FileLock]:
    """A new unfinished folder with a unique name, and its lock.

    On a disk that has no locks, the folder is never swept.
    """
    for _ in range(3):
        own = Path(mkdtemp(prefix=f"{UNFINISHED}{this_kernel()}-", dir=parent))
        lock = FileLock(own / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # another process swept the folder before we could lock it
        except (OSError, NotImplementedError):
            pass  # the disk has no locks, or the folder was swept already
        if own.exists():
            break
    return own, lock


def remove(own: Path, lock: FileLock) -> None:
    """Delete an unfinished folder, its lock last, so that the rest can be swept after a kill."""
    shutil.rmtree(own / CONTENT, ignore_errors=True)
    shutil.rmtree(own, ignore_errors=True)
    lock.release()
    shutil.rmtree(own, ignore_errors=True)  # Windows keeps the file of a lock until it is released


def this_kernel() -> str:
    """Eight letters for the kernel that runs this process.

    Containers of one machine share a kernel, and see each other's locks.
    """
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:  # not Linux
        name = platform.node()
    return f"{zlib.crc32(name.encode()):08x}"


def finish(file: Path, mode: int) -> None:
    """Wait until the disk has stored the file, then set its permissions."""
    with open(file, "rb+") as written:
        os.fsync(written.fileno())
    file.chmod(mode)


def comes_from_writing(error: Exception, own: Path) -> bool:
    """Whether an error says that the unfinished folder could not be written."""
    if not isinstance(error, OSError):
        return "os error" in str(error)  # how safetensors reports it
    named = error.filename is not None
    return error.errno is not None and (not named or str(error.filename).startswith(str(own)))


def reason_and_advice(error: Exception) -> str:
    """Why a file cannot be written, and what to do."""
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None)
    if found := re.search(r"error: (.+) \(os error (\d+)\)", str(error)):  # from safetensors
        reason, number = found[1], int(found[2])
        number = OSError(0, reason, None, number).errno if os.name == "nt" else number
    advice = "choose a folder that exists and that you may write to"
    if number in FULL:
        advice = "make room there, or choose another disk"
    elif number == errno.ENAMETOOLONG:
        advice = "give a shorter name"
    return f"({reason}): {advice}"
