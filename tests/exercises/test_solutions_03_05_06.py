"""The solutions of lessons 03, 05 and 06 compute what the package computes."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import minisd
from minisd import clip
from minisd import tokenizer as module
from minisd.config import MINI, TextConfig
from minisd.exercises.calls import build_sigma_denoise
from minisd.exercises.check import draw_cat, draw_with
from minisd.exercises.exercise import all_exercises, find_exercise
from minisd.exercises.install import install_parts
from minisd.pipeline import make_generators
from minisd.samplers import SAMPLERS
from minisd.sampling import SPACINGS, sampler_levels
from minisd.schedule import Schedule
from minisd.teaching.toy import two_peaks
from minisd.tokenizer import Tokenizer

PACKAGE = Path(minisd.__file__).parent
TEXTS = [
    "a blue cat on a red background",
    "  It's 12 CATS,\tand\n NO dog!  ",
    "a CafÃ© &amp;amp; a naïve Ｃａｔ < 猫 🐱",
    "x" * 30 + " <|endoftext|> y",
    "",
    "cat, " * 60,
]


def replacements(*lessons):
    """Every part of these lessons, made from the solutions."""
    every = [one for lesson in lessons for one in all_exercises(lesson)]
    return {name: adapt(one.solution) for one in every for name, adapt in one.replaces.items()}


def largest_difference(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max()


@pytest.fixture(scope="module")
def sd():
    return minisd.load("mini")


@pytest.fixture(scope="module")
def cat(sd):
    return draw_cat(sd)


def test_a_method_is_replaced_in_tables_too():
    def leading(self, steps):
        return []

    before = Schedule.leading
    with install_parts({"minisd.schedule.Schedule.leading": leading}):
        assert SPACINGS["leading"] is leading
        assert Schedule.leading is leading
    assert SPACINGS["leading"] is before
    assert Schedule.leading is before


# ---- lesson 03 -------------------------------------------------------------------------------


def test_the_levels_of_the_solutions_are_the_same():
    schedule = Schedule(MINI.schedule)
    rules = {"leading": (1, 12, 30, 999, 1000), "karras": (1, 2, 9)}
    ours = {name: [getattr(schedule, name)(n) for n in steps] for name, steps in rules.items()}
    with install_parts(replacements("03")):
        for name, steps in rules.items():
            for count, levels in zip(steps, ours[name], strict=True):
                mine = getattr(schedule, name)(count)
                assert np.allclose([one[:2] for one in mine], [one[:2] for one in levels])
            with pytest.raises(ValueError, match="steps must be"):
                getattr(schedule, name)(0)


@pytest.mark.parametrize("steps", [5, 16])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize(
    "name", ["ddpm", "ddim", "plms", "euler", "euler_ancestral", "heun", "dpmpp_2m"]
)
def test_each_sampler_of_the_solutions_takes_the_same_steps(name, steps, final):
    world = two_peaks()
    levels = sampler_levels(name, Schedule(MINI.schedule), steps, final=final)
    start = torch.randn(2, 1, 1, 1, dtype=torch.float64)

    def walk():
        return list(SAMPLERS[name](world.denoise, start, levels, make_generators(7, 2)))

    ours = walk()
    with install_parts(replacements("03")):
        theirs = walk()
    for mine, right in zip(theirs, ours, strict=True):
        assert mine[:3] == right[:3]
        torch.testing.assert_close(mine.x, right.x, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(mine.prediction.x0, right.prediction.x0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["ddpm", "plms", "euler", "euler_ancestral", "heun", "dpmpp_2m"])
def test_each_sampler_of_the_solutions_draws_the_same(sd, name):
    def latent():
        *_, last = sd.txt2img_steps("a blue cat", steps=4, sampler=name, seed=1)
        return last.x

    ours = latent()
    with install_parts(replacements("03")):
        torch.testing.assert_close(latent(), ours, rtol=1e-4, atol=1e-4)


def test_two_slopes_up_to_the_end_are_heun():
    sigmas, start = [9.0, 4.0, 2.0, 0.5], torch.randn(1, 2, 3, 3, dtype=torch.float64)
    denoise = build_sigma_denoise(1.3)
    mine = list(find_exercise("two_slopes").solution(denoise, start, sigmas, fraction=1))
    torch.testing.assert_close(mine, list(find_exercise("heun").solution(denoise, start, sigmas)))


def test_the_posterior_is_the_step_of_ddpm():
    posterior, ddpm = (find_exercise(name).solution for name in ("posterior", "ddpm"))
    level, below = Schedule(MINI.schedule).levels([500, 300])
    x, x0, noise = torch.randn(3, 1, 2, 3, 3, dtype=torch.float64)
    mean, variance = posterior(x, x0, level.alpha_bar, below.alpha_bar)
    guess = SimpleNamespace(x0=x0)
    (moved,) = ddpm(lambda x, level: guess, x, [level, below], [noise])
    torch.testing.assert_close(moved, mean + variance**0.5 * noise)


def test_the_solution_of_ddim_refuses_eta(sd):
    with install_parts(replacements("03")):
        walk = SAMPLERS["ddim"](None, torch.zeros(1), [], eta=0.5)
        with pytest.raises(ValueError, match="no eta"):
            next(walk)


# ---- lesson 05 -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the prompt is too long")
def test_the_tokenizer_of_the_solutions_gives_the_same_ids(sd):
    ours = sd.tokenizer
    rows, cleaned = ours(TEXTS), [module.clean(text) for text in TEXTS]
    words = [module.byte_words(text) for text in cleaned]
    decoded = [ours.decode(row) for row in rows]
    with install_parts(replacements("05")):
        theirs = Tokenizer(ours.merges)
        assert [module.clean(text) for text in TEXTS] == cleaned
        assert [module.byte_words(text) for text in cleaned] == words
        assert torch.equal(theirs(TEXTS), rows)
        assert [theirs.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
        assert [theirs.decode(row) for row in rows] == decoded
        assert torch.equal(theirs("a cat"), theirs(["a cat"]))


def test_the_solution_refuses_added_words(sd):
    with install_parts(replacements("05")):
        theirs = Tokenizer(sd.tokenizer.merges)
        theirs.add_word("<thing>")
        with pytest.raises(ValueError, match="does not know added words"):
            theirs("a <thing>")
        with pytest.raises(ValueError, match="there is no text"):
            Tokenizer(sd.tokenizer.merges)([])


def test_the_best_pair_is_the_first_merge():
    counts = {"cat": 5, "hat": 5, "that": 3, "the": 9, "theatre": 2}
    ids = {piece: index for index, piece in enumerate(module.ALPHABET)}
    words = [(module.split_letters(word), count) for word, count in counts.items()]
    merges = []
    for _ in range(6):
        merges.append(find_exercise("best_pair").solution(words, ids))
        ids["".join(merges[-1])] = len(ids)
        words = [(find_exercise("join_pair").solution(p, merges[-1]), n) for p, n in words]
    assert merges == module.learn_merges(counts, 6)


# ---- lesson 06 -------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_text_transformer_of_the_solutions_gives_the_same_context(activation):
    config = TextConfig(50, width=24, layers=3, heads=4, activation=activation, max_length=9)
    ours = clip.TextTransformer(config).double()
    tokens = torch.randint(50, (2, 7))
    with install_parts(replacements("06")), torch.no_grad():
        theirs = clip.TextTransformer(config).double()
        assert type(theirs) is find_exercise("text_transformer").solution
        assert type(theirs.layers[0]) is find_exercise("text_layer").solution
        theirs.load_state_dict(ours.state_dict())
        contexts = [theirs(tokens, skip) for skip in (0, 1)]
    for skip, context in enumerate(contexts):
        torch.testing.assert_close(context, ours(tokens, skip), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["quick_gelu", "window_mask"])
def test_another_text_transformer_draws_another_picture(name, cat):
    one = find_exercise(name)
    drawn = draw_with(one, one.with_constants(one.solution, "ada"))
    assert largest_difference(drawn, cat) > 1


def test_the_loss_of_clip_is_small_only_for_right_pairs_and_low_temperatures():
    """For vectors at right angles, it is known: each right score is 1 / T, each wrong one 0."""
    loss, square = find_exercise("clip_loss").solution, torch.eye(6, dtype=torch.float64)
    for temperature in (1.0, 0.1):
        expected = np.log(1 + 5 * np.exp(-1 / temperature))
        assert loss(3 * square, square, temperature) == pytest.approx(expected)
    assert loss(square, square.roll(1, dims=0), 0.1) > 10
    assert loss(torch.ones(6, 4), torch.ones(6, 4), 0.1) == pytest.approx(np.log(6))  # all equal


# ---- the picture -----------------------------------------------------------------------------


def test_the_picture_is_the_same_with_all_parts_together(cat):
    """None of these lessons' functions runs any more, and the picture is the same."""
    called = set()

    def watch(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.parent == PACKAGE:
            called.add(path.stem)

    with install_parts(replacements("03", "05", "06")):
        sd = minisd.load("mini")
        sys.setprofile(watch)
        try:
            drawn = draw_cat(sd)
        finally:
            sys.setprofile(None)
    assert largest_difference(drawn, cat) <= 1
    assert not called & {"tokenizer", "clip", "samplers"}
    assert "unet" in called
