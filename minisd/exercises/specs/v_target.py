"""What a network should predict that is trained on v."""

import torch
from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal


def v_target(x0, noise, alpha_bar):
    """The v of each sample of a training batch.

    x0, noise: b c h w    alpha_bar: b numbers, one for each sample    returns: b c h w
    """
    alpha_bar = rearrange(alpha_bar, "b -> b 1 1 1")
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0


def rates(alpha_bar):
    alpha_bar = rearrange(alpha_bar, "b -> b 1 1 1")
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def swap_rates(x0, noise, alpha_bar):
    return v_target(x0, noise, 1 - alpha_bar)


def other_sign(x0, noise, alpha_bar):
    return -v_target(x0, noise, alpha_bar)


def noisy_latent(x0, noise, alpha_bar):
    return v_target(-noise, x0, alpha_bar)


def plus(x0, noise, alpha_bar):
    return v_target(-x0, noise, alpha_bar)


def swap_x0_and_noise(x0, noise, alpha_bar):
    return v_target(noise, x0, alpha_bar)


def without_roots(x0, noise, alpha_bar):
    signal, other = rates(alpha_bar)
    return signal**2 * noise - other**2 * x0


def one_root(x0, noise, alpha_bar):
    signal, _ = rates(alpha_bar)
    return signal * noise - (1 - signal) * x0


def flow(x0, noise, alpha_bar):
    return noise - x0


def along_width(x0, noise, alpha_bar):
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0


def first_level(x0, noise, alpha_bar):
    return v_target(x0, noise, alpha_bar[:1].repeat(len(alpha_bar)))


def mean_level(x0, noise, alpha_bar):
    return v_target(x0, noise, alpha_bar.mean().repeat(len(alpha_bar)))


def inputs(b, c, h, w):
    def draw(g):
        alpha_bar = torch.rand(b, generator=g, dtype=torch.float64)
        return [normal(g, b, c, h, w), normal(g, b, c, h, w), alpha_bar]

    return draw


def as_velocity(answer):
    """The answer as Schedule.velocity(), which gets t instead of alpha_bar."""

    def velocity(self, x0, noise, t):
        alpha_bar = 1 / (1 + self.sigma(t) ** 2)
        return answer(x0, noise, alpha_bar.expand(len(x0)).to(x0))

    return velocity


EXERCISE = Exercise(
    name="v_target",
    lesson="16",
    place=2,
    title="The target v",
    question=(
        "Write `v_target(x0, noise, alpha_bar)`: the target of a network that predicts v. v is "
        "the noise times the square root of alpha_bar, minus x0 times the square root of 1 - "
        "alpha_bar. Each sample of the batch has its own alpha_bar."
    ),
    solution=v_target,
    stages=(
        Stage("one number", 1, inputs(1, 1, 1, 1)),
        Stage("one latent", 1, inputs(1, 4, 3, 5)),
        Stage("a batch of 3, 3 columns", 2, inputs(3, 4, 5, 3)),
    ),
    hints=(
        "alpha_bar has one axis, and x0 has four. Which axis of x0 belongs to it?",
        'rearrange(alpha_bar, "b -> b 1 1 1") makes it fit all pixels of a sample.',
        "alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0",
    ),
    mistakes={
        "The two rates are swapped. The square root of alpha_bar belongs to the noise.": swap_rates,
        "The sign is wrong. Subtract x0, not the noise.": other_sign,
        "This is the noisy latent x. In v, the rates are exchanged and x0 is subtracted.": (
            noisy_latent
        ),
        "You added x0. Subtract it.": plus,
        "x0 and the noise are swapped. The noise comes first, and x0 is subtracted.": (
            swap_x0_and_noise
        ),
        "The square roots are missing. Take those of alpha_bar and of 1 - alpha_bar.": (
            without_roots
        ),
        "You took 1 minus the root of alpha_bar. Take the root of 1 - alpha_bar.": one_root,
        "This is noise - x0, the target of flow matching. Multiply both by their rates.": flow,
        "alpha_bar met the columns, the last axis. It belongs to the first axis: b 1 1 1.": (
            along_width
        ),
        "All samples have the alpha_bar of the first one. Each has its own.": first_level,
        "All samples have the mean of alpha_bar. Each has its own.": mean_level,
    },
    passing="In pure noise, v is -x0. So there is something to learn even there.",
    difficulty=1,
    minutes=8,
    replaces={"minisd.schedule.Schedule.velocity": as_velocity},
)
