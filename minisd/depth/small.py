"""The mini's depth estimator, for pictures of 64 x 64 pixels. It is used like the one in dpt.py.

The network is a small U-Net. It halves the size of the picture three times, then doubles the size
three times. There is a skip connection at each size (Ronneberger et al. 2015, figure 1, but without
the crops).
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.checkpoints.cover import without_numbers
from minisd.checkpoints.first_bytes import is_safetensors
from minisd.checkpoints.header import read_header
from minisd.checkpoints.load import fill_whole
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.registry import local_path
from minisd.depth.dpt import DepthEstimator

CHANNELS = (16, 32, 48, 64)
DEPTH_PREFIX = "depth_model."  # before the estimator's keys, as in the official depth model


class SmallDepthEstimator(nn.Module):
    """Estimates how near every point of a picture is.

    image: b 3 h w in [-1, 1], at least 8 pixels per side
    returns: b 1 h w in 0 … 1, large = near
    """

    def __init__(self, channels: tuple[int, ...] = CHANNELS):
        super().__init__()
        finer = list(pairwise(channels))
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in finer)
        self.up = nn.ModuleList(nn.Conv2d(b + a, a, 3, padding=1) for a, b in reversed(finer))
        self.conv_out = nn.Conv2d(channels[0], 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.silu(self.conv_in(image.to(self.conv_in.weight)))
        skips = [x]
        for conv in self.down:
            x = F.silu(conv(x))
            skips.append(x)
        x = skips.pop()
        for conv in self.up:
            finer = skips.pop()
            x = torch.cat([F.interpolate(x, finer.shape[2:]), finer], dim=1)
            x = F.silu(conv(x))
        return self.conv_out(x).sigmoid()

    @classmethod
    def load(cls, path: str | Path) -> "SmallDepthEstimator":
        """Read the small depth estimator from mini-depth.safetensors.

        Raises ValueError if the file does not hold this estimator.
        """
        path = local_path(path)
        with without_numbers():
            network = cls()
        if not holds_small_estimator(path):
            raise ValueError(f"{path.name} holds no small depth estimator. Give mini-depth's file.")
        tensors = read_tensors(path)
        state = {name: tensors[DEPTH_PREFIX + name] for name in network.state_dict()}
        fill_whole(network, state, path.name)
        return network.eval().requires_grad_(False)


def holds_small_estimator(path: Path) -> bool:
    """Whether a file holds the mini's estimator. Only the file's header is read, to save time."""
    names = read_header(path) if is_safetensors(path) else {}
    with without_numbers():
        needed = SmallDepthEstimator().state_dict()
    return all(DEPTH_PREFIX + name in names for name in needed)


def load_estimator(path: str | Path) -> Callable[[Tensor], Tensor]:
    """Load the depth estimator that a file holds: the mini's estimator, or DPT-hybrid.

    Raises ValueError if the file holds neither of these estimators.
    """
    path = local_path(path)
    small = holds_small_estimator(path)
    return (SmallDepthEstimator if small else DepthEstimator).load(path)
