"""The walks of a diffusers folder: the levels that its settings visit, as diffusers has them.

samplers.sampler_levels comes here where the model's config says how to walk (ScheduleConfig), and
marks each level with what diffusers does there and the original code does not.
"""

import numpy as np
import torch

from minisd.config import ScheduleConfig
from minisd.schedule import LARGEST_SIGMA, Diffusers, Level, Schedule


def usual_final(name: str, config: ScheduleConfig) -> str:
    """Where a walk ends unless told: as the folder says or its class does, else the original."""
    if name in ("euler", "dpmpp_2m"):
        return config.final or "zero"
    by_class = name == "ddim" and config.spacing is not None
    clean = by_class if config.set_alpha_to_one is None else config.set_alpha_to_one
    return "sigma_min" if name in ("ddim", "plms") and not clean else "zero"


def folder_levels(
    name: str, on_sigmas: bool, schedule: Schedule, steps: int, end: Level
) -> list[Level]:
    """Where the network runs by a folder's settings, as diffusers' class of the sampler has it.

    on_sigmas: whether the sampler `name` is a sigma sampler    end: where the walk ends
    Between two t, sigma is interpolated (the original: its logarithm). Karras' levels lie between
    the first and the last of the spacing; DPM++ takes the whole table, and rounds their t.
    """
    config, two_m = schedule.config, name == "dpmpp_2m"
    by_class = "linspace" if on_sigmas else "leading"
    spacing = by_class if config.spacing == "default" else config.spacing
    ts = folder_ts(schedule, spacing, steps, int(two_m), fractions=on_sigmas and not two_m)
    table = rounded_sigmas(schedule)
    sigmas = np.interp(ts, range(len(table)), table).tolist()
    levels = [Level(*both) for both in zip(ts, sigmas)] if on_sigmas else schedule.levels(ts)
    if config.karras and two_m:
        # diffusers cuts the fraction off in place of rounding where the betas follow a cosine
        whole = int if config.beta_schedule == "squaredcos_cap_v2" else round
        levels = schedule.karras(steps, (table[0], table[-1]))
        levels = [level._replace(t=whole(level.t)) for level in levels]
    elif config.karras and name in ("lms", "euler", "heun"):
        levels = schedule.karras(steps, (sigmas[-1], sigmas[0]))
    stride, top = config.timesteps // steps, config.timesteps - 1
    always = (two_m or spacing == "leading", steps < 15, config.prediction == "v")
    marked = []
    for level, following in zip(levels, [*levels[1:], levels[-1]]):
        lands = schedule.sigma(level.t - stride).item() if level.t >= stride else end.sigma
        left = schedule.sigma(min(following.t + stride, top)).item()
        marked.append(level._replace(diffusers=Diffusers(*always, lands, left)))
    return marked


def folder_ts(
    schedule: Schedule, spacing: str, steps: int, beyond: int, fractions: bool
) -> list[float]:
    """The t of a folder's timestep_spacing, as diffusers' schedulers count them.

    beyond: how many more are made at the noiseless end and left out: 1 for DPM++
    fractions: whether "linspace" keeps them. Its one step is the least noisy t.
    Where diffusers would leave its table or stand still, all are moved down, or are every t.
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
    """The table as diffusers rounds it: 1 - beta in float32, which moves sigma(0) by 3e-5."""
    before = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1]])
    betas = (1 - schedule.alpha_bar / before).float()
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt().double()
    return sigmas.nan_to_num(posinf=LARGEST_SIGMA).numpy()
