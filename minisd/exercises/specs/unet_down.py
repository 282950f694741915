"""One resolution of the encoder."""

from types import SimpleNamespace

import torch.nn.functional as F
from torch import nn

from minisd.attention import SpatialTransformer
from minisd.config import UNetConfig
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, as_namespace, module_inputs, normal
from minisd.unet import ResBlock


class Down(nn.Module):
    """One resolution of the encoder: residual blocks, each followed by attention to the text.

    x: b c_in h w    time: b time_dim    context: b m context_dim
    returns: the new x, and the list of its skips. The new x is b c_out h/2 w/2 (rounded up), or
        b c_out h w at the last resolution
    """

    def __init__(self, c_in, c_out, config, attends, last):
        super().__init__()
        time_dim, groups = 4 * config.channels[0], config.norm_groups
        heads = c_out // config.head_width if config.head_width else config.heads
        self.res, self.attn = nn.ModuleList(), nn.ModuleList()
        for i in range(config.res_blocks):
            self.res.append(ResBlock(c_out if i else c_in, c_out, time_dim, groups))
            if attends:
                self.attn.append(SpatialTransformer(c_out, config.context_dim, heads, groups))
        self.downsample = None if last else nn.Conv2d(c_out, c_out, 3, stride=2, padding=1)

    def forward(self, x, time, context):
        skips = []
        for i in range(len(self.res)):
            x = self.res[i](x, time)
            if len(self.attn) > 0:
                x = self.attn[i](x, context)
            skips = [*skips, x]
        if self.downsample is not None:
            x = self.downsample(x)
            skips = [*skips, x]
        return x, skips


class InSteps(Down):
    """The same in steps. Each mistake below changes one of them."""

    def forward(self, x, time, context):
        skips = []
        for i, res in enumerate(self.res):
            x, skip = self.block(x, res, self.attn[i] if self.attn else None, time, context)
            skips.append(skip)
        return self.end(x, skips)

    def block(self, x, res, attn, time, context):
        x = self.attend(res(x, time), attn, context)
        return x, x

    def attend(self, x, attn, context):
        return x if attn is None else attn(x, context)

    def end(self, x, skips):
        if self.downsample is None:
            return x, skips
        x = self.downsample(x)
        return x, [*skips, x]


class SkipBeforeAttention(InSteps):
    def block(self, x, res, attn, time, context):
        x = res(x, time)
        return self.attend(x, attn, context), x


class SkipBeforeBlock(InSteps):
    def block(self, x, res, attn, time, context):
        return self.attend(res(x, time), attn, context), x


class AttentionFirst(InSteps):
    """If the first block changes the channels, its attention cannot come first."""

    def block(self, x, res, attn, time, context):
        if x.shape[1] != res.conv1.out_channels:
            return super().block(x, res, attn, time, context)
        x = res(self.attend(x, attn, context), time)
        return x, x


class NoAttention(InSteps):
    def attend(self, x, attn, context):
        return x


class AttentionTwice(InSteps):
    def attend(self, x, attn, context):
        return x if attn is None else x + attn(x, context)


class NoSkipOfDownsample(InSteps):
    def end(self, x, skips):
        return super().end(x, skips)[0], skips


class SkipBeforeDownsample(InSteps):
    def end(self, x, skips):
        return super().end(x, skips)[0], skips + [x] * (self.downsample is not None)


class OnlyLastBlock(InSteps):
    def end(self, x, skips):
        return super().end(x, skips[-1:])


class NotDownsampled(InSteps):
    def end(self, x, skips):
        return x, super().end(x, skips)[1]


class SkipsReversed(InSteps):
    def end(self, x, skips):
        x, skips = super().end(x, skips)
        return x, skips[::-1]


class PaddedLikeTheVAE(InSteps):
    def end(self, x, skips):
        if self.downsample is None:
            return x, skips
        conv = self.downsample
        x = F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
        return x, [*skips, x]


class NeverHeadWidth(Down):
    def __init__(self, c_in, c_out, config, attends, last):
        config = SimpleNamespace(**{**vars(config), "head_width": None})
        super().__init__(c_in, c_out, config, attends, last)


class HeadWidthAsHeads(Down):
    def __init__(self, c_in, c_out, config, attends, last):
        heads = config.head_width or config.heads
        config = SimpleNamespace(**{**vars(config), "head_width": None, "heads": heads})
        super().__init__(c_in, c_out, config, attends, last)


def draw_inputs(b, h, w, attends, last, head_width=None):
    def draw(g):
        settings = {"context_dim": 6, "heads": 2, "head_width": head_width, "norm_groups": 2}
        config = as_namespace(UNetConfig(channels=(4, 8), **settings))
        init = {"c_in": 4, "c_out": 8, "config": config, "attends": attends, "last": last}
        given = [normal(g, b, 4, h, w), normal(g, b, 16), normal(g, b, 5, 6)]
        return module_inputs(g, Down, init, *given)

    return draw


EXERCISE = Exercise(
    name="unet_down",
    lesson="08",
    place=9,
    title="One resolution of the encoder",
    question=(
        "Write the class `Down(c_in, c_out, config, attends, last)`. `res` is an "
        "nn.ModuleList of `config.res_blocks` blocks `ResBlock(c_in, c_out, 4 * "
        "config.channels[0], config.norm_groups)`. From the second block on, a block reads "
        "c_out channels. `attn` is an nn.ModuleList, too. If `attends` is true, it has one "
        "`SpatialTransformer(c_out, config.context_dim, heads, config.norm_groups)` for each "
        "block; otherwise it is empty. heads is c_out // config.head_width if "
        "config.head_width is set, otherwise config.heads. `downsample` is a 3x3 convolution "
        "with stride 2 and padding 1 that keeps the c_out channels, or None if `last` is true.\n\n"
        "forward() runs each block and then its transformer (if there is one), and appends "
        "the result to a list. Then it downsamples (unless this is the last resolution), and "
        "appends that, too. It returns x and the list."
    ),
    solution=Down,
    stages=(
        Stage(
            "the last resolution, without attention", 1, draw_inputs(1, 3, 5, False, True), "module"
        ),
        Stage("with a smaller size at the end", 2, draw_inputs(2, 4, 5, False, False), "module"),
        Stage("with attention", 2, draw_inputs(2, 3, 4, True, False), "module"),
        Stage("with a width for the heads", 1, draw_inputs(1, 3, 4, True, True, 1), "module"),
    ),
    hints=(
        "Each skip is the same x that the next layer reads.",
        "A ModuleList can be filled with append(), and read with self.attn[i]. `if self.attn:` "
        "asks whether it has an entry.",
        "for i, res in enumerate(self.res): x = res(x, time), then x = self.attn[i](x, context) if "
        "there is one, then skips.append(x). After the loop, the same with self.downsample(x).",
    ),
    mistakes={
        "The skip is taken before the attention. It should be taken after it.": SkipBeforeAttention,
        "The skip is what goes into the block. It should be what comes out.": SkipBeforeBlock,
        "The attention comes before the residual block. It should come after it.": AttentionFirst,
        "The attention is not used.": NoAttention,
        "x is added to the result of the attention. SpatialTransformer has done that already.": (
            AttentionTwice
        ),
        "The skip after the downsampling is missing.": NoSkipOfDownsample,
        "The last skip is taken before the downsampling. It should be taken after it.": (
            SkipBeforeDownsample
        ),
        "Only the last block makes a skip. Every block should.": OnlyLastBlock,
        "The x that is returned is not downsampled.": NotDownsampled,
        "The list of the skips is reversed.": SkipsReversed,
        "You pad only on the right and at the bottom, as in the VAE. Use padding=1 here.": (
            PaddedLikeTheVAE
        ),
        "config.head_width is ignored.": NeverHeadWidth,
        "config.head_width is the width of one head, not the number of heads.": HeadWidthAsHeads,
    },
    passing="The encoder of the mini has two of these, that of Stable Diffusion has four.",
    difficulty=3,
    minutes=30,
    needs=("unet_res_block",),
    given="from minisd.attention import SpatialTransformer\nfrom minisd.unet import ResBlock",
    replaces={"minisd.unet.Down": lambda answer: answer},
    draw=draw_cat,
)
