"""Guidance only in a part of the steps. Every student has another interval."""

import torch

from minisd import guidance
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.schedule import Prediction


def interval_cfg(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    """Guidance for the samples whose t is in an interval. The others follow the prompt alone.

    eps_uncond, eps_cond: what the network predicts without and with the prompt, b c h w
    t: b, one number for each sample    scale: a number
    returns: b c h w
    """
    guided = eps_uncond + scale * (eps_cond - eps_uncond)
    inside = (low <= t) & (t < high)
    return torch.where(inside[:, None, None, None], guided, eps_cond)


def choose(inside, eps_uncond, eps_cond, scale):
    """Guidance for the samples of which `inside` is true."""
    guided = eps_uncond + scale * (eps_cond - eps_uncond)
    return torch.where(inside[:, None, None, None], guided, eps_cond)


def choose_outside(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    return choose((t < low) | (t >= high), eps_uncond, eps_cond, scale)


def with_high(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    return choose((low <= t) & (t <= high), eps_uncond, eps_cond, scale)


def without_low(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    return choose((low < t) & (t < high), eps_uncond, eps_cond, scale)


def without_ends(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    return choose((low < t) & (t <= high), eps_uncond, eps_cond, scale)


def only_above(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    return choose(low <= t, eps_uncond, eps_cond, scale)


def only_below(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    return choose(t < high, eps_uncond, eps_cond, scale)


def uncond_outside(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    guided = eps_uncond + scale * (eps_cond - eps_uncond)
    inside = (low <= t) & (t < high)
    return torch.where(inside[:, None, None, None], guided, eps_uncond)


def nothing_outside(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    guided = eps_uncond + scale * (eps_cond - eps_uncond)
    return guided * ((low <= t) & (t < high))[:, None, None, None]


def first_decides(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    inside = (low <= t[:1]) & (t[:1] < high)
    return choose(inside.expand(len(t)), eps_uncond, eps_cond, scale)


def by_width(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    guided = eps_uncond + scale * (eps_cond - eps_uncond)
    return torch.where((low <= t) & (t < high), guided, eps_cond)


def always_guide(eps_uncond, eps_cond, t, scale, *, low=200, high=700):
    return eps_uncond + scale * (eps_cond - eps_uncond)


def with_t(answer):
    """The core's guided_denoiser, which combines the two eps with the answer."""

    def guided_denoiser(network, objective, context, uncond_context, cfg_scale):
        def denoise(x, level):
            uncond, cond = guidance.run_network_twice(network, x, level, uncond_context, context)
            eps = answer(uncond, cond, torch.full((len(x),), level.t), cfg_scale)
            return Prediction(guidance.x0_from_eps(x, eps, level), eps, uncond, cond)

        return denoise

    return guided_denoiser


def hundreds(first, last):
    """t from first to last, one for every 100, in float64."""
    return torch.arange(first, last + 1, 100, dtype=torch.float64)


EXERCISE = Exercise(
    name="interval_cfg",
    lesson="09",
    place=6,
    title="Guidance in an interval",
    question=(
        "Guidance is not needed at every step: with much noise it costs variety, and with little "
        "noise it changes nothing (Kynkäänniemi et al. 2024). Write `interval_cfg(eps_uncond, "
        "eps_cond, t, scale)`. A sample whose t is at least {low} and less than {high} gets the "
        "usual guided eps. Every other sample gets `eps_cond`. Each sample of the batch has its "
        "own t."
    ),
    solution=interval_cfg,
    stages=(
        Stage(
            "one sample in the interval",
            1,
            lambda g: [*normal(g, 2, 1, 4, 2, 3), torch.tensor([450.0]), 3.0],
        ),
        Stage(
            "ten samples, t = 0, 100 … 900",
            2,
            lambda g: [*normal(g, 2, 10, 4, 3, 5), hundreds(0, 900), 7.5],
        ),
    ),
    hints=(
        "Compute the guided eps of all samples first. Then choose for each sample.",
        "(t >= low) & (t < high) has the shape b. With [:, None, None, None], it becomes b 1 1 1.",
        "torch.where(inside, guided, eps_cond) takes guided where inside is true, and eps_cond "
        "elsewhere.",
    ),
    mistakes={
        "You guide outside of the interval. Guide inside of it.": choose_outside,
        "You included the upper end. t must be less than it.": with_high,
        "You left out the lower end. t may be equal to it.": without_low,
        "Only the lower end belongs to the interval: t >= the lower end, t < the upper end.": (
            without_ends
        ),
        "The upper end of the interval is missing.": only_above,
        "The lower end of the interval is missing.": only_below,
        "Outside of the interval, you returned eps_uncond. Return eps_cond.": uncond_outside,
        "Outside of the interval, you returned 0. Return eps_cond.": nothing_outside,
        "The first t decides for all samples. Each sample has its own t.": first_decides,
        "The choice must have the shape b 1 1 1. With the shape b, it meets the width.": by_width,
        "There is no interval: all samples are guided.": always_guide,
    },
    passing=(
        "Outside of the interval, one run of the network is enough. So this can also save time."
    ),
    difficulty=2,
    minutes=12,
    needs=("apply_cfg",),
    constants=lambda rng: {
        "low": rng.choice([100, 200, 300]),
        "high": rng.choice([600, 700, 800]),
    },
    in_picture={"minisd.guidance.guided_denoiser": with_t},
    draw=draw_cat,
)
