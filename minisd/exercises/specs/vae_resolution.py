"""One resolution of the encoder or the decoder."""

from typing import Any

from torch import Tensor, nn

from minisd.exercises.calls import Made
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal
from minisd.vae import ResBlock


class Resolution(nn.Module):
    """Residual blocks at one resolution, then a change of size (or none).

    x: b c_in h w    returns: b c_out h' w'
    """

    def __init__(self, c_in, c_out, blocks, groups, resize):
        super().__init__()
        self.res = nn.ModuleList()
        for i in range(blocks):
            self.res.append(ResBlock(c_out if i else c_in, c_out, groups))
        self.resize = resize

    def forward(self, x):
        for block in self.res:
            x = block(x)
        if self.resize is not None:
            x = self.resize(x)
        return x


def can_read(block: Any, x: Tensor) -> bool:
    """Whether the block takes as many channels as x has."""
    return block.conv1.in_channels == x.shape[1]


class NeverResized(Resolution):
    def forward(self, x):
        for block in self.res:
            x = block(x)
        return x


class ResizedFirst(Resolution):
    def forward(self, x):
        x = x if self.resize is None else self.resize(x)
        for block in self.res:
            x = block(x)
        return x


class ResizedAfterEachBlock(Resolution):
    def forward(self, x):
        for block in self.res:
            x = block(x)
            x = x if self.resize is None else self.resize(x)
        return x


class AllBlocksReadX(Resolution):
    """Possible only for blocks with c_in input channels. The others read the last result."""

    def forward(self, x):
        y = x
        for block in self.res:
            y = block(x if can_read(block, x) else y)
        return y if self.resize is None else self.resize(y)


class OnlyTheFirstBlock(Resolution):
    def forward(self, x):
        x = self.res[0](x)
        return x if self.resize is None else self.resize(x)


class BlocksReversed(Resolution):
    def forward(self, x):
        same = [block for block in self.res if can_read(block, x)]
        blocks = self.res if len(same) < len(self.res) else reversed(self.res)
        for block in blocks:
            x = block(x)
        return x if self.resize is None else self.resize(x)


class ResidualAround(Resolution):
    def forward(self, x):
        for block in self.res:
            x = x + block(x) if can_read(block, x) else block(x)
        return x if self.resize is None else self.resize(x)


def draw_inputs(b, c_in, c_out, h, w, blocks, resize=None):
    def draw(g):
        init = {"c_in": c_in, "c_out": c_out, "blocks": blocks, "groups": 2, "resize": resize}
        return module_inputs(g, Resolution, init, normal(g, b, c_in, h, w))

    return draw


HALVE = Made("layer", {"name": "AvgPool2d", "kernel_size": 2})
DOUBLE = Made("layer", {"name": "Upsample", "scale_factor": 2})

EXERCISE = Exercise(
    name="vae_resolution",
    lesson="04",
    place=9,
    title="One resolution of the autoencoder",
    question=(
        "Write the class `Resolution(c_in, c_out, blocks, groups, resize)`. `res` is an "
        "nn.ModuleList of residual blocks. Their number is `blocks`. The first one is "
        "`ResBlock(c_in, c_out, groups)`. The others read c_out channels. `resize` is a module "
        "that changes the size, or None. Keep it as `resize`. Run the blocks one after another, "
        "then `resize` (if it is not None)."
    ),
    solution=Resolution,
    stages=(
        Stage("two blocks, no change of size", 1, draw_inputs(1, 4, 4, 3, 5, 2), "module"),
        Stage("half the size", 1, draw_inputs(2, 4, 6, 6, 4, 2, HALVE), "module"),
        Stage("double the size", 1, draw_inputs(2, 6, 4, 2, 3, 3, DOUBLE), "module"),
    ),
    hints=(
        "Fill the nn.ModuleList in a loop. A plain Python list would hide the parameters.",
        "The first block is ResBlock(c_in, c_out, groups), the others are ResBlock(c_out, c_out, "
        "groups).",
        "for block in self.res: x = block(x). Then return x if self.resize is None else "
        "self.resize(x).",
    ),
    mistakes={
        "The size is not changed: resize is not called.": NeverResized,
        "The size is changed first. It should be changed after the blocks.": ResizedFirst,
        "The size is changed after each block. It should be changed once.": ResizedAfterEachBlock,
        "Each block reads x. It should read the output of the block before it.": AllBlocksReadX,
        "Only the first block runs.": OnlyTheFirstBlock,
        "The blocks run in the reverse order. res[0] should run first.": BlocksReversed,
        "You add x to the output of a block. The block has done that already.": ResidualAround,
    },
    passing="Encoder and decoder are lists of such resolutions.",
    difficulty=2,
    minutes=15,
    needs=("vae_res_block",),
    given="from minisd.vae import ResBlock",
    replaces={"minisd.vae.Resolution": lambda answer: answer},
    draw=draw_cat,
)
