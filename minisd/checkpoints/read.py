"""Reading a file of weights: what kind of file it is, then name -> tensor, safely and lazily.

Nothing here knows what the tensors are for. They stay mapped to the file, so that a model costs no
memory until its weights are looked at, and no more than once after that.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minisd.checkpoints.first_bytes import is_safetensors
from minisd.checkpoints.header import read_header, refuse_unreadable
from minisd.checkpoints.pickles import refuse_endless, unpickle
from minisd.files.one_line import name_errors, one_line

LONGEST_NAME = 500  # characters; SD's have about 100
MOST_SHARED_BYTES = 10**9  # bytes that tensors may count twice, as tied weights do


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .ckpt, .pt, .pth or .bin file, on the CPU, as stored.

    What the file is shows in its first bytes; its name plays no part. Where a pickle holds
    dictionaries and lists inside one another, their keys are joined with dots.

    Raises ValueError: no such file, cut off, no file of weights, or a pickle with foreign classes.
    """
    path = Path(path)
    content = read_safetensors(path) if is_safetensors(path) else unpickle(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # beside it: optimizer, epoch, callbacks
    with name_errors(path.name):
        return rename_tensors(named_tensors(content))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    read_header(path)  # it says in our words when the file is cut off
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
    waiting, storages, room = [("", content)], set(), MOST_SHARED_BYTES
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


def rename_tensors(
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
