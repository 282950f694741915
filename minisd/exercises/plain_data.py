"""Plain data as bytes: the inputs that a grader sends, and the results that come back.

The bytes are a safetensors file. It holds the tensors, and JSON for everything around them. So
nobody reads a pickle. A grader copies this file to where the student's code runs.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from minisd.exercises.calls import Made

KINDS: dict[str, Any] = {"made": Made, "tuple": tuple, "list": list, "dict": dict}


def pack_data(data: Any) -> bytes:
    """Tensors, numbers, texts and Made, in lists, tuples and dictionaries, as bytes.

    Raises TypeError if the data holds something else.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(encode(data, tensors))
    return save({**tensors, "json": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)})


def unpack_data(packed: bytes, parse: Callable[[bytes], Any] = json.loads) -> Any:
    """The data in these bytes. Raises some error if they are damaged.

    parse: reads the JSON. For bytes from a stranger, this is a careful function
    """
    tensors = load(packed)
    return decode(parse(tensors.pop("json").numpy().tobytes()), tensors)


def encode(data: Any, tensors: dict[str, Tensor]) -> Any:
    """The data in the form of JSON. Its tensors are added to `tensors`."""
    if isinstance(data, Tensor | np.ndarray | np.generic):
        name = str(len(tensors))
        tensors[name] = torch.as_tensor(data).detach().contiguous().clone()
        return {"tensor": name}
    if data is None or isinstance(data, int | str):
        return data
    if isinstance(data, float | bytes):  # JSON has neither infinity nor bytes
        return {"float" if isinstance(data, float) else "bytes": data.hex()}
    for name, kind in KINDS.items():
        if isinstance(data, kind):
            parts = data.items() if isinstance(data, dict) else data
            return {name: [encode(part, tensors) for part in parts]}
    raise TypeError(f"expected tensors, numbers or texts, got {type(data).__name__}.")


def decode(stored: Any, tensors: dict[str, Tensor]) -> Any:
    """What encode() has encoded."""
    if not isinstance(stored, dict):
        return stored
    [(name, value)] = stored.items()
    if name == "tensor":
        return tensors[value]
    if name in ("float", "bytes"):
        return float.fromhex(value) if name == "float" else bytes.fromhex(value)
    parts = [decode(part, tensors) for part in value]
    return Made(*parts) if name == "made" else KINDS[name](parts)
