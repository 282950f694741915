"""The change of size in the encoder, with its padding on two sides only."""

import torch.nn.functional as F
from torch import nn

from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal
from minisd.exercises.specs.encode_latent import draw_copy


class Downsample(nn.Module):
    """Halves height and width. It pads only on the right and at the bottom.

    x: b c h w    returns: b c h/2 w/2, rounded down
    """

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class AllSides(Downsample):
    def forward(self, x):
        return self.conv(F.pad(x, (1, 1, 1, 1)))


class LeftAndTop(Downsample):
    def forward(self, x):
        return self.conv(F.pad(x, (1, 0, 1, 0)))


class RightAndTop(Downsample):
    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 1, 0)))


class LeftAndBottom(Downsample):
    def forward(self, x):
        return self.conv(F.pad(x, (1, 0, 0, 1)))


class NoPadding(Downsample):
    def forward(self, x):
        return self.conv(x)


class OnlyTheWidth(Downsample):
    def forward(self, x):
        return self.conv(F.pad(x, (0, 1)))


class AxesSwapped(Downsample):
    def forward(self, x):
        return self.conv(F.pad(x, (0, 0, 1, 1)))


class EdgeRepeated(Downsample):
    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1), mode="replicate"))


class EdgeMirrored(Downsample):
    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1), mode="reflect"))


class PaddedAfterwards(Downsample):
    def forward(self, x):
        return F.pad(self.conv(x), (0, 1, 0, 1))


class Averaged(Downsample):
    def forward(self, x):
        x = F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)
        return F.avg_pool2d(x, 2)


class NoStride(Downsample):
    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.conv.weight, self.conv.bias)


def draw_inputs(b, c, h, w):
    return lambda g: module_inputs(g, Downsample, {"channels": c}, normal(g, b, c, h, w))


EXERCISE = Exercise(
    name="vae_downsample",
    lesson="04",
    place=7,
    title="Halve the size",
    question=(
        "Write the class `Downsample(channels)`. `conv` is a 3x3 convolution with stride 2 and "
        "without padding; it keeps the number of channels. Before it, pad x with one column of "
        "zeros on the right and one row of zeros at the bottom. `F.pad(x, (left, right, top, "
        "bottom))` pads. (Padding on all four sides would shift the picture by half a pixel.)"
    ),
    solution=Downsample,
    stages=(
        Stage("one channel, 2 x 2", 1, draw_inputs(1, 1, 2, 2), "module"),
        Stage("a batch of 2, 5 x 6", 2, draw_inputs(2, 3, 5, 6), "module"),
    ),
    hints=(
        "Two steps: F.pad, then the convolution. The padding is not an argument of the "
        "convolution.",
        "nn.Conv2d(channels, channels, 3, stride=2) has no padding unless you ask for it.",
        "Right and bottom are the second and the fourth number: F.pad(x, (0, 1, 0, 1)).",
    ),
    mistakes={
        "x is padded on all sides, as in the U-Net. Pad only on the right and at the bottom.": (
            AllSides
        ),
        "x is padded on the left and at the top. Pad on the right and at the bottom.": LeftAndTop,
        "The row of zeros is at the top. It should be at the bottom.": RightAndTop,
        "The column of zeros is on the left. It should be on the right.": LeftAndBottom,
        "x is not padded.": NoPadding,
        "Only the width is padded. Pad the height, too.": OnlyTheWidth,
        "The numbers of F.pad are left, right, top, bottom. You padded top and bottom.": (
            AxesSwapped
        ),
        "The edge is repeated. Pad with zeros.": EdgeRepeated,
        "The edge is mirrored. Pad with zeros.": EdgeMirrored,
        "The padding comes after the convolution. It should come before it.": PaddedAfterwards,
        "The size is halved by averaging. The convolution does it, with stride 2.": Averaged,
        "The convolution has no stride, so the size is not halved.": NoStride,
    },
    passing=(
        "Three of these layers make the latent 8 times smaller than the picture in both directions."
    ),
    difficulty=1,
    minutes=10,
    replaces={"minisd.vae.Downsample": lambda answer: answer},
    draw=draw_copy,
)
