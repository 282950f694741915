"""DDPM, with the noise given from outside."""

from itertools import pairwise

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs.ddim import as_sampler, falling_sigmas, levels_of
from minisd.samplers import unit_noise


def ddpm(denoise, x, levels, noises):
    """Yield the next x for each step from one level to the next.

    denoise(x, level): returns a prediction, with prediction.x0 and prediction.eps
    x: b c h w, with the noise of levels[0]    levels: S + 1 noise levels, the noisiest first
    noises: S tensors like x, one for each step, with variance 1
    """
    for index in range(len(levels) - 1):
        level, below = levels[index], levels[index + 1]
        x0 = denoise(x, level).x0
        alpha = level.alpha_bar / below.alpha_bar
        beta = 1 - alpha
        rest = (1 - below.alpha_bar) / (1 - level.alpha_bar)
        mean = below.signal_rate * beta / (1 - level.alpha_bar) * x0 + alpha**0.5 * rest * x
        x = mean + (beta * rest) ** 0.5 * noises[index]
        yield x


def walk(rule):
    """A sampler with another rule for one step: from mean, variance, beta and noise."""

    def sampler(denoise, x, levels, noises):
        for (level, below), noise in zip(pairwise(levels), noises, strict=True):
            guess = denoise(x, level)
            beta = 1 - level.alpha_bar / below.alpha_bar
            rest = (1 - below.alpha_bar) / (1 - level.alpha_bar)
            mean = below.signal_rate * beta / (1 - level.alpha_bar) * guess.x0
            mean = mean + (1 - beta) ** 0.5 * rest * x
            x = rule(mean, beta * rest, beta, noise, guess)
            yield x

    return sampler


def same_noise(denoise, x, levels, noises):
    return ddpm(denoise, x, levels, [noises[0]] * len(noises))


def last_noise_first(denoise, x, levels, noises):
    return ddpm(denoise, x, levels, noises[::-1])


def never_update(denoise, x, levels, noises):
    for index in range(len(noises)):
        yield from ddpm(denoise, x, levels[index : index + 2], noises[index : index + 1])


def ask_at_next(denoise, x, levels, noises):
    for index, below in enumerate(levels[1:]):
        start = levels[index : index + 2]
        (x,) = ddpm(lambda x, _, below=below: denoise(x, below), x, start, [noises[index]])
        yield x


def noise_by_noise_rate(denoise, x, levels, noises):
    for index, below in enumerate(levels[1:]):
        zeros = [0 * noises[index]]
        (mean,) = ddpm(denoise, x, levels[index : index + 2], zeros)
        x = mean + below.noise_rate * noises[index]
        yield x


def yield_start(denoise, x, levels, noises):
    yield x
    yield from ddpm(denoise, x, levels, noises)


def ddim_and_noise(denoise, x, levels, noises):
    for (level, below), noise in zip(pairwise(levels), noises, strict=True):
        guess = denoise(x, level)
        beta = 1 - level.alpha_bar / below.alpha_bar
        variance = beta * (1 - below.alpha_bar) / (1 - level.alpha_bar)
        x = below.signal_rate * guess.x0 + below.noise_rate * guess.eps + variance**0.5 * noise
        yield x


def inputs(steps, size, end):
    def draw(g):
        levels = levels_of(falling_sigmas(g, steps) + end)
        noises = [normal(g, *size) for _ in levels[1:]]
        return [Made("denoise", {"gain": 1.3}), normal(g, *size), levels, noises]

    return draw


def as_ddpm(answer):
    """The answer as samplers.ddpm. The noise of all steps is drawn first, in the same order."""

    def sampler(denoise, x, levels, generators):
        noises = [unit_noise(x, generators) for _ in levels[1:]]
        given = as_sampler(lambda *arguments: answer(*arguments, noises))
        yield from given(denoise, x, levels)

    return sampler


EXERCISE = Exercise(
    name="ddpm",
    lesson="03",
    place=5,
    title="DDPM",
    question=(
        "Write the sampler `ddpm(denoise, x, levels, noises)`. It yields the next x after each "
        "step. In each step, `denoise(x, level)` gives a prediction, and `prediction.x0` is the "
        "guess. Compute the mean and the variance as in `posterior`. The next x is mean + "
        "deviation * noise. The deviation is the root of the variance, and the noise of step i "
        "is `noises[i]`. `noises` holds one tensor for each step. A level has `alpha_bar`, "
        "`signal_rate` (its root) and `noise_rate` (the root of 1 - alpha_bar)."
    ),
    solution=ddpm,
    stages=(
        Stage("one step", 1, inputs(2, (1, 1, 2, 3), [])),
        Stage("a step to no noise", 1, inputs(1, (1, 2, 3, 2), [0.0])),
        Stage("six steps, a batch of 2", 2, inputs(6, (2, 4, 3, 5), [0.0])),
    ),
    hints=(
        "You may put your posterior() into the same cell, and call it.",
        "alpha = level.alpha_bar / next_level.alpha_bar. The standard deviation is the root of "
        "the variance.",
        "x = mean + variance ** 0.5 * noises[index], and then yield x. The guess comes from "
        "denoise(x, level).x0.",
    ),
    mistakes={
        "You multiplied the noise by the variance. Multiply it by the root of the variance.": walk(
            lambda mean, variance, beta, noise, guess: mean + variance * noise
        ),
        "This is only the mean. Add the noise, times the standard deviation.": walk(
            lambda mean, variance, beta, noise, guess: mean
        ),
        "Your variance is beta, the larger of the paper's two. Use that of `posterior`.": (
            walk(lambda mean, variance, beta, noise, guess: mean + beta**0.5 * noise)
        ),
        "Add the given noise, not the predicted noise eps.": walk(
            lambda mean, variance, beta, noise, guess: mean + variance**0.5 * guess.eps
        ),
        "The noise is added without its factor, the standard deviation.": walk(
            lambda mean, variance, beta, noise, guess: mean + noise
        ),
        "You subtracted the noise. Add it.": walk(
            lambda mean, variance, beta, noise, guess: mean - variance**0.5 * noise
        ),
        "Every step adds the same noise. Step i adds noises[i].": same_noise,
        "The first step should take the first noise.": last_noise_first,
        "Each step should go on from the x of the step before.": never_update,
        "denoise should get the level where the step starts: x has the noise of that level.": (
            ask_at_next
        ),
        "You multiplied by the noise rate. Multiply the noise by the root of the variance.": (
            noise_by_noise_rate
        ),
        "Do not yield the x from which you start. There is one x for each step.": yield_start,
        "The mean is that of DDIM, so x gets too much noise. Use the mean of `posterior`.": (
            ddim_and_noise
        ),
    },
    passing="With many steps, this sampler is the standard to which all others are compared.",
    difficulty=2,
    minutes=20,
    needs=("posterior",),
    replaces={"minisd.samplers.ddpm": as_ddpm},
    draw=lambda sd: sd.txt2img("a blue cat on a red background", steps=15, seed=1, sampler="ddpm"),
)
