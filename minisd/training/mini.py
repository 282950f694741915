"""The recipe of the shipped mini model. Every stage resumes from the run's folder.

minisd train vae
minisd train diffusion
minisd train export -o weights/mini.safetensors
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minisd.config import MINI, ModelConfig
from minisd.tokenizer import Tokenizer
from minisd.training.data import Emoji, batch, captions
from minisd.training.diffusion import Conditioned, encode_bank, train_diffusion
from minisd.training.loop import Recipe
from minisd.training.vae import measure_scale, psnr, train_vae
from minisd.vae import VAE

VAE_RECIPE = Recipe(steps=15_000)
DIFFUSION_RECIPE = Recipe(steps=5200, ema=0.997)
PICTURES = 40_000  # composed and encoded once, before the diffusion training


def vae_stage(folder: Path, steps: int | None = None) -> VAE:
    """Train (or finish training) the autoencoder."""
    recipe = replace(VAE_RECIPE, steps=steps or VAE_RECIPE.steps)
    return train_vae(Emoji.load(), folder / "vae", recipe)


def diffusion_stage(folder: Path, steps: int | None = None) -> Conditioned:
    """Train (or finish training) text transformer and U-Net on the latents of the trained VAE."""
    emoji = Emoji.load()
    vae, config = trained_vae(folder, emoji)
    bank = encode_bank(emoji, vae, vocabulary(emoji), config, PICTURES, seed=0)
    recipe = replace(DIFFUSION_RECIPE, steps=steps or DIFFUSION_RECIPE.steps)
    return train_diffusion(bank, config, folder / "diffusion", recipe)


def export(folder: Path, output: Path) -> None:
    """Write the averaged networks as one model file, in half precision, with how they were made."""
    from minisd.checkpoints.load import Parts
    from minisd.checkpoints.write import save

    emoji = Emoji.load()
    vae, config = trained_vae(folder, emoji)
    network = averaged(Conditioned(config), folder / "diffusion")
    parts = Parts(config, vocabulary(emoji), network.text_encoder, network.unet, vae)
    unseen = batch(emoji, MINI.size, 256, seed=1, step=0, split="heldout").images
    figures = {
        "vae": last_line(folder / "vae") | {"psnr of unseen pairs": round(psnr(vae, unseen), 2)},
        "diffusion": last_line(folder / "diffusion"),
        "seed": 0,
    }
    command = "minisd train vae && minisd train diffusion && minisd train export"
    save(output, parts, torch.float16, {"command": command, "figures": json.dumps(figures)})


def last_line(folder: Path) -> dict:
    """What a stage's log says last: the step, the terms of the loss, the seconds."""
    return json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])


def vocabulary(emoji: Emoji) -> Tokenizer:
    """The mini's tokenizer, learnt from its captions: seconds, so nothing is kept on disk."""
    return Tokenizer.train(captions(emoji, 20_000), MINI.text.vocab_size)


def trained_vae(folder: Path, emoji: Emoji) -> tuple[VAE, ModelConfig]:
    """The averaged VAE of the run, and the config with the latent scale that it needs."""
    vae = averaged(VAE(MINI.vae), folder / "vae")
    images = batch(emoji, MINI.size, 256, seed=1, step=0).images
    scale = round(measure_scale(vae, images), 5)
    return vae, replace(MINI, vae=replace(MINI.vae, scale=scale))


def averaged(network: nn.Module, folder: Path) -> nn.Module:
    """The network with the averaged weights of the folder's last checkpoint.

    ValueError: that stage has not been trained yet.
    """
    path = folder / "state.pt"
    if not path.exists():
        raise ValueError(f"{path} is missing: run `minisd train {folder.name}` first.")
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    network.load_state_dict(state["average"])
    return network.eval().requires_grad_(False)
