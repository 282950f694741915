"""What check() says about answers as students write them."""

import pytest
import torch
from torch import nn

from minisd.exercises.calls import build_network, describe_error
from minisd.exercises.check import describe_verdict, draw_with
from minisd.exercises.exercise import find_exercise
from minisd.exercises.judge import (
    OTHER_CONSTANTS,
    Difference,
    find_difference,
    judge,
    name_rounding,
)
from minisd.teaching.plot.canvas import plain_text


def words_on(name, answer):
    return describe_verdict(judge(find_exercise(name), answer))


def difference(got, wanted):
    wrong = find_difference(got, wanted, 1e-9)
    return wrong and wrong.sentence


def test_a_number_may_be_a_tensor_and_a_list_may_mix_both():
    exact = torch.tensor(0.1, dtype=torch.float64)
    assert difference(exact, 0.1) is None
    assert difference([exact, 2], [0.1, 2.0]) is None
    assert difference((0.1, torch.ones(2)), (exact, torch.ones(2))) is None


def test_lists_of_one_are_described():
    assert difference("[UNK]", ["[UNK]"]) == "It returned '[UNK]', expected ['[UNK]']."
    assert "expected a list of 1 tensor." in difference([0, "a"], [torch.ones(2)])


def test_float32_is_named_before_anything_else():
    words = words_on("row_mean", lambda x: x.float().mean(1))
    assert "**The numbers are nearly right. Look for float32" in words
    wanted = torch.rand(5, dtype=torch.float64)
    near = name_rounding(Difference("", (wanted * (1 + 1e-7), wanted)))
    assert near.startswith("The numbers are nearly right.")


def test_a_mistake_in_float32_has_its_name():
    def linear(start, end, count):
        return (1 - torch.linspace(start, end, count)).cumprod(0)

    assert "Here, the betas are evenly spaced." in words_on("alpha_bar_table", linear)


def test_infinite_numbers_are_named():
    words = words_on("causal_mask", lambda x: -1e9 * torch.ones(x.shape[1], x.shape[1]).triu(1))
    assert "-1e9 is not minus infinity." in words
    wanted = torch.tensor([0, float("-inf")], dtype=torch.float64)
    finite = name_rounding(Difference("", (torch.zeros(2).double(), wanted)))
    assert finite == "The right result holds infinite numbers. Yours are finite there."
    broken = name_rounding(Difference("", (wanted.nan_to_num() * torch.nan, wanted)))
    assert "a root of a negative number" in broken


def test_constants_of_another_student_are_recognized():
    exercise = find_exercise("p2_loss")
    verdict = judge(exercise, exercise.with_constants(exercise.solution, ""), student="anna")
    assert verdict.mistake == OTHER_CONSTANTS


def test_a_loss_needs_a_gradient():
    def without_gradient(eps, noise, alpha_bar):
        exercise = find_exercise("p2_loss")
        return exercise.with_constants(exercise.solution, "")(eps, noise, alpha_bar).item()

    with torch.no_grad():  # as in a lesson that trains nothing
        assert judge(find_exercise("noise_loss"), find_exercise("noise_loss").solution).has_passed
    words = words_on("p2_loss", without_gradient)
    assert "2 of 3 points" in words and "The loss has no gradient." in words


def test_a_sampler_must_yield():
    assert "Use `yield`, once for each step." in words_on("heun", lambda denoise, x, sigmas: x)
    assert "Is `yield` missing?" in words_on("heun", lambda denoise, x, sigmas: print(end=""))
    assert "`yield` is missing." in words_on("heun", lambda denoise, x, sigmas: None)
    pairs = words_on("heun", lambda denoise, x, sigmas: [(x, x)] * (len(sigmas) - 1))
    assert "Yield x alone." in pairs


def test_the_same_error_is_told_once():
    def broken(x):
        return x.no_such_name

    words = words_on("causal_mask", broken)
    assert words.count("no_such_name") == 2  # the error, and the line
    assert words.count("The same error.") == 2


def test_code_keeps_its_stars_in_a_terminal():
    text = "**Hint 1.** 10000 ** (a / b) + x**2 + y**2, `c ** d`, **not**."
    assert plain_text(text) == "Hint 1. 10000 ** (a / b) + x**2 + y**2, `c ** d`, not."


def test_a_mistake_must_explain_every_failing_stage():
    exercise = find_exercise("cosine_schedule")
    first, wrong = next(iter(exercise.mistakes.items()))
    stages = len(exercise.stages)
    calls = []

    def twice_wrong(*arguments):
        calls.append(0)
        right = exercise.with_constants(wrong, "")(*arguments)
        return right if len(calls) < stages else 2 + right

    assert judge(exercise, twice_wrong).mistake != first


def test_a_function_that_prints_or_forgets_return_is_no_stub():
    for answer in (lambda x: print("here"), forgets_return):
        text = words_on("row_mean", answer)
        assert "It returned None. Is `return` missing?" in text
        assert "waits for your code" not in text
    assert "Your code printed:\n```\nhere" in words_on("row_mean", lambda x: print("here"))


def forgets_return(x):
    x.mean(1)


def test_an_error_takes_one_line_and_names_the_place():
    def stop(x):
        raise RuntimeError("one\n  two")

    text = words_on("row_mean", stop)
    assert "RuntimeError: one two (line " in text
    assert '`raise RuntimeError("one\\n  two")`' in text
    assert describe_error(KeyError()) == "It stopped with KeyError: no message"


def test_all_misnamed_parameters_are_listed():
    class Attention(nn.Module):
        def __init__(self, width, context_dim, heads):
            super().__init__()
            self.query = nn.Linear(width, width)

    text = words_on("attention", Attention)
    assert "are missing: to_k.weight, " in text
    assert "are unknown: query.bias, query.weight." in text
    assert "ValueError" not in text


def test_the_arguments_of_a_class_are_named():
    class Attention(nn.Module):
        def __init__(self, dim):
            super().__init__()

    expected = "Name the arguments of __init__: width, context_dim, heads."
    assert expected in words_on("attention", Attention)


def test_a_result_or_an_object_is_no_answer():
    text = words_on("row_mean", torch.ones(2))
    assert 'Give the function itself: check("row_mean", row_mean)' in text
    assert "Give the class itself" in words_on("attention", nn.Identity())


def test_a_network_needs_one_t_for_each_sample():
    x = torch.ones(2, 1, 1, 1)
    with pytest.raises(ValueError, match="network got one number as t"):
        build_network(1.0)(x, 3.0, x[0])


def test_what_differs_in_an_object_has_a_name():
    assert difference({"std": 1.0}, {"std": 2.0}) == "std: the number is 1, expected 2."


def test_nothing_is_printed_while_the_picture_is_drawn(capsys):
    exercise = find_exercise("attend")

    def talks(*arguments):
        print("here")
        return exercise.solution(*arguments)

    draw_with(exercise, talks)
    assert "here" not in capsys.readouterr().out


def test_an_answer_that_overwrites_its_input_is_refused():
    def row_mean(x):
        x *= 1
        return x.mean(dim=1)

    verdict = judge(find_exercise("row_mean"), row_mean)
    assert not verdict.has_passed
    assert "overwrites its input" in describe_verdict(verdict)
