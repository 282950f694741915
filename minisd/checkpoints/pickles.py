"""Reading what torch.save wrote, without running the program that a pickle is.

First we go through the pickle (pickle_steps.py) and compare the sizes that it states with the file.
Then torch's restricted interpreter makes the tensors, which stay mapped to the file.
"""

import io
import pickle
import shutil
import struct
import tarfile
import tempfile
import threading
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from minisd.checkpoints.file_kinds import describe_foreign_file
from minisd.checkpoints.first_bytes import damage_sentence, is_zip, size_in_words
from minisd.checkpoints.pickle_steps import LEFT_BEHIND, PickleSteps, Refusal

LARGEST_PICKLE = 20 * 10**6  # bytes; SD v1 with its averaged weights has 0.4 MB
MOST_UNPACKED = 4, 200 * 10**6  # at most so many times the packed size, and so many bytes more
MOST_VALUES = 100_000  # of dictionaries and lists, counted as often as they are there
DEEPEST_PICKLE = 100  # levels of dictionaries and lists
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
ALIGNMENT = 16  # bytes; torch.save puts every storage at a multiple of 64
SMALL_FILE = (
    "data.pkl",
    "version",
    ".data/version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
)
ONE_AT_A_TIME = threading.Lock()  # torch has one list of allowed classes for all threads


class StandIn:
    """In place of an object that a training framework left behind: keeps nothing, does nothing."""

    def __init__(self, *arguments: object):
        pass

    def __setstate__(self, state: object):
        pass


class EmptyDict(dict):
    """In place of a framework's own kind of dictionary. The pickle fills it afterwards."""

    def __new__(cls, *arguments: object) -> dict:
        return {}


class KeptParameters(dict):
    """In place of torch's ParameterDict, in which textual inversion keeps its vectors."""

    def __setstate__(self, state: dict):
        self.update(state["_parameters"].items())


SPECIAL = {
    "collections.defaultdict": EmptyDict,
    "pytorch_lightning.utilities.parsing.AttributeDict": EmptyDict,
    "torch.nn.modules.container.ParameterDict": KeptParameters,
}


def stand_in(name: str) -> type:
    """A harmless class that torch takes for the one called `name` in the pickle."""
    module, _, short = name.rpartition(".")
    return type(short, (SPECIAL.get(name, StandIn),), {"__module__": module})


def unpickle(path: str | Path) -> object:
    """What torch.save put into the file: tensors, numbers, dictionaries; no code is run.

    Classes that training frameworks leave behind become empty stand-ins.
    Raises ValueError for any other class, by its name, for a damaged file, and for one that asks
    for more memory or work than its tensors need.
    """
    path = Path(path)
    read_content = load_zip if is_zip(path) else load_old_pickle
    try:
        return read_content(path)
    except Refusal as error:
        raise ValueError(f"{path.name} {error}.") from error
    except pickle.UnpicklingError as error:
        other = "holds a pickle that torch.save does not write"
        raise ValueError(f"{path.name} {other}: get the weights as .safetensors.") from error
    except Exception as error:  # a damaged file can break its readers anywhere
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise ValueError(f"{path.name} needs more memory than there is.") from error
        raise ValueError(damage_sentence(path)) from error


def load_pickle(source: Path | BinaryIO, names: set[str], mmap: bool) -> object:
    """torch.load, with stand-ins for the classes that were left behind. One thread at a time."""
    classes = [stand_in(name) for name in names if name.startswith(LEFT_BEHIND)]
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on protocols; we give our own
        add_safe_globals(classes)  # torch 2.5 has safe_globals()
        try:
            return torch.load(source, map_location="cpu", mmap=mmap, weights_only=True)
        finally:
            others = [each for each in get_safe_globals() if each not in classes]
            clear_safe_globals()
            add_safe_globals(others)


def refuse_endless(content: object) -> None:
    """Raise Refusal for containers that hold one another too deep, too often or in a circle."""
    waiting, left = [(content, 0)], MOST_VALUES
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, (dict, list, tuple)):
            left -= len(each)
            if left < 0 or depth > DEEPEST_PICKLE:
                raise Refusal("holds dictionaries or lists inside one another without end")
            values = each.values() if isinstance(each, dict) else each
            waiting += [(value, depth + 1) for value in values]


def load_old_pickle(path: Path) -> object:
    """What torch.save wrote before 1.6: five pickles, then the storages one after another."""
    steps = PickleSteps()
    with open(path, "rb") as file:
        start = io.BytesIO(file.read(LARGEST_PICKLE))
        if steps.follow(start) != torch.serialization.MAGIC_NUMBER or tarfile.is_tarfile(path):
            raise Refusal("is a pickle, but not from torch.save: get the weights as .safetensors")
        *_, keys = [steps.follow(start) for _ in range(4)]
        if not all(type(key) is str for key in keys) or sorted(keys) != sorted(steps.storages):
            raise ValueError("other storages than its tensors need")
        sizes = [8 + stored.itemsize * stored.count for stored in steps.storages.values()]
        if start.tell() + sum(sizes) > path.stat().st_size:
            raise ValueError("storages outside the file")
        file.seek(0)
        return load_pickle(file, steps.names, mmap=False)


# ---- a zip of the pickle and the storages: torch.save since 1.6 ------------------------------


class ShortReads(io.FileIO):
    """A file that is never read far at once, as a zip's table of contents could make us do."""

    def read(self, size: int = -1) -> bytes:
        if size > LARGEST_PICKLE:
            raise ValueError("a table of contents that no model needs")
        return super().read(LARGEST_PICKLE if size < 0 else size)


def load_zip(path: Path) -> object:
    if not zipfile.is_zipfile(path):  # a zip's table of contents stands at its end
        size = size_in_words(path.stat().st_size)
        raise Refusal(f"ends after {size}: the download was cut off. Fetch it again")
    with ShortReads(path) as file, zipfile.ZipFile(file) as archive:
        inside = zip_members(archive)
        infos = [inside[name] for name in SMALL_FILE if name in inside]
        if any(info.file_size > LARGEST_PICKLE for info in infos):
            raise Refusal("holds a larger pickle than any model needs: get another copy")
        steps = PickleSteps()
        steps.follow(io.BytesIO(archive.read(inside["data.pkl"])))
        for key, stored in steps.storages.items():
            infos.append(inside[f"data/{key}"])
            if infos[-1].file_size != stored.itemsize * stored.count:
                raise ValueError("a storage of another size")
        if can_be_mapped(file, infos) and path.suffix != ".safetensors":  # torch would go by that
            return load_pickle(path, steps.names, mmap=True)
        with tempfile.TemporaryFile() as plain:
            unpack(archive, infos, plain, path.stat().st_size)
            return load_pickle(plain, steps.names, mmap=False)


def zip_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """What an archive holds, by its names in the folder that torch.save makes of it all."""
    names = archive.namelist()
    listed = "\n".join(names)
    if not any(name.endswith("/data.pkl") for name in names) or "/code/" in listed:
        raise Refusal(describe_foreign_file("members of a zip", listed))
    if len({name.lower() for name in names}) < len(names):
        raise ValueError("two members of one name")
    if any(info.flag_bits & 1 or info.compress_type not in PACKINGS for info in archive.filelist):
        raise Refusal("is a zip with a password, or packed in an unknown way: unpack it first")
    folder = names[0].partition("/")[0]
    return {info.filename.removeprefix(f"{folder}/"): info for info in archive.infolist()}


def can_be_mapped(file: BinaryIO, infos: list[zipfile.ZipInfo]) -> bool:
    """Whether the members can be used where they lie: as they are, not packed, and aligned.

    Raises ValueError where they overlap, or are not what the table of contents says.
    """
    free, plain = 0, True
    for info in sorted(infos, key=lambda info: info.header_offset):
        file.seek(info.header_offset)
        start, method, *lengths = struct.unpack("<4s4xH16x2H", file.read(30))
        name = file.read(lengths[0]).decode("utf-8" if info.flag_bits & 0x800 else "cp437")
        same = (b"PK\3\4", info.compress_type, info.orig_filename) == (start, method, name)
        if not same or info.header_offset < free:
            raise ValueError("another member than the table of contents says")
        begins = info.header_offset + 30 + sum(lengths)
        free = begins + info.compress_size
        packed = method != zipfile.ZIP_STORED or info.compress_size != info.file_size
        plain = plain and not packed and (begins % ALIGNMENT == 0 or "/data/" not in name)
    if free > file.seek(0, io.SEEK_END):
        raise ValueError("a member outside the file")
    return plain


def unpack(archive: zipfile.ZipFile, infos: list, plain: BinaryIO, size: int) -> None:
    """Write the members into another archive, which packs nothing. size: of the file, in bytes"""
    whole, (times, more) = sum(info.file_size for info in infos), MOST_UNPACKED
    if whole > times * size + more:
        raise Refusal(f"unpacks to {size_in_words(whole)}: no weights can be packed so small")
    with zipfile.ZipFile(plain, "w") as copy:
        for info in infos:
            with archive.open(info) as packed, copy.open(info.filename, "w") as file:
                shutil.copyfileobj(packed, file)
    plain.seek(0)
