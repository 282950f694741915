"""Every sampler, step by step, against diffusers, k-diffusion and CompVis."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from ldm.models.diffusion.plms import PLMSSampler

from minisd.config import ScheduleConfig
from minisd.guidance import guided_denoiser
from minisd.samplers import (
    SAMPLERS,
    SIGMA_SAMPLERS,
    consistency_weights,
    ddim,
    ddpm,
    dpmpp_2m,
    euler,
    euler_ancestral,
    lcm,
    plms,
)
from minisd.sampling import SPACINGS, from_noise, sampler_levels
from minisd.schedule import CLEAN, Level, Prediction, Schedule
from tests.helpers.references import compvis_states, k_diffusion
from tests.helpers.sampler_references import (
    CONTEXT,
    NOISE,
    Network,
    draw,
    generators,
    scheduler_states,
)

# diffusers and CompVis hand tensors to numpy in ways that numpy 2 warns about
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SCHEDULE = Schedule(ScheduleConfig())
COUNTS = [1, 3, 6, 7, 20, 27, 37, 50, 101, 333, 999, 1000]
OBJECTIVES = {"eps": "epsilon", "v": "v_prediction"}

FLOAT64 = 1e-9  # float64 on both sides, after every step of a whole walk
FLOAT32 = 1e-5  # the reference rounds x or its coefficients to float32


def noises(steps, dtype):
    """What `generators()` will give for each step, drawn here by hand."""
    sources = generators()
    return [
        torch.cat([torch.randn(1, 4, 6, 10, generator=g) for g in sources]).to(dtype)
        for _ in range(steps)
    ]


def denoiser(objective="eps", dtype=torch.float64):
    return guided_denoiser(Network(dtype), objective, CONTEXT.to(dtype))


def assert_walks_equal(walk, expected, tolerance):
    """Largest error over the reference's spread, after each step."""
    states = [step.x for step in walk]
    assert len(states) == len(expected)
    for index, (state, wanted) in enumerate(zip(states, expected, strict=True)):
        error = (state - wanted).abs().max() / wanted.std()
        assert error < tolerance, f"step {index}: off by {error:.1e}"


# --- DDPM, DDIM, PLMS against diffusers and CompVis ---


def time_scheduler(kind, objective="eps", **settings):
    """A diffusers scheduler as SD configures it, on our float64 alpha_bar."""
    scheduler = kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=OBJECTIVES[objective],
        **settings,
    )
    scheduler.alphas_cumprod = SCHEDULE.alpha_bar
    scheduler.final_alpha_cumprod = SCHEDULE.alpha_bar[0]
    scheduler.one = torch.ones((), dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm_is_diffusers(objective, steps):
    """The same timesteps, and the same x after every step, with the same noise."""
    noise, source = NOISE.float(), generators()  # diffusers would draw other noise in float64
    scheduler = LCMScheduler(prediction_type=OBJECTIVES[objective])
    scheduler.alphas_cumprod = SCHEDULE.alpha_bar.float()

    def options(index):
        return {"generator": source}

    expected = scheduler_states(scheduler, steps, Network(noise.dtype), noise, options)
    levels = sampler_levels("lcm", SCHEDULE, steps)
    assert [level.t for level in levels[:-1]] == scheduler.timesteps.tolist()
    walk = lcm(denoiser(objective, noise.dtype), noise, levels, generators())
    assert_walks_equal(walk, expected, FLOAT32)


@pytest.mark.parametrize("t", [0, 0.1, 1, 19, 999])
def test_the_weights_of_a_consistency_function_are_those_of_diffusers(t):
    wanted = LCMScheduler().get_scalings_for_boundary_condition_discrete(t)
    assert consistency_weights(t) == pytest.approx(wanted, rel=FLOAT64)


def test_lcm_refuses_what_it_cannot_space():
    with pytest.raises(ValueError, match="lcm takes at most 50 steps, got 51"):
        sampler_levels("lcm", SCHEDULE, 51)
    assert len(sampler_levels("lcm", SCHEDULE, 51, "trailing")) == 52
    with pytest.raises(ValueError, match="lcm needs a model with 50 or more timesteps"):
        sampler_levels("lcm", Schedule(ScheduleConfig(timesteps=49)), 4)


def levels_of_timesteps(scheduler, last):
    return [*SCHEDULE.levels(scheduler.timesteps.unique().flip(0).tolist()), last]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_ddim_is_diffusers(objective, steps):
    scheduler = time_scheduler(DDIMScheduler, objective, clip_sample=False)
    expected = scheduler_states(scheduler, steps, Network(), NOISE)
    levels = levels_of_timesteps(scheduler, SCHEDULE.at(0))
    assert_walks_equal(ddim(denoiser(objective), NOISE, levels), expected, FLOAT64)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ddim_with_fresh_noise_is_diffusers(objective, eta):
    fresh = noises(20, torch.float64)
    scheduler = time_scheduler(DDIMScheduler, objective, clip_sample=False)

    def options(index):
        return {"eta": eta, "variance_noise": fresh[index]}

    expected = scheduler_states(scheduler, 20, Network(), NOISE, options)
    levels = levels_of_timesteps(scheduler, SCHEDULE.at(0))
    walk = ddim(denoiser(objective), NOISE, levels, generators(), eta)
    assert_walks_equal(walk, expected, FLOAT64)


@pytest.mark.parametrize(
    "objective, steps",
    [("eps", 1), ("eps", 3), ("eps", 20), ("v", 1), ("v", 3), ("v", 20), ("eps", 1000)],
)
def test_ddpm_is_diffusers(objective, steps):
    noise = NOISE.float()  # diffusers would draw other noise in float64
    scheduler = time_scheduler(DDPMScheduler, objective, clip_sample=False)
    if steps == 1000:
        scheduler.register_to_config(steps_offset=0)  # with 1 it would start beyond the table
    source = generators()

    def options(index):
        return {"generator": source}

    expected = scheduler_states(scheduler, steps, Network(noise.dtype), noise, options)
    levels = levels_of_timesteps(scheduler, CLEAN)
    walk = ddpm(denoiser(objective, noise.dtype), noise, levels, generators())
    assert_walks_equal(walk, expected, FLOAT32)


def test_ddpm_is_ddim_with_eta_1():
    levels = [*SCHEDULE.leading(20), CLEAN]
    expected = [step.x for step in ddim(denoiser(), NOISE, levels, generators(), eta=1)]
    assert_walks_equal(ddpm(denoiser(), NOISE, levels, generators()), expected, FLOAT64)


def test_ddim_is_euler_on_another_scale():
    levels = [*SCHEDULE.leading(20), CLEAN]
    expected = [step.x for step in ddim(denoiser(), NOISE, levels)]
    assert_walks_equal(euler(denoiser(), NOISE, levels), expected, FLOAT64)


def test_last_alpha_is_alpha_bar_0():
    for name in ("ddim", "plms"):
        assert sampler_levels(name, SCHEDULE, 50)[-1] == Level(0, SCHEDULE.sigma(0).item())


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_plms_is_diffusers_pndm(steps):
    """diffusers needs steps + 1 calls (one for a single step): its second call repeats the first
    step with a better eps, where we take both looks inside that step."""
    scheduler = time_scheduler(PNDMScheduler, skip_prk_steps=True)
    calls = scheduler_states(scheduler, steps, Network(), NOISE)
    assert len(calls) == (steps + 1 if steps > 1 else 1)
    expected = calls[1:] if steps > 1 else calls
    levels = levels_of_timesteps(scheduler, SCHEDULE.at(0))
    assert_walks_equal(plms(denoiser(), NOISE, levels), expected, FLOAT64)


def test_plms_of_a_v_network_mixes_eps_not_v():
    """As the paper; diffusers would mix the v of different levels, so it is given eps."""
    network = Network()

    def as_eps(x, t, context):
        level = SCHEDULE.at(t[0].item())
        return level.noise_rate * x + level.signal_rate * network(x, t, context)

    scheduler = time_scheduler(PNDMScheduler, skip_prk_steps=True)
    expected = scheduler_states(scheduler, 20, as_eps, NOISE)[1:]
    levels = levels_of_timesteps(scheduler, SCHEDULE.at(0))
    assert_walks_equal(plms(denoiser("v"), NOISE, levels), expected, FLOAT64)


@pytest.mark.parametrize("steps", [2, 4, 20])
def test_plms_is_compvis(steps):
    noise = NOISE.float()
    expected = compvis_states(
        PLMSSampler,
        SCHEDULE.alpha_bar,
        Network(noise.dtype),
        noise,
        steps,
        conditioning=CONTEXT.float(),
    )
    levels = sampler_levels("plms", SCHEDULE, steps)
    assert_walks_equal(plms(denoiser(dtype=noise.dtype), noise, levels), expected, FLOAT32)


# --- the sigma samplers against diffusers ---


def sigma_scheduler(kind, objective, **settings):
    return kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=OBJECTIVES[objective],
        **settings,
    )


def levels_of_scheduler(scheduler):
    """Its own t and sigma, even where it rounded one of them, or took both by other rules."""
    sigmas = scheduler.sigmas.unique_consecutive().tolist()  # Heun says all but two twice
    ts = scheduler.timesteps.unique_consecutive().tolist()
    return [Level(t, sigma) for t, sigma in zip([*ts, -1], sigmas, strict=True)]


def as_vp(states, levels):
    return [x * to.signal_rate for x, to in zip(states, levels[1:], strict=True)]


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize(
    "name, kind, dtype, tolerance",
    [
        ("euler", EulerDiscreteScheduler, torch.float32, FLOAT32),
        ("lms", LMSDiscreteScheduler, torch.float64, FLOAT32),
        ("heun", HeunDiscreteScheduler, torch.float64, FLOAT32),
    ],
)
def test_sigma_samplers_are_diffusers(name, kind, dtype, tolerance, steps, objective, karras):
    noise = NOISE.to(dtype)
    scheduler = sigma_scheduler(kind, objective, use_karras_sigmas=karras)
    states = scheduler_states(scheduler, steps, Network(dtype), noise)
    if name == "heun":
        states = [*states[1:-1:2], states[-1]]  # try and correct are two calls; the last is one
    levels = levels_of_scheduler(scheduler)
    walk = from_noise(name, denoiser(objective, dtype), noise, levels)
    assert_walks_equal(walk, as_vp(states, levels), tolerance)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [3, 20])
def test_euler_ancestral_is_diffusers(steps, objective):
    noise = NOISE.float()
    source = generators()

    def options(index):
        return {"generator": source}

    scheduler = sigma_scheduler(EulerAncestralDiscreteScheduler, objective)
    states = scheduler_states(scheduler, steps, Network(noise.dtype), noise, options)
    levels = levels_of_scheduler(scheduler)
    denoise = denoiser(objective, noise.dtype)
    walk = from_noise("euler_ancestral", denoise, noise, levels, generators())
    assert_walks_equal(walk, as_vp(states, levels), FLOAT32)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 2, 14, 15, 20])
def test_dpmpp_2m_is_diffusers(steps, objective, final, karras):
    noise = NOISE.float()
    scheduler = sigma_scheduler(
        DPMSolverMultistepScheduler,
        objective,
        final_sigmas_type=final,
        use_karras_sigmas=karras,
    )
    states = scheduler_states(scheduler, steps, Network(noise.dtype), noise)
    ts, sigmas = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
    levels = [Level(t, sigma) for t, sigma in zip([*ts, -1], sigmas, strict=True)]
    # diffusers keeps this one variance-preserving, and starts from unit noise
    walk = dpmpp_2m(denoiser(objective, noise.dtype), noise, levels)
    assert_walks_equal(walk, states, FLOAT32)


# --- the sigma samplers against k-diffusion ---


def k_denoiser(objective, network):
    external = k_diffusion.external
    kind = (
        external.DiscreteEpsDDPMDenoiser if objective == "eps" else external.DiscreteVDDPMDenoiser
    )
    return kind(lambda x, t: network(x, t, CONTEXT), SCHEDULE.alpha_bar, quantize=False)


def k_levels(model, sigmas):
    ts = model.sigma_to_t(sigmas[:-1]).tolist()
    return [*map(Level, ts, sigmas[:-1].tolist()), CLEAN]


def k_states(sampler, model, sigmas, noise, **settings):
    """The state after every step, brought to our scale."""
    seen = []
    x = sampler(
        model,
        noise * sigmas[0],
        sigmas,
        callback=lambda info: seen.append(info["x"]),
        disable=True,
        **settings,
    )
    return as_vp([*seen[1:], x], k_levels(model, sigmas))


@pytest.mark.parametrize("spacing", ["uniform", "karras"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize("name", SIGMA_SAMPLERS)
def test_sigma_samplers_are_k_diffusions(name, steps, objective, spacing):
    model = k_denoiser(objective, Network())
    if spacing == "uniform":
        sigmas = model.get_sigmas(steps)
    else:
        low, high = model.sigma_min.item(), model.sigma_max.item()
        sigmas = k_diffusion.sampling.get_sigmas_karras(steps, low, high).double()
    settings = {}
    if name == "euler_ancestral":
        fresh = iter(noises(steps, torch.float64))
        settings["noise_sampler"] = lambda sigma, sigma_next: next(fresh)
    sampler = getattr(k_diffusion.sampling, f"sample_{name}")
    expected = k_states(sampler, model, sigmas, NOISE, **settings)
    levels = k_levels(model, sigmas)
    walk = from_noise(name, denoiser(objective), NOISE, levels, generators())
    assert_walks_equal(walk, expected, FLOAT64)


# --- what holds for every sampler ---


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_walks_its_references_spacing_unless_told(name):
    own = SCHEDULE.uniform(20) if name in SIGMA_SAMPLERS else SCHEDULE.leading(20)
    own = SCHEDULE.lcm(20) if name == "lcm" else own
    end = SCHEDULE.at(0) if name in ("ddim", "plms") else CLEAN
    assert sampler_levels(name, SCHEDULE, 20) == [*own, end]
    assert sampler_levels(name, SCHEDULE, 20, "karras") == [*SCHEDULE.karras(20), end]


def plain_guess(x, level):
    """A denoiser that costs nothing, for tests that count rather than compare."""
    x0 = torch.tanh(x)
    return Prediction(x0, (x - level.signal_rate * x0) / level.noise_rate, None, None)


@pytest.mark.parametrize("name", SAMPLERS)
def test_27_steps_are_27_steps(name):
    """And any other count is that count: from high to low, each where the schedule says, finite."""
    for count in COUNTS:
        if name == "lcm" and count > 50:
            continue  # refused: test_lcm_refuses_what_it_cannot_space
        levels = sampler_levels(name, SCHEDULE, count)
        steps = list(from_noise(name, plain_guess, NOISE.float(), levels, generators()))
        assert [step.index for step in steps] == list(range(count))
        assert [Level(step.t, step.sigma) for step in steps] == levels[:-1]
        assert all(above.sigma > below.sigma for above, below in pairwise(steps))
        assert torch.stack([step.x for step in steps]).isfinite().all()


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_sampler_walks_any_spacing_to_either_end(name, spacing, final):
    for count in (1, 2, 20):
        levels = sampler_levels(name, SCHEDULE, count, spacing, final)
        assert levels[-1] == (CLEAN if final == "zero" else SCHEDULE.at(0))
        steps = list(from_noise(name, plain_guess, NOISE.float(), levels, generators()))
        assert len(steps) == count
        assert steps[-1].x.isfinite().all()


@pytest.mark.parametrize(
    "name, evaluations",
    [
        ("ddpm", 10),
        ("ddim", 10),
        ("plms", 11),
        ("lcm", 10),
        ("lms", 10),
        ("euler", 10),
        ("euler_ancestral", 10),
        ("heun", 19),
        ("dpmpp_2m", 10),
    ],
)
def test_evaluations_are_as_the_docstring_says(name, evaluations):
    network = Network()
    denoise = guided_denoiser(network, "eps", CONTEXT)
    levels = sampler_levels(name, SCHEDULE, 10)
    list(from_noise(name, denoise, NOISE, levels, generators()))
    assert len(network.calls) == evaluations
    assert {t[0].item() for t in network.calls} == {level.t for level in levels[:-1]}


@pytest.mark.parametrize("name", ["ddpm", "ddim", "lcm", "euler", "euler_ancestral", "heun"])
def test_a_walk_can_be_taken_up_where_it_stopped(name):
    """x is variance-preserving both ways, so these, which remember nothing, cannot tell."""
    levels = sampler_levels(name, SCHEDULE, 10)
    expected = [step.x for step in SAMPLERS[name](denoiser(), NOISE, levels, generators())]
    source = generators()
    walk = SAMPLERS[name](denoiser(), NOISE, levels[:5], source)
    *_, step = walk
    rest = SAMPLERS[name](denoiser(), step.x, levels[4:], source)
    assert_walks_equal(rest, expected[4:], FLOAT64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_member_of_a_batch_is_its_lone_self(name):
    levels = sampler_levels(name, SCHEDULE, 10)
    together = list(from_noise(name, denoiser(), NOISE, levels, generators()))
    for member, source in enumerate(generators()):
        denoise = guided_denoiser(Network(), "eps", CONTEXT[member : member + 1])
        lone = from_noise(name, denoise, NOISE[member : member + 1], levels, [source])
        assert_walks_equal(lone, [step.x[member : member + 1] for step in together], FLOAT64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_stays_float32(name):
    levels = sampler_levels(name, SCHEDULE, 3)
    for step in from_noise(
        name, denoiser(dtype=torch.float32), NOISE.float(), levels, generators()
    ):
        assert step.x.dtype == step.prediction.x0.dtype == torch.float32


# Two bumps: 30 % at -1, 70 % at 1, both of spread 0.2.
WEIGHTS, MEANS, SPREAD = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 1.0]), 0.2
CHANCE = 0.02  # four times what 10,000 draws leave to chance


def two_bumps(x, level):
    """The best possible guess of x0, in closed form."""
    total = level.noise_rate**2 + (level.signal_rate * SPREAD) ** 2  # variance of a noisy bump
    away = x[..., None] - level.signal_rate * MEANS
    share = torch.softmax(WEIGHTS.log() - away**2 / (2 * total), dim=-1)
    each = MEANS + level.signal_rate * SPREAD**2 / total * away
    x0 = (share * each).sum(dim=-1)
    return Prediction(x0, (x - level.signal_rate * x0) / level.noise_rate, None, None)


def end_of_path(x, level):
    """The perfect consistency function: the x0 with as much probability below it as x has."""

    def share_below(x, level):
        spread = (level.noise_rate**2 + (level.signal_rate * SPREAD) ** 2) ** 0.5
        away = (x[..., None] - level.signal_rate * MEANS) / spread
        return (torch.special.ndtr(away.double()) * WEIGHTS).sum(dim=-1)

    table = torch.linspace(-3, 3, 100_001)
    x0 = np.interp(share_below(x, level), share_below(table, CLEAN), table)
    x0 = torch.from_numpy(x0).to(x)
    return Prediction(x0, (x - level.signal_rate * x0) / level.noise_rate, None, None)


@pytest.mark.parametrize("name", [*SAMPLERS, "lcm in 1 step", "lcm in 4 steps"])
def test_a_perfect_network_gives_back_what_it_was_trained_on(name):
    noise = draw(1, 1, 100, 100, dtype=torch.float32)
    denoise, steps = (end_of_path, 50) if name.startswith("lcm") else (two_bumps, 500)
    name, _, few = name.partition(" in ")
    levels = sampler_levels(name, SCHEDULE, int(few[0]) if few else steps)
    *_, step = from_noise(name, denoise, noise, levels, generators(1))
    upper, lower = step.x[step.x > 0], step.x[step.x < 0]
    assert len(upper) / step.x.numel() == pytest.approx(0.7, abs=CHANCE)
    for bump, mean in ((upper, 1), (lower, -1)):
        assert bump.mean().item() == pytest.approx(mean, abs=CHANCE)
        assert bump.std().item() == pytest.approx(SPREAD, abs=CHANCE)


# --- errors ---


def test_unknown_sampler_lists_the_known():
    known = "ddpm, ddim, plms, lcm, lms, euler, euler_ancestral, heun, dpmpp_2m"
    with pytest.raises(ValueError, match=f'There is no sampler "dpm". Choose one of {known}'):
        sampler_levels("dpm", SCHEDULE, 20)
    with pytest.raises(ValueError, match=f'There is no sampler "dpm". Choose one of {known}'):
        from_noise("dpm", denoiser(), NOISE, [])


def test_unknown_spacing_lists_the_known():
    with pytest.raises(ValueError, match="leading, linspace, trailing, uniform, karras"):
        sampler_levels("ddim", SCHEDULE, 20, spacing="even")


def test_unknown_final_lists_the_known():
    with pytest.raises(ValueError, match="zero, sigma_min"):
        sampler_levels("dpmpp_2m", SCHEDULE, 20, final="one")


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_outside_1_to_1000_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps must be 1 to 1000, got {steps}"):
        sampler_levels("ddim", SCHEDULE, steps)


@pytest.mark.parametrize("sampler", [ddpm, euler_ancestral])
@pytest.mark.parametrize("sources, count", [(None, 0), (generators(1), 1)])
def test_drawing_noise_needs_a_generator_for_each_sample(sampler, sources, count):
    levels = sampler_levels("ddpm", SCHEDULE, 3)
    with pytest.raises(ValueError, match=f"2 samples need 2 random generators, got {count}"):
        next(sampler(denoiser(), NOISE, levels, sources))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match="eta must be 0"):
        next(ddim(denoiser(), NOISE, sampler_levels("ddim", SCHEDULE, 3), eta=eta))
