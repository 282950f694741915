"""Draw the edges of a picture: thin white lines where its brightness changes.

A ControlNet often reads such a drawing as its hint.

The method has four steps (Canny 1986). Blur the picture. Find the slopes of its brightness. Make
each edge one pixel thin. Keep the weak edges that are connected to a strong edge.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minisd.files.pictures import check_tensor

RED, GREEN, BLUE = 0.299, 0.587, 0.114  # luma weights, BT.601


def canny(image: Tensor, low: float = 0.1, high: float = 0.2, blur: float = 1.0) -> Tensor:
    """Find the edges of pictures. Returns 1 at an edge and 0 elsewhere, in all three channels.

    image: b 3 h w in [-1, 1]    returns: b 3 h w
    low: the smallest slope of a weak edge. A weak edge is kept if it is connected to a strong one
    high: the smallest slope of a strong edge. Without blur, a step from black to white has slope 1
    blur: the standard deviation of the blur, in pixels

    Raises ValueError if the image has another shape or range.
    """
    check_tensor(image, "picture", 3, -1, 1)
    across, down = slopes(gaussian_blur(brightness(image), blur))
    steepness = (across**2 + down**2).sqrt()
    ridge = steepness * is_ridge(steepness, across, down)
    edges = hysteresis(ridge > low, ridge > high)
    return edges.to(image.dtype).expand(-1, 3, -1, -1)


def brightness(image: Tensor) -> Tensor:
    """How light each pixel is, from 0 (black) to 1 (white).

    image: b 3 h w in [-1, 1]    returns: b 1 h w
    """
    return (image[:, :1] * RED + image[:, 1:2] * GREEN + image[:, 2:] * BLUE + 1) / 2


def gaussian_blur(x: Tensor, spread: float) -> Tensor:
    """Blur a picture along its rows, then along its columns.

    x: b 1 h w    returns: b 1 h w
    spread: the standard deviation of the blur, in pixels
    """
    if spread == 0:
        return x
    reach = math.ceil(3 * spread)
    places = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    bell = torch.exp(-(places**2) / (2 * spread**2))
    bell = bell / bell.sum()
    x = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    x = F.conv2d(x, rearrange(bell, "n -> 1 1 1 n"))
    return F.conv2d(x, rearrange(bell, "n -> 1 1 n 1"))


def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the slope of each pixel with Sobel's filters.

    x: b 1 h w
    returns: the slopes to the right and the slopes downwards, each b 1 h w, from -1 to 1
    """
    sobel = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=x.dtype, device=x.device) / 4
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, sobel[None, None]), F.conv2d(padded, sobel.T[None, None])


def is_ridge(steepness: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Whether each pixel is at least as steep as its two neighbours in the slope's direction.

    All tensors are b 1 h w.

    across, down: the slopes of each pixel, as slopes() returns them
    """
    padded = F.pad(steepness, (1, 1, 1, 1))
    height, width = steepness.shape[2:]

    def neighbour(right: int, below: int) -> Tensor:
        rows = slice(1 + below, 1 + below + height)
        return padded[:, :, rows, 1 + right : 1 + right + width]

    eighth = torch.round(torch.atan2(down, across) / (math.pi / 4)).long() % 4
    found = torch.zeros_like(steepness, dtype=torch.bool)
    for direction, (right, below) in enumerate([(1, 0), (1, 1), (0, 1), (-1, 1)]):
        ahead, behind = neighbour(right, below), neighbour(-right, -below)
        highest = (steepness >= ahead) & (steepness > behind)  # of two equal pixels, keep one
        found = found | ((eighth == direction) & highest)
    return found


def hysteresis(possible: Tensor, sure: Tensor) -> Tensor:
    """Keep the possible edge pixels that are connected to a sure edge pixel.

    The connection may go through other possible edge pixels.

    possible, sure: b 1 h w, true or false    returns: b 1 h w
    """
    sure = sure & possible
    while True:
        near = F.max_pool2d(sure.float(), 3, stride=1, padding=1) > 0
        grown = near & possible
        if torch.equal(grown, sure):
            return sure
        sure = grown
