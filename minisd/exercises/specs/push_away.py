"""Guidance with three answers: towards the prompt, and away from something else."""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.guidance import x0_from_eps
from minisd.schedule import Prediction


def push_away(eps_uncond, eps_cond, eps_negative, scale, negative_scale):
    """Guide towards a prompt and away from a negative prompt.

    eps_uncond, eps_cond, eps_negative: what the network predicts for the empty prompt, for the
        prompt and for the negative prompt, b c h w each
    scale, negative_scale: two numbers
    returns: the guided eps, b c h w
    """
    towards = eps_cond - eps_uncond
    unwanted = eps_negative - eps_uncond
    return eps_uncond + scale * towards - negative_scale * unwanted


def towards_both(eps_uncond, eps_cond, eps_negative, scale, negative_scale):
    return push_away(eps_uncond, eps_cond, eps_negative, scale, -negative_scale)


def usual_negative_prompt(eps_uncond, eps_cond, eps_negative, scale, negative_scale):
    return eps_negative + scale * (eps_cond - eps_negative)


def away_from_cond(eps_uncond, eps_cond, eps_negative, scale, negative_scale):
    towards = eps_cond - eps_uncond
    return eps_uncond + scale * towards - negative_scale * (eps_negative - eps_cond)


def one_scale(eps_uncond, eps_cond, eps_negative, scale, negative_scale):
    return push_away(eps_uncond, eps_cond, eps_negative, scale, scale)


def swap_scales(eps_uncond, eps_cond, eps_negative, scale, negative_scale):
    return push_away(eps_uncond, eps_cond, eps_negative, negative_scale, scale)


def whole_negative(eps_uncond, eps_cond, eps_negative, scale, negative_scale):
    towards = eps_cond - eps_uncond
    return eps_uncond + scale * towards - negative_scale * eps_negative


def no_negative(eps_uncond, eps_cond, eps_negative, scale, negative_scale):
    return push_away(eps_uncond, eps_cond, eps_negative, scale, 0.0)


def scale_times_both(eps_uncond, eps_cond, eps_negative, scale, negative_scale):
    return push_away(eps_uncond, eps_cond, eps_negative, scale, scale * negative_scale)


def two_starts(eps_uncond, eps_cond, eps_negative, scale, negative_scale):
    return eps_uncond + push_away(eps_uncond, eps_cond, eps_negative, scale, negative_scale)


def with_three_runs(answer):
    """The core's denoiser of one prompt, which runs the U-Net for three prompts."""

    def denoiser(self, prompts, negative_prompt="", cfg_scale=None, **others):
        contexts = self.embed(["", *prompts, negative_prompt])

        def denoise(x, level):
            three = torch.cat([x, x, x])
            eps = self.unet(three, torch.full((3,), level.t), contexts)
            uncond, cond, negative = eps.chunk(3)
            guided = answer(uncond, cond, negative, self.config.cfg_scale, 1.0)
            return Prediction(x0_from_eps(x, guided, level), guided, uncond, cond)

        return denoise

    return denoiser


def draw_without_red(sd):
    return sd.txt2img("a cat", negative_prompt="a cat on a red background", steps=12, seed=1)


EXERCISE = Exercise(
    name="push_away",
    lesson="09",
    place=4,
    title="Towards the prompt, away from another",
    question=(
        "The usual negative prompt takes the place of the empty prompt. There is another way "
        "(Liu et al. 2022): run the network for three prompts, the empty prompt, the prompt and "
        "the negative prompt. Two arrows start at `eps_uncond`: one leads to `eps_cond`, the "
        "other to `eps_negative`. Write `push_away(eps_uncond, eps_cond, eps_negative, scale, "
        "negative_scale)`. It starts at `eps_uncond`, goes `scale` times along the first arrow, "
        "and `negative_scale` times against the second arrow."
    ),
    solution=push_away,
    stages=(
        Stage("one number", 1, lambda g: [*normal(g, 3, 1), 3.0, 1.5]),
        Stage("a batch", 1, lambda g: [*normal(g, 3, 2, 4, 3, 5), 7.5, 2.5]),
    ),
    hints=(
        "Both arrows start at the same point, so both are differences with eps_uncond.",
        "Against an arrow means: subtract it.",
        "Begin with the formula of apply_cfg. Then subtract negative_scale * (eps_negative - "
        "eps_uncond).",
    ),
    mistakes={
        "The sign is wrong: this moves towards the negative prompt, too.": towards_both,
        "This is the usual negative prompt. Here, both arrows start at eps_uncond.": (
            usual_negative_prompt
        ),
        "The second arrow starts at eps_cond. It should start at eps_uncond.": away_from_cond,
        "Both arrows have the same scale. The second has negative_scale.": one_scale,
        "The two scales are swapped.": swap_scales,
        "You subtracted eps_negative. Subtract its difference from eps_uncond.": whole_negative,
        "The negative prompt is not used.": no_negative,
        "The second arrow is multiplied by both scales. Multiply it by negative_scale only.": (
            scale_times_both
        ),
        "eps_uncond is added twice. Add it once, as the start.": two_starts,
    },
    passing="In this way, a prompt and a negative prompt can have different strengths.",
    difficulty=2,
    minutes=8,
    needs=("apply_cfg",),
    in_picture={"minisd.pipeline.StableDiffusion.denoiser": with_three_runs},
    draw=draw_without_red,
)
