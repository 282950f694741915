"""The timestep embedding, for a batch. It is float32 by definition, so the tolerance is larger."""

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage

# Two right ways to compute an angle near 1000 in float32 differ by about 1e-4.
FLOAT32 = 1e-3


def timestep_embedding(t, width):
    """The waves of each timestep: first all cosines, then all sines.

    t: b, whole numbers or fractions    width: an even number    returns: b width, float32
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = 10000.0 ** (-steps / half)
    angles = t.float()[:, None] * frequencies[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def sines_first(t, width):
    return timestep_embedding(t, width).roll(width // 2, dims=1)


def in_pairs(t, width):
    cosines, sines = timestep_embedding(t, width).chunk(2, dim=1)
    return torch.stack([cosines, sines], dim=2).flatten(1)


def waves_of(t, frequencies):
    angles = t.double()[:, None] * frequencies[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def divide_by_width(t, width):
    return waves_of(t, 10000.0 ** (-torch.arange(width // 2) / width))


def divide_by_less(t, width):
    half = width // 2
    return waves_of(t, 10000.0 ** (-torch.arange(half) / max(half - 1, 1)))


def rising_frequencies(t, width):
    return waves_of(t, 10000.0 ** (torch.arange(width // 2) / (width // 2)))


def count_from_one(t, width):
    half = width // 2
    return waves_of(t, 10000.0 ** (-torch.arange(1, half + 1) / half))


def scaled_t(t, width):
    return timestep_embedding(t / 1000, width)


def whole_t(t, width):
    return timestep_embedding(t.long(), width)


def joined_along_the_batch(t, width):
    return torch.cat(timestep_embedding(t, width).chunk(2, dim=1), dim=0)


EXERCISE = Exercise(
    name="timestep_embedding",
    lesson="08",
    place=2,
    title="The timestep embedding",
    question=(
        "Write `timestep_embedding(t, width)` for a batch of timesteps. Let half be width / 2. The "
        "frequencies are 10000 to the power -i / half, for i = 0 … half - 1, and an angle is t "
        "times a frequency. Each row holds the cosines of all its angles, then the sines. Compute "
        "in float32, as the original code does: `t.float()` turns whole numbers and fractions into "
        "float32."
    ),
    solution=timestep_embedding,
    stages=(
        Stage("one timestep, width 2", 1, lambda g: [torch.tensor([3]), 2], tolerance=FLOAT32),
        Stage(
            "three timesteps, width 10",
            2,
            lambda g: [torch.randint(1000, (3,), generator=g), 10],
            tolerance=FLOAT32,
        ),
        Stage(
            "timesteps with fractions, width 96",
            1,
            lambda g: [1000 * torch.rand(2, generator=g, dtype=torch.float64), 96],
            tolerance=FLOAT32,
        ),
    ),
    hints=(
        "The angles are a table: a row for each t, a column for each frequency.",
        "frequencies = 10000 ** (-torch.arange(half) / half). t.float()[:, None] is a column, so "
        "t.float()[:, None] * frequencies is the table.",
        "torch.cat([angles.cos(), angles.sin()], dim=1) puts the sines to the right of the "
        "cosines.",
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
        "t is divided by 1000. Use it as it is.": scaled_t,
        "t is rounded to a whole number. Keep its fraction.": whole_t,
        "Cosines and sines are joined along the batch. Use dim=1.": joined_along_the_batch,
    },
    passing="With `minisd generate --mine`, the U-Net reads t in the form that you gave it.",
    difficulty=2,
    minutes=15,
    needs=("embed_number",),
    replaces={"minisd.unet.timestep_embedding": lambda answer: answer},
    draw=draw_cat,
    in_lesson=True,
)
