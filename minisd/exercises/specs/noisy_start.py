"""The latent from which img2img starts."""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import redraw_apple


def noisy_start(z, noise, sigmas, strength):
    """The picture's latent, with the noise of the level at which img2img starts.

    z: b 4 h w, the latent of the picture    noise: b 4 h w, with variance 1
    sigmas: a list of S + 1 sigmas, the largest first
    strength: 0 to 1
    returns: b 4 h w, on the variance-preserving scale
    """
    steps = len(sigmas) - 1
    sigma = sigmas[steps - int(steps * strength)]
    signal_rate = 1 / (1 + sigma**2) ** 0.5
    noise_rate = sigma * signal_rate
    return signal_rate * z + noise_rate * noise


def at(sigmas, strength):
    steps = len(sigmas) - 1
    return sigmas[steps - int(steps * strength)]


def sigma_scale(z, noise, sigmas, strength):
    return z + at(sigmas, strength) * noise


def without_root(z, noise, sigmas, strength):
    sigma = at(sigmas, strength)
    return (z + sigma * noise) / (1 + sigma**2)


def without_square(z, noise, sigmas, strength):
    sigma = at(sigmas, strength)
    return (z + sigma * noise) / (1 + sigma)


def full_noise(z, noise, sigmas, strength):
    sigma = at(sigmas, strength)
    return z / (1 + sigma**2) ** 0.5 + sigma * noise


def full_signal(z, noise, sigmas, strength):
    sigma = at(sigmas, strength)
    return z + sigma / (1 + sigma**2) ** 0.5 * noise


def other_rates(z, noise, sigmas, strength):
    return noisy_start(noise, z, sigmas, strength)


def whole_run(z, noise, sigmas, strength):
    return noisy_start(z, noise, sigmas, 1)


def next_level(z, noise, sigmas, strength):
    return noisy_start(z, noise, [*sigmas[1:], 0.0, 0.0], strength)


def other_end(z, noise, sigmas, strength):
    return noisy_start(z, noise, sigmas, 1 - strength)


def only_noise(z, noise, sigmas, strength):
    return noisy_start(0 * z, noise, sigmas, strength)


def inputs(shape, steps, strength):
    def draw(g):
        sigmas = 5 * torch.rand(steps, generator=g, dtype=torch.float64)
        sigmas = [*sigmas.sort(descending=True).values.tolist(), 0.0]
        return [normal(g, *shape), normal(g, *shape), sigmas, strength]

    return draw


EXERCISE = Exercise(
    name="noisy_start",
    lesson="11",
    place=2,
    title="The start of img2img",
    question=(
        "Write `noisy_start(z, noise, sigmas, strength)`. First find the sigma at which the "
        "steps start: of S steps, the last int(strength * S) are run. Then add noise of this "
        "level to z, on the scale that the network reads: return signal_rate * z + noise_rate * "
        "noise. The squares of the two rates add up to 1, and noise_rate / signal_rate is sigma. "
        "So signal_rate is 1 / sqrt(1 + sigma²)."
    ),
    solution=noisy_start,
    stages=(
        Stage("one number, strength 1", 1, inputs((1, 1, 1, 1), 3, 1)),
        Stage("a latent, 4 of 7 steps", 2, inputs((1, 4, 3, 5), 7, 0.6)),
        Stage("a batch of 2, strength 0.5", 1, inputs((2, 4, 5, 3), 9, 0.5)),
        Stage("strength 0", 1, inputs((1, 4, 3, 5), 4, 0)),
    ),
    hints=(
        "You have two tasks: find the sigma, and compute the sum of two terms.",
        "sigma = sigmas[steps - int(steps * strength)], with steps = len(sigmas) - 1.",
        "signal_rate = 1 / (1 + sigma**2) ** 0.5, and noise_rate = sigma * signal_rate. At sigma "
        "0 the result is z.",
    ),
    mistakes={
        "This is z + sigma noise. The network reads it divided by sqrt(1 + sigma²).": sigma_scale,
        "The square root of 1 + sigma² is missing.": without_root,
        "The rates need 1 + sigma², not 1 + sigma.": without_square,
        "noise_rate is sigma * signal_rate, not sigma.": full_noise,
        "z is not multiplied by signal_rate.": full_signal,
        "The two rates are swapped: signal_rate belongs to z.": other_rates,
        "You always start at the first sigma. The strength decides where to start.": whole_run,
        "You start one level too late.": next_level,
        "You start at 1 - strength: a high strength should mean much noise.": other_end,
        "The picture's latent is missing. The noise must be added to it.": only_noise,
    },
    passing="A crude drawing with this noise looks like a good drawing with this noise.",
    difficulty=2,
    minutes=12,
    needs=("remaining_levels",),
    in_picture={
        "minisd.tasks.img2img.add_noise": lambda answer: (
            lambda z, noise, level: answer(z, noise, [level.sigma, 0.0], 1)
        )
    },
    draw=redraw_apple,
)
