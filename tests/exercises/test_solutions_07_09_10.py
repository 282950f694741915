"""The solutions of lessons 07, 09 and 10 compute what the core computes."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import minisd
from minisd import attention, guidance
from minisd.adapters.classifier import classifier_guided
from minisd.exercises.check import draw_cat, draw_with
from minisd.exercises.exercise import all_exercises, draw_weights, find_exercise, normal
from minisd.exercises.install import install_parts
from minisd.pipeline import make_generators
from tests.helpers.core_calls import core_calls, parts_of_solutions

LESSONS = ("07", "09", "10")
MINE = [one for lesson in LESSONS for one in all_exercises(lesson)]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def solution_of(name, student="ada"):
    exercise = find_exercise(name)
    return exercise.with_constants(exercise.solution, student)


def assert_equal(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def same_picture(one, other):
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.fixture(scope="module")
def cat():
    """The picture of the exercises, with the core's parts."""
    return draw_cat(minisd.load("mini"))


REPLACING = [one for one in MINE if one.replaces]


@pytest.mark.parametrize("exercise", REPLACING, ids=lambda one: one.name)
def test_the_picture_with_the_solution_is_ours(exercise, cat):
    assert exercise.draw is draw_cat
    assert same_picture(draw_with(exercise, exercise.solution), cat)


@pytest.mark.parametrize("name", ["one_head", "split_heads", "join_heads", "apply_cfg"])
def test_the_picture_with_a_small_step_is_ours(name, cat):
    exercise = find_exercise(name)
    assert same_picture(draw_with(exercise, exercise.solution), cat)


# ---- lesson 07 -------------------------------------------------------------------------------


def core_attend(q, k, v):
    return attention.attend(q, k, v, tap=torch.nn.Identity())


def test_one_head_is_a_head_of_attend(generator):
    q, k, v = normal(generator, 5, 4), *normal(generator, 2, 7, 4)
    weights, answers = solution_of("one_head")(q, k, v)
    assert_equal(answers, core_attend(q[None, None], k[None, None], v[None, None])[0, 0])
    assert_equal(weights[2], solution_of("query_weights")(q[2], k))


def test_split_and_join_undo_each_other(generator):
    x = normal(generator, 2, 5, 12)
    assert_equal(solution_of("join_heads")(solution_of("split_heads")(x, 3)), x)


@pytest.mark.parametrize(
    ("name", "core", "init", "shapes"),
    [
        ("attention", "Attention", (12, 10, 3), [(2, 5, 12), (2, 7, 10)]),
        ("geglu", "GEGLU", (12, 3), [(2, 5, 12)]),
        ("spatial_transformer", "SpatialTransformer", (12, 10, 3, 4), [(2, 12, 3, 5), (2, 7, 10)]),
    ],
)
def test_the_class_with_the_same_weights_is_the_cores(name, core, init, shapes, generator):
    ours = getattr(attention, core)(*init).double()
    ours.load_state_dict(draw_weights(generator, ours))
    theirs = solution_of(name)(*init).double()
    theirs.load_state_dict(ours.state_dict())
    inputs = [normal(generator, *shape) for shape in shapes]
    assert_equal(theirs(*inputs), ours(*inputs))


def test_without_sink_and_temperatures_sink_attend_is_attend(generator):
    q, k, v = normal(generator, 2, 5, 3, 4), *normal(generator, 2, 2, 7, 3, 4)
    plain = find_exercise("sink_attend").solution(q, k, v, temperatures=(1, 1, 1), sink=0)
    by_head = [each.transpose(1, 2) for each in (q, k, v)]
    assert_equal(plain, core_attend(*by_head).transpose(1, 2))


# ---- lesson 09 -------------------------------------------------------------------------------

T481 = guidance.Level(481, 1.7)


def noted_network(rows):
    """A network that notes how many samples of each run have no prompt, and the dtype of t."""

    def network(x, t, context):
        rows.append((len(x), guidance.unconditional_rows(context), t.dtype))
        return x * context.mean(dim=(1, 2))[:, None, None, None] + 0.001 * t.to(x)[0]

    return network


@pytest.mark.parametrize("scale", [0, 1, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_guided_denoiser_of_the_solution_is_the_cores(scale, dtype, generator):
    exercise = find_exercise("guided_eps")
    theirs = exercise.replaces["minisd.guidance.guided_denoiser"](exercise.solution)
    x, contexts = normal(generator, 2, 4, 3, 5), normal(generator, 2, 2, 7, 6).to(dtype)
    results, rows = [], []
    for build in (guidance.guided_denoiser, theirs):
        denoise = build(noted_network(rows), "eps", contexts[0], contexts[1], scale)
        results.append(denoise(x, T481))
    assert rows[0] == rows[1]
    for one, other in zip(*results, strict=True):
        assert one is other is None or torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_the_network_runs_once_for_both_halves_as_in_the_core(generator):
    exercise = find_exercise("run_both")
    theirs = exercise.replaces["minisd.guidance.run_network_twice"](exercise.solution)
    x, contexts = normal(generator, 2, 4, 3, 5), normal(generator, 2, 2, 7, 6)
    results, rows = [], []
    for run in (guidance.run_network_twice, theirs):
        results.append(run(noted_network(rows), x, T481, *contexts))
    assert rows[0] == rows[1] == (4, 2, torch.float64)
    for one, other in zip(*results, strict=True):
        assert_equal(one, other)


def test_the_guidance_of_the_solution_refuses_what_it_cannot_do(generator):
    exercise = find_exercise("guided_eps")
    build = exercise.replaces["minisd.guidance.guided_denoiser"](exercise.solution)
    context = normal(generator, 2, 7, 6)
    with pytest.raises(ValueError, match='reads eps, but this model predicts "v"'):
        build(None, "v", context, context, 3.0)
    with pytest.raises(ValueError, match="needs an uncond_context"):
        build(None, "eps", context, None, 3.0)
    build(None, "eps", context)


def test_the_formulas_agree_where_they_should(generator):
    uncond, cond, negative = normal(generator, 3, 2, 4, 3, 5)
    guided = find_exercise("apply_cfg").solution(uncond, cond, 3.0)
    assert_equal(find_exercise("rescaled_cfg").solution(uncond, cond, 3.0, phi=0), guided)
    assert_equal(find_exercise("push_away").solution(uncond, cond, negative, 3.0, 0), guided)
    t = torch.tensor([100, 400])
    some = find_exercise("interval_cfg").solution(uncond, cond, t, 3.0, low=200, high=600)
    assert_equal(some, torch.stack([cond[0], guided[1]]))
    spread = find_exercise("rescaled_cfg").solution(uncond, cond, 3.0, phi=1).flatten(1).std(dim=1)
    assert_equal(spread, cond.flatten(1).std(dim=1))


def test_a_loss_guides_as_a_classifier_with_the_same_gradient_does(generator):
    x, eps = normal(generator, 2, 2, 4, 3, 5)

    def loss(x0):
        return x0.pow(4).mean(dim=(1, 2, 3))

    def denoise(x, level):
        return guidance.Prediction(guidance.x0_from_eps(x, eps, level), eps, None, None)

    def log_prob(x, t):
        return -loss(denoise(x, T481).x0)

    ours = find_exercise("guide_by_loss").solution(x, eps, T481, loss, 3.0)
    assert_equal(ours, classifier_guided(denoise, log_prob, 3.0)(x, T481).eps)


# ---- lesson 10 -------------------------------------------------------------------------------


def method_of(name, target):
    exercise = find_exercise(name)
    return exercise.replaces[f"minisd.pipeline.StableDiffusion.{target}"](exercise.solution)


def test_the_noise_of_the_solution_is_the_cores(small_sd):
    """Also of generators that were used before, and the generators are left as the core does."""
    theirs = method_of("starting_noise", "noise")
    for used in (0, 3):
        results = []
        for draw in (type(small_sd).noise, theirs):
            generators = make_generators([7, -2, 2**40], 3)
            for each in generators:
                torch.randn(used, generator=each)
            results.append(draw(small_sd, generators, 64, 32))
            results.append(torch.cat([torch.randn(5, generator=each) for each in generators]))
        assert torch.equal(results[0], results[2])
        assert torch.equal(results[1], results[3])


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 1, "seed": [5, 3], "width": 48}])
def test_the_steps_of_the_solution_are_the_cores(settings, small_sd):
    theirs = method_of("txt2img_latents", "txt2img_steps")
    arguments = (small_sd, ["a cat", "a red dog"], "a house")
    ours = list(small_sd.txt2img_steps(*arguments[1:], steps=4, **settings))
    steps = list(theirs(*arguments, steps=4, **settings))
    assert len(steps) == 4
    for one, other in zip(ours, steps, strict=True):
        assert one[:2] == other[:2]
        assert one.sigma == pytest.approx(other.sigma, rel=1e-12)
        torch.testing.assert_close(one.x, other.x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.prediction[:2], other.prediction[:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "euler"}, "draws with DDIM only. Leave out --sampler"),
        ({"spacing": "karras"}, "Leave out --spacing"),
        ({"latent": torch.zeros(1, 4, 8, 8)}, "Leave out latent"),
        ({"clip_skip": 1}, "Leave out --clip-skip"),
        ({"extended": True}, "Leave out --extended"),
        ({"steps": 1000}, "takes 1 to 999 steps"),
        ({"cfg_scale": float("nan")}, "finite number"),
        ({"width": 30}, "does not fit"),
    ],
)
def test_the_solution_refuses_what_it_cannot_do(settings, words, small_sd):
    theirs = method_of("txt2img_latents", "txt2img_steps")
    with pytest.raises(ValueError, match=re.escape(words)):
        theirs(small_sd, "a cat", **settings)


def test_the_solution_refuses_a_model_with_other_rules(small_sd, monkeypatch):
    theirs = method_of("txt2img_latents", "txt2img_steps")
    monkeypatch.setattr(small_sd, "guides", [lambda denoise: denoise])
    with pytest.raises(ValueError, match="Leave out --classifier"):
        theirs(small_sd, "a cat")
    schedule = replace(small_sd.config.schedule, prediction="v")
    monkeypatch.setattr(small_sd, "config", replace(small_sd.config, schedule=schedule))
    with pytest.raises(ValueError, match="Use the mini"):
        theirs(small_sd, "a cat")


METHODS = ("txt2img", "embed", "device", "check_finite", "check_text_only")
METHODS += ("runner",)
GLUE = {
    "config.VAEConfig.factor",
    *(f"pipeline.StableDiffusion.{name}" for name in METHODS),
    *(f"pipeline.{name}" for name in ("list_prompts", "check_seeds", "pictures_for")),
    *(
        f"fast.{name}"
        for name in ("faster", "faster.<locals>.<lambda>", "fast_copy", "is_traced", "all_hooks")
    ),
}


def test_with_all_parts_only_glue_runs_and_the_picture_is_ours(cat):
    with install_parts(parts_of_solutions("ada")):
        sd = minisd.load("mini")
        pictures = []
        names = core_calls(lambda: pictures.append(draw_cat(sd)))
    assert same_picture(pictures[0], cat)
    assert names - GLUE == set()
