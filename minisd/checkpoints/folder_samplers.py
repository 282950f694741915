"""DDIM, PLMS and Euler in the form that diffusers gives them, for the settings of its folders.

They differ from samplers.py in where a step ends, and folder_levels.py says where that is.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from minisd.samplers import (
    PLMS_WEIGHTS,
    Generators,
    Levels,
    Moves,
    Step,
    ddim,
    ddim_move,
    euler,
    in_steps,
    weighted_sum,
)
from minisd.schedule import Denoiser, DiffusersRules, Level, Prediction


def diffusers_rules(level: Level) -> DiffusersRules:
    """What diffusers does at a level that a folder's settings chose."""
    assert level.diffusers is not None, f"no folder's settings chose the level t = {level.t}"
    return level.diffusers


@in_steps
def diffusers_ddim(
    denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None
) -> Moves:
    """DDIM as diffusers counts: every step ends timesteps // steps below its t.

    Where the next level lies elsewhere, diffusers reads the same x as if it were at that level.
    """
    for level, next_level in pairwise(levels):
        lands = next_level._replace(sigma=diffusers_rules(level).end_sigma)
        (step,) = ddim(denoise, x, [level, lands], generators)
        x = step.x
        yield step.prediction, x


@in_steps
def diffusers_pndm(
    denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None
) -> Moves:
    """PLMS as diffusers' PNDMScheduler computes it. Its steps end where those of its DDIM end.

    The second try of the first step ends at the next level, and starts as far above as any step. It
    averages what a v network answers, and converts the mean to eps where the step starts.
    """
    history = []
    for level, next_level in pairwise(levels):
        starts, lands = level, next_level._replace(sigma=diffusers_rules(level).end_sigma)
        prediction = denoise(x, level)
        history = [network_answer(prediction, level), *history[:3]]
        mean = weighted_sum(PLMS_WEIGHTS[len(history)], history)
        if len(history) == 1 and len(levels) > 2:
            trial = ddim_move(x, eps_from_answer(mean, x, level), level, lands)
            mean = (mean + network_answer(denoise(trial, next_level), next_level)) / 2
            starts, lands = level._replace(sigma=diffusers_rules(level).retry_sigma), next_level
        x = ddim_move(x, eps_from_answer(mean, x, starts), starts, lands)
        yield prediction, x


def network_answer(prediction: Prediction, level: Level) -> Tensor:
    """What the guided network answered: v if diffusers averages v, else eps."""
    v = level.signal_rate * prediction.eps - level.noise_rate * prediction.x0
    return v if diffusers_rules(level).averages_v else prediction.eps


def eps_from_answer(answer: Tensor, x: Tensor, level: Level) -> Tensor:
    """Undo `network_answer`: eps, for an x at this level."""
    eps = level.noise_rate * x + level.signal_rate * answer
    return eps if diffusers_rules(level).averages_v else answer


def diffusers_euler(
    denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None
) -> Iterator[Step]:
    """Euler, whose last x diffusers leaves on the sigma scale even if some noise is left in it."""
    for step, next_level in zip(euler(denoise, x, levels), levels[1:], strict=True):
        scale = 1 if next_level.diffusers else next_level.signal_rate
        yield step._replace(x=step.x / scale)


FOLDER_SAMPLERS = {"ddim": diffusers_ddim, "plms": diffusers_pndm, "euler": diffusers_euler}
