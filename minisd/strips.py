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
    height, above = x.shape[2], None  # above: the last normalized row of the strip above
    for top, bottom in strips(height, x.numel()):
        rows = x.new_zeros(len(x), x.shape[1], bottom - top + 2, x.shape[3])  # zeros around x
        if above is not None:
            rows[:, :, :1] = above
        last = min(bottom + 1, height)
        inside = rows[:, :, 1 : 1 + last - top]
        inside.copy_(F.silu(torch.addcmul(shift, x[:, :, top:last], scale), inplace=True))
        above = rows[:, :, bottom - top : bottom - top + 1]
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
    groups = x.unflatten(1, (norm.num_groups, -1)).unbind(1)
    means, spreads = [], []
    for group in groups:  # one by one, because a copy in float32 needs memory
        group = group.to(wide)
        means.append(group.mean(dim=(1, 2, 3), keepdim=True))
        rows = torch.linalg.vector_norm(group - means[-1], dim=3)  # summed row by row: more exact
        size = torch.linalg.vector_norm(rows, dim=(1, 2))
        spreads.append((size.square() / group[0].numel() + norm.eps).sqrt())
    mean, spread = torch.stack(means, dim=1).flatten(1), torch.stack(spreads, dim=1)
    channels = norm.num_channels // norm.num_groups
    mean, spread = (each.repeat_interleave(channels, dim=1) for each in (mean, spread))
    scale = norm.weight.to(wide) / spread
    shift = norm.bias.to(wide) - mean * scale
    return rearrange(scale, "b c -> b c 1 1"), rearrange(shift, "b c -> b c 1 1")
