"""The lowest resolution of the U-Net."""

from types import SimpleNamespace

from torch import nn

from minisd.attention import SpatialTransformer
from minisd.config import UNetConfig
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, as_namespace, module_inputs, normal
from minisd.unet import ResBlock


class Mid(nn.Module):
    """The lowest resolution: residual block, transformer, residual block.

    x: b c h w    time: b time_dim    context: b m context_dim    returns: b c h w
    """

    def __init__(self, channels, config):
        super().__init__()
        time_dim, groups = 4 * config.channels[0], config.norm_groups
        heads = channels // config.head_width if config.head_width else config.heads
        blocks = [ResBlock(channels, channels, time_dim, groups) for _ in range(2)]
        self.res = nn.ModuleList(blocks)
        self.attn = SpatialTransformer(channels, config.context_dim, heads, groups)

    def forward(self, x, time, context):
        x = self.res[0](x, time)
        x = self.attn(x, context)
        return self.res[1](x, time)


class NoAttention(Mid):
    def forward(self, x, time, context):
        return self.res[1](self.res[0](x, time), time)


class AttentionFirst(Mid):
    def forward(self, x, time, context):
        x = self.attn(x, context)
        return self.res[1](self.res[0](x, time), time)


class AttentionLast(Mid):
    def forward(self, x, time, context):
        x = self.res[1](self.res[0](x, time), time)
        return self.attn(x, context)


class OneBlock(Mid):
    def forward(self, x, time, context):
        return self.attn(self.res[0](x, time), context)


class FirstBlockTwice(Mid):
    def forward(self, x, time, context):
        x = self.attn(self.res[0](x, time), context)
        return self.res[0](x, time)


class ResidualAttention(Mid):
    def forward(self, x, time, context):
        x = self.res[0](x, time)
        return self.res[1](x + self.attn(x, context), time)


class ResidualMid(Mid):
    def forward(self, x, time, context):
        return x + super().forward(x, time, context)


class NeverHeadWidth(Mid):
    def __init__(self, channels, config):
        super().__init__(channels, SimpleNamespace(**{**vars(config), "head_width": None}))


class HeadWidthAsHeads(Mid):
    def __init__(self, channels, config):
        heads = config.head_width or config.heads
        changes = {"head_width": None, "heads": heads}
        super().__init__(channels, SimpleNamespace(**{**vars(config), **changes}))


def draw_inputs(b, h, w, head_width):
    def draw(g):
        settings = {"context_dim": 6, "heads": 2, "head_width": head_width, "norm_groups": 2}
        config = as_namespace(UNetConfig(channels=(4, 8), **settings))
        given = [normal(g, b, 8, h, w), normal(g, b, 16), normal(g, b, 5, 6)]
        return module_inputs(g, Mid, {"channels": 8, "config": config}, *given)

    return draw


EXERCISE = Exercise(
    name="unet_mid",
    lesson="08",
    place=10,
    title="The lowest resolution",
    question=(
        "Write the class `Mid(channels, config)`: a residual block, a transformer, and a second "
        "residual block. `res` is an nn.ModuleList of two blocks `ResBlock(channels, channels, "
        "4 * config.channels[0], config.norm_groups)`. `attn` is a `SpatialTransformer(channels, "
        "config.context_dim, heads, config.norm_groups)`. heads is channels // config.head_width "
        "if config.head_width is set, otherwise config.heads. The blocks read the time vector, the "
        "transformer reads the context."
    ),
    solution=Mid,
    stages=(
        Stage("two heads", 1, draw_inputs(1, 2, 3, None), call="module"),
        Stage("heads of width 1, batch 2", 1, draw_inputs(2, 3, 5, 1), call="module"),
    ),
    hints=(
        "Build it like Down: the same ResBlock and SpatialTransformer, but always with attention.",
        "A block is called as self.res[0](x, time), the transformer as self.attn(x, context).",
        "Three lines: x = self.res[0](x, time), x = self.attn(x, context), and the last block "
        "self.res[1].",
    ),
    mistakes={
        "The attention is not used.": NoAttention,
        "The attention comes first. It should be between the blocks.": AttentionFirst,
        "The attention comes last. It should be between the blocks.": AttentionLast,
        "The second residual block is missing.": OneBlock,
        "The first block runs twice. The second time it should be res[1].": FirstBlockTwice,
        "x is added to the result of the attention. SpatialTransformer has done that already.": (
            ResidualAttention
        ),
        "x is added at the end. The blocks have done that already.": ResidualMid,
        "config.head_width is ignored.": NeverHeadWidth,
        "config.head_width is the width of one head, not the number of heads.": HeadWidthAsHeads,
    },
    passing="The feature map is smallest here, and every place of it reads all others.",
    difficulty=2,
    minutes=10,
    needs=("unet_res_block",),
    given="from minisd.attention import SpatialTransformer\nfrom minisd.unet import ResBlock",
    replaces={"minisd.unet.Mid": lambda answer: answer},
    draw=draw_cat,
)
