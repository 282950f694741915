"""The whole decoder."""

import torch
import torch.nn.functional as F
from torch import nn

from minisd.config import VAEConfig
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, as_namespace, module_inputs, normal
from minisd.vae import Mid, Resolution, Upsample


class Decoder(nn.Module):
    """Turns a latent back into a picture.

    z: b latent_channels h w    returns: b 3 h' w', where each resolution but the last one that
        runs has doubled height and width
    """

    def __init__(self, config):
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        c = channels[-1]
        self.post_quant = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.conv_in = nn.Conv2d(config.latent_channels, c, 3, padding=1)
        self.mid = Mid(c, groups)
        self.up = nn.ModuleList()
        for i in range(len(channels) - 1, -1, -1):
            resize = Upsample(channels[i]) if i > 0 else None
            self.up.append(Resolution(c, channels[i], config.res_blocks + 1, groups, resize))
            c = channels[i]
        self.norm_out = nn.GroupNorm(groups, c, eps=1e-6)
        self.conv_out = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, z):
        x = self.conv_in(self.post_quant(z))
        x = self.mid(x)
        for up in self.up:
            x = up(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class InSteps(Decoder):
    """The same in steps. Each mistake below changes one of them."""

    def forward(self, z):
        x = self.begin(z)
        for up in self.up:
            x = up(x)
        return self.conv_out(self.end(x))

    def begin(self, z):
        return self.mid(self.conv_in(self.post_quant(z)))

    def end(self, x):
        return F.silu(self.norm_out(x))


class NoPostQuant(InSteps):
    def begin(self, z):
        return self.mid(self.conv_in(z))


class NoMid(InSteps):
    def begin(self, z):
        return self.conv_in(self.post_quant(z))


class ScaledLatent(InSteps):
    def begin(self, z):
        return super().begin(z / 0.18215)


class NoNorm(InSteps):
    def end(self, x):
        return F.silu(x)


class NoActivation(InSteps):
    def end(self, x):
        return self.norm_out(x)


class ActivationFirst(InSteps):
    def end(self, x):
        return self.norm_out(F.silu(x))


class NeitherNormNorActivation(InSteps):
    def end(self, x):
        return x


class Tanh(InSteps):
    def forward(self, z):
        return super().forward(z).tanh()


class Sigmoid(InSteps):
    def forward(self, z):
        return torch.sigmoid(super().forward(z))


class Clamp(InSteps):
    def forward(self, z):
        return super().forward(z).clamp(-1, 1)


class UsualEps(InSteps):
    def __init__(self, config):
        super().__init__(config)
        self.norm_out.eps = 1e-5


def draw_inputs(b, h, w, **settings):
    def draw(g):
        config = as_namespace(VAEConfig(norm_groups=2, **settings))
        z = 3 * normal(g, b, settings["latent_channels"], h, w)
        return module_inputs(g, Decoder, {"config": config}, z)

    return draw


EXERCISE = Exercise(
    name="vae_decoder",
    lesson="04",
    place=12,
    title="The decoder",
    question=(
        "Write the class `Decoder(config)` from your parts. It is the encoder in the opposite "
        "order, with one more block at each resolution. The modules, in the order in which "
        "they run, with c[i] = config.channels[i] and groups = config.norm_groups:\n\n"
        "- `post_quant`: a 1x1 convolution that keeps the config.latent_channels channels.\n"
        "- `conv_in`: a 3x3 convolution to the last c[i] channels that keeps the size.\n"
        "- `mid`: `Mid(channels, groups)` with this number of channels.\n"
        "- `up`: an nn.ModuleList in the order in which it runs, so from the last c[i] to "
        "c[0]: `Resolution(c_in, c[i], config.res_blocks + 1, groups, resize)`. c_in is the "
        "number of channels that come from the module before. resize is `Upsample(c[i])`, but "
        "None for c[0].\n"
        "- `norm_out`: a group norm with eps=1e-6, followed by silu.\n"
        "- `conv_out`: a 3x3 convolution to 3 channels that keeps the size. Its output is the "
        "picture; nothing limits its range."
    ),
    solution=Decoder,
    stages=(
        Stage(
            "one resolution",
            2,
            draw_inputs(1, 3, 5, channels=(4,), latent_channels=2, res_blocks=1),
            "module",
        ),
        Stage(
            "three resolutions, batch 2",
            3,
            draw_inputs(2, 2, 3, channels=(4, 6, 8), latent_channels=3, res_blocks=1),
            "module",
        ),
    ),
    hints=(
        "Keep the current number of channels in a variable while you fill `up`. It begins with "
        "config.channels[-1].",
        "for i in range(len(config.channels) - 1, -1, -1) goes from the last resolution to the "
        "first. Only i == 0 has resize=None.",
        "forward: post_quant; conv_in; mid; all of self.up in a loop; conv_out(silu(norm_out(x))).",
    ),
    mistakes={
        "post_quant is not applied.": NoPostQuant,
        "The middle is not run.": NoMid,
        "You divide z by the scale. decode_latent has done that already.": ScaledLatent,
        "norm_out is not applied.": NoNorm,
        "There is no silu between norm_out and conv_out.": NoActivation,
        "The silu comes before norm_out. It should be between norm_out and conv_out.": (
            ActivationFirst
        ),
        "norm_out and silu are missing before conv_out.": NeitherNormNorActivation,
        "There is a tanh at the end. Return the output of conv_out.": Tanh,
        "There is a sigmoid at the end. Return the output of conv_out.": Sigmoid,
        "The picture is clamped. Return the output of conv_out.": Clamp,
        "norm_out has torch's own eps, 1e-5. The VAE needs eps=1e-6.": UsualEps,
    },
    passing="Your decoder paints every picture now.",
    difficulty=3,
    minutes=30,
    needs=("vae_upsample", "vae_resolution", "vae_mid"),
    given="from minisd.vae import Mid, Resolution, Upsample",
    replaces={"minisd.vae.Decoder": lambda answer: answer},
    draw=draw_cat,
)
