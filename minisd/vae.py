"""The autoencoder: turns pictures into latents that are 48 times smaller, and back."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.attention import attend
from minisd.config import VAEConfig

# the eps of every group norm in the VAE (CompVis ldm/modules/diffusionmodules/model.py). torch's
# own value is 1e-5
NORM_EPS = 1e-6


# unet.py also has a ResBlock, an Upsample and a Mid, with the same purpose. This file has its own
# versions, so that each network can be read alone. These versions read no time and no text.


class ResBlock(nn.Module):
    """Two convolutions, whose result is added to x. Unlike in the U-Net, nothing depends on t.

    x: b c_in h w    returns: b c_out h w
    """

    def __init__(self, c_in: int, c_out: int, norm_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, c_in, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_groups, c_out, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class SpatialAttention(nn.Module):
    """Every place of the smallest feature map looks at all places, with one attention head.

    x: b c h w    returns: b c h w
    """

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)
        self.weights = nn.Identity()  # tap: b 1 n n, n = h * w

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        tokens = rearrange(self.norm(x), "b c h w -> b 1 (h w) c")
        q = self.to_q(tokens)
        k = self.to_k(tokens)
        v = self.to_v(tokens)
        answer = self.to_out(attend(q, k, v, tap=self.weights))
        return x + rearrange(answer, "b 1 (h w) c -> b c h w", h=height)


class Downsample(nn.Module):
    """Halves height and width. It pads only on the right and at the bottom.

    x: b c h w    returns: b c h/2 w/2

    Padding on all four sides, as in the U-Net, would shift the picture by half a pixel each time.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))  # left, right, top, bottom
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then smooths with a convolution.

    x: b c h w    returns: b c 2h 2w
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Resolution(nn.Module):
    """Residual blocks at one resolution, then a change of size (except at the last resolution).

    x: b c_in h w    returns: b c_out h' w'
    """

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, resize: nn.Module | None):
        super().__init__()
        widths = [c_in] + [c_out] * blocks
        self.res = nn.ModuleList(ResBlock(a, b, groups) for a, b in pairwise(widths))
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        for res in self.res:
            x = res(x)
        return x if self.resize is None else self.resize(x)


class Mid(nn.Module):
    """The smallest resolution: residual block, attention, residual block.

    x: b c h w    returns: b c h w
    """

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(channels, channels, norm_groups) for _ in range(2))
        self.attn = SpatialAttention(channels, norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.res[0](x)
        x = self.attn(x)
        return self.res[1](x)


class Encoder(nn.Module):
    """Turns a picture into its latent: the mean and the log-variance of each of its numbers.

    image: b 3 h w in [-1, 1]    returns: b 2*latent_channels h/8 w/8
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        c = channels[0]
        for i, width in enumerate(channels):
            resize = None if i == last else Downsample(width)
            self.down.append(Resolution(c, width, config.res_blocks, groups, resize))
            c = width
        self.mid = Mid(c, groups)
        self.norm_out = nn.GroupNorm(groups, c, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(c, 2 * config.latent_channels, 3, padding=1)
        self.quant = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for down in self.down:
            x = down(x)
        x = self.mid(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return self.quant(x)


class Decoder(nn.Module):
    """Turns a latent back into a picture.

    z: b latent_channels h w, unscaled    returns: b 3 8h 8w, about [-1, 1]
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        c = channels[-1]
        self.post_quant = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.conv_in = nn.Conv2d(config.latent_channels, c, 3, padding=1)
        self.mid = Mid(c, groups)
        self.up = nn.ModuleList()
        for i, width in reversed(list(enumerate(channels))):
            resize = None if i == 0 else Upsample(width)
            self.up.append(Resolution(c, width, config.res_blocks + 1, groups, resize))
            c = width
        self.norm_out = nn.GroupNorm(groups, c, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(self.post_quant(z))
        x = self.mid(x)
        for up in self.up:
            x = up(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class DiagonalGaussian:
    """The encoder's output: a mean and a standard deviation for each number of the latent.

    moments: b 2c h w. The first c channels are the mean, the other c channels the log-variance

    (Kingma & Welling 2014)
    """

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30, 20)
        self.std = (0.5 * self.logvar).exp()

    def sample(self, generator: torch.Generator | list[torch.Generator]) -> Tensor:
        """Draw a random latent, b c h w.

        generator: one generator for all samples, or a list with one for each sample

        The noise is drawn on the CPU in float32, one sample at a time. If each sample has its own
        generator, a sample's noise does not depend on the other samples.

        Raises ValueError if the length of a list is not the number of samples.
        """
        generators = generator if isinstance(generator, list) else [generator] * len(self.mean)
        if len(generators) != len(self.mean):
            count = len(self.mean)
            raise ValueError(f"{count} samples need {count} generators. Give a list of {count}.")
        shape = (1, *self.mean.shape[1:])
        noise = torch.cat([torch.randn(shape, generator=each) for each in generators])
        return self.mean + self.std * noise.to(self.mean)

    def mode(self) -> Tensor:
        """The most likely latent, b c h w. It is the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """The KL divergence from noise of mean 0 and variance 1, in nats per picture.

        A nat is the unit of natural logarithms. Training keeps this number small.

        returns: b
        """
        nats = 0.5 * (self.mean**2 + self.std**2 - 1 - self.logvar)
        return nats.flatten(1).sum(dim=1)


class VAE(nn.Module):
    """The whole autoencoder. Its latents are unscaled: the pipeline multiplies by config.scale."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """Encode pictures.

        image: b 3 h w in [-1, 1]    returns: a Gaussian over b latent_channels h/8 w/8
        """
        return DiagonalGaussian(self.encoder(image))

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents.

        z: b latent_channels h w, unscaled    returns: b 3 8h 8w, about [-1, 1]
        """
        return self.decoder(z)
