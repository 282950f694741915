"""Read what torch.save wrote, without running any code from the file.

A pickle is a program. First minisd checks the instructions of the pickle (pickle_steps.py), and
compares the sizes that the pickle states with the size of the file. Then torch's restricted
interpreter creates the tensors. If possible, the tensors stay mapped to the file: their numbers are
read from the file only when they are needed.
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
MOST_UNPACKED = 4, 200 * 10**6  # at most 4 times the size of the file, plus 200 MB
MOST_VALUES = 100_000  # in all dictionaries and lists. If a list occurs twice, it counts twice
DEEPEST_PICKLE = 100  # levels of nested dictionaries and lists
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
ALIGNMENT = 16  # bytes; torch.save starts every storage at a multiple of 64
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
    """Replaces an object that a training framework left in the file.

    A stand-in does nothing. It keeps none of the object's values.
    """

    def __init__(self, *arguments: object):
        pass

    def __setstate__(self, state: object):
        pass


class EmptyDict(dict):
    """Replaces a framework's own type of dictionary by a plain dict. The pickle fills this dict."""

    def __new__(cls, *arguments: object) -> dict:
        return {}


class KeptParameters(dict):
    """Replaces torch's ParameterDict, and keeps its values: the vectors of a textual inversion."""

    def __setstate__(self, state: dict):
        self.update(state["_parameters"].items())


SPECIAL = {
    "collections.defaultdict": EmptyDict,
    "pytorch_lightning.utilities.parsing.AttributeDict": EmptyDict,
    "torch.nn.modules.container.ParameterDict": KeptParameters,
}


def stand_in(name: str) -> type:
    """Make a harmless class. torch uses this class where the pickle asks for the class `name`."""
    module, _, short = name.rpartition(".")
    return type(short, (SPECIAL.get(name, StandIn),), {"__module__": module})


def unpickle(path: str | Path) -> object:
    """Read what torch.save stored (tensors, numbers, dictionaries) without running any code.

    Objects that training frameworks left in the file become empty stand-ins.

    Raises ValueError if the file asks for a class that neither tensors nor these frameworks use, if
    the file is damaged, or if reading the file would take too much memory or time.
    """
    path = Path(path)
    read_content = load_zip if is_zip(path) else load_old_pickle
    try:
        return read_content(path)
    except Refusal as error:
        raise ValueError(f"{path.name} {error}.") from error
    except pickle.UnpicklingError as error:
        foreign = "holds a pickle that torch.save does not write"
        raise ValueError(f"{path.name} {foreign}: get the weights as .safetensors.") from error
    except Exception as error:  # a damaged file can cause any error
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise ValueError(f"{path.name} needs too much memory: close other programs.") from error
        raise ValueError(damage_sentence(path)) from error


def load_pickle(source: Path | BinaryIO, names: set[str], mmap: bool) -> object:
    """Call torch.load. Stand-ins replace the classes of training frameworks.

    If several threads call this function, they take turns.

    source: the path of the file, or an open file
    names: the classes that the pickle asks for
    mmap: whether the tensors stay mapped to the file
    """
    classes: list = [stand_in(name) for name in names if name.startswith(LEFT_BEHIND)]
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hide torch's warnings about pickle protocols
        add_safe_globals(classes)  # from torch 2.5 on, safe_globals() can do this
        try:
            return torch.load(source, map_location="cpu", mmap=mmap, weights_only=True)
        finally:
            others = [each for each in get_safe_globals() if each not in classes]
            clear_safe_globals()
            add_safe_globals(others)


def refuse_endless(content: object) -> None:
    """Raise Refusal if dictionaries or lists hold too many values or are nested too deeply.

    A list that contains itself is also refused, because its nesting never ends.
    """
    waiting, left = [(content, 0)], MOST_VALUES
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, (dict, list, tuple)):
            left -= len(each)
            if left < 0 or depth > DEEPEST_PICKLE:
                raise Refusal("holds too many or too deeply nested lists: get another copy")
            values = each.values() if isinstance(each, dict) else each
            waiting += [(value, depth + 1) for value in values]


def load_old_pickle(path: Path) -> object:
    """Read what torch.save wrote before torch 1.6.

    Such a file begins with five pickles. After them come the storages (the numbers of the tensors).
    """
    steps = PickleSteps()
    with open(path, "rb") as file:
        start = io.BytesIO(file.read(LARGEST_PICKLE))
        if steps.follow(start) != torch.serialization.MAGIC_NUMBER or tarfile.is_tarfile(path):
            raise Refusal("is a pickle, but not from torch.save: get the weights as .safetensors")
        *_, keys = [steps.follow(start) for _ in range(4)]
        if not isinstance(keys, list | tuple) or not all(type(key) is str for key in keys):
            raise ValueError("the list of storage keys is not a list of strings")
        if sorted(keys) != sorted(steps.storages):
            raise ValueError("the storages are not those that the tensors need")
        sizes = [8 + stored.itemsize * stored.count for stored in steps.storages.values()]
        if start.tell() + sum(sizes) > path.stat().st_size:
            raise ValueError("the file ends before the last storage")
        file.seek(0)
        return load_pickle(file, steps.names, mmap=False)


# ---- torch.save since 1.6: a zip of the pickle and the storages ------------------------------


class ShortReads(io.FileIO):
    """A file that never reads more than LARGEST_PICKLE bytes at once.

    Without this limit, a zip with a false table of contents could fill the memory.
    """

    def read(self, size: int = -1) -> bytes:
        if size > LARGEST_PICKLE:
            raise ValueError("the zip's table of contents is too large")
        return super().read(LARGEST_PICKLE if size < 0 else size)


def load_zip(path: Path) -> object:
    """Read a zip. This is the format that torch.save writes since torch 1.6."""
    if not zipfile.is_zipfile(path):  # the table of contents is at the end
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
                raise ValueError("the zip and the pickle state different sizes")
        # if a name ends in .safetensors, newer versions of torch do not expect a zip
        if can_be_mapped(file, infos) and path.suffix != ".safetensors":
            return load_pickle(path, steps.names, mmap=True)
        with tempfile.TemporaryFile() as plain:
            unpack(archive, infos, plain, path.stat().st_size)
            return load_pickle(plain, steps.names, mmap=False)


def zip_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """List the members of a zip: the files inside it.

    Returns a dictionary: name of a member -> entry of the member in the zip's table of contents. In
    the zip, every name begins with a folder, as in "archive/data.pkl". The dictionary's names have
    no folder: "data.pkl".
    """
    names = archive.namelist()
    listed = "\n".join(names)
    if not any(name.endswith("/data.pkl") for name in names) or "/code/" in listed:
        raise Refusal(describe_foreign_file("members of a zip", listed))
    if len({name.lower() for name in names}) < len(names):
        raise ValueError("two members of the zip have the same name")
    if any(info.flag_bits & 1 or info.compress_type not in PACKINGS for info in archive.filelist):
        raise Refusal("is a zip with a password or an unknown compression: get another copy")
    folder = names[0].partition("/")[0]
    return {info.filename.removeprefix(f"{folder}/"): info for info in archive.infolist()}


def can_be_mapped(file: BinaryIO, infos: list[zipfile.ZipInfo]) -> bool:
    """Whether the tensors can stay mapped to the zip. Otherwise, the zip must be unpacked first.

    Tensors can stay mapped to the zip if no member is compressed, and if every storage begins at a
    multiple of ALIGNMENT.

    infos: the entries of the members in the zip's table of contents

    Raises ValueError if two members overlap, or if the table of contents describes a member
    wrongly.
    """
    free, usable = 0, True
    for info in sorted(infos, key=lambda info: info.header_offset):
        file.seek(info.header_offset)
        start, method, *lengths = struct.unpack("<4s4xH16x2H", file.read(30))
        name = file.read(lengths[0]).decode("utf-8" if info.flag_bits & 0x800 else "cp437")
        same = (b"PK\3\4", info.compress_type, info.orig_filename) == (start, method, name)
        if not same or info.header_offset < free:
            raise ValueError("the table of contents of the zip describes a member wrongly")
        begins = info.header_offset + 30 + sum(lengths)
        free = begins + info.compress_size
        packed = method != zipfile.ZIP_STORED or info.compress_size != info.file_size
        usable = usable and not packed and (begins % ALIGNMENT == 0 or "/data/" not in name)
    if free > file.seek(0, io.SEEK_END):
        raise ValueError("a member of the zip lies outside the file")
    return usable


def unpack(archive: zipfile.ZipFile, infos: list, plain: BinaryIO, size: int) -> None:
    """Copy members of a zip into a new zip without compression.

    infos: the entries of these members in the table of contents
    plain: the file into which the new zip is written
    size: the size of the compressed zip, in bytes

    Raises Refusal if the members are much larger than the compressed zip. Files of weights cannot
    be compressed so well.
    """
    whole, (times, more) = sum(info.file_size for info in infos), MOST_UNPACKED
    if whole > times * size + more:
        unpacked = f"unpacks to {size_in_words(whole)}, but weights cannot be compressed so much"
        raise Refusal(f"{unpacked}: get another copy")
    with zipfile.ZipFile(plain, "w") as copy:
        for info in infos:
            with archive.open(info) as packed, copy.open(info.filename, "w") as file:
                shutil.copyfileobj(packed, file)
    plain.seek(0)
