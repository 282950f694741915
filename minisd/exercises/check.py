"""check(): try an answer, show what is right and what is not, and give hints."""

import io
import os
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor, sub

import minisd
from minisd.exercises.exercise import Exercise, find_exercise
from minisd.exercises.install import install_parts
from minisd.exercises.judge import Difference, Verdict, catch_output, judge
from minisd.exercises.learner_folder import record_points, student_id
from minisd.exercises.mine import save_answer
from minisd.exercises.notebooks import hint_call, points_text, solution_source
from minisd.teaching import plot
from minisd.teaching.plot.canvas import in_notebook, say

HEAT_SIZE = 64  # the heat map shows at most this many rows and columns


def check(name: str, answer: Callable, student: str | None = None) -> None:
    """Try an answer on hidden inputs, and show the result.

    A right answer is saved to the student's folder (mine.py), and its picture is shown.

    name: the name of the exercise, for example "attend"
    answer: the student's function or class
    student: the student's id, which decides the constants of some exercises. None: student_id()

    Raises ValueError if there is no such exercise.
    """
    exercise = find_exercise(name)
    if os.environ.get("NBGRADER_EXECUTION") == "autograde":
        return say("nbgrader is grading. It takes the points from the cell with score().")
    student = student_id() if student is None else student
    verdict = judge(exercise, answer, student)
    say(describe_verdict(verdict))
    record_points(name, verdict.points)
    if verdict.has_passed:
        show_passing(exercise, answer, student)
    else:
        show_heat(verdict)


def question(name: str, student: str | None = None) -> None:
    """Show the question of an exercise, with the constants of this student."""
    exercise = find_exercise(name)
    say(exercise.question_for(student_id() if student is None else student))


def hint(name: str, number: int = 1) -> None:
    """Show hint 1, 2 or 3 of an exercise. Raises ValueError if there is no such hint."""
    if number not in (1, 2, 3):
        raise ValueError(f"there is no hint {number}. Choose 1, 2 or 3.")
    say(f"**Hint {number} of 3.** {find_exercise(name).hints[number - 1]}")


def solution(name: str) -> None:
    """Show the code that solves the exercise."""
    say(f"```python\n{solution_source(find_exercise(name), student_id())}\n```")


def describe_verdict(verdict: Verdict) -> str:
    """What check() says about an answer, as Markdown."""
    exercise = verdict.exercise
    label = f"**{exercise.name}**"
    if not verdict.begun:
        more = f" {verdict.mistake}" if verdict.mistake else ""
        return f"{label} waits for your code in place of the three dots.{more}"
    score = f"{verdict.points} of {exercise.points} points"
    if verdict.has_passed:
        return with_prints(f"{label} is right: {score}. {exercise.passing}", verdict)
    lines = [f"{label} is not right yet: {score}.", ""]
    before = ""
    for one in verdict.results:
        problem = one.problem.sentence if one.problem else ""
        again = problem == before and "It stopped" in problem
        words = ". The same error." if again else f". {problem}" * bool(problem)
        points = points_text(one.stage.points)
        lines.append(f"- {'✗' if problem else '✓'} {one.stage.title} ({points}){words}")
        before = problem
    more = hint_call(exercise.name)
    lines += ["", f"**{verdict.mistake}** {more}" if verdict.mistake else more]
    return with_prints("\n".join(lines), verdict)


def with_prints(text: str, verdict: Verdict) -> str:
    """The text, and below it what the answer printed."""
    printed = verdict.printed.strip()
    return f"{text}\n\nYour code printed:\n```\n{printed[:2000]}\n```" if printed else text


def show_heat(verdict: Verdict) -> None:
    """Show where the first wrong matrix differs from the right one. Does so only in a notebook."""
    problems = [one.problem for one in verdict.results]
    pairs = [one.tensors for one in problems if isinstance(one, Difference) and one.tensors]
    if not (verdict.begun and in_notebook() and pairs and pairs[0][0].ndim > 1):
        return
    figure = plot.heat(as_matrix(sub(*pairs[0]).abs()), label="error")
    plot.show(figure, alt="A heat map of the errors: dark where your numbers are right.")


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor as a matrix: the largest number over all axes but the last two."""
    matrices = tensor.nan_to_num(posinf=1e6).reshape(-1, *tensor.shape[-2:])
    return matrices.amax(dim=0)[:HEAT_SIZE, :HEAT_SIZE]


def show_passing(exercise: Exercise, answer: Callable, student: str) -> None:
    """Save a right answer, and show the picture that the mini draws with it, next to ours."""
    if exercise.replaces or exercise.is_reused:
        say(save_answer(exercise, answer, student))
    if exercise.draw and in_notebook():
        pair, titles = draw_both(exercise, answer, student), ["with our part", "with your part"]
        alt = f"Two pictures: one with our {exercise.name}, one with yours."
        plot.show(plot.pictures([*pair], titles), alt=alt)


def portrait(name: str, answer: Callable, student: str | None = None) -> None:
    """Draw with an answer, right or wrong, and show the picture next to the right one.

    So a student sees what a mistake does to a picture. If the mini cannot draw with the answer,
    portrait() says why.

    Raises ValueError if the exercise has no picture.
    """
    exercise = find_exercise(name)
    if exercise.draw is None:
        raise ValueError(f"{name} has no picture. Choose an exercise that is a part of the model.")
    try:
        pair = draw_both(exercise, answer, student_id() if student is None else student)
    except Exception as error:
        misfit = "does not hold exactly the tensors" in str(error)
        why = "its parameters have other names or shapes than ours." if misfit else repr(error)
        return say(f"With your answer, the mini cannot draw: {why}")
    figure = plot.pictures([*pair], ["the right picture", "a portrait of your answer"])
    where = "" if in_notebook() else " Call portrait() in a notebook to see them."
    plot.show(figure, alt=f"The right picture, and the picture with your {name}.{where}")


def draw_both(exercise: Exercise, answer: Callable, student: str) -> tuple[Any, Any]:
    """The picture with the solution, and the picture with the answer. Both models are new."""
    right = exercise.with_constants(exercise.solution, student)
    return draw_with(exercise, right), draw_with(exercise, answer)


def draw_with(exercise: Exercise, answer: Callable) -> Image.Image | Tensor:
    """What the exercise draws with this answer in the mini."""
    assert exercise.draw is not None, f"{exercise.name} has no picture"
    targets = exercise.replaces if exercise.in_picture is None else exercise.in_picture
    parts = {name: adapt(answer) for name, adapt in targets.items()}
    with install_parts(parts), catch_output(io.StringIO()):
        return exercise.draw(minisd.load("mini"))


def draw_cat(sd: Any) -> Image.Image:
    """The usual picture of an exercise: a blue cat on a red background."""
    return sd.txt2img("a blue cat on a red background", steps=12, seed=1)
