"""The t that SD's DDIM visits."""

import math

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, draw_choice
from minisd.schedule import Level


def leading(steps, timesteps):
    """The t of each step, the largest first.

    steps, timesteps: whole numbers    returns: a list of `steps` whole numbers
    """
    stride = timesteps // steps
    first = 0 if steps == timesteps else 1
    rising = [first + stride * k for k in range(steps)]
    return rising[::-1]


def smallest_first(steps, timesteps):
    return leading(steps, timesteps)[::-1]


def without_one(steps, timesteps):
    return [t - 1 if steps < timesteps else t for t in leading(steps, timesteps)]


def one_always(steps, timesteps):
    stride = timesteps // steps
    return [1 + stride * k for k in range(steps)][::-1]


def broken_stride(steps, timesteps):
    first = 0 if steps == timesteps else 1
    return [first + timesteps / steps * k for k in range(steps)][::-1]


def rounded_stride(steps, timesteps):
    first = 0 if steps == timesteps else 1
    return [first + round(timesteps / steps * k) for k in range(steps)][::-1]


def stride_rounded_up(steps, timesteps):
    first = 0 if steps == timesteps else 1
    return [first + math.ceil(timesteps / steps) * k for k in range(steps)][::-1]


def down_from_top(steps, timesteps):
    return [timesteps - 1 - timesteps // steps * k for k in range(steps)]


def begin_at_stride(steps, timesteps):
    return [timesteps // steps * (k + 1) for k in range(steps)][::-1]


def one_step_more(steps, timesteps):
    stride = timesteps // steps
    first = 0 if steps == timesteps else 1
    return [first + stride * k for k in range(steps + 1)][::-1]


def reach_both_ends(steps, timesteps):
    return [round((timesteps - 1) * k / (steps - 1)) for k in range(steps)][::-1]


def as_method(answer):
    """The answer as Schedule.leading, which returns Levels."""

    def method(self, steps):
        timesteps = self.config.timesteps
        if not 1 <= steps <= timesteps:
            raise ValueError(f"steps must be 1 to {timesteps}, got {steps}.")
        return [Level(t, float(self.sigmas[t])) for t in answer(steps, timesteps)]

    return method


EXERCISE = Exercise(
    name="leading",
    lesson="03",
    place=1,
    title="Which t does DDIM visit?",
    question=(
        "The network was trained on `timesteps` values of t, usually 1000, but a sampler visits "
        "only a few of them. Write `leading(steps, timesteps)`, the rule of Stable Diffusion's "
        "DDIM. The stride is timesteps divided by steps, rounded down. The values of t are 1, 1 "
        "+ stride, 1 + 2 * stride, and so on. Return `steps` of them, the largest first. There "
        "is one exception: if steps equals timesteps, begin with 0. Otherwise the largest t "
        "would be `timesteps`, which does not exist."
    ),
    solution=leading,
    stages=(
        Stage("the stride is whole", 1, lambda g: [draw_choice(g, [4, 5, 10, 20]), 1000]),
        Stage("the stride is rounded down", 1, lambda g: [draw_choice(g, [7, 12, 30, 60]), 1000]),
        Stage("every t", 1, lambda g: [n := draw_choice(g, [20, 30, 40]), n]),
    ),
    hints=(
        "For 4 steps of 1000, the result is 751, 501, 251, 1.",
        "// divides and rounds down. range(steps) gives the numbers 0 to steps - 1.",
        "[first + stride * k for k in range(steps)], and then [::-1] turns the list around.",
    ),
    mistakes={
        "Return the largest t first.": smallest_first,
        "The smallest t should be 1, not 0.": without_one,
        "If steps equals timesteps, begin with 0. The largest t is then timesteps - 1.": one_always,
        "Round the stride down: use //.": broken_stride,
        "Round the stride down first. You rounded after multiplying.": rounded_stride,
        "You rounded the stride up. Round it down.": stride_rounded_up,
        "You went down from timesteps - 1. Go up from 1, then reverse the list.": (down_from_top),
        "The smallest t should be 1, not the stride.": begin_at_stride,
        "There is one t too many. Return `steps` of them.": one_step_more,
        "You spread the t evenly from 0 to timesteps - 1. Begin with 1, and add the stride.": (
            reach_both_ends
        ),
    },
    passing="With 30 steps, the largest t is 958: DDIM never sees pure noise at t = 999.",
    difficulty=1,
    minutes=10,
    replaces={"minisd.schedule.Schedule.leading": as_method},
    draw=draw_cat,
)
