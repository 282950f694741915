"""The forward process in small steps, Ho et al. 2020, eq. 2."""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs.add_noise import draw_noisy_pet


def small_steps(x0, noises, betas):
    """Add noise to x0 in small steps.

    x0: b c h w    noises: steps b c h w, unit noise for each step    betas: steps, from 0 to 1
    returns: b c h w, the x after the last step
    """
    x = x0
    for noise, beta in zip(noises, betas, strict=True):
        x = (1 - beta) ** 0.5 * x + beta**0.5 * noise
    return x


def walk(step):
    """The steps with another rule. step: (x, noise, beta, x0) -> the next x."""

    def answer(x0, noises, betas):
        x = x0
        for noise, beta in zip(noises, betas, strict=True):
            x = step(x, noise, beta, x0)
        return x

    return answer


def list_all(x0, noises, betas):
    return [small_steps(x0, noises[: i + 1], betas[: i + 1]) for i in range(len(betas))]


def one_jump(x0, noises, betas):
    alpha_bar = (1 - betas).prod()
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noises[0]


def inputs(steps, *shape):
    def draw(g):
        betas = 0.1 + 0.5 * torch.rand(steps, generator=g, dtype=torch.float64)
        return [normal(g, *shape), normal(g, steps, *shape), betas]

    return draw


def as_walk(answer):
    """The answer as toy.small_steps, which draws the noise itself and yields x after each step."""

    def steps(x0, schedule, generator):
        x, before = x0, 1.0
        for alpha_bar in schedule.alpha_bar.tolist():
            noise = torch.randn(x.shape, generator=generator)
            x = answer(x, noise[None], torch.tensor([1 - alpha_bar / before]).to(x))
            before = alpha_bar
            yield x

    return steps


def draw_after_steps(sd):
    """A pet after 250 small steps."""
    return draw_noisy_pet(sd, 250, in_steps=True)


EXERCISE = Exercise(
    name="small_steps",
    lesson="01",
    place=1,
    title="Noise in small steps",
    question=(
        "Write `small_steps(x0, noises, betas)`, the forward process of this lesson. Each step "
        "keeps the square root of (1 - beta) of x, and adds the square root of beta times the "
        "noise of this step. The first step starts at x0. Return the x after the last step."
    ),
    solution=small_steps,
    stages=(
        Stage("one step, one number", 1, inputs(1, 1, 1, 1, 1)),
        Stage("four steps, two latents", 2, inputs(4, 2, 4, 3, 5)),
    ),
    hints=(
        "Set x to x0. Then loop over noises and betas together: zip(noises, betas).",
        "The variances must add up to 1: (1 - beta) of the old x, and beta of the noise. Rates are "
        "square roots of variances.",
        "x = (1 - beta) ** 0.5 * x + beta ** 0.5 * noise. After the loop: return x.",
    ),
    mistakes={
        "The square roots are missing. beta is a variance.": (
            walk(lambda x, noise, beta, x0: (1 - beta) * x + beta * noise)
        ),
        "The square root of beta is missing in front of the noise.": (
            walk(lambda x, noise, beta, x0: (1 - beta) ** 0.5 * x + beta * noise)
        ),
        "The square root of (1 - beta) is missing in front of x.": (
            walk(lambda x, noise, beta, x0: (1 - beta) * x + beta**0.5 * noise)
        ),
        "This is 1 minus the root of beta. Take the root of (1 - beta).": (
            walk(lambda x, noise, beta, x0: (1 - beta**0.5) * x + beta**0.5 * noise)
        ),
        "x does not shrink. Multiply it by the square root of (1 - beta).": (
            walk(lambda x, noise, beta, x0: x + beta**0.5 * noise)
        ),
        "The two rates are swapped. beta belongs to the noise.": (
            walk(lambda x, noise, beta, x0: beta**0.5 * x + (1 - beta) ** 0.5 * noise)
        ),
        "Each step must start from the x of the step before, not from x0.": (
            walk(lambda x, noise, beta, x0: (1 - beta) ** 0.5 * x0 + beta**0.5 * noise)
        ),
        "The noise is subtracted. It should be added.": (
            walk(lambda x, noise, beta, x0: (1 - beta) ** 0.5 * x - beta**0.5 * noise)
        ),
        "Every step used the noise of the first step.": (
            lambda x0, noises, betas: small_steps(x0, noises[:1].expand_as(noises), betas)
        ),
        "There is only one step. Loop over all noises and betas.": (
            lambda x0, noises, betas: small_steps(x0, noises[:1], betas[:1])
        ),
        "This is one jump with one noise. Loop over the steps: each has a noise of its own.": (
            one_jump
        ),
        "Return only the last x, not a list of all.": list_all,
    },
    passing=(
        "Many small steps and one large jump give the same distribution of pictures, as the "
        "lesson shows."
    ),
    difficulty=1,
    minutes=8,
    in_picture={"minisd.teaching.toy.small_steps": as_walk},
    draw=draw_after_steps,
)
