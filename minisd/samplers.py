"""The samplers: nine ways from noise to a picture, one generator function each.

All samplers are called in the same way. sampler(denoise, x, levels, generators) yields one Step for
each pair of neighbouring levels, so S steps for S + 1 levels. The x that goes in and the x of each
Step are variance-preserving. So a sampler may start anywhere: at pure noise, at add_noise(x0, …),
or where another sampler stopped.

DDPM, DDIM, PLMS and LCM compute with this x. The other five are the sigma samplers. They compute
with x = x0 + sigma eps. The derivative dx/dsigma of this x is simply eps. `on_sigma_scale` converts
the variance-preserving x for them.

levels: the noise levels that sampling.sampler_levels chooses, the noisiest first. The network does
    not run at the last level. The last level is CLEAN, or the least noisy level of training
generators: one torch.Generator for each sample, for samplers that add noise in their steps. The
    other samplers ignore the generators
"""

from collections.abc import Callable, Iterator
from functools import wraps
from itertools import pairwise
from math import log, sqrt
from typing import NamedTuple

import torch
from numpy.polynomial.polynomial import polyfromroots, polyint, polyval
from torch import Tensor

from minisd.schedule import Denoiser, Level, Prediction

Levels = list[Level]
Generators = list[torch.Generator] | None
Moves = Iterator[tuple[Prediction, Tensor]]  # for each step: the network's prediction, the next x
Sampler = Callable[..., Iterator["Step"]]  # (denoise, x, levels, generators)


class Step(NamedTuple):
    """One step: the level at which it starts, the network's prediction, and the next x."""

    index: int
    t: float
    sigma: float
    prediction: Prediction
    x: Tensor  # b c h w, variance-preserving, at the next level


def in_steps(sampler: Callable[..., Moves]) -> Sampler:
    """Wrap a sampler that yields pairs (prediction, next x), so that it yields Steps instead."""

    @wraps(sampler)
    def steps(
        denoise: Denoiser, x: Tensor, levels: Levels, *more: object, **settings: object
    ) -> Iterator[Step]:
        moves = sampler(denoise, x, levels, *more, **settings)
        for index, (level, (prediction, x)) in enumerate(zip(levels[:-1], moves, strict=True)):
            yield Step(index, level.t, level.sigma, prediction, x)

    return steps


def on_sigma_scale(sampler: Callable[..., Moves]) -> Sampler:
    """Wrap a sampler that computes with x0 + sigma eps: convert every x that goes in or comes out.

    Outside the sampler, x is variance-preserving. This x, divided by the signal rate, is
    x0 + sigma eps (schedule.py).
    """

    @in_steps
    @wraps(sampler)
    def convert(
        denoise: Denoiser, x: Tensor, levels: Levels, *more: object, **settings: object
    ) -> Moves:
        def denoise_scaled(x: Tensor, level: Level) -> Prediction:
            return denoise(x * level.signal_rate, level)

        moves = sampler(denoise_scaled, x / levels[0].signal_rate, levels, *more, **settings)
        for next_level, (prediction, x) in zip(levels[1:], moves, strict=True):
            yield prediction, x * next_level.signal_rate

    return convert


def unit_noise(x: Tensor, generators: Generators) -> Tensor:
    """Draw unit noise (variance 1) in the shape of x.

    The noise is drawn in float32 on the CPU, one sample at a time. So a sample's noise does not
    depend on the device or on the other samples.

    Raises ValueError if the number of generators is not the number of samples.
    """
    if generators is None or len(generators) != len(x):
        count = 0 if generators is None else len(generators)
        raise ValueError(
            f"{len(x)} samples need {len(x)} random generators, got {count}. "
            "Give one generator for each sample."
        )
    shape = (1, *x.shape[1:])
    draws = [torch.randn(shape, generator=g, dtype=torch.float32) for g in generators]
    return torch.cat(draws).to(x)


@in_steps
def ddpm(denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators) -> Moves:
    """Draw the next, less noisy x at random. Its distribution is computed from x and the guess x0.

    Ho et al. 2020, eq. 6-7 and algorithm 2, with the smaller of the paper's two variances. The
    levels may be any distance apart. The guess x0 is not clipped, because a latent has no limits.
    The network runs once per step.
    """
    for level, next_level in pairwise(levels):
        prediction = denoise(x, level)
        alpha = level.alpha_bar / next_level.alpha_bar
        beta = 1 - alpha
        x0_weight = next_level.signal_rate * beta / level.noise_rate**2
        x_weight = sqrt(alpha) * next_level.noise_rate**2 / level.noise_rate**2
        spread = sqrt(beta) * next_level.noise_rate / level.noise_rate
        x = x0_weight * prediction.x0 + x_weight * x
        if spread > 0:
            x = x + spread * unit_noise(x, generators)
        yield prediction, x


@in_steps
def ddim(
    denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None, eta: float = 0.0
) -> Moves:
    """Keep the guess x0, and add the predicted noise again, but a little less of it.

    Song et al. 2021, eq. 12 and 16. eta says how much of the predicted noise is replaced by new
    random noise. At eta 0, nothing is replaced. At eta 1, the sampler is DDPM. The network runs
    once per step.

    Raises ValueError if eta is outside 0 … 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be 0 (DDIM) to 1 (DDPM), got {eta}. Choose from 0 to 1.")
    for level, next_level in pairwise(levels):
        prediction = denoise(x, level)
        beta = 1 - level.alpha_bar / next_level.alpha_bar
        fresh = eta * sqrt(beta) * next_level.noise_rate / level.noise_rate
        kept = sqrt(next_level.noise_rate**2 - fresh**2)
        x = next_level.signal_rate * prediction.x0 + kept * prediction.eps
        if fresh > 0:
            x = x + fresh * unit_noise(x, generators)
        yield prediction, x


# Adams-Bashforth weights for 1 to 4 known eps, the newest eps first (Liu et al. 2022, eq. 12)
PLMS_WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@in_steps
def plms(denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None) -> Moves:
    """Extrapolate eps from its last four values, then step as DDIM does.

    Liu et al. 2022, eq. 12, in CompVis' form without the Runge-Kutta start. The first step knows no
    earlier eps. So it tries a step of DDIM, computes eps again where the trial ends, and then steps
    with the mean of both eps. The network runs once per step, but twice in the first step. If there
    is only one step, PLMS is the same as DDIM.
    """
    history = []
    for level, next_level in pairwise(levels):
        prediction = denoise(x, level)
        history = [prediction.eps, *history[:3]]
        eps = weighted_sum(PLMS_WEIGHTS[len(history)], history)
        if len(history) == 1 and len(levels) > 2:
            trial = ddim_move(x, eps, level, next_level)
            eps = (eps + denoise(trial, next_level).eps) / 2
        x = ddim_move(x, eps, level, next_level)
        yield prediction, x


def ddim_move(x: Tensor, eps: Tensor, level: Level, next_level: Level) -> Tensor:
    """Move x along a given eps to the next level, as DDIM does.

    If x is written as x0 + sigma eps, x moves on a straight line.
    """
    on_sigmas = x / level.signal_rate
    on_sigmas = on_sigmas + (next_level.sigma - level.sigma) * eps
    return on_sigmas * next_level.signal_rate


def weighted_sum(weights: tuple[float, ...] | list[float], tensors: list[Tensor]) -> Tensor:
    """The sum weights[0] * tensors[0] + weights[1] * tensors[1] + …"""
    first, *others = [weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]
    return sum(others, start=first)


@on_sigma_scale
def euler(denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None) -> Moves:
    """In each step, go a little way along the straight line from x to the guess x0.

    Karras et al. 2022, algorithm 2 without churn (extra noise) and without its second slope. The
    network runs once per step.
    """
    for level, next_level in pairwise(levels):
        prediction = denoise(x, level)
        x = x + (next_level.sigma - level.sigma) * prediction.eps
        yield prediction, x


@on_sigma_scale
def euler_ancestral(denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators) -> Moves:
    """Step with Euler to less noise than the next level has, then add fresh noise up to that level.

    The Euler step ends at a sigma called `below`. The fresh noise has the standard deviation
    `spread`, with below² + spread² = sigma² of the next level. This is DDPM's rule on the sigma
    scale. It matches k-diffusion's sample_euler_ancestral with eta 1. The network runs once per
    step.
    """
    for level, next_level in pairwise(levels):
        prediction = denoise(x, level)
        ratio = next_level.sigma / level.sigma
        below = next_level.sigma * ratio
        spread = next_level.sigma * sqrt(1 - ratio**2)
        x = x + (below - level.sigma) * prediction.eps
        if spread > 0:
            x = x + spread * unit_noise(x, generators)
        yield prediction, x


@on_sigma_scale
def heun(denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None) -> Moves:
    """Try an Euler step, compute the slope where it ends, and step with the mean of both slopes.

    Karras et al. 2022, algorithm 2 without churn (extra noise). The network runs twice per step. It
    runs only once in a step to sigma 0, because the network was never trained without noise.
    """
    for level, next_level in pairwise(levels):
        prediction = denoise(x, level)
        slope = prediction.eps
        if next_level.sigma > 0:
            trial = x + (next_level.sigma - level.sigma) * slope
            slope = (slope + denoise(trial, next_level).eps) / 2
        x = x + (next_level.sigma - level.sigma) * slope
        yield prediction, x


@on_sigma_scale
def lms(denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None) -> Moves:
    """Fit a curve to the last four slopes, and add the area under the curve to x.

    This is the linear multistep method (Adams-Bashforth) for steps of unequal length, like
    k-diffusion's sample_lms. k-diffusion computes the area numerically. Here, the area is exact.
    The network runs once per step.
    """
    slopes, sigmas = [], []
    for level, next_level in pairwise(levels):
        prediction = denoise(x, level)
        slopes = [prediction.eps, *slopes[:3]]
        sigmas = [level.sigma, *sigmas[:3]]
        x = x + weighted_sum(lms_weights(sigmas, next_level.sigma), slopes)
        yield prediction, x


def lms_weights(sigmas: list[float], next_sigma: float) -> list[float]:
    """The weight of each known slope in the area under the curve, from sigmas[0] to next_sigma.

    sigmas: the sigmas of the known slopes, the newest first

    The curve is a polynomial through all known slopes. Each slope also has a polynomial of its own,
    with the value 1 at the slope's sigma and 0 at the other sigmas (Lagrange's basis). The weight
    of the slope is the area under this polynomial.
    """
    points = [sigma - sigmas[0] for sigma in sigmas]  # start at 0, so that powers stay small
    weights = []
    for here in points:
        others = [point for point in points if point != here]
        basis = polyfromroots(others)
        area = polyval(next_sigma - sigmas[0], polyint(basis))  # the integral starts at 0
        weights.append(float(area / polyval(here, basis)))
    return weights


@on_sigma_scale
def dpmpp_2m(denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None) -> Moves:
    """Extrapolate the guess x0 from the last two guesses, and blend x with the result.

    DPM-Solver++(2M), Lu et al. 2022, algorithm 2. If the guess is the same in all steps, the blend
    is exact. As in the authors' code, a step to sigma 0 does not extrapolate. If there are fewer
    than 15 steps, the last step does not extrapolate either, because the last two guesses are too
    far apart. The network runs once per step.
    """
    steps = len(levels) - 1
    before = None  # the level and the guess of the step before
    for index, (level, next_level) in enumerate(pairwise(levels)):
        prediction = denoise(x, level)
        guess = prediction.x0
        last = index == steps - 1
        few = level.diffusers.plain_last_step if level.diffusers else steps < 15
        if before is not None and next_level.sigma > 0 and not (last and few):
            last_level, last_guess = before
            stride = log_fall(level, next_level) / log_fall(last_level, level)
            guess = guess + stride / 2 * (guess - last_guess)
        before = (level, prediction.x0)
        shrink = next_level.sigma / level.sigma
        x = shrink * x + (1 - shrink) * guess
        yield prediction, x


def log_fall(level: Level, next_level: Level) -> float:
    """How far log sigma falls between two levels. In DPM-Solver, this is the length of a step."""
    return log(level.sigma / next_level.sigma)


# A consistency function must return x itself at t = 0. These numbers say how fast the weight of x
# falls if t grows (Luo et al. 2023; sigma_data and timestep_scaling in the authors' code).
SIGMA_DATA, T_SCALE = 0.5, 10.0


@in_steps
def lcm(denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators) -> Moves:
    """Keep only the guess x0, add fresh noise up to the next level, and guess again.

    Multistep consistency sampling (Luo et al. 2023, "Latent Consistency Models", algorithm 3). It
    needs a model that was distilled for it, or an LCM-LoRA. Its first guess already shows the
    whole picture, but roughly. 2 to 8 steps are enough. The network runs once per step.
    """
    for level, next_level in pairwise(levels):
        prediction = denoise(x, level)
        x_weight, x0_weight = consistency_weights(level.t)
        x = x_weight * x + x0_weight * prediction.x0
        if next_level.sigma > 0:
            noise = unit_noise(x, generators)
            x = next_level.signal_rate * x + next_level.noise_rate * noise
        yield prediction, x


def consistency_weights(t: float) -> tuple[float, float]:
    """The weights of x and of the guess x0 in a consistency function (Luo et al. 2023, eq. 9).

    The paper calls them c_skip and c_out. At t = 0, they are 1 and 0. From t = 1 on, they are
    almost 0 and 1.
    """
    length = sqrt((T_SCALE * t) ** 2 + SIGMA_DATA**2)
    return (SIGMA_DATA / length) ** 2, T_SCALE * t / length


SIGMA_SAMPLERS = {one.__name__: one for one in (lms, euler, euler_ancestral, heun, dpmpp_2m)}
SAMPLERS = {one.__name__: one for one in (ddpm, ddim, plms, lcm)} | SIGMA_SAMPLERS
