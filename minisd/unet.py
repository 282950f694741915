"""The U-Net: reads a noisy latent, the timestep t and the prompt, and predicts the noise (or v)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.attention import SpatialTransformer
from minisd.config import UNetConfig


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Turn each t into a vector of cosines and sines. If two t are close, so are their vectors.

    t: b, integer or float. Fractions are kept
    returns: b width, float32. The cosines come first, then the sines

    Let half be width / 2. The frequencies are 10000^(-i / half) for i = 0 … half - 1, as in CompVis
    ldm/modules/diffusionmodules/util.py. (The DDPM code divides by half - 1 and puts the sines
    first.) The result is float32 even for a float64 network, because the original code rounds to
    float32 here.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(10000) * steps / half)
    angles = rearrange(t.float(), "b -> b 1") * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Turns t into the vector that tells every residual block how noisy its input is.

    t: b    returns: b 4*channels
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.linear1 = nn.Linear(channels, 4 * channels)
        self.linear2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t: Tensor) -> Tensor:
        wave = timestep_embedding(t, self.channels).to(self.linear1.weight.dtype)
        hidden = F.silu(self.linear1(wave))
        return self.linear2(hidden)


class ResBlock(nn.Module):
    """Two convolutions, whose result is added to x.

    Between the convolutions, each channel is shifted by a number that is computed from t.

    x: b c_in h w    time: b time_dim    returns: b c_out h w
    """

    def __init__(self, c_in: int, c_out: int, time_dim: int, norm_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_dim, c_out)
        self.norm2 = nn.GroupNorm(norm_groups, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        shift = self.time(F.silu(time))
        h = h + rearrange(shift, "b c -> b c 1 1")
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then smooths with a convolution.

    x: b c h w
    skips: the feature maps of the encoder that the decoder has not used yet (skip connections).
        Next, the decoder will use the last one of this list
    returns: b c h' w', as large as the last skip, or b c 2h 2w if no skip is left. If the encoder
        rounded up when it halved h', then h' is 2h - 1. The same is true for w'
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        size = skips[-1].shape[2:] if skips else (2 * x.shape[2], 2 * x.shape[3])
        return self.conv(F.interpolate(x, size, mode="nearest"))


class Down(nn.Module):
    """One resolution of the encoder: residual blocks, each followed by attention to the text.

    x: b c_in h w
    returns: the new x, and the list of the x after every block and after the change of size. The
        decoder reads this list through the skip connections. The new x is b c_out h/2 w/2, rounded
        up. At the last resolution, it is b c_out h w
    """

    def __init__(self, c_in: int, c_out: int, config: UNetConfig, attends: bool, last: bool):
        super().__init__()
        widths = [c_in] + [c_out] * config.res_blocks
        self.res = nn.ModuleList(res_block(a, b, config) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(spatial_transformer(c_out, config) for _ in self.res if attends)
        # ordinary padding on all sides, unlike the VAE's
        self.downsample = None if last else nn.Conv2d(c_out, c_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i, res in enumerate(self.res):
            x = res(x, time)
            if self.attn:
                x = self.attn[i](x, context)
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x, skips


class Mid(nn.Module):
    """The lowest resolution: residual block, transformer, residual block.

    x: b c h w    returns: b c h w
    """

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__()
        self.res = nn.ModuleList(res_block(channels, channels, config) for _ in range(2))
        self.attn = spatial_transformer(channels, config)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.res[0](x, time)
        x = self.attn(x, context)
        return self.res[1](x, time)


class Up(nn.Module):
    """One resolution of the decoder: like Down, but it doubles the size and reads skip connections.

    x: b c_in h w
    skips: the feature maps of the encoder. Each block takes the last one and removes it from the
        list
    returns: b c_out h' w', as large as the last skip that is left. Or b c_out h w if this is the
        last resolution
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        c_skips: list[int],
        config: UNetConfig,
        attends: bool,
        last: bool,
    ):
        super().__init__()
        widths = [c_in] + [c_out] * config.res_blocks  # the channels of x before each block
        self.skip = nn.ModuleList(nn.Identity() for _ in c_skips)  # taps: the skips of the blocks
        self.res = nn.ModuleList(
            res_block(width + skip, c_out, config)
            for width, skip in zip(widths, c_skips, strict=True)
        )
        self.attn = nn.ModuleList(spatial_transformer(c_out, config) for _ in self.res if attends)
        self.upsample = None if last else Upsample(c_out)

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor) -> Tensor:
        for i, res in enumerate(self.res):
            skip = self.skip[i](skips.pop())
            x = torch.cat([x, skip], dim=1)
            x = res(x, time)
            if self.attn:
                x = self.attn[i](x, context)
        if self.upsample is not None:
            x = self.upsample(x, skips)
        return x


def res_block(c_in: int, c_out: int, config: UNetConfig) -> ResBlock:
    return ResBlock(c_in, c_out, 4 * config.channels[0], config.norm_groups)


def spatial_transformer(channels: int, config: UNetConfig) -> SpatialTransformer:
    heads = channels // config.head_width if config.head_width else config.heads
    return SpatialTransformer(channels, config.context_dim, heads, config.norm_groups)


class UNet(nn.Module):
    """Predicts the noise in a latent, given how noisy the latent is (t) and the prompt (context).

    x: b in_channels h w    t: b, integer or float    context: b m context_dim
    returns: b out_channels h w, eps or v    (Rombach et al. 2022, section 3.3)

    control: the outputs of a ControlNet. The last tensor is added to the output of the middle. Each
        other tensor is added to one skip connection. None: nothing is added
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        channels, levels = config.channels, range(len(config.channels))
        last = len(channels) - 1
        self.config = config
        self.time = TimeEmbedding(channels[0])
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)

        c_in = [channels[0], *channels]  # the input channels of each resolution of the encoder
        self.down = nn.ModuleList(
            Down(c_in[i], channels[i], config, config.attention[i], last=i == last) for i in levels
        )
        self.mid = Mid(channels[last], config)

        skips = skip_channels(config)
        self.up = nn.ModuleList()
        c = channels[last]
        for i in reversed(levels):
            taken = [skips.pop() for _ in range(config.res_blocks + 1)]
            self.up.append(Up(c, channels[i], taken, config, config.attention[i], last=i == 0))
            c = channels[i]

        self.norm_out = nn.GroupNorm(config.norm_groups, channels[0])
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, control: list[Tensor] | None = None
    ) -> Tensor:
        time = self.time(t)
        x, skips = self.encode(self.conv_in(x), time, context)
        if control is not None:
            x = x + control[-1]
            skips = [skip + extra for skip, extra in zip(skips, control[:-1], strict=True)]
        return self.decode(x, skips, time, context)

    def encode(self, x: Tensor, time: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the encoder and the middle. ControlNet calls this method, too.

        x: b c h w, after conv_in    returns: x after the middle, and the skip connections
        """
        skips = [x]
        for down in self.down:
            x, made = down(x, time, context)
            skips = skips + made
        return self.mid(x, time, context), skips

    def decode(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor) -> Tensor:
        """Run the decoder.

        x, skips: what encode() returned    returns: b out_channels h w
        """
        skips = list(skips)
        for up in self.up:
            x = up(x, skips, time, context)
        return self.conv_out(F.silu(self.norm_out(x)))


def skip_channels(config: UNetConfig) -> list[int]:
    """The number of channels of each skip connection, in the order in which encode() makes them.

    >>> skip_channels(UNetConfig(channels=(320, 640), res_blocks=2))
    [320, 320, 320, 320, 640, 640]
    """
    widths = [config.channels[0]]
    for level, channels in enumerate(config.channels):
        downsamples = level < len(config.channels) - 1
        widths = widths + [channels] * (config.res_blocks + downsamples)
    return widths
