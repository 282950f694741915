"""Depth-to-image: the picture's depth is held while the prompt changes all else.

The U-Net reads the depth as a fifth channel beside the latent; it does not pass through the text
transformer (Stability AI, stable-diffusion-2-depth; ldm/models/diffusion/ddpm.py,
LatentDepth2ImageDiffusion).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minisd.files.pictures import check_tensor, depth_values
from minisd.pipeline import StableDiffusion, as_asked, as_list
from minisd.tasks.img2img import Picture, Settings, Walk, noised, picture_tensor
from minisd.tasks.inpaint import shown_beside

FLAT = 0.001  # the original's guard against a flat depth; diffusers has none
NARROW = 0.1  # a depth of a smaller range is widened before the guard takes more than 1 % of it
DEPTH_CHANNELS = 5  # 4 latent + 1 depth
Estimator = Callable[[Tensor], Tensor]  # image b 3 h w in [-1, 1] -> depth b 1 h' w', near = large


def depth2img_steps(
    sd: StableDiffusion,
    prompt: str | list[str],
    image: Picture,
    depth: Picture | None = None,
    estimator: Estimator | None = None,
    strength: float = 0.8,
    negative_prompt: str = "",
    steps: int = 30,
    cfg_scale: float | None = None,
    sampler: str | None = None,
    seed: int | list[int] = 0,
    spacing: str | None = None,
) -> Walk:
    """The walk, step by step, of a U-Net that sees the depth. Arguments as depth2img."""
    given, prompts = given_depth(sd, depth, estimator), as_list(prompt)
    settings = Settings(strength, steps, sampler, seed, spacing)
    start = noised(sd, image, len(prompts), settings)
    found = estimator(picture_tensor(image)) if given is None else given
    if len(found) not in (1, len(prompts)):
        raise ValueError(f"there are {len(found)} depths: give 1 or {len(prompts)}.")
    channel = depth_channel(found.to(sd.device).float(), start.z.shape[2:]).to(start.z)
    network = shown_beside(sd.unet, channel.expand(len(prompts), -1, -1, -1))
    return start.walk(sd.denoiser(prompts, negative_prompt, cfg_scale, network=network))


def depth2img(
    sd: StableDiffusion,
    prompt: str | list[str],
    image: Picture,
    depth: Picture | None = None,
    estimator: Estimator | None = None,
    strength: float = 0.8,
    negative_prompt: str = "",
    steps: int = 30,
    cfg_scale: float | None = None,
    sampler: str | None = None,
    seed: int | list[int] = 0,
    progress: bool = False,
    spacing: str | None = None,
) -> Image.Image | list[Image.Image]:
    """Draw the picture anew after the prompt, its depth kept; a list of prompts gives a list.

    depth: a grey picture, or 1 1 h w or b 1 h w of any range and size, large (bright) = near
    estimator: in place of it, what makes depth of the picture (tasks/depth.py)
    the rest: as tasks.img2img

    Raises ValueError for a model without the depth channel, without depth and estimator, and as
    img2img does.
    """
    settings = (strength, negative_prompt, steps, cfg_scale, sampler, seed, spacing)
    walk = depth2img_steps(sd, prompt, image, depth, estimator, *settings)
    return as_asked(prompt, walk.draw(sd, progress))


def depth_channel(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth as the U-Net reads it: at the latent's size, each one stretched to [-1, 1].

    depth: b 1 h w    size: h w of the latent    returns: b 1 h w
    """
    small = F.interpolate(depth, size, mode="bicubic", align_corners=False)
    low = small.amin(dim=(1, 2, 3), keepdim=True)
    high = small.amax(dim=(1, 2, 3), keepdim=True)
    return 2 * (small - low) / (high - low + FLAT) - 1


def given_depth(
    sd: StableDiffusion, depth: Picture | None, estimator: Estimator | None
) -> Tensor | None:
    """b 1 h w. None: the estimator is to make it.

    ValueError: there is neither, the U-Net reads no depth, or the depth is not finite.
    """
    if sd.config.unet.in_channels != DEPTH_CHANNELS:
        raise ValueError(
            f"{sd.config.name} reads {sd.config.unet.in_channels} channels and no depth: load a "
            "depth model, such as sd20-depth."
        )
    if depth is None and estimator is None:
        raise ValueError("there is no depth: give depth= (a picture) or estimator= (makes one).")
    if depth is None:
        return None
    depth = depth_values(depth) if isinstance(depth, Image.Image) else depth
    check_tensor(depth, "depth", 1)
    spread = depth.amax((1, 2, 3), keepdim=True) - depth.amin((1, 2, 3), keepdim=True)
    narrow = (spread > 0) & (spread < NARROW)
    return torch.where(narrow, depth / spread, depth)  # so that the guard takes little of any range
