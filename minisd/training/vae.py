"""Train the autoencoder. It turns a picture into a small latent, and a latent into a picture."""

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

# draw_pictures(count, number): `count` pictures, b 3 h w in [-1, 1]; number is a seed
DrawPictures = Callable[[int, int], Tensor]

# With 1e-6, pictures are 0.5 dB better. But then a little noise in a latent harms the picture more.
KL_WEIGHT = 5e-5
THIN_WEIGHT = 5  # thin_weight (see decoder_loss()) in the first part of train_decoder()
EQUAL_STEPS = 0.2  # steps in the second part of train_decoder() / steps in the first part


def edges(image: Tensor) -> Tensor:
    """The differences between neighbouring pixels: a loss on them makes outlines count more.

    image: b c h w    returns: b 2c h-1 w-1
    """
    across = image[..., :-1, 1:] - image[..., :-1, :-1]
    down = image[..., 1:, :-1] - image[..., :-1, :-1]
    return torch.cat([across, down], dim=1)


def vae_loss(vae: VAE, image: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The squared errors of pixels and edges, and the KL divergence from a unit Gaussian.

    In a trial with absolute errors, it took much longer until the colours were right.

    image: b 3 h w in [-1, 1]
    returns: a dictionary: name -> term of the loss
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
    """Train a VAE. Returns the VAE with its EMA weights.

    If the folder holds a run, the run is resumed. Raises the same errors as train().
    """
    torch.manual_seed(seed)
    vae = VAE(config)

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        return vae_loss(vae, draw_pictures(draw.batch_size, draw.number), draw.generator)

    return train(vae, loss_at, settings, folder, batch_size, seed, {"vae": asdict(config)})


def thinness(image: Tensor) -> Tensor:
    """Measure how much each pixel of a thin line or a dot differs from its surroundings.

    An opening removes bright lines and dots that are less than 3 pixels wide. A closing removes
    dark lines and dots of this width. The thinness of a pixel is the change that the opening or the
    closing makes (top-hat transforms, Meyer 1979).

    image: b c h w
    returns: b 1 h w, the largest change over the channels
    """

    def brightest(x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)

    def darkest(x: Tensor) -> Tensor:
        return -brightest(-x)

    bright = image - brightest(darkest(image))
    dark = darkest(brightest(image)) - image
    return bright.maximum(dark).amax(dim=1, keepdim=True)


def decoder_loss(vae: VAE, image: Tensor, thin_weight: float) -> dict[str, Tensor]:
    """The errors of pixels and edges, as in vae_loss(). The latents are modes, not samples.

    A thin line, such as a cat's whisker, has few pixels. So the decoder would often leave out the
    line. To avoid this, errors in thin lines count more.

    image: b 3 h w in [-1, 1]
    thin_weight: the weight of an error is 1 + thin_weight * thinness()
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
    """Train only the decoder further. It learns to make better pictures of the same latents.

    Returns the VAE with the new decoder.

    The encoder does not change, so every U-Net that was trained on the encoder's latents can use
    the new decoder. In this way, Stability AI made vae-ft-mse from Stable Diffusion's autoencoder
    (model card of vae-ft-mse).

    The training has two parts. In the first part, errors in thin lines count more. In the second
    part, all errors count equally. The second part has a fifth of the steps and a quarter of the
    learning rates of the first part. It has its own folder: "alike" inside `folder`. If the folders
    hold runs, the runs are resumed. Raises the same errors as train().
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
    """Measure the scale of the latents: 1 / (standard deviation of the latents of these pictures).

    If the latents are multiplied by the scale, they have a standard deviation of 1.
    """
    return 1 / vae.encode(images).mean.std().item()


@torch.no_grad()
def psnr(vae: VAE, images: Tensor) -> float:
    """Encode and decode pictures. Returns the PSNR of the results in dB.

    A larger PSNR means that the results are more similar to the original pictures.

    images: b 3 h w in [-1, 1]
    """
    return decibels(vae.decode(vae.encode(images).mode()).clamp(-1, 1), images)


def decibels(drawn: Tensor, real: Tensor) -> float:
    """The mean PSNR of the drawn pictures: 10 log10(peak² / mean squared error), in dB.

    drawn, real: b 3 h w in [-1, 1]
    """
    error = (drawn - real).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(4 / error)).mean().item()  # the peak is 2: from -1 to 1
