"""The whole encoder."""

import torch.nn.functional as F
from torch import nn

from minisd.config import VAEConfig
from minisd.exercises.exercise import Exercise, Stage, as_namespace, module_inputs, normal
from minisd.exercises.specs.encode_latent import draw_copy
from minisd.vae import Downsample, Mid, Resolution


class Encoder(nn.Module):
    """Turns a picture into the mean and the log-variance of each number of its latent.

    image: b 3 h w    returns: b 2*latent_channels h' w', where each resolution but the last has
        halved height and width
    """

    def __init__(self, config):
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        moments = 2 * config.latent_channels
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        c = channels[0]
        for i, width in enumerate(channels):
            resize = Downsample(width) if i < len(channels) - 1 else None
            self.down.append(Resolution(c, width, config.res_blocks, groups, resize))
            c = width
        self.mid = Mid(c, groups)
        self.norm_out = nn.GroupNorm(groups, c, eps=1e-6)
        self.conv_out = nn.Conv2d(c, moments, 3, padding=1)
        self.quant = nn.Conv2d(moments, moments, 1)

    def forward(self, image):
        x = self.conv_in(image)
        for down in self.down:
            x = down(x)
        x = self.mid(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return self.quant(x)


class InSteps(Encoder):
    """The same in steps. Each mistake below changes one of them."""

    def forward(self, image):
        return self.quant(self.conv_out(self.end(self.shrink(image))))

    def shrink(self, image):
        x = self.conv_in(image)
        for down in self.down:
            x = down(x)
        return self.mid(x)

    def end(self, x):
        return F.silu(self.norm_out(x))


class NoMid(InSteps):
    def shrink(self, image):
        x = self.conv_in(image)
        for down in self.down:
            x = down(x)
        return x


class NoQuant(InSteps):
    def forward(self, image):
        return self.conv_out(self.end(self.shrink(image)))


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


class OnlyTheMean(InSteps):
    def forward(self, image):
        return super().forward(image).chunk(2, dim=1)[0]


class ActivationBeforeQuant(InSteps):
    def forward(self, image):
        return self.quant(F.silu(self.conv_out(self.end(self.shrink(image)))))


class UsualEps(InSteps):
    def __init__(self, config):
        super().__init__(config)
        self.norm_out.eps = 1e-5


def draw_inputs(b, h, w, **settings):
    def draw(g):
        config = as_namespace(VAEConfig(norm_groups=2, **settings))
        return module_inputs(g, Encoder, {"config": config}, normal(g, b, 3, h, w))

    return draw


EXERCISE = Exercise(
    name="vae_encoder",
    lesson="04",
    place=11,
    title="The encoder",
    question=(
        "Write the class `Encoder(config)` from your parts. The modules, in the order in "
        "which they run, with c[i] = config.channels[i] and groups = config.norm_groups:\n\n"
        "- `conv_in`: a 3x3 convolution from 3 to c[0] channels that keeps the size.\n"
        "- `down`: an nn.ModuleList with one `Resolution(c_in, c[i], config.res_blocks, "
        "groups, resize)` for each i. For i = 0, c_in is c[0]; after that, it is c[i - 1]. "
        "resize is `Downsample(c[i])`, but None for the last resolution.\n"
        "- `mid`: `Mid(channels, groups)` with the channels of the last resolution.\n"
        "- `norm_out`: a group norm with eps=1e-6, followed by silu.\n"
        "- `conv_out`: a 3x3 convolution to 2 * config.latent_channels channels that keeps "
        "the size.\n"
        "- `quant`: a 1x1 convolution that keeps the number of channels."
    ),
    solution=Encoder,
    stages=(
        Stage(
            "one resolution",
            2,
            draw_inputs(1, 3, 5, channels=(4,), latent_channels=1, res_blocks=1),
            "module",
        ),
        Stage(
            "three resolutions, batch 2",
            3,
            draw_inputs(2, 8, 12, channels=(4, 6, 8), latent_channels=3, res_blocks=2),
            "module",
        ),
    ),
    hints=(
        "Keep the current number of channels in a variable while you fill `down`.",
        "for i, width in enumerate(config.channels): the last one, i == len(config.channels) - 1, "
        "gets resize=None.",
        "forward: conv_in; all of self.down in a loop; mid; conv_out(silu(norm_out(x))); quant.",
    ),
    mistakes={
        "The middle is not run.": NoMid,
        "quant is not applied.": NoQuant,
        "norm_out is not applied.": NoNorm,
        "There is no silu between norm_out and conv_out.": NoActivation,
        "The silu comes before norm_out. It should be between norm_out and conv_out.": (
            ActivationFirst
        ),
        "norm_out and silu are missing before conv_out.": NeitherNormNorActivation,
        "Only the mean is returned. Return all moments.": OnlyTheMean,
        "There is a silu between conv_out and quant. There should be none.": ActivationBeforeQuant,
        "norm_out has torch's own eps, 1e-5. The VAE needs eps=1e-6.": UsualEps,
    },
    passing="Your encoder turns pictures into latents. DiagonalGaussian reads what it returns.",
    difficulty=3,
    minutes=30,
    needs=("vae_downsample", "vae_resolution", "vae_mid"),
    given="from minisd.vae import Downsample, Mid, Resolution",
    replaces={"minisd.vae.Encoder": lambda answer: answer},
    draw=draw_copy,
)
