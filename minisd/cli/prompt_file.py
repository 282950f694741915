"""Read the list of `minisd generate --prompts`: a text file, or a CSV file with settings."""

import argparse
import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minisd.cli import option_checks
from minisd.cli.drawing_options import SAMPLER_CHOICES
from minisd.files.json_files import read_at_most, shorten
from minisd.files.one_line import name_errors

# The columns of a CSV file, with the types of their values. All except "prompt" may be left out.
COLUMNS = {"prompt": str, "negative": str, "seed": int, "scale": float, "sampler": str}
COLUMNS |= dict.fromkeys(("width", "height", "steps"), int)
MOST_LINES = 100_000  # each process reads the whole list, which takes 160 MB for so many lines
LARGEST_LIST = 100 * 10**6  # bytes

# For each line of the list: its place, for error messages, and the options that it sets.
Lines = list[tuple[str, dict[str, Any]]]


def read_list(options: argparse.Namespace) -> Lines:
    """Read the list, and check all lines.

    A line without a seed gets the seed of the command plus the number of prompts before it.

    Raises ValueError if the file is not a list, or if a line is wrong.
    """
    path, lines, sizes = options.prompts, [], {}
    with name_errors(str(path)):
        text = read_utf8(path)
        rows = list(csv_rows(text) if path.suffix.lower() == ".csv" else text_rows(text))
        if not rows:
            raise ValueError("holds no prompt: write at least one")
        if len(rows) > MOST_LINES:
            raise ValueError(f"has {len(rows):,} prompts: split it into lists of {MOST_LINES:,}")
    for index, (number, cells) in enumerate(rows):
        where = f"{path}, line {number}"
        with name_line(where):
            own: dict[str, Any] = {"seed": options.seed + index}
            own |= {name: parse_cell(name, cell) for name, cell in cells.items() if cell}
            line = argparse.Namespace(**vars(options) | own)
            check_line(line)
        sizes.setdefault((line.width, line.height), where)
        lines.append((where, own))
    for size, where in sizes.items():
        with name_line(where):
            option_checks.check_size_options(*size)
    return lines


def read_utf8(path: Path) -> str:
    """Read a text file. Raises ValueError if it is too large, or not UTF-8 text."""
    if path.suffix.lower() not in (".txt", ".csv"):
        raise ValueError("is neither .txt (one prompt per line) nor .csv: give it such a name")
    if path.stat().st_size > LARGEST_LIST:
        raise ValueError(f"has more than {LARGEST_LIST:,} bytes: split it into smaller lists")
    content = read_at_most(path, LARGEST_LIST)
    try:
        text = content.decode("utf-8-sig")  # without the mark that some editors put at the start
        wrong = content.find(b"\0")  # UTF-16 has many zeros
    except UnicodeDecodeError as error:
        text, wrong = "", error.start
    if wrong >= 0:
        line = content.count(b"\n", 0, wrong) + 1
        raise ValueError(f"is not UTF-8 text (see line {line}): save it as UTF-8")
    return text


Rows = Iterator[tuple[int, dict[str, str]]]  # the number of a line, and its cells by column


def text_rows(text: str) -> Rows:
    """Yield the lines of a text file. Empty lines are left out.

    Raises ValueError if the first line looks like the header of a CSV file.
    """
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        names = [name.strip().lower() for name in line.split(",")]
        if number == 1 and "prompt" in names and set(names) <= COLUMNS.keys():
            raise ValueError("begins like a CSV file: name it .csv, or delete its first line")
        if line.strip():
            yield number, {"prompt": line.strip()}


def csv_rows(text: str) -> Rows:
    """Yield the rows of a CSV file, without its header. Empty rows are left out.

    Raises ValueError if the header or a row is wrong.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, last = None, 0
    try:
        for row in reader:
            number, last = last + 1, reader.line_num  # a cell in quotes may have several lines
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if header is None:
                header = check_columns([cell.lower() for cell in cells])
            elif len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            else:
                wrong = f"has {len(cells)} cells in line {number}, but {len(header)} columns"
                raise ValueError(f"{wrong}: put a prompt with a comma in quotes")
    except csv.Error as error:
        raise ValueError(f"is not valid CSV in line {last + 1} ({error}): check quotes") from error


def check_columns(names: list[str]) -> list[str]:
    """Return the names of the columns. Raises ValueError if a name is wrong, or comes twice."""
    wrong = [name for name in names if name not in COLUMNS or names.count(name) > 1]
    if wrong or "prompt" not in names:
        found = f"has the wrong column {shorten(wrong[0])}" if wrong else "has no column prompt"
        raise ValueError(f"{found}: the columns are {', '.join(COLUMNS)}, each at most once")
    return names


def parse_cell(name: str, cell: str) -> str | int | float:
    """The value of a cell. Raises ValueError if it does not fit the column."""
    kind = COLUMNS[name]
    try:
        value = kind(cell)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"the {name} {shorten(cell)} is not {what}.") from error
    if name == "sampler" and value not in SAMPLER_CHOICES:
        known = ", ".join(SAMPLER_CHOICES)
        raise ValueError(f"there is no sampler {shorten(cell)}: choose one of {known}.")
    return value


def check_line(options: argparse.Namespace) -> None:
    """Raise ValueError if a setting of a line is wrong for every model."""
    if options.prompt is None:
        raise ValueError("there is no prompt: write one, or delete the line.")
    option_checks.check_texts(options)
    option_checks.check_numbers(options)
    option_checks.check_seed_range(options.seed, 1)


@contextmanager
def name_line(where: str) -> Iterator[None]:
    """Put the place in the list before the message of a ValueError in a `with` block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
