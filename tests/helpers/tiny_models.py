"""Tiny models for tests that draw and train: our configs with few and narrow layers."""

from dataclasses import replace
from pathlib import Path

import torch

from minisd.checkpoints import write
from minisd.checkpoints.checkpoint import Parts
from minisd.clip import TextTransformer
from minisd.config import MINI, SD15, SD20_BASE, ModelConfig, ScheduleConfig
from minisd.depth.dpt import DepthConfig
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE


def tiny(config: ModelConfig) -> ModelConfig:
    """The same model with few, narrow layers and two resolutions. Sizes are multiples of 8."""
    unet = replace(
        config.unet,
        channels=(64, 128),
        attention=(True, False),
        res_blocks=1,
        context_dim=64,
        heads=4,
    )
    return replace(
        config,
        text=replace(config.text, width=64, layers=2, heads=2),
        unet=unet,
        vae=replace(config.vae, channels=(32, 64, 64), res_blocks=1),
        size=64,
    )


V1 = tiny(SD15)
V2 = tiny(SD20_BASE)
V2_V = replace(V2, schedule=ScheduleConfig(prediction="v"))


# The mini with few and narrow layers, for trainings of a few steps.
SMALL = replace(
    MINI,
    text=replace(MINI.text, width=32, layers=1, heads=2),
    unet=replace(MINI.unet, channels=(32, 32), context_dim=32, head_width=16),
    vae=replace(MINI.vae, channels=(8, 8, 16, 16)),
    size=32,
)


SMALL_DPT = DepthConfig(
    stem=16,
    stages=(32, 64, 128),
    blocks=(1, 2, 1),
    width=48,
    layers=3,
    heads=4,
    readout_layers=(1, 2),
    features=24,
    grid=4,
    norm_groups=8,
)


def with_channels(config, channels):
    return replace(config, unet=replace(config.unet, in_channels=channels))


def write_tiny_model(folder: Path) -> Path:
    """Write a file with V1, random weights and CLIP's vocabulary. Returns its path."""
    torch.manual_seed(0)
    path = folder / "tiny.safetensors"
    networks = TextTransformer(V1.text), UNet(V1.unet), VAE(V1.vae)
    write.save(path, Parts(V1, Tokenizer.clip(), *networks))
    return path
