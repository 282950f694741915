"""How much noise there is at each t: betas -> alpha_bar -> sigmas, and which t a sampler visits.

A noisy picture can be written on two scales. The network reads the variance-preserving x:
x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps. The sigma samplers divide this x by
sqrt(alpha_bar). They get x0 + sigma eps, with sigma² = (1 - alpha_bar) / alpha_bar.
"""

from collections.abc import Callable, Sequence
from math import pi
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minisd.config import ScheduleConfig


class DiffusersRules(NamedTuple):
    """What diffusers does differently from the original code at one noise level."""

    starts_at_unit_noise: bool  # a sigma sampler starts with unit noise, if it starts at this level
    plain_last_step: bool  # if the last step of DPM++ starts at this level, it does not extrapolate
    averages_v: bool  # if the network predicts v, PNDM averages v instead of eps
    end_sigma: float  # where a step of DDIM or PNDM ends. It may differ from the next level's sigma
    retry_sigma: float  # PNDM computes its first step twice. The second try starts at this sigma


class Level(NamedTuple):
    """One noise level.

    t: the time that the network reads
    sigma: the strength of eps in x0 + sigma eps
    diffusers: diffusers' rules for this level. None: the rules of the original code. Only a level
        that was chosen by the settings of a diffusers folder has diffusers' rules

    t and sigma are plain Python numbers, so that they never change the precision or device of x.
    """

    t: float
    sigma: float
    diffusers: DiffusersRules | None = None

    @property
    def signal_rate(self) -> float:
        """sqrt(alpha_bar): the factor of x0 in the noisy x."""
        return (1 + self.sigma**2) ** -0.5

    @property
    def noise_rate(self) -> float:
        """sqrt(1 - alpha_bar): the factor of eps in the noisy x. It is 1 if sigma is infinite."""
        return (1 + self.sigma**-2) ** -0.5 if self.sigma else 0.0

    @property
    def alpha_bar(self) -> float:
        """The share of the picture in the variance of x (Ho et al. 2020, eq. 4)."""
        return self.signal_rate**2


LARGEST_SIGMA = 2.0**12  # used instead of an infinite sigma (diffusers' Euler: alpha_bar 2^-24)

LCM_TIMESTEPS = 50  # latent consistency models are distilled at so many t (Luo et al. 2023)

CLEAN = Level(t=-1, sigma=0.0)  # no noise at all. The level of t = 0 still has a little noise


class Prediction(NamedTuple):
    """The network's prediction for a noisy x. Each tensor is b c h w.

    x0 and eps hold the same information, because x = signal_rate x0 + noise_rate eps.
    """

    x0: Tensor  # the predicted picture
    eps: Tensor  # the predicted noise
    eps_uncond: Tensor | None  # eps without the prompt. None: not computed
    eps_cond: Tensor | None  # eps with the prompt. None: not computed


# denoise(x, level) -> Prediction, for a variance-preserving x with the noise of this level
Denoiser = Callable[[Tensor, Level], Prediction]


def with_zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Stretch the signal rates: the last rate becomes 0 (pure noise), the first stays the same.

    In SD's own table, 7 % of the picture is left at the last level. So SD was never trained on pure
    noise (Lin et al. 2024, algorithm 1). A network that predicts eps cannot be trained on pure
    noise, because there, eps says nothing about x0. A network that predicts v can.

    alpha_bar: timesteps    returns: the same shape
    """
    rates = alpha_bar.sqrt()
    first, last = rates[0], rates[-1]
    return ((rates - last) * first / (first - last)) ** 2


def other_betas(config: ScheduleConfig) -> Tensor:
    """The betas of a model that does not use SD's own rule.

    A beta is the variance of the noise that one t adds.

    returns: timesteps, float64
    """
    if config.betas is not None:
        return torch.tensor(config.betas, dtype=torch.float64)
    if config.beta_schedule == "linear":  # Ho et al. 2020
        ends = config.beta_start, config.beta_end
        return torch.linspace(*ends, config.timesteps, dtype=torch.float64)
    assert config.beta_schedule == "squaredcos_cap_v2", config.beta_schedule
    ramp = torch.linspace(0, 1, config.timesteps + 1, dtype=torch.float64)  # Nichol & Dhariwal 2021
    alpha_bar = torch.cos((ramp + 0.008) / 1.008 * pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


class Schedule:
    """The noise levels that a model was trained on, and rules to choose levels for a sampler."""

    def __init__(self, config: ScheduleConfig):
        self.config = config
        # "Scaled linear": even steps in sqrt(beta). CompVis computes it in float64 (ldm util.py).
        first, last = config.beta_start**0.5, config.beta_end**0.5
        betas = torch.linspace(first, last, config.timesteps, dtype=torch.float64) ** 2
        if config.betas is not None or config.beta_schedule != "scaled_linear":
            betas = other_betas(config)
        self.alpha_bar = torch.cumprod(1 - betas, dim=0)
        if config.zero_terminal_snr:
            self.alpha_bar = with_zero_terminal_snr(self.alpha_bar)
        self.sigmas = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        self._log_sigmas = self.sigmas.log().numpy()
        self.finite_sigmas = self.sigmas.nan_to_num(posinf=LARGEST_SIGMA).numpy()

    def sigma(self, t: float | Tensor) -> Tensor:
        """Sigma at t. Between two whole t, log sigma is interpolated (k-diffusion, external.py).

        t: one number or b numbers, 0 … timesteps - 1
        returns: the same shape, in float64 on the CPU

        Raises ValueError if a t is outside this range.
        """
        t = torch.as_tensor(t).cpu().double()
        top = self.config.timesteps - 1
        if t.min() < 0 or t.max() > top:
            raise ValueError(f"t must lie between 0 and {top}, got {t.min():g} to {t.max():g}.")
        log_sigma = np.interp(t.numpy(), np.arange(top + 1), self._log_sigmas)
        return torch.as_tensor(log_sigma).exp()

    def at(self, t: float) -> Level:
        """The level of one t."""
        return Level(t, self.sigma(t).item())

    def levels(self, ts: Sequence[float]) -> list[Level]:
        """The levels of several t."""
        sigmas = self.sigma(torch.tensor(ts, dtype=torch.float64)).tolist()
        return [Level(t, sigma) for t, sigma in zip(ts, sigmas, strict=True)]

    def levels_of_sigmas(self, sigmas: Sequence[float]) -> list[Level]:
        """The levels of several sigmas. Their t are interpolated, and usually not whole numbers.

        A sigma outside the table gets the first or the last t of the table.
        """
        ts = np.interp(np.log(sigmas), np.log(self.finite_sigmas), np.arange(len(self.sigmas)))
        return [Level(t, sigma) for t, sigma in zip(ts.tolist(), sigmas, strict=True)]

    def add_noise(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """Add the noise of t to x0: the forward process in one step (Ho et al. 2020, eq. 4).

        x0, noise: b c h w    t: one number, or b numbers    returns: b c h w
        """
        signal_rate, noise_rate = self._rates(t, x0)
        return signal_rate * x0 + noise_rate * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """The v that a network should predict for add_noise(x0, noise, t) (Salimans & Ho 2022).

        x0, noise: b c h w    t: one number, or b numbers    returns: b c h w
        """
        signal_rate, noise_rate = self._rates(t, x0)
        return signal_rate * noise - noise_rate * x0

    def _rates(self, t: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The signal rate and the noise rate at t: two tensors, 1 1 1 or b 1 1 1.

        like: a tensor. The results get its device and its dtype
        """
        sigma = rearrange(self.sigma(t), "... -> ... 1 1 1")
        signal_rate = (1 + sigma**2) ** -0.5
        noise_rate = (1 + sigma**-2) ** -0.5
        return signal_rate.to(like), noise_rate.to(like)

    def leading(self, steps: int) -> list[Level]:
        """The levels of SD's DDIM and PLMS: t = 1, 1 + stride, 1 + 2 stride …, the largest first.

        The stride is timesteps // steps. So the largest t may be much smaller than timesteps - 1.
        If steps = timesteps, this rule would give the t `timesteps`, which does not exist. In this
        case, t goes from timesteps - 1 to 0.
        """
        stride = self.config.timesteps // self.check_steps(steps)
        first = 0 if steps == self.config.timesteps else 1
        return self.levels([first + stride * k for k in reversed(range(steps))])

    def linspace(self, steps: int) -> list[Level]:
        """The levels of evenly spaced t, rounded to whole numbers, from timesteps - 1 to 0.

        If there is only one step, its t is timesteps - 1.
        """
        top = self.config.timesteps - 1
        ramp = np.linspace(0 if steps > 1 else top, top, self.check_steps(steps))
        return self.levels([int(t) for t in reversed(ramp.round())])

    def trailing(self, steps: int) -> list[Level]:
        """The levels of t = timesteps - 1, timesteps - 1 - stride, …, stride - 1, rounded.

        The stride is timesteps / steps (Lin et al. 2024).
        """
        stride = self.config.timesteps / self.check_steps(steps)
        ramp = np.arange(self.config.timesteps, 0, -stride)[:steps]  # arange may add one number
        return self.levels([int(t) - 1 for t in ramp.round()])

    def uniform(self, steps: int) -> list[Level]:
        """The levels of evenly spaced t from timesteps - 1 to 0, like k-diffusion's get_sigmas.

        Most of these t are not whole numbers.
        """
        ramp = np.linspace(self.config.timesteps - 1, 0, self.check_steps(steps))
        return self.levels(ramp.tolist())

    def lcm(self, steps: int) -> list[Level]:
        """The levels of LCM: some of the 50 t on which latent consistency models are distilled.

        These t are 1, 2 … 50 strides of timesteps // 50, less 1. The first of the chosen t is the
        largest one. The others follow at even distances, rounded down (diffusers' LCMScheduler).

        Raises ValueError if there are more than 50 steps, or fewer than 50 timesteps.
        """
        stride = self.config.timesteps // LCM_TIMESTEPS
        if stride < 1:
            few = f"the sampler lcm needs a model with {LCM_TIMESTEPS} or more timesteps"
            raise ValueError(f"{few}, and this model has {self.config.timesteps}.")
        if self.check_steps(steps) > LCM_TIMESTEPS:
            most = f"the sampler lcm takes at most {LCM_TIMESTEPS} steps, got {steps}"
            raise ValueError(f"{most}. Give fewer steps (4 are usual), or a spacing.")
        skipped = np.linspace(0, LCM_TIMESTEPS, steps, endpoint=False).astype(int).tolist()
        return self.levels([(LCM_TIMESTEPS - each) * stride - 1 for each in skipped])

    def karras(self, steps: int, ends: tuple[float, float] | None = None) -> list[Level]:
        """Levels that are evenly spaced in sigma^(1/7) (Karras et al. 2022, eq. 5, rho = 7).

        So neighbouring sigmas are close to each other near the end of sampling.

        ends: the lowest and the highest sigma. None: the sigmas of t = 0 and t = timesteps - 1
        """
        table_ends = self.sigma(torch.tensor([0, self.config.timesteps - 1]))
        low, high = ends or table_ends.clamp(max=LARGEST_SIGMA).tolist()
        ramp = np.linspace(high ** (1 / 7), low ** (1 / 7), self.check_steps(steps))
        return self.levels_of_sigmas((ramp**7).clip(low, high).tolist())

    def check_steps(self, steps: int) -> int:
        """Return the number of steps. Raises ValueError if it is not 1 … timesteps."""
        if not 1 <= steps <= self.config.timesteps:
            raise ValueError(f"steps must be 1 to {self.config.timesteps}, got {steps}.")
        return steps
