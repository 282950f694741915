"""DDIM, the sampler that draws the usual picture of the mini."""

from itertools import pairwise

import torch

from minisd.exercises.calls import Made
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.samplers import Step


def ddim(denoise, x, levels):
    """Yield the next x for each step from one level to the next.

    denoise(x, level): returns a prediction, with prediction.x0 and prediction.eps
    x: b c h w, with the noise of levels[0]    levels: S + 1 noise levels, the noisiest first
    """
    for index in range(len(levels) - 1):
        prediction = denoise(x, levels[index])
        below = levels[index + 1]
        x = below.signal_rate * prediction.x0 + below.noise_rate * prediction.eps
        yield x


def walk(rule):
    """A sampler with this rule for one step."""

    def sampler(denoise, x, levels):
        for level, below in pairwise(levels):
            x = rule(x, denoise(x, level), level, below)
            yield x

    return sampler


def never_update(denoise, x, levels):
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        yield below.signal_rate * guess.x0 + below.noise_rate * guess.eps


def yield_before(denoise, x, levels):
    for level, below in pairwise(levels):
        yield x
        guess = denoise(x, level)
        x = below.signal_rate * guess.x0 + below.noise_rate * guess.eps


def yield_start(denoise, x, levels):
    yield x
    yield from ddim(denoise, x, levels)


def only_last(denoise, x, levels):
    *_, last = ddim(denoise, x, levels)
    return last


def one_step_less(denoise, x, levels):
    return ddim(denoise, x, levels[:-1])


def upwards(denoise, x, levels):
    return ddim(denoise, x, levels[::-1])


def falling_sigmas(g, count):
    """Sigmas from about 10 to about 0.1, the largest first, at uneven distances."""
    ramp = torch.linspace(2.3, -2.3, count, dtype=torch.float64)
    shift = 2 / count * torch.rand(count, generator=g, dtype=torch.float64)
    return (ramp + shift).exp().tolist()


def levels_of(sigmas):
    return [Made("level", {"sigma": sigma, "t": 100.0 * sigma}) for sigma in sigmas]


def inputs(steps, size, end):
    def draw(g):
        sigmas = falling_sigmas(g, steps) + end
        return [Made("denoise", {"gain": 1.3}), normal(g, *size), levels_of(sigmas)]

    return draw


def as_sampler(answer):
    """The answer as a function of samplers.py, which yields Steps."""

    def sampler(denoise, x, levels, generators=None, eta=0.0):
        if eta:
            raise ValueError(f"your ddim() has no eta, got {eta}. Leave eta out.")
        seen = []

        def watch(x, level):
            seen.append(denoise(x, level))
            return seen[-1]

        for index, moved in enumerate(answer(watch, x, levels)):
            yield Step(index, levels[index].t, levels[index].sigma, seen[0], moved)
            seen.clear()

    return sampler


EXERCISE = Exercise(
    name="ddim",
    lesson="03",
    place=3,
    title="DDIM",
    question=(
        "Write the sampler `ddim(denoise, x, levels)`. It is a generator function, a function with "
        "`yield`: it yields the next x after each step, so S values for S + 1 levels. (Yield x "
        "alone. The package's samplers also yield the prediction.) In a step from one level to "
        "the next, call `denoise(x, level)`. It returns a prediction: `prediction.x0` is the "
        "guess, and `prediction.eps` is the noise. Put both together again with the rates of the "
        "next level: its `signal_rate` for the guess, its `noise_rate` for the noise. There is no "
        "random part."
    ),
    solution=ddim,
    stages=(
        Stage("one step to no noise", 1, inputs(1, (1, 1, 2, 3), [0.0])),
        Stage("two steps that end with some noise", 1, inputs(3, (1, 2, 3, 2), [])),
        Stage("six steps, a batch of 2", 2, inputs(6, (2, 4, 3, 5), [0.0])),
    ),
    hints=(
        "Loop over pairs of neighbouring levels: itertools.pairwise(levels).",
        "denoise gets the level where the step starts. The new x gets the rates of the level "
        "where the step ends.",
        "x = next_level.signal_rate * prediction.x0 + next_level.noise_rate * prediction.eps, and "
        "then yield x inside the loop.",
    ),
    mistakes={
        "Your x does not change. Use the rates of the next level, where the step ends.": walk(
            lambda x, guess, level, below: (
                level.signal_rate * guess.x0 + level.noise_rate * guess.eps
            )
        ),
        "Each step should go on from the x of the step before.": never_update,
        "You yield x before the step. Yield it after the step.": yield_before,
        "Do not yield the x from which you start. There is one x for each step.": yield_start,
        "Yield x after each step, not only at the end.": only_last,
        "Your `yield` comes after the loop. Put it inside.": lambda *given: [only_last(*given)],
        "The last step is missing. There is one step for each pair of levels.": one_step_less,
        "The levels are already in order: the noisiest comes first.": upwards,
        "You multiplied the guess by alpha_bar. Multiply it by its root, signal_rate.": walk(
            lambda x, guess, level, below: below.alpha_bar * guess.x0 + below.noise_rate * guess.eps
        ),
        "You used alpha_bar and 1 - alpha_bar. Use their roots, signal_rate and noise_rate.": walk(
            lambda x, guess, level, below: (
                below.alpha_bar * guess.x0 + (1 - below.alpha_bar) * guess.eps
            )
        ),
        "The noise rate is the root of (1 - alpha_bar), not 1 - signal_rate.": walk(
            lambda x, guess, level, below: (
                below.signal_rate * guess.x0 + (1 - below.signal_rate) * guess.eps
            )
        ),
        "You multiplied the noise by sigma. Multiply it by noise_rate.": walk(
            lambda x, guess, level, below: below.signal_rate * guess.x0 + below.sigma * guess.eps
        ),
        "Put the guess x0 and the noise together, not x and the noise.": walk(
            lambda x, guess, level, below: below.signal_rate * x + below.noise_rate * guess.eps
        ),
        "This yields the guess x0 itself. Add the noise of the next level.": walk(
            lambda x, guess, level, below: guess.x0
        ),
        "The noise is missing. Add noise_rate of the next level times eps.": walk(
            lambda x, guess, level, below: below.signal_rate * guess.x0
        ),
        "The two rates are swapped: signal_rate belongs to x0, and noise_rate to eps.": walk(
            lambda x, guess, level, below: (
                below.noise_rate * guess.x0 + below.signal_rate * guess.eps
            )
        ),
    },
    passing="The mini draws with your sampler now. DDIM was the first sampler of Stable Diffusion.",
    difficulty=2,
    minutes=10,
    needs=("ddim_step",),
    given="from itertools import pairwise",
    replaces={"minisd.samplers.ddim": as_sampler},
    draw=draw_cat,
    in_lesson=True,
)
