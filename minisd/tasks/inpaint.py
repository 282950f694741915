"""Inpainting: draw again what a mask covers, and keep the rest.

There are two ways.

Any model can inpaint by blending. At every noise level, the part of x outside the mask is replaced
by the picture with the noise of this level (Lugmayr et al. 2022, "RePaint", eq. 8, but without
resampling).

A model that was trained for inpainting reads five more channels: the mask, and the latent of the
picture with a grey hole (Rombach et al. 2022, section 4.5). So the model sees what surrounds the
hole.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from minisd.files.pictures import check_tensor, mask_shades
from minisd.guidance import Network
from minisd.pipeline import StableDiffusion, list_prompts, pictures_for
from minisd.samplers import Sampler, Step
from minisd.sampling import sampler_for, starting_x
from minisd.schedule import Denoiser, Level, Prediction
from minisd.tasks.img2img import (
    Picture,
    SamplingSettings,
    Start,
    TaskSteps,
    add_noise,
    picture_batch,
    picture_tensor,
    start_from_picture,
)

INPAINTING_CHANNELS = 9  # the latent (4), the mask (1), the latent of the picture with a hole (4)


def inpaint_steps(
    sd: StableDiffusion,
    prompt: str | list[str],
    image: Picture,
    mask: Picture,
    strength: float = 1.0,
    negative_prompt: str = "",
    steps: int = 30,
    cfg_scale: float | None = None,
    sampler: str | None = None,
    seed: int | list[int] = 0,
    spacing: str | None = None,
) -> TaskSteps:
    """Yield the steps of inpainting, one by one. The arguments are those of inpaint.

    Raises ValueError in the same cases as inpaint().
    """
    covered, prompts = mask_tensor(mask, image), list_prompts(prompt)
    settings = SamplingSettings(strength, steps, sampler, seed, spacing)
    start = start_inpainting(sd, image, len(prompts), settings)
    covered = covered.to(start.z)
    if reads_a_mask(sd):
        hole = picture_with_hole(picture_batch(sd, image, len(prompts)), covered)
        around = sd.encode(hole, start.generators)
        extra = torch.cat([latent_mask(covered >= 0.5, start.x), around], dim=1)
        network = with_extra_channels(sd.runner(sd.unet), extra)
        return start.sample(sd.denoiser(prompts, negative_prompt, cfg_scale, network=network))
    sd.check_text_only()
    denoise = sd.denoiser(prompts, negative_prompt, cfg_scale)
    blending = blend_steps(
        sampler_for(start.sampler, start.levels),
        denoise,
        start,
        keep=1 - latent_mask(covered, start.z),
    )
    return TaskSteps(start, blending)


def inpaint(
    sd: StableDiffusion,
    prompt: str | list[str],
    image: Picture,
    mask: Picture,
    strength: float = 1.0,
    negative_prompt: str = "",
    steps: int = 30,
    cfg_scale: float | None = None,
    sampler: str | None = None,
    seed: int | list[int] = 0,
    progress: bool = False,
    spacing: str | None = None,
    paste: bool = False,
) -> Image.Image | list[Image.Image]:
    """Draw again what the mask covers. A list of prompts gives a list of pictures.

    If the model has nine input channels, it reads the mask and the picture. If not, blending is
    used.

    mask: a picture of the image's size, or a tensor 1 1 h w in 0 … 1. The white part (1) is drawn
        again. Instead of black and white, a mask may also have white or coloured paint on a
        transparent layer. Blending keeps the soft edges of a mask. For a model with nine channels,
        soft edges are rounded to 0 or 1
    strength: the share of the steps to run. At 1, the covered part starts as pure noise
    paste: whether to put the original pixels back outside the mask. False: these pixels were
        encoded and decoded, so they differ a little from the original pixels
    The other arguments are those of tasks.img2img.

    Raises ValueError if a setting is out of range, if the mask and the picture differ in size, or
    if their size does not fit the model.
    """
    drawing = inpaint_steps(
        sd,
        prompt,
        image,
        mask,
        strength=strength,
        negative_prompt=negative_prompt,
        steps=steps,
        cfg_scale=cfg_scale,
        sampler=sampler,
        seed=seed,
        spacing=spacing,
    )
    drawn = drawing.draw(sd, progress)
    if paste:
        covered = mask_tensor(mask, image).to(drawn)
        original = picture_batch(sd, image, len(drawn)).to(drawn)
        drawn = covered * drawn + (1 - covered) * original
    return pictures_for(prompt, drawn)


def start_inpainting(
    sd: StableDiffusion, image: Picture, count: int, settings: SamplingSettings
) -> Start:
    """Start from the noisy picture, as img2img does. At strength 1, start from pure noise instead.

    Pure noise hides everything that the mask covers.

    count: the number of samples
    """
    pure_noise = settings.strength >= 1
    encode = not (pure_noise and reads_a_mask(sd))
    start = start_from_picture(sd, image, count, settings, encode=encode)
    if not pure_noise:
        return start
    return start._replace(x=starting_x(start.sampler, start.noise, start.levels[0]))


def reads_a_mask(sd: StableDiffusion) -> bool:
    """Whether the U-Net was trained for inpainting."""
    return sd.config.unet.in_channels == INPAINTING_CHANNELS


def blend_steps(sampler: Sampler, denoise: Denoiser, start: Start, keep: Tensor) -> Iterator[Step]:
    """Run a sampler. After each step, put the picture back into the part that is kept.

    Yields the steps of the sampler.

    keep: b 1 h w, 1 where the picture is kept

    The kept part of x is replaced by the picture's latent, with as much noise as the level has. The
    same random noise is used at all levels. At the first level, nothing is replaced. After the last
    step, the kept part is the picture's latent without noise.
    """

    def blend(x: Tensor, level: Level) -> Tensor:
        return keep * add_noise(start.z, start.noise, level) + (1 - keep) * x

    def denoise_blend(x: Tensor, level: Level) -> Prediction:
        blended = x if level == start.levels[0] else blend(x, level)
        prediction = denoise(blended, level)
        eps = (x - level.signal_rate * prediction.x0) / level.noise_rate  # of x, not of the blend
        return prediction._replace(eps=eps)

    last = len(start.levels) - 2
    steps = sampler(denoise_blend, start.x, start.levels, start.generators)
    for step, next_level in zip(steps, start.levels[1:], strict=True):
        clean = keep * start.z + (1 - keep) * step.x
        yield step._replace(x=clean if step.index == last else blend(step.x, next_level))


def with_extra_channels(network: Network, extra: Tensor) -> Network:
    """Wrap a network: after the channels of the latent, it also reads the channels of `extra`.

    extra: b c h w. If guidance runs the network on 2b samples, both halves read the same `extra`
    """

    def read_more(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        extras = repeat(extra, "b c h w -> (half b) c h w", half=len(x) // len(extra))
        return network(torch.cat([x, extras.to(x)], dim=1), t, context)

    return read_more


def picture_with_hole(image: Tensor, covered: Tensor) -> Tensor:
    """Make the covered part of the picture grey (0).

    image: b 3 h w in [-1, 1]    covered: 1 1 h w in 0 … 1, the mask    returns: b 3 h w
    """
    return image.to(covered) * (covered < 0.5)


def latent_mask(mask: Tensor, z: Tensor) -> Tensor:
    """Scale a mask to the latent's size (nearest neighbour), and repeat it for each sample.

    mask: 1 1 h w    z: b c h' w'    returns: b 1 h' w'
    """
    small = F.interpolate(mask.to(z), z.shape[2:])
    return repeat(small, "1 1 h w -> b 1 h w", b=len(z))


def mask_tensor(mask: Picture, image: Picture) -> Tensor:
    """Convert a mask to a tensor 1 1 h w in 0 … 1. The part where it is 1 is drawn again.

    mask: a picture, or a tensor 1 1 h w of numbers or booleans
    image: the picture that the mask covers

    Raises ValueError if the mask and the picture differ in size, or if a number is outside 0 … 1.
    Also raises ValueError if parts of the mask are transparent, and the colours do not show which
    part is covered (pictures.mask_shades).
    """
    if isinstance(mask, Image.Image):
        shades = torch.from_numpy(np.array(mask_shades(mask)))
        mask = rearrange(shades, "h w -> 1 1 h w") / 255
    elif isinstance(mask, Tensor) and mask.dtype == torch.bool:
        mask = mask.float()
    check_tensor(mask, "mask", 1, 0, 1)
    size = tuple(picture_tensor(image).shape[2:])
    if len(mask) != 1 or tuple(mask.shape[2:]) != size:
        sizes = f"has shape {tuple(mask.shape)}, but the picture has {size[1]} x {size[0]} pixels"
        wanted = "Give a mask of the picture's size. Make it white in the part to draw again"
        raise ValueError(f"the mask {sizes}. {wanted}.")
    return mask.clamp(0, 1)  # after a rounding error, a number may be slightly outside
