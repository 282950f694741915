"""The residual block of the VAE. It reads no time, and its norms have another eps."""

import torch.nn.functional as F
from torch import nn

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal


class ResBlock(nn.Module):
    """Two convolutions, whose result is added to x.

    x: b c_in h w    returns: b c_out h w
    """

    def __init__(self, c_in, c_out, norm_groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_groups, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class InSteps(ResBlock):
    """The same in steps. Each mistake below changes one of them."""

    def forward(self, x):
        return self.shortcut(x) + self.second_half(self.first_half(x))

    def first_half(self, x):
        return self.conv1(F.silu(self.norm1(x)))

    def second_half(self, h):
        return self.conv2(F.silu(self.norm2(h)))


class UsualEps(InSteps):
    def __init__(self, c_in, c_out, norm_groups):
        super().__init__(c_in, c_out, norm_groups)
        self.norm1.eps = self.norm2.eps = 1e-5


class NoResidual(InSteps):
    def forward(self, x):
        return self.second_half(self.first_half(x))


class NoShortcut(InSteps):
    def forward(self, x):
        return x + self.second_half(self.first_half(x))


class NormOfShortcut(InSteps):
    def forward(self, x):
        return self.shortcut(F.silu(self.norm1(x))) + self.second_half(self.first_half(x))


class SiluAtTheEnd(InSteps):
    def forward(self, x):
        return F.silu(super().forward(x))


class NoActivation(InSteps):
    def first_half(self, x):
        return self.conv1(self.norm1(x))

    def second_half(self, h):
        return self.conv2(self.norm2(h))


class OnlyOneActivation(InSteps):
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


class NoNorm(InSteps):
    def first_half(self, x):
        return self.conv1(F.silu(x))

    def second_half(self, h):
        return self.conv2(F.silu(h))


class ConvolutionFirst(InSteps):
    """Possible only if c_in is c_out. Otherwise, norm2 stands in for norm1."""

    def first_half(self, x):
        norm = self.norm1 if self.norm1.num_channels == self.norm2.num_channels else self.norm2
        return F.silu(norm(self.conv1(x)))

    def second_half(self, h):
        return F.silu(self.norm2(self.conv2(h)))


def draw_inputs(b, c_in, c_out, h, w, contrast=1.0):
    def draw(g):
        init = {"c_in": c_in, "c_out": c_out, "norm_groups": 2}
        return module_inputs(g, ResBlock, init, contrast * normal(g, b, c_in, h, w))

    return draw


EXERCISE = Exercise(
    name="vae_res_block",
    lesson="04",
    place=5,
    title="The residual block of the autoencoder",
    question=(
        "Write the class `ResBlock(c_in, c_out, norm_groups)`. Apply `norm1`, silu (`F.silu`), "
        "`conv1`, then `norm2`, silu, `conv2`, and add `shortcut` of x. `norm1` and `norm2` are "
        "group norms with `norm_groups` groups over c_in and c_out channels. In the VAE, they have "
        "eps=1e-6. `conv1` (from c_in to c_out) and `conv2` (from c_out to c_out) are 3x3 "
        "convolutions that keep the size. `shortcut` is `nn.Identity()` if c_in equals c_out, "
        "otherwise a 1x1 convolution."
    ),
    solution=ResBlock,
    stages=(
        Stage("4 channels stay 4", 1, draw_inputs(1, 4, 4, 5, 7), "module"),
        Stage("4 channels become 6, batch 2", 2, draw_inputs(2, 4, 6, 5, 7), "module"),
        Stage("a picture with little contrast", 1, draw_inputs(2, 4, 2, 3, 2, 1e-3), "module"),
    ),
    hints=(
        "Both halves have the same order: norm, silu, convolution.",
        "nn.GroupNorm(norm_groups, c_in, eps=1e-6). A 3x3 convolution with padding=1 keeps the "
        "size.",
        "h = conv1(silu(norm1(x))); h = conv2(silu(norm2(h))); the result is shortcut(x) + h.",
    ),
    mistakes={
        "The norms have torch's own eps, 1e-5. The VAE needs eps=1e-6.": UsualEps,
        "x is not added at the end. That is what makes the block residual.": NoResidual,
        "x itself is added. If the channels differ, shortcut(x) must be added.": NoShortcut,
        "The shortcut reads the normed x. It should read x itself.": NormOfShortcut,
        "There is a silu after the sum. The sum is the result.": SiluAtTheEnd,
        "There is no silu between a norm and its convolution.": NoActivation,
        "There is no silu between norm2 and conv2.": OnlyOneActivation,
        "The activation is relu. It should be silu.": Relu,
        "The silu comes before the norm. The order is norm, silu, convolution.": SiluBeforeNorm,
        "The norms are not applied.": NoNorm,
        "The convolution comes first. The order is norm, silu, convolution.": ConvolutionFirst,
    },
    passing="Both halves of the autoencoder consist mostly of this block.",
    difficulty=2,
    minutes=20,
    replaces={"minisd.vae.ResBlock": lambda answer: answer},
    draw=draw_cat,
    in_lesson=True,
)
