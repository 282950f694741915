"""Image-to-image: begin at a picture that is noised half-way, in place of pure noise.

SDEdit (Meng et al. 2022, algorithm 1). What the noise leaves standing, rough shapes and colours,
the walk keeps; what it drowned, the walk invents after the prompt.
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

from minisd.files.pictures import check_tensor
from minisd.pipeline import StableDiffusion, as_asked, as_list, check_size, from_pil, seeded
from minisd.samplers import Step
from minisd.sampling import sampler_for, sampler_levels
from minisd.schedule import Denoiser, Level

Picture = Image.Image | Tensor  # a Tensor: 1 3 h w or b 3 h w in [-1, 1]


class Settings(NamedTuple):
    """How a walk goes, as in StableDiffusion.txt2img, and how much of it is left."""

    strength: float
    steps: int
    sampler: str | None
    seed: int | list[int]
    spacing: str | None


class Start(NamedTuple):
    """Where a walk begins: the picture's latent, the noise, and both mixed. Each b 4 h w."""

    z: Tensor
    noise: Tensor
    x: Tensor  # variance-preserving at levels[0]; z itself where no step is left
    sampler: str
    levels: list[Level]  # what is left of the walk
    generators: list[torch.Generator]

    def walk(self, denoise: Denoiser) -> "Walk":
        """The steps from here on."""
        sampler = sampler_for(self.sampler, self.levels)
        return Walk(self, sampler(denoise, self.x, self.levels, self.generators))


@dataclass
class Walk(Iterator[Step]):
    """The steps of a task, one after another, and where they begin."""

    start: Start
    steps: Iterator[Step]

    def __next__(self) -> Step:
        return next(self.steps)

    def draw(self, sd: StableDiffusion, progress: bool) -> Tensor:
        """Walk to the end and decode: b 3 h w. Where there is no step, the picture's own latent."""
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
) -> Walk:
    """The walk from the noised picture to a new latent, step by step. Arguments as img2img."""
    sd.check_text_only()
    prompts = as_list(prompt)
    settings = Settings(strength, steps, sampler, seed, spacing)
    start = noised(sd, image, len(prompts), settings)
    return start.walk(sd.denoiser(prompts, negative_prompt, cfg_scale))


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
    """Draw the picture anew after the prompt; a list of prompts gives a list of pictures.

    image: a picture, or b 3 h w in [-1, 1], one for all prompts or one for each
    strength: how much of the walk is left, 0 to 1; strength x steps are run. 0 gives the picture
        back as the autoencoder draws it. 1 begins at the noisiest level of the walk, where a little
        of the picture still shows (8 % in a walk of 50 DDIM steps), so it is not quite txt2img.
    the rest: as StableDiffusion.txt2img. Sample i draws from its seed: its latent, its noise, the
        noise of its steps.

    Raises ValueError for a setting out of its range or a picture whose size does not fit.
    """
    settings = (negative_prompt, steps, cfg_scale, sampler, seed, spacing)
    walk = img2img_steps(sd, prompt, image, strength, *settings)
    return as_asked(prompt, walk.draw(sd, progress))


def noised(
    sd: StableDiffusion, image: Picture, count: int, settings: Settings, encode: bool = True
) -> Start:
    """Encode the picture and noise it as far as the strength says, count times.

    encode: False leaves the picture's latent out, and begins at the noise
    """
    strength, steps, sampler, seed, spacing = settings
    sampler = sampler or sd.config.sampler
    levels = remaining(sampler_levels(sampler, sd.schedule, steps, spacing), strength)
    image = as_tensor(sd, image, count)
    generators = seeded(seed, count)
    encoded = sd.encode(image, generators) if encode else None
    noise = sd.noise(generators, image.shape[3], image.shape[2])
    noise = noise.to(sd.device, sd.walk_dtype(levels[0]))
    z = noise if encoded is None else encoded
    start = Start(z, noise, z, sampler, levels, generators)
    return start._replace(x=mixed(z, noise, levels[0]))


def remaining(levels: list[Level], strength: float) -> list[Level]:
    """The end of a walk: the last strength x S of its S steps, rounded down.

    At least the last level stays, from which no step is left. ValueError: no strength.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be 0 (keep the picture) to 1 (all anew), got {strength}.")
    steps = len(levels) - 1
    run = int(steps * strength)
    return levels[steps - run :]


def mixed(z: Tensor, noise: Tensor, level: Level) -> Tensor:
    """z as it looks at this noise level (Ho et al. 2020, eq. 4). z, noise: b 4 h w."""
    return level.signal_rate * z + level.noise_rate * noise


def as_tensor(sd: StableDiffusion, image: Picture, count: int) -> Tensor:
    """The picture as the encoder reads it, once per sample: b 3 h w in [-1, 1].

    ValueError: its size does not fit the model, or there are neither one nor `count` of them.
    """
    image = picture_tensor(image)
    if len(image) not in (1, count):
        wanted = f"give a PIL image, or 1 3 h w or {count} 3 h w in [-1, 1]"
        raise ValueError(f"the picture has shape {tuple(image.shape)}: {wanted}.")
    check_size(image.shape[3], image.shape[2], sd.config)
    return image if len(image) == count else repeat(image, "1 c h w -> b c h w", b=count)


def picture_tensor(image: Picture) -> Tensor:
    """1 3 h w or b 3 h w in [-1, 1]. ValueError: it is no picture, or leaves its range."""
    if isinstance(image, Image.Image):
        return from_pil(image)
    check_tensor(image, "picture", 3, -1, 1)
    if image.min() >= 0 and image.min() < image.max():
        warnings.warn(
            "No value of the picture is below 0, so that it is very pale: if its black is 0, give "
            "2 * image - 1.",
            stacklevel=2,
        )
    return image
