"""Files that appear under their name only when they are whole. What a kill leaves is swept later.

A file is written in a folder of its own next to its place, .minisd-unfinished-…, then moved. The
writer holds a lock there (filelock). The system frees it when the process ends, however it ends:
so whoever can take the lock knows that the writer is gone. Process numbers could not tell, because
they are the same in every container.
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
LOCK, CONTENT = "lock", "content"  # what such a folder holds
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAY = 24 * 60 * 60  # seconds


@contextmanager
def written_whole(path: Path, folder: bool = False) -> Iterator[Path]:
    """A file or folder to write into, which takes the name `path` once all is written.

    It is made at once, so that what is not allowed shows before the work, and removed on any error.
    The bytes are on the disk (fsync) before the move: a disk may say only then that it is full, and
    the machine itself may stop. All files have the permissions that the user's other files have.
    Where `path` is a link, the file that it points to is replaced. Sweeps the folder first.

    Raises ValueError if it cannot be made, and when it cannot be written to the end.
    """
    if os.path.isdir(path):  # these answer no to a name that cannot be; Path's methods raise
        raise ValueError(f"{path} is a folder: give the name of a file in it.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is no regular file: give another name.")
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
    """Write a text whole, with the same line ends on every system. ValueError: it cannot be."""
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


def save_picture(picture, path: Path, **settings) -> None:
    """Write a PIL picture whole. settings: as its save() takes them. ValueError: it cannot be."""
    with written_whole(path) as unfinished:
        picture.save(unfinished, **settings)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there. ValueError: it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {path} {reason_and_advice(error)}.") from error


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder: whatever has our name and a lock that is free.

    Other machines' locks may not be seen here, so what they wrote is left alone for a day.
    """
    with suppress(OSError):  # a folder that may not be listed
        for own in sorted(folder.glob(f"{UNFINISHED}*")):
            with suppress(OSError):  # a lock that is held, or may not be taken
                sweep_one(own)


def sweep_one(own: Path) -> None:
    """Remove one unfinished folder. OSError: its writer is at work, or this is not known."""
    known = re.fullmatch(rf"{re.escape(UNFINISHED)}([0-9a-f]{{8}})-\w{{8}}", own.name)
    if known is None or own.is_symlink() or not own.is_dir():
        return
    if not (own / LOCK).is_file():
        own.rmdir()  # OSError where it is not empty, and so not ours
        return
    if known[1] != this_kernel() and time.time() - (own / LOCK).stat().st_mtime < DAY:
        return
    lock = FileLock(own / LOCK)
    lock.acquire(timeout=0)
    remove(own, lock)


def locked_folder(parent: Path) -> tuple[Path, FileLock]:
    """A new unfinished folder with a name that nothing else has, and its lock.

    On a disk without locks it is made without one, and then never swept.
    """
    for _ in range(3):
        own = Path(mkdtemp(prefix=f"{UNFINISHED}{this_kernel()}-", dir=parent))
        lock = FileLock(own / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # a sweeper took the folder for a dead writer's before it was locked
        except (OSError, NotImplementedError):
            pass  # a disk without locks, or swept already
        if own.exists():
            break
    return own, lock


def remove(own: Path, lock: FileLock) -> None:
    """Delete an unfinished folder, its lock last: what another kill leaves can still be swept."""
    shutil.rmtree(own / CONTENT, ignore_errors=True)
    shutil.rmtree(own, ignore_errors=True)
    lock.release()
    shutil.rmtree(own, ignore_errors=True)  # Windows keeps a lock's file as long as it is held


def this_kernel() -> str:
    """Eight letters for the kernel that runs this: containers of one machine share it, and see
    one another's locks.
    """
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:  # not Linux
        name = platform.node()
    return f"{zlib.crc32(name.encode()):08x}"


def finish(file: Path, mode: int) -> None:
    """Wait until the disk has the file, then give it its permissions."""
    with open(file, "rb+") as written:
        os.fsync(written.fileno())
    file.chmod(mode)


def comes_from_writing(error: Exception, own: Path) -> bool:
    """Whether an error says that the unfinished folder could not be written."""
    if isinstance(error, SafetensorError):
        return "os error" in str(error)
    named = error.filename is not None
    return error.errno is not None and (not named or str(error.filename).startswith(str(own)))


def reason_and_advice(error: Exception) -> str:
    """Why a file cannot be written, and what to do."""
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None)
    if found := re.search(r"error: (.+) \(os error (\d+)\)", str(error)):  # safetensors' own
        reason, number = found[1], int(found[2])
        number = OSError(0, reason, None, number).errno if os.name == "nt" else number
    advice = "choose a folder that exists and that you may write to"
    if number in FULL:
        advice = "make room there, or choose another disk"
    elif number == errno.ENAMETOOLONG:
        advice = "give a shorter name"
    return f"({reason}): {advice}"
