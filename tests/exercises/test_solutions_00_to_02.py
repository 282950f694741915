"""The solutions of the lessons 00, 0b, 01 and 02 agree with torch and with the package."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import minisd
from minisd.config import MINI
from minisd.exercises.check import describe_verdict, draw_with
from minisd.exercises.exercise import all_exercises, find_exercise
from minisd.exercises.install import install_parts
from minisd.exercises.judge import format_numbers, judge
from minisd.guidance import x0_from_eps
from minisd.schedule import Level, Schedule, with_zero_terminal_snr
from minisd.teaching import toy
from minisd.training.loop import update_ema


def solution_of(name):
    return find_exercise(name).solution


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


# ---- lesson 0b --------------------------------------------------------------------------------


def test_the_primer_has_an_example_and_twelve_puzzles():
    primer = [one for one in all_exercises("0b") if not one.in_lesson]
    assert [one.place for one in primer] == list(range(13))


@pytest.mark.parametrize("exercise", all_exercises("0b"), ids=lambda one: one.name)
def test_a_lambda_with_three_dots_waits_for_code(exercise):
    text = describe_verdict(judge(exercise, lambda *arguments: ...))
    assert "waits for your code" in text and "\n" not in text


def test_the_primers_solutions_agree_with_torch(generator):
    x = torch.randn(2, 6, 4, 5, generator=generator)
    torch.testing.assert_close(solution_of("group_norm")(x), F.group_norm(x, 2))
    torch.testing.assert_close(solution_of("layer_norm")(x), F.layer_norm(x, (5,)))
    torch.testing.assert_close(solution_of("softmax")(x[0, 0]), x[0, 0].softmax(1))
    left = F.conv2d(x[:1, :1], solution_of("edge_kernel")()[None, None], padding=1)
    torch.testing.assert_close(left[..., 1:-1], (x[:1, :1, :, 1:] - x[:1, :1, :, :-1])[..., :-1])
    assert F.conv2d(x, torch.zeros(1, 6, 3, 3), stride=2, padding=1).shape[2] == (
        solution_of("size")(4, 3, 2, 1)
    )


@pytest.mark.parametrize(
    "pair, texts",
    [
        ((49406.0, 320.0), ("49406", "320")),
        ((-0.36279069, 0.25), ("-0.3628", "0.25")),
        ((0.1234567, 0.1234569), ("0.1234567", "0.1234569")),
        ((1.0, 1 + 2e-16), ("1", "1.0000000000000002")),
        ((float("nan"), 0.0), ("nan", "0")),
    ],
)
def test_two_numbers_are_shown_with_enough_digits(pair, texts):
    assert format_numbers(*pair) == texts


def verdict_on(name, answer):
    return describe_verdict(judge(find_exercise(name), answer))


def test_a_verdict_says_what_is_different():
    assert "The shape is [2, 20, 3], expected [2, 4, 3, 5]." in verdict_on(
        "heads", lambda x: x.transpose(1, 2)
    )
    assert "stopped with ZeroDivisionError" in verdict_on("size", lambda *a: 1 / 0)
    words = "It returned 'red', expected a tensor of shape [2, 4, 5]."
    assert words in verdict_on("red_channel", lambda image: "red")
    assert "`return` is missing" in verdict_on("red_channel", lambda image: None)
    assert "100% of the numbers differ" in verdict_on("row_mean", lambda x: x.mean(dim=1) + 1)
    with pytest.raises(ValueError, match="no exercise 'blue'"):
        find_exercise("blue")


# ---- lesson 00 --------------------------------------------------------------------------------


def largest_difference(one, other):
    """Between two pictures, from 0 to 255."""
    return np.abs(np.asarray(one, float) - np.asarray(other, float)).max()


def picture_with_the_solution(name):
    exercise = find_exercise(name)
    return draw_with(exercise, exercise.solution)


@pytest.fixture(scope="module")
def sd():
    return minisd.load("mini")


def test_the_loop_draws_what_ddim_draws(sd):
    theirs = picture_with_the_solution("denoise_loop")
    ours = find_exercise("denoise_loop").draw(sd)
    assert largest_difference(theirs, ours) <= 1
    assert largest_difference(picture_with_the_solution("smooth_loop"), ours) > 10


def test_the_latent_of_the_mini_has_as_many_numbers(sd):
    picture, latent, ratio = solution_of("compression")(64, 64)
    image = torch.zeros(1, 3, 64, 64)
    assert (picture, latent) == (image.numel(), sd.encode(image).numel())
    assert ratio == 48


# ---- lesson 01 --------------------------------------------------------------------------------


def close(one, other):
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-12, atol=1e-12)


def test_the_solutions_of_lesson_01_agree_with_the_schedule():
    table = Schedule(MINI.schedule)
    config = table.config
    solve = solution_of("alpha_bar_table")
    close(solve(config.beta_start, config.beta_end, config.timesteps), table.alpha_bar)
    close(solution_of("stretch_rates")(table.alpha_bar), with_zero_terminal_snr(table.alpha_bar))
    ts = torch.tensor([0.0, 0.25, 998.5, 999.0], dtype=torch.float64)
    close(solution_of("interpolate_sigma")(ts, table.alpha_bar), table.sigma(ts))
    for sigma in (0.0, 0.03, 1.0, 14.6, math.inf):
        level = Level(0, sigma)
        close(solution_of("level_rates")(sigma), [level.signal_rate, level.noise_rate])


def test_small_steps_is_the_forward_process_of_the_lesson(generator):
    x0 = torch.randn(2, 4, 3, 5, generator=generator)
    table = Schedule(replace(MINI.schedule, timesteps=3, beta_start=0.1, beta_end=0.3))
    adapt = find_exercise("small_steps").in_picture["minisd.teaching.toy.small_steps"]
    walks = [
        walk(x0.double(), table, torch.Generator().manual_seed(1))
        for walk in (adapt(solution_of("small_steps")), toy.small_steps)
    ]
    for theirs, ours in zip(*walks, strict=True):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("betas", ["scaled_linear", "linear"])
def test_the_parts_of_lesson_01_behave_as_the_core(generator, betas, zero_terminal_snr):
    """With each part of the schedule replaced by its solution, a model has the same levels."""
    config = replace(MINI.schedule, beta_schedule=betas, zero_terminal_snr=zero_terminal_snr)
    x0, noise = torch.randn(2, 3, 4, 2, 5, generator=generator)

    def results():
        table = Schedule(config)
        level = table.at(998.5)
        rates = level.signal_rate, level.noise_rate, level.alpha_bar
        noisy = [table.add_noise(x0, noise, t) for t in (20, 2.5, torch.tensor([0, 7, 999]))]
        return [table.alpha_bar, table.sigmas, table.sigma(999), *rates, *noisy]

    ours = results()
    parts = {
        name: adapt(exercise.solution)
        for exercise in all_exercises("01")
        for name, adapt in exercise.replaces.items()
    }
    assert len(parts) == 7
    with install_parts(parts):
        theirs = results()
        with pytest.raises(ValueError, match="t must lie between"):
            Schedule(config).sigma(1000)
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize(
    "name",
    [one.name for one in all_exercises("01") + all_exercises("02") if one.replaces and one.draw],
)
def test_a_picture_with_a_solution_is_ours(name, sd):
    exercise = find_exercise(name)
    table = sd.schedule
    ours = exercise.draw(sd)
    sd.schedule = table
    assert largest_difference(picture_with_the_solution(name), ours) <= 1


# ---- lesson 02 --------------------------------------------------------------------------------


def test_the_two_names_of_an_answer_agree_with_the_package(generator):
    x, eps = torch.randn(2, 3, 4, 2, 5, generator=generator, dtype=torch.float64)
    level = Level(0, 0.7)
    x0 = solution_of("x0_from_eps")(x, eps, level)
    close(x0, x0_from_eps(x, eps, level))
    close(solution_of("eps_from_x0")(x, x0, level), eps)


def test_the_picture_of_eps_from_x0_is_ours(sd):
    ours = find_exercise("eps_from_x0").draw(sd)
    assert largest_difference(picture_with_the_solution("eps_from_x0"), ours) <= 1


def test_the_losses_agree_with_the_training(generator):
    """Without weights, both are the mean squared error at the noisy x of the schedule."""
    table = Schedule(MINI.schedule)
    x0, noise = torch.randn(2, 3, 4, 2, 5, generator=generator, dtype=torch.float64)
    t = torch.tensor([3, 500, 999])
    eps = table.add_noise(x0, noise, t).sin()
    loss = solution_of("noise_loss")(
        lambda x, t, context: x.sin(), x0, noise, t, None, table.alpha_bar
    )
    close(loss, F.mse_loss(eps, noise))
    close(solution_of("p2_loss")(eps, noise, table.alpha_bar[t], gamma=0), loss)


def test_one_step_and_the_average_agree_with_the_training(generator):
    x, y = torch.randn(5, 3, generator=generator), torch.randn(5, generator=generator)
    layer = torch.nn.Linear(3, 1, bias=False)
    average = copy.deepcopy(layer)
    weights = layer.weight[0].detach().clone()
    F.mse_loss(layer(x)[:, 0], y).backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    torch.testing.assert_close(solution_of("sgd_step")(weights, x, y, 0.1), layer.weight[0].data)
    theirs = solution_of("update_ema")(average.state_dict(), layer.state_dict(), 3, 0.999)
    update_ema(average, layer, keep=4 / 13)
    torch.testing.assert_close(theirs["weight"], average.weight.data)


def test_the_loop_trains_as_the_training_does(generator):
    """A loss that falls, and the average of the package's own update_ema()."""
    layer, x = torch.nn.Linear(3, 1), torch.randn(20, 3, generator=generator)
    own, ema, network = copy.deepcopy(layer), copy.deepcopy(layer), copy.deepcopy(layer)

    def loss_of(network, x):
        return F.mse_loss(network(x), x.sum(dim=1, keepdim=True))

    adam = torch.optim.Adam(own.parameters(), lr=0.1)
    for _ in range(50):
        adam.zero_grad()
        loss_of(own, x).backward()
        adam.step()
        update_ema(ema, own, keep=0.9)
    result = solution_of("train_network")(network, lambda: x, loss_of, 50, 0.1, keep=0.9)
    torch.testing.assert_close(result.weight, ema.weight)
    assert loss_of(result, x) < 0.1 * loss_of(layer, x)


@pytest.mark.parametrize("name", ["noise_loss", "train_network"])
def test_the_loss_trains_a_network_that_draws_a_ring(name):
    """There are hardly any points in the middle of the picture, where noise would be."""
    shades = np.asarray(picture_with_the_solution(name).convert("L"))
    assert (shades == 0).mean() > 0.03
    assert (shades[48:80, 48:80] == 0).mean() < 0.02
