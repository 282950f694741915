"""Train the autoencoder, which turns a picture into a small latent, and back."""

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.config import VAEConfig
from minisd.training.loop import Draw, Hyperparameters, train
from minisd.vae import VAE

# draw_pictures(count, number): `count` pictures, b 3 h w in [-1, 1], the same for the same number
DrawPictures = Callable[[int, int], Tensor]

KL_WEIGHT = 5e-5  # with 1e-6, pictures are 0.5 dB better, but the decoder tolerates less noise
THIN_WEIGHT = 5  # while a decoder learns to draw thin lines
EQUAL_STEPS = 0.2  # the share of steps in the second part, where all errors count equally


def edges(image: Tensor) -> Tensor:
    """Differences of neighbouring pixels, b 2c h-1 w-1. A loss that compares them punishes blur."""
    across = image[..., :-1, 1:] - image[..., :-1, :-1]
    down = image[..., 1:, :-1] - image[..., :-1, :-1]
    return torch.cat([across, down], dim=1)


def vae_loss(vae: VAE, image: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Squared errors of pixels and edges, and the KL divergence from a unit Gaussian.

    Absolute errors allow blur, and got the colours right much later.
    image: b 3 h w in [-1, 1]    returns: the three terms
    """
    latent = vae.encode(image)
    noise = torch.randn(latent.mean.shape, generator=generator)
    drawn = vae.decode(latent.mean + latent.std * noise.to(latent.mean)).float()
    return {
        "pixels": 2 * F.mse_loss(drawn, image),
        "edges": 2 * F.mse_loss(edges(drawn), edges(image)),
        "kl": KL_WEIGHT * latent.kl().mean(),
    }


def train_vae(
    draw_pictures: DrawPictures,
    config: VAEConfig,
    folder: Path,
    settings: Hyperparameters,
    batch_size: int = 16,
    seed: int = 0,
) -> VAE:
    """Train a VAE, and return its EMA.

    Resumes from the folder. Raises ValueError like train().
    """
    torch.manual_seed(seed)
    vae = VAE(config)

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        return vae_loss(vae, draw_pictures(draw.batch_size, draw.number), draw.generator)

    return train(vae, loss_at, settings, folder, batch_size, seed, {"vae": asdict(config)})


def thinness(image: Tensor) -> Tensor:
    """How much each pixel differs from its surroundings, if it is part of a thin line or a dot.

    These are the top-hat transforms of Meyer (1979): an opening removes what is bright and less
    than 3 pixels wide, a closing what is dark.
    image: b c h w    returns: b 1 h w, the largest over the channels
    """

    def brightest(x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)

    def darkest(x: Tensor) -> Tensor:
        return -brightest(-x)

    bright = image - brightest(darkest(image))
    dark = darkest(brightest(image)) - image
    return bright.maximum(dark).amax(dim=1, keepdim=True)


def decoder_loss(vae: VAE, image: Tensor, thin_weight: float) -> dict[str, Tensor]:
    """The terms of vae_loss() that the decoder can lower, for the mode of each latent.

    A whisker has so few pixels that the decoder would rather leave it out, so errors in thin lines
    count more.
    image: b 3 h w in [-1, 1]    thin_weight: how much more, for each unit of thinness()
    """
    with torch.no_grad():
        z = vae.encode(image).mode()
    drawn = vae.decode(z).float()
    weight = 1 + thin_weight * thinness(image)
    error = drawn - image
    return {
        "pixels": 2 * (weight * error.square()).mean(),
        "edges": 2 * (weight[..., :-1, :-1] * edges(error).square()).mean(),
    }


def train_decoder(
    vae: VAE,
    draw_pictures: DrawPictures,
    folder: Path,
    settings: Hyperparameters,
    batch_size: int = 32,
    seed: int = 0,
) -> VAE:
    """Train only the decoder further: it draws the same latents better. Returns the VAE with it.

    The encoder stays as it is, so every U-Net that was trained on its latents can use the new
    decoder. Stability AI made vae-ft-mse from Stable Diffusion's autoencoder in this way (its model
    card). At first, errors in thin lines count more. Then all errors count equally, for a fifth as
    many steps at a quarter of the rate. This second part has its own folder inside, "alike".
    Resumes from the folders. Raises ValueError like train().
    """

    def train_part(vae: VAE, thin_weight: float, settings: Hyperparameters, folder: Path) -> VAE:
        vae = copy.deepcopy(vae)
        vae.decoder.requires_grad_(True)

        def loss_at(draw: Draw) -> dict[str, Tensor]:
            return decoder_loss(vae, draw_pictures(draw.batch_size, draw.number), thin_weight)

        about = {"vae": asdict(vae.config)}
        vae.decoder = train(vae.decoder, loss_at, settings, folder, batch_size, seed, about)
        return vae

    last = replace(settings, steps=max(1, int(EQUAL_STEPS * settings.steps)))
    last = replace(last, rate=settings.rate / 4, adam_rate=settings.adam_rate / 4)
    thin = train_part(vae, THIN_WEIGHT, settings, folder)
    return train_part(thin, 0, last, folder / "alike")


@torch.no_grad()
def measure_scale(vae: VAE, images: Tensor) -> float:
    """1 / the spread of the latents of these pictures. Scaled by it, latents have unit spread."""
    return 1 / vae.encode(images).mean.std().item()


@torch.no_grad()
def psnr(vae: VAE, images: Tensor) -> float:
    """How similar pictures are after encoding and decoding, in dB. images: b 3 h w in [-1, 1]"""
    return decibels(vae.decode(vae.encode(images).mode()).clamp(-1, 1), images)


def decibels(drawn: Tensor, real: Tensor) -> float:
    """10 log10(peak² / mean squared error), averaged over pictures. Both: b 3 h w in [-1, 1]"""
    error = (drawn - real).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(4 / error)).mean().item()  # the range of [-1, 1] is 2
