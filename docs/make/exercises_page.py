"""Write docs/exercises.md, the list of all exercises.

    python -m docs.make.exercises_page            # the page
    python -m docs.make.exercises_page --measure  # also measure how long each check takes

The seconds are kept in docs/exercises.json, because they differ from run to run.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

from minisd.exercises.check import check, draw_both
from minisd.exercises.exercise import Exercise, all_exercises
from minisd.exercises.notebooks import lesson_file
from minisd.files.whole_files import write_text

DOCS = Path(__file__).parents[1]
PAGE, SECONDS = DOCS / "exercises.md", DOCS / "exercises.json"

HEAD = """# Exercises

{count} exercises, {points} points, about {hours} hours. `minisd exercises` copies them to a folder,
as one notebook for each lesson. `minisd exercises next` shows the next one, also without Jupyter.
`python -m docs.make.exercises_page` writes this page.

The stars say how difficult an exercise is: ★ is one line, ★★★★ is a whole network. *Seconds* is how
long `check` takes for a right answer on one core, with the picture that it draws. *Yours* marks the
exercises whose constants depend on the student's id. *Part* marks the exercises whose answer
becomes a part of the student's own model (`minisd mine`).
"""
TABLE = """
| exercise | what | difficulty | minutes | points | seconds | yours | part |
|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The text of docs/exercises.md."""
    every = all_exercises()
    seconds = json.loads(SECONDS.read_text(encoding="utf-8"))
    hours = round(sum(one.minutes for one in every) / 60)
    text = HEAD.format(count=len(every), points=sum(one.points for one in every), hours=hours)
    for lesson in dict.fromkeys(one.lesson for one in every):
        title = lesson_file(lesson).removesuffix("_exercises").replace("_", " ")
        text += f"\n## {title}\n{TABLE}"
        of_lesson = all_exercises(lesson)
        text += "".join(row(one, seconds.get(one.name)) for one in of_lesson)
        text += "\nWhat `check` names when it goes wrong:\n\n"
        text += "".join(f"- `{one.name}`: {' '.join(one.mistakes)}\n" for one in of_lesson)
    return text


def row(one: Exercise, seconds: float | None) -> str:
    facts = ["★" * one.difficulty, one.minutes, one.points]
    time_taken = "" if seconds is None else f"{seconds:.1f}"
    marks = ["yes" if one.constants else "", "yes" if one.replaces else ""]
    cells = [f"`{one.name}`", one.title, *facts, time_taken, *marks]
    return f"| {' | '.join(map(str, cells))} |\n"


def measure() -> dict[str, float]:
    """The seconds of check() for the solution of each exercise, with the picture it draws."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.environ["MINISD_MINE"] = folder
        for one in all_exercises():
            answer = one.with_constants(one.solution, "")
            start = time.perf_counter()
            check(one.name, answer, "")
            if one.draw:
                draw_both(one, answer, "")
            seconds[one.name] = round(time.perf_counter() - start, 2)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="also measure the seconds")
    if parser.parse_args().measure:
        write_text(SECONDS, json.dumps(measure(), indent=1) + "\n")
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
