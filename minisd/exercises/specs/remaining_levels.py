"""From the strength of img2img to the steps that are run."""

import math

import torch

from minisd.exercises.exercise import Exercise, Stage
from minisd.exercises.specs._pictures import redraw_apple


def remaining_levels(levels, strength):
    """The noise levels of the steps that img2img runs.

    levels: a list of S + 1 noise levels, the noisiest first. A whole run has S steps
    strength: the share of the steps to run, 0 to 1
    returns: a list, the last levels
    """
    steps = len(levels) - 1
    run = int(steps * strength)
    return levels[steps - run :]


def nearest_count(levels, strength):
    run = round((len(levels) - 1) * strength)
    return levels[len(levels) - 1 - run :]


def count_above(levels, strength):
    run = math.ceil((len(levels) - 1) * strength)
    return levels[len(levels) - 1 - run :]


def one_level_too_few(levels, strength):
    run = int((len(levels) - 1) * strength)
    return levels[-run:]


def first_levels(levels, strength):
    run = int((len(levels) - 1) * strength)
    return levels[: run + 1]


def count_levels(levels, strength):
    return levels[len(levels) - int(len(levels) * strength) :]


def skip_this_share(levels, strength):
    return remaining_levels(levels, 1 - strength)


def count_steps(levels, strength):
    return int((len(levels) - 1) * strength)


def inputs(steps, strength):
    def draw(g):
        levels = 1000 * torch.rand(steps + 1, generator=g, dtype=torch.float64)
        return [levels.sort(descending=True).values.tolist(), strength]

    return draw


EXERCISE = Exercise(
    name="remaining_levels",
    lesson="11",
    place=1,
    title="From the strength to the steps",
    question=(
        "Write `remaining_levels(levels, strength)`. `levels` holds the noise levels of a whole "
        "run: S steps go from one level to the next, so there are S + 1 levels. img2img runs "
        "only the last steps, and strength * S says how many. If this is not a whole number, "
        "round it down. Return the levels of these steps. At strength 0, no step is run, and the "
        "list holds only the last level. At strength 1, it holds all levels. (For the check, a "
        "level is only a number.)"
    ),
    solution=remaining_levels,
    stages=(
        Stage("half of 8 steps", 1, inputs(8, 0.5)),
        Stage("7.7 of 10 steps", 1, inputs(10, 0.77)),
        Stage("7.2 of 10 steps", 1, inputs(10, 0.72)),
        Stage("strength 0", 1, inputs(5, 0)),
        Stage("strength 1", 1, inputs(5, 1)),
    ),
    hints=(
        "How many steps has the whole run, if there are len(levels) levels?",
        "run = int(steps * strength) steps are left. They need run + 1 levels: the last ones.",
        "Skip the first steps - run levels: levels[steps - run :]. This also works if run is 0, "
        "but levels[-run:] does not.",
    ),
    mistakes={
        "The number of steps is rounded to the nearest whole number. Round it down.": nearest_count,
        "The number of steps is rounded up. Round it down.": count_above,
        "One level is missing: n steps have n + 1 levels.": one_level_too_few,
        "These are the first levels. img2img runs the last steps, with less noise.": first_levels,
        "You counted the levels. The number of steps is S = len(levels) - 1.": count_levels,
        "The strength is the share of the steps that are run, not of those that are skipped.": (
            skip_this_share
        ),
        "This is the number of steps. Return the list of their levels.": count_steps,
    },
    passing="Inpainting and depth-to-image choose their steps in the same way.",
    difficulty=1,
    minutes=8,
    in_picture={"minisd.tasks.img2img.remaining_levels": lambda answer: answer},
    draw=redraw_apple,
    in_lesson=True,
)
