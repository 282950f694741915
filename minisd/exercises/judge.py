"""Judge an answer: run it on hidden inputs, and compare its results with those of the solution."""

import contextlib
import io
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minisd.exercises.calls import describe_error, run_answer
from minisd.exercises.exercise import Exercise, Stage

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
    if is_from_package(answer):
        own = Failure(
            "This is minisd's own code. Run the cell with your own code, then check again."
        )
        results = [StageResult(stage, own) for stage in exercise.stages]
        return Verdict(exercise, results, mistake=None, begun=True)
    hidden = draw_inputs(exercise, seed)
    output = io.StringIO()
    with catch_output(output):
        got = run_stages(answer, exercise, hidden)
    return judge_results(exercise, hidden, got, student, output.getvalue())


def run_stages(answer: Callable, exercise: Exercise, hidden: list[list]) -> list:
    """The result of every stage, or a Failure. After a stage that ran too long, none is tried."""
    results: list = []
    for stage, arguments in zip(exercise.stages, hidden, strict=True):
        last = results[-1] if results else None
        endless = isinstance(last, Failure) and last.endless
        results.append(last if endless else run_on_inputs(answer, stage, arguments))
    return results


def is_from_package(answer: Callable) -> bool:
    """Whether the answer is a part of minisd. The notebook may import one of the same name."""
    module = str(getattr(answer, "__module__", ""))
    return module.startswith("minisd.") and not module.startswith("minisd.exercises.specs.")


def draw_inputs(exercise: Exercise, seed: int) -> list[list]:
    """The hidden arguments of every stage."""
    generators = [torch.Generator().manual_seed(seed * 1000 + i) for i in range(99)]
    return [stage.inputs(g) for stage, g in zip(exercise.stages, generators, strict=False)]


def judge_results(
    exercise: Exercise, hidden: list[list], got: list, student: str, printed: str = ""
) -> Verdict:
    """Compare the results of an answer with those of the solution, and name the mistake.

    hidden: the arguments of every stage    got: the result of every stage, or a Failure
    """
    right = run_all(exercise, exercise.solution, hidden, student)
    results = []
    for stage, mine, wanted in zip(exercise.stages, got, right, strict=True):
        problem = mine if isinstance(mine, Failure) else None
        problem = problem or find_difference(mine, wanted, stage.tolerance)
        results.append(StageResult(stage, problem))
    begun = not all(is_stub_result(one) for one in got)
    mistake = "If it is there, end it with `return`." if not begun and got[0] is None else None
    if begun and any(one.problem for one in results):
        mistake = name_mistake(exercise, hidden, got, results, student)
    return Verdict(exercise, results, mistake, begun, printed)


def run_all(exercise: Exercise, answer: Callable, hidden: list[list], student: str) -> list:
    """The results of the solution or of a mistake on the hidden arguments."""
    whole = exercise.with_constants(answer, student)
    with catch_output(io.StringIO()):
        return run_stages(whole, exercise, hidden)


def run_on_inputs(answer: Callable, stage: Stage, arguments: list) -> Any:
    """The result of one stage, or a Failure. A student's code may raise anything."""
    try:
        with time_limit(SECONDS):
            return run_answer(answer, stage.call, arguments)
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
    if isinstance(result, list):
        return all(is_stub_result(one) for one in result)
    empty = ("has no parameters yet.", "has no attributes yet.")
    stub = isinstance(result, Failure) and result.sentence.endswith(empty)
    return result is None or result is ... or stub


# ---- comparing -------------------------------------------------------------------------------


def find_difference(got: Any, wanted: Any, tolerance: float) -> Difference | None:
    """The first difference between two results. None: they are equal."""
    mine, right = list_leaves(got), list_leaves(wanted)
    if len(mine) != len(right):
        return Difference(f"It returned {describe(got)}, expected {describe(wanted)}.")
    for (own_path, one), (path, other) in zip(mine, right, strict=True):
        if own_path != path:
            paths = f"{own_path or describe(got)}, expected {path or describe(wanted)}"
            return Difference(f"It returned {paths}.")
        if wrong := leaf_difference(one, other, path, tolerance):
            return wrong
    return None


def list_leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """The tensors, numbers and texts in nested lists, tuples and dictionaries, each with its path.

    A list of numbers counts as one tensor.
    """
    if isinstance(tree, np.ndarray | np.generic):
        tree = torch.as_tensor(tree)
    if isinstance(tree, list | tuple) and tree and all(type(one) in (int, float) for one in tree):
        return [(path, torch.tensor(tree, dtype=torch.float64))]
    if isinstance(tree, dict):
        pairs = [(f"[{key!r}]", tree[key]) for key in sorted(tree, key=repr)]
    elif isinstance(tree, list | tuple):
        pairs = [(f"[{index}]", value) for index, value in enumerate(tree)]
    else:
        return [(path, tree)]
    return [leaf for key, value in pairs for leaf in list_leaves(value, path + key)]


def leaf_difference(got: Any, wanted: Any, path: str, tolerance: float) -> Difference | None:
    """The difference between two tensors, numbers or texts."""
    if isinstance(wanted, str | bytes | None) or isinstance(got, str | bytes | None):
        words = f"got {describe(got)}, expected {describe(wanted)}."
        same = type(got) is type(wanted) and got == wanted
        return None if same else Difference(add_place(path, words))
    try:
        mine, right = torch.as_tensor(got).detach().double(), torch.as_tensor(wanted).double()
    except (TypeError, ValueError, RuntimeError):
        return Difference(add_place(path, f"expected numbers, got {describe(got)}."))
    if mine.shape != right.shape:
        shapes = f"the shape is {list(mine.shape)}, expected {list(right.shape)}."
        return Difference(add_place(path, shapes))
    close = torch.isclose(mine, right, rtol=tolerance, atol=tolerance, equal_nan=True)
    if close.all():
        return None
    at = tuple((~close).nonzero()[0].tolist())
    where = f"the number at {list(at)}" if at else "the number"
    share = f" {(~close).float().mean():.0%} of the numbers differ." if close.numel() > 1 else ""
    one, other = format_numbers(mine[at].item(), right[at].item())
    words = f"{where} is {one}, expected {other}.{share}"
    return Difference(add_place(path, words), (mine, right))


def add_place(path: str, words: str) -> str:
    """A sentence that names the place in nested results. An empty path: there is one result."""
    return f"Result {path}: {words}" if path else words[0].upper() + words[1:]


def describe(result: Any) -> str:
    """A result in a few words, for a message."""
    if isinstance(result, Tensor):
        return f"a tensor of shape {list(result.shape)}"
    if isinstance(result, list | tuple | dict):
        return f"a {type(result).__name__} of {len(result)}"
    return shorten_repr(result)


def shorten_repr(value: Any) -> str:
    text = repr(value)
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

    The stages are compared in order, first those that failed. The mistake that gives the same
    results in most stages is chosen, but it must do so in the first stage that failed.
    """
    order = sorted(range(len(results)), key=lambda i: results[i].problem is None)
    most, best = 0, None
    for sentence, wrong in exercise.mistakes.items():
        answer = exercise.with_constants(wrong, student)
        same = (gives(answer, exercise.stages[i], hidden[i], got[i]) for i in order)
        count = len(list(takewhile(bool, same)))
        if count > most:
            most, best = count, sentence
    return best or name_relation(results[order[0]].problem)


def gives(answer: Callable, stage: Stage, arguments: list, got: Any) -> bool:
    """Whether the answer gives this result."""
    with catch_output(io.StringIO()):
        return are_equal(got, run_on_inputs(answer, stage, arguments), stage.tolerance)


def are_equal(got: Any, made: Any, tolerance: float) -> bool:
    if isinstance(got, Failure) or isinstance(made, Failure):
        return isinstance(got, Failure) and isinstance(made, Failure) and got == made
    return find_difference(got, made, tolerance) is None


def name_relation(problem: Failure | Difference | None) -> str | None:
    """A sentence about a simple relation between a wrong tensor and the right one."""
    if not isinstance(problem, Difference) or problem.tensors is None:
        return None
    got, wanted = (tensor.flatten() for tensor in problem.tensors)
    if len(got) < 3:
        return None
    if not got.isfinite().all():
        return "Some numbers are not finite. Look for a division by 0, or a very large exp()."
    if torch.allclose(got.sort().values, wanted.sort().values, rtol=1e-6):
        return "These are the right numbers in the wrong places. Check the order of the axes."
    if torch.allclose(got, wanted, rtol=1e-4, atol=1e-5):
        return "The numbers are nearly right. Look for float32, rounding, or a missing eps."
    ratio = (got / wanted).median()
    if torch.allclose(got, ratio * wanted, rtol=1e-6) and ratio != 0:
        return f"Each number is {ratio:.4g} times the right one."
    gap = (got - wanted).median()
    if torch.allclose(got - gap, wanted, rtol=1e-6):
        return f"Each number is the right one plus {gap:.4g}."
    return None
