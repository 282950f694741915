"""Compare edges, draw with a classifier, and find the training pictures that are most similar."""

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.adapters.classifier import ClassifierGuidance, LatentClassifier
from minisd.mini.captions import Scene
from minisd.mini.emoji import Emoji
from minisd.mini.evaluate import DDIM_STEPS
from minisd.mini.scenes import batch
from minisd.pipeline import StableDiffusion


def edge_agreement(found: Tensor, wanted: Tensor) -> float:
    """The F1 score of the found edges, compared with the wanted edges. 1 is the best score.

    An edge pixel counts as right if the other picture has an edge pixel at most one pixel away.

    found, wanted: b 3 h w, 1 where there is an edge, 0 elsewhere
    """
    near_found, near_wanted = (F.max_pool2d(one, 3, 1, 1) for one in (found, wanted))
    precision = (found * near_wanted).sum() / found.sum().clamp(min=1)
    recall = (wanted * near_found).sum() / wanted.sum().clamp(min=1)
    return (2 * precision * recall / (precision + recall).clamp(min=1e-9)).item()


@torch.no_grad()
def classifier_draw(
    sd: StableDiffusion, guide: LatentClassifier, things: list[str], scale: float
) -> Tensor:
    """Draw one picture of each thing. The prompt is empty, and the classifier steers the sampling.

    guide: the classifier
    things: names of things that the classifier knows
    scale: the strength of the classifier
    returns: b 3 h w
    """
    with ClassifierGuidance(sd, guide, things, scale):
        *_, step = sd.txt2img_steps([""] * len(things), "", DDIM_STEPS, cfg_scale=1, sampler="ddim")
    return sd.decode(step.x).clamp(-1, 1)


def nearest_pictures(images: Tensor, emoji: Emoji, count: int) -> list[tuple[float, Tensor, Scene]]:
    """Find the most similar training picture for each picture of `images`.

    images: b 3 h w
    count: number of training pictures to search, a multiple of 100
    returns: for each picture, a tuple: the root mean squared difference (0..255) between the
        picture and the most similar training picture, this training picture, and its scene
    """
    best: list[tuple] = [(inf, None, None)] * len(images)
    for step in range(0, count, 100):  # the same batches as encode_pictures() makes
        made = batch(emoji, images.shape[-1], 100, seed=0, step=step)
        for index, image in enumerate(images):
            apart = 127.5 * (made.images - image).square().mean(dim=(1, 2, 3)).sqrt()
            distance, which = apart.min(dim=0)
            if distance < best[index][0]:
                best[index] = (distance.item(), made.images[which], made.scenes[which])
    return best
