"""A residual block that the time scales and shifts, with the student's own constants."""

import torch.nn.functional as F
from torch import nn

from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal


class FilmBlock(nn.Module):
    """A residual block in which the time vector scales and shifts each channel.

    x: b c_in h w    time: b time_dim    returns: b c_out h w
    """

    def __init__(self, c_in, c_out, time_dim, norm_groups, *, factor=0.6, first="shift"):
        super().__init__()
        self.factor, self.first = factor, first
        self.norm1 = nn.GroupNorm(norm_groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * c_out)
        self.norm2 = nn.GroupNorm(norm_groups, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm1(x)))
        one, other = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        scale, shift = (one, other) if self.first == "scale" else (other, one)
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(F.silu(h))
        return self.factor * self.shortcut(x) + h


class InSteps(FilmBlock):
    """The same in steps. Each mistake below changes one of them."""

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.modulate(h, *self.read_time(time))
        return self.join(x, self.conv2(F.silu(h)))

    def read_time(self, time):
        one, other = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        return (one, other) if self.first == "scale" else (other, one)

    def modulate(self, h, scale, shift):
        return self.norm2(h) * (1 + scale) + shift

    def join(self, x, h):
        return self.factor * self.shortcut(x) + h


class NoOne(InSteps):
    def modulate(self, h, scale, shift):
        return self.norm2(h) * scale + shift


class SwappedHalves(InSteps):
    def modulate(self, h, scale, shift):
        return super().modulate(h, shift, scale)


class ShiftIsScaled(InSteps):
    def modulate(self, h, scale, shift):
        return (self.norm2(h) + shift) * (1 + scale)


class BeforeNorm(InSteps):
    def modulate(self, h, scale, shift):
        return self.norm2(h * (1 + scale) + shift)


class NoNorm(InSteps):
    def modulate(self, h, scale, shift):
        return h * (1 + scale) + shift


class TakeTurns(InSteps):
    def read_time(self, time):
        both = self.time(F.silu(time))[:, :, None, None]
        one, other = both[:, 0::2], both[:, 1::2]
        return (one, other) if self.first == "scale" else (other, one)


class NoAxes(InSteps):
    def read_time(self, time):
        one, other = self.time(F.silu(time)).chunk(2, dim=1)
        return (one, other) if self.first == "scale" else (other, one)


class RawTime(InSteps):
    def read_time(self, time):
        one, other = self.time(time)[:, :, None, None].chunk(2, dim=1)
        return (one, other) if self.first == "scale" else (other, one)


class NoFactor(InSteps):
    def join(self, x, h):
        return self.shortcut(x) + h


class FactorOnWrongSide(InSteps):
    def join(self, x, h):
        return self.shortcut(x) + self.factor * h


class FactorOnSum(InSteps):
    def join(self, x, h):
        return self.factor * (self.shortcut(x) + h)


class OneMinusFactor(InSteps):
    def join(self, x, h):
        return self.factor * self.shortcut(x) + (1 - self.factor) * h


def draw_inputs(b, c_in, c_out, h, w):
    def draw(g):
        init = {"c_in": c_in, "c_out": c_out, "time_dim": 10, "norm_groups": 2}
        return module_inputs(g, FilmBlock, init, normal(g, b, c_in, h, w), normal(g, b, 10))

    return draw


EXERCISE = Exercise(
    name="film_block",
    lesson="08",
    place=5,
    title="A block that t scales and shifts",
    question=(
        "Later U-Nets let t do more (Dhariwal & Nichol 2021). Write the class `FilmBlock(c_in, "
        "c_out, time_dim, norm_groups)`. It is like `ResBlock` of `unet_res_block`, with three "
        "changes. The layer `time` has 2 * c_out outputs. One half of them is the scale, the "
        "other half is the shift. In your block, the {first} is the first half. Nothing is added "
        "before `norm2`. Both halves are used after it: h = norm2(h) * (1 + scale) + shift. Then "
        "come silu and `conv2`. At the end, the shortcut is multiplied by {factor}: the result "
        "is {factor} * shortcut(x) + h. As in ResBlock, the time vector goes through silu before "
        "`time`, and the parts are `norm1`, `conv1`, `time`, `norm2`, `conv2` and `shortcut`."
    ),
    solution=FilmBlock,
    stages=(
        Stage("4 channels stay 4", 2, draw_inputs(1, 4, 4, 5, 7), call="module"),
        Stage("4 channels become 6, batch 2", 2, draw_inputs(2, 4, 6, 5, 7), call="module"),
    ),
    hints=(
        "Begin with your ResBlock. Only the layer `time` and the lines after conv1 change.",
        "self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1) gives two tensors of c_out "
        "channels each.",
        "h = self.norm2(h) * (1 + scale) + shift, then h = self.conv2(F.silu(h)). Your own number "
        "multiplies only self.shortcut(x).",
    ),
    mistakes={
        "norm2(h) is multiplied by scale. It should be multiplied by 1 + scale.": NoOne,
        "Scale and shift are swapped. The question says which half comes first.": SwappedHalves,
        "The shift is multiplied, too. Add it after the multiplication.": ShiftIsScaled,
        "Scale and shift come before norm2. They should come after it.": BeforeNorm,
        "norm2 is not applied.": NoNorm,
        "You took every second output of `time`. Scale and shift are halves.": TakeTurns,
        "Scale and shift are b c. Give them two more axes, b c 1 1, to fit b c h w.": NoAxes,
        "The time vector does not go through silu before the layer `time`.": RawTime,
        "The shortcut is not multiplied by your number.": NoFactor,
        "Your number multiplies h. It should multiply the shortcut.": FactorOnWrongSide,
        "Your number multiplies the whole sum. It should multiply only the shortcut.": FactorOnSum,
        "h is multiplied by 1 minus your number. It should stay as it is.": OneMinusFactor,
    },
    passing="A scale can switch a channel off at some noise levels. A shift alone cannot.",
    difficulty=3,
    minutes=20,
    needs=("unet_res_block",),
    constants=lambda rng: {
        "factor": rng.choice([0.5, 0.6, 0.7, 0.8]),
        "first": rng.choice(["scale", "shift"]),
    },
)
