"""Euler ancestral: a step too far, then some noise back."""

from itertools import pairwise

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs.euler import as_sigma_sampler, draw_with_sampler
from minisd.exercises.specs.euler import inputs as inputs_without_noise
from minisd.samplers import unit_noise


def euler_ancestral(denoise, x, sigmas, noises):
    """Yield the next x for each step from one sigma to the next.

    denoise(x, sigma): returns the guess x0
    x: b c h w, which is x0 + sigmas[0] * eps    sigmas: S + 1 numbers, the largest first
    noises: S tensors like x, one for each step, with variance 1
    """
    for index in range(len(sigmas) - 1):
        sigma, end = sigmas[index], sigmas[index + 1]
        below = end**2 / sigma
        spread = (end**2 - below**2) ** 0.5
        slope = (x - denoise(x, sigma)) / sigma
        x = x + (below - sigma) * slope + spread * noises[index]
        yield x


def walk(below, spread):
    """The sampler with other rules: below(sigma, end), spread(sigma, end, below)."""

    def sampler(denoise, x, sigmas, noises):
        for (sigma, end), noise in zip(pairwise(sigmas), noises, strict=True):
            low = below(sigma, end)
            slope = (x - denoise(x, sigma)) / sigma
            x = x + (low - sigma) * slope + spread(sigma, end, low) * noise
            yield x

    return sampler


def right_below(sigma, end):
    return end**2 / sigma


def right_spread(sigma, end, below):
    return end * (1 - (end / sigma) ** 2) ** 0.5


def same_noise(denoise, x, sigmas, noises):
    return euler_ancestral(denoise, x, sigmas, [noises[0]] * len(noises))


def never_update(denoise, x, sigmas, noises):
    for index in range(len(noises)):
        yield from euler_ancestral(denoise, x, sigmas[index : index + 2], noises[index : index + 1])


def noise_before(denoise, x, sigmas, noises):
    for (sigma, end), noise in zip(pairwise(sigmas), noises, strict=True):
        low = right_below(sigma, end)
        x = x + right_spread(sigma, end, low) * noise
        x = x + (low - sigma) * (x - denoise(x, sigma)) / sigma
        yield x


def ask_at_next(denoise, x, sigmas, noises):
    for (sigma, end), noise in zip(pairwise(sigmas), noises, strict=True):
        low = right_below(sigma, end)
        slope = (x - denoise(x, end)) / sigma
        x = x + (low - sigma) * slope + right_spread(sigma, end, low) * noise
        yield x


def inputs(count, size, end):
    def draw(g):
        arguments = inputs_without_noise(count, size, end)(g)
        return [*arguments, [normal(g, *size) for _ in arguments[2][1:]]]

    return draw


def as_ancestral(answer):
    """The answer as samplers.euler_ancestral. The noise of all steps is drawn first."""

    def sampler(denoise, x, levels, generators):
        noises = [unit_noise(x, generators) for _ in levels[1:]]
        given = as_sigma_sampler(lambda *arguments: answer(*arguments, noises))
        yield from given(denoise, x, levels)

    return sampler


EXERCISE = Exercise(
    name="euler_ancestral",
    lesson="03",
    place=10,
    title="Euler ancestral",
    question=(
        "Write the sampler `euler_ancestral(denoise, x, sigmas, noises)`, which yields the next "
        "x after each step. Each step has two parts. First, a step of Euler goes further down "
        "than to the next sigma: it ends at below = (next sigma squared) / sigma. Then add the "
        "noise of this step, `noises[i]`, times a spread. This brings x up to the next sigma "
        "again: below squared plus spread squared is next sigma squared."
    ),
    solution=euler_ancestral,
    stages=(
        Stage("one step", 1, inputs(2, (1, 1, 2, 3), [])),
        Stage("six steps, a batch of 2", 2, inputs(6, (2, 4, 3, 5), [0.0])),
    ),
    hints=(
        "Begin with euler(), and change where its step ends.",
        "Variances of independent noise are added. So spread squared is next sigma squared minus "
        "below squared.",
        "below = next_sigma ** 2 / sigma, spread = (next_sigma ** 2 - below ** 2) ** 0.5, then "
        "x = x + (below - sigma) * slope + spread * noises[i].",
    ),
    mistakes={
        "No noise is added. Add spread times noises[i].": walk(
            right_below, lambda sigma, end, low: 0
        ),
        "The step of Euler should end at `below`, not at the next sigma.": (
            walk(lambda sigma, end: end, right_spread)
        ),
        "Use the spread itself, not its square.": walk(
            right_below, lambda sigma, end, low: right_spread(sigma, end, low) ** 2
        ),
        "The spread is not next sigma - below. Take the root of the difference of their squares.": (
            walk(right_below, lambda sigma, end, low: end - low)
        ),
        "The noise is added without its factor, the spread.": walk(
            right_below, lambda sigma, end, low: 1
        ),
        "The spread should bring x up to the next sigma, not up to the old sigma.": walk(
            right_below, lambda sigma, end, low: (sigma**2 - low**2) ** 0.5
        ),
        "The spread is not the next sigma: below squared has to be subtracted.": walk(
            right_below, lambda sigma, end, low: end
        ),
        "`below` is next sigma squared divided by sigma. The square is missing.": walk(
            lambda sigma, end: end / sigma,
            lambda sigma, end, low: max(end**2 - low**2, 0) ** 0.5,
        ),
        "You subtracted the noise. Add it.": walk(
            right_below, lambda sigma, end, low: -right_spread(sigma, end, low)
        ),
        "Make the step of Euler first. Then add the noise.": noise_before,
        "Every step adds the same noise. Step i adds noises[i].": same_noise,
        "Each step should go on from the x of the step before.": never_update,
        "denoise should get the sigma where the step starts.": ask_at_next,
    },
    passing="This is DDPM on the other scale. If you use more steps, the picture keeps changing.",
    difficulty=2,
    minutes=15,
    needs=("euler", "ddpm"),
    replaces={"minisd.samplers.euler_ancestral": as_ancestral},
    draw=draw_with_sampler("euler_ancestral"),
)
