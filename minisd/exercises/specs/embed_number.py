"""Warm-up for the timestep embedding: one timestep, with plain numbers."""

import math

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage


def embed_number(t, width):
    """The waves of one timestep, as a list: first all cosines, then all sines.

    t: a number    width: an even number, the length of the list
    """
    half = width // 2
    angles = [t * 10000 ** (-i / half) for i in range(half)]
    return [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]


def sines_first(t, width):
    half = width // 2
    waves = embed_number(t, width)
    return waves[half:] + waves[:half]


def in_pairs(t, width):
    half = width // 2
    waves = embed_number(t, width)
    return [wave for i in range(half) for wave in (waves[i], waves[half + i])]


def with_frequencies(t, frequencies):
    angles = [t * frequency for frequency in frequencies]
    return [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]


def divide_by_width(t, width):
    return with_frequencies(t, [10000 ** (-i / width) for i in range(width // 2)])


def divide_by_less(t, width):
    half = width // 2
    return with_frequencies(t, [10000 ** (-i / max(half - 1, 1)) for i in range(half)])


def rising_frequencies(t, width):
    half = width // 2
    return with_frequencies(t, [10000 ** (i / half) for i in range(half)])


def count_from_one(t, width):
    half = width // 2
    return with_frequencies(t, [10000 ** (-(i + 1) / half) for i in range(half)])


def base_1000(t, width):
    half = width // 2
    return with_frequencies(t, [1000 ** (-i / half) for i in range(half)])


def whole_t(t, width):
    return embed_number(int(t), width)


def in_batch(answer):
    """The answer as the core's function, which takes a batch of timesteps."""

    def timestep_embedding(t, width):
        rows = [answer(number, width) for number in t.tolist()]
        return torch.tensor(rows, dtype=torch.float32, device=t.device)

    return timestep_embedding


def draw_inputs(width):
    return lambda g: [1000 * torch.rand((), generator=g, dtype=torch.float64).item(), width]


EXERCISE = Exercise(
    name="embed_number",
    lesson="08",
    place=1,
    title="One timestep as waves",
    question=(
        "Write `embed_number(t, width)`. Let half be width / 2. Frequency i is 10000 to the "
        "power -i / half, for i = 0 … half - 1. Angle i is t times frequency i. Return the "
        "cosines of all angles, followed by the sines of all angles, as one list of numbers. t "
        "may have a fraction."
    ),
    solution=embed_number,
    stages=(
        Stage("width 2: one cosine, one sine", 1, lambda g: [3, 2]),
        Stage("width 8", 1, draw_inputs(8)),
        Stage("width 20", 1, draw_inputs(20)),
    ),
    hints=(
        "Compute the list of the angles first. The first angle is t itself.",
        "Frequency i is 10000 ** (-i / half). Do not forget the minus sign.",
        "angles = [t * 10000 ** (-i / half) for i in range(half)]. Then join two lists with +: one "
        "with math.cos of each angle, one with math.sin.",
    ),
    mistakes={
        "The sines come first. Return the cosines first.": sines_first,
        "Cosines and sines take turns. All cosines should come before all sines.": in_pairs,
        "The exponent is -i / width. It should be -i / half.": divide_by_width,
        "The exponent is divided by half - 1, as in the DDPM code. Divide by half.": divide_by_less,
        "The frequencies rise. The exponent needs a minus sign.": rising_frequencies,
        "i counts from 1. It should count from 0, so that the first frequency is 1.": (
            count_from_one
        ),
        "The base is 1000. It should be 10000.": base_1000,
        "t is rounded to a whole number. Keep its fraction.": whole_t,
    },
    passing=(
        "The U-Net reads the timestep in this form. In the next exercise, you write it for a "
        "whole batch."
    ),
    difficulty=1,
    minutes=10,
    given="import math",
    in_picture={"minisd.unet.timestep_embedding": in_batch},
    draw=draw_cat,
)
