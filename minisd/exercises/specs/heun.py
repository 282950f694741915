"""Heun: the mean of two slopes."""

from itertools import pairwise

from minisd.exercises.exercise import Exercise, Stage
from minisd.exercises.specs.euler import as_sigma_sampler, draw_with_sampler, inputs


def heun(denoise, x, sigmas):
    """Yield the next x for each step from one sigma to the next.

    denoise(x, sigma): returns the guess x0
    x: b c h w, which is x0 + sigmas[0] * eps    sigmas: S + 1 numbers, the largest first
    """
    for index in range(len(sigmas) - 1):
        sigma, below = sigmas[index], sigmas[index + 1]
        slope = (x - denoise(x, sigma)) / sigma
        if below > 0:
            trial = x + (below - sigma) * slope
            slope_there = (trial - denoise(trial, below)) / below
            slope = (slope + slope_there) / 2
        x = x + (below - sigma) * slope
        yield x


def slope_at_trial(denoise, x, trial, sigma, below):
    return (trial - denoise(trial, below)) / below


def walk(combine, second=slope_at_trial, keeps_trial=False):
    """Heun with other parts.

    combine(slope, slope_there): the slope of the step
    second(denoise, x, trial, sigma, below): the slope at the end
    keeps_trial: whether the step starts at the end of the trial
    """

    def sampler(denoise, x, sigmas):
        for sigma, below in pairwise(sigmas):
            slope = (x - denoise(x, sigma)) / sigma
            trial = x + (below - sigma) * slope
            if below > 0:
                slope = combine(slope, second(denoise, x, trial, sigma, below))
                x = trial if keeps_trial else x
            x = x + (below - sigma) * slope
            yield x

    return sampler


def mean(slope, slope_there):
    return (slope + slope_there) / 2


def also_at_zero(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        trial = x + (below - sigma) * slope
        slope = (slope + (trial - denoise(trial, below)) / below) / 2
        x = x + (below - sigma) * slope
        yield x


def half_at_zero(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        trial = x + (below - sigma) * slope
        slope_there = (trial - denoise(trial, below)) / below if below > 0 else 0
        x = x + (below - sigma) * (slope + slope_there) / 2
        yield x


def nothing_at_zero(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        if below > 0:
            (x,) = heun(denoise, x, [sigma, below])
        yield x


def yield_trial(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        yield x + (below - sigma) * slope
        (x,) = heun(denoise, x, [sigma, below])


def stays_at_the_start(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        yield from heun(denoise, x, [sigma, below])


def walk_away(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        if below > 0:
            trial = x + (sigma - below) * slope
            slope = (slope + (trial - denoise(trial, below)) / below) / 2
        x = x + (sigma - below) * slope
        yield x


def guess_as_slope(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        slope = denoise(x, sigma)
        if below > 0:
            slope = (slope + denoise(x + (below - sigma) * slope, below)) / 2
        x = x + (below - sigma) * slope
        yield x


def go_on_from_trial(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        (moved,) = heun(denoise, x, [sigma, below])
        yield moved
        x = x + (below - sigma) * (x - denoise(x, sigma)) / sigma


EXERCISE = Exercise(
    name="heun",
    lesson="03",
    place=8,
    title="Heun",
    question=(
        "The slope at x is (x - denoise(x, sigma)) / sigma: `denoise` returns the guess x0. Euler "
        "uses the slope at the start of a step for the whole step. Heun looks ahead. Write "
        "the sampler `heun(denoise, x, sigmas)`, which yields the next x after each step. First "
        "try a step of Euler. Compute the slope at the x where this trial ends, with the next "
        "sigma. Then make the step again from the old x, with the mean of both slopes. If the "
        "next sigma is 0, make a plain step of Euler, because the second slope would divide by 0."
    ),
    solution=heun,
    stages=(
        Stage("one step of Euler to no noise", 1, inputs(1, (1, 1, 2, 3), [0.0])),
        Stage("one step that ends with some noise", 1, inputs(2, (1, 2, 3, 2), [])),
        Stage("six steps, a batch of 2", 2, inputs(6, (2, 4, 3, 5), [0.0])),
    ),
    hints=(
        "You need the slope twice: at x, and at the end of the trial.",
        "The second slope needs the trial x and the next sigma. The trial is used for nothing "
        "else: the step starts from the old x.",
        "trial = x + (next_sigma - sigma) * slope. Then slope = (slope + slope_there) / 2, but "
        "only if next_sigma > 0. Then x = x + (next_sigma - sigma) * slope.",
    ),
    mistakes={
        "This is Euler: the second slope is not used.": walk(lambda slope, there: slope),
        "Use the mean of both slopes, not their sum.": walk(lambda slope, there: slope + there),
        "You use only the second slope. Use the mean of both.": walk(lambda slope, there: there),
        "The step should start from the old x, not from the end of the trial.": walk(
            mean, keeps_trial=True
        ),
        "The trial has the noise of the next sigma. You still use the old sigma.": walk(
            mean, lambda denoise, x, trial, sigma, below: (trial - denoise(trial, sigma)) / sigma
        ),
        "The second guess needs the next sigma: denoise(trial, next_sigma).": walk(
            mean, lambda denoise, x, trial, sigma, below: (trial - denoise(trial, sigma)) / below
        ),
        "Divide the second slope by the next sigma.": walk(
            mean, lambda denoise, x, trial, sigma, below: (trial - denoise(trial, below)) / sigma
        ),
        "Call denoise with the trial for the second slope, not with the old x.": walk(
            mean, lambda denoise, x, trial, sigma, below: (trial - denoise(x, below)) / below
        ),
        "Subtract the second guess from the trial, not from the old x.": walk(
            mean, lambda denoise, x, trial, sigma, below: (x - denoise(trial, below)) / below
        ),
        "The second slope belongs to the trial. You used the old x for it.": walk(
            mean, lambda denoise, x, trial, sigma, below: (x - denoise(x, below)) / below
        ),
        "If the next sigma is 0, make a plain step of Euler. You divided by 0.": also_at_zero,
        "In the step to sigma 0, use the whole first slope, not half of it.": half_at_zero,
        "The step to sigma 0 is missing. Make a plain step of Euler.": nothing_at_zero,
        "x never moves: every step must begin where the last one ended.": stays_at_the_start,
        "You walk away from the guess: the step is (next_sigma - sigma), which is negative.": (
            walk_away
        ),
        "denoise returns the guess x0, not the slope. The slope is (x - guess) / sigma.": (
            guess_as_slope
        ),
        "You yield the trial. Yield the x of the step with the mean slope.": yield_trial,
        "The next step should go on from the corrected x, not from the trial.": go_on_from_trial,
    },
    passing=(
        "Heun does twice the work in each step. If the steps are small, its errors are much "
        "smaller."
    ),
    difficulty=2,
    minutes=15,
    needs=("euler",),
    given="from itertools import pairwise",
    replaces={"minisd.samplers.heun": as_sigma_sampler},
    draw=draw_with_sampler("heun"),
    in_lesson=True,
)
