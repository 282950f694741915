"""Judge an answer: run it on hidden inputs, and compare its results with those of the solution."""

import contextlib
import inspect
import io
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minisd.exercises.calls import IN_LINE, build_generator, describe_error, run_answer
from minisd.exercises.exercise import Exercise, Stage

STUB = (lambda: ...).__code__
OTHER_CONSTANTS = "These are not your constants. `question()` shows the question with yours."
SECONDS = 10  # for one stage. The solution takes much less


@dataclass(frozen=True)
class Failure:
    """An answer that gave no result: it raised an error, or ran too long (endless)."""

    sentence: str
    endless: bool = False


@dataclass(frozen=True)
class Difference:
    """How a result differs from the right one.

    sentence: the difference in words: types and shapes, or the first number that differs
    tensors: the result and the right result, if their shapes are equal
    """

    sentence: str
    tensors: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class StageResult:
    """What one stage gave. problem: None if the result is right."""

    stage: Stage
    problem: Failure | Difference | None


@dataclass(frozen=True)
class Verdict:
    """What check() found.

    mistake: a sentence that names the mistake. None: no known mistake gives these results
    begun: False if the answer is still the stub
    printed: what the answer printed
    """

    exercise: Exercise
    results: list[StageResult]
    mistake: str | None
    begun: bool
    printed: str = ""

    @property
    def points(self) -> int:
        return sum(one.stage.points for one in self.results if one.problem is None)

    @property
    def has_passed(self) -> bool:
        return all(one.problem is None for one in self.results)


def judge(exercise: Exercise, answer: Callable, student: str = "", seed: int = 0) -> Verdict:
    """Run every stage. The hidden inputs and the student's constants decide what is right.

    seed: chooses the hidden inputs
    """
    if misuse := find_misuse(exercise, answer):
        results = [StageResult(stage, Failure(misuse)) for stage in exercise.stages]
        return Verdict(exercise, results, mistake=None, begun=True)
    hidden, output = draw_inputs(exercise, seed), io.StringIO()
    with catch_output(output):
        got = run_stages(answer, exercise, hidden)
    return judge_results(exercise, hidden, got, student, output.getvalue())


def run_stages(answer: Callable, exercise: Exercise, hidden: list[list]) -> list:
    """The result of every stage, or a Failure. After a stage that ran too long, none is tried."""
    results: list = []
    for stage, arguments in zip(exercise.stages, hidden, strict=True):
        endless = results and isinstance(results[-1], Failure) and results[-1].endless
        word = last_word(exercise)
        results.append(results[-1] if endless else run_on_inputs(answer, stage, arguments, word))
    return results


def last_word(exercise: Exercise) -> str:
    """ "yield" if the solution is a generator function, otherwise "return"."""
    return "yield" if inspect.isgeneratorfunction(exercise.solution) else "return"


def find_misuse(exercise: Exercise, answer: Any) -> str | None:
    """What to say about an answer that is not the student's function or class."""
    module, name = str(getattr(answer, "__module__", "")), exercise.solution.__name__
    if module.startswith("minisd.") and not module.startswith("minisd.exercises.specs."):
        return "This is minisd's own code. Run the cell with your own code, then check again."
    kind = "class" if isinstance(exercise.solution, type) else "function"
    if isinstance(answer, str):
        return f'Give the {kind} itself: check("{exercise.name}", {name}), without the quotes.'
    if not callable(answer) or (kind == "class" and isinstance(answer, nn.Module)):
        return f'Give the {kind} itself: check("{exercise.name}", {name}), without () after {name}.'
    return None


def draw_inputs(exercise: Exercise, seed: int) -> list[list]:
    """The hidden arguments of every stage."""
    return [one.inputs(build_generator(seed * 1000 + i)) for i, one in enumerate(exercise.stages)]


def judge_results(
    exercise: Exercise, hidden: list[list], got: list, student: str, printed: str = ""
) -> Verdict:
    """Compare the results of an answer with those of the solution, and name the mistake.

    hidden: the arguments of every stage    got: the result of every stage, or a Failure
    """
    right = run_all(exercise, exercise.solution, hidden, student)
    results = []
    for stage, mine, wanted in zip(exercise.stages, got, right, strict=True):
        failed = mine if isinstance(mine, Failure) else None
        results.append(StageResult(stage, failed or find_difference(mine, wanted, stage.tolerance)))
    begun = bool(printed.strip()) or not all(is_stub_result(one) for one in got)
    word = last_word(exercise)
    mistake = f"If it is there, `{word}` is missing." if not begun and got[0] is None else None
    if begun and any(one.problem for one in results):
        mistake = name_mistake(exercise, hidden, got, results, student)
    return Verdict(exercise, results, mistake, begun, printed)


def run_all(exercise: Exercise, answer: Callable, hidden: list[list], student: str) -> list:
    """The results of the solution or of a mistake on the hidden arguments."""
    whole = exercise.with_constants(answer, student)
    with catch_output(io.StringIO()):
        return run_stages(whole, exercise, hidden)


def run_on_inputs(answer: Callable, stage: Stage, arguments: list, word: str = "return") -> Any:
    """The result of one stage, or a Failure. A student's code may raise anything.

    word: what is missing if the answer returns None: last_word()
    """
    try:
        with time_limit(SECONDS):
            result = run_answer(answer, stage.call, arguments)
        if result is None and len(getattr(answer, "__code__", STUB).co_code) > len(STUB.co_code):
            return Failure(f"It returned None. Is `{word}` missing?")
        return result
    except (Exception, SystemExit) as error:
        return Failure(describe_error(error), endless=isinstance(error, TimeoutError))


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError if the code takes longer. Windows has no SIGALRM: there, it may."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"it ran longer than {seconds} seconds. Look for a loop without an end.")

    try:
        before = signal.signal(signal.SIGALRM, stop)
    except (AttributeError, ValueError):  # ValueError: not the main thread
        yield
        return
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def catch_output(output: io.StringIO) -> Iterator[None]:
    """Catch everything that the code prints, and its warnings and progress bars."""
    out, err = contextlib.redirect_stdout(output), contextlib.redirect_stderr(output)
    with out, err, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_stub_result(result: Any) -> bool:
    """Whether a stage gave nothing, as the stub does."""
    if isinstance(result, list | dict):
        return all(is_stub_result(one) for one in list_items(result).values())
    empty = ("has no parameters yet.", "has no attributes yet.")
    stub = isinstance(result, Failure) and result.sentence.endswith(empty)
    return result is None or result is ... or stub


# ---- comparing -------------------------------------------------------------------------------


def find_difference(got: Any, wanted: Any, most: float, path: str = "") -> Difference | None:
    """The first difference between two results. None: they are equal.

    most: the largest relative and absolute error
    path: the place of the results in nested lists and dictionaries
    """
    mine, right = join_numbers(got), join_numbers(wanted)
    if isinstance(mine, Tensor) and isinstance(wanted, list | tuple) and mine.ndim == 0:
        return Difference(add_place(path, f"it returned one number, expected {len(wanted)}."))
    if isinstance(mine, Tensor) and isinstance(right, Tensor):
        return tensor_difference(mine, right, most, path)
    items, needed = list_items(mine), list_items(right)
    if items.keys() != needed.keys() or not needed:
        words = f"{'got' if path else 'it returned'} {describe(got)}, expected {describe(wanted)}."
        same = type(mine) is type(right) and not items and mine == right
        return None if same else Difference(add_place(path, words))
    for key, value in needed.items():
        place = key if isinstance(key, str) and not path else f"{path or 'Result '}[{key!r}]"
        if wrong := find_difference(items[key], value, most, place):
            return wrong
    return None


def join_numbers(tree: Any) -> Any:
    """A tensor, a number or a list of numbers as one float64 tensor. The rest stays as it is."""
    if isinstance(tree, list | tuple) and tree:
        parts = [join_numbers(one) for one in tree]
        single = all(isinstance(one, Tensor) and one.ndim == 0 for one in parts)
        return torch.stack(parts) if single else tree
    numeric = isinstance(tree, np.ndarray | np.generic) and tree.dtype.kind in "biuf"
    if isinstance(tree, int | float | Tensor) or numeric:
        return torch.as_tensor(tree, dtype=torch.float64).detach()
    return tree


def list_items(tree: Any) -> dict[Any, Any]:
    """What a list, a tuple or a dictionary holds, by index or key."""
    items = dict(enumerate(tree)) if isinstance(tree, list | tuple) else tree
    return items if isinstance(items, dict) else {}


def tensor_difference(mine: Tensor, right: Tensor, most: float, path: str) -> Difference | None:
    """The difference between two tensors. most: the largest relative and absolute error"""
    if mine.shape != right.shape:
        words = f"the shape is {list(mine.shape)}, expected {list(right.shape)}."
        return Difference(add_place(path, words))
    close = torch.isclose(mine, right, rtol=most, atol=most, equal_nan=True)
    if close.all():
        return None
    at = tuple((~close).nonzero()[0].tolist())
    where = f"the number at {list(at)}" if at else "the number"
    share = f" {(~close).float().mean():.0%} of the numbers differ." if close.numel() > 1 else ""
    one, other = format_numbers(mine[at].item(), right[at].item())
    return Difference(add_place(path, f"{where} is {one}, expected {other}.{share}"), (mine, right))


def add_place(path: str, words: str) -> str:
    """A sentence that names the place in nested results. An empty path: there is one result."""
    return f"{path}: {words}" if path else words[0].upper() + words[1:]


def describe(result: Any) -> str:
    """A result in a few words, for a message."""
    if isinstance(result, Tensor):
        return f"a tensor of shape {list(result.shape)}"
    if isinstance(result, list | tuple | dict) and "tensor(" in repr(result):
        return f"a {type(result).__name__} of {len(result)} tensor{'s' * (len(result) > 1)}"
    text = repr(result)
    return text if len(text) <= 80 else f"{text[:77]}..."


def format_numbers(one: float, other: float) -> tuple[str, str]:
    """Two different numbers as texts, with enough digits to see the difference."""
    digits = next((n for n in (4, 7, 10) if f"{one:.{n}g}" != f"{other:.{n}g}"), 17)
    first, second = (f"{x:.0f}" if x.is_integer() else f"{x:.{digits}g}" for x in (one, other))
    return first, second


# ---- naming the mistake ----------------------------------------------------------------------


def name_mistake(
    exercise: Exercise, hidden: list[list], got: list, results: list[StageResult], student: str
) -> str | None:
    """The sentence of the mistake that gives the same results. None: no known mistake does.

    A mistake must give the same results in all stages that failed. Of several such mistakes, the
    one that gives the same results in most of the other stages is chosen.
    """
    first = next(i for i, one in enumerate(results) if one.problem is not None)
    problem, yields = results[first].problem, last_word(exercise) == "yield"
    returned = yields and isinstance(got[first], Tensor)
    wrong = {say: exercise.with_constants(one, student) for say, one in exercise.mistakes.items()}
    if exercise.constants and student:
        wrong[OTHER_CONSTANTS] = exercise.with_constants(exercise.solution, "")
    return (
        find_mistake(exercise, wrong, hidden, got, results, most=1e-12)
        or name_rounding(problem)
        or find_mistake(exercise, wrong, hidden, got, results, most=1e-5)  # in float32
        or name_relation(problem)
        or ("Use `yield`, once for each step." if returned else None)
        or ("Yield x alone." if yields and "tensors, expected a tensor" in str(problem) else None)
    )


def find_mistake(
    exercise: Exercise,
    wrong: dict[str, Callable],
    hidden: list[list],
    got: list,
    results: list[StageResult],
    most: float,
) -> str | None:
    """The sentence of the wrong answer that gives the same results, as name_mistake() says.

    wrong: sentence -> an answer with this mistake    most: the largest relative and absolute error
    """
    order = sorted(range(len(results)), key=lambda i: results[i].problem is None)
    failed, best = sum(one.problem is not None for one in results) - 1, None
    for sentence, answer in wrong.items():
        same = (gives(answer, exercise.stages[i], hidden[i], got[i], most) for i in order)
        count = sum(1 for _ in takewhile(bool, same))
        if count > failed:
            failed, best = count, sentence
    return best


def gives(answer: Callable, stage: Stage, arguments: list, got: Any, most: float) -> bool:
    """Whether the answer gives this result. An error is the same in any line."""
    with catch_output(io.StringIO()):
        made = run_on_inputs(answer, stage, arguments)
    if isinstance(got, Failure) and isinstance(made, Failure):
        return got.sentence.split(IN_LINE)[0] == made.sentence.split(IN_LINE)[0]
    return find_difference(got, made, max(most, stage.tolerance * (stage.tolerance > 1e-9))) is None


def name_rounding(problem: Failure | Difference | None) -> str | None:
    """A sentence about numbers that are not finite, or that are nearly right."""
    if not isinstance(problem, Difference) or problem.tensors is None:
        return None
    got, wanted = (tensor.flatten() for tensor in problem.tensors)
    if (wanted.isfinite() & ~got.isfinite()).any():
        return (
            "Some numbers are infinite, or not a number (nan). Look for a division by 0, a root "
            "of a negative number, a very large exp(), or infinity times 0."
        )
    if not torch.equal(got.isfinite(), wanted.isfinite()):
        return "The right result holds infinite numbers. Yours are finite there."
    got, wanted = got[wanted.isfinite()], wanted[wanted.isfinite()]
    if len(got) and (got - wanted).abs().max() <= 1e-5 * wanted.abs().max():
        return (
            "The numbers are nearly right. Look for float32 (compute with dtype=torch.float64), "
            "for rounding, or for a small constant such as eps."
        )
    return None


def name_relation(problem: Failure | Difference | None) -> str | None:
    """A sentence about a simple relation between a wrong tensor and the right one."""
    if not isinstance(problem, Difference) or problem.tensors is None:
        return None
    got, wanted = (tensor.flatten() for tensor in problem.tensors)
    if len(got) < 3:
        return None
    if torch.allclose(got.sort().values, wanted.sort().values, rtol=1e-6):
        return "These are the right numbers in the wrong places. Check the order of the axes."
    ratio = (got / wanted).median()
    if torch.allclose(got, ratio * wanted, rtol=1e-6) and ratio != 0:
        return f"In the first wrong case, each number is {ratio:.4g} times the right one."
    gap = (got - wanted).median()
    if torch.allclose(got - gap, wanted, rtol=1e-6):
        return f"In the first wrong case, each number is the right one plus {gap:.4g}."
    return None
