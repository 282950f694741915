"""Train the autoencoder: small latents, from which the picture can be drawn again."""

import copy
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.config import MINI, ModelConfig
from minisd.mini.emoji import FINE_THINGS, Emoji, vae_batch
from minisd.training.loop import Recipe, fast_precision, generator_at, train
from minisd.training.parallel import share
from minisd.vae import VAE

KL_WEIGHT = 5e-5  # at 1e-6 pictures come back 0.5 dB better, but the decoder forgives less noise
THIN_WEIGHT = 5  # while a decoder learns to draw thin lines
ALIKE = 0.2  # how many steps count all errors alike after that, for each step before


def edges(image: Tensor) -> Tensor:
    """Differences of neighbours, b 2c h-1 w-1. Comparing them as well punishes blur."""
    across = image[..., :-1, 1:] - image[..., :-1, :-1]
    down = image[..., 1:, :-1] - image[..., :-1, :-1]
    return torch.cat([across, down], dim=1)


def vae_loss(vae: VAE, image: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """image: b 3 h w in [-1, 1]. The terms: pixels, edges and the KL.

    Squared errors: absolute ones are content with blur, and got the colours right much later.
    Of several processes each sees its share of the pictures, and of the noise drawn for them all.
    """
    own = share(image)
    with fast_precision():
        latent = vae.encode(own)
        noise = torch.randn(len(image), *latent.mean.shape[1:], generator=generator)
        drawn = vae.decode(latent.mean + latent.std * share(noise).to(latent.mean)).float()
    return {
        "pixels": 2 * F.mse_loss(drawn, own),
        "edges": 2 * F.mse_loss(edges(drawn), edges(own)),
        "kl": KL_WEIGHT * latent.kl().mean(),
    }


def train_vae(
    emoji: Emoji,
    folder: Path,
    recipe: Recipe,
    batch_size: int = 16,
    seed: int = 0,
    config: ModelConfig = MINI,
) -> VAE:
    """Returns the averaged VAE. Resumes from the folder, where it also keeps its log."""
    torch.manual_seed(seed)
    vae = VAE(config.vae)

    def loss_at(step: int) -> dict[str, Tensor]:
        pictures = vae_batch(emoji, config.size, batch_size, seed, step)
        return vae_loss(vae, pictures.images, generator_at(seed, step))

    about = {"vae": asdict(config.vae), "size": config.size}
    about |= {"batch_size": batch_size, "seed": seed}
    return train(vae, loss_at, recipe, folder, about)


def thinness(image: Tensor) -> Tensor:
    """How far each pixel is from what lies around it, where it is part of a thin line or a dot.

    image: b c h w. Returns b 1 h w, the largest of the channels. These are the top-hat transforms
    of Meyer (1979): an opening removes what is bright and under 3 pixels wide, a closing what is
    dark.
    """

    def brightest(x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)

    def darkest(x: Tensor) -> Tensor:
        return -brightest(-x)

    bright = image - brightest(darkest(image))
    dark = darkest(brightest(image)) - image
    return bright.maximum(dark).amax(dim=1, keepdim=True)


def decoder_loss(vae: VAE, image: Tensor, thin_weight: float) -> dict[str, Tensor]:
    """The terms of vae_loss() that the decoder can lower, for the likeliest latent of each picture.

    image: b 3 h w in [-1, 1]. thin_weight: how much more an error counts for each unit of
    thinness(). A whisker has so few pixels that the decoder would rather leave it out.
    """
    own = share(image)
    with torch.no_grad(), fast_precision():
        z = vae.encode(own).mode()
    with fast_precision():
        drawn = vae.decode(z).float()
    weight = 1 + thin_weight * thinness(own)
    error = drawn - own
    return {
        "pixels": 2 * (weight * error.square()).mean(),
        "edges": 2 * (weight[..., :-1, :-1] * edges(error).square()).mean(),
    }


def train_decoder(
    vae: VAE,
    emoji: Emoji,
    folder: Path,
    recipe: Recipe,
    batch_size: int = 32,
    seed: int = 0,
    size: int = MINI.size,
) -> VAE:
    """Go on with the decoder alone: it draws the same latents better. Returns the VAE with it.

    The encoder stays what it is, so every U-Net that knows its latents can use the new decoder. In
    this way the files vae-ft-mse came from Stable Diffusion's autoencoder; as every second picture
    there was one of people, for the sake of faces (their model card), so here every second one is
    of FINE_THINGS, for the sake of whiskers. Errors in thin lines count more at first; then, for a
    fifth as many steps at a quarter of the rate, all errors alike. Resumes from the folder, where
    it also keeps its log, and the last part's in "alike".
    """
    kinds = emoji, emoji.only(FINE_THINGS)
    about = {"vae": asdict(vae.config), "size": size, "batch_size": batch_size, "seed": seed}

    def go_on(vae: VAE, thin_weight: float, recipe: Recipe, folder: Path) -> VAE:
        vae = copy.deepcopy(vae)
        vae.decoder.requires_grad_(True)

        def loss_at(step: int) -> dict[str, Tensor]:
            halves = [vae_batch(kind, size, batch_size // 2, seed, step).images for kind in kinds]
            return decoder_loss(vae, torch.cat(halves), thin_weight)

        vae.decoder = train(vae.decoder, loss_at, recipe, folder, about)
        return vae

    last = replace(recipe, steps=max(1, int(ALIKE * recipe.steps)))
    last = replace(last, rate=recipe.rate / 4, adam_rate=recipe.adam_rate / 4)
    return go_on(go_on(vae, THIN_WEIGHT, recipe, folder), 0, last, folder / "alike")


@torch.no_grad()
def measure_scale(vae: VAE, images: Tensor) -> float:
    """1 / spread of the latents of these pictures: multiplied by it, latents have unit spread."""
    return 1 / vae.encode(images).mean.std().item()


@torch.no_grad()
def psnr(vae: VAE, images: Tensor) -> float:
    """How faithfully pictures come back, in dB."""
    return decibels(vae.decode(vae.encode(images).mode()).clamp(-1, 1), images)


def decibels(drawn: Tensor, real: Tensor) -> float:
    """10 log10(peak² / mean squared error), the mean over pictures. b 3 h w in [-1, 1]"""
    error = (drawn - real).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(4 / error)).mean().item()  # the peak-to-peak range of [-1, 1] is 2
