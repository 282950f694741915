"""Image-to-image: start from a noisy picture instead of pure noise.

This method is called SDEdit (Meng et al. 2022, algorithm 1). The noise leaves rough shapes and
colours of the picture visible, so the result keeps them. The prompt decides the rest.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import repeat
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minisd.files.pictures import check_size, check_tensor, from_pil
from minisd.pipeline import StableDiffusion, list_prompts, make_generators, pictures_for
from minisd.samplers import Step
from minisd.sampling import sampler_for, sampler_levels
from minisd.schedule import Denoiser, Level

Picture = Image.Image | Tensor  # a Tensor: 1 3 h w or b 3 h w in [-1, 1]


class SamplingSettings(NamedTuple):
    """The arguments of img2img that choose the noise, the noise levels and the sampler."""

    strength: float
    steps: int
    sampler: str | None
    seed: int | list[int]
    spacing: str | None


class Start(NamedTuple):
    """Where sampling starts: the picture's latent z, the noise, and x. Each of them is b 4 h w."""

    z: Tensor
    noise: Tensor
    x: Tensor  # z with the noise of levels[0], variance-preserving
    sampler: str
    levels: list[Level]  # only the levels of the steps that are run
    generators: list[torch.Generator]

    def sample(self, denoise: Denoiser) -> "TaskSteps":
        """Run the sampler from this start. Returns an iterator over its steps."""
        sampler = sampler_for(self.sampler, self.levels)
        return TaskSteps(self, sampler(denoise, self.x, self.levels, self.generators))


@dataclass
class TaskSteps(Iterator[Step]):
    """An iterator over the steps of a task. It also holds the start of these steps."""

    start: Start
    steps: Iterator[Step]

    def __next__(self) -> Step:
        return next(self.steps)

    def draw(self, sd: StableDiffusion, progress: bool) -> Tensor:
        """Run all steps, and decode the x of the last step. If there is no step, decode start.z.

        returns: b 3 h w
        """
        latent = self.start.z
        for step in tqdm(self.steps, total=len(self.start.levels) - 1, disable=not progress):
            latent = step.x
        return sd.decode(latent)


def img2img_steps(
    sd: StableDiffusion,
    prompt: str | list[str],
    image: Picture,
    strength: float = 0.75,
    negative_prompt: str = "",
    steps: int = 30,
    cfg_scale: float | None = None,
    sampler: str | None = None,
    seed: int | list[int] = 0,
    spacing: str | None = None,
) -> TaskSteps:
    """Yield the steps from the noisy picture to a new latent, one by one.

    The arguments are those of img2img.

    Raises ValueError in the same cases as img2img().
    """
    sd.check_text_only()
    prompts = list_prompts(prompt)
    settings = SamplingSettings(strength, steps, sampler, seed, spacing)
    start = start_from_picture(sd, image, len(prompts), settings)
    return start.sample(sd.denoiser(prompts, negative_prompt, cfg_scale))


def img2img(
    sd: StableDiffusion,
    prompt: str | list[str],
    image: Picture,
    strength: float = 0.75,
    negative_prompt: str = "",
    steps: int = 30,
    cfg_scale: float | None = None,
    sampler: str | None = None,
    seed: int | list[int] = 0,
    progress: bool = False,
    spacing: str | None = None,
) -> Image.Image | list[Image.Image]:
    """Draw the picture again as the prompt says. A list of prompts gives a list of pictures.

    image: a picture, or a tensor b 3 h w in [-1, 1]. A tensor holds one picture for all prompts, or
        one picture for each prompt
    strength: the share of the steps to run, 0 to 1. At 0, no step is run: the picture is only
        encoded and decoded. At 1, all steps are run. The first noise level still leaves a little of
        the picture visible (8 % with 50 DDIM steps), so the result differs a little from txt2img
    The other arguments are those of StableDiffusion.txt2img. All noise of a sample comes from the
    sample's seed: the noise in the encoder, at the start and in the steps.

    Raises ValueError if a setting is out of range, or if the picture's size does not fit the model.
    """
    drawing = img2img_steps(
        sd,
        prompt,
        image,
        strength=strength,
        negative_prompt=negative_prompt,
        steps=steps,
        cfg_scale=cfg_scale,
        sampler=sampler,
        seed=seed,
        spacing=spacing,
    )
    return pictures_for(prompt, drawing.draw(sd, progress))


def start_from_picture(
    sd: StableDiffusion, image: Picture, count: int, settings: SamplingSettings, encode: bool = True
) -> Start:
    """Encode the picture once for each sample, and add noise to each latent.

    count: the number of samples
    settings: settings.strength decides how much noise is added
    encode: whether to encode the picture. False: noise is used instead of the picture's latent

    Raises ValueError if a setting is out of range, or if the picture's size does not fit the model.
    """
    sampler = settings.sampler or sd.config.sampler
    levels = sampler_levels(sampler, sd.schedule, settings.steps, settings.spacing)
    levels = remaining_levels(levels, settings.strength)
    image = picture_batch(sd, image, count)
    generators = make_generators(settings.seed, count)
    encoded = sd.encode(image, generators) if encode else None
    noise = sd.noise(generators, image.shape[3], image.shape[2])
    noise = noise.to(sd.device, sd.sampling_dtype(levels[0]))
    z = noise if encoded is None else encoded
    x = add_noise(z, noise, levels[0])
    return Start(z, noise, x, sampler=sampler, levels=levels, generators=generators)


def remaining_levels(levels: list[Level], strength: float) -> list[Level]:
    """The levels of the steps to run. Of S steps, only the last int(strength * S) are run.

    At strength 0, only the last level is left, and no step is run.

    Raises ValueError if strength is outside 0 … 1.
    """
    if not 0 <= strength <= 1:
        limits = "0 (keep the picture) to 1 (draw all of it again)"
        raise ValueError(f"strength must be {limits}, got {strength}.")
    steps = len(levels) - 1
    run = int(steps * strength)
    return levels[steps - run :]


def add_noise(z: Tensor, noise: Tensor, level: Level) -> Tensor:
    """Add the noise of this level to z (Ho et al. 2020, eq. 4).

    z, noise: b 4 h w    returns: b 4 h w
    """
    return level.signal_rate * z + level.noise_rate * noise


def picture_batch(sd: StableDiffusion, image: Picture, count: int) -> Tensor:
    """Convert a picture to a tensor with one picture for each sample: b 3 h w in [-1, 1].

    count: the number of samples

    Raises ValueError if the picture's size does not fit the model, or if the number of pictures is
    neither 1 nor `count`.
    """
    image = picture_tensor(image)
    if len(image) not in (1, count):
        wanted = f"Give a PIL image, or a tensor 1 3 h w or {count} 3 h w in [-1, 1]"
        raise ValueError(f"the picture has the shape {tuple(image.shape)}. {wanted}.")
    check_size(image.shape[3], image.shape[2], sd.config)
    return image if len(image) == count else repeat(image, "1 c h w -> b c h w", b=count)


def picture_tensor(image: Picture) -> Tensor:
    """Convert a picture to a tensor: 1 3 h w or b 3 h w in [-1, 1].

    Raises ValueError if a tensor has another shape or range. Warns if no value is below 0.
    """
    if isinstance(image, Image.Image):
        return from_pil(image)
    check_tensor(image, "picture", 3, -1, 1)
    if image.min() >= 0 and image.min() < image.max():
        warnings.warn(
            "No value of the picture is below 0, so the picture is very pale. If 0 means black and "
            "1 means white, give 2 * image - 1.",
            stacklevel=2,
        )
    return image
