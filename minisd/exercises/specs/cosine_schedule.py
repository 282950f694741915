"""Another noise schedule, with the student's own constants."""

import math

import torch

from minisd.exercises.exercise import Exercise, Stage


def cosine_alpha_bar(t, *, offset=0.008, power=2):
    """alpha_bar of a cosine schedule.

    t: any shape, from 0 (a clean picture) to 1 (noise)    returns: the same shape
    """
    start = math.cos(offset / (1 + offset) * math.pi / 2) ** power
    return torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** power / start


def not_divided(t, *, offset=0.008, power=2):
    return torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** power


def without_offset(t, *, offset=0.008, power=2):
    return torch.cos(t * math.pi / 2) ** power


EXERCISE = Exercise(
    name="cosine_schedule",
    lesson="01",
    place=6,
    title="A cosine schedule",
    question=(
        "Nichol & Dhariwal (2021) define alpha_bar by a cosine: f(t) = cos((t + s) / (1 + s) * "
        "pi / 2) to the power p, and alpha_bar(t) = f(t) / f(0). Write `cosine_alpha_bar(t)` with "
        "your own constants s = {offset} and p = {power}."
    ),
    solution=cosine_alpha_bar,
    stages=(
        Stage("one t", 1, lambda g: [torch.rand(1, generator=g, dtype=torch.float64)]),
        Stage("five t", 1, lambda g: [torch.rand(5, generator=g, dtype=torch.float64)]),
    ),
    hints=(
        "Write f first, as a function of t.",
        "f(0) is not 1, because of s.",
        "torch.cos takes a tensor, math.cos takes a number. The power belongs to f.",
    ),
    mistakes={
        "alpha_bar(0) must be 1: divide by f(0).": not_divided,
        "The offset s is missing.": without_offset,
    },
    passing="This schedule adds noise more slowly at both ends.",
    difficulty=2,
    minutes=10,
    given="import math",
    constants=lambda rng: {"offset": rng.choice([0.004, 0.01, 0.02]), "power": rng.choice([2, 3])},
    in_lesson=True,
)
