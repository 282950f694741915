"""Reading a file of weights: what kind of file it is, then name -> tensor, safely and lazily.

Nothing here knows what the tensors are for. They stay mapped to the file, so that a model costs no
memory until its weights are looked at, and no more than once after that.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minisd.checkpoints.first_bytes import cut_off, damage_sentence, is_safetensors
from minisd.checkpoints.first_bytes import size_in_words as size_in_words
from minisd.checkpoints.pickles import refuse_endless, unpickle
from minisd.checkpoints.settings import naming
from minisd.files.json_files import parse_json
from minisd.files.json_files import read_json as read_json
from minisd.files.one_line import one_line

HEADER = 20 * 10**6  # bytes; a model's has 0.2 MB, and a LoRA's with all its captions a few
MOST_TENSORS = 20_000  # SD v1 with its averaged weights has 2,000
LONGEST_NAME = 500  # characters; SD's have about 100
SHARED = 10**9  # bytes that tensors may count twice, as tied weights do
# As safetensors and as torch call them. The integers are positions and numbers of steps.
READABLE = r"[UI](8|16|32|64)|BF16|F(16|32|64)|F8_\w+|BOOL"
READABLE += r"|torch\.(u?int(8|16|32|64)|b?float(16|32|64)|float8_\w+|bool)"


def read(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .ckpt, .pt, .pth or .bin file, on the CPU, as stored.

    What the file is shows in its first bytes; its name plays no part. Where a pickle holds
    dictionaries and lists inside one another, their keys are joined with dots.

    Raises ValueError: no such file, cut off, no file of weights, or a pickle with foreign classes.
    """
    path = Path(path)
    content = read_safetensors(path) if is_safetensors(path) else unpickle(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # beside it: optimizer, epoch, callbacks
    with naming(path.name):
        return rename(named_tensors(content))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    header(path)  # it says in our words when the file is cut off
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def named_tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries and lists, with its path.

    A list may be there twice, as one network for two widths. Raises ValueError for lists inside one
    another without end, for tensors without real numbers, and where names make far more of them
    than there are: a file may state any number of tensors on the same numbers.

    >>> dict(named_tensors({768: [{"linear.weight": torch.tensor(1)}], "step": 3}))
    {'768.0.linear.weight': tensor(1)}
    """
    refuse_endless(content)
    waiting, storages, room = [("", content)], set(), SHARED
    while waiting:
        name, each = waiting.pop()
        if name != one_line(name, LONGEST_NAME):  # nor one that a terminal would obey or hide
            raise ValueError("holds a tensor whose name is too long, or no text: get another copy")
        if isinstance(each, Tensor):
            refuse_unreadable(name, str(each.dtype))
            storage = each.untyped_storage()
            room += (storage.data_ptr() not in storages) * storage.nbytes() - each.nbytes
            if room < 0:
                raise ValueError("holds the same numbers under too many names: get another copy")
            storages.add(storage.data_ptr())
            yield name, each.detach()
        elif isinstance(each, (dict, list, tuple)):
            items = each.items() if isinstance(each, dict) else enumerate(each)
            inside = [pair for pair in items if isinstance(pair[1], (Tensor, dict, list, tuple))]
            start = f"{name}." if name else ""
            waiting += [(f"{start}{key}", value) for key, value in reversed(inside)]


def refuse_unreadable(name: str, dtype: str) -> None:
    """Raise ValueError for numbers that no network computes with, such as complex ones."""
    if not re.fullmatch(READABLE, dtype):
        raise ValueError(f"holds {name} in {dtype.removeprefix('torch.')}: get it in float16")


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
    if a.dtype != b.dtype or a.itemsize == 1:  # 8 bits cannot be compared in torch
        a, b = a.double(), b.double()
    return torch.equal(a.flatten(), b.flatten())


def metadata(path: str | Path) -> dict[str, str]:
    """What the header of a .safetensors file says beside its tensors; {} for other files."""
    path = Path(path)
    return (header(path).get("__metadata__") or {}) if is_safetensors(path) else {}


def header(path: Path) -> dict:
    """The JSON at the head of a .safetensors file.

    Raises ValueError if the file is cut off, damaged, or holds tensors of unknown numbers.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, HEADER + 1))
    if 8 + length > size:
        raise ValueError(cut_off(path))
    try:
        content = parse_json(text, HEADER)
        said = {} if content.get("__metadata__") is None else content["__metadata__"]  # or null
        entries = {name: entry for name, entry in content.items() if name != "__metadata__"}
        end = 8 + length + max((each["data_offsets"][1] for each in entries.values()), default=0)
        dtypes = {name: str(entry["dtype"]) for name, entry in entries.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} has a damaged header: fetch it again.") from error
    except ValueError as error:
        raise ValueError(f"{path.name} has a damaged header, which {error}.") from error
    if end > size:
        raise ValueError(cut_off(path, end))
    with naming(path.name):
        check_header(said, dtypes)
    try:
        with safe_open(path, framework="pt"):  # it compares places, shapes and sizes
            return content
    except SafetensorError as error:
        raise ValueError(damage_sentence(path)) from error


def check_header(said: object, dtypes: dict[str, str]) -> None:
    """Raise ValueError for a header's __metadata__ or tensors that no model's file has."""
    if not isinstance(said, dict) or not all(isinstance(each, str) for each in said.values()):
        wrong = "whose __metadata__ is not names with texts, as the format demands"
        raise ValueError(f"has a header {wrong}: get another copy")
    if len(dtypes) > MOST_TENSORS:
        many = f"holds {len(dtypes):,} tensors, more than {MOST_TENSORS:,}"
        raise ValueError(f"{many}: get another copy")
    for name, dtype in dtypes.items():
        refuse_unreadable(name, dtype)
