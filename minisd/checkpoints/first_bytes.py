"""What the first bytes of a file say it is, and the sentences for one that is not whole."""

import re
from pathlib import Path

from minisd.checkpoints.file_kinds import describe_foreign_file
from minisd.files.json_files import HALF_CHARACTER

UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3, "bytes": 1}


def first_bytes(path: Path, count: int = 512) -> bytes:
    """The start of the file. Raises ValueError if there is none, or if no weights start like it.

    Only a regular file is opened, or a link to one: a pipe would wait for ever.
    """
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give one of the files in it.")
        if not path.exists():
            raise ValueError(f"There is no file {path}: check the path.")
        if not path.is_file():
            raise ValueError(f"{path} is no file but a device or a pipe: give a file.")
        if HALF_CHARACTER.search(str(path)):  # safetensors opens no such name
            raise ValueError(f"{path} has a name that is no UTF-8: give the file another name.")
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
    """The header's length comes first, in 8 bytes and far below 4 GB, then the header, a JSON."""
    return start[4:9] == b"\0\0\0\0{"


def is_safetensors(path: Path) -> bool:
    return starts_safetensors(first_bytes(path))


def is_zip(path: Path) -> bool:
    return first_bytes(path).startswith(b"PK")  # torch.save since 1.6; one pickle before that


def cut_off_sentence(path: Path, whole: int | None = None) -> str:
    """The sentence for a file that ends too early. whole: its full size, where that is known."""
    got = size_in_words(path.stat().st_size, whole or 0)
    return f"{path.name} ends after {got}: the download was cut off. Fetch it again."


def damage_sentence(path: Path) -> str:
    """The sentence for a file that reads well up to some point."""
    size = size_in_words(path.stat().st_size)
    return f"{path.name} is damaged, or cut off after {size}: fetch it again."


def size_in_words(size: int, whole: int = 0) -> str:
    """
    >>> size_in_words(4_265_380_512), size_in_words(500_000, 1_200_000)
    ('4.27 GB', '0.5 of 1.2 MB')
    """
    unit = next(unit for unit in UNITS if max(size, whole) >= UNITS[unit] or unit == "bytes")
    of = f" of {whole / UNITS[unit]:.3g}" if whole else ""
    return f"{size / UNITS[unit]:.3g}{of} {unit}"


def is_file_name(name: str) -> bool:
    """Whether a name leads to no other folder, on any system: no "..", no "/", no "C:"."""
    return name not in ("", ".", "..") and not re.search(r"[/\\:\0-\x1f]", name)
