"""Choose a sampler by its name, the noise levels that it visits, and the x from which it starts."""

from collections.abc import Iterator
from math import isinf

from torch import Tensor

from minisd.checkpoints.folder_levels import folder_levels, usual_final
from minisd.checkpoints.folder_samplers import FOLDER_SAMPLERS
from minisd.samplers import SAMPLERS, SIGMA_SAMPLERS, Generators, Sampler, Step
from minisd.schedule import CLEAN, LARGEST_SIGMA, Denoiser, Level, Schedule

EVEN_IN_T = (Schedule.leading, Schedule.linspace, Schedule.trailing, Schedule.uniform)
SPACINGS = {spacing.__name__: spacing for spacing in (*EVEN_IN_T, Schedule.karras)}


def sampler_levels(
    name: str, schedule: Schedule, steps: int, spacing: str | None = None, final: str | None = None
) -> list[Level]:
    """The noise levels that the sampler `name` visits. Their number is steps + 1.

    spacing: a key of SPACINGS, for the levels where the network runs. None: the spacing that the
        model's folder asks for, or else that of the original code. For DDPM, DDIM and PLMS, this is
        "leading" ("trailing" if the last level of training is pure noise). For the sigma samplers,
        it is "uniform". "karras" is also usual with them
    final: the noise level where the last step ends. "zero" is no noise, and "sigma_min" is the
        level of t = 0. None: the end that the folder asks for, or else that of the original code.
        For DDIM and PLMS, this is "sigma_min" (set_alpha_to_one=False). For the others, it is
        "zero". If the spacing reaches t = 0 by itself, the last step to "sigma_min" changes nothing

    Raises ValueError if a name is unknown, or if steps is outside 1 … timesteps.
    """
    check_known("sampler", name, SAMPLERS)
    config = schedule.config
    final = final or usual_final(name, config)
    ends = {"zero": CLEAN, "sigma_min": schedule.at(0)}
    check_known("final", final, ends)
    if spacing is None and config.spacing is not None:
        levels = folder_levels(name, name in SIGMA_SAMPLERS, schedule, steps, ends[final])
    else:
        usual = "trailing" if config.zero_terminal_snr else "leading"
        spacing = spacing or ("uniform" if name in SIGMA_SAMPLERS else usual)
        check_known("spacing", spacing, SPACINGS)
        levels = SPACINGS[spacing](schedule, steps)
    levels = [*levels, ends[final]]
    if name not in ("ddpm", "ddim"):  # other samplers divide by the signal rate: it must not be 0
        levels = [one._replace(sigma=LARGEST_SIGMA) if isinf(one.sigma) else one for one in levels]
    return levels


def from_noise(
    name: str, denoise: Denoiser, noise: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """Run the sampler `name` from unit noise, b c h w. Yields all steps.

    The sigma samplers start at sigma_max * noise, on the scale x0 + sigma eps (k-diffusion). DDPM,
    DDIM and PLMS start at the noise itself, on the variance-preserving scale (CompVis). On the same
    scale, the two starts differ by 0.2 %.

    Raises ValueError if the name is unknown.
    """
    check_known("sampler", name, SAMPLERS)
    x = starting_x(name, noise, levels[0])
    return sampler_for(name, levels)(denoise, x, levels, generators)


def sampler_for(name: str, levels: list[Level]) -> Sampler:
    """The sampler `name`, in diffusers' version if a diffusers folder chose the levels."""
    return (FOLDER_SAMPLERS if levels[0].diffusers else {}).get(name, SAMPLERS[name])


def starting_x(name: str, noise: Tensor, level: Level) -> Tensor:
    """The x from which the sampler `name` starts: unit noise, scaled for this level. b c h w"""
    unit = name not in SIGMA_SAMPLERS or (level.diffusers and level.diffusers.starts_at_unit_noise)
    return noise if unit else level.noise_rate * noise


def check_known(kind: str, name: str, known: dict) -> None:
    """Raise ValueError if `name` is not one of the known names."""
    if name not in known:
        raise ValueError(f'There is no {kind} "{name}". Choose one of {", ".join(known)}.')
