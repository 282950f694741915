"""Recognise a file's format by its first bytes, and write error texts about incomplete files."""

import re
from pathlib import Path

from minisd.checkpoints.file_kinds import describe_foreign_file
from minisd.files.json_files import HALF_CHARACTER

UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3, "bytes": 1}


def first_bytes(path: Path, count: int = 512) -> bytes:
    """Read the first bytes of a file of weights.

    A device or a pipe is not opened, because reading it might never end.

    Raises ValueError if the file is missing, cannot be read or is not a file of weights.
    """
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give one of the files in it.")
        if not path.exists():
            raise ValueError(f"There is no file {path}: check the path.")
        if not path.is_file():
            raise ValueError(f"{path} is a device or a pipe: give a regular file.")
        if HALF_CHARACTER.search(str(path)):  # safetensors cannot open this file
            raise ValueError(f"{path} has a name that is not UTF-8: rename the file.")
        with open(path, "rb") as file:
            start = file.read(count)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    if not start:
        raise ValueError(f"{path.name} is empty: fetch it again.")
    if len(start) < 9:
        raise ValueError(cut_off_sentence(path))
    if not (starts_safetensors(start) or start.startswith((b"PK", b"\x80"))):
        raise ValueError(
            f"{path.name} {describe_foreign_file('first bytes', start.decode('latin-1'))}."
        )
    return start


def starts_safetensors(start: bytes) -> bool:
    """Whether these are the first bytes of a .safetensors file.

    Bytes 0 to 7 contain the length of the file's header. The length is far below 4 GB, so bytes 4
    to 7 are zero. The header begins at byte 8. It is JSON, so its first character is "{".
    """
    return start[4:9] == b"\0\0\0\0{"


def is_safetensors(path: Path) -> bool:
    return starts_safetensors(first_bytes(path))


def is_zip(path: Path) -> bool:
    return first_bytes(path).startswith(b"PK")  # torch.save writes zips since PyTorch 1.6


def cut_off_sentence(path: Path, whole: int | None = None) -> str:
    """The error text for a file whose end is missing.

    whole: the size in bytes that the complete file has. None: this size is not known
    """
    got = size_in_words(path.stat().st_size, whole or 0)
    return f"{path.name} ends after {got}: the download was cut off. Fetch it again."


def damage_sentence(path: Path) -> str:
    """The error text for a file that is damaged, or whose end is missing."""
    size = size_in_words(path.stat().st_size)
    return f"{path.name} is damaged, or cut off after {size}: fetch it again."


def size_in_words(size: int, whole: int = 0) -> str:
    """A number of bytes as text.

    size: the number of bytes
    whole: if `size` counts only a part of a file: the size of the whole file. 0: `size` counts a
        whole file, or the size of the whole file is not known

    >>> size_in_words(4_265_380_512), size_in_words(500_000, 1_200_000)
    ('4.27 GB', '0.5 of 1.2 MB')
    """
    unit = next(unit for unit in UNITS if max(size, whole) >= UNITS[unit] or unit == "bytes")
    of = f" of {whole / UNITS[unit]:.3g}" if whole else ""
    return f"{size / UNITS[unit]:.3g}{of} {unit}"


def is_file_name(name: str) -> bool:
    """Whether a text is a plain file name on every system, without a folder or a drive.

    "..", "folder/file" and "C:file" are not plain file names.
    """
    return name not in ("", ".", "..") and not re.search(r"[/\\:\0-\x1f]", name)
