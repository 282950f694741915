"""The schedule against CompVis', diffusers' and k-diffusion's."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from ldm.modules.diffusionmodules.util import make_beta_schedule

from minisd.config import ScheduleConfig
from minisd.schedule import CLEAN, Level, Schedule
from tests.helpers.references import k_diffusion

CONFIG = ScheduleConfig()
COUNTS = [1, 3, 6, 7, 20, 27, 37, 50, 101, 333, 999, 1000]
SPACINGS = ["leading", "linspace", "trailing", "uniform", "karras"]

EXACT = 1e-13  # both sides are float64 and differ in the order of roundings only
FLOAT32 = 1e-6  # the reference computes in float32, and so do we beside it
SIGMA = 2e-6  # relative; k-diffusion makes its ramps in float32, whatever its table
FRACTION = 1e-4  # of one step of t, for the same reason


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def schedule():
    return Schedule(CONFIG)


@pytest.fixture(scope="module")
def k_schedule(schedule):
    return k_diffusion.external.DiscreteSchedule(schedule.sigmas, quantize=False)


def diffusers_schedule(kind, **settings):
    betas = {"beta_start": CONFIG.beta_start, "beta_end": CONFIG.beta_end}
    return kind(beta_schedule="scaled_linear", **betas, **settings)


def diffusers_timesteps(spacing, steps):
    reference = diffusers_schedule(
        DDIMScheduler, timestep_spacing=spacing, steps_offset=int(spacing == "leading")
    )
    reference.set_timesteps(steps)
    return reference.timesteps.tolist()


def ts(levels):
    return [level.t for level in levels]


def test_betas_are_even_in_their_roots_and_float64(schedule):
    betas = make_beta_schedule("linear", 1000, CONFIG.beta_start, CONFIG.beta_end)
    expected = torch.cumprod(1 - torch.from_numpy(betas), dim=0)
    torch.testing.assert_close(schedule.alpha_bar, expected, rtol=EXACT, atol=0)


def test_rates_of_a_level_are_those_of_the_table(schedule):
    for t in (0, 1, 500, 999):
        level = schedule.at(t)
        assert level.alpha_bar == pytest.approx(schedule.alpha_bar[t].item(), rel=EXACT)
        assert level.signal_rate**2 + level.noise_rate**2 == pytest.approx(1, rel=EXACT)
        assert level.noise_rate / level.signal_rate == pytest.approx(level.sigma, rel=EXACT)


def test_clean_has_no_noise():
    assert (CLEAN.signal_rate, CLEAN.noise_rate, CLEAN.alpha_bar) == (1, 0, 1)


@pytest.mark.parametrize("steps", COUNTS[:-1])
def test_leading_is_diffusers_ddim(schedule, steps):
    assert ts(schedule.leading(steps)) == diffusers_timesteps("leading", steps)


def test_leading_1000_is_999_to_0(schedule):
    # diffusers says 1000 … 1 here, and then runs off its table.
    assert ts(schedule.leading(1000)) == list(range(999, -1, -1))


def test_leading_50_is_981_to_1(schedule):
    assert ts(schedule.leading(50)) == list(range(981, 0, -20))


@pytest.mark.parametrize("steps", [*COUNTS[1:], 31, 47])
def test_linspace_is_diffusers(schedule, steps):
    assert ts(schedule.linspace(steps)) == diffusers_timesteps("linspace", steps)


@pytest.mark.parametrize("steps", [*COUNTS, 48, 112])
def test_trailing_is_diffusers(schedule, steps):
    assert ts(schedule.trailing(steps)) == diffusers_timesteps("trailing", steps)


def test_61_trailing_steps_are_61_where_diffusers_makes_62(schedule):
    expected = diffusers_timesteps("trailing", 61)
    assert len(expected) == 62
    assert ts(schedule.trailing(61)) == expected[:61]


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "uniform", "karras"])
def test_one_step_is_the_noisiest(schedule, spacing):
    (level,) = getattr(schedule, spacing)(1)
    assert level.t == pytest.approx(999, abs=EXACT)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_27_steps_are_27_steps(schedule, spacing):
    """And any other count is that count, from the top down, inside the table."""
    for steps in range(1, 1001):
        levels = getattr(schedule, spacing)(steps)
        assert len(levels) == steps
        assert all(above.t > below.t for above, below in pairwise(levels))
        assert levels[0].t <= 999 + FRACTION and levels[-1].t >= 0


@pytest.mark.parametrize("steps", COUNTS)
def test_uniform_is_k_diffusions_get_sigmas(schedule, k_schedule, steps):
    expected = k_schedule.get_sigmas(steps)[:-1]
    actual = torch.tensor([level.sigma for level in schedule.uniform(steps)]).double()
    torch.testing.assert_close(actual, expected, rtol=SIGMA, atol=0)


@pytest.mark.parametrize("steps", COUNTS)
def test_karras_is_k_diffusions_get_sigmas_karras(schedule, steps):
    low, high = schedule.sigmas[0].item(), schedule.sigmas[-1].item()
    expected = k_diffusion.sampling.get_sigmas_karras(steps, low, high)[:-1].double()
    actual = torch.tensor([level.sigma for level in schedule.karras(steps)]).double()
    torch.testing.assert_close(actual, expected, rtol=SIGMA, atol=0)


@pytest.mark.parametrize("spacing", ["uniform", "karras"])
def test_t_of_a_sigma_keeps_its_fraction(schedule, k_schedule, spacing):
    levels = getattr(schedule, spacing)(37)
    sigmas = torch.tensor([level.sigma for level in levels], dtype=torch.float64)
    expected = k_schedule.sigma_to_t(sigmas)
    actual = torch.tensor(ts(levels), dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=FRACTION)
    assert (actual.frac() > 0.1).sum() > 10


def test_sigma_between_two_steps_is_even_in_its_logarithm(schedule):
    halfway = schedule.sigma(700.5)
    expected = (schedule.sigmas[700] * schedule.sigmas[701]).sqrt()
    torch.testing.assert_close(halfway, expected, rtol=EXACT, atol=0)


def test_add_noise_and_velocity_are_diffusers(schedule):
    reference = diffusers_schedule(DDPMScheduler)
    x0, noise = torch.randn(2, 2, 4, 3, 5)
    t = torch.tensor([981, 7])
    noisy = reference.add_noise(x0, noise, t)
    velocity = reference.get_velocity(x0, noise, t)
    torch.testing.assert_close(schedule.add_noise(x0, noise, t), noisy, rtol=0, atol=FLOAT32)
    torch.testing.assert_close(schedule.velocity(x0, noise, t), velocity, rtol=0, atol=FLOAT32)


def test_add_noise_takes_one_t_for_all(schedule):
    x0, noise = torch.randn(2, 2, 4, 3, 5)
    each = schedule.add_noise(x0, noise, torch.tensor([20, 20]))
    torch.testing.assert_close(schedule.add_noise(x0, noise, 20), each, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_add_noise_keeps_the_precision_of_x(schedule, dtype):
    x0, noise = torch.randn(2, 2, 4, 3, 5, dtype=dtype)
    assert schedule.add_noise(x0, noise, torch.tensor([20, 30])).dtype == dtype


def test_float64_is_exact(schedule):
    x0, noise = torch.randn(2, 1, 4, 3, 5, dtype=torch.float64)
    alpha_bar = schedule.alpha_bar[400]
    expected = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(schedule.add_noise(x0, noise, 400), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_outside_1_to_1000_are_refused(schedule, spacing, steps):
    with pytest.raises(ValueError, match=f"steps must be 1 to 1000, got {steps}"):
        getattr(schedule, spacing)(steps)


@pytest.mark.parametrize("t", [-1, 1000, torch.tensor([5, 1000])])
def test_t_outside_the_table_is_refused(schedule, t):
    with pytest.raises(ValueError, match="t must lie between 0 and 999"):
        schedule.sigma(t)


def test_a_shorter_table_walks_its_own_length():
    short = Schedule(replace(CONFIG, timesteps=100))
    assert ts(short.leading(10)) == list(range(91, 0, -10))
    assert ts(short.trailing(4)) == [99, 74, 49, 24]
    assert short.at(99) == Level(99, short.sigmas[99].item())


def test_karras_never_leaves_the_table():
    """Rounding would put its ends a hair outside, and a root under zero into euler_ancestral."""
    for first, last in ((0.00085, 0.012), (0.0008, 0.011), (0.0007, 0.013)):
        schedule = Schedule(ScheduleConfig(beta_start=first, beta_end=last))
        for steps in (1, 2, 5, 20, 333):
            sigmas = [level.sigma for level in schedule.karras(steps)]
            assert sigmas[-1] >= schedule.at(0).sigma
            assert sigmas[0] <= schedule.at(999).sigma
