"""Train the small network of lesson 02 on points, as the lesson does."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.schedule import Schedule
from minisd.teaching import toy


def train_predictor(
    data: toy.Mixture,
    schedule: Schedule,
    steps: int = 2000,
    objective: str = "eps",
    seed: int = 0,
) -> tuple[toy.PointNetwork, list[float]]:
    """Train a network to predict the noise in points. Returns the network and each step's loss.

    Each step is algorithm 1 of Ho et al. 2020: draw points, add the noise of a random t, let the
    network predict the noise, and update its weights.

    objective: what the network predicts: "eps", or "v" (schedule.velocity)
    """
    d = data.centres.shape[1]

    def loss_of(network: toy.PointNetwork, generator: torch.Generator) -> Tensor:
        x0, _ = data.draw(512, generator)
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(schedule.config.timesteps, (len(x0),), generator=generator)
        x = schedule.add_noise(x0, noise, t)
        answer = noise if objective == "eps" else schedule.velocity(x0, noise, t)
        return F.mse_loss(network(x, t), answer)

    return toy.descend(d, d, loss_of, steps, seed)
