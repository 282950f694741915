"""Karras' rule for the sigmas."""

import math

import torch

from minisd.exercises.exercise import Exercise, Stage, draw_choice, normal


def karras(steps, low, high):
    """Falling sigmas that are evenly spaced in sigma to the power of 1/7.

    steps: a whole number, 2 or more    low, high: the last and the first sigma
    returns: `steps` sigmas, the largest first
    """
    start, end = high ** (1 / 7), low ** (1 / 7)
    sigmas = []
    for i in range(steps):
        share = i / (steps - 1)
        sigmas.append((start + share * (end - start)) ** 7)
    return torch.tensor(sigmas, dtype=torch.float64)


def ramp(steps, start, end):
    return torch.linspace(start, end, steps, dtype=torch.float64)


def spread_evenly(steps, low, high):
    return ramp(steps, high, low)


def in_the_logarithm(steps, low, high):
    return ramp(steps, math.log(high), math.log(low)).exp()


def rise(steps, low, high):
    return karras(steps, low, high).flip(0)


def powers_swapped(steps, low, high):
    return ramp(steps, high**7, low**7) ** (1 / 7)


def not_back(steps, low, high):
    return ramp(steps, high ** (1 / 7), low ** (1 / 7))


def ends_not_rooted(steps, low, high):
    return ramp(steps, high, low) ** 7


def end_left_out(steps, low, high):
    return karras(steps + 1, low, high)[:-1]


def zero_at_end(steps, low, high):
    return torch.cat([karras(steps, low, high), torch.zeros(1, dtype=torch.float64)])


def one_more(steps, low, high):
    return karras(steps + 1, low, high)


def linear_in_t(steps, low, high):
    share = ramp(steps, 0, 1)
    return high + share ** (1 / 7) * (low - high)


def share_to_the_seventh(steps, low, high):
    share = ramp(steps, 0, 1)
    return high + share**7 * (low - high)


def inputs(steps):
    def draw(g):
        size = normal(g, 2).sigmoid().tolist()
        return [draw_choice(g, steps), 0.02 + 0.05 * size[0], 8 + 8 * size[1]]

    return draw


def as_method(answer):
    """The answer as Schedule.karras, which returns Levels."""

    def method(self, steps, ends=None):
        timesteps = self.config.timesteps
        if not 1 <= steps <= timesteps:
            raise ValueError(f"steps must be 1 to {timesteps}, got {steps}.")
        low, high = ends or (self.finite_sigmas[0].item(), self.finite_sigmas[-1].item())
        sigmas = torch.as_tensor(answer(steps, low, high) if steps > 1 else [high])
        return self.levels_of_sigmas(sigmas.clip(low, high).tolist())

    return method


EXERCISE = Exercise(
    name="karras",
    lesson="03",
    place=6,
    title="Karras' sigmas",
    question=(
        "Samplers do better if they take small steps where little noise is left. Karras et al. "
        "(2022) go in even steps from the seventh root of `high` to the seventh root of `low`, "
        "and then take the seventh power of each number. Write `karras(steps, low, high)`, which "
        "returns `steps` sigmas in float64. The first is `high`, the last is `low`."
    ),
    solution=karras,
    stages=(
        Stage("two sigmas", 1, inputs([2])),
        Stage("three sigmas", 1, inputs([3])),
        Stage("many sigmas", 1, inputs([8, 9, 12])),
    ),
    hints=(
        "The seventh root of a number is number ** (1 / 7).",
        "torch.linspace(a, b, steps, dtype=torch.float64) goes from a to b in even steps, both "
        "ends included.",
        "ramp = torch.linspace(high ** (1 / 7), low ** (1 / 7), steps, dtype=torch.float64). What "
        "is left to do with the ramp?",
    ),
    mistakes={
        "These sigmas are evenly spaced. Use the seventh roots.": spread_evenly,
        "These are evenly spaced in the logarithm. Use the seventh roots.": in_the_logarithm,
        "Return the largest sigma first.": rise,
        "First the root, then the power. You did it the other way round.": powers_swapped,
        "These are the roots. Take the seventh power at the end.": not_back,
        "Take the seventh roots of low and high before you spread them.": ends_not_rooted,
        "The last sigma should be `low`. Include both ends.": end_left_out,
        "Leave out the 0 at the end. The question asks for `steps` sigmas.": zero_at_end,
        "There is one sigma too many. Return `steps` of them.": one_more,
        "Take the root of low and high, not of the share between them.": linear_in_t,
        "Take the power of the whole number in the end, not of the share.": share_to_the_seventh,
    },
    passing="The picture is drawn by DPM++ 2M with your sigmas: a common choice in web programs.",
    difficulty=1,
    minutes=10,
    replaces={"minisd.schedule.Schedule.karras": as_method},
    draw=lambda sd: sd.txt2img(
        "a blue cat on a red background", steps=10, seed=1, sampler="dpmpp_2m", spacing="karras"
    ),
)
