"""Put the parts of a model together, and turn prompts into pictures."""

from collections.abc import Callable, Iterator
from functools import partial
from math import isfinite
from numbers import Integral
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from minisd.checkpoints.finite import explain_damage
from minisd.clip import TextTransformer
from minisd.config import ModelConfig
from minisd.fast import faster
from minisd.files.pictures import check_size, check_tensor, to_pil
from minisd.guidance import Network, guided_denoiser
from minisd.prompt import emphasize, weighted_chunks
from minisd.samplers import Step
from minisd.sampling import from_noise, sampler_levels
from minisd.schedule import Denoiser, Level, Schedule
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE, DiagonalGaussian

SEEDS = range(-(2**63), 2**64)  # what torch.Generator.manual_seed takes
ROWS_AT_ONCE = 32  # chunks of a long prompt in one batch. More might not fit into the memory
LARGE_SIGMA = 20.0  # the largest sigma is 14.6 in SD's own schedule, and up to 4096 in others


class StableDiffusion:
    """Tokenizer, text transformer, U-Net, VAE and schedule of one model, ready to draw.

    The networks are frozen: no gradient is kept for their weights.

    guides: functions that change the denoiser of each new picture. They are called one after
        another. Each takes a denoiser and returns another denoiser
    engine: runs the networks instead of PyTorch (engine/). None: PyTorch runs them
    swaps: one handle for each autoencoder that was swapped in instead of the model's own. remove()
        of a handle puts the previous autoencoder back (adapters/vae_file.py)
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
        self.engine: Any = None
        self.swaps: list[object] = []

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    def sampling_dtype(self, level: Level) -> torch.dtype:
        """The dtype of x if sampling starts at this level.

        If sigma is very large, half precision would lose x0 in the sum x0 + sigma eps. So x then
        has at least float32, even if the model has half precision.
        """
        wide = torch.promote_types(self.dtype, torch.float32)
        return wide if level.sigma > LARGE_SIGMA else self.dtype

    def runner(self, network: nn.Module) -> Callable[..., Any]:
        """A function that computes what the network computes, for one picture.

        It is a faster copy of the network (fast.py), or the engine runs the network.
        """
        return faster(network) if self.engine is None else partial(self.engine.run, network)

    def embed(self, prompts: str | list[str], clip_skip: int = 0, extended: bool = False) -> Tensor:
        """Turn prompts into the context that cross-attention reads.

        clip_skip: the number of layers to leave out at the end of the text transformer
        extended: whether to read "(word:1.2)" as a weight, and to split long prompts into chunks of
            75 tokens. Each chunk goes through the transformer alone
        returns: b 77 context_dim. If extended: b 77*chunks context_dim

        The longest prompt sets the number of chunks. Shorter prompts get empty chunks at their end.
        So the picture of a short prompt changes if a long prompt is drawn together with it.

        Raises ValueError if clip_skip is out of range, or if a number of the context is not finite.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        layers = self.config.text.layers
        if not 0 <= clip_skip <= layers:
            raise ValueError(f"clip_skip must be 0 to {layers}, got {clip_skip}.")
        if extended:
            context = self._embed_extended(prompts, clip_skip)
        else:
            tokens = self.tokenizer(prompts).to(self.device)
            context = self.runner(self.text_encoder)(tokens, clip_skip)
        self.check_finite(context, "text transformer")
        return context

    def _embed_extended(self, prompts: list[str], clip_skip: int) -> Tensor:
        rows = [weighted_chunks(self.tokenizer, prompt) for prompt in prompts]
        chunks = max(len(tokens) for tokens, _ in rows)
        contexts, encode = [], self.runner(self.text_encoder)
        for tokens, weights in rows:
            missing = chunks - len(tokens)  # shorter prompts end in empty chunks
            tokens = torch.cat([tokens, self.tokenizer([""] * missing)]) if missing else tokens
            weights = torch.cat([weights, torch.ones(missing, weights.shape[1])])
            batches = tokens.to(self.device).split(ROWS_AT_ONCE)
            context = torch.cat([encode(batch, clip_skip) for batch in batches])
            context = rearrange(context, "chunk m c -> 1 (chunk m) c")
            contexts.append(emphasize(context, rearrange(weights, "chunk m -> 1 (chunk m)")))
        return torch.cat(contexts)

    def encode(
        self, image: Tensor, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> Tensor:
        """Encode pictures as latents with a standard deviation of about 1.

        image: b 3 h w in [-1, 1]    returns: b 4 h/8 w/8
        generator: one generator, or a list with one for each sample. The latents are drawn at
            random from the encoder's Gaussian. None: the latents are the mean of the Gaussian

        Raises ValueError if the image has another shape or range, or if the latent is not finite.
        """
        check_tensor(image, "picture", 3, -1, 1)
        moments = self.runner(self.vae.encoder)(image.to(self.vae.encoder.conv_in.weight))
        gaussian = DiagonalGaussian(moments)
        z = gaussian.mode() if generator is None else gaussian.sample(generator)
        self.check_finite(z, "autoencoder's encoder")
        return (z * self.vae.config.scale).to(self.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents as pictures.

        latent: b 4 h w    returns: b 3 8h 8w, about [-1, 1]

        Raises ValueError if a number of the latent or of the image is not finite. The message names
        the part of the model that failed.
        """
        self.check_finite(latent, "U-Net")
        z = latent / self.vae.config.scale
        image = self.runner(self.vae.decoder)(z.to(self.vae.decoder.conv_in.weight))
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
        """Yield the steps from noise to a latent, one by one. The arguments are those of txt2img.

        Each Step holds x (b 4 h w) and the network's prediction. decode() turns x or prediction.x0
        into pictures.

        Raises ValueError if a setting is out of range. Also raises what embed() raises.
        """
        prompts = list_prompts(prompt)
        sampler = self.config.sampler if sampler is None else sampler
        self.check_text_only()
        levels = sampler_levels(sampler, self.schedule, steps, spacing)
        generators = make_generators(seed, len(prompts))
        if latent is None:
            latent = self.noise(generators, width, height)
        else:
            self._check_latent(latent, len(prompts), width, height)
        denoise = self.denoiser(
            prompts, negative_prompt, cfg_scale, clip_skip=clip_skip, extended=extended
        )
        x = latent.to(self.device, self.sampling_dtype(levels[0]))
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
        """Make the function that a sampler calls: the U-Net, guided by these prompts.

        network: a network to use instead of the U-Net. Inpainting, for example, gives a network
            that also passes the mask to the U-Net (tasks/). None: the U-Net
        The other arguments are those of txt2img.

        Raises ValueError if cfg_scale is not finite. Also raises what embed() raises.
        """
        cfg_scale = self.config.cfg_scale if cfg_scale is None else cfg_scale
        if not isfinite(cfg_scale):
            raise ValueError(f"cfg_scale must be a finite number, got {cfg_scale}.")
        contexts = self.embed([negative_prompt] * len(prompts) + prompts, clip_skip, extended)
        uncond, cond = rearrange(contexts, "(half b) m c -> half b m c", half=2)
        objective = self.config.schedule.prediction
        network = network or self.runner(self.unet)
        denoise = guided_denoiser(
            network, objective, context=cond, uncond_context=uncond, cfg_scale=cfg_scale
        )
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

        negative_prompt: what the picture should not show
        steps: the number of steps, 1 to 1000
        cfg_scale: the strength of the prompt. 0 ignores the prompt. None: the config's value
        sampler: a key of samplers.SAMPLERS. None: the config's sampler
        seed: one number, or a list of numbers. Sample i uses seed + i, or the i-th number of the
            list
        width, height: the size in pixels, multiples of 8. None: the config's size
        latent: the noise to start from (variance 1), b 4 h/8 w/8. None: noise drawn from the seed
        progress: whether to show a progress bar
        spacing: how to space the noise levels, a key of sampling.SPACINGS. None: the usual spacing
            of the sampler (see sampling.sampler_levels)
        clip_skip, extended: see embed()

        Raises ValueError if a setting is out of range. Nothing is computed in this case. Also
        raises ValueError if a number of the context, the latent or the picture is not finite.
        """
        drawing = self.txt2img_steps(
            prompt,
            negative_prompt=negative_prompt,
            steps=steps,
            cfg_scale=cfg_scale,
            sampler=sampler,
            seed=seed,
            width=width,
            height=height,
            latent=latent,
            spacing=spacing,
            clip_skip=clip_skip,
            extended=extended,
        )
        for step in tqdm(drawing, total=steps, disable=not progress):
            x = step.x
        return pictures_for(prompt, self.decode(x))

    def noise(
        self, generators: list[torch.Generator], width: int | None, height: int | None
    ) -> Tensor:
        """Draw unit noise (variance 1) on the CPU, one sample at a time. returns: b 4 h/8 w/8"""
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
            size = f"{wide} x {high} pixels, and its batch size is {len(latent)}"
            way = f"Leave out width and height, or make them fit the latent. Give {unit_noise}"
            raise ValueError(f"the latent is for {size}. {way}.")

    def check_finite(self, tensor: Tensor, part: str) -> None:
        """Raise ValueError if a number in the tensor is NaN or infinite.

        If a weight is NaN or infinite, the message names it. The loader does not look for such
        weights, because it would have to read the whole file.

        part: the name of the part that made the tensor, for the error
        """
        if not tensor.isfinite().all():
            networks = {"text_encoder": self.text_encoder, "unet": self.unet, "vae": self.vae}
            what = f"the {part} made numbers that are not finite, so there is no picture"
            raise ValueError(f"{what}. {explain_damage(networks, self.dtype)}")

    def check_text_only(self) -> None:
        """Raise ValueError if the U-Net reads more channels than a latent has."""
        expected, given = self.config.unet.in_channels, self.config.vae.latent_channels
        if expected != given:
            channels = f"{expected} channels, {expected - given} more than a latent has"
            way = "It needs a picture as well as the prompt: use inpaint or depth2img"
            raise ValueError(f"{self.config.name} reads {channels}. {way}.")


def list_prompts(prompt: str | list[str]) -> list[str]:
    """Return the prompts as a list. Raises ValueError if there is no prompt."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("there is no prompt. Give one prompt, or a list of prompts.")
    return prompts


def check_seeds(seed: int | list[int], count: int) -> list[int]:
    """Return one seed for each of `count` samples: seed, seed + 1, … or the seeds of the list.

    Raises ValueError if a seed is not a whole number of at most 64 bits, or if the list does not
    have `count` seeds.
    """
    seed = seed.tolist() if isinstance(seed, np.generic | np.ndarray | Tensor) else seed
    single = not isinstance(seed, list | tuple | range)
    seeds: list[int] = [seed] if single else list(seed)
    if not all(isinstance(each, Integral) and not isinstance(each, bool) for each in seeds):
        raise ValueError(f"a seed must be a whole number, got {seed!r}.")
    seeds = [int(seeds[0]) + i for i in range(count)] if single else [int(each) for each in seeds]
    if len(seeds) != count:
        raise ValueError(f"{count} prompts need {count} seeds, got {len(seeds)}. Give one each.")
    if outside := [each for each in seeds if each not in SEEDS]:
        where = f"is not in {SEEDS[0]} … {SEEDS[-1]}"
        raise ValueError(f"the seed {outside[0]} {where}. Choose another. Sample i uses seed + i.")
    return seeds


def make_generators(seed: int | list[int], count: int) -> list[torch.Generator]:
    """Create one random generator for each sample, with the seeds that check_seeds() returns."""
    return [torch.Generator().manual_seed(each) for each in check_seeds(seed, count)]


def pictures_for(prompt: str | list[str], images: Tensor) -> Image.Image | list[Image.Image]:
    """Convert images to PIL images. Returns one image if `prompt` is a string, otherwise a list.

    images: b 3 h w in [-1, 1]
    """
    pictures = to_pil(images)
    return pictures[0] if isinstance(prompt, str) else pictures
