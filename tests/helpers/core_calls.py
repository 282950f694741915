"""Which functions of the core run while something is drawn, and all solutions as parts."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minisd
from minisd.exercises.exercise import all_exercises

CORE = Path(minisd.__file__).parent


def core_calls(run: Callable[[], Any]) -> set[str]:
    """The functions of minisd/*.py that run during a call, such as "attention.attend".

    Functions inside a function, and comprehensions, count as the function that holds them.
    """
    seen = set()

    def watch(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.parent == CORE:
            seen.add(f"{path.stem}.{qualified_name(frame)}")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(before)
    return seen


def qualified_name(frame) -> str:
    """The name of the function with its class. A frame of Python 3.10 knows only the function."""
    code = frame.f_code
    name = getattr(code, "co_qualname", None)
    if name is None:
        owner = type(frame.f_locals["self"]).__name__ + "." if "self" in frame.f_locals else ""
        name = owner + code.co_name
    return name.split(".<locals>")[0]


def parts_of_solutions(student: str = "") -> dict[str, Any]:
    """What install_parts() takes: every part of the core that an exercise replaces.

    A method comes before its class, so that it is put into our class, not into the student's.
    """
    parts = {}
    for exercise in all_exercises():
        answer = exercise.with_constants(exercise.solution, student)
        parts |= {name: adapt(answer) for name, adapt in exercise.replaces.items()}
    return dict(sorted(parts.items(), key=lambda part: -part[0].count(".")))
