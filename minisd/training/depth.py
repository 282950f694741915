"""Train the small depth estimator. Its targets are depth maps that relief() computes."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.depth.small import SmallDepthEstimator
from minisd.tasks.canny import brightness
from minisd.training.loop import Draw, Hyperparameters, train

# RIM: the height of a thing's rim. DOME and SHADING: how much higher the middle and the lightest
# parts of a thing are.
RIM, DOME, SHADING = 0.4, 0.4, 0.2


def relief(images: Tensor, masks: Tensor) -> Tensor:
    """Invent a depth map for each flat picture, as if the picture were a relief in stone.

    Things stand out from the background. The middle of a thing stands out more than its rim, and
    light parts stand out more than dark parts.

    images: b 3 h w in [-1, 1]
    masks: b 1 h w, 1 where a thing is, 0 elsewhere
    returns: b 1 h w in 0 … 1, where 1 is near
    """
    left, inside = masks, torch.zeros_like(masks)
    while left.any():  # each round adds 1 to the pixels that are left, then removes their rim
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
    """Train an estimator. Returns the estimator with its EMA weights.

    The estimator learns the depth maps that relief() computes from the pictures and their masks.

    If the folder holds a run, the run is resumed. Raises the same errors as train().

    draw_pictures: a function (count, number) that returns `count` pictures, b 3 h w, and their
        masks, b 1 h w. If the number is the same, the pictures are the same
    """
    torch.manual_seed(seed)
    estimator = SmallDepthEstimator()

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        images, masks = draw_pictures(draw.batch_size, draw.number)
        noise = 0.05 * torch.randn(images.shape, generator=draw.generator)
        guess = estimator(images + noise)
        return {"depth": F.mse_loss(guess.float(), relief(images, masks))}

    return train(estimator, loss_at, settings, folder, batch_size, seed, {})
