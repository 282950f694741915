"""Toy datasets for the lessons: points instead of pictures, so that exact results are known.

A point is a picture of one pixel, b d 1 1 with d = 1 or 2. The schedule, the guidance and the
samplers take points in the same way as latents. A Mixture is a dataset of points. It computes its
density, its score and the best guess of x0 exactly, at every noise level. A PointNetwork can be
trained on the same points in seconds. Then its predictions can be compared with the exact results.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from minisd.adapters.classifier import LogProb
from minisd.guidance import Network, guided_denoiser
from minisd.mini.emoji import Emoji
from minisd.schedule import CLEAN, Denoiser, Level, Prediction, Schedule
from minisd.unet import timestep_embedding


@dataclass(frozen=True, eq=False)
class Mixture:
    """A dataset whose density is a sum of round Gaussian bumps.

    If noise is added to a bump, the result is again a bump. The centre is multiplied by the signal
    rate, and the variance becomes signal_rate² spread² + noise_rate². So the density, the score and
    the best guess of x0 are known exactly at every noise level.

    names: the names of the groups
    groups: k, the index of each bump's group
    centres: k c h w, the centre of each bump
    spread: the standard deviation of every bump. At 0, all points are at the centres
    """

    names: tuple[str, ...]
    groups: Tensor
    centres: Tensor
    spread: float

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw random pictures.

        returns: the pictures, b c h w, and the group of each picture, b
        """
        picks = torch.randint(len(self.centres), (count,), generator=generator)
        shape = (count, *self.centres.shape[1:])
        x0 = self.centres[picks] + self.spread * torch.randn(shape, generator=generator)
        return x0, self.groups[picks]

    def only(self, name: str) -> "Mixture":
        """The part of the dataset that belongs to one group.

        name: the name of the group
        """
        kept = self.groups == self.names.index(name)
        return replace(self, groups=self.groups[kept], centres=self.centres[kept])

    def variance(self, level: Level) -> float:
        """The variance of a bump with the noise of this level."""
        return (level.signal_rate * self.spread) ** 2 + level.noise_rate**2

    def bumps(self, x: Tensor, level: Level) -> Tensor:
        """The log of each bump's part in the density at x. x: b c h w    returns: b k"""
        centres = level.signal_rate * rearrange(self.centres, "k c h w -> k (c h w)")
        away = rearrange(x, "b c h w -> b 1 (c h w)") - centres
        square = reduce(away**2, "b k d -> b k", "sum")
        variance = self.variance(level)
        volume = away.shape[-1] / 2 * math.log(2 * math.pi * variance)
        return -square / (2 * variance) - volume - math.log(len(centres))

    def log_density(self, x: Tensor, level: Level = CLEAN) -> Tensor:
        """log p(x), where p is the density of pictures with the noise of this level.

        x: b c h w    returns: b
        """
        return self.bumps(x, level).logsumexp(dim=1)

    def group_log_probs(self, x: Tensor, level: Level = CLEAN) -> Tensor:
        """log p(group | x): the log of the probability that x comes from each group.

        x: b c h w    returns: b groups
        """
        bumps = self.bumps(x, level)
        sums = [bumps[:, self.groups == i].logsumexp(dim=1) for i in range(len(self.names))]
        return F.log_softmax(torch.stack(sums, dim=1), dim=1)

    def centre_guess(self, x: Tensor, level: Level) -> Tensor:
        """The mean of the centres, weighted by the probability that x comes from each centre.

        x: b c h w    returns: b c h w
        """
        shares = self.bumps(x, level).softmax(dim=1)
        return torch.einsum("bk,kchw->bchw", shares, self.centres.to(x))

    def score(self, x: Tensor, level: Level = CLEAN) -> Tensor:
        """The gradient of log p(x). It points to more likely pictures.

        x: b c h w    returns: b c h w
        """
        centre = level.signal_rate * self.centre_guess(x, level)
        return (centre - x) / self.variance(level)

    def x0(self, x: Tensor, level: Level) -> Tensor:
        """The best possible guess of x0: the mean of all pictures that x may come from.

        x: b c h w    returns: b c h w
        """
        guess = self.centre_guess(x, level)
        gain = level.signal_rate * self.spread**2 / self.variance(level)
        return guess + gain * (x - level.signal_rate * guess)

    def denoise(self, x: Tensor, level: Level) -> Prediction:
        """Predict x0 and eps exactly. eps is -noise_rate times the score (Vincent 2011; Song 2021).

        x: b c h w, with the noise of this level
        """
        eps = -level.noise_rate * self.score(x, level)
        return Prediction(self.x0(x, level), eps, None, None)

    def log_prob(self, name: str, schedule: Schedule) -> LogProb:
        """Make a function (x, t) for classifier guidance. It returns the exact log p(name | x).

        x: b c h w, noisy    t: b equal numbers
        name: the name of a group
        """
        index = self.names.index(name)

        def log_prob(x: Tensor, t: Tensor) -> Tensor:
            return self.group_log_probs(x, schedule.at(t[0].item()))[:, index]

        return log_prob


# ---- the datasets -------------------------------------------------------------------------------


def two_peaks() -> Mixture:
    """Cats and dogs, as if a picture were only one number: cats are near -1, dogs are near 1."""
    centres = rearrange(torch.tensor([-1.0, 1.0]), "k -> k 1 1 1")
    return Mixture(("cat", "dog"), torch.arange(2), centres, spread=0.2)


def three_groups() -> Mixture:
    """Cats, dogs and humans as points in the plane. Some points could belong to two groups."""
    angles = torch.tensor([210.0, 330.0, 90.0]).deg2rad()
    centres = rearrange([angles.cos(), angles.sin()], "d k -> k d 1 1")
    return Mixture(("cat", "dog", "human"), torch.arange(3), centres, spread=0.42)


def six_groups() -> Mixture:
    """Six small groups of points in the plane, on a circle. There is no point in the middle."""
    angles = torch.arange(6) * math.pi / 3
    centres = 1.5 * rearrange([angles.cos(), angles.sin()], "d k -> k d 1 1")
    names = ("cat", "dog", "fox", "frog", "bear", "lion")
    return Mixture(names, torch.arange(6), centres, spread=0.12)


def ink() -> Mixture:
    """Two drops of ink in a glass: one in the glass's centre, and one near its rim."""
    centres = rearrange(torch.tensor([[0.0, 0.0], [1.8, 0.0]]), "k d -> k d 1 1")
    return Mixture(("centre", "rim"), torch.arange(2), centres, spread=0.08)


def faces(emoji: Emoji, count: int = 600) -> Mixture:
    """The faces of a cat and a dog as points in the plane.

    The points are the places of bright, opaque pixels in two emoji.

    count: the number of points in a face
    returns: a Mixture. It is about as wide as noise of variance 1
    """
    rng, names, side = np.random.default_rng(0), ("cat", "dog"), emoji.tiles.shape[2]
    points = []
    for name, middle in zip(names, (-1.0, 1.0), strict=True):
        tile = emoji.tiles[emoji.things.index(name), emoji.styles.index("noto")].astype(float)
        bright = tile[..., :3].mean(axis=-1) > 80
        down, right = np.nonzero(bright & (tile[..., 3] > 128))
        picked = rng.choice(len(down), count, replace=False)
        across = 1.8 * (right[picked] / side - 0.5) + middle
        points.append(np.stack([across, 1.8 * (0.5 - down[picked] / side)], axis=-1))
    centres = rearrange(torch.tensor(np.concatenate(points)).float(), "k d -> k d 1 1")
    return Mixture(names, torch.arange(2).repeat_interleave(count), centres, spread=0.03)


def line(reach: float, count: int) -> Tensor:
    """Evenly spaced points on a line from -reach to reach. returns: count 1 1 1"""
    return rearrange(torch.linspace(-reach, reach, count), "b -> b 1 1 1")


def grid(reach: float, count: int) -> Tensor:
    """Evenly spaced points in a square, row by row from the lower left. returns: count² 2 1 1"""
    ticks = torch.linspace(-reach, reach, count)
    up, across = torch.meshgrid(ticks, ticks, indexing="ij")
    return rearrange([across, up], "d h w -> (h w) d 1 1")


def small_steps(x0: Tensor, schedule: Schedule, generator: torch.Generator) -> Iterator[Tensor]:
    """Add noise to x0 in small steps, as the forward process does. Yields x at t = 0, 1, 2 …

    Each step keeps sqrt(1 - beta) of x and adds sqrt(beta) of new noise (Ho et al. 2020, eq. 2).
    """
    x, before = x0, 1.0
    for alpha_bar in schedule.alpha_bar.tolist():
        beta = 1 - alpha_bar / before
        noise = torch.randn(x.shape, generator=generator)
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * noise
        before = alpha_bar
        yield x


# ---- the networks ------------------------------------------------------------------------------


class PointNetwork(nn.Module):
    """A network of four layers. It reads noisy points and t, and predicts the noise (or the group).

    x: b d 1 1    t: b, integer or float    context: ignored
    returns: b c_out 1 1: eps or v if c_out = d. For groups: one score (logit) for each group
    """

    def __init__(self, d: int, c_out: int, width: int = 128):
        super().__init__()
        self.width = width
        self.layer1 = nn.Linear(7 * d + width, width)
        self.layer2 = nn.Linear(width, width)
        self.layer3 = nn.Linear(width, width)
        self.out = nn.Linear(width, c_out)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        point = rearrange(x, "b d 1 1 -> b d")
        waves = [f(k * math.pi / 2 * point) for k in (1, 2, 4) for f in (torch.sin, torch.cos)]
        h = torch.cat([point, *waves, timestep_embedding(t, self.width)], dim=1)
        h = F.silu(self.layer1(h))
        h = h + F.silu(self.layer2(h))
        h = h + F.silu(self.layer3(h))
        return rearrange(self.out(h), "b c -> b c 1 1")


@torch.enable_grad()
def descend(d: int, c_out: int, loss_of, steps: int, seed: int) -> tuple[PointNetwork, list[float]]:
    """Train a PointNetwork with Adam. Returns the network and each step's loss.

    The learning rate falls to 0, along half a cosine wave.

    loss_of: a function (network, generator) that returns the loss, one number
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PointNetwork(d, c_out)
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(network.parameters(), lr=4e-3)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    losses = []
    for step in range(steps):
        adam.zero_grad()
        loss = loss_of(network, generator)
        if not loss.isfinite():
            raise ValueError(
                f"the loss is {loss.item()} at step {step}. Check loss_of and its data."
            )
        loss.backward()
        adam.step()
        fall.step()
        losses.append(loss.item())
    return network.eval().requires_grad_(False), losses


def point_denoiser(network: Network, objective: str = "eps") -> Denoiser:
    """Make the function that a sampler calls. There is no guidance, as points have no prompts."""
    return guided_denoiser(network, objective, context=torch.zeros(1, 0, 0))


@torch.no_grad()
def loss_per_t(
    denoise: Denoiser,
    data: Mixture,
    schedule: Schedule,
    ts: Sequence[int],
    count: int = 4000,
    seed: int = 1,
) -> list[float]:
    """The mean squared error of the predicted noise at each t, for the same pictures and noise."""
    generator = torch.Generator().manual_seed(seed)
    x0, _ = data.draw(count, generator)
    noise = torch.randn(x0.shape, generator=generator)
    losses = []
    for t in ts:
        prediction = denoise(schedule.add_noise(x0, noise, t), schedule.at(t))
        losses.append(F.mse_loss(prediction.eps, noise).item())
    return losses
