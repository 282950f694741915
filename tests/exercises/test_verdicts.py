"""What check() says about answers as students write them."""

import pytest
import torch
from torch import nn

from minisd.exercises.calls import build_network, describe_error
from minisd.exercises.check import describe_verdict, draw_with
from minisd.exercises.exercise import find_exercise
from minisd.exercises.judge import Difference, find_difference, judge, name_relation


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
    assert "**Your numbers are float32" in words_on("row_mean", lambda x: x.float().mean(1))
    wanted = torch.rand(5, dtype=torch.float64)
    near = name_relation(Difference("", (wanted * (1 + 1e-7), wanted)))
    assert near.startswith("The numbers are nearly right.")


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
