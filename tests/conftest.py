"""What several test files share. Their networks are tiny: a second thread would wait longer."""

import pytest
import torch

from minisd.clip import TextTransformer
from minisd.mini.emoji import Emoji
from minisd.mini.job import train_vocabulary
from minisd.pipeline import StableDiffusion
from minisd.training import run_folder
from minisd.unet import UNet
from minisd.vae import VAE
from tests.helpers.tiny_models import SMALL

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def emoji():
    return Emoji.load()


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures of losses take longer than these trainings do."""
    monkeypatch.setattr(run_folder, "plot_losses", lambda folder: None)


@pytest.fixture(scope="module")
def small_sd(emoji):
    """A tiny model with random weights."""
    torch.manual_seed(0)
    networks = TextTransformer(SMALL.text), UNet(SMALL.unet), VAE(SMALL.vae)
    return StableDiffusion(SMALL, train_vocabulary(emoji), *networks)
