"""The toy datasets: their exact answers, computed in another way, and the trained networks."""

from itertools import islice

import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from minisd.adapters.classifier import classifier_guided
from minisd.config import ScheduleConfig
from minisd.guidance import x0_from_v
from minisd.mini.emoji import Emoji
from minisd.pipeline import make_generators
from minisd.samplers import SAMPLERS
from minisd.sampling import from_noise, sampler_levels
from minisd.schedule import CLEAN, Schedule
from minisd.teaching import toy
from tests.helpers.point_training import train_predictor

SCHEDULE = Schedule(ScheduleConfig())
WORLDS = {"peaks": toy.two_peaks(), "groups": toy.three_groups(), "ink": toy.ink()}
WORLDS |= {"six": toy.six_groups()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noised(world, level) -> MixtureSameFamily:
    """The same dataset with noise, by torch.distributions in float64: points b d."""
    centres = level.signal_rate * world.centres.double().flatten(1)
    spread = ((level.signal_rate * world.spread) ** 2 + level.noise_rate**2) ** 0.5
    bumps = Independent(Normal(centres, torch.full_like(centres, spread)), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(centres))), bumps)


def points(world, count=50):
    shape = (count, *world.centres.shape[1:])
    return 1.5 * torch.randn(shape, generator=generator(5), dtype=torch.float64)


@pytest.mark.parametrize("level", [CLEAN, *SCHEDULE.levels([0, 200, 600, 999])], ids=str)
@pytest.mark.parametrize("name", ["peaks", "groups"])
def test_density_and_score_are_those_of_the_noised_mixture(name, level):
    world, leaf = WORLDS[name], points(WORLDS[name]).requires_grad_(True)
    expected = noised(world, level).log_prob(leaf.flatten(1))
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    x = leaf.detach()
    torch.testing.assert_close(world.log_density(x, level), expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(world.score(x, level), slope, rtol=1e-4, atol=1e-4)


def test_the_score_is_the_slope_of_the_log_density():
    """The slope is computed from differences of small steps."""
    world, level, h = toy.faces(Emoji.load(), count=50), SCHEDULE.at(150), 1e-5
    x = points(world, 20)
    for axis in (0, 1):
        aside = torch.zeros_like(x)
        aside[:, axis] = h
        rise = world.log_density(x + aside, level) - world.log_density(x - aside, level)
        slope = rise / (2 * h)
        torch.testing.assert_close(
            world.score(x, level)[:, axis, 0, 0], slope, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("t", [20, 300, 800])
def test_the_best_guess_is_the_mean_of_all_pictures_it_might_be(t):
    """The mean is a sum over 20,001 possible x0, weighted by Bayes' rule."""
    world, level = WORLDS["peaks"], SCHEDULE.at(t)
    x0 = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    prior = noised(world, CLEAN).log_prob(x0[:, None])
    likelihood = Normal(level.signal_rate * x0, level.noise_rate).log_prob(x[:, None])
    weights = (prior + likelihood).softmax(dim=1)
    expected = weights @ x0
    found = world.x0(x.reshape(-1, 1, 1, 1), level).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    dogs = weights[:, x0 > 0].sum(dim=1)  # the peaks are five standard deviations from the middle
    found = world.group_log_probs(x.reshape(-1, 1, 1, 1), level).exp()[:, 1]
    torch.testing.assert_close(found, dogs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", WORLDS)
def test_the_guess_and_its_noise_add_up_to_x(name):
    world, level = WORLDS[name], SCHEDULE.at(400)
    x = points(world)
    prediction = world.denoise(x, level)
    whole = level.signal_rate * prediction.x0 + level.noise_rate * prediction.eps
    torch.testing.assert_close(whole, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [0, 100, 500, 999])
def test_one_jump_is_as_good_as_many_small_steps(t):
    """Both agree with the exact density, in a test with a significance of 1 in 1,000."""
    world = WORLDS["peaks"]
    x0, _ = world.draw(20_000, generator(1))
    *_, walked = islice(toy.small_steps(x0, SCHEDULE, generator(2)), t + 1)
    jumped = SCHEDULE.add_noise(x0, torch.randn(x0.shape, generator=generator(3)), t)
    level = SCHEDULE.at(t)
    spread = world.variance(level) ** 0.5

    def share_below(x):
        return sum(stats.norm.cdf(x, level.signal_rate * c, spread) / 2 for c in (-1, 1))

    for x in (walked, jumped):
        assert stats.kstest(x.flatten().numpy(), share_below).pvalue > 1e-3
    assert stats.ks_2samp(walked.flatten(), jumped.flatten()).pvalue > 1e-3
    # and for each point, what was added to its x0 is noise of variance 1
    added = (walked - level.signal_rate * x0) / level.noise_rate
    assert stats.kstest(added.flatten().numpy(), "norm").pvalue > 1e-3


# LCM needs a network that was distilled for it: tests/core/test_samplers.py has one
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
def test_every_sampler_walks_points_back_to_their_groups(name):
    world, count = WORLDS["groups"], 400
    generators = make_generators(0, count)
    noise = torch.cat([torch.randn(1, 2, 1, 1, generator=g) for g in generators])
    dicey = name in (
        "ddpm",
        "euler_ancestral",
    )  # these need more steps to get the standard deviation right
    levels = sampler_levels(name, SCHEDULE, 250 if dicey else 50, final="zero")
    *_, last = from_noise(name, world.denoise, noise, levels, generators)
    assert last.x.shape == (count, 2, 1, 1)
    groups = world.group_log_probs(last.x).argmax(dim=1)
    shares = torch.bincount(groups, minlength=3) / count
    assert (shares - 1 / 3).abs().max() < 0.1
    spread = (last.x - world.centres[groups]).std().item()
    assert spread == pytest.approx(world.spread, rel=0.12)


def test_a_list_of_latents_comes_back_one_by_one():
    """This works for any shape: with spread 0, the perfect denoiser knows only its pictures."""
    latents = torch.randn(5, 4, 8, 8, generator=generator())
    world = toy.Mixture(("known",), torch.zeros(5).long(), latents, spread=0.0)
    noise = torch.randn(6, 4, 8, 8, generator=generator(1))
    levels = sampler_levels("ddim", SCHEDULE, 40, final="zero")
    *_, last = from_noise("ddim", world.denoise, noise, levels)
    apart = torch.cdist(last.x.flatten(1), latents.flatten(1)).min(dim=1).values
    assert apart.max() < 0.05


def test_guided_once_by_the_perfect_classifier_is_a_perfect_prompt():
    """Bayes' rule: grad log p(x | cat) = grad log p(x) + grad log p(cat | x)."""
    world, level = WORLDS["groups"], SCHEDULE.at(350)
    x = points(world)
    guided = classifier_guided(world.denoise, world.log_prob("cat", SCHEDULE), 1)(x, level)
    alone = world.only("cat").denoise(x, level)
    torch.testing.assert_close(guided.eps, alone.eps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(guided.x0, alone.x0, rtol=1e-4, atol=1e-4)


def test_some_points_fit_two_labels_and_none_after_strong_guidance():
    world = WORLDS["groups"]

    def ambiguous(x):
        return (world.group_log_probs(x).exp().amax(dim=1) < 0.9).float().mean().item()

    drawn, _ = world.draw(2000, generator())
    assert 0.05 < ambiguous(drawn) < 0.2
    noise = torch.randn(500, 2, 1, 1, generator=generator(1))
    levels = sampler_levels("ddim", SCHEDULE, 30)
    denoise = classifier_guided(world.denoise, world.log_prob("dog", SCHEDULE), 4)
    *_, last = from_noise("ddim", denoise, noise, levels)
    assert ambiguous(last.x) < 0.02
    assert (world.group_log_probs(last.x).argmax(dim=1) == 1).float().mean() > 0.95


@pytest.mark.parametrize("objective", ["eps", "v"])
def test_the_trained_predictor_comes_near_the_truth(objective):
    """Near the points, its error in eps is small compared with the noise, which has variance 1."""
    world = WORLDS["peaks"]
    network, losses = train_predictor(world, SCHEDULE, steps=900, objective=objective)
    assert sum(losses[-50:]) < 0.95 * sum(losses[:50])
    denoise, ts = toy.point_denoiser(network, objective), (50, 200, 400, 700)
    x0, _ = world.draw(2000, generator(1))
    noise = torch.randn(x0.shape, generator=generator(2))
    for level in SCHEDULE.levels(ts):
        x = SCHEDULE.add_noise(x0, noise, level.t)
        error = (denoise(x, level).eps - world.denoise(x, level).eps).square().mean().sqrt()
        assert error < 0.15, level.t
    learnt = toy.loss_per_t(denoise, world, SCHEDULE, ts)
    floor = toy.loss_per_t(world.denoise, world, SCHEDULE, ts)
    assert all(low - 0.005 < loss < low + 0.03 for loss, low in zip(learnt, floor, strict=True))


def test_training_is_decided_by_its_seed_and_leaves_other_chance_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    runs = [train_predictor(WORLDS["peaks"], SCHEDULE, 20, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    (first, losses), (second, again), (other, _) = runs
    assert losses == again
    assert torch.equal(first.out.weight, second.out.weight)
    assert not torch.equal(first.out.weight, other.out.weight)


def test_v_is_another_name_for_the_same_answer():
    world, level = WORLDS["groups"], SCHEDULE.at(300)
    x = points(world)
    said = world.denoise(x, level)
    v = SCHEDULE.velocity(said.x0, said.eps, 300)
    torch.testing.assert_close(x0_from_v(x, v, level), said.x0, rtol=1e-4, atol=1e-4)


def test_the_faces_have_ears():
    """The cat has an ear at each side and a gap between. The dog's head is round at the top."""
    world = toy.faces(Emoji.load())
    x, groups = world.draw(4000, generator())
    assert 0.5 < x.std() < 1.2
    cat = x[groups == 0].flatten(1) - torch.tensor([-1.0, 0.0])
    high = cat[cat[:, 1] > 0.55]
    assert len(high) > 20
    assert (high[:, 0].abs() > 0.3).float().mean() > 0.9
    assert (x[groups == 1][:, 0] > 0).float().mean() > 0.95
