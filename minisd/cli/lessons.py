"""minisd lessons: copies the course to the student's own folder, and opens it in Jupyter."""

import argparse
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from minisd.cli.messages import print_results
from minisd.config import NOTEBOOKS

OWN_OPTIONS = ("--no-open", "-h", "--help")


def add_lessons(command: argparse.ArgumentParser) -> None:
    """Add the options of `minisd lessons`."""
    add = command.add_argument
    command.usage = "minisd lessons [FOLDER] [--no-open] [options of Jupyter]"
    place = "where to copy the lessons (minisd-lessons)"
    add("folder", nargs="?", type=Path, default=Path("minisd-lessons"), help=place)
    add("--no-open", action="store_true", help="only copy the lessons")
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
    """Copy the notebooks and open them in Jupyter. A notebook that the student changed is kept."""
    for line in copy_notebooks(NOTEBOOKS, options.folder):
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


def copy_notebooks(source: Path, folder: Path) -> list[str]:
    """Copy every notebook that the folder lacks. Returns lines to print about the copies.

    Existing files are kept, whether the student or an older minisd wrote them. A copy gets its name
    only when the copy is complete. So after a crash, the next call makes the incomplete copy again.

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
        own = folder / notebook.name
        if not own.exists():
            with written_whole(own) as unfinished:
                shutil.copyfile(notebook, unfinished)
            lines.append(f"{own}")
        elif not own.is_file() or own.read_bytes() != notebook.read_bytes():
            lines.append(f"{own} is changed or old, and was kept: move it to get a new copy")
    return lines or [f"all lessons are in {folder} already"]
