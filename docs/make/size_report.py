"""Why the mini draws 64 pixels and not 96 or 128: train each size for the same time and compare.

python -m docs.make.size_report --minutes 6 writes the table into docs/mini.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from docs.make.mini_report import fill_parts, markdown, refill_page
from minisd.config import MINI, ModelConfig
from minisd.mini.emoji import Emoji
from minisd.mini.evaluate import fastest_of_three, seconds_per_picture
from minisd.mini.job import mini_tokenizer
from minisd.mini.minutes import fit_to_minutes
from minisd.mini.recipes import RECIPES
from minisd.mini.scenes import batch, vae_batch
from minisd.pipeline import StableDiffusion
from minisd.schedule import Schedule
from minisd.tokenizer import Tokenizer
from minisd.training.diffusion import TextAndUNet, noise_loss
from minisd.training.loop import Hyperparameters, fast_precision
from minisd.training.vae import decibels, train_vae
from minisd.vae import VAE

SIZES = (64, 96, 128)
COLUMNS = "pixels | latent | steps of 16 | dB | dB at 64 pixels | U-Net, s per step | s per picture"


@torch.no_grad()
def round_trips(vae: VAE, real: Tensor) -> tuple[float, float]:
    """How similar pictures are after encoding and decoding, in dB, at their own size and at 64."""
    drawn = vae.decode(vae.encode(real).mode()).clamp(-1, 1)
    small = [F.interpolate(each, (SIZES[0], SIZES[0]), mode="area") for each in (drawn, real)]
    return decibels(drawn, real), decibels(*small)


def seconds_per_step(config: ModelConfig, network: TextAndUNet, batch_size: int = 32) -> float:
    """How long a training step of U-Net and text transformer takes, with latents of this size."""
    side = config.size // config.vae.factor
    schedule, generator = Schedule(config.schedule), torch.Generator().manual_seed(0)
    x0 = torch.randn(batch_size, config.vae.latent_channels, side, side, generator=generator)
    tokens = torch.zeros(batch_size, config.text.max_length, dtype=torch.long)

    def step() -> None:
        with fast_precision():
            loss = noise_loss(network, schedule, x0, tokens, generator)
        loss.backward()

    return fastest_of_three(step)


def measure_size(
    size: int,
    emoji: Emoji,
    tokenizer: Tokenizer,
    minutes: float,
    folder: Path,
    settings: Hyperparameters,
) -> list[str]:
    """One row of the table. The U-Net is not trained: its speed does not depend on its weights."""
    config = replace(MINI, size=size)

    def draw_pictures(count: int, number: int) -> Tensor:
        return vae_batch(emoji, size, count, 0, number).images

    def train_in(settings: Hyperparameters, folder: Path) -> VAE:
        return train_vae(draw_pictures, config.vae, folder, settings)

    fitted = fit_to_minutes(settings, minutes, folder, train_in)
    vae = train_in(fitted, folder).eval()
    real = batch(emoji, size, 64, seed=1, step=0, split="heldout").images
    own, thumbnail = round_trips(vae, real)
    network = TextAndUNet(config)
    training = seconds_per_step(config, network)
    sd = StableDiffusion(config, tokenizer, network.text_encoder, network.unet, vae)
    side = size // config.vae.factor
    figures = [
        f"{own:.1f}",
        f"{thumbnail:.1f}",
        f"{training:.2f}",
        f"{seconds_per_picture(sd, 1):.2f}",
    ]
    return [str(size), f"4 x {side} x {side}", f"{fitted.steps:,}", *figures]


def write_sizes(
    page: Path, tokenizer: Tokenizer, minutes: float, folder: Path, settings: Hyperparameters
) -> list[list[str]]:
    """Measure every size, and write the table into the page. Returns its rows."""
    fill_parts(
        page.read_text(encoding="utf-8"), {"sizes": ""}
    )  # before the work: is there a place?
    emoji, rows = Emoji.load(), []
    for size in SIZES:
        given = minutes, folder / str(size), settings
        rows.append(measure_size(size, emoji, tokenizer, *given))
    refill_page(page, {"sizes": f"{minutes:g} minutes each.\n\n{markdown(COLUMNS, rows)}"})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m docs.make.size_report")
    parser.add_argument("--minutes", type=float, default=6, help="of training for each size (6)")
    parser.add_argument("--folder", type=Path, default=Path("runs/sizes"), help="(runs/sizes)")
    options = parser.parse_args()
    tokenizer = mini_tokenizer(options.folder)
    settings = RECIPES["vae"].settings
    write_sizes(Path("docs/mini.md"), tokenizer, options.minutes, options.folder, settings)
