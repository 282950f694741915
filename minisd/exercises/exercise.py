"""What an exercise consists of. Each file in specs/ holds one Exercise, called EXERCISE."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from minisd.exercises.calls import Made, materialize

SPECS = Path(__file__).with_name("specs")


@dataclass(frozen=True)
class Stage:
    """One part of the check of an answer.

    title: what this stage tries, for example "one head, by hand"
    points: the points for it
    inputs: a function that draws the arguments with a random generator. The arguments are tensors,
        numbers, texts, and lists, tuples and dictionaries of these. Made(...) stands for what has
        to be built first (calls.py)
    call: how the answer is called: the name of a function in calls.py without "run_"
    tolerance: the largest error that is allowed, both relative and absolute
    """

    title: str
    points: int
    inputs: Callable[[torch.Generator], list]
    call: str = "function"
    tolerance: float = 1e-9


@dataclass(frozen=True)
class Exercise:
    """An exercise: its question, its solution, and what to say about an answer.

    name: the name that check() takes. It is also the name of the file in specs/
    lesson, place: the lesson that it belongs to, for example "07", and its place among the
        exercises of this lesson
    title: a few words
    question: Markdown. It may hold {constants} in braces
    solution: a function or a class. Its signature and its docstring are shown to the student. Its
        keyword-only arguments are the constants, and are not shown
    stages: the stages of the check, the easiest first
    hints: three hints, each one says more
    mistakes: a sentence that names a common mistake -> an answer that makes this mistake
    passing: what to say about a right answer, one or two sentences
    difficulty: 1 (one line) to 4 (a whole network)
    minutes: how long it takes a student who has read the lesson
    needs: the names of the exercises that it builds on
    given: the code that the student's notebook shows above the question: imports, and constants
    constants: a function that draws the constants of one student. The answers of two students then
        differ
    replaces: a name in the package, such as "minisd.attention.attend" -> a function that turns the
        answer into what replaces this name. A passed answer becomes a part of the student's model
    in_picture: the same, but only for the picture that check() shows. None: `replaces`
    draw: draws this picture with the mini. None: there is no picture
    in_lesson: whether the exercise stands in the lesson itself
    is_reused: whether later lessons run the answer. A passed answer is then saved (mine.yours)
    """

    name: str
    lesson: str
    place: int
    title: str
    question: str
    solution: Callable
    stages: tuple[Stage, ...]
    hints: tuple[str, str, str]
    mistakes: dict[str, Callable]
    passing: str
    difficulty: int
    minutes: int
    needs: tuple[str, ...] = ()
    given: str = ""
    constants: Callable[[Random], dict] | None = None
    replaces: dict[str, Callable] = field(default_factory=dict)
    in_picture: dict[str, Callable] | None = None
    draw: Callable[[Any], Any] | None = None
    in_lesson: bool = False
    is_reused: bool = False

    @property
    def points(self) -> int:
        return sum(stage.points for stage in self.stages)

    def constants_of(self, student: str) -> dict:
        """The constants of this student, a dictionary. It is empty if everybody has the same."""
        return self.constants(Random(f"{self.name} {student}")) if self.constants else {}

    def question_for(self, student: str) -> str:
        """The question, with the constants of this student."""
        constants = self.constants_of(student)
        return self.question.format_map(constants) if constants else self.question

    def with_constants(self, answer: Callable, student: str) -> Callable:
        """The solution or a mistake, with the constants of this student."""
        constants = self.constants_of(student)
        return partial(answer, **constants) if constants else answer


def find_exercise(name: str) -> Exercise:
    """The exercise of this name, in capitals or not. Raises ValueError if there is none."""
    small, names = name.lower(), sorted(path.stem for path in SPECS.glob("[a-z]*.py"))
    if small not in names:
        choice = " or ".join(get_close_matches(small, names, cutoff=0.5)) or "one in a notebook"
        raise ValueError(f"there is no exercise {name!r}. Did you mean {choice}?")
    return resolve_name(f"minisd.exercises.specs.{small}:EXERCISE")


def all_exercises(lesson: str | None = None) -> list[Exercise]:
    """All exercises in the order of the course, or those of a lesson: "07", "7", "08b"."""
    every = [find_exercise(path.stem) for path in SPECS.glob("[a-z]*.py")]
    order = sorted(every, key=lambda one: (lesson_order(one.lesson), one.place, one.name))
    return [one for one in order if lesson is None or one.lesson in (lesson, f"0{lesson}")]


def lesson_order(lesson: str) -> tuple[int, str]:
    """The place of a lesson in the course: 00, 0b (the primer), 01 … 08, 08b, 09 …"""
    return int(lesson.rstrip("b")), lesson


# ---- what specs need to draw inputs ----------------------------------------------------------


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Random numbers with variance 1, in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def draw_choice(generator: torch.Generator, choices: Sequence) -> Any:
    """One of the choices, drawn at random."""
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def as_namespace(config: Any) -> Made:
    """A config as an argument. The student's code reads its fields as it would read config's."""
    return Made("namespace", asdict(config))


def module_inputs(generator: torch.Generator, solution: Callable, init: dict, *given: Any) -> list:
    """The arguments of a stage with call="module": the class is built, gets weights, and runs.

    solution: the class of the solution. Its parameters say which weights to draw
    init: the arguments of the constructor, by name
    given: the arguments of forward()
    """
    return [init, draw_weights(generator, solution(**materialize(init))), *given]


def draw_weights(generator: torch.Generator, module: nn.Module) -> dict[str, Tensor]:
    """Random weights for every parameter. Weights that start at 0 or 1 would hide errors."""
    weights = {}
    for name, parameter in module.state_dict().items():
        noise = normal(generator, *parameter.shape)
        size = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
        norm = parameter.ndim == 1 and name.endswith("weight")
        weights[name] = noise / size**0.5 + norm
    return weights
