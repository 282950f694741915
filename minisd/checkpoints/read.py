"""Read a file of weights safely into a dictionary: name -> tensor.

The tensors stay mapped to the file: a tensor needs no memory until its numbers are used. Even after
that, there is only one copy of its numbers in memory.
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

LONGEST_NAME = 500  # characters; SD's names have about 100
MOST_SHARED_BYTES = 10**9  # bytes that tensors may share, for example tied weights


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a .safetensors, .ckpt, .pt, .pth or .bin file.

    The tensors are on the CPU, and have the dtypes that the file stores. minisd recognizes the
    format by the first bytes of the file, so the ending of the file's name does not matter. If a
    file holds dictionaries inside dictionaries, the name of a tensor consists of all keys that lead
    to the tensor, joined with dots.

    Raises ValueError if the file does not exist, if it is cut off, if it is not a file of weights,
    or if it is a pickle that asks for unknown classes.
    """
    path = Path(path)
    content = read_safetensors(path) if is_safetensors(path) else unpickle(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # leaves out optimizer, epoch, callbacks
    with name_errors(path.name):
        return rename_tensors(named_tensors(content))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    read_header(path)  # refuses a damaged file with our own message
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def named_tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for every tensor in nested dictionaries and lists.

    The name of a tensor consists of the keys that lead to the tensor, joined with dots.

    One tensor may have several names, for example if the same list occurs twice. But a hostile file
    could give one tensor millions of names. Raises ValueError if the same numbers have too many
    names, if lists are nested too deeply, if a name is too long, or if a tensor does not hold real
    numbers.

    >>> dict(named_tensors({768: [{"linear.weight": torch.tensor(1)}], "step": 3}))
    {'768.0.linear.weight': tensor(1)}
    """
    refuse_endless(content)
    waiting, storages, room = [("", content)], set(), MOST_SHARED_BYTES
    while waiting:
        name, each = waiting.pop()
        if name != one_line(name, LONGEST_NAME):  # too long, or with invisible characters
            raise ValueError("holds a tensor whose name is too long or broken: get another copy")
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
    """Give tensors their usual names. Returns a dictionary: usual name -> tensor.

    tensors: pairs of the name in the file and the tensor
    spell: a function that returns the usual name for a name in the file

    Two tensors may get the same usual name if they have the same values. Then only one of the two
    is returned. Raises ValueError if their values differ. The message contains both names in the
    file.
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
    """Whether two tensors hold the same numbers.

    Their shapes may differ: a matrix and a 1x1 convolution can hold the same numbers.
    """
    if a.numel() != b.numel() or a.shape[:1] != b.shape[:1]:
        return False
    if a.dtype != b.dtype or a.itemsize == 1:  # torch cannot compare 8-bit numbers
        a, b = a.double(), b.double()
    return torch.equal(a.flatten(), b.flatten())
