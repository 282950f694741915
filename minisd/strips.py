"""Large feature maps of the autoencoder in strips of rows: the same numbers in less memory.

The decoder of SD 1.5 makes feature maps of 256 channels and 512 x 512 places: 268 MB each. A plain
residual block needs four of them at the same time. Here, a group norm, silu and a convolution run
together, one strip of rows after another. Only the input and the output exist as whole maps.

Each group norm first reads its whole map, for the mean and the spread. So the strips leave no
seams, unlike tiles that are decoded alone (for example, enable_vae_tiling() in diffusers).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

LARGE = 2**24  # the most numbers in a feature map that is computed in one piece: 67 MB in float32
STRIP = 2**21  # about how many numbers of the input are in one strip: 8 MB in float32


def strips(height: int, numbers: int) -> list[tuple[int, int]]:
    """The first row of each strip, and the row after its last row. A small map is one strip.

    height: rows of the feature map    numbers: how many numbers are in it
    """
    if numbers <= LARGE:
        return [(0, height)]
    rows = max(1, STRIP * height // numbers)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def with_neighbours(x: Tensor, top: int, bottom: int) -> Tensor:
    """The rows of a strip, the row above and the row below. A convolution reads them, too.

    x: b c h w    returns: b c bottom-top+2 w. Above and below x, there are zeros
    """
    first, last = max(top - 1, 0), min(bottom + 1, x.shape[2])
    return F.pad(x[:, :, first:last], (0, 0, first - (top - 1), bottom + 1 - last))


def convolve_in_strips(norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor, out: Tensor) -> Tensor:
    """Compute conv(silu(norm(x))) in strips. The kernel has 3 x 3 numbers.

    x: b c_in h w    out: where the result goes, b c_out h w. It may be x itself    returns: out
    """
    scale, shift = scale_and_shift(norm, x)
    above = x[:, :, :0]  # the last row of the strip above, as it was before the result replaced it
    for top, bottom in strips(x.shape[2], x.numel()):
        rows = torch.cat([above, x[:, :, top : bottom + 1]], dim=2).to(scale.dtype)
        above = x[:, :, bottom - 1 : bottom].clone()
        rows = F.silu(rows.mul_(scale).add_(shift), inplace=True).to(x.dtype)
        rows = F.pad(rows, (0, 0, int(top == 0), int(bottom == x.shape[2])))
        out[:, :, top:bottom] = F.conv2d(rows, conv.weight, conv.bias, padding=(0, 1))
    return out


def add_shortcut(h: Tensor, shortcut: nn.Module, x: Tensor) -> Tensor:
    """Add shortcut(x) to h in place. The shortcut works on each place alone.

    h: b c_out h w    x: b c_in h w    returns: h
    """
    for top, bottom in strips(x.shape[2], x.numel()):
        h[:, :, top:bottom] += shortcut(x[:, :, top:bottom])
    return h


def scale_and_shift(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Find the numbers with which norm(x) = scale * x + shift.

    x: b c h w    returns: two tensors b c 1 1, at least in float32
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    groups = [
        torch.var_mean(group.to(wide), dim=(1, 2, 3), correction=0)
        for group in x.chunk(norm.num_groups, dim=1)  # one by one: in float32, they need memory
    ]
    variance, mean = (torch.stack(numbers, dim=1) for numbers in zip(*groups, strict=True))
    spread = (variance + norm.eps).sqrt()
    channels = norm.num_channels // norm.num_groups
    mean, spread = (each.repeat_interleave(channels, dim=1) for each in (mean, spread))
    scale = norm.weight.to(wide) / spread
    shift = norm.bias.to(wide) - mean * scale
    return rearrange(scale, "b c -> b c 1 1"), rearrange(shift, "b c -> b c 1 1")
