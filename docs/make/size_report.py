"""Why the mini draws 64 pixels and not 96 or 128: the same minutes of training at each size.

minisd train sizes --minutes 6 writes the table into docs/mini.md.
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docs.make.mini_report import markdown, refill, refilled
from minisd.config import MINI, ModelConfig
from minisd.mini.emoji import Emoji, batch
from minisd.mini.evaluate import fastest, seconds
from minisd.pipeline import StableDiffusion
from minisd.schedule import Schedule
from minisd.tokenizer import Tokenizer
from minisd.training.diffusion import Conditioned, noise_loss
from minisd.training.loop import Recipe, for_minutes
from minisd.training.parallel import place
from minisd.training.vae import decibels, train_vae
from minisd.vae import VAE

SIZES = (64, 96, 128)
COLUMNS = "pixels | latent | steps of 16 | dB | dB at 64 pixels | U-Net, s a step | s a picture"


@torch.no_grad()
def round_trips(vae: VAE, real: Tensor) -> tuple[float, float]:
    """How faithfully pictures come back, at their own size and as thumbnails of 64 pixels."""
    drawn = vae.decode(vae.encode(real).mode()).clamp(-1, 1)
    small = [F.interpolate(each, (SIZES[0], SIZES[0]), mode="area") for each in (drawn, real)]
    return decibels(drawn, real), decibels(*small)


def seconds_to_learn(config: ModelConfig, network: Conditioned, batch_size: int = 32) -> float:
    """Of one training step of U-Net and text transformer, on latents of this size."""
    side = config.size // config.vae.factor
    schedule, generator = Schedule(config.schedule), torch.Generator().manual_seed(0)
    x0 = torch.randn(batch_size, config.vae.latent_channels, side, side, generator=generator)
    tokens = torch.zeros(batch_size, config.text.max_length, dtype=torch.long)
    return fastest(lambda: noise_loss(network, schedule, x0, tokens, generator).backward())


def measured(
    size: int, emoji: Emoji, tokenizer: Tokenizer, minutes: float, folder: Path, recipe: Recipe
) -> list[str]:
    """One row of the table. The U-Net is not trained: its work does not depend on its weights."""
    config = replace(MINI, size=size)

    def train_in(recipe: Recipe, folder: Path) -> nn.Module:
        return train_vae(emoji, folder, recipe, config=config)

    fitted = for_minutes(recipe, minutes, folder, train_in)
    vae = train_in(fitted, folder).eval()
    real = batch(emoji, size, 64, seed=1, step=0, split="heldout").images
    own, thumbnail = round_trips(vae, real)
    network = Conditioned(config)
    learning = seconds_to_learn(config, network)
    sd = StableDiffusion(config, tokenizer, network.text_encoder, network.unet, vae)
    side = size // config.vae.factor
    figures = [f"{own:.1f}", f"{thumbnail:.1f}", f"{learning:.2f}", f"{seconds(sd, 1):.2f}"]
    return [str(size), f"4 x {side} x {side}", f"{fitted.steps:,}", *figures]


def write(
    page: Path, tokenizer: Tokenizer, minutes: float, folder: Path, recipe: Recipe
) -> list[list[str]]:
    """Measure every size, and put the table into the page. Returns its rows."""
    refilled(page.read_text(encoding="utf-8"), {"sizes": ""})  # before the work: is there a place?
    emoji, rows = Emoji.load(), []
    for size in SIZES:
        rows.append(measured(size, emoji, tokenizer, minutes, folder / str(size), recipe))
    made = {"sizes": f"{minutes:g} minutes each.\n\n{markdown(COLUMNS, rows)}"}
    if place()[0] == 0:
        refill(page, made)
    return rows
