"""The questions of all lessons, with their answers, as they stand in the committed notebooks."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

ASKED = re.compile(r"\*\*Predict\.\*\* (.+)")
OPTION = re.compile(r"- \*\*(\w)\)\*\* (.+)")
ANSWER = re.compile(r"The answer is \*\*(\w)\) .+?\*\* (.+)")
OTHER = re.compile(r"- (\w)\) (.+)")


@dataclass(frozen=True)
class LessonQuestion:
    """A question of a lesson.

    lesson: the number of the lesson, for example "07"
    words: the question
    options: letter -> text of the option
    answer: the letter of the right option
    sentences: letter -> why this option is right or wrong
    """

    lesson: str
    words: str
    options: dict[str, str]
    answer: str
    sentences: dict[str, str]


def questions_of(notebook: Path) -> list[LessonQuestion]:
    """The questions of one notebook that was run, in its order.

    Raises ValueError if the notebook has no outputs.
    """
    shown = shown_texts(notebook)
    asked = [text for text in shown if ASKED.match(text)]
    answers = [text for text in shown if ANSWER.match(text)]
    if not asked or len(asked) != len(answers):
        raise ValueError(f"{notebook} has no questions with answers: it needs its outputs.")
    found = []
    for question, answer in zip(asked, answers, strict=True):
        right, why = ANSWER.findall(answer)[0]
        found.append(
            LessonQuestion(
                notebook.name.split("_")[0],
                ASKED.findall(question)[0],
                dict(OPTION.findall(question)),
                right,
                dict(OTHER.findall(answer)) | {right: why},
            )
        )
    return found


def all_questions(folder: Path) -> list[LessonQuestion]:
    """The questions of all lessons in a folder, in reading order."""
    notebooks = sorted(folder.glob("*.ipynb"), key=lambda path: path.name.replace("0b_", "00b_"))
    return [question for notebook in notebooks for question in questions_of(notebook)]


def shown_texts(notebook: Path) -> list[str]:
    """Every Markdown text that the cells of a notebook have shown."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return ["".join(data["text/markdown"]) for data in outputs if "text/markdown" in data]
