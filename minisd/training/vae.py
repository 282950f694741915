"""Train the autoencoder: small latents, from which the picture can be drawn again."""

import copy
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.config import MINI, ModelConfig
from minisd.training.data import Emoji, vae_batch
from minisd.training.loop import Recipe, fast_precision, generator_at, train
from minisd.training.parallel import share
from minisd.vae import VAE

KL_WEIGHT = 5e-5  # at 1e-6 pictures come back 0.5 dB better, but the decoder forgives less noise


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


def decoder_loss(vae: VAE, image: Tensor) -> dict[str, Tensor]:
    """The terms of vae_loss() that the decoder can lower, for the likeliest latent of each picture.

    image: b 3 h w in [-1, 1]
    """
    own = share(image)
    with torch.no_grad(), fast_precision():
        z = vae.encode(own).mode()
    with fast_precision():
        drawn = vae.decode(z).float()
    return {
        "pixels": 2 * F.mse_loss(drawn, own),
        "edges": 2 * F.mse_loss(edges(drawn), edges(own)),
    }


def train_decoder(
    vae: VAE,
    emoji: Emoji,
    folder: Path,
    recipe: Recipe,
    batch_size: int = 16,
    seed: int = 0,
    size: int = MINI.size,
) -> VAE:
    """Go on with the decoder alone: it draws the same latents better. Returns the VAE with it.

    The encoder stays what it is, so every U-Net that knows its latents can use the new decoder. In
    this way the files vae-ft-mse came from Stable Diffusion's autoencoder (their model card).
    Resumes from the folder, where it also keeps its log.
    """
    vae = copy.deepcopy(vae)
    vae.decoder.requires_grad_(True)

    def loss_at(step: int) -> dict[str, Tensor]:
        return decoder_loss(vae, vae_batch(emoji, size, batch_size, seed, step).images)

    about = {"vae": asdict(vae.config), "size": size, "batch_size": batch_size, "seed": seed}
    vae.decoder = train(vae.decoder, loss_at, recipe, folder, about)
    return vae


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
