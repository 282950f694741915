"""How near things are: depth for flat pictures, and the small estimator that learns to see it."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.depth.small import SmallDepthEstimator
from minisd.mini.emoji import Emoji, batch
from minisd.tasks.canny import brightness
from minisd.training.loop import Recipe, generator_at, train
from minisd.training.parallel import share

RIM, DOME, SHADING = 0.4, 0.4, 0.2  # of the relief: a thing's edge, its bulge, its lights


def relief(images: Tensor, masks: Tensor) -> Tensor:
    """The depth that a flat picture is given: things bulge out of the ground, light parts more.

    images: b 3 h w in [-1, 1]    masks: b 1 h w, 1 = thing    returns: b 1 h w in 0 … 1, near = 1
    """
    left, inside = masks, torch.zeros_like(masks)
    while left.any():  # peel off pixel by pixel: how far from the edge
        inside = inside + left
        left = 1 - F.max_pool2d(1 - F.pad(left, (1, 1, 1, 1)), 3, stride=1)
    highest = inside.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    dome = (inside / highest).sqrt()
    return masks * (RIM + DOME * dome + SHADING * brightness(images))


def train_estimator(
    emoji: Emoji, folder: Path, recipe: Recipe, size: int, batch_size: int = 32, seed: int = 0
) -> SmallDepthEstimator:
    """Learn the relief of composed pictures, whatever their colours. Resumes from the folder."""
    torch.manual_seed(seed)

    def loss_at(step: int) -> dict[str, Tensor]:
        made = batch(emoji, size, batch_size, seed, step)
        generator = generator_at(seed, step)
        noise = 0.05 * torch.randn(made.images.shape, generator=generator)
        guess = network(share(made.images + noise))
        return {"depth": F.mse_loss(guess, share(relief(made.images, made.masks)))}

    network = SmallDepthEstimator()
    about = {"size": size, "batch_size": batch_size, "seed": seed}
    return train(network, loss_at, recipe, folder, about)
