"""DDIM, PLMS and Euler as diffusers computes them, for models from diffusers folders.

In samplers.py, every step ends at the noise level where the next step starts. In diffusers, a step
may end at a different noise level. folder_levels.py computes where it ends.
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
    """The rules of diffusers at a noise level. Only a level from folder_levels() has rules."""
    assert level.diffusers is not None, f"folder_levels() did not choose the level t = {level.t}"
    return level.diffusers


@in_steps
def diffusers_ddim(
    denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None
) -> Moves:
    """DDIM as in diffusers. A step that starts at t ends at t - timesteps // steps.

    The next step may start at a different t. Even then, it starts with this x.
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
    """PLMS as in diffusers' PNDMScheduler. A step from t ends at t - timesteps // steps.

    The first step is computed twice. The second time, it ends at the t of the next level, and
    starts at this t + timesteps // steps. If the network predicts v, PNDMScheduler averages the v
    of several steps instead of their eps. Then it converts the mean to eps at the level where the
    step starts.
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
    """What PNDMScheduler averages over several steps: the v or the eps of each prediction.

    It averages v if the network predicts v. Otherwise, it averages eps.
    """
    v = level.signal_rate * prediction.eps - level.noise_rate * prediction.x0
    return v if diffusers_rules(level).averages_v else prediction.eps


def eps_from_answer(answer: Tensor, x: Tensor, level: Level) -> Tensor:
    """Convert a v to eps. If the answer is already eps, return it unchanged.

    answer: a tensor from network_answer(), or a mean of such tensors. It is v if the network
        predicts v, and eps otherwise
    x: the noisy latent at this level
    """
    eps = level.noise_rate * x + level.signal_rate * answer
    return eps if diffusers_rules(level).averages_v else answer


def diffusers_euler(
    denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None
) -> Iterator[Step]:
    """Euler as in diffusers: the x of the last step is x0 + sigma eps, even if sigma is not 0.

    In samplers.py, the x of every step is variance-preserving.
    """
    for step, next_level in zip(euler(denoise, x, levels), levels[1:], strict=True):
        scale = 1 if next_level.diffusers else next_level.signal_rate
        yield step._replace(x=step.x / scale)


FOLDER_SAMPLERS = {"ddim": diffusers_ddim, "plms": diffusers_pndm, "euler": diffusers_euler}
