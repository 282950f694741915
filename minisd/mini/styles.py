"""Two styles that no emoji set has. They are for the training of a LoRA and a hypernetwork."""

import torch
from einops import rearrange
from torch import Tensor

from minisd.tasks.canny import brightness, canny

PAPER = (-0.75, -0.25, 0.45)  # rgb in [-1, 1]
BROWN, CREAM = (-0.7, -0.85, -0.95), (0.95, 0.85, 0.6)


def blueprint(images: Tensor) -> Tensor:
    """Draw the edges of pictures as white lines on blue paper. b 3 h w in [-1, 1]"""
    lines = canny(images, low=0.05, high=0.1)
    paper = rearrange(torch.tensor(PAPER), "c -> 1 c 1 1")
    return torch.maximum(paper, 2 * lines - 1)


def sepia(images: Tensor) -> Tensor:
    """Make pictures look like old photographs, in brown and cream. b 3 h w in [-1, 1]"""
    dark, light = (rearrange(torch.tensor(shade), "c -> 1 c 1 1") for shade in (BROWN, CREAM))
    return dark + (light - dark) * brightness(images)
