"""The forward process in one jump, Ho et al. 2020, eq. 4."""

import torch
from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.files.pictures import to_pil
from minisd.mini.cats_and_dogs import portraits
from minisd.mini.emoji import Emoji
from minisd.teaching import toy


def add_noise(x0, noise, alpha_bar):
    """Add noise to x0 in one jump. Each sample has its own alpha_bar.

    x0, noise: b c h w    alpha_bar: b, from 0 to 1    returns: b c h w
    """
    alpha_bar = rearrange(alpha_bar, "b -> b 1 1 1")
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def with_rates(rates):
    """The sum with other rates. rates: alpha_bar, b 1 1 1 -> the two rates."""

    def answer(x0, noise, alpha_bar):
        signal_rate, noise_rate = rates(rearrange(alpha_bar, "b -> b 1 1 1"))
        return signal_rate * x0 + noise_rate * noise

    return answer


def without_axes(x0, noise, alpha_bar):
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def without_axes_behind(x0, noise, alpha_bar):
    return x0 * alpha_bar.sqrt() + noise * (1 - alpha_bar).sqrt()


def shares(generator, *values):
    """alpha_bar of a batch: these values, or random ones where a value is None."""
    drawn = torch.rand(len(values), generator=generator, dtype=torch.float64)
    pairs = zip(values, drawn.tolist(), strict=True)
    return torch.tensor([d if v is None else v for v, d in pairs], dtype=torch.float64)


def as_method(answer):
    """The answer as Schedule.add_noise, which is given t."""

    def add_noise_of_t(self, x0, noise, t):
        sigma = self.sigma(t).expand(len(x0))
        return answer(x0, noise, (1 / (1 + sigma**2)).to(x0))

    return add_noise_of_t


def draw_noisy_pet(sd, t, in_steps=False):
    """The portrait of a pet whose latent has the noise of t, decoded."""
    image, _ = portraits(Emoji.load(), sd.config.size, 1)
    latent, generator = sd.encode(image), torch.Generator().manual_seed(0)
    if in_steps:
        walk = toy.small_steps(latent, sd.schedule, generator)
        x = next(x for i, x in enumerate(walk) if i == t)
    else:
        x = sd.schedule.add_noise(latent, torch.randn(latent.shape, generator=generator), t)
    return to_pil(sd.decode(x))[0]


def draw_at_250(sd):
    return draw_noisy_pet(sd, 250)


EXERCISE = Exercise(
    name="add_noise",
    lesson="01",
    place=4,
    title="Noise in one jump",
    question=(
        "Write `add_noise(x0, noise, alpha_bar)`. It adds noise in one jump: the square root of "
        "alpha_bar times x0, plus the square root of (1 - alpha_bar) times the noise. Each sample "
        "of the batch has its own alpha_bar."
    ),
    solution=add_noise,
    stages=(
        Stage("one number", 1, lambda g: [*normal(g, 2, 1, 1, 1, 1), 0.2 + 0.3 * shares(g, None)]),
        Stage(
            "three latents, each with its own alpha_bar",
            2,
            lambda g: [*normal(g, 2, 3, 4, 2, 5), shares(g, None, None, None)],
        ),
        Stage(
            "no noise, and nothing but noise",
            1,
            lambda g: [*normal(g, 2, 3, 4, 2, 5), shares(g, 1.0, 0.0, None)],
        ),
    ),
    hints=(
        "alpha_bar has one axis, x0 has four. torch lines up axes from the right, so the axis b "
        "of alpha_bar would meet the axis w of x0.",
        'Give alpha_bar the shape b 1 1 1: rearrange(alpha_bar, "b -> b 1 1 1").',
        "Then alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise.",
    ),
    mistakes={
        "Axes are lined up from the right, so b meets w. Give alpha_bar the shape b 1 1 1.": (
            without_axes
        ),
        "Axes are lined up from the right, so w meets b. Give alpha_bar the shape b 1 1 1.": (
            without_axes_behind
        ),
        "The square roots are missing. alpha_bar is a variance.": (
            with_rates(lambda alpha_bar: (alpha_bar, 1 - alpha_bar))
        ),
        "The square root is missing in front of the noise.": (
            with_rates(lambda alpha_bar: (alpha_bar.sqrt(), 1 - alpha_bar))
        ),
        "The square root is missing in front of x0.": (
            with_rates(lambda alpha_bar: (alpha_bar, (1 - alpha_bar).sqrt()))
        ),
        "This is 1 minus the root of alpha_bar. Take the root of (1 - alpha_bar).": (
            with_rates(lambda alpha_bar: (alpha_bar.sqrt(), 1 - alpha_bar.sqrt()))
        ),
        "The rates are swapped. The root of alpha_bar belongs to x0.": (
            with_rates(lambda alpha_bar: ((1 - alpha_bar).sqrt(), alpha_bar.sqrt()))
        ),
        "Both have the same rate. The noise needs the square root of (1 - alpha_bar).": (
            with_rates(lambda alpha_bar: (alpha_bar.sqrt(), alpha_bar.sqrt()))
        ),
        "x0 keeps its full size. Multiply it by the square root of alpha_bar.": (
            with_rates(lambda alpha_bar: (1, (1 - alpha_bar).sqrt()))
        ),
        "The noise keeps its full size. Multiply it by the square root of (1 - alpha_bar).": (
            with_rates(lambda alpha_bar: (alpha_bar.sqrt(), 1))
        ),
        "The noise is subtracted. It should be added.": (
            with_rates(lambda alpha_bar: (alpha_bar.sqrt(), -((1 - alpha_bar).sqrt())))
        ),
        "This is x0 + sigma * eps. The picture must shrink too.": (
            with_rates(lambda alpha_bar: (1, ((1 - alpha_bar) / alpha_bar).sqrt()))
        ),
        "Every sample got the alpha_bar of the first sample.": (
            lambda x0, noise, alpha_bar: add_noise(x0, noise, alpha_bar[:1].expand_as(alpha_bar))
        ),
        "Every sample got the mean alpha_bar of the batch.": (
            lambda x0, noise, alpha_bar: add_noise(x0, noise, alpha_bar.mean().expand_as(alpha_bar))
        ),
    },
    passing="Training calls this for every batch, and img2img calls it once, at its start.",
    difficulty=1,
    minutes=8,
    replaces={"minisd.schedule.Schedule.add_noise": as_method},
    draw=draw_at_250,
    in_lesson=True,
)
