"""Single bugs in ports, with the module that should be named and, where there is a hypothesis, why.

bugs.jsonl has one in each line. Its edit is [file, old, new] for a host that is edited as source,
and [module, change] for diffusers, whose built network is changed.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn


@dataclass(frozen=True)
class Bug:
    """module: ours that should be named    cause: a pattern that the reason should match, or None

    other: further names that are as right
    """

    host: str
    part: str
    name: str
    edit: list
    module: str
    cause: str | None = None
    other: tuple[str, ...] = ()


def read_bugs(file: str = "bugs.jsonl") -> list[Bug]:
    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
    return [Bug(**json.loads(line)) for line in lines]


def change_module(network: nn.Module, path: str, change: str | list) -> None:
    """Put a bug into one module of a built network."""
    module = network.get_submodule(path)
    if isinstance(change, list):
        name, value = change
        setattr(module, name, nn.GELU() if value == "gelu" else value)
    elif change == "no bias":
        module.bias = None
    elif change == "half the groups":
        module.num_groups //= 2
    else:
        turned = {"transpose": lambda w: w.transpose(0, 1), "flip": lambda w: w.flip(2, 3)}[change]
        module.weight = nn.Parameter(turned(module.weight).contiguous(), requires_grad=False)
