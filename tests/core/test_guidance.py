"""The denoiser: eps and v against diffusers, classifier-free guidance against CompVis."""

import pytest
import torch
from diffusers import DDIMScheduler
from ldm.models.diffusion.ddim import DDIMSampler

from minisd.adapters.classifier import classifier_guided
from minisd.config import ScheduleConfig
from minisd.guidance import guided_denoiser, x0_from_eps
from minisd.samplers import SAMPLERS, ddim
from minisd.sampling import from_noise, sampler_levels
from minisd.schedule import Prediction, Schedule
from tests.helpers.references import compvis_states

SCHEDULE = Schedule(ScheduleConfig())
LEVELS = [SCHEDULE.at(t) for t in (981, 400, 1)]

EXACT = 1e-12  # float64 on both sides
FLOAT32 = 1e-5  # CompVis' sampler makes its coefficients in float32


class Network:
    """A network small enough to reason about, that feels x, t and the context and counts calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, context):
        self.calls.append((x, t, context))
        shift = context.mean(dim=(1, 2)) + torch.sin(t.to(x) / 300)
        return torch.tanh(x.roll(1, dims=-1) + shift[:, None, None, None])


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def x():
    return torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def contexts():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 2, 7, 6, dtype=torch.float64, generator=generator)


def close(actual, expected, tolerance=EXACT):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("objective, name", [("eps", "epsilon"), ("v", "v_prediction")])
def test_x0_is_diffusers(network, x, contexts, level, objective, name):
    _, cond = contexts
    reference = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=name,
        clip_sample=False,
    )
    reference.alphas_cumprod = SCHEDULE.alpha_bar
    reference.set_timesteps(50)
    output = network(x, torch.full((2,), level.t, dtype=torch.float64), cond)
    expected = reference.step(output, level.t, x).pred_original_sample
    close(guided_denoiser(network, objective, cond)(x, level).x0, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scale", [0, 1, 7.5])
def test_x0_and_eps_add_up_to_x(network, x, contexts, level, scale):
    uncond, cond = contexts
    for objective in ("eps", "v"):
        prediction = guided_denoiser(network, objective, cond, uncond, scale)(x, level)
        close(level.signal_rate * prediction.x0 + level.noise_rate * prediction.eps, x)


@pytest.mark.parametrize("scale", [0, 0.5, 1, 7.5])
def test_v_network_and_eps_network_that_agree_give_one_prediction(network, x, contexts, scale):
    uncond, cond = contexts
    level = LEVELS[1]

    def as_v(x, t, context):
        eps = network(x, t, context)
        x0 = (x - level.noise_rate * eps) / level.signal_rate
        return level.signal_rate * eps - level.noise_rate * x0

    says_eps = guided_denoiser(network, "eps", cond, uncond, scale)(x, level)
    says_v = guided_denoiser(as_v, "v", cond, uncond, scale)(x, level)
    for actual, expected in zip(says_v, says_eps, strict=True):
        assert (actual is None) == (expected is None)
        if expected is not None:
            close(actual, expected)


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # CompVis' numpy is older than ours
@pytest.mark.parametrize("scale", [0, 0.5, 1, 7.5])
def test_every_scale_is_compvis(network, x, contexts, scale):
    """Below 1 as well, where diffusers would leave the guidance out."""
    (uncond, cond), noise = contexts.float(), x.float()
    expected = compvis_states(
        DDIMSampler,
        SCHEDULE.alpha_bar,
        network,
        noise,
        steps=10,
        conditioning=cond,
        unconditional_conditioning=uncond,
        unconditional_guidance_scale=float(scale),
    )
    denoise = guided_denoiser(network, "eps", cond, uncond, scale)
    levels = [*SCHEDULE.leading(10), SCHEDULE.at(0)]
    for step, state in zip(ddim(denoise, noise, levels), expected, strict=True):
        close(step.x / state.std(), state / state.std(), FLOAT32)


@pytest.mark.parametrize(
    "scale, batch, has_uncond, has_cond",
    [(0, 2, True, False), (0.5, 4, True, True), (1, 2, False, True), (7.5, 4, True, True)],
)
def test_only_the_halves_that_count_are_computed(
    network, x, contexts, scale, batch, has_uncond, has_cond
):
    uncond, cond = contexts
    prediction = guided_denoiser(network, "eps", cond, uncond, scale)(x, LEVELS[0])
    assert len(network.calls) == 1
    for argument in network.calls[0]:
        assert len(argument) == batch
    assert (prediction.eps_uncond is not None) == has_uncond
    assert (prediction.eps_cond is not None) == has_cond


@pytest.mark.parametrize("scale", [0, 0.5, 1, 7.5])
def test_guided_is_uncond_plus_scale_times_the_difference(network, x, contexts, scale):
    uncond, cond = contexts
    level = LEVELS[1]
    alone_uncond = guided_denoiser(network, "eps", uncond)(x, level).eps
    alone_cond = guided_denoiser(network, "eps", cond)(x, level).eps
    prediction = guided_denoiser(network, "eps", cond, uncond, scale)(x, level)
    close(prediction.eps, alone_uncond + scale * (alone_cond - alone_uncond))
    if prediction.eps_uncond is not None:
        close(prediction.eps_uncond, alone_uncond)
    if prediction.eps_cond is not None:
        close(prediction.eps_cond, alone_cond)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_network_is_told_t_with_its_fraction(network, x, contexts, dtype):
    uncond, cond = contexts.to(dtype)
    level = SCHEDULE.at(901.375)  # float16 would make it 901.5
    guided_denoiser(network, "eps", cond, uncond, 7.5)(x.to(dtype), level)
    _, t, _ = network.calls[0]
    assert t.tolist() == [901.375] * 4


def test_unequal_contexts_name_the_mend(network, contexts):
    uncond, cond = contexts
    with pytest.raises(ValueError, match="same number of chunks"):
        guided_denoiser(network, "eps", cond, uncond[:, :5], 7.5)


def test_guidance_without_uncond_is_refused(network, contexts):
    with pytest.raises(ValueError, match="needs an uncond_context"):
        guided_denoiser(network, "eps", contexts[1], None, 7.5)


def test_unknown_objective_is_refused(network, contexts):
    with pytest.raises(ValueError, match='"eps" or "v", got "x0"'):
        guided_denoiser(network, "x0", contexts[1])


# ---- classifier guidance ---------------------------------------------------------------------


def test_classifier_guidance_leads_as_the_exact_score_does(x):
    """Of two Gaussians, p(class | x) is known; guided eps is the eps of the class alone."""
    means = torch.tensor([-1.5, 1.5], dtype=torch.float64)
    level = SCHEDULE.at(400)
    signal, noise = level.signal_rate, level.noise_rate
    spread = 0.25 * signal**2 + noise**2  # the variance of noisy x in either group, 0.5 wide

    def log_likelihoods(x):
        return -((x[:, None] - signal * means.view(1, 2, 1, 1, 1)) ** 2) / (2 * spread)

    def eps_of(score):
        return -noise * score

    def denoise(x, level):
        leaf = x.detach().requires_grad_(True)
        (score,) = torch.autograd.grad(log_likelihoods(leaf).logsumexp(dim=1).sum(), leaf)
        eps = eps_of(score)
        return Prediction(x0_from_eps(x, eps, level), eps, None, None)

    def log_prob(x, t):
        assert t.tolist() == [400, 400]
        return log_likelihoods(x).log_softmax(dim=1)[:, 1].sum(dim=(1, 2, 3))

    guided = classifier_guided(denoise, log_prob, scale=1.0)(x, level)
    close(guided.eps, eps_of((signal * means[1] - x) / spread))
    close(signal * guided.x0 + noise * guided.eps, x)
    twice = classifier_guided(denoise, log_prob, scale=2.0)(x, level)
    plain = denoise(x, level)
    close(twice.eps - plain.eps, 2 * (guided.eps - plain.eps))
    assert classifier_guided(denoise, log_prob, scale=0) is denoise


# ---- a last level without signal -------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 8, 20])  # at others diffusers steps beside its own next t
def test_zero_terminal_snr_is_that_of_diffusers(network, x, contexts, steps):
    schedule = Schedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))
    reference = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=False,
        clip_sample=False,
    )
    reference.set_timesteps(steps)
    assert schedule.alpha_bar[-1] == 0
    _, cond = contexts
    expected = x
    for t in reference.timesteps:
        v = network(expected, t.expand(2), cond)
        expected = reference.step(v, t, expected).prev_sample
    levels = sampler_levels("ddim", schedule, steps)
    *_, last = ddim(guided_denoiser(network, "v", cond), x, levels)
    close(last.x, expected, FLOAT32 * expected.std().item())
    for name in SAMPLERS:
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        levels = sampler_levels(name, schedule, 4)
        denoise = guided_denoiser(network, "v", cond)
        *_, last = from_noise(name, denoise, x, levels, generators)
        assert last.x.isfinite().all(), name
