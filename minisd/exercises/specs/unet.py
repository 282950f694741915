"""The whole U-Net."""

import torch.nn.functional as F
from torch import nn

from minisd.config import UNetConfig
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, as_namespace, module_inputs, normal
from minisd.unet import Down, Mid, TimeEmbedding, Up, skip_channels


class UNet(nn.Module):
    """Predicts the noise in a latent, given the timestep and the prompt.

    x: b in_channels h w    t: b    context: b m context_dim    returns: b out_channels h w
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        channels, last = config.channels, len(config.channels) - 1
        self.time = TimeEmbedding(channels[0])
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c, skips = channels[0], skip_channels(config)
        for i, width in enumerate(channels):
            self.down.append(Down(c, width, config, config.attention[i], i == last))
            c = width
        self.mid = Mid(c, config)
        for i in range(last, -1, -1):
            c_skips = [skips.pop() for _ in range(config.res_blocks + 1)]
            self.up.append(Up(c, channels[i], c_skips, config, config.attention[i], i == 0))
            c = channels[i]
        self.norm_out = nn.GroupNorm(config.norm_groups, c)
        self.conv_out = nn.Conv2d(c, config.out_channels, 3, padding=1)

    def forward(self, x, t, context):
        time = self.time(t)
        x, skips = self.encode(self.conv_in(x), time, context)
        return self.decode(x, skips, time, context)

    def encode(self, x, time, context):
        """Run the encoder and the middle. Returns x after the middle, and the list of all skips.

        x: b c h w, after conv_in
        """
        skips = [x]
        for down in self.down:
            x, more = down(x, time, context)
            skips = skips + more
        return self.mid(x, time, context), skips

    def decode(self, x, skips, time, context):
        """Run the decoder, norm_out, silu and conv_out.

        x, skips: what encode() returned    returns: b out_channels h w
        """
        skips = list(skips)
        for up in self.up:
            x = up(x, skips, time, context)
        return self.conv_out(F.silu(self.norm_out(x)))


class NoFirstSkip(UNet):
    def encode(self, x, time, context):
        x, skips = super().encode(x, time, context)
        return x, skips[1:]


class NoMid(UNet):
    def encode(self, x, time, context):
        skips = [x]
        for down in self.down:
            x, more = down(x, time, context)
            skips = skips + more
        return x, skips


class SkipsReversed(UNet):
    def decode(self, x, skips, time, context):
        return super().decode(x, skips[::-1], time, context)


class NoNorm(UNet):
    def decode(self, x, skips, time, context):
        self.norm_out = nn.Identity()
        return super().decode(x, skips, time, context)


class NoActivation(UNet):
    def decode(self, x, skips, time, context):
        skips = list(skips)
        for up in self.up:
            x = up(x, skips, time, context)
        return self.conv_out(self.norm_out(x))


class ActivationFirst(UNet):
    def decode(self, x, skips, time, context):
        skips = list(skips)
        for up in self.up:
            x = up(x, skips, time, context)
        return self.conv_out(self.norm_out(F.silu(x)))


class NoiseRemoved(UNet):
    def forward(self, x, t, context):
        return x[:, : self.config.out_channels] - super().forward(x, t, context)


class ResidualOutput(UNet):
    def forward(self, x, t, context):
        return x[:, : self.config.out_channels] + super().forward(x, t, context)


class SmallEps(UNet):
    def __init__(self, config):
        super().__init__(config)
        self.norm_out.eps = 1e-6


class RawTime(UNet):
    def forward(self, x, t, context):
        x, skips = self.encode(self.conv_in(x), t, context)
        return self.decode(x, skips, t, context)


def with_control(answer):
    """The answer as the core's class, which also adds the outputs of a ControlNet."""

    class UNet(answer):
        def forward(self, x, t, context, control=None):
            if control is None:
                return super().forward(x, t, context)
            time = self.time(t)
            x, skips = self.encode(self.conv_in(x), time, context)
            skips = [skip + extra for skip, extra in zip(skips, control[:-1], strict=True)]
            return self.decode(x + control[-1], skips, time, context)

    return UNet


def draw_inputs(b, h, w, in_channels=4, method=None, **settings):
    """method: "encode": only the encoder runs. None: the whole network"""

    def draw(g):
        sizes = {"in_channels": in_channels, "context_dim": 6, "heads": 2, "norm_groups": 2}
        config = as_namespace(UNetConfig(**sizes, **settings))
        t = 1000 * normal(g, b).abs()
        given = [normal(g, b, in_channels, h, w), t, normal(g, b, 5, 6)]
        if method:
            width = settings["channels"][0]
            given = [method, normal(g, b, width, h, w), normal(g, b, 4 * width), given[2]]
        return module_inputs(g, UNet, {"config": config}, *given)

    return draw


EXERCISE = Exercise(
    name="unet",
    lesson="08",
    place=12,
    title="The whole U-Net",
    question=(
        "Write the class `UNet(config)` from your parts. The modules, with c[i] = "
        "config.channels[i]:\n\n"
        "- `time`: `TimeEmbedding(c[0])`. `conv_in`: a 3x3 convolution from "
        "config.in_channels to c[0] channels that keeps the size.\n"
        "- `down`: an nn.ModuleList with one `Down(c_in, c[i], config, config.attention[i], "
        "last)` for each resolution. For i = 0, c_in is c[0]; after that, it is c[i - 1]. "
        "last is true for the last resolution.\n"
        "- `mid`: `Mid(channels, config)` with the channels of the last resolution.\n"
        "- `up`: an nn.ModuleList in the order in which it runs, so from the last resolution "
        "to the first: `Up(c_in, c[i], c_skips, config, config.attention[i], last)`. c_in is "
        "the number of channels that come from the module before. For c_skips, each `Up` "
        "removes config.res_blocks + 1 entries from the end of the list "
        "`skip_channels(config)`, the last entry first. last is true for resolution 0.\n"
        "- `norm_out`: a group norm with config.norm_groups groups (torch's own eps). "
        "`conv_out`: a 3x3 convolution to config.out_channels that keeps the size. Between "
        "them is a silu.\n\n"
        "Keep `self.config = config`. Split the work into `encode(x, time, context)` and "
        "`decode(x, skips, time, context)`: a ControlNet (lesson 14) calls them. `encode` "
        "gets x after conv_in, and this x is the first skip."
    ),
    solution=UNet,
    stages=(
        Stage(
            "encode: two resolutions",
            2,
            draw_inputs(
                2, 4, 6, method="encode", channels=(4, 8), attention=(False, True), res_blocks=1
            ),
            "method",
        ),
        Stage(
            "one resolution",
            1,
            draw_inputs(1, 3, 4, channels=(4,), attention=(False,), res_blocks=1),
            "module",
        ),
        Stage(
            "two resolutions with attention, batch 2",
            2,
            draw_inputs(2, 4, 6, channels=(4, 8), attention=(False, True), res_blocks=2),
            "module",
        ),
        Stage(
            "three resolutions, odd sizes, a mask as input",
            2,
            draw_inputs(
                2, 5, 7, 9, channels=(4, 6, 8), attention=(True, True, False), res_blocks=1
            ),
            "module",
        ),
    ),
    hints=(
        "The skips are a stack. The encoder puts them on the stack, and the decoder takes them "
        "from the top. The constructor does the same with the numbers of skip_channels(config).",
        "c_skips = [skips.pop() for _ in range(config.res_blocks + 1)] takes the channels for one "
        "Up. Each Down returns (x, more), and skips = skips + more.",
        "encode: skips = [x]; run all Down; return self.mid(x, time, context), skips. decode: run "
        "all Up with a copy of the list; then norm_out, silu, conv_out. forward: time, conv_in, "
        "encode, decode.",
    ),
    mistakes={
        "The skip of conv_in is missing. The list begins with it.": NoFirstSkip,
        "The middle is not run.": NoMid,
        "The decoder gets the skips in the wrong order.": SkipsReversed,
        "norm_out is not applied.": NoNorm,
        "There is no silu between norm_out and conv_out.": NoActivation,
        "The silu comes before norm_out. It should be between norm_out and conv_out.": (
            ActivationFirst
        ),
        "The result is x minus the prediction. Return the prediction itself.": NoiseRemoved,
        "x is added to the prediction. Return the prediction itself.": ResidualOutput,
        "norm_out has eps 1e-6, as in the VAE. Here it keeps torch's 1e-5.": SmallEps,
        "The blocks get t itself. They need the time vector self.time(t).": RawTime,
    },
    passing=(
        "This network predicts the noise. With `minisd generate --mine`, the mini draws with yours."
    ),
    difficulty=4,
    minutes=45,
    needs=("time_embedding", "skip_channels", "unet_down", "unet_mid", "unet_up"),
    given="from minisd.unet import Down, Mid, TimeEmbedding, Up, skip_channels",
    replaces={"minisd.unet.UNet": with_control},
    draw=draw_cat,
)
