"""One resolution of the decoder."""

from types import SimpleNamespace

import torch
from torch import nn

from minisd.attention import SpatialTransformer
from minisd.config import UNetConfig
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, as_namespace, module_inputs, normal
from minisd.unet import ResBlock, Upsample


class Up(nn.Module):
    """One resolution of the decoder: each block reads one skip, then the size doubles.

    x: b c_in h w    skips: the list of all skips that are left. Each block removes the last one
    time: b time_dim    context: b m context_dim
    returns: b c_out h' w', as large as the last skip that is left, or b c_out h w at the last
        resolution
    """

    def __init__(self, c_in, c_out, c_skips, config, attends, last):
        super().__init__()
        time_dim, groups = 4 * config.channels[0], config.norm_groups
        heads = c_out // config.head_width if config.head_width else config.heads
        self.res, self.attn = nn.ModuleList(), nn.ModuleList()
        for i, c_skip in enumerate(c_skips):
            c = c_out if i else c_in
            self.res.append(ResBlock(c + c_skip, c_out, time_dim, groups))
            if attends:
                self.attn.append(SpatialTransformer(c_out, config.context_dim, heads, groups))
        self.upsample = None if last else Upsample(c_out)

    def forward(self, x, skips, time, context):
        for i in range(len(self.res)):
            x = torch.cat([x, skips.pop()], dim=1)
            x = self.res[i](x, time)
            if len(self.attn) > 0:
                x = self.attn[i](x, context)
        return x if self.upsample is None else self.upsample(x, skips)


class InSteps(Up):
    """The same in steps. Each mistake below changes one of them."""

    def forward(self, x, skips, time, context):
        for i, res in enumerate(self.res):
            x = res(self.join(x, skips), time)
            x = self.attn[i](x, context) if self.attn else x
        return self.end(x, skips)

    def join(self, x, skips):
        return torch.cat([x, skips.pop()], dim=1)

    def end(self, x, skips):
        return x if self.upsample is None else self.upsample(x, skips)


class FirstSkips(InSteps):
    def join(self, x, skips):
        return torch.cat([x, skips.pop(0)], dim=1)


class SameSkip(InSteps):
    def join(self, x, skips):
        return torch.cat([x, skips[-1]], dim=1)


class KeepsTheList(InSteps):
    def forward(self, x, skips, time, context):
        return super().forward(x, list(skips), time, context)


class SkipBeforeX(InSteps):
    def join(self, x, skips):
        return torch.cat([skips.pop(), x], dim=1)


class AddsSkip(InSteps):
    def join(self, x, skips):
        return x + skips.pop()


class AlwaysDoubles(InSteps):
    def end(self, x, skips):
        return super().end(x, [])


class NoUpsample(InSteps):
    def end(self, x, skips):
        return x


class NoAttention(InSteps):
    def forward(self, x, skips, time, context):
        for res in self.res:
            x = res(self.join(x, skips), time)
        return self.end(x, skips)


class AttentionAtTheEnd(InSteps):
    def forward(self, x, skips, time, context):
        for res in self.res:
            x = res(self.join(x, skips), time)
        for attn in self.attn:
            x = attn(x, context)
        return self.end(x, skips)


class AttentionTwice(InSteps):
    def forward(self, x, skips, time, context):
        for i, res in enumerate(self.res):
            x = res(self.join(x, skips), time)
            x = x + self.attn[i](x, context) if self.attn else x
        return self.end(x, skips)


class NeverHeadWidth(Up):
    def __init__(self, c_in, c_out, c_skips, config, attends, last):
        config = SimpleNamespace(**{**vars(config), "head_width": None})
        super().__init__(c_in, c_out, c_skips, config, attends, last)


class HeadWidthAsHeads(Up):
    def __init__(self, c_in, c_out, c_skips, config, attends, last):
        heads = config.head_width or config.heads
        config = SimpleNamespace(**{**vars(config), "head_width": None, "heads": heads})
        super().__init__(c_in, c_out, c_skips, config, attends, last)


def draw_inputs(b, h, w, c_skips, attends, larger, head_width=None):
    """larger: the size of the skip that is left, or None: this is the last resolution."""

    def draw(g):
        settings = {"context_dim": 6, "heads": 2, "head_width": head_width, "norm_groups": 2}
        config = as_namespace(UNetConfig(channels=(4, 8), **settings))
        init = {"c_in": 8, "c_out": 4, "c_skips": c_skips, "config": config}
        init |= {"attends": attends, "last": larger is None}
        skips = [normal(g, b, c, h, w) for c in reversed(c_skips)]
        skips = skips if larger is None else [normal(g, b, 4, *larger), *skips]
        given = [normal(g, b, 8, h, w), skips, normal(g, b, 16), normal(g, b, 5, 6)]
        return module_inputs(g, Up, init, *given)

    return draw


EXERCISE = Exercise(
    name="unet_up",
    lesson="08",
    place=11,
    title="One resolution of the decoder",
    question=(
        "Write the class `Up(c_in, c_out, c_skips, config, attends, last)`. `c_skips` lists "
        "the channels of the skips that this resolution reads: one skip for each block, in "
        "the order of the blocks. `res` is an nn.ModuleList of blocks `ResBlock(c + c_skip, "
        "c_out, 4 * config.channels[0], config.norm_groups)`. c is c_in for the first block, "
        "and c_out for the others. `attn` is an nn.ModuleList with one "
        "`SpatialTransformer(c_out, config.context_dim, heads, config.norm_groups)` for each "
        "block if `attends` is true; otherwise it is empty. heads is c_out // "
        "config.head_width if config.head_width is set, otherwise config.heads. `upsample` is "
        "`Upsample(c_out)`, or None if `last` is true.\n\n"
        "forward() does this for each block: it removes the last tensor from the list `skips` "
        "(`skips.pop()`), puts its channels after those of x, and runs the block and its "
        "transformer. At the end, it calls `upsample` with x and the skips that are left."
    ),
    solution=Up,
    stages=(
        Stage(
            "one block, the last resolution", 1, draw_inputs(1, 3, 2, [4], False, None), "module"
        ),
        Stage(
            "three blocks with attention", 2, draw_inputs(2, 3, 4, [4, 4, 4], True, None), "module"
        ),
        Stage(
            "other channels, an odd size", 2, draw_inputs(2, 2, 3, [8, 4], False, (3, 6)), "module"
        ),
        Stage(
            "with a width for the heads", 1, draw_inputs(1, 2, 3, [4], True, (4, 5), 1), "module"
        ),
    ),
    hints=(
        "Each block has three lines: join the skip, run the block, run the transformer.",
        "torch.cat([x, skips.pop()], dim=1) joins the last skip and removes it. So the block reads "
        "c + c_skip channels.",
        "Build: for i, c_skip in enumerate(c_skips), c = c_in if i == 0 else c_out. Run: "
        "x = self.res[i](torch.cat(...), time), then self.attn[i](x, context) if there is one. "
        "After the loop: self.upsample(x, skips), unless it is None.",
    ),
    mistakes={
        "The first skips are used. The decoder needs the last ones: skips.pop().": FirstSkips,
        "Every block reads the same skip. pop() removes it from the list.": SameSkip,
        "The skips stay in the list, so the next resolution would read them again.": KeepsTheList,
        "The skip's channels come before x. They should come after x.": SkipBeforeX,
        "The skip is added to x. Its channels should come after those of x.": AddsSkip,
        "upsample does not get the skips that are left, so odd sizes go wrong.": AlwaysDoubles,
        "upsample is not called.": NoUpsample,
        "The attention is not used.": NoAttention,
        "All attention comes after all blocks. Each block is followed by its own.": (
            AttentionAtTheEnd
        ),
        "x is added to the result of the attention. SpatialTransformer has done that already.": (
            AttentionTwice
        ),
        "config.head_width is ignored.": NeverHeadWidth,
        "config.head_width is the width of one head, not the number of heads.": HeadWidthAsHeads,
    },
    passing="You have all parts of the decoder now. Only the whole network is missing.",
    difficulty=3,
    minutes=30,
    needs=("read_skip", "unet_upsample", "unet_down"),
    given=(
        "from minisd.attention import SpatialTransformer\n"
        "from minisd.unet import ResBlock, Upsample"
    ),
    replaces={"minisd.unet.Up": lambda answer: answer},
    draw=draw_cat,
)
