"""Choose a sampler by its name, the noise levels that it visits, and the x where it starts."""

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
    """The steps + 1 levels that the sampler `name` visits.

    spacing: a key of SPACINGS, for the levels where the network runs. None is the spacing that the
        model's folder asks for, or the reference's: "leading" for DDPM, DDIM and PLMS ("trailing"
        if the last level is pure noise), "uniform" for the sigma samplers, where "karras" is also
        usual.
    final: where the last step ends, at "zero" noise or at "sigma_min", the level of t = 0. None is
        the end that the folder asks for, or the reference's: sigma_min for DDIM and PLMS
        (set_alpha_to_one=False), else zero. If the spacing reaches t = 0 by itself, the last step
        to sigma_min changes nothing.

    Raises ValueError if a name is unknown, and if steps is outside 1 … timesteps.
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
    if name not in ("ddpm", "ddim"):  # the others divide by the signal rate, which must not be 0
        levels = [one._replace(sigma=LARGEST_SIGMA) if isinf(one.sigma) else one for one in levels]
    return levels


def from_noise(
    name: str, denoise: Denoiser, noise: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """All steps of the sampler `name` from unit noise, b c h w.

    The sigma samplers start at sigma_max * noise on their scale (k-diffusion), DDPM, DDIM and PLMS
    at the noise itself on theirs (CompVis). The two differ by 0.2 %.

    Raises ValueError if the name is unknown.
    """
    check_known("sampler", name, SAMPLERS)
    x = starting_x(name, noise, levels[0])
    return sampler_for(name, levels)(denoise, x, levels, generators)


def sampler_for(name: str, levels: list[Level]) -> Sampler:
    """The sampler `name`, in the form that diffusers gives it if the levels are a folder's."""
    return (FOLDER_SAMPLERS if levels[0].diffusers else {}).get(name, SAMPLERS[name])


def starting_x(name: str, noise: Tensor, level: Level) -> Tensor:
    """The x where the sampler `name` starts at this level, given unit noise. b c h w"""
    unit = name not in SIGMA_SAMPLERS or (level.diffusers and level.diffusers.starts_at_unit_noise)
    return noise if unit else level.noise_rate * noise


def check_known(kind: str, name: str, known: dict) -> None:
    """Raise ValueError if `name` is not one of the known names."""
    if name not in known:
        raise ValueError(f'There is no {kind} "{name}". Choose one of {", ".join(known)}.')
