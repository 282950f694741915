"""The samplers: eight ways from noise to a picture, one generator function each.

All samplers are called in the same way. sampler(denoise, x, levels, generators) yields one Step for
each interval of `levels`, so S steps for S + 1 levels. The x that goes in and the x of each Step
are variance-preserving. A sampler may therefore start anywhere: at pure noise, at
add_noise(x0, …), or where another sampler stopped.

DDPM, DDIM and PLMS compute with this x. The other five are the sigma samplers. They compute with
x0 + sigma eps, whose derivative dx/dsigma is simply eps. `on_sigma_scale` converts x for them.

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
Moves = Iterator[tuple[Prediction, Tensor]]  # the network's prediction, and the next x
Sampler = Callable[..., Iterator["Step"]]  # (denoise, x, levels, generators)


class Step(NamedTuple):
    """One step: the level at which it starts, the network's prediction, and the next x."""

    index: int
    t: float
    sigma: float
    prediction: Prediction
    x: Tensor  # b c h w, variance-preserving, at the next level


def in_steps(sampler: Callable[..., Moves]) -> Sampler:
    """Turn the pairs (prediction, next x) that a sampler yields into Steps."""

    @wraps(sampler)
    def steps(
        denoise: Denoiser, x: Tensor, levels: Levels, *more: object, **settings: object
    ) -> Iterator[Step]:
        moves = sampler(denoise, x, levels, *more, **settings)
        for index, (level, (prediction, x)) in enumerate(zip(levels[:-1], moves, strict=True)):
            yield Step(index, level.t, level.sigma, prediction, x)

    return steps


def on_sigma_scale(sampler: Callable[..., Moves]) -> Sampler:
    """Let a sampler compute with x0 + sigma eps, by converting every x that goes in or comes out.

    A variance-preserving x, divided by the signal rate, is x0 + sigma eps (schedule.py).
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
    """Draw unit noise in the shape of x, one sample at a time, in float32 on the CPU.

    So a sample's noise does not depend on the device or on the other samples.

    Raises ValueError if there is not one generator for each of the b samples.
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
    """Undo the noise at random, as it was added: draw the next x from its posterior.

    Ho et al. 2020, eq. 6-7 and algorithm 2, with the smaller of the two variances. The levels may
    be any distance apart. The guess x0 is not clipped, because a latent has no limits. The network
    runs once per step.
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
    """Keep the guess, and put back a little less of the same noise.

    Song et al. 2021, eq. 12 and 16. eta is the share of the noise that is drawn again. With eta 0,
    no noise is drawn. With eta 1, the sampler is DDPM. The network runs once per step.

    Raises ValueError if eta is outside 0 … 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be 0 (DDIM) to 1 (DDPM), got {eta}. Choose a value between.")
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
    """DDIM with foresight: extrapolate eps from its last four values, then step.

    Liu et al. 2022, eq. 12, in CompVis' form without the Runge-Kutta start. The first step tries
    DDIM, computes eps where the trial ends, and then steps with the mean of both eps. The network
    runs once per step, and twice in the first step. If there is only one step, PLMS is DDIM.
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
    """DDIM's step along a given eps. On the sigma scale, x0 + sigma eps, it is a straight line."""
    on_sigmas = x / level.signal_rate
    on_sigmas = on_sigmas + (next_level.sigma - level.sigma) * eps
    return on_sigmas * next_level.signal_rate


def weighted_sum(weights: tuple[float, ...] | list[float], tensors: list[Tensor]) -> Tensor:
    """weights[0] tensors[0] + weights[1] tensors[1] …"""
    first, *others = [weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]
    return sum(others, start=first)


@on_sigma_scale
def euler(denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators = None) -> Moves:
    """Follow the straight line towards the guess, a little way at a time.

    Karras et al. 2022, algorithm 2 without churn or correction. The network runs once per step.
    """
    for level, next_level in pairwise(levels):
        prediction = denoise(x, level)
        x = x + (next_level.sigma - level.sigma) * prediction.eps
        yield prediction, x


@on_sigma_scale
def euler_ancestral(denoise: Denoiser, x: Tensor, levels: Levels, generators: Generators) -> Moves:
    """Euler that goes below the next noise level, and comes back up to it with fresh noise.

    This is DDPM's rule on the sigma scale: below² + spread² = sigma² of the next level, where
    spread is the strength of the fresh noise. It matches k-diffusion's sample_euler_ancestral with
    eta 1. The network runs once per step.
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
    """Try an Euler step, look at the slope where it lands, and step again with the mean of both.

    Karras et al. 2022, algorithm 2 without churn. The network runs twice per step, but only once in
    a step to sigma 0, because the network was never trained without noise.
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

    This is linear multistep (Adams-Bashforth) for uneven strides, like k-diffusion's sample_lms.
    k-diffusion integrates numerically, but the integral here is exact. The network runs once per
    step.
    """
    slopes, sigmas = [], []
    for level, next_level in pairwise(levels):
        prediction = denoise(x, level)
        slopes = [prediction.eps, *slopes[:3]]
        sigmas = [level.sigma, *sigmas[:3]]
        x = x + weighted_sum(lms_weights(sigmas, next_level.sigma), slopes)
        yield prediction, x


def lms_weights(sigmas: list[float], next_sigma: float) -> list[float]:
    """The weight of each known slope in the integral from sigmas[0] to next_sigma.

    sigmas: the sigmas of the known slopes, the newest first

    The integral is that of a polynomial through all known slopes. The weight of one slope is the
    integral of the polynomial that is 1 at this slope's sigma and 0 at the other sigmas (Lagrange's
    basis).
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
    """Extrapolate the guess from the last two guesses, and blend x with the result.

    DPM-Solver++(2M), Lu et al. 2022, algorithm 2. If the guess stays constant, the blend is exact.
    As in the authors' code, a step to sigma 0 does not extrapolate. If there are fewer than 15
    steps, the last step does not extrapolate either, because guesses that are far apart extrapolate
    badly. The network runs once per step.
    """
    steps = len(levels) - 1
    before = None  # the level and the guess of the last step
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
    """How far log sigma falls between two levels. DPM-Solver measures time in this unit."""
    return log(level.sigma / next_level.sigma)


SIGMA_SAMPLERS = {one.__name__: one for one in (lms, euler, euler_ancestral, heun, dpmpp_2m)}
SAMPLERS = {one.__name__: one for one in (ddpm, ddim, plms)} | SIGMA_SAMPLERS
