"""Inpainting: what the mask covers is drawn anew, the rest stays.

Two ways. Any model can do it by blending: at every level, what lies outside the mask is put back,
noised to that level (Lugmayr et al. 2022, "RePaint", eq. 8, without its resampling). A model
trained for it reads the mask and the picture with a grey hole in it as five more channels (Rombach
et al. 2022, section 4.5), and need not guess what surrounds the hole.
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
from minisd.pipeline import StableDiffusion, as_asked, as_list
from minisd.samplers import Sampler, Step
from minisd.sampling import sampler_for, starting_x
from minisd.schedule import Denoiser, Level, Prediction
from minisd.tasks import img2img
from minisd.tasks.img2img import Picture, Settings, Start, Walk, as_tensor, mixed, noised

INPAINTING_CHANNELS = 9  # 4 latent + 1 mask + 4 latent of the picture with its hole


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
) -> Walk:
    """The walk, step by step, by nine channels or by blending. Arguments as inpaint."""
    covered, prompts = as_mask(mask, image), as_list(prompt)
    start = begin(sd, prompt, image, strength, steps, sampler, seed, spacing)
    covered = covered.to(start.z)
    if reads_a_mask(sd):
        hole = picture_with_hole(as_tensor(sd, image, len(prompts)), covered)
        around = sd.encode(hole, start.generators)
        extra = torch.cat([on_latent(covered >= 0.5, start.x), around], dim=1)
        network = shown_beside(sd.unet, extra)
        return start.walk(sd.denoiser(prompts, negative_prompt, cfg_scale, network=network))
    sd.check_text_only()
    denoise = sd.denoiser(prompts, negative_prompt, cfg_scale)
    walker = sampler_for(start.sampler, start.levels)
    return Walk(start, blended(walker, denoise, start, 1 - on_latent(covered, start.z)))


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
    """Draw anew what the mask covers; a list of prompts gives a list of pictures.

    A model with nine input channels reads mask and picture; any other one is led by blending.

    mask: white (1) is drawn anew; a picture of the image's size, or 1 1 h w in 0 … 1. The blend
        takes soft edges as they are, the nine channels cut them at one half. White or coloured
        paint on a transparent layer is a mask, too.
    strength: how much of the walk is run; at 1 the covered part begins as pure noise
    paste: put the original pixels back outside the mask. Without, they are what the autoencoder
        makes of them.
    the rest: as tasks.img2img

    Raises ValueError for a setting out of its range, and for sizes that differ or do not fit.
    """
    settings = (negative_prompt, steps, cfg_scale, sampler, seed, spacing)
    drawn = inpaint_steps(sd, prompt, image, mask, strength, *settings).draw(sd, progress)
    if paste:
        covered, original = (
            as_mask(mask, image).to(drawn),
            as_tensor(sd, image, len(drawn)).to(drawn),
        )
        drawn = covered * drawn + (1 - covered) * original
    return as_asked(prompt, drawn)


def begin(
    sd: StableDiffusion,
    prompt: str | list[str],
    image: Picture,
    strength: float,
    *how: int | str | list[int] | None,
) -> Start:
    """As in img2img, but at strength 1 from pure noise: nothing under the mask is to show.

    how: steps, sampler, seed and spacing
    """
    count, settings = len(as_list(prompt)), Settings(strength, *how)
    if strength < 1:
        return noised(sd, image, count, settings)
    start = noised(sd, image, count, settings, encode=not reads_a_mask(sd))
    return start._replace(x=starting_x(start.sampler, start.noise, start.levels[0]))


def reads_a_mask(sd: StableDiffusion) -> bool:
    return sd.config.unet.in_channels == INPAINTING_CHANNELS


def blended(sampler: Sampler, denoise: Denoiser, start: Start, kept: Tensor) -> Iterator[Step]:
    """Walk so that at each level what is kept is the picture, with the same noise every time.

    kept: b 1 h w, 1 = the picture. At the first level nothing is put back, at the last the clean
    latent is.
    """

    def put_back(x: Tensor, level: Level) -> Tensor:
        return kept * mixed(start.z, start.noise, level) + (1 - kept) * x

    def denoise_blend(x: Tensor, level: Level) -> Prediction:
        shown = x if level == start.levels[0] else put_back(x, level)
        prediction = denoise(shown, level)
        eps = (x - level.signal_rate * prediction.x0) / level.noise_rate  # what is left of x itself
        return prediction._replace(eps=eps)

    last = len(start.levels) - 2
    steps = sampler(denoise_blend, start.x, start.levels, start.generators)
    for step, to in zip(steps, start.levels[1:]):
        clean = kept * start.z + (1 - kept) * step.x
        yield step._replace(x=clean if step.index == last else put_back(step.x, to))


def shown_beside(network: Network, extra: Tensor) -> Network:
    """The network that sees more channels beside the latent, in both halves of guidance.

    extra: b c h w
    """

    def sees_more(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        beside = repeat(extra, "b c h w -> (half b) c h w", half=len(x) // len(extra))
        return network(torch.cat([x, beside.to(x)], dim=1), t, context)

    return sees_more


def picture_with_hole(image: Tensor, covered: Tensor) -> Tensor:
    """The picture, grey (0) where it is covered. image: b 3 h w in [-1, 1]; covered: 1 1 h w."""
    return image.to(covered) * (covered < 0.5)


def on_latent(mask: Tensor, z: Tensor) -> Tensor:
    """The mask at the latent's size, by nearest neighbour, per sample. 1 1 h w -> b 1 h' w'."""
    small = F.interpolate(mask.to(z), z.shape[2:])
    return repeat(small, "1 1 h w -> b 1 h w", b=len(z))


def as_mask(mask: Picture, image: Picture) -> Tensor:
    """1 1 h w in 0 … 1, 1 = drawn anew. mask: a picture, or 1 1 h w, numbers or True and False.

    ValueError: another size than the picture's, numbers beyond 0 … 1, or a mask that is transparent
    in places and does not say by its colours which part is meant (pictures.mask_shades).
    """
    if isinstance(mask, Image.Image):
        shades = torch.from_numpy(np.array(mask_shades(mask)))
        mask = rearrange(shades, "h w -> 1 1 h w") / 255
    elif isinstance(mask, Tensor) and mask.dtype == torch.bool:
        mask = mask.float()
    check_tensor(mask, "mask", 1, 0, 1)
    size = tuple(img2img.picture_tensor(image).shape[2:])
    if len(mask) != 1 or tuple(mask.shape[2:]) != size:
        sizes = f"has shape {tuple(mask.shape)} and the picture is {size[1]} x {size[0]} pixels"
        wanted = "give a mask of the picture's size, white where it is to be drawn anew"
        raise ValueError(f"the mask {sizes}: {wanted}.")
    return mask.clamp(0, 1)  # a rounding error may lie outside
