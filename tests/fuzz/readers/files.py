"""Files of weights, before anyone asks what the weights are for."""

import io
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from torch import Tensor

from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.read import named_tensors, read_tensors
from tests.fuzz import good
from tests.fuzz.case import Case, Reader
from tests.fuzz.edits import broken

WEIGHTS = {
    "conv.weight": torch.arange(36.0).reshape(4, 1, 3, 3),
    "conv.bias": torch.arange(4.0).half(),
    "steps": torch.arange(5),
    "scale": torch.tensor(0.5, dtype=torch.bfloat16),
}


def some_safetensors() -> list[Case]:
    header = {"said": "by whom", "minisd": '{"name": "x", "size": 64}'}
    both = good.safetensors(WEIGHTS), good.safetensors(WEIGHTS, header)
    return [Case({"a.safetensors": content}, "a.safetensors") for content in both]


def contents() -> list[object]:
    """What people put into pickles."""
    nested = {"state_dict": dict(WEIGHTS), "optimizer_states": [{"state": {0: torch.ones(2)}}]}
    shared = torch.arange(12.0)
    views = {"a": shared[:4], "b": shared[4:].reshape(2, 4).T, "c": shared.to(torch.float64)}
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 8))})
    return [
        WEIGHTS,
        nested,
        views,
        [torch.ones(2), (torch.zeros(1),)],
        {"string_to_param": parameters},
    ]


def zip_pickles() -> list[Case]:
    return [Case({"a.ckpt": good.pickled(content)}, "a.ckpt") for content in contents()]


def old_pickles() -> list[Case]:
    plain = contents()[:-1]  # this kind keeps a module's class, which is not read
    return [Case({"a.pt": good.pickled(content, old=True)}, "a.pt") for content in plain]


def read_all(path: Path) -> dict[str, Tensor]:
    """And look at every number, since they stay in the file until then."""
    said, tensors = read_metadata(path), read_tensors(path)
    assert isinstance(said, dict)
    for tensor in tensors.values():
        if tensor.numel() < 10**6:
            tensor.float().sum() if not tensor.is_complex() else tensor.sum()
    return tensors


def differ(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str | None:
    """What differs between two readings of one file, NaN being equal to itself."""
    if ours.keys() != theirs.keys():
        return f"other names: {sorted(ours.keys() ^ theirs.keys())[:3]}"
    for name, tensor in theirs.items():
        mine = ours[name]
        if mine.shape != tensor.shape or mine.dtype != tensor.dtype:
            found, is_there = ((one.dtype, list(one.shape)) for one in (mine, tensor))
            return f"{name} is {found}, not {is_there}"
        if tensor.numel() and not torch.equal(bits(mine), bits(tensor)):
            return f"{name} has other numbers"
    return None


def bits(tensor: Tensor) -> Tensor:
    row = tensor.reshape(-1).clone(memory_format=torch.contiguous_format)  # any stride fits one
    return row.view(torch.uint8)


def as_safetensors(path: Path, ours: dict[str, Tensor]) -> str | None:
    """The library's own reading of the same bytes."""
    try:
        return differ(ours, safetensors_load(path.read_bytes()))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        return f"the library refuses it: {error}"


def as_pickle(path: Path, ours: dict[str, Tensor]) -> str | None:
    """torch's own reading, without a memory map. What it does not read cannot be compared."""
    try:
        content = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]
        theirs = dict(named_tensors(content))
    except (pickle.UnpicklingError, Exception):
        return None
    return differ(ours, theirs)


FILES = [
    Reader(
        "safetensors",
        some_safetensors,
        lambda: broken(some_safetensors()),
        read_all,
        as_safetensors,
        share=3,
    ),
    Reader("zip pickle", zip_pickles, lambda: broken(zip_pickles()), read_all, as_pickle, share=3),
    Reader("old pickle", old_pickles, lambda: broken(old_pickles()), read_all, as_pickle, share=3),
]
