"""Reading a file of weights: what kind of file it is, then name -> tensor, safely and lazily.

Nothing here knows what the tensors are for. They stay mapped to the file, so that a model costs no
memory until its weights are looked at, and no more than once after that. A pickle is a program;
these are read by torch's restricted interpreter, which runs none of it.
"""

import json
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minisd.checkpoints.kinds import foreign
from minisd.checkpoints.settings import naming
from minisd.json_files import read_json as read_json

UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3, "bytes": 1}


def read(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .ckpt, .pt, .pth or .bin file, on the CPU, as stored.

    What the file is shows in its first bytes; its name plays no part. Where a pickle holds
    dictionaries and lists inside one another, their keys are joined with dots.

    Raises ValueError: no such file, cut off, no file of weights, or a pickle with foreign classes.
    """
    path = Path(path)
    if is_safetensors(path):
        return read_safetensors(path)
    content = unpickle(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # beside it: optimizer, epoch, callbacks
    with naming(path.name):
        return rename(named_tensors(content))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    header(path)  # it says in our words when the file is cut off
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(damaged(path)) from error


def named_tensors(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries and lists, with its path.

    >>> dict(named_tensors({768: [{"linear.weight": torch.tensor(1)}], "step": 3}))
    {'768.0.linear.weight': tensor(1)}
    """
    if isinstance(content, Tensor):
        yield name, content.detach()
    if isinstance(content, (list, tuple)):
        content = dict(enumerate(content))
    if isinstance(content, dict):
        for key, value in content.items():
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))


def rename(
    tensors: Iterable[tuple[str, Tensor]], spell: Callable[[str], str] = str
) -> dict[str, Tensor]:
    """The tensors under their usual names. Every renaming goes through here: it loses nothing.

    spell: from a name to the usual one
    A tensor that is there under two names counts once. Raises ValueError, naming both, where the
    two have different values.
    """
    found, names = {}, {}
    for name, tensor in tensors:
        usual = spell(name)
        if usual in found and not same_values(found[usual], tensor):
            twice = f"twice with different values, as {names[usual]} and as {name}"
            raise ValueError(f"holds {usual} {twice}: delete the wrong one, or get another copy")
        found.setdefault(usual, tensor)
        names.setdefault(usual, name)
    return found


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers. A matrix equals the same 1x1 convolution."""
    if a.numel() != b.numel() or a.shape[:1] != b.shape[:1]:
        return False
    return torch.equal(a.double().flatten(), b.double().flatten())


def metadata(path: str | Path) -> dict[str, str]:
    """What the header of a .safetensors file says beside its tensors; {} for other files."""
    path = Path(path)
    return (header(path).get("__metadata__") or {}) if is_safetensors(path) else {}


# ---- what the first bytes say ----------------------------------------------------------------


def first_bytes(path: Path, count: int = 512) -> bytes:
    """The start of the file. Raises ValueError if there is none, or if no weights start like it."""
    if not path.exists():
        raise ValueError(f"There is no file {path}: check the path.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give one of the files in it.")
    with open(path, "rb") as file:
        start = file.read(count)
    if not start:
        raise ValueError(f"{path.name} is empty: fetch it again.")
    if len(start) < 9:
        raise ValueError(cut_off(path))
    if not (starts_safetensors(start) or start.startswith((b"PK", b"\x80"))):
        raise ValueError(f"{path.name} {foreign('first bytes', start.decode('latin-1'))}.")
    return start


def starts_safetensors(start: bytes) -> bool:
    """The header's length comes first, in 8 bytes and far below 4 GB, then the header, a JSON."""
    return start[4:9] == b"\0\0\0\0{"


def is_safetensors(path: Path) -> bool:
    return starts_safetensors(first_bytes(path))


def is_zip(path: Path) -> bool:
    return first_bytes(path).startswith(b"PK")  # torch.save since 1.6; one pickle before that


def header(path: Path) -> dict:
    """The JSON at the head of a .safetensors file. Raises ValueError if the file is cut off."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, size))
    if 8 + length > size:
        raise ValueError(cut_off(path))
    try:
        content = json.loads(text)
        said = {} if content.get("__metadata__") is None else content["__metadata__"]  # or null
        entries = [entry for name, entry in content.items() if name != "__metadata__"]
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} has a damaged header: fetch it again.") from error
    if not isinstance(said, dict) or not all(isinstance(each, str) for each in said.values()):
        wrong = "whose __metadata__ is not names with texts, as the format demands"
        raise ValueError(f"{path.name} has a header {wrong}: get another copy.")
    if end > size:
        raise ValueError(cut_off(path, end))
    return content


def cut_off(path: Path, whole: int | None = None) -> str:
    """The sentence for a file that ends too early. whole: its full size, where that is known."""
    got = size_in_words(path.stat().st_size, whole or 0)
    return f"{path.name} ends after {got}: the download was cut off. Fetch it again."


def damaged(path: Path) -> str:
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


# ---- pickles ---------------------------------------------------------------------------------


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
        self.update(state["_parameters"])


# Seen in published files: callbacks, settings, losses as NumPy scalars, times and paths.
LEFT_BEHIND = (
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "numpy.", "pathlib."),
    *("argparse.Namespace", "datetime.", "typing.Any", "builtins.dict", "builtins.list"),
)
PLAIN = ("torch.", "collections.", "_codecs.")  # what tensors themselves are pickled with
PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # old pickles have the old names
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
    Raises ValueError for any other class, by its name, and for a damaged file.
    """
    path = Path(path)
    names = pickled_names(path)
    classes = [stand_in(n) for n in names if n in SPECIAL or n.startswith(LEFT_BEHIND)]
    try:
        with allowed(classes), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on protocols; we give our own
            return torch.load(path, map_location="cpu", mmap=is_zip(path), weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(refusal(path, names, str(error))) from error
    except Exception as error:  # a damaged pickle can break its interpreter anywhere
        raise ValueError(damaged(path)) from error


@contextmanager
def allowed(classes: list[type]) -> Iterator[None]:
    """Let torch's interpreter make these classes, for a while. (torch 2.5 has safe_globals().)"""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(classes)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def pickled_names(path: Path) -> list[str]:
    """The classes and functions that a pickle asks for, as "module.name", found without running it.

    Raises ValueError if the file ends before its end.
    """
    if not is_zip(path):
        with open(path, "rb") as file:
            return [name for _ in range(5) for name in named_globals(file)]
    if not zipfile.is_zipfile(path):  # a zip's table of contents stands at its end
        raise ValueError(cut_off(path))
    with zipfile.ZipFile(path) as archive:
        pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        members = "\n".join(archive.namelist())
        if not pickled or "/code/" in members:
            raise ValueError(f"{path.name} {foreign('members of a zip', members)}.")
        with archive.open(pickled[0]) as file:
            return list(named_globals(file))


def named_globals(file: BinaryIO) -> Iterator[str]:
    """Go through one pickle's instructions; nothing if it does not read as one."""
    strings = []
    with suppress(ValueError):
        for instruction, argument, _ in pickletools.genops(file):
            if instruction.name in ("GLOBAL", "INST"):
                module, name = argument.split(" ")
                yield f"{PYTHON_3.get(module, module)}.{name}"
            elif instruction.name == "STACK_GLOBAL":  # takes the last two strings
                yield ".".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)


def refusal(path: Path, names: list[str], error: str) -> str:
    """The sentence for a pickle whose interpreter refused: for whose sake, if that can be told."""
    blamed = [name for name in names if name.removeprefix("builtins.") in error]
    foreign = [name for name in names if not name.startswith((*PLAIN, *LEFT_BEHIND))]
    if not blamed + foreign:
        return damaged(path)
    asks = f"asks for {(blamed + foreign)[0]}, which could run code, and was not loaded"
    return f"{path.name} {asks}: get the same weights as .safetensors."
