"""The change of size in the decoder. The next skip connection decides the size."""

import torch.nn.functional as F
from torch import nn

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal


class Upsample(nn.Module):
    """Enlarges a feature map by repeating pixels, then smooths it with a convolution.

    x: b c h w    skips: a list of tensors, the skips that are left
    returns: b c h' w', as large as the last skip, or b c 2h 2w if no skip is left
    """

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, skips):
        height, width = (skips[-1] if skips else x.repeat(1, 1, 2, 2)).shape[2:]
        return self.conv(F.interpolate(x, size=(height, width), mode="nearest"))


class AlwaysDoubles(Upsample):
    def forward(self, x, skips):
        return super().forward(x, [])


class FirstSkip(Upsample):
    def forward(self, x, skips):
        return super().forward(x, skips[:1])


class SecondToLastSkip(Upsample):
    def forward(self, x, skips):
        return super().forward(x, skips[:-1])


class ConvolutionFirst(Upsample):
    def forward(self, x, skips):
        size = skips[-1].shape[2:] if skips else (2 * x.shape[2], 2 * x.shape[3])
        return F.interpolate(self.conv(x), size, mode="nearest")


class NoConvolution(Upsample):
    def forward(self, x, skips):
        size = skips[-1].shape[2:] if skips else (2 * x.shape[2], 2 * x.shape[3])
        return F.interpolate(x, size, mode="nearest")


class Bilinear(Upsample):
    def forward(self, x, skips):
        size = skips[-1].shape[2:] if skips else (2 * x.shape[2], 2 * x.shape[3])
        return self.conv(F.interpolate(x, size, mode="bilinear"))


class Tiles(Upsample):
    def forward(self, x, skips):
        size = skips[-1].shape[2:] if skips else (2 * x.shape[2], 2 * x.shape[3])
        return self.conv(x.repeat(1, 1, 2, 2)[:, :, : size[0], : size[1]])


class RemovesSkip(Upsample):
    def forward(self, x, skips):
        result = super().forward(x, skips)
        if skips:
            skips.pop()
        return result


class AddsSkip(Upsample):
    def forward(self, x, skips):
        x = super().forward(x, skips)
        return x + skips[-1] if skips else x


def draw_inputs(b, h, w, *skip_sizes):
    def draw(g):
        skips = [normal(g, b, 3, *size) for size in skip_sizes]
        return module_inputs(g, Upsample, {"channels": 3}, normal(g, b, 3, h, w), skips)

    return draw


EXERCISE = Exercise(
    name="unet_upsample",
    lesson="08",
    place=8,
    title="Upsample to the size of a skip",
    question=(
        "Write the class `Upsample(channels)`. It repeats pixels (`F.interpolate` with "
        'mode="nearest"), then applies `conv`, a 3x3 convolution that keeps the size and the '
        "channels. The new height and width are those of the last skip in the list `skips`. They "
        "may be one less than double: the encoder turns 7 rows into 4, and the decoder must turn "
        "these 4 into 7 again. If the list is empty, height and width double. Do not change the "
        "list."
    ),
    solution=Upsample,
    stages=(
        Stage("no skip is left", 1, draw_inputs(1, 2, 3), call="module"),
        Stage("odd sizes, batch 2", 2, draw_inputs(2, 4, 3, (7, 5)), call="module"),
        Stage("three skips", 1, draw_inputs(1, 2, 3, (8, 11), (7, 12), (3, 6)), call="module"),
    ),
    hints=(
        "Find the new size first, as two numbers. Then there is one call of interpolate and one "
        "of conv.",
        "An empty list counts as false: `if skips:`. The size of the last skip is "
        "skips[-1].shape[2:].",
        'F.interpolate(x, size, mode="nearest") takes a pair of numbers, such as (2 * x.shape[2], '
        "2 * x.shape[3]). The convolution comes after it.",
    ),
    mistakes={
        "Your size always doubles. It should become the size of the last skip.": AlwaysDoubles,
        "The size is that of the first skip. The decoder reads the last one next.": FirstSkip,
        "The size is that of the last skip but one.": SecondToLastSkip,
        "The convolution comes before the change of size.": ConvolutionFirst,
        "The convolution is not applied.": NoConvolution,
        'The pixels are mixed (bilinear). mode="nearest" repeats them.': Bilinear,
        "You repeated the whole picture. Repeat each pixel.": Tiles,
        "The skip is removed from the list. The next block still has to read it.": RemovesSkip,
        "The skip is added. Here, only its size matters.": AddsSkip,
    },
    passing="With it, the U-Net draws pictures of any size, odd ones too.",
    difficulty=2,
    minutes=15,
    replaces={"minisd.unet.Upsample": lambda answer: answer},
    draw=draw_cat,
)
