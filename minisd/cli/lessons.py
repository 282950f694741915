"""minisd lessons: copies the course to the student's own folder, and opens it in Jupyter."""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from minisd.cli.messages import print_results
from minisd.config import NOTEBOOKS

OWN_OPTIONS = ("--no-open", "--with-outputs", "--answers", "--quiz", "-h", "--help")
GIFT_FILE, QTI_FILE = "quiz.gift", "quiz-qti.zip"


def add_lessons(command: argparse.ArgumentParser) -> None:
    """Add the options of `minisd lessons`."""
    add = command.add_argument
    command.usage = (
        "minisd lessons [FOLDER] [--no-open] [--with-outputs] [options of Jupyter]\n"
        "       minisd lessons --answers [FOLDER ...]\n"
        "       minisd lessons --quiz FOLDER"
    )
    place = "where to copy the lessons (minisd-lessons)"
    add("folder", nargs="?", type=Path, default=Path("minisd-lessons"), help=place)
    add("--no-open", action="store_true", help="only copy the lessons")
    outputs = "keep the figures and numbers; without this option, the student makes them"
    add("--with-outputs", action="store_true", help=outputs)
    answers = "list what students chose in the lessons' questions; each folder is a student's"
    add("--answers", nargs="*", type=Path, metavar="FOLDER", help=answers)
    quiz = f"write the questions of all lessons to {GIFT_FILE} (Moodle) and {QTI_FILE} (Canvas)"
    add("--quiz", type=Path, metavar="FOLDER", help=quiz)
    command.epilog = (
        "All other options, and all words after --, go to Jupyter. Name the folder first: minisd "
        "lessons FOLDER --port 9999 --no-browser"
    )


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the words for minisd and the words for Jupyter.

    The words for Jupyter begin after --, or at the first option that minisd does not know. Only the
    command `minisd lessons` has words for Jupyter.

    >>> split_arguments(["lessons", "mine", "--port", "9999"])
    (['lessons', 'mine'], ['--port', '9999'])
    """
    if arguments[:1] != ["lessons"]:
        return arguments, []
    for at, word in enumerate(arguments):
        if word == "--":
            return arguments[:at], arguments[at + 1 :]
        if word.startswith("-") and word not in OWN_OPTIONS:
            return arguments[:at], arguments[at:]
    return arguments, []


def lessons_command(options: argparse.Namespace, passed_on: list[str]) -> None:
    """Copy the notebooks and open them in Jupyter, or list answers, or write a quiz.

    A notebook that the student changed is kept.
    """
    if options.answers is not None or options.quiz:
        if passed_on:
            raise ValueError(f"{passed_on[0]!r} does not go with --answers or --quiz.")
        lines = write_quiz(options.quiz) if options.quiz else list_answers(options.answers or [])
        return print_results(*lines)
    for line in copy_notebooks(NOTEBOOKS, options.folder, options.with_outputs):
        print_results(line)
    if options.no_open:
        return
    installed = [name for name in ("jupyterlab", "notebook") if find_spec(name)]
    if not installed:
        raise ValueError(
            f"the lessons are in {options.folder}, but Jupyter is not installed: "
            "run pip install jupyter, or open them in an editor that shows notebooks."
        )
    command = [sys.executable, "-m", installed[0], str(options.folder), *passed_on]
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"the lessons are in {options.folder}, but Jupyter stopped with exit status "
            f"{error.returncode}: read its messages above, or open them in another editor."
        ) from error


def copy_notebooks(source: Path, folder: Path, with_outputs: bool = False) -> list[str]:
    """Copy every notebook that the folder lacks. Returns lines to print about the copies.

    Existing files are kept, whether the student or an older minisd wrote them. A copy gets its name
    only when the copy is complete. So after a crash, the next call makes the incomplete copy again.

    with_outputs: False: the copies have no figures and no answers to the questions

    Raises ValueError if there are no notebooks, or if a copy cannot be written.
    """
    from minisd.files.whole_files import make_folder, sweep, written_whole

    notebooks = sorted(source.glob("*.ipynb"))
    if not notebooks:
        raise ValueError(f"there are no notebooks in {source}: clone the repository again.")
    make_folder(folder)
    sweep(folder)
    lines = []
    for notebook in notebooks:
        own, whole = folder / notebook.name, notebook.read_bytes()
        content = whole if with_outputs else without_outputs(whole)
        if not own.exists():
            with written_whole(own) as unfinished:
                unfinished.write_bytes(content)
            lines.append(f"{own}")
        elif not own.is_file() or own.read_bytes() not in (content, whole):
            lines.append(f"{own} is changed or old, and was kept: move it to get a new copy")
    return lines or [f"all lessons are in {folder} already"]


def without_outputs(content: bytes) -> bytes:
    """The same notebook, as if its cells had not been run."""
    notebook = json.loads(content)
    for cell in notebook.get("cells", []):
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()


def write_quiz(folder: Path) -> list[str]:
    """Write the questions of all lessons for Moodle and for Canvas. Returns the files' names."""
    from minisd.files.whole_files import make_folder, written_whole
    from minisd.teaching.questions import all_questions
    from minisd.teaching.quiz import gift, qti

    questions = all_questions(NOTEBOOKS)
    make_folder(folder)
    for name, content in {GIFT_FILE: gift(questions).encode(), QTI_FILE: qti(questions)}.items():
        with written_whole(folder / name) as unfinished:
            unfinished.write_bytes(content)
    return [f"{folder / GIFT_FILE}", f"{folder / QTI_FILE}"]


def list_answers(folders: list[Path]) -> list[str]:
    """What the students chose, question by question.

    folders: one folder for each student: the learner's folder (mine), or a folder that holds it.
        An empty list: the folder of the person who asks

    Raises ValueError if a folder has no predictions.
    """
    from minisd.exercises.learner_folder import learner_folder
    from minisd.teaching.predict import CHOICES_FILE, read_predictions
    from minisd.teaching.questions import all_questions

    chosen = []
    for folder in folders or [learner_folder(), Path("minisd-lessons")]:
        found = [one for one in (folder, folder / "mine") if (one / CHOICES_FILE).exists()]
        if folders and not found:
            raise ValueError(f"{folder} has no {CHOICES_FILE}: no question was answered there.")
        chosen += [read_predictions(one) for one in found]
    if not chosen:
        raise ValueError("no question was answered here. Name the folder of a student.")
    lessons = {question.words: question.lesson for question in all_questions(NOTEBOOKS)}
    asked = dict.fromkeys(words for one in chosen for words in one)
    lines = []
    for words in sorted(asked, key=lambda words: lessons.get(words, "~").replace("0b", "00b")):
        answers = [one[words] for one in chosen if words in one]
        right = sum(one["chosen"] == one["answer"] for one in answers)
        lines.append(f"{lessons.get(words, 'another lesson')}  {words}")
        lines.append(f"    {right} of {len(answers)} right: {answers[0]['answer']}")
        wrong = [one["chosen"] for one in answers if one["chosen"] != one["answer"]]
        lines += [f"    {wrong.count(text)} chose: {text}" for text in dict.fromkeys(wrong)]
    return lines
