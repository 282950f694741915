"""The solutions of lessons 11 to 18 against the package, and the pictures that they draw."""

import re
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from einops import rearrange

import minisd
from minisd import guidance, samplers
from minisd.adapters import textual_inversion
from minisd.adapters.hypernetwork import HypernetworkMLP
from minisd.adapters.lora import LowRankUpdate
from minisd.checkpoints import names
from minisd.checkpoints.cover import empty_networks
from minisd.config import SD15
from minisd.exercises.check import draw_with
from minisd.exercises.exercise import all_exercises, find_exercise
from minisd.exercises.install import install_parts
from minisd.tasks import canny, depth2img, img2img, inpaint

LESSONS = ("11", "12", "13", "14", "15", "16", "17", "18")
EXERCISES = [one for one in all_exercises() if one.lesson in LESSONS]
OURS = [one for one in EXERCISES if one.draw and not one.constants]
OTHERS = [one for one in EXERCISES if one.draw and one.constants]


@cache
def mini():
    return minisd.load("mini")


def as_shades(picture):
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("exercise", OURS, ids=lambda one: one.name)
def test_the_solution_draws_our_picture(exercise):
    assert exercise.draw is not None
    ours = as_shades(exercise.draw(mini()))
    theirs = as_shades(draw_with(exercise, exercise.solution))
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("exercise", OTHERS, ids=lambda one: one.name)
def test_a_student_with_other_constants_gets_another_picture(exercise):
    assert exercise.constants is not None
    drawn = {str(exercise.constants_of(f"student {i}")): f"student {i}" for i in range(20)}
    chosen = [exercise.with_constants(exercise.solution, one) for one in list(drawn.values())[:2]]
    first, second = (draw_with(exercise, answer).tobytes() for answer in chosen)
    assert first != second


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_remaining_levels():
    answer = find_exercise("remaining_levels").solution
    for steps in (1, 7, 50):
        levels = mini().schedule.linspace(steps)
        for strength in (0, 0.1, 0.33, 0.5, 0.999, 1):
            assert answer(levels, strength) == img2img.remaining_levels(levels, strength)


def test_noisy_start():
    answer = find_exercise("noisy_start").solution
    levels = mini().schedule.linspace(9)
    z, eps = noise(2, 2, 4, 3, 5)
    sigmas = [level.sigma for level in levels]
    ours = img2img.add_noise(z, eps, img2img.remaining_levels(levels, 0.6)[0])
    torch.testing.assert_close(answer(z, eps, sigmas, 0.6), ours, rtol=1e-12, atol=1e-12)


def test_invert_ddim():
    levels = mini().schedule.linspace(5)

    def denoise(x, level):
        eps = torch.tanh(x) + level.t / 1000
        return guidance.interpret("eps", x, level, guided=eps, uncond=None, cond=eps)

    z = x = noise(2, 4, 3, 5)
    for level, noisier in pairwise(levels[::-1]):
        x = samplers.ddim_move(x, denoise(x, level).eps, level, noisier)
    answer = find_exercise("invert_ddim").solution(denoise, z, levels)
    torch.testing.assert_close(answer, x, rtol=1e-9, atol=1e-9)


def test_latent_mask():
    answer = find_exercise("latent_mask").solution
    mask, z = noise(1, 1, 24, 40).sigmoid(), noise(3, 4, 3, 5)
    assert torch.equal(answer(mask, z), inpaint.latent_mask(mask, z))


def test_depth_channel():
    answer = find_exercise("depth_channel").solution
    depth = noise(3, 1, 24, 40)
    ours = depth2img.depth_channel(depth, (3, 5))
    torch.testing.assert_close(answer(depth, (3, 5)), ours, rtol=1e-12, atol=1e-12)


def test_align_depth():
    depth, truth = noise(2, 3, 1, 5, 4)
    answer = find_exercise("align_depth").solution(depth, truth)
    for one, other, mine in zip(depth, truth, answer, strict=True):
        columns = torch.stack([one.flatten(), torch.ones_like(one.flatten())], dim=1)
        best = torch.linalg.lstsq(columns, other.flatten()[:, None]).solution
        torch.testing.assert_close((columns @ best).flatten(), mine.flatten())


def test_hysteresis():
    answer = find_exercise("hysteresis").solution
    steepness = noise(2, 1, 30, 40).sigmoid()
    ours = canny.hysteresis(steepness > 0.55, steepness > 0.9)
    assert torch.equal(answer(steepness, 0.55, 0.9), ours.double())


def test_zero_convolution_has_the_gradients_of_torch():
    x, slope = noise(2, 2, 3, 4, 5)
    weight, bias = torch.zeros(3, 3).double(), torch.zeros(3).double()
    leaves = [one.requires_grad_() for one in (weight, bias, x)]
    output = torch.nn.functional.conv2d(x, weight[:, :, None, None], bias)
    wanted = torch.autograd.grad(output, leaves, slope)
    answer = find_exercise("zero_convolution").solution(x, weight, bias, slope)
    assert not answer[0].any() and not answer[3].any() and answer[1].any()
    for mine, right in zip(answer[1:], wanted, strict=True):
        torch.testing.assert_close(mine, right)


def test_new_word():
    embedding = torch.nn.Embedding(9, 6).double()
    vectors, tokens = noise(3, 6), torch.tensor([[0, 11, 12, 13, 8], [13, 2, 11, 5, 11]])
    handles = textual_inversion.embedding_hooks(embedding, [11, 12, 13], vectors)
    ours = embedding(tokens)
    for handle in handles:
        handle.remove()
    answer = find_exercise("new_word").solution
    assert torch.equal(answer(tokens, embedding.weight, 11, vectors), ours)


def test_train_word_takes_the_gradient_of_torch():
    table, tokens = noise(7, 4).requires_grad_(), torch.tensor([[1, 5, 5], [6, 0, 5]])
    slope = noise(2, 3, 4)
    gradient = torch.autograd.grad(torch.nn.functional.embedding(tokens, table), table, slope)[0]
    new = find_exercise("train_word").solution(table.detach(), tokens, slope, [5], 0.1)
    torch.testing.assert_close(new[5], (table - 0.1 * gradient)[5].detach())
    assert torch.equal(new[:5], table[:5]) and torch.equal(new[6], table[6])


def test_lora_merge():
    answer = find_exercise("lora_merge").solution
    down, up = noise(2, 5, 3, 3), noise(4, 2, 1, 1)
    layer = torch.nn.Conv2d(5, 4, 3, padding=1).double().requires_grad_(False)
    x = noise(2, 5, 6, 7)
    ours = layer(x) + 0.7 * LowRankUpdate(down, up, 5.0)(layer, x)
    layer.weight.copy_(answer(layer.weight, down, up, 5.0, 0.7))
    torch.testing.assert_close(layer(x), ours)


def test_hypernetwork():
    context, to_k, to_v = noise(2, 5, 4), noise(6, 4), noise(6, 4)
    nets = [[noise(8, 4), noise(8), noise(4, 8), noise(4)] for _ in range(2)]
    nets[1] = [-one for one in nets[1]]
    answer = find_exercise("hypernetwork").solution(context, to_k, to_v, *nets, 0.6)
    for mine, weight, (w1, b1, w2, b2) in zip(answer, (to_k, to_v), nets, strict=True):
        net = HypernetworkMLP([(w1, b1), (w2, b2)], "relu", False)
        torch.testing.assert_close(mine, (context + 0.6 * net(context)) @ weight.T)


def test_read_v_and_v_target():
    level, (x0, eps) = mini().schedule.at(700), noise(2, 3, 4, 5, 6)
    v = find_exercise("v_target").solution(x0, eps, torch.full((3,), level.alpha_bar).double())
    torch.testing.assert_close(v, mini().schedule.velocity(x0, eps, 700))
    x = level.signal_rate * x0 + level.noise_rate * eps
    guesses = find_exercise("read_v").solution(x, v, level)
    torch.testing.assert_close(guesses, (x0, eps))
    torch.testing.assert_close(guesses[0], guidance.x0_from_v(x, v, level))
    torch.testing.assert_close(guesses[1], guidance.eps_from_v(x, v, level))


def test_a_student_can_own_the_velocity():
    exercise = find_exercise("v_target")
    parts = {name: adapt(exercise.solution) for name, adapt in exercise.replaces.items()}
    (x0, eps), schedule = noise(2, 3, 4, 5, 6), mini().schedule
    for t in (700, torch.tensor([3, 500, 999])):
        ours = schedule.velocity(x0, eps, t)
        with install_parts(parts):
            torch.testing.assert_close(schedule.velocity(x0, eps, t), ours)


def test_turn_by_v_is_ddim():
    before, after = mini().schedule.levels([800, 300])
    x, v = noise(2, 3, 4, 5, 6)
    x0, eps = guidance.x0_from_v(x, v, before), guidance.eps_from_v(x, v, before)
    ours = after.signal_rate * x0 + after.noise_rate * eps
    torch.testing.assert_close(find_exercise("turn_by_v").solution(x, v, before, after), ours)


def test_our_names_are_those_of_the_table():
    rows = names.model_rows(SD15)["unet"]
    ours = empty_networks(SD15)["unet"].state_dict()
    official = names.to_official(ours, rows, "original")
    known = r"input_blocks\.\d+\.(0\..+|1\.(norm|proj_in|proj_out)\..+)"
    state = {name: tensor for name, tensor in official.items() if re.fullmatch(known, name)}
    answer = find_exercise("our_names").solution(state, SD15.unet.res_blocks)
    right = names.from_official(state, rows, "original")
    assert len(answer) > 100
    assert {name: tensor.shape for name, tensor in answer.items()} == {
        name: tensor.shape for name, tensor in right.items()
    }


def test_round_bits_with_eleven_bits_is_half_precision():
    x = noise(50)
    assert torch.equal(find_exercise("round_bits").solution(x, bits=11), x.half().double())


@pytest.mark.parametrize("order", ["c p q", "p q c"])
def test_patchify_can_be_undone(order):
    latent = noise(2, 4, 8, 12)
    tokens = find_exercise("patchify").solution(latent, side=4, order=order)
    assert tokens.shape == (2, 6, 64)
    again = rearrange(tokens, f"b (h w) ({order}) -> b c (h p) (w q)", h=2, p=4, q=4)
    assert torch.equal(again, latent)


def test_the_exact_velocity_has_no_loss_and_leads_to_the_data_in_one_step():
    x0, eps = noise(2, 5, 2, 1, 1)
    x0 = x0[:1].expand(5, -1, -1, -1)  # all data are one point, so the velocity is known

    def velocity(x, t):
        return (x - x0) / (t[:, None, None, None] / 1000)

    t = torch.rand(5).double().clamp(min=0.1)
    assert find_exercise("flow_loss").solution(velocity, x0, eps, t) < 1e-20
    for steps in (1, 7):
        torch.testing.assert_close(find_exercise("flow_euler").solution(velocity, eps, steps), x0)


def test_flow_times():
    answer = find_exercise("flow_times").solution
    torch.testing.assert_close(answer(4, shift=1), torch.linspace(1, 0, 5).double())
    shifted = answer(20, shift=3)
    assert shifted[0] == 1 and shifted[-1] == 0 and (shifted.diff() < 0).all()
    assert (shifted[1:-1] > answer(20, shift=1)[1:-1]).all()
