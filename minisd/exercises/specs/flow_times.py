"""The times of Stable Diffusion 3's sampler, Esser et al. 2024, eq. 23."""

import torch

from minisd.exercises.exercise import Exercise, Stage


def flow_times(steps, *, shift=3.0):
    """The values of t between the steps, from 1 (noise) to 0 (data), with more of them near 1.

    steps: the number of steps    returns: steps + 1 numbers, float64
    """
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * t / (1 + (shift - 1) * t)


def with_shift(change, even=lambda steps: torch.linspace(1, 0, steps + 1, dtype=torch.float64)):
    """The answer with another formula, or with other even times."""

    def answer(steps, *, shift=3.0):
        return change(even(steps), shift)

    return answer


def shift_times(t, shift):
    return shift * t / (1 + (shift - 1) * t)


EXERCISE = Exercise(
    name="flow_times",
    lesson="18",
    place=4,
    title="More steps near the noise",
    question=(
        "Large latents need more noise to hide a picture, because many numbers show the same thing "
        "(lesson 11). So Stable Diffusion 3 spends more of its steps at large t. It takes steps + "
        "1 evenly spaced times from 1 to 0, and shifts each of them by a number s, the shift: the "
        "new t is s t / (1 + (s - 1) t). Write `flow_times(steps)`. Your s is {shift}. Return the "
        "new times in float64 (`dtype=torch.float64`), the largest first."
    ),
    solution=flow_times,
    stages=(
        Stage("one step", 1, lambda g: [1]),
        Stage("four steps", 1, lambda g: [4]),
        Stage("twenty steps", 1, lambda g: [20]),
    ),
    hints=(
        "The even times are torch.linspace(1, 0, steps + 1).",
        "Shift all of them in one line. torch computes with whole tensors.",
        "s * t / (1 + (s - 1) * t)",
    ),
    mistakes={
        "These are the even times. Shift each of them.": with_shift(lambda t, shift: t),
        "The shift goes the other way. Your steps crowd near t = 0.": (
            with_shift(lambda t, shift: shift_times(t, 1 / shift))
        ),
        "The division is missing.": with_shift(lambda t, shift: shift * t),
        "The s in front is missing.": with_shift(lambda t, shift: t / (1 + (shift - 1) * t)),
        "Below the line stands 1 + (s - 1) t, with a 1 subtracted from s.": (
            with_shift(lambda t, shift: shift * t / (1 + shift * t))
        ),
        "The times grow. They should fall from 1 to 0.": (
            with_shift(lambda t, shift: shift_times(t, shift).flip(0))
        ),
        "The last time, 0, is missing.": with_shift(lambda t, shift: shift_times(t, shift)[:-1]),
        "There is one time too few. With both ends, there are steps + 1.": (
            with_shift(shift_times, lambda steps: torch.linspace(1, 0, steps, dtype=torch.float64))
        ),
        "These times are in float32. Ask for float64.": (
            with_shift(lambda t, shift: shift_times(t.float(), shift).double())
        ),
    },
    passing=(
        "With s = 1, the times are even. Stable Diffusion 3 draws with s = 3. In your list, the "
        "first steps are short, and the last ones are long."
    ),
    difficulty=1,
    minutes=8,
    constants=lambda rng: {"shift": rng.choice([2.0, 2.5, 4.0, 5.0])},
    in_lesson=True,
)
