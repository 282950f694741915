"""The feed-forward layer of the U-Net's transformers."""

import torch
import torch.nn.functional as F
from torch import nn

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal


class GEGLU(nn.Module):
    """A feed-forward layer. One half of its channels opens and closes the other half.

    width: the number of channels c
    expand: how many times as many channels there are between the two layers

    x: b n c    returns: b n c
    """

    def __init__(self, width, expand=4):
        super().__init__()
        self.widen = nn.Linear(width, 2 * expand * width)
        self.narrow = nn.Linear(expand * width, width)

    def forward(self, x):
        wide = self.widen(x)
        half = wide.shape[-1] // 2
        value, gate = wide[..., :half], wide[..., half:]
        share = 0.5 * (1 + torch.erf(gate / 2**0.5))
        return self.narrow(value * gate * share)


class SwappedHalves(GEGLU):
    def forward(self, x):
        gate, value = self.widen(x).chunk(2, dim=-1)
        return self.narrow(value * F.gelu(gate))


class TanhGelu(GEGLU):
    def forward(self, x):
        value, gate = self.widen(x).chunk(2, dim=-1)
        return self.narrow(value * F.gelu(gate, approximate="tanh"))


class QuickGelu(GEGLU):
    def forward(self, x):
        value, gate = self.widen(x).chunk(2, dim=-1)
        return self.narrow(value * gate * torch.sigmoid(1.702 * gate))


class Sigmoid(GEGLU):
    def forward(self, x):
        value, gate = self.widen(x).chunk(2, dim=-1)
        return self.narrow(value * torch.sigmoid(gate))


class Silu(GEGLU):
    def forward(self, x):
        value, gate = self.widen(x).chunk(2, dim=-1)
        return self.narrow(value * F.silu(gate))


class Relu(GEGLU):
    def forward(self, x):
        value, gate = self.widen(x).chunk(2, dim=-1)
        return self.narrow(value * F.relu(gate))


class EverySecondChannel(GEGLU):
    def forward(self, x):
        wide = self.widen(x)
        return self.narrow(wide[..., ::2] * F.gelu(wide[..., 1::2]))


class SumOfHalves(GEGLU):
    def forward(self, x):
        value, gate = self.widen(x).chunk(2, dim=-1)
        return self.narrow(value + F.gelu(gate))


class NoGelu(GEGLU):
    def forward(self, x):
        value, gate = self.widen(x).chunk(2, dim=-1)
        return self.narrow(value * gate)


class WithResidual(GEGLU):
    def forward(self, x):
        return x + super().forward(x)


class GeluOfAll(GEGLU):
    def forward(self, x):
        value, gate = F.gelu(self.widen(x)).chunk(2, dim=-1)
        return self.narrow(value * gate)


def inputs(width, expand, *axes):
    def draw(g):
        init = {"width": width, "expand": expand}
        return module_inputs(g, GEGLU, init, 2 * normal(g, *axes, width))

    return draw


EXERCISE = Exercise(
    name="geglu",
    lesson="07",
    place=7,
    title="A feed-forward layer with a gate",
    question=(
        "Write the class `GEGLU(width, expand=4)`. Its layer `widen` is a Linear from width to "
        "2 * expand * width, and its layer `narrow` a Linear from expand * width back to width. "
        "Both have a bias. `forward(x)` applies `widen` and cuts the channels into two halves: "
        "the first half is the value, the second half is the gate. It multiplies the value by "
        "gelu(gate), and applies `narrow`. Use the exact gelu. This is the default of `F.gelu`."
    ),
    solution=GEGLU,
    stages=(
        Stage("one token", 1, inputs(3, 4, 1, 1), call="module"),
        Stage("a batch of 2, another expand", 2, inputs(6, 3, 2, 5), call="module"),
    ),
    hints=(
        "Do not add x in this class: the transformer does that later.",
        "tensor.chunk(2, dim=-1) cuts the channels into two halves. F.gelu(gate) is the exact "
        "gelu.",
        "value, gate = self.widen(x).chunk(2, dim=-1). The gelu belongs to the gate only.",
    ),
    mistakes={
        "The halves are swapped: the first half is the value, the second is the gate.": (
            SwappedHalves
        ),
        "This is the approximation of gelu with tanh. Use the exact gelu.": TanhGelu,
        "This is quick gelu, which CLIP uses. Use the exact gelu.": QuickGelu,
        "You used sigmoid(gate). Use gelu(gate).": Sigmoid,
        "You used silu(gate). Use gelu(gate).": Silu,
        "You used relu(gate). Use gelu(gate).": Relu,
        "You took every second channel. Cut the channels in the middle.": EverySecondChannel,
        "You added the halves. Multiply the value by gelu(gate).": SumOfHalves,
        "The gelu is missing. Multiply the value by gelu(gate).": NoGelu,
        "You added x. The transformer does this, not the GEGLU.": WithResidual,
        "You applied gelu to both halves. It belongs to the gate only.": GeluOfAll,
    },
    passing=(
        "The GEGLU is the third part of each transformer in the U-Net, after the two attentions."
    ),
    difficulty=2,
    minutes=12,
    replaces={"minisd.attention.GEGLU": lambda answer: answer},
    draw=draw_cat,
)
