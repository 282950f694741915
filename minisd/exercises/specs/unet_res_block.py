"""The residual block of the U-Net, which reads the time vector."""

import torch.nn.functional as F
from torch import nn

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal


class ResBlock(nn.Module):
    """Two convolutions, whose result is added to x. Between them, t shifts each channel.

    x: b c_in h w    time: b time_dim    returns: b c_out h w
    """

    def __init__(self, c_in, c_out, time_dim, norm_groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_dim, c_out)
        self.norm2 = nn.GroupNorm(norm_groups, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class InSteps(ResBlock):
    """The same in steps. Each mistake below changes one of them."""

    def forward(self, x, time):
        h = self.first_half(x) + self.shift(time)
        return self.shortcut(x) + self.second_half(h)

    def first_half(self, x):
        return self.conv1(F.silu(self.norm1(x)))

    def shift(self, time):
        return self.time(F.silu(time))[:, :, None, None]

    def second_half(self, h):
        return self.conv2(F.silu(self.norm2(h)))


class NoResidual(InSteps):
    def forward(self, x, time):
        return self.second_half(self.first_half(x) + self.shift(time))


class NoShortcut(InSteps):
    def forward(self, x, time):
        return x + self.second_half(self.first_half(x) + self.shift(time))


class NoTime(InSteps):
    def forward(self, x, time):
        return self.shortcut(x) + self.second_half(self.first_half(x))


class NoAxes(InSteps):
    def shift(self, time):
        return self.time(F.silu(time))


class OneAxis(InSteps):
    def shift(self, time):
        return self.time(F.silu(time))[:, :, None]


class NoPadding(InSteps):
    def __init__(self, c_in, c_out, time_dim, norm_groups):
        super().__init__(c_in, c_out, time_dim, norm_groups)
        self.conv1.padding = self.conv2.padding = (0, 0)


class NoPaddingOtherOrder(NoPadding):
    def forward(self, x, time):
        return self.second_half(self.first_half(x) + self.shift(time)) + self.shortcut(x)


class NoShortcutOtherOrder(InSteps):
    def forward(self, x, time):
        return self.second_half(self.first_half(x) + self.shift(time)) + x


class LacksShortcut(InSteps):
    def __init__(self, c_in, c_out, time_dim, norm_groups):
        super().__init__(c_in, c_out, time_dim, norm_groups)
        self.shortcut = nn.Identity()


LacksShortcut.__name__ = "ResBlock"  # the error's message holds the name of the class


class RawTime(InSteps):
    def shift(self, time):
        return self.time(time)[:, :, None, None]


class SiluAfterTime(InSteps):
    def shift(self, time):
        return F.silu(self.time(time))[:, :, None, None]


class TimeAfterNorm(InSteps):
    def forward(self, x, time):
        h = self.norm2(self.first_half(x)) + self.shift(time)
        return self.shortcut(x) + self.conv2(F.silu(h))


class TimeAtTheEnd(InSteps):
    def forward(self, x, time):
        return self.shortcut(x) + self.second_half(self.first_half(x)) + self.shift(time)


class TimeAsFactor(InSteps):
    def forward(self, x, time):
        h = self.first_half(x) * self.shift(time)
        return self.shortcut(x) + self.second_half(h)


class NoActivation(InSteps):
    def first_half(self, x):
        return self.conv1(self.norm1(x))

    def second_half(self, h):
        return self.conv2(self.norm2(h))


class Relu(InSteps):
    def first_half(self, x):
        return self.conv1(F.relu(self.norm1(x)))

    def second_half(self, h):
        return self.conv2(F.relu(self.norm2(h)))


class SiluBeforeNorm(InSteps):
    def first_half(self, x):
        return self.conv1(self.norm1(F.silu(x)))

    def second_half(self, h):
        return self.conv2(self.norm2(F.silu(h)))


class ConvolutionFirst(InSteps):
    """Possible only if c_in is c_out. Otherwise, norm2 stands in for norm1."""

    def first_half(self, x):
        norm = self.norm1 if self.norm1.num_channels == self.norm2.num_channels else self.norm2
        return F.silu(norm(self.conv1(x)))

    def second_half(self, h):
        return F.silu(self.norm2(self.conv2(h)))


class SiluAtTheEnd(InSteps):
    def forward(self, x, time):
        return F.silu(super().forward(x, time))


class NormOfShortcut(InSteps):
    def forward(self, x, time):
        h = self.second_half(self.first_half(x) + self.shift(time))
        return self.shortcut(F.silu(self.norm1(x))) + h


class SmallEps(InSteps):
    def __init__(self, c_in, c_out, time_dim, norm_groups):
        super().__init__(c_in, c_out, time_dim, norm_groups)
        self.norm1.eps = self.norm2.eps = 1e-6


def draw_inputs(b, c_in, c_out, h, w):
    def draw(g):
        init = {"c_in": c_in, "c_out": c_out, "time_dim": 10, "norm_groups": 2}
        return module_inputs(g, ResBlock, init, normal(g, b, c_in, h, w), normal(g, b, 10))

    return draw


EXERCISE = Exercise(
    name="unet_res_block",
    lesson="08",
    place=4,
    title="A residual block that reads t",
    question=(
        "Write the class `ResBlock(c_in, c_out, time_dim, norm_groups)`. First apply `norm1`, silu "
        "and `conv1`. Then apply silu and `time` to the time vector: this gives one number for "
        "each sample and channel. Add it at all places. Then apply `norm2`, silu and `conv2`, and "
        "add `shortcut` of x.\n\n"
        "The parts: `norm1` and `norm2` are group norms with `norm_groups` groups over c_in and "
        "c_out channels (torch's own eps). `conv1` (from c_in to c_out) and `conv2` (from c_out to "
        "c_out) are 3x3 convolutions that keep the size. `time` is a Linear layer from time_dim to "
        "c_out. `shortcut` is `nn.Identity()` if c_in equals c_out, otherwise a 1x1 convolution."
    ),
    solution=ResBlock,
    stages=(
        Stage("4 channels stay 4", 2, draw_inputs(1, 4, 4, 5, 7), call="module"),
        Stage("4 channels become 6, batch 2", 2, draw_inputs(2, 4, 6, 5, 7), call="module"),
        Stage("6 channels become 4, batch 2", 1, draw_inputs(2, 6, 4, 3, 2), call="module"),
    ),
    hints=(
        "Both halves have the same order: norm, silu, convolution.",
        "self.time(F.silu(time)) is b c. It needs two more axes before it can be added to b c h w: "
        '[:, :, None, None], or rearrange(shift, "b c -> b c 1 1").',
        "h = conv1(silu(norm1(x))); h = h + shift; h = conv2(silu(norm2(h))); the result is "
        "shortcut(x) + h.",
    ),
    mistakes={
        "x is not added at the end. That is what makes the block residual.": NoResidual,
        "x itself is added. If the channels differ, shortcut(x) must be added.": NoShortcut,
        "x itself is added at the end. If the channels differ, add shortcut(x).": (
            NoShortcutOtherOrder
        ),
        "The class has no 1x1 convolution `shortcut`. It needs one if c_in and c_out differ.": (
            LacksShortcut
        ),
        "The shift is b c. Give it two more axes, b c 1 1, before you add it to b c h w.": NoAxes,
        "The shift has one axis too few. It needs the shape b c 1 1.": OneAxis,
        "The 3x3 convolutions make the picture smaller. They need padding=1.": NoPadding,
        "The result is smaller than x. The 3x3 convolutions need padding=1.": NoPaddingOtherOrder,
        "The time is not used. Add it between conv1 and norm2.": NoTime,
        "The time vector does not go through silu before the layer `time`.": RawTime,
        "The silu comes after the layer `time`. It should come before it.": SiluAfterTime,
        "The time is added after norm2. It should be added before norm2.": TimeAfterNorm,
        "The time is added after conv2. It should be added between conv1 and norm2.": TimeAtTheEnd,
        "You multiplied by the time. Add it.": TimeAsFactor,
        "There is no silu between a norm and its convolution.": NoActivation,
        "The activation is relu. It should be silu.": Relu,
        "The silu comes before the norm. The order is norm, silu, convolution.": SiluBeforeNorm,
        "The convolution comes first. The order is norm, silu, convolution.": ConvolutionFirst,
        "There is a silu after the sum. The sum is the result.": SiluAtTheEnd,
        "The shortcut reads the normed x. It should read x itself.": NormOfShortcut,
        "The norms have eps 1e-6, as in the VAE. Here they keep torch's 1e-5.": SmallEps,
    },
    passing="Most of the U-Net's multiplications happen in blocks like yours.",
    difficulty=3,
    minutes=25,
    needs=("time_embedding",),
    replaces={"minisd.unet.ResBlock": lambda answer: answer},
    draw=draw_cat,
)
