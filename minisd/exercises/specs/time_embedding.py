"""From the waves of t to the vector that every residual block reads."""

import torch
import torch.nn.functional as F
from torch import nn

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs
from minisd.unet import timestep_embedding

FLOAT32 = 1e-3  # the waves are float32


class TimeEmbedding(nn.Module):
    """Turns t into the vector that tells every residual block how noisy its input is.

    t: b    returns: b 4*channels
    """

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.linear1 = nn.Linear(channels, 4 * channels)
        self.linear2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t):
        waves = timestep_embedding(t, self.channels).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(waves)))


class NoActivation(TimeEmbedding):
    def forward(self, t):
        waves = timestep_embedding(t, self.channels).to(self.linear1.weight.dtype)
        return self.linear2(self.linear1(waves))


class ActivationAtTheEnd(TimeEmbedding):
    def forward(self, t):
        return F.silu(super().forward(t))


class ActivationOnlyAtTheEnd(NoActivation):
    def forward(self, t):
        return F.silu(super().forward(t))


class ActivationFirst(TimeEmbedding):
    def forward(self, t):
        waves = timestep_embedding(t, self.channels).to(self.linear1.weight.dtype)
        return self.linear2(self.linear1(F.silu(waves)))


class OtherActivation(TimeEmbedding):
    activation = staticmethod(F.relu)

    def forward(self, t):
        waves = timestep_embedding(t, self.channels).to(self.linear1.weight.dtype)
        return self.linear2(self.activation(self.linear1(waves)))


class Gelu(OtherActivation):
    activation = staticmethod(F.gelu)


class Sigmoid(OtherActivation):
    activation = staticmethod(torch.sigmoid)


class NoSecondLayer(TimeEmbedding):
    def forward(self, t):
        waves = timestep_embedding(t, self.channels).to(self.linear1.weight.dtype)
        return F.silu(self.linear1(waves))


class ScaledTime(TimeEmbedding):
    def forward(self, t):
        return super().forward(t / 1000)


def draw_inputs(channels, count):
    def draw(g):
        t = 1000 * torch.rand(count, generator=g, dtype=torch.float64)
        return module_inputs(g, TimeEmbedding, {"channels": channels}, t)

    return draw


EXERCISE = Exercise(
    name="time_embedding",
    lesson="08",
    place=3,
    title="The time vector",
    question=(
        "Write the class `TimeEmbedding(channels)`. `linear1` goes from `channels` numbers to "
        "4 * channels, `linear2` from 4 * channels to 4 * channels. Turn t into `channels` waves "
        "with `timestep_embedding`, then apply linear1, silu (`F.silu`) and linear2. The waves are "
        "always float32, so turn them into the dtype of the layers first: "
        "`waves.to(self.linear1.weight.dtype)`."
    ),
    solution=TimeEmbedding,
    stages=(
        Stage("one timestep", 1, draw_inputs(2, 1), call="module", tolerance=FLOAT32),
        Stage("three timesteps", 1, draw_inputs(12, 3), call="module", tolerance=FLOAT32),
    ),
    hints=(
        "Store the number of channels in self: forward() needs it for timestep_embedding(t, ...).",
        "There is one silu. It is between the two layers.",
        "waves = timestep_embedding(t, self.channels).to(self.linear1.weight.dtype). Then "
        "self.linear2(...) of F.silu(...) of self.linear1(waves).",
    ),
    mistakes={
        "There is no activation between the two layers.": NoActivation,
        "There is a second silu after linear2. The blocks apply it later.": ActivationAtTheEnd,
        "The silu comes after linear2. It should be between the layers.": ActivationOnlyAtTheEnd,
        "The silu comes before linear1. It should be between the layers.": ActivationFirst,
        "The activation is relu. It should be silu.": OtherActivation,
        "The activation is gelu. It should be silu.": Gelu,
        "The activation is a sigmoid. silu(x) is x * sigmoid(x).": Sigmoid,
        "linear2 is not applied.": NoSecondLayer,
        "t is divided by 1000. Use it as it is.": ScaledTime,
    },
    passing="The U-Net computes this vector once, and every residual block reads it.",
    difficulty=2,
    minutes=10,
    needs=("timestep_embedding",),
    given="from minisd.unet import timestep_embedding",
    replaces={"minisd.unet.TimeEmbedding": lambda answer: answer},
    draw=draw_cat,
)
