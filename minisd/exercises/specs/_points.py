"""A picture of a small training with the student's loss. This file is no exercise."""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from minisd.sampling import from_noise, sampler_levels
from minisd.schedule import Schedule
from minisd.teaching import toy

SIDE, STEPS, POINTS = 128, 500, 1000


def draw_trained_points(schedule: Schedule, loss_of: Callable) -> Image.Image:
    """Train a PointNetwork on a ring of points, and draw points with it.

    loss_of: loss_of(network, x0, noise, t) -> the loss. If it has no gradient, nothing is learnt
    """
    ring = build_ring()

    def descend_on(network: toy.PointNetwork, generator: torch.Generator) -> Tensor:
        x0, _ = ring.draw(512, generator)
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(schedule.config.timesteps, (len(x0),), generator=generator)
        loss = torch.as_tensor(loss_of(network, x0, noise, t))
        return loss + 0 * network.out.bias.sum()

    network, _ = toy.descend(2, 2, descend_on, STEPS, seed=0)
    start = torch.randn(POINTS, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    levels = sampler_levels("ddim", schedule, 25)
    *_, end = from_noise("ddim", toy.point_denoiser(network), start, levels)
    return paint(end.x.flatten(1).numpy())


def draw_flow_points(loss_of: Callable) -> Image.Image:
    """The same with rectified flow, and with 25 Euler steps.

    loss_of: loss_of(network, x0, noise, t) -> the loss. t: b, from 0 to 1
    """
    ring = build_ring()

    def descend_on(network: toy.PointNetwork, generator: torch.Generator) -> Tensor:
        x0, _ = ring.draw(512, generator)
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.rand(len(x0), generator=generator)
        loss = torch.as_tensor(loss_of(network, x0, noise, t))
        return loss + 0 * network.out.bias.sum()

    network, _ = toy.descend(2, 2, descend_on, STEPS, seed=0)
    x = torch.randn(POINTS, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    for step in range(25):
        x = x - network(x, torch.full((POINTS,), 1000 * (1 - step / 25))) / 25
    return paint(x.flatten(1).numpy())


def build_ring() -> toy.Mixture:
    """A thin ring of points."""
    turn = torch.linspace(0, 2 * torch.pi, 201)[:-1]
    centres = rearrange([1.3 * turn.cos(), 1.3 * turn.sin()], "d k -> k d 1 1")
    return toy.Mixture(("ring",), torch.zeros(200).long(), centres, spread=0.05)


def paint(points: np.ndarray) -> Image.Image:
    """Dark points on white, from -2.2 to 2.2 along both sides."""
    points = np.nan_to_num(points, nan=9)
    across, up = ((points / 4.4 + 0.5) * SIDE).clip(0, SIDE - 1).astype(int).T
    shades = np.full((SIDE, SIDE), 255, np.uint8)
    shades[SIDE - 1 - up, across] = 0
    return Image.fromarray(shades).convert("RGB")
