"""Choose a sampler by its name, then its noise levels and the x from which it starts."""

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
    """The steps + 1 noise levels that the sampler `name` visits.

    spacing: the rule that chooses the first `steps` levels, a key of SPACINGS. None: the rule in
        the settings of the model's diffusers folder. Without such settings, DDPM, DDIM and PLMS use
        "leading" ("trailing" if the last level of training is pure noise), and the sigma samplers
        use "uniform". Many people use "karras" with the sigma samplers. LCM always has its own rule
        (Schedule.lcm)
    final: the last level, where the last step ends: "zero" (no noise) or "sigma_min" (the level of
        t = 0). None: the level in the folder's settings. Without such settings, DDIM and PLMS use
        "sigma_min" (set_alpha_to_one=False), and the other samplers use "zero". If the level before
        is already that of t = 0, a last step to "sigma_min" changes nothing

    Raises ValueError if a name is unknown, or if steps is outside 1 … timesteps (1 … 50 for LCM).
    """
    check_known("sampler", name, SAMPLERS)
    config = schedule.config
    final = final or usual_final(name, config)
    ends = {"zero": CLEAN, "sigma_min": schedule.at(0)}
    check_known("final", final, ends)
    if spacing is None and name == "lcm":
        levels = schedule.lcm(steps)
    elif spacing is None and config.spacing is not None:
        levels = folder_levels(name, name in SIGMA_SAMPLERS, schedule, steps, ends[final])
    else:
        usual = "trailing" if config.zero_terminal_snr else "leading"
        spacing = spacing or ("uniform" if name in SIGMA_SAMPLERS else usual)
        check_known("spacing", spacing, SPACINGS)
        levels = SPACINGS[spacing](schedule, steps)
    levels = [*levels, ends[final]]
    if name not in ("ddpm", "ddim", "lcm"):  # others divide by the signal rate: it must not be 0
        levels = [one._replace(sigma=LARGEST_SIGMA) if isinf(one.sigma) else one for one in levels]
    return levels


def from_noise(
    name: str, denoise: Denoiser, noise: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """Run the sampler `name` from unit noise. Yields all steps.

    noise: unit noise (variance 1), b c h w

    The sigma samplers start at sigma_max * noise, on the scale x0 + sigma eps (k-diffusion). DDPM,
    DDIM, PLMS and LCM start at the noise itself, on the variance-preserving scale (CompVis). If
    both starts are converted to one scale, they differ by 0.2 %.

    Raises ValueError if the name is unknown.
    """
    check_known("sampler", name, SAMPLERS)
    x = starting_x(name, noise, levels[0])
    return sampler_for(name, levels)(denoise, x, levels, generators)


def sampler_for(name: str, levels: list[Level]) -> Sampler:
    """The function of the sampler `name`.

    If the levels come from the settings of a diffusers folder, the function is diffusers' version.
    """
    return (FOLDER_SAMPLERS if levels[0].diffusers else {}).get(name, SAMPLERS[name])


def starting_x(name: str, noise: Tensor, level: Level) -> Tensor:
    """The x from which the sampler `name` starts at this level, made from unit noise.

    noise: unit noise (variance 1), b c h w    returns: b c h w
    """
    unit = name not in SIGMA_SAMPLERS or (level.diffusers and level.diffusers.starts_at_unit_noise)
    return noise if unit else level.noise_rate * noise


def check_known(kind: str, name: str, known: dict) -> None:
    """Raise ValueError if `name` is not one of the known names."""
    if name not in known:
        raise ValueError(f'There is no {kind} "{name}". Choose one of {", ".join(known)}.')
