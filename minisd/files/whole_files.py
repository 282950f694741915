"""Write files. A file gets its name only when the file is complete.

A file is written into a new folder (.minisd-unfinished-…) next to the destination. Then the file is
moved to the destination. During the work, the writing process holds a lock in the new folder
(filelock). The system frees the lock when the writing process ends, even if it was killed. So if
another process can take the lock, it knows that the writing process has ended, and may remove the
folder. A process number could not show this, because several containers may use the same process
number.
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
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota full, file too large
DAY = 24 * 60 * 60  # seconds


@contextmanager
def written_whole(path: Path, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path. The `with` block writes to this path. Then rename the file to `path`.

    folder: whether to make a folder instead of a file

    The file or folder is created at once, so a missing permission is found before the work starts.
    After an error, the file or folder is removed. Before the file is renamed, fsync stores all
    bytes on the disk, for two reasons: some disks report only during fsync that they are full, and
    the machine may lose power. The new files get the same permissions as the user's other files. If
    `path` is a link, the target of the link is replaced. Before all this, sweep() removes the
    unfinished folders that killed processes have left next to `path`.

    Raises ValueError if the file cannot be created, or cannot be written completely.
    """
    if os.path.isdir(path):  # False for an impossible name. Path.is_dir() would raise an error
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
    """Write a text file. Lines end with "\\n" on every system.

    Raises ValueError if the file cannot be written.
    """
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


def write_new(path: Path, text: str) -> str:
    """Write a text file and its folder, unless the file exists. Returns a line about it.

    Raises ValueError if the file cannot be written.
    """
    if path.exists():
        return f"{path} exists, and was kept: move it to get a new one"
    make_folder(path.parent)
    write_text(path, text)
    return str(path)


def save_picture(picture, path: Path, **settings) -> None:
    """Write a PIL image to a file.

    settings: further arguments for the save() of PIL

    Raises ValueError if the file cannot be written.
    """
    with written_whole(path) as unfinished:
        picture.save(unfinished, **settings)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if the folder does not exist yet.

    Raises ValueError if the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {path} cannot be made {reason_and_advice(error)}.") from error


def sweep(folder: Path) -> None:
    """Remove the unfinished folders that killed processes left in `folder`.

    If a process was killed, the lock in its folder is free. But on a shared disk, this machine may
    not see the locks of other machines. So their unfinished folders are kept for a day.
    """
    with suppress(OSError):  # minisd has no permission to list the folder
        for own in sorted(folder.glob(f"{UNFINISHED}*")):
            with suppress(OSError):  # a process holds the lock, or minisd has no permission
                sweep_one(own)


def sweep_one(own: Path) -> None:
    """Remove one unfinished folder if its process has ended.

    Raises OSError if the process still holds the lock, or if the lock cannot be taken.
    """
    known = re.fullmatch(rf"{re.escape(UNFINISHED)}([0-9a-f]{{8}})-\w{{8}}", own.name)
    if known is None or own.is_symlink() or not own.is_dir():
        return
    if not (own / LOCK).is_file():
        own.rmdir()  # raises OSError if the folder is not empty. Then minisd did not make it
        return
    if known[1] != this_kernel() and time.time() - (own / LOCK).stat().st_mtime < DAY:
        return
    lock = FileLock(own / LOCK)
    lock.acquire(timeout=0)
    remove(own, lock)


def locked_folder(parent: Path) -> tuple[Path, FileLock]:
    """Make an unfinished folder with a unique name, and lock it. Returns the folder and the lock.

    On a disk without locks, the folder is not locked. Then sweep() never removes it.
    """
    for _ in range(3):
        own = Path(mkdtemp(prefix=f"{UNFINISHED}{this_kernel()}-", dir=parent))
        lock = FileLock(own / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # another process swept the folder before this process could lock it
        except (OSError, NotImplementedError):
            pass  # the disk has no locks, or the folder was swept already
        if own.exists():
            break
    return own, lock


def remove(own: Path, lock: FileLock) -> None:
    """Delete an unfinished folder. The lock is deleted last.

    So if this process is killed during the deletion, sweep() can still find and remove the rest.
    """
    shutil.rmtree(own / CONTENT, ignore_errors=True)
    shutil.rmtree(own, ignore_errors=True)
    lock.release()
    shutil.rmtree(own, ignore_errors=True)  # Windows keeps a lock's file until the lock is released


def this_kernel() -> str:
    """Eight hexadecimal digits that identify the kernel under which this process runs.

    All containers of a machine share one kernel. A container sees the locks of other containers.
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
    """Whether an error comes from writing into the unfinished folder `own`."""
    if not isinstance(error, OSError):
        return "os error" in str(error)  # safetensors writes this in its write errors
    named = error.filename is not None
    return error.errno is not None and (not named or str(error.filename).startswith(str(own)))


def reason_and_advice(error: Exception) -> str:
    """The end of an error message: why a file cannot be written, and what to do."""
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
