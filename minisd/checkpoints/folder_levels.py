"""Choose the noise levels for a model from a diffusers folder, as diffusers chooses them.

sampling.sampler_levels uses these levels if the model's ScheduleConfig has a spacing. In some
steps, diffusers does not compute the same as the original code. So each level also contains
DiffusersRules, which describe these differences.
"""

from itertools import pairwise

import numpy as np
import torch

from minisd.config import ScheduleConfig
from minisd.schedule import LARGEST_SIGMA, DiffusersRules, Level, Schedule


def usual_final(name: str, config: ScheduleConfig) -> str:
    """The noise level where the last step ends: "zero" (no noise) or "sigma_min" (as at t = 0).

    name: the name of the sampler

    If the config states the level, the config decides. If it does not, the function returns a
    default: the default of diffusers if the config has a spacing, otherwise the default of the
    original code.
    """
    if name in ("euler", "dpmpp_2m"):
        return config.final or "zero"
    by_class = name == "ddim" and config.spacing is not None
    clean = by_class if config.set_alpha_to_one is None else config.set_alpha_to_one
    return "sigma_min" if name in ("ddim", "plms") and not clean else "zero"


def folder_levels(
    name: str, on_sigmas: bool, schedule: Schedule, steps: int, end: Level
) -> list[Level]:
    """Choose the levels where the network runs, as diffusers' class for this sampler does.

    name: the name of the sampler
    on_sigmas: whether the sampler is one of SIGMA_SAMPLERS, such as Euler
    steps: the number of steps, which is also the number of levels
    end: the level where the last step ends

    If t is not an integer, diffusers interpolates sigma between the two nearest integers. The
    original code interpolates the logarithm of sigma.

    The spacing is diffusers' rule that chooses the t. If the config asks for Karras levels, they
    lie between the first and the last level that the spacing gives. DPM++ is an exception: its
    Karras levels span all sigmas of the schedule, and the t of every level is rounded.
    """
    config, two_m = schedule.config, name == "dpmpp_2m"
    by_class = "linspace" if on_sigmas else "leading"
    spacing = config.spacing or "default"
    spacing = by_class if spacing == "default" else spacing
    ts = folder_ts(schedule, spacing, steps, int(two_m), fractions=on_sigmas and not two_m)
    table = rounded_sigmas(schedule)
    sigmas = np.interp(ts, range(len(table)), table).tolist()
    levels = schedule.levels(ts)
    if on_sigmas:
        levels = [Level(t, sigma) for t, sigma in zip(ts, sigmas, strict=True)]
    if config.karras and two_m:
        # if the betas follow a cosine, diffusers cuts off the fraction of t instead of rounding t
        whole = int if config.beta_schedule == "squaredcos_cap_v2" else round
        levels = schedule.karras(steps, (table[0], table[-1]))
        levels = [level._replace(t=whole(level.t)) for level in levels]
    elif config.karras and name in ("lms", "euler", "heun"):
        levels = schedule.karras(steps, (sigmas[-1], sigmas[0]))
    stride, top = config.timesteps // steps, config.timesteps - 1
    rules = (two_m or spacing == "leading", steps < 15, config.prediction == "v")
    with_rules = []
    for level, next_level in pairwise([*levels, levels[-1]]):
        end_sigma = schedule.sigma(level.t - stride).item() if level.t >= stride else end.sigma
        retry_sigma = schedule.sigma(min(next_level.t + stride, top)).item()
        with_rules.append(level._replace(diffusers=DiffusersRules(*rules, end_sigma, retry_sigma)))
    return with_rules


def folder_ts(
    schedule: Schedule, spacing: str, steps: int, beyond: int, fractions: bool
) -> list[float]:
    """Compute the t of each step as diffusers' schedulers do.

    spacing: the setting timestep_spacing in diffusers: "trailing", "leading" or "linspace"
    beyond: 1 for DPM++, otherwise 0. diffusers' class for DPM++ computes one t more than there are
        steps. The last t is then left out
    fractions: whether the t of "linspace" may have fractions. False: the t are rounded

    With one step, "linspace" gives t = 0 (but not for DPM++). If the first t would be larger than
    the largest t of the schedule, all t are lowered by the difference. If there are so many steps
    that diffusers' distance between two t would be 0, every t is used once.
    """
    count, top = schedule.check_steps(steps) + beyond, schedule.config.timesteps - 1
    if spacing == "trailing":
        ts = np.arange(top + 1, 0, -(top + 1) / steps).round() - 1
    elif spacing == "leading" and steps <= top:
        ts = schedule.config.steps_offset + (top + 1) // count * np.arange(count)[::-1]
    else:
        ts = np.linspace(0, top, count if steps <= top else steps)[::-1]
        ts = ts if fractions else ts.round()
    ts = ts[:steps] - max(ts[0] - top, 0)
    return ts.tolist() if fractions else [int(t) for t in ts]


def rounded_sigmas(schedule: Schedule) -> np.ndarray:
    """The sigmas of all t, with the same rounding errors as in diffusers.

    diffusers computes 1 - beta in float32. This changes sigma at t = 0 by 3e-5.
    """
    before = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1]])
    betas = (1 - schedule.alpha_bar / before).float()
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt().double()
    return sigmas.nan_to_num(posinf=LARGEST_SIGMA).numpy()
