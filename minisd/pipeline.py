"""The parts put together: a prompt becomes a picture."""

import warnings
from collections.abc import Callable, Iterator
from math import isfinite
from numbers import Integral

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minisd.clip import TextTransformer
from minisd.config import ModelConfig
from minisd.files.pictures import check_tensor, colours
from minisd.guidance import Network, guided_denoiser
from minisd.prompt import emphasize, weighted_chunks
from minisd.samplers import Step
from minisd.sampling import from_noise, sampler_levels
from minisd.schedule import Denoiser, Level, Schedule
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE

SEEDS = range(-(2**63), 2**64)  # what torch.Generator.manual_seed takes
ROWS_AT_ONCE = 32  # of a long prompt: all of them might not fit into the memory
LOUD = 20.0  # sigma: SD's own schedule ends at 14.6, others as high as 4096
FAR_LARGER = 4  # times the pixels: at twice each side, a network draws its subject twice and more


class StableDiffusion:
    """Tokenizer, text transformer, U-Net, VAE and schedule of one model, ready to draw.

    The networks are frozen: no gradient is kept for their weights.

    guides: each turns the denoiser of a walk that begins into another one, in this order
    swaps: the autoencoders that are on in place of the model's own (adapters/vae_file.py)
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        text_encoder: TextTransformer,
        unet: UNet,
        vae: VAE,
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.schedule = Schedule(config.schedule)
        self.guides: list[Callable[[Denoiser], Denoiser]] = []
        self.swaps: list[object] = []

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    def walk_dtype(self, level: Level) -> torch.dtype:
        """Of x on a walk from this level. Half precision loses x0 below a very loud sigma eps."""
        wide = torch.promote_types(self.dtype, torch.float32)
        return wide if level.sigma > LOUD else self.dtype

    def embed(self, prompts: str | list[str], clip_skip: int = 0, extended: bool = False) -> Tensor:
        """What cross-attention reads: b 77 context_dim.

        clip_skip: how many of the text transformer's last layers to leave out
        extended: read "(word:1.2)" as a weight, and prompts of any length in chunks of 75 tokens,
            each through the transformer by itself: b 77*chunks context_dim. The longest prompt
            sets the number of chunks; a shorter one beside it ends in empty ones, and draws
            another picture than alone.
        ValueError: clip_skip is out of its range, or what comes out is not finite.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        layers = self.config.text.layers
        if not 0 <= clip_skip <= layers:
            raise ValueError(f"clip_skip must be 0 to {layers}, got {clip_skip}.")
        if extended:
            context = self._embed_extended(prompts, clip_skip)
        else:
            context = self.text_encoder(self.tokenizer(prompts).to(self.device), clip_skip)
        self.check_finite(context, "text transformer")
        return context

    def _embed_extended(self, prompts: list[str], clip_skip: int) -> Tensor:
        rows = [weighted_chunks(self.tokenizer, prompt) for prompt in prompts]
        chunks = max(len(tokens) for tokens, _ in rows)
        contexts = []
        for tokens, weights in rows:
            missing = chunks - len(tokens)  # shorter prompts end in empty chunks
            tokens = torch.cat([tokens, self.tokenizer([""] * missing)]) if missing else tokens
            weights = torch.cat([weights, torch.ones(missing, weights.shape[1])])
            some_at_once = tokens.to(self.device).split(ROWS_AT_ONCE)
            context = torch.cat([self.text_encoder(some, clip_skip) for some in some_at_once])
            context = rearrange(context, "chunk m c -> 1 (chunk m) c")
            contexts.append(emphasize(context, rearrange(weights, "chunk m -> 1 (chunk m)")))
        return torch.cat(contexts)

    def encode(
        self, image: Tensor, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> Tensor:
        """image: b 3 h w in [-1, 1]    returns: latent, b 4 h/8 w/8, about unit spread.

        generator: to draw from the encoder's Gaussian (or one per sample); None takes its mode.
        ValueError: the image has another shape or leaves its range, or the latent is not finite.
        """
        check_tensor(image, "picture", 3, -1, 1)
        gaussian = self.vae.encode(image.to(self.vae.encoder.conv_in.weight))
        z = gaussian.mode() if generator is None else gaussian.sample(generator)
        self.check_finite(z, "autoencoder's encoder")
        return (z * self.vae.config.scale).to(self.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """latent: b 4 h w    returns: image, b 3 8h 8w, about [-1, 1].

        ValueError: the latent or the image is not finite. It names the part that went wrong first.
        """
        self.check_finite(latent, "U-Net")
        z = latent / self.vae.config.scale
        image = self.vae.decode(z.to(self.vae.decoder.conv_in.weight))
        self.check_finite(image, "autoencoder's decoder")
        return image

    def txt2img_steps(
        self,
        prompt: str | list[str],
        negative_prompt: str = "",
        steps: int = 30,
        cfg_scale: float | None = None,
        sampler: str | None = None,
        seed: int | list[int] = 0,
        width: int | None = None,
        height: int | None = None,
        latent: Tensor | None = None,
        spacing: str | None = None,
        clip_skip: int = 0,
        extended: bool = False,
    ) -> Iterator[Step]:
        """The walk from noise to a latent, step by step. Arguments as txt2img.

        Each Step holds the state x (b 4 h w) and what the network made of it; decode either.
        """
        prompts = as_list(prompt)
        sampler = self.config.sampler if sampler is None else sampler
        self.check_text_only()
        levels = sampler_levels(sampler, self.schedule, steps, spacing)
        generators = seeded(seed, len(prompts))
        if latent is None:
            latent = self.noise(generators, width, height)
        else:
            self._check_latent(latent, len(prompts), width, height)
        denoise = self.denoiser(prompts, negative_prompt, cfg_scale, clip_skip, extended)
        x = latent.to(self.device, self.walk_dtype(levels[0]))
        return from_noise(sampler, denoise, x, levels, generators)

    def denoiser(
        self,
        prompts: list[str],
        negative_prompt: str = "",
        cfg_scale: float | None = None,
        clip_skip: int = 0,
        extended: bool = False,
        network: Network | None = None,
    ) -> Denoiser:
        """What a sampler calls: the U-Net, steered by these prompts. Arguments as txt2img.

        network: in place of the U-Net, one that shows it more than the latent (tasks/)
        ValueError: the scale is no finite number.
        """
        cfg_scale = self.config.cfg_scale if cfg_scale is None else cfg_scale
        if not isfinite(cfg_scale):
            raise ValueError(f"cfg_scale must be a finite number, got {cfg_scale}.")
        contexts = self.embed([negative_prompt] * len(prompts) + prompts, clip_skip, extended)
        uncond, cond = rearrange(contexts, "(half b) m c -> half b m c", half=2)
        objective = self.config.schedule.prediction
        denoise = guided_denoiser(network or self.unet, objective, cond, uncond, cfg_scale)
        for guide in tuple(self.guides):
            denoise = guide(denoise)
        return denoise

    def txt2img(
        self,
        prompt: str | list[str],
        negative_prompt: str = "",
        steps: int = 30,
        cfg_scale: float | None = None,
        sampler: str | None = None,
        seed: int | list[int] = 0,
        width: int | None = None,
        height: int | None = None,
        latent: Tensor | None = None,
        progress: bool = False,
        spacing: str | None = None,
        clip_skip: int = 0,
        extended: bool = False,
    ) -> Image.Image | list[Image.Image]:
        """Draw a picture of the prompt, or a list of pictures for a list of prompts.

        negative_prompt: what to steer away from
        steps: 1 to 1000
        cfg_scale: how strongly the prompt steers; 0 ignores it. None: the config's
        sampler: a name from samplers.SAMPLERS. None: the config's
        seed: sample i uses seed + i, or the i-th of a list
        width, height: in pixels, multiples of 8. None: the config's size
        latent: unit starting noise, b 4 h/8 w/8, in place of the seed's
        spacing: of the noise levels, from sampling.SPACINGS. None: the sampler's reference's
        clip_skip, extended: as embed

        Raises ValueError for a setting out of its range, before anything is computed.
        """
        settings = (negative_prompt, steps, cfg_scale, sampler, seed, width, height, latent)
        walk = self.txt2img_steps(prompt, *settings, spacing, clip_skip, extended)
        for step in tqdm(walk, total=steps, disable=not progress):
            latent = step.x
        return as_asked(prompt, self.decode(latent))

    def noise(
        self, generators: list[torch.Generator], width: int | None, height: int | None
    ) -> Tensor:
        """Unit noise for each sample, drawn one by one on the CPU: b 4 h/8 w/8."""
        vae = self.config.vae
        height = self.config.size if height is None else height
        width = self.config.size if width is None else width
        check_size(width, height, self.config)
        shape = (1, vae.latent_channels, height // vae.factor, width // vae.factor)
        return torch.cat([torch.randn(shape, generator=each) for each in generators])

    def _check_latent(
        self, latent: Tensor, count: int, width: int | None, height: int | None
    ) -> None:
        channels, factor = self.config.vae.latent_channels, self.config.vae.factor
        unit_noise = f"unit noise, {count} {channels} h w, one for each prompt"
        check_tensor(latent, "latent", channels, give=unit_noise)
        wide, high = latent.shape[3] * factor, latent.shape[2] * factor
        check_size(wide, high, self.config)
        if (len(latent), wide, high) != (count, width or wide, height or high):
            size = f"{wide} x {high} pixels, {len(latent)} times"
            way = f"leave width and height out, or give {unit_noise}, and of their size"
            raise ValueError(f"the latent is for {size}: {way}.")

    def check_finite(self, tensor: Tensor, part: str) -> None:
        """Raise ValueError if a number is NaN or infinite. part: what in the model made it"""
        if not tensor.isfinite().all():
            half = torch.finfo(self.dtype).bits < 32
            way = "lower cfg_scale, or check the adapters and the weights"
            way = "load the model with dtype=torch.float32" if half else way
            what = f"the {part} made numbers that are not finite"
            raise ValueError(f"{what}, so there is no picture: {way}.")

    def check_text_only(self) -> None:
        """Raise ValueError unless the U-Net reads a latent and nothing beside it."""
        expected, given = self.config.unet.in_channels, self.config.vae.latent_channels
        if expected != given:
            channels = f"{expected} channels, {expected - given} more than a latent has"
            way = "it needs a picture beside the prompt and cannot draw from text alone"
            raise ValueError(f"{self.config.name} reads {channels}: {way}.")


def as_list(prompt: str | list[str]) -> list[str]:
    """The prompts, one or several. ValueError: there is none."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("there is no prompt: give one or more.")
    return prompts


def check_size(width: int, height: int, config: ModelConfig) -> None:
    """Raise ValueError, with the nearest sizes that fit, unless a latent has exactly this size.

    Warns of one with FAR_LARGER times the pixels that the model was made for, or more.
    """
    multiple = size_step(config)
    nearest = []
    for side, length in (("width", width), ("height", height)):
        if not isinstance(length, Integral) or length < multiple or length % multiple:
            below = int(max(0, length) // multiple * multiple)
            fits = [str(near) for near in (below, below + multiple) if near > 0]
            nearest.append(f"{side} {' or '.join(fits)}")
    if nearest:
        size = f"a picture of {width} x {height} pixels does not fit {config.name}"
        rule = f"width and height must be multiples of {multiple}"
        raise ValueError(f"{size}: {rule}. The nearest that fit: {', '.join(nearest)}.")
    times = width * height / config.size**2
    if times >= FAR_LARGER:
        usual = f"{times:.0f} times the {config.size} x {config.size} that {config.name} learned"
        effect = "it takes long, and may show things several times"
        warnings.warn(f"a picture of {width} x {height} pixels is {usual}: {effect}.", stacklevel=1)


def size_step(config: ModelConfig) -> int:
    """Width and height are multiples of this many pixels: 8, as in diffusers for every model."""
    return max(8, config.vae.factor)


def check_seeds(seed: int | list[int], count: int) -> list[int]:
    """The seeds of `count` samples: seed, seed + 1, … or those of a list, as integers.

    ValueError: one is no whole number of 64 bits, or there are more or fewer than `count`.
    """
    seed = seed.tolist() if hasattr(seed, "tolist") else seed  # of NumPy or torch
    single = not isinstance(seed, list | tuple | range)
    seeds = [seed] if single else seed
    if not all(isinstance(each, Integral) and not isinstance(each, bool) for each in seeds):
        raise ValueError(f"a seed must be a whole number, got {seed!r}.")
    seeds = [int(seed) + i for i in range(count)] if single else [int(each) for each in seeds]
    if len(seeds) != count:
        raise ValueError(f"{count} prompts need {count} seeds, got {len(seeds)}.")
    if outside := [each for each in seeds if each not in SEEDS]:
        where = f"is not in {SEEDS[0]} … {SEEDS[-1]}"
        raise ValueError(f"the seed {outside[0]} {where}: choose another. Sample i uses seed + i.")
    return seeds


def seeded(seed: int | list[int], count: int) -> list[torch.Generator]:
    """One generator per sample: seed, seed + 1, … or the seeds of a list."""
    return [torch.Generator().manual_seed(each) for each in check_seeds(seed, count)]


def to_pil(images: Tensor) -> list[Image.Image]:
    """images: b 3 h w, clipped to [-1, 1] and rounded to the nearest of 256 shades.

    ValueError: not every number is finite, so there is no picture to show.
    """
    if not images.isfinite().all():
        why = "half precision overflowed or the weights are broken"
        raise ValueError(f"the picture is not finite: {why}; load it with dtype=torch.float32.")
    shades = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    rows = rearrange(shades, "b c h w -> b h w c").cpu().numpy()
    return [Image.fromarray(row) for row in rows]


def as_asked(prompt: str | list[str], images: Tensor) -> Image.Image | list[Image.Image]:
    """The picture of a prompt, or the list of pictures of a list. images: as to_pil reads them."""
    return to_pil(images)[0] if isinstance(prompt, str) else to_pil(images)


def from_pil(image: Image.Image, what: str = "picture") -> Tensor:
    """A picture as the VAE reads it, upright: 1 3 h w in [-1, 1].

    what: its name in a message. ValueError: it is transparent in places or of unknown range.
    """
    shades = torch.from_numpy(np.array(colours(image, what)))
    return rearrange(shades, "h w c -> 1 c h w") / 127.5 - 1
