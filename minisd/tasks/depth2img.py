"""Depth-to-image: keep the picture's depth, and let the prompt change everything else.

The U-Net reads the depth as a fifth channel, after the four channels of the latent. The depth does
not pass through the text transformer (Stability AI, stable-diffusion-2-depth;
ldm/models/diffusion/ddpm.py, LatentDepth2ImageDiffusion).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minisd.files.pictures import check_tensor, depth_values
from minisd.pipeline import StableDiffusion, list_prompts, pictures_for
from minisd.tasks.img2img import (
    Picture,
    SamplingSettings,
    TaskSteps,
    picture_tensor,
    start_from_picture,
)
from minisd.tasks.inpaint import with_extra_channels

FLAT = 0.001  # added to the range of a depth map, which may be 0. diffusers does not add it
NARROW = 0.1  # smaller ranges are stretched first: FLAT would be more than 1 % of them
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
) -> TaskSteps:
    """Yield the steps from the noisy picture to a new latent, one by one.

    The arguments are those of depth2img.

    Raises ValueError in the same cases as depth2img().
    """
    given, prompts = given_depth(sd, depth, estimator), list_prompts(prompt)
    settings = SamplingSettings(strength, steps, sampler, seed, spacing)
    start = start_from_picture(sd, image, len(prompts), settings)
    if given is None and estimator is not None:
        given = estimator(picture_tensor(image))
    assert given is not None, "given_depth raises if there is no estimator either"
    if len(given) not in (1, len(prompts)):
        raise ValueError(f"there are {len(given)} depth maps. Give 1, or one for each prompt.")
    channel = depth_channel(given.to(sd.device).float(), start.z.shape[2:]).to(start.z)
    channels = channel.expand(len(prompts), -1, -1, -1)
    network = with_extra_channels(sd.runner(sd.unet), channels)
    return start.sample(sd.denoiser(prompts, negative_prompt, cfg_scale, network=network))


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
    """Draw the picture again as the prompt says, with the same depth.

    A list of prompts gives a list of pictures.

    depth: a depth map: a grey picture, or a tensor 1 1 h w or b 1 h w. Its values may have any
        range. Large (bright) values mean near. Its size may differ from the picture's
    estimator: a function that estimates the depth map if `depth` is None, for example
        DepthEstimator.load(…)
    The other arguments are those of tasks.img2img.

    Raises ValueError if the model does not read depth, or if neither a depth map nor an estimator
    is given. Also raises what img2img() raises.
    """
    drawing = depth2img_steps(
        sd,
        prompt,
        image,
        depth=depth,
        estimator=estimator,
        strength=strength,
        negative_prompt=negative_prompt,
        steps=steps,
        cfg_scale=cfg_scale,
        sampler=sampler,
        seed=seed,
        spacing=spacing,
    )
    return pictures_for(prompt, drawing.draw(sd, progress))


def depth_channel(depth: Tensor, size: Sequence[int]) -> Tensor:
    """Convert depth maps to what the U-Net reads: the latent's size, with values from -1 to 1.

    The values of each map are scaled separately.

    depth: b 1 h w    size: h w of the latent    returns: b 1 h w
    """
    small = F.interpolate(depth, list(size), mode="bicubic", align_corners=False)
    low = small.amin(dim=(1, 2, 3), keepdim=True)
    high = small.amax(dim=(1, 2, 3), keepdim=True)
    return 2 * (small - low) / (high - low + FLAT) - 1


def given_depth(
    sd: StableDiffusion, depth: Picture | None, estimator: Estimator | None
) -> Tensor | None:
    """Check the given depth map, and return it as a tensor b 1 h w.

    Returns None if there is no depth map, because the estimator then estimates one. A depth map
    with a range below NARROW is stretched to the range 1.

    Raises ValueError if neither a depth map nor an estimator is given, if the U-Net does not read
    depth, or if a number of the depth map is not finite.
    """
    if sd.config.unet.in_channels != DEPTH_CHANNELS:
        raise ValueError(
            f"{sd.config.name} reads {sd.config.unet.in_channels} channels, but no depth. Load a "
            "depth model, such as sd20-depth."
        )
    if depth is None and estimator is None:
        raise ValueError("there is no depth. Give depth= (a picture) or estimator= (a function).")
    if depth is None:
        return None
    depth = depth_values(depth) if isinstance(depth, Image.Image) else depth
    check_tensor(depth, "depth", 1)
    spread = depth.amax((1, 2, 3), keepdim=True) - depth.amin((1, 2, 3), keepdim=True)
    narrow = (spread > 0) & (spread < NARROW)
    return torch.where(narrow, depth / spread, depth)
