"""Teach a U-Net to read more channels: a mask and what surrounds the hole, or the depth.

As Stable Diffusion's inpainting and depth models were made (Rombach et al. 2022, section 4.5): the
first convolution gets more inputs, whose weights begin at zero, and the training goes on. Here the
way up stays as it is, so that the file need hold only what differs from the mini.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from minisd.checkpoints.settings import to_metadata
from minisd.checkpoints.write import write_tensors, written_whole
from minisd.mini.captions import pick
from minisd.pipeline import StableDiffusion
from minisd.tasks.depth2img import depth_channel
from minisd.tasks.inpaint import latent_mask, picture_with_hole
from minisd.training.adapters import Lesson, train_on
from minisd.training.loop import Recipe
from minisd.unet import UNet

STAYS = ("time", "up", "norm_out", "conv_out")  # parts of the U-Net that do not learn
EVERYTHING = 0.1  # of the masks


def mask_and_surroundings(sd: StableDiffusion, seed: int) -> Callable[[Tensor, int], Tensor]:
    """What an inpainting model reads: the mask, and the latent of the picture with its hole."""

    def beside(images: Tensor, step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        masks = torch.stack([random_mask(sd.config.size, rng) for _ in images])
        generator = torch.Generator().manual_seed(step)  # drawn, as the task will draw it
        around = sd.encode(picture_with_hole(images, masks), generator)
        small = torch.cat([latent_mask(one[None], around[:1]) for one in masks])
        return torch.cat([small, around], dim=1)

    return beside


def estimated_depth(
    sd: StableDiffusion, estimator: Callable[[Tensor], Tensor]
) -> Callable[[Tensor, int], Tensor]:
    """What a depth model reads: the estimator's opinion of the picture."""
    side = sd.config.size // sd.config.vae.factor
    return lambda images, step: depth_channel(estimator(images), (side, side))


def random_mask(size: int, rng: np.random.Generator) -> Tensor:
    """1 where something is to be drawn anew: a box, an ellipse, a side, or all. 1 size size"""
    mask = Image.new("1", (size, size), int(rng.random() < EVERYTHING))
    pen = ImageDraw.Draw(mask)
    kind = pick(("box", "ellipse", "side"), rng)
    if kind == "side":
        cut = int(rng.integers(size // 4, size * 3 // 4))
        left, top, right, bottom = pick(
            ((0, 0, cut, size), (cut, 0, size, size), (0, 0, size, cut), (0, cut, size, size)), rng
        )
    else:
        left, top = (int(edge) for edge in rng.integers(-size // 8, size * 5 // 8, 2))
        width, height = (int(length) for length in rng.integers(size // 4, size * 7 // 8, 2))
        right, bottom = left + width, top + height
    draw = pen.ellipse if kind == "ellipse" else pen.rectangle
    draw((left, top, right, bottom), fill=1)
    return rearrange(torch.from_numpy(np.array(mask, np.float32)), "h w -> 1 h w")


def widened(unet: UNet, in_channels: int) -> UNet:
    """The same network with more inputs, which do nothing yet. Only its way down can learn."""
    wider = UNet(replace(unet.config, in_channels=in_channels))
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    known = state["conv_in.weight"]
    silent = known.new_zeros(known.shape[0], in_channels - known.shape[1], *known.shape[2:])
    state["conv_in.weight"] = torch.cat([known, silent], dim=1)
    wider.load_state_dict(state)
    for name, parameter in wider.named_parameters():
        parameter.requires_grad_(not name.startswith(STAYS))
    return wider


def train_wider(
    sd: StableDiffusion,
    unet: UNet,
    lesson: Lesson,
    folder: Path,
    recipe: Recipe,
    batch_size: int = 16,
    seed: int = 0,
) -> UNet:
    """The U-Net learns to read what the lesson has beside its latents; see train_on."""

    def predict(x: Tensor, t: Tensor, context: Tensor, beside: Tensor) -> Tensor:
        return unet(torch.cat([x, beside], dim=1), t, context)

    return train_on(sd, unet, predict, lesson, folder, recipe, batch_size, seed, unet.config)


def save_wider(
    path: Path,
    sd: StableDiffusion,
    unet: UNet,
    name: str,
    notes: dict,
    others: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write what differs from mini.safetensors, in half precision, to lie beside it.

    name: of the model's config    others: more tensors by name, such as an estimator's
    """
    learnt = {key: t for key, t in unet.state_dict().items() if not key.startswith(STAYS)}
    learnt = {f"unet.{key}": tensor for key, tensor in learnt.items()} | dict(others)
    settings = to_metadata(replace(sd.config, name=name, unet=unet.config), sd.tokenizer)
    header = {**settings, "base": "mini.safetensors", "notes": json.dumps(notes)}
    with written_whole(path) as unfinished:
        write_tensors(unfinished, learnt, header, torch.float16)
