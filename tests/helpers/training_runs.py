"""Start trainings of a few steps by `minisd train`, and read what they write to the disk."""

import socket
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import minisd
from minisd.clip import TextTransformer
from minisd.mini import cats_and_dogs, recipes
from minisd.pipeline import StableDiffusion
from minisd.training import adapters, run_folder
from minisd.unet import UNet
from minisd.vae import VAE
from tests.helpers.tiny_models import SMALL

REPOSITORY = Path(__file__).parents[2]  # run `python -m tests.…` here
TINY = replace(SMALL, unet=replace(SMALL.unet, channels=(32,), attention=(True,)))
COMMANDS = {"word": 60, "lora": 12, "hypernetwork": 12}  # stage -> steps


class Killed(Exception):
    pass


def state_in(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def shrink(patch, vocabulary):
    """Let `minisd train` use a tiny model and few pictures."""
    torch.manual_seed(0)
    networks = TextTransformer(TINY.text), UNet(TINY.unet), VAE(TINY.vae)
    sd = StableDiffusion(TINY, vocabulary, *networks)
    patch.setattr(minisd, "load", lambda name: sd)
    patch.setattr(recipes, "FEW", 3)
    patch.setattr(recipes, "MANY", 6)
    patch.setattr(cats_and_dogs, "PORTRAITS", 100)
    patch.setattr(run_folder, "plot_losses", lambda folder: None)
    for name in ("train_adapter", "train_controlnet"):
        patch.setattr(adapters, name, partial(getattr(adapters, name), batch_size=2))


def train_command(stage, folder, *more):
    steps = ("--steps", COMMANDS.get(stage, 1))
    return [str(word) for word in ("train", stage, "--folder", folder, *steps, *more)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
