"""Train the small depth estimator. Its targets are depths that are computed for flat pictures."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.depth.small import SmallDepthEstimator
from minisd.tasks.canny import brightness
from minisd.training.loop import Draw, Hyperparameters, train

RIM, DOME, SHADING = 0.4, 0.4, 0.2  # heights of a thing's rim, its middle and its light parts


def relief(images: Tensor, masks: Tensor) -> Tensor:
    """Invent a depth for a flat picture, as in a relief.

    Things stand out from the background. The light parts of a thing stand out more than the dark
    parts.

    images: b 3 h w in [-1, 1]
    masks: b 1 h w, 1 = thing
    returns: b 1 h w in 0 … 1, where 1 is near
    """
    left, inside = masks, torch.zeros_like(masks)
    while left.any():  # each round counts all pixels that are left, then removes a rim
        inside = inside + left
        left = 1 - F.max_pool2d(1 - F.pad(left, (1, 1, 1, 1)), 3, stride=1)
    highest = inside.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    dome = (inside / highest).sqrt()
    return masks * (RIM + DOME * dome + SHADING * brightness(images))


def train_estimator(
    draw_pictures: Callable[[int, int], tuple[Tensor, Tensor]],
    folder: Path,
    settings: Hyperparameters,
    batch_size: int = 32,
    seed: int = 0,
) -> SmallDepthEstimator:
    """Train an estimator on pictures and their depths, and return the EMA of the estimator.

    If the folder holds a run, the run is resumed. Raises what train() raises.

    draw_pictures(count, number): `count` images, b 3 h w, and their masks, b 1 h w. The same number
        gives the same images
    """
    torch.manual_seed(seed)
    estimator = SmallDepthEstimator()

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        images, masks = draw_pictures(draw.batch_size, draw.number)
        noise = 0.05 * torch.randn(images.shape, generator=draw.generator)
        guess = estimator(images + noise)
        return {"depth": F.mse_loss(guess.float(), relief(images, masks))}

    return train(estimator, loss_at, settings, folder, batch_size, seed, {})
