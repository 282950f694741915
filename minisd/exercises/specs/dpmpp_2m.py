"""DPM++ 2M: extrapolate the guess."""

import math
from itertools import pairwise

from minisd.exercises.exercise import Exercise, Stage
from minisd.exercises.specs.euler import as_sigma_sampler, draw_with_sampler, inputs


def dpmpp_2m(denoise, x, sigmas):
    """Yield the next x for each step from one sigma to the next.

    denoise(x, sigma): returns the guess x0
    x: b c h w, which is x0 + sigmas[0] * eps    sigmas: S + 1 numbers, the largest first
    """
    steps = len(sigmas) - 1
    x0_before = x  # the first step does not read it
    for index in range(steps):
        sigma, below = sigmas[index], sigmas[index + 1]
        x0 = denoise(x, sigma)
        guess = x0
        is_last = index == steps - 1
        if index > 0 and below > 0 and not (is_last and steps < 15):
            length = math.log(sigma / below)
            length_before = math.log(sigmas[index - 1] / sigma)
            guess = x0 + length / length_before / 2 * (x0 - x0_before)
        x0_before = x0
        x = below / sigma * x + (1 - below / sigma) * guess
        yield x


def walk(extrapolate, plain=None, blend=None, keep=None):
    """DPM++ 2M with other parts.

    extrapolate(x0, before, sigmas): the guess, from the sigmas before, at, and after this step
    plain(index, steps, below): whether the step does not extrapolate
    blend(x, guess, shrink): the next x
    keep(x0, guess, before): what the next step gets as the guess before
    """

    def is_plain(index, steps, below):
        return below == 0 or (index == steps - 1 and steps < 15)

    def sampler(denoise, x, sigmas):
        before = None
        for index, (sigma, below) in enumerate(pairwise(sigmas)):
            x0 = guess = denoise(x, sigma)
            if before is not None and not (plain or is_plain)(index, len(sigmas) - 1, below):
                guess = extrapolate(x0, before, (sigmas[index - 1], sigma, below))
            before = keep(x0, guess, before) if keep else x0
            shrink = below / sigma
            x = blend(x, guess, shrink) if blend else shrink * x + (1 - shrink) * guess
            yield x

    return sampler


def extrapolate_right(x0, before, sigmas):
    ratio = math.log(sigmas[1] / sigmas[2]) / math.log(sigmas[0] / sigmas[1])
    return x0 + ratio / 2 * (x0 - before)


def upside_down(x0, before, sigmas):
    ratio = math.log(sigmas[0] / sigmas[1]) / math.log(sigmas[1] / sigmas[2])
    return x0 + ratio / 2 * (x0 - before)


def differences(x0, before, sigmas):
    ratio = (sigmas[1] - sigmas[2]) / (sigmas[0] - sigmas[1])
    return x0 + ratio / 2 * (x0 - before)


def only_current_length(x0, before, sigmas):
    return x0 + math.log(sigmas[1] / sigmas[2]) / 2 * (x0 - before)


EXERCISE = Exercise(
    name="dpmpp_2m",
    lesson="03",
    place=9,
    title="DPM++ 2M",
    question=(
        "Write the sampler `dpmpp_2m(denoise, x, sigmas)`. It yields the next x after each step. "
        "A step from sigma to the next sigma blends x with a guess: next x = s * x + (1 - s) * "
        "guess, where s = next sigma / sigma. The guess is extrapolated: it is x0 + h / (2 * "
        "h_before) * (x0 - the x0 of the step before). h is the length of this step, the "
        "logarithm of (sigma / next sigma), and h_before is the length of the step before. Some "
        "steps do not extrapolate, but use x0 itself as the guess: the first step, a step to "
        "sigma 0, and the last step if there are fewer than 15 steps."
    ),
    solution=dpmpp_2m,
    stages=(
        Stage("one step", 1, inputs(2, (1, 1, 2, 3), [])),
        Stage("four steps to no noise", 1, inputs(4, (1, 2, 3, 2), [0.0])),
        Stage("three steps that end with some noise", 1, inputs(4, (1, 2, 3, 2), [])),
        Stage("sixteen steps, a batch of 2", 2, inputs(17, (2, 4, 3, 5), [])),
    ),
    hints=(
        "First write the sampler without extrapolation, with x0 as the guess. Then add the "
        "extrapolation.",
        "Keep the x0 of each step for the next step. This is what denoise returned, not the "
        "extrapolated guess.",
        "h = math.log(sigma / next_sigma), h_before = math.log(sigma_before / sigma), guess = x0 + "
        "h / (2 * h_before) * (x0 - x0_before). If next_sigma is 0, the logarithm does not exist.",
    ),
    mistakes={
        "No step extrapolates, so this is the same as Euler. Use the x0 of the step before.": (
            walk(lambda x0, before, s: x0)
        ),
        "The extrapolation is twice as large as it should be: divide h / h_before by 2.": walk(
            lambda x0, before, s: 2 * extrapolate_right(x0, before, s) - x0
        ),
        "The extrapolation goes backwards: it should be x0 minus the x0 before.": walk(
            lambda x0, before, s: 2 * x0 - extrapolate_right(x0, before, s)
        ),
        "The fraction is upside down. It should be h / h_before.": walk(upside_down),
        "The length of a step is the logarithm of sigma / next sigma, not the difference.": walk(
            differences
        ),
        "Divide h by h_before, the length of the step before.": walk(only_current_length),
        "The two steps have different lengths. Use h / h_before.": walk(
            lambda x0, before, s: x0 + (x0 - before) / 2
        ),
        "This is the mean of two guesses. Extrapolate instead.": walk(
            lambda x0, before, s: (x0 + before) / 2
        ),
        "Keep x0 for the next step, not the extrapolated guess.": walk(
            extrapolate_right, keep=lambda x0, guess, before: guess
        ),
        "Every step should use the x0 of the step directly before it.": walk(
            extrapolate_right, keep=lambda x0, guess, before: x0 if before is None else before
        ),
        "With fewer than 15 steps, the last step should not extrapolate.": walk(
            extrapolate_right, plain=lambda index, steps, below: below == 0
        ),
        "With 15 steps or more, the last step should extrapolate, unless it goes to sigma 0.": (
            walk(
                extrapolate_right,
                plain=lambda index, steps, below: below == 0 or index == steps - 1,
            )
        ),
        "A step to sigma 0 should not extrapolate: the logarithm of sigma / 0 does not exist.": (
            walk(extrapolate_right, plain=lambda index, steps, below: False)
        ),
        "The factors are swapped: x gets next sigma / sigma, the guess gets the rest.": walk(
            extrapolate_right, blend=lambda x, guess, shrink: shrink * guess + (1 - shrink) * x
        ),
        "Multiply x by next sigma / sigma.": walk(
            extrapolate_right, blend=lambda x, guess, shrink: x + (1 - shrink) * guess
        ),
        "Multiply the guess by 1 - next sigma / sigma.": walk(
            extrapolate_right, blend=lambda x, guess, shrink: shrink * x + guess
        ),
    },
    passing=(
        "It needs few steps, and only one call of the network in each. Many programs use it by "
        "default."
    ),
    difficulty=3,
    minutes=25,
    needs=("euler",),
    given="import math",
    replaces={"minisd.samplers.dpmpp_2m": as_sigma_sampler},
    draw=draw_with_sampler("dpmpp_2m"),
)
