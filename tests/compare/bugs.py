"""Single bugs in ports, with the module that should be named and, where there is a hypothesis, why.

bugs.jsonl has one in each line. Its edit is [file, old, new] for a host that is edited as source,
and [module, change] for diffusers, whose built network is changed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import MethodType

import torch.nn.functional as F
from torch import nn

# forward() of a module of diffusers or transformers, with a bug
FORWARDS = {
    "integer t": lambda self, t: type(self).forward(self, t.long()),
    "edge padding": lambda self, x: self.conv(F.pad(x, (0, 1, 0, 1), mode="replicate")),
    "no mask": lambda self, hidden_states, attention_mask=None, **others: type(self).forward(
        self, hidden_states, None, **{**others, "is_causal": False}
    ),
}


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
        if name == "forward":
            value = MethodType(FORWARDS[value], module)
        elif value in ("gelu", "identity"):
            value = nn.GELU() if value == "gelu" else nn.Identity()
        setattr(module, name, value)
    elif change == "no bias":
        module.bias = None
    elif change == "half the groups":
        module.num_groups //= 2
    else:
        turned = {"transpose": lambda w: w.transpose(0, 1), "flip": lambda w: w.flip(2, 3)}[change]
        module.weight = nn.Parameter(turned(module.weight).contiguous(), requires_grad=False)
