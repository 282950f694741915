"""Classifier-free guidance with a network: the step that every sampler asks for."""

import torch

from minisd import guidance
from minisd.exercises.calls import Made
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs.run_both import match_precision
from minisd.schedule import Prediction


def guided_eps(network, x, t, uncond_context, context, scale):
    """The noise that a network predicts with classifier-free guidance.

    network: network(x, t, context) -> eps, for any batch. Its t has one number for each sample
    x: b c h w    t: one number, the same for all samples
    uncond_context, context: b m d, the embedded negative prompt and the embedded prompt. If scale
        is 1, uncond_context may be None
    scale: a number
    returns: b c h w
    """
    if scale == 1:
        return network(x, torch.full((len(x),), t), context)
    if scale == 0:
        return network(x, torch.full((len(x),), t), uncond_context)
    twice = torch.cat([x, x])
    contexts = torch.cat([uncond_context, context])
    both = network(twice, torch.full((len(twice),), t), contexts)
    eps_uncond, eps_cond = both[: len(x)], both[len(x) :]
    return eps_uncond + scale * (eps_cond - eps_uncond)


def guide_halves(network, x, t, first, second):
    """The two halves of one run of the network."""
    times = torch.full((2 * len(x),), t)
    return network(torch.cat([x, x]), times, torch.cat([first, second])).chunk(2)


def no_special_cases(network, x, t, uncond_context, context, scale):
    eps_uncond, eps_cond = guide_halves(network, x, t, uncond_context, context)
    return eps_uncond + scale * (eps_cond - eps_uncond)


def only_scale_1(network, x, t, uncond_context, context, scale):
    if scale == 1:
        return guided_eps(network, x, t, uncond_context, context, scale)
    return no_special_cases(network, x, t, uncond_context, context, scale)


def only_scale_0(network, x, t, uncond_context, context, scale):
    if scale == 0:
        return guided_eps(network, x, t, uncond_context, context, scale)
    return no_special_cases(network, x, t, uncond_context, context, scale)


def run_twice(network, x, t, uncond_context, context, scale):
    if scale in (0, 1):
        return guided_eps(network, x, t, uncond_context, context, scale)
    times = torch.full((len(x),), t)
    eps_uncond, eps_cond = network(x, times, uncond_context), network(x, times, context)
    return eps_uncond + scale * (eps_cond - eps_uncond)


def always_run_twice(network, x, t, uncond_context, context, scale):
    times = torch.full((len(x),), t)
    eps_uncond, eps_cond = network(x, times, uncond_context), network(x, times, context)
    return eps_uncond + scale * (eps_cond - eps_uncond)


def prompt_first(network, x, t, uncond_context, context, scale):
    if scale in (0, 1):
        return guided_eps(network, x, t, uncond_context, context, scale)
    eps_cond, eps_uncond = guide_halves(network, x, t, context, uncond_context)
    return eps_uncond + scale * (eps_cond - eps_uncond)


def swap_halves(network, x, t, uncond_context, context, scale):
    if scale in (0, 1):
        return guided_eps(network, x, t, uncond_context, context, scale)
    eps_cond, eps_uncond = guide_halves(network, x, t, uncond_context, context)
    return eps_uncond + scale * (eps_cond - eps_uncond)


def swap_cases(network, x, t, uncond_context, context, scale):
    return guided_eps(network, x, t, uncond_context, context, {0: 1, 1: 0}.get(scale, scale))


def start_at_cond(network, x, t, uncond_context, context, scale):
    if scale in (0, 1):
        return guided_eps(network, x, t, uncond_context, context, scale)
    eps_uncond, eps_cond = guide_halves(network, x, t, uncond_context, context)
    return eps_cond + scale * (eps_cond - eps_uncond)


def no_guidance(network, x, t, uncond_context, context, scale):
    return network(x, torch.full((len(x),), t), context)


def short_t(network, x, t, uncond_context, context, scale):
    if scale in (0, 1):
        return guided_eps(network, x, t, uncond_context, context, scale)
    contexts = torch.cat([uncond_context, context])
    both = network(torch.cat([x, x]), torch.full((len(x),), t), contexts)
    eps_uncond, eps_cond = both.chunk(2)
    return eps_uncond + scale * (eps_cond - eps_uncond)


def repeat_each(network, x, t, uncond_context, context, scale):
    if scale in (0, 1):
        return guided_eps(network, x, t, uncond_context, context, scale)
    twice = x.repeat_interleave(2, dim=0)
    contexts = torch.cat([uncond_context, context])
    eps_uncond, eps_cond = network(twice, torch.full((len(twice),), t), contexts).chunk(2)
    return eps_uncond + scale * (eps_cond - eps_uncond)


def as_denoiser(answer):
    """The core's guided_denoiser, made of the answer and of x0_from_eps."""

    def guided_denoiser(network, objective, context, uncond_context=None, cfg_scale=1.0):
        check_settings(objective, context, uncond_context, cfg_scale)

        def denoise(x, level):
            halves = []
            run = match_precision(network, free=0 if cfg_scale == 1 else len(x))

            def run_and_keep(x, t, context):
                both = run(x, t, context)
                halves.extend(both.split(count))
                return both

            count = len(x)
            eps = answer(run_and_keep, x, level.t, uncond_context, context, cfg_scale)
            uncond = None if cfg_scale == 1 else halves[0]
            cond = None if cfg_scale == 0 else halves[-1]
            return Prediction(guidance.x0_from_eps(x, eps, level), eps, uncond, cond)

        return denoise

    return guided_denoiser


def check_settings(objective, context, uncond_context, cfg_scale):
    """Raise ValueError if the answer cannot guide with these settings."""
    if objective != "eps":
        raise ValueError(
            f'your own guidance reads eps, but this model predicts "{objective}". Use the mini.'
        )
    if cfg_scale != 1 and getattr(uncond_context, "shape", None) != context.shape:
        raise ValueError(
            f"cfg_scale {cfg_scale} needs an uncond_context of the shape {tuple(context.shape)}. "
            "Give one, or use cfg_scale 1."
        )


def inputs(b, m, scale, rows=0.0):
    def draw(g):
        network = Made("network", {"gain": 0.7, "rows": rows})
        uncond_context, context = normal(g, 2, b, m, 6)
        uncond_context = None if scale == 1 else uncond_context
        return [network, normal(g, b, 4, 3, 5), 481.0, uncond_context, context, scale]

    return draw


EXERCISE = Exercise(
    name="guided_eps",
    lesson="09",
    place=3,
    title="A guided prediction",
    question=(
        "Put the formula and the network together. Write `guided_eps(network, x, t, "
        "uncond_context, context, scale)`. Run the network once on 2b samples: first x with "
        "`uncond_context`, then x with `context`. Each of the 2b samples gets the number t. "
        "Combine the two halves: eps_uncond + scale * (eps_cond - eps_uncond).\n\n"
        "For two scales, 1 and 0, half of the work is enough. If scale is 1, run the network on b "
        "samples with `context` only. If scale is 0, run it with `uncond_context` only."
    ),
    solution=guided_eps,
    stages=(
        Stage("one sample, scale 3", 1, inputs(1, 3, 3.0)),
        Stage("a batch of 2, scale 7.5", 2, inputs(2, 7, 7.5)),
        Stage("one run, the negative prompt first", 1, inputs(2, 7, 7.5, rows=0.3)),
        Stage("scale 1: b samples, no negative prompt", 1, inputs(2, 5, 1.0, rows=0.3)),
        Stage("scale 0: b samples, no prompt", 1, inputs(2, 5, 0.0, rows=0.3)),
    ),
    hints=(
        "Begin with the two special scales. Each is one line with return.",
        "torch.cat([x, x]) and torch.cat([uncond_context, context]) make the batch. torch.full((n,)"
        ", t) makes t for n samples.",
        "eps_uncond, eps_cond = network(twice, times, contexts).chunk(2), where twice, times and "
        "contexts are 2b long. Then the formula.",
    ),
    mistakes={
        "If scale is 0, run the network with uncond_context only.": only_scale_1,
        "If scale is 1, run the network with context only.": only_scale_0,
        "If scale is 1 or 0, run the network on b samples only.": no_special_cases,
        "The network runs twice. Join both halves to one batch, and run it once.": run_twice,
        "The network runs twice. Run it once on a batch of 2b samples. If scale is 1 or 0, run it "
        "on b samples.": always_run_twice,
        "The prompt is in the first half of the batch. It belongs in the second half.": (
            prompt_first
        ),
        "The halves are swapped: the first half of the output is eps_uncond.": swap_halves,
        "The two cases are swapped: scale 1 needs context, and scale 0 needs uncond_context.": (
            swap_cases
        ),
        "You started at eps_cond. Start at eps_uncond.": start_at_cond,
        "There is no guidance: uncond_context is never used.": no_guidance,
        "t is too short. The batch has 2b samples, and each needs its t.": short_t,
        "x is repeated sample by sample. Repeat the whole batch: torch.cat([x, x]).": repeat_each,
    },
    passing="Your own guidance is now in the mini. Every sampler calls it at every step.",
    difficulty=3,
    minutes=20,
    needs=("apply_cfg", "run_both"),
    replaces={"minisd.guidance.guided_denoiser": as_denoiser},
    draw=draw_cat,
    in_lesson=True,
)
