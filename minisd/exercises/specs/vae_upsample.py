"""The change of size in the decoder."""

import torch.nn.functional as F
from torch import nn

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then smooths with a convolution.

    x: b c h w    returns: b c 2h 2w
    """

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return self.conv(x)


class ConvolutionFirst(Upsample):
    def forward(self, x):
        return F.interpolate(self.conv(x), scale_factor=2)


class NoConvolution(Upsample):
    def forward(self, x):
        return F.interpolate(x, scale_factor=2)


class Bilinear(Upsample):
    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="bilinear"))


class Tiles(Upsample):
    def forward(self, x):
        return self.conv(x.repeat(1, 1, 2, 2))


class ZerosBetween(Upsample):
    def forward(self, x):
        larger = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        larger[:, :, ::2, ::2] = x
        return self.conv(larger)


class OnlyTheHeight(Upsample):
    def forward(self, x):
        return self.conv(x.repeat_interleave(2, dim=2))


class NotEnlarged(Upsample):
    def forward(self, x):
        return self.conv(x)


class Residual(Upsample):
    def forward(self, x):
        x = F.interpolate(x, scale_factor=2)
        return x + self.conv(x)


def draw_inputs(b, c, h, w):
    return lambda g: module_inputs(g, Upsample, {"channels": c}, normal(g, b, c, h, w))


EXERCISE = Exercise(
    name="vae_upsample",
    lesson="04",
    place=8,
    title="Double the size",
    question=(
        "Write the class `Upsample(channels)`. First repeat every pixel: one pixel becomes 2 x 2 "
        "equal pixels. Then apply `conv`, a 3x3 convolution that keeps the size and the number of "
        "channels."
    ),
    solution=Upsample,
    stages=(
        Stage("one channel, 1 x 2", 1, draw_inputs(1, 1, 1, 2), "module"),
        Stage("a batch of 2, 3 x 5", 1, draw_inputs(2, 3, 3, 5), "module"),
    ),
    hints=(
        "Two steps: enlarge, then the convolution.",
        'F.interpolate(x, scale_factor=2, mode="nearest") repeats pixels. repeat_interleave can do '
        "the same along one axis.",
        "The convolution reads the large x: self.conv(F.interpolate(…)).",
    ),
    mistakes={
        "The convolution comes first. Enlarge first.": ConvolutionFirst,
        "The convolution is not applied.": NoConvolution,
        "The pixels are mixed (bilinear). Each pixel should be repeated.": Bilinear,
        "You repeated the whole picture. Repeat each pixel.": Tiles,
        "There are zeros between the pixels. Each pixel should be repeated.": ZerosBetween,
        "Only the height is doubled.": OnlyTheHeight,
        "x is not enlarged.": NotEnlarged,
        "The enlarged x is added to the result. Return only what the convolution makes.": Residual,
    },
    passing="Three of these layers turn the 8 x 8 places of the mini's latent into 64 x 64 pixels.",
    difficulty=1,
    minutes=10,
    replaces={"minisd.vae.Upsample": lambda answer: answer},
    draw=draw_cat,
)
