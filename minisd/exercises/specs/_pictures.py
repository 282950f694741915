"""What the pictures of the exercises of lessons 11 to 16 start from. This file is no exercise."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from numpy.random import default_rng
from PIL import Image, ImageDraw
from torch import Tensor

import minisd
from minisd.adapters.controlnet import ControlNet, control
from minisd.config import WEIGHTS
from minisd.depth.small import load_estimator
from minisd.files.pictures import from_pil, to_pil
from minisd.guidance import guided_denoiser
from minisd.mini.captions import Scene
from minisd.mini.emoji import Emoji
from minisd.mini.examples import crude_apple
from minisd.mini.scenes import compose_scene, to_tensor
from minisd.pipeline import make_generators
from minisd.sampling import from_noise, sampler_levels
from minisd.tasks.canny import canny
from minisd.tasks.depth2img import depth2img
from minisd.tasks.img2img import img2img
from minisd.tasks.inpaint import inpaint

APPLE = "a green apple on a white background"
CAT = "a blue cat on a red background"
RABBIT = "a pink rabbit on a black background"
SANTA = "a santa on a cyan background"


def draw_scene(
    *things: str, style: str = "noto", background: str = "white", spot: str | None = None
) -> Image.Image:
    """A picture as the mini's training has them: one or two things on a background.

    spot: the place of a small thing. None: the thing is large, or there are two
    """
    scene = Scene(things, (None,) * len(things), style, background, spot)
    picture, _ = compose_scene(Emoji.load(), scene, 64, default_rng(1))
    return to_pil(to_tensor([picture]))[0]


draw_santa = partial(draw_scene, "santa", background="cyan")


def cover_hat() -> Image.Image:
    """A mask over the hat of the santa. Its border lies between the squares of 8 x 8 pixels."""
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((11, 0, 52, 20), fill=255)
    return mask


def redraw_apple(sd: Any) -> Any:
    """img2img: a crude apple becomes a good one."""
    return img2img(sd, APPLE, crude_apple(), strength=0.7, steps=8, seed=1)


def redraw_hat(sd: Any) -> Any:
    """Inpainting: the mask covers the hat of a santa."""
    return inpaint(sd, SANTA, draw_santa(), cover_hat(), steps=8, seed=1)


def redraw_pair(sd: Any) -> Any:
    """Depth-to-image: two lemons where a cat and a dog were."""
    pair = draw_scene("cat", "dog")
    depth = load_estimator(WEIGHTS / "mini-depth.safetensors")(from_pil(pair))
    lemon = "a lemon on a pink background"
    model = minisd.load("mini-depth")
    return depth2img(model, lemon, pair, depth=depth, strength=1, steps=8, seed=1)


def trace_rabbit(sd: Any) -> Any:
    """ControlNet: a pink rabbit with the edges of another one."""
    edges = canny(from_pil(draw_scene("rabbit", style="twemoji")))
    with control(sd, ControlNet.load(WEIGHTS / "mini-edges.safetensors"), edges):
        return sd.txt2img(RABBIT, steps=8, seed=1)


def v_network(sd: Any) -> Any:
    """The mini's U-Net as a network that predicts v. The mini itself predicts eps."""

    def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        level = sd.schedule.at(t[0].item())
        eps = sd.unet(x, t, context)
        x0 = (x - level.noise_rate * eps) / level.signal_rate
        return level.signal_rate * eps - level.noise_rate * x0

    return network


def draw_by_v(sd: Any) -> Any:
    """A blue cat, by guided_denoiser() with a network that predicts v."""
    denoise = guided_denoiser(v_network(sd), "v", sd.embed(CAT), sd.embed(""), 3.0)
    noise, levels = sd.noise(make_generators(1, 1), 64, 64), sampler_levels("ddim", sd.schedule, 8)
    *_, last = from_noise("ddim", denoise, noise, levels)
    return to_pil(sd.decode(last.x))[0]


def walk_by_v(sd: Any, move: Callable) -> Any:
    """A blue cat. move(x, v, level, next_level) makes each step."""
    network, context, uncond = v_network(sd), sd.embed(CAT), sd.embed("")
    x = sd.noise(make_generators(1, 1), 64, 64)
    for level, next_level in pairwise(sampler_levels("ddim", sd.schedule, 8)):
        t = torch.tensor([level.t])
        plain = network(x, t, uncond)
        v = plain + 3.0 * (network(x, t, context) - plain)
        x = move(x, v, level, next_level)
    return to_pil(sd.decode(x))[0]
