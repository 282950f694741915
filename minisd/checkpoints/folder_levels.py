"""The noise levels for a diffusers folder, chosen as diffusers chooses them.

sampling.sampler_levels uses these levels if the model's ScheduleConfig has a spacing. Each level
also contains DiffusersRules: the differences between diffusers and the original code at the level.
"""

from itertools import pairwise

import numpy as np
import torch

from minisd.config import ScheduleConfig
from minisd.schedule import LARGEST_SIGMA, DiffusersRules, Level, Schedule


def usual_final(name: str, config: ScheduleConfig) -> str:
    """The noise level where the last step ends: "zero" or "sigma_min".

    name: the name of the sampler

    If the folder's settings state the level, the settings decide. Otherwise, a default is used. If
    the config has a spacing, this is the default of diffusers. If the config has no spacing, this
    is the default of the original code.
    """
    if name in ("euler", "dpmpp_2m"):
        return config.final or "zero"
    by_class = name == "ddim" and config.spacing is not None
    clean = by_class if config.set_alpha_to_one is None else config.set_alpha_to_one
    return "sigma_min" if name in ("ddim", "plms") and not clean else "zero"


def folder_levels(
    name: str, on_sigmas: bool, schedule: Schedule, steps: int, end: Level
) -> list[Level]:
    """The levels where the network runs, as diffusers' class for this sampler chooses them.

    name: the name of the sampler
    on_sigmas: whether the sampler is a sigma sampler
    end: the level after the last step

    Between two t, diffusers interpolates sigma. The original code interpolates the logarithm of
    sigma.

    The spacing is diffusers' rule that chooses the t. Karras levels lie between the first and the
    last level that the spacing gives. DPM++ is an exception: its Karras levels span the whole table
    of sigmas, and the t of every level is rounded.
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
    """The t for a folder's timestep_spacing, as diffusers' schedulers compute them.

    spacing: the timestep_spacing: "trailing", "leading" or "linspace"
    beyond: the number of extra t at the clean end (1 for DPM++). The extra t are computed, and then
        left out
    fractions: whether the t of "linspace" keep their fractions. False: the t are rounded

    With one step, "linspace" gives the least noisy t. If the first t would be larger than the last
    t of the table, all t are lowered by the difference. With very many steps, diffusers' stride
    between two t would be 0. In this case, every t is used once.
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
    """The sigmas of all t, rounded as in diffusers.

    diffusers computes 1 - beta in float32. This rounding changes sigma(0) by 3e-5.
    """
    before = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1]])
    betas = (1 - schedule.alpha_bar / before).float()
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt().double()
    return sigmas.nan_to_num(posinf=LARGEST_SIGMA).numpy()
