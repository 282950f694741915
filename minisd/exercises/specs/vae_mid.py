"""The smallest resolution of the autoencoder."""

from torch import nn

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal
from minisd.vae import ResBlock, SpatialAttention


class Mid(nn.Module):
    """The smallest resolution: residual block, attention, residual block.

    x: b c h w    returns: b c h w
    """

    def __init__(self, channels, norm_groups):
        super().__init__()
        blocks = [ResBlock(channels, channels, norm_groups) for _ in range(2)]
        self.res = nn.ModuleList(blocks)
        self.attn = SpatialAttention(channels, norm_groups)

    def forward(self, x):
        x = self.res[0](x)
        x = self.attn(x)
        return self.res[1](x)


class NoAttention(Mid):
    def forward(self, x):
        return self.res[1](self.res[0](x))


class AttentionFirst(Mid):
    def forward(self, x):
        return self.res[1](self.res[0](self.attn(x)))


class AttentionLast(Mid):
    def forward(self, x):
        return self.attn(self.res[1](self.res[0](x)))


class OneBlock(Mid):
    def forward(self, x):
        return self.attn(self.res[0](x))


class FirstBlockTwice(Mid):
    def forward(self, x):
        return self.res[0](self.attn(self.res[0](x)))


class BlocksSwapped(Mid):
    def forward(self, x):
        return self.res[0](self.attn(self.res[1](x)))


class ResidualAttention(Mid):
    def forward(self, x):
        x = self.res[0](x)
        return self.res[1](x + self.attn(x))


class ResidualMid(Mid):
    def forward(self, x):
        return x + super().forward(x)


def draw_inputs(b, c, h, w):
    def draw(g):
        init = {"channels": c, "norm_groups": 2}
        return module_inputs(g, Mid, init, normal(g, b, c, h, w))

    return draw


EXERCISE = Exercise(
    name="vae_mid",
    lesson="04",
    place=10,
    title="The middle of the autoencoder",
    question=(
        "Write the class `Mid(channels, norm_groups)`: a residual block, attention, and a second "
        "residual block. `res` is an nn.ModuleList of two blocks `ResBlock(channels, channels, "
        "norm_groups)`. `attn` is `SpatialAttention(channels, norm_groups)`."
    ),
    solution=Mid,
    stages=(
        Stage("one place", 1, draw_inputs(1, 4, 1, 1), "module"),
        Stage("a batch of 2, 3 x 5 places", 1, draw_inputs(2, 6, 3, 5), "module"),
    ),
    hints=(
        "Two attributes: the list `res`, and `attn`. Both keep the number of channels.",
        "self.res[0] comes first, self.attn in the middle, self.res[1] at the end.",
        "x = self.res[0](x), x = self.attn(x), and return self.res[1](x). Nothing is added here.",
    ),
    mistakes={
        "The attention is not used.": NoAttention,
        "The attention comes first. It should be between the blocks.": AttentionFirst,
        "The attention comes last. It should be between the blocks.": AttentionLast,
        "The second residual block is missing.": OneBlock,
        "The first block runs twice. The second time it should be res[1].": FirstBlockTwice,
        "The blocks are swapped. res[0] comes first.": BlocksSwapped,
        "x is added to the result of the attention. SpatialAttention has done that already.": (
            ResidualAttention
        ),
        "x is added at the end. The blocks have done that already.": ResidualMid,
    },
    passing="Only here can one place read what is at the other end of the picture.",
    difficulty=2,
    minutes=10,
    needs=("vae_res_block", "vae_attention"),
    given="from minisd.vae import ResBlock, SpatialAttention",
    replaces={"minisd.vae.Mid": lambda answer: answer},
    draw=draw_cat,
)
