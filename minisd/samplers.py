"""The samplers: eight ways to walk from noise to a picture, one generator each.

All are called alike: sampler(denoise, x, levels, generators) yields one Step per interval, S steps
for S + 1 levels. x is variance-preserving, as it comes and as it is yielded, so a walk may begin
anywhere: at pure noise, at add_noise(x0, …), or where another stopped.

DDPM, DDIM and PLMS keep x in that form. The sigma samplers divide it by the signal_rate, walk on
x0 + sigma eps, where dx/dsigma is simply eps, and convert back for the network and the Step.

levels: noisiest first; `sampler_levels` makes them. The last, where no network runs, says whether
the walk ends at CLEAN or at the least noisy level of training.
generators: one torch.Generator per sample, for samplers that add noise on the way; the others draw
nothing and let it be.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import isinf, log, sqrt
from typing import NamedTuple

import torch
from numpy.polynomial.polynomial import polyfromroots, polyint, polyval
from torch import Tensor

from minisd.folder_walks import folder_levels, usual_final
from minisd.schedule import CLEAN, LARGEST_SIGMA, Denoiser, Level, Prediction, Schedule

Generators = list[torch.Generator] | None
Sampler = Callable[[Denoiser, Tensor, list[Level], Generators], Iterator["Step"]]


class Step(NamedTuple):
    """One interval of a walk: where the network ran, what it said, and where that led."""

    index: int
    t: float
    sigma: float
    prediction: Prediction
    x: Tensor  # b c h w, variance-preserving, at the next level


def unit_noise(x: Tensor, generators: Generators) -> Tensor:
    """Noise like x, drawn sample by sample in float32 on the CPU: no device or batch changes it.

    Raises ValueError unless there is one generator for each of the b samples.
    """
    if generators is None or len(generators) != len(x):
        count = 0 if generators is None else len(generators)
        raise ValueError(
            f"Drawing noise for {len(x)} samples needs as many generators, got {count}."
        )
    shape = (1, *x.shape[1:])
    draws = [torch.randn(shape, generator=g, dtype=torch.float32) for g in generators]
    return torch.cat(draws).to(x)


def ddpm(
    denoise: Denoiser, x: Tensor, levels: list[Level], generators: Generators
) -> Iterator[Step]:
    """Undo the noising at random, as it was done: draw from the posterior of the next x.

    Ho et al. 2020, eq. 6-7 and algorithm 2, with the smaller variance, between neighbouring levels
    of any walk. The guess x0 is not clipped: a latent has no bounds. One evaluation per step.
    """
    for index, (level, to) in enumerate(pairwise(levels)):
        prediction = denoise(x, level)
        alpha = level.alpha_bar / to.alpha_bar
        beta = 1 - alpha
        x0_weight = to.signal_rate * beta / level.noise_rate**2
        x_weight = sqrt(alpha) * to.noise_rate**2 / level.noise_rate**2
        spread = sqrt(beta) * to.noise_rate / level.noise_rate
        x = x0_weight * prediction.x0 + x_weight * x
        if spread > 0:
            x = x + spread * unit_noise(x, generators)
        yield Step(index, level.t, level.sigma, prediction, x)


def ddim(
    denoise: Denoiser,
    x: Tensor,
    levels: list[Level],
    generators: Generators = None,
    eta: float = 0.0,
) -> Iterator[Step]:
    """Keep the guess, and put back a little less of the same noise.

    Song et al. 2021, eq. 12 and 16. eta is the share of the noise that is drawn anew: 0 draws
    none, 1 is DDPM. One evaluation per step.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0 (DDIM) and 1 (DDPM), got {eta}.")
    for index, (level, to) in enumerate(pairwise(levels)):
        prediction = denoise(x, level)
        beta = 1 - level.alpha_bar / to.alpha_bar
        fresh = eta * sqrt(beta) * to.noise_rate / level.noise_rate
        kept = sqrt(to.noise_rate**2 - fresh**2)
        x = to.signal_rate * prediction.x0 + kept * prediction.eps
        if fresh > 0:
            x = x + fresh * unit_noise(x, generators)
        yield Step(index, level.t, level.sigma, prediction, x)


# Adams-Bashforth weights for the newest eps, the one before … (Liu et al. 2022, eq. 12)
PLMS_WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def plms(
    denoise: Denoiser, x: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """DDIM with foresight: extrapolate eps from the last four, then step.

    Liu et al. 2022, eq. 12, in CompVis' form without the Runge-Kutta start: the first step
    tries itself, looks at the eps where it lands, and steps again with the mean of both. One
    evaluation per step and two for the first; a walk of a single step is DDIM.
    """
    history = []
    for index, (level, to) in enumerate(pairwise(levels)):
        prediction = denoise(x, level)
        history = [prediction.eps, *history[:3]]
        if index == 0 and len(levels) > 2:
            trial = ddim_move(x, prediction.eps, level, to)
            eps = (prediction.eps + denoise(trial, to).eps) / 2
        else:
            eps = weighted_sum(PLMS_WEIGHTS[len(history)], history)
        x = ddim_move(x, eps, level, to)
        yield Step(index, level.t, level.sigma, prediction, x)


def ddim_move(x: Tensor, eps: Tensor, level: Level, to: Level) -> Tensor:
    """DDIM's step along a given eps. On the sigma scale, x0 + sigma eps, it is a straight line."""
    scaled = x / level.signal_rate + (to.sigma - level.sigma) * eps
    return scaled * to.signal_rate


def weighted_sum(weights: tuple[float, ...] | list[float], tensors: list[Tensor]) -> Tensor:
    """weights[0] tensors[0] + weights[1] tensors[1] …"""
    return sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))


def euler(
    denoise: Denoiser, x: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """Follow the straight line towards the guess, a little way at a time.

    Karras et al. 2022, algorithm 2 without churn or correction. One evaluation per step.
    """
    x = x / levels[0].signal_rate
    for index, (level, to) in enumerate(pairwise(levels)):
        prediction = denoise(x * level.signal_rate, level)
        x = x + (to.sigma - level.sigma) * prediction.eps
        yield Step(index, level.t, level.sigma, prediction, x * to.signal_rate)


def euler_ancestral(
    denoise: Denoiser, x: Tensor, levels: list[Level], generators: Generators
) -> Iterator[Step]:
    """Euler that goes further down than asked, and comes back up by fresh noise.

    DDPM's rule in sigma form: below² + spread² = to². k-diffusion's sample_euler_ancestral with
    eta 1. One evaluation per step.
    """
    x = x / levels[0].signal_rate
    for index, (level, to) in enumerate(pairwise(levels)):
        prediction = denoise(x * level.signal_rate, level)
        below = to.sigma * (to.sigma / level.sigma)
        spread = to.sigma * sqrt(1 - (to.sigma / level.sigma) ** 2)
        x = x + (below - level.sigma) * prediction.eps
        if spread > 0:
            x = x + spread * unit_noise(x, generators)
        yield Step(index, level.t, level.sigma, prediction, x * to.signal_rate)


def heun(
    denoise: Denoiser, x: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """Try an Euler step, look at the slope where it lands, and step again with the mean of both.

    Karras et al. 2022, algorithm 2 without churn. Two evaluations per step; one for a step to
    sigma 0, where there is nothing left to look at.
    """
    x = x / levels[0].signal_rate
    for index, (level, to) in enumerate(pairwise(levels)):
        prediction = denoise(x * level.signal_rate, level)
        slope = prediction.eps
        if to.sigma > 0:
            trial = x + (to.sigma - level.sigma) * slope
            slope = (slope + denoise(trial * to.signal_rate, to).eps) / 2
        x = x + (to.sigma - level.sigma) * slope
        yield Step(index, level.t, level.sigma, prediction, x * to.signal_rate)


def lms(
    denoise: Denoiser, x: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """Draw a curve through the last four slopes, and follow the area under it.

    Linear multistep (Adams-Bashforth) for uneven strides, as k-diffusion's sample_lms, there by
    numerical integration, here exact. One evaluation per step.
    """
    x = x / levels[0].signal_rate
    slopes, sigmas = [], []
    for index, (level, to) in enumerate(pairwise(levels)):
        prediction = denoise(x * level.signal_rate, level)
        slopes = [prediction.eps, *slopes[:3]]
        sigmas = [level.sigma, *sigmas[:3]]
        x = x + weighted_sum(lms_weights(sigmas, to.sigma), slopes)
        yield Step(index, level.t, level.sigma, prediction, x * to.signal_rate)


def lms_weights(sigmas: list[float], sigma_to: float) -> list[float]:
    """How much each known slope counts in the integral from sigmas[0] to sigma_to.

    The slope is read as the polynomial through the known ones; the weight of one slope is the
    integral of the polynomial that is 1 at its sigma and 0 at the others (Lagrange's basis).
    """
    points = [sigma - sigmas[0] for sigma in sigmas]  # from 0: keeps the powers small
    weights = []
    for here in points:
        others = [point for point in points if point != here]
        basis = polyfromroots(others)
        area = polyval(sigma_to - sigmas[0], polyint(basis))  # the integral begins at 0
        weights.append(float(area / polyval(here, basis)))
    return weights


def dpmpp_2m(
    denoise: Denoiser, x: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """Blend x with the guess, the guess led on by how it changed since the step before.

    DPM-Solver++(2M), Lu et al. 2022, algorithm 2, where the blend is exact for a constant guess.
    As in its authors' code, the step to sigma 0 takes the plain guess, and so does the last one of
    fewer than 15: far-apart guesses extrapolate badly. One evaluation per step.
    """
    x = x / levels[0].signal_rate
    steps = len(levels) - 1
    before = None  # the step before: its level and guess
    for index, (level, to) in enumerate(pairwise(levels)):
        prediction = denoise(x * level.signal_rate, level)
        guess = prediction.x0
        last = index == steps - 1
        few = level.diffusers.plain_end if level.diffusers else steps < 15
        if before is not None and to.sigma > 0 and not (last and few):
            came_from, old_guess = before
            stride = log_fall(level, to) / log_fall(came_from, level)
            guess = guess + stride / 2 * (guess - old_guess)
        before = (level, prediction.x0)
        shrink = to.sigma / level.sigma
        x = shrink * x + (1 - shrink) * guess
        yield Step(index, level.t, level.sigma, prediction, x * to.signal_rate)


def log_fall(level: Level, to: Level) -> float:
    """The length of an interval in log sigma, DPM-Solver's time."""
    return log(level.sigma / to.sigma)


def diffusers_ddim(
    denoise: Denoiser, x: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """DDIM as diffusers counts: t falls by timesteps // steps, and the step ends there.

    Where the levels are not that far apart, x is taken for what it would be at the next one.
    """
    for index, (level, to) in enumerate(pairwise(levels)):
        lands = to._replace(sigma=level.diffusers.lands)
        (step,) = ddim(denoise, x, [level, lands], generators)
        x = step.x
        yield step._replace(index=index)


def diffusers_pndm(
    denoise: Denoiser, x: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """PLMS as diffusers' PNDMScheduler has it, which counts as its DDIM does.

    The second try of the first step ends at the next level and counts back from there. What a v
    network says is averaged as it is, and read as eps where the step begins.
    """
    history = []
    for index, (level, to) in enumerate(pairwise(levels)):
        begins, lands = level, to._replace(sigma=level.diffusers.lands)
        prediction = denoise(x, level)
        history = [answer(prediction, level), *history[:3]]
        mean = weighted_sum(PLMS_WEIGHTS[len(history)], history)
        if index == 0 and len(levels) > 2:
            trial = ddim_move(x, as_eps(mean, x, level), level, lands)
            mean = (mean + answer(denoise(trial, to), to)) / 2
            begins, lands = level._replace(sigma=level.diffusers.left), to
        x = ddim_move(x, as_eps(mean, x, begins), begins, lands)
        yield Step(index, level.t, level.sigma, prediction, x)


def answer(prediction: Prediction, level: Level) -> Tensor:
    """What the network itself said, guided: its v, if that is what diffusers averages, or eps."""
    v = level.signal_rate * prediction.eps - level.noise_rate * prediction.x0
    return v if level.diffusers.mixes_v else prediction.eps


def as_eps(said: Tensor, x: Tensor, level: Level) -> Tensor:
    """`answer` read as eps, for an x at this level."""
    eps = level.noise_rate * x + level.signal_rate * said
    return eps if level.diffusers.mixes_v else said


def diffusers_euler(
    denoise: Denoiser, x: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """Euler, which diffusers leaves on the sigma scale, also where its walk ends at some noise."""
    for step, to in zip(euler(denoise, x, levels), levels[1:]):
        yield step if to.diffusers else step._replace(x=step.x / to.signal_rate)


TIME_SAMPLERS = {walk.__name__: walk for walk in (ddpm, ddim, plms)}
SIGMA_SAMPLERS = {walk.__name__: walk for walk in (lms, euler, euler_ancestral, heun, dpmpp_2m)}
SAMPLERS = TIME_SAMPLERS | SIGMA_SAMPLERS
# where the form that diffusers gives a sampler is another
FOLDER_SAMPLERS = {"ddim": diffusers_ddim, "plms": diffusers_pndm, "euler": diffusers_euler}

EVEN_IN_T = (Schedule.leading, Schedule.linspace, Schedule.trailing, Schedule.uniform)
SPACINGS = {spacing.__name__: spacing for spacing in (*EVEN_IN_T, Schedule.karras)}


def sampler_levels(
    name: str, schedule: Schedule, steps: int, spacing: str | None = None, final: str | None = None
) -> list[Level]:
    """The steps + 1 levels that the sampler `name` walks down.

    spacing: of the levels where the network runs. None is what the model's folder says, or the
    references' choice: "leading" (+ 1) for DDPM, DDIM and PLMS ("trailing" where the last SNR is
    zero), "uniform" for the sigma samplers, where "karras" is also customary.
    final: where the walk ends, at "zero" noise or at "sigma_min", the level of t = 0. None is what
    the folder says, or the references' choice: sigma_min for DDIM and PLMS
    (set_alpha_to_one=False), else zero. A spacing that reaches t = 0 by itself has nowhere left to
    go in its last step to sigma_min.

    Raises ValueError on an unknown name, with the known ones, and on steps outside 1 … 1000.
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
    if name not in ("ddpm", "ddim"):  # the others divide by the signal, be it ever so weak
        levels = [one._replace(sigma=LARGEST_SIGMA) if isinf(one.sigma) else one for one in levels]
    return levels


def from_noise(
    name: str, denoise: Denoiser, noise: Tensor, levels: list[Level], generators: Generators = None
) -> Iterator[Step]:
    """Walk all the way from unit noise, b c h w, with the sampler `name`.

    The sigma samplers begin at sigma_max * noise on their scale (k-diffusion), DDPM, DDIM and PLMS
    at the noise itself on theirs (CompVis): 0.2 % apart.

    Raises ValueError, with the known ones, on an unknown name.
    """
    check_known("sampler", name, SAMPLERS)
    x = scaled(name, noise, levels[0])
    return sampler_for(name, levels)(denoise, x, levels, generators)


def sampler_for(name: str, levels: list[Level]) -> Sampler:
    """The function that walks these levels: the sampler `name`, or the form it has in diffusers."""
    return (FOLDER_SAMPLERS if levels[0].diffusers else {}).get(name, SAMPLERS[name])


def scaled(name: str, noise: Tensor, level: Level) -> Tensor:
    """Where the sampler `name` begins, given unit noise. b c h w"""
    unit = name not in SIGMA_SAMPLERS or (level.diffusers and level.diffusers.unit_start)
    return noise if unit else level.noise_rate * noise


def check_known(kind: str, name: str, known: dict) -> None:
    """Raise ValueError, listing the known names, unless `name` is one of them."""
    if name not in known:
        raise ValueError(f'Unknown {kind} "{name}": choose one of {", ".join(known)}.')
