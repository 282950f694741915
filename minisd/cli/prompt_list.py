"""minisd generate --prompts FILE: draw every prompt of a list, each into a file of its own.

The command can be killed and started again: it draws only the pictures that are still missing.
torchrun and accelerate start several processes with the same command, and tell each process its
number in environment variables. Then each process draws its own share of the list. The processes
send each other no messages. A process locks a picture (filelock) while it draws the picture. So if
two processes should have the same share, for example because an earlier job was not killed
completely, still no picture is drawn twice. The system frees the lock of a process that is killed.
"""

import argparse
import csv
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from minisd.cli import draw, option_checks, picture_settings
from minisd.cli.adapter_options import attach_adapters, read_hints
from minisd.cli.argument_parser import place_words
from minisd.cli.drawing_options import SAMPLER_CHOICES, fill_in_options
from minisd.cli.lcm import add_lcm_lora, apply_lcm_option, check_lcm
from minisd.cli.memory import check_memory, enough_memory
from minisd.cli.messages import print_message
from minisd.cli.picture_files import check_writable, write_png
from minisd.files.json_files import read_at_most, shorten
from minisd.files.one_line import name_errors

# The columns of a CSV file, with the types of their values. All except "prompt" may be left out.
COLUMNS = {"prompt": str, "negative": str, "seed": int, "scale": float, "sampler": str}
COLUMNS |= dict.fromkeys(("width", "height", "steps"), int)
MOST_LINES = 100_000  # each process reads the whole list, which takes 160 MB for so many lines
LARGEST_LIST = 100 * 10**6  # bytes
LONGEST_SLUG = 40  # characters of the prompt that a file's name repeats
NAME = re.compile(r"\d{6}(-[a-z0-9-]+)?\.png")
# These facts may differ between the pictures of a list. --like warns about versions, and uses as
# many threads as the picture's command.
MAY_DIFFER = ("minisd", "torch", "threads", "openvino")
TWO_WAYS = "choose another folder with -o, or delete the picture"
EXCLUDED = ("like", "number", "every_step", "force", "mine")  # options that a list cannot have


class ListedPicture(NamedTuple):
    """A picture of the list.

    where: its place in the list, for error messages
    settings: the arguments of txt2img
    common: the settings that the files of all pictures of the list store
    """

    where: str
    path: Path
    settings: dict[str, Any]
    common: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        return self.settings["width"], self.settings["height"]

    @property
    def about(self) -> dict[str, Any]:
        """All settings, as the picture's file stores them."""
        own = {name: value for name, value in self.settings.items() if value is not None}
        return self.common | own


def draw_list(options: argparse.Namespace, extra: list[str]) -> None:
    """Run `minisd generate --prompts FILE`. All lines are checked before the first is drawn.

    extra: the words of the command line that argparse did not store in `options`
    """
    place_words(options, extra, ["prompt"], needed=False)
    refuse_excluded(options)
    apply_lcm_option(options)
    rank, world_size = rank_from_environment()
    options.output = options.output or Path(options.prompts.stem)
    fill_in_options(options, {})
    lines = read_list(options)
    check_folder(options.output)
    option_checks.check_files(options)
    hints = read_hints(options)
    use_local_gpu(options.device)
    sd = draw.load_model(options)
    add_lcm_lora(options, sd.config)
    pictures = list_pictures(sd, options, lines)
    sizes = {one.size for one in pictures}
    if hints and len(sizes) > 1:
        raise ValueError("--control needs pictures of one size: give each size its own list.")
    attach_adapters(sd, options, min(sizes), hints)
    options.output.mkdir(exist_ok=True)
    refuse_strangers(options, pictures)
    # Large pictures come first. So no process is left with a large picture at the end.
    pictures.sort(key=lambda one: prod(one.size) * one.settings["steps"], reverse=True)
    share = pictures[rank::world_size]
    drawn = draw_missing(sd, share)
    who = f"rank {rank} of {world_size}: " * (world_size > 1)
    print_message(f"{who}{drawn} drawn, {len(share) - drawn} already there.")


def refuse_excluded(options: argparse.Namespace) -> None:
    """Raise ValueError if an option does not fit a list."""
    if options.prompt is not None:
        where, prompt = options.prompts, shorten(options.prompt)
        raise ValueError(f"{where} holds the prompts: leave out {prompt}.")
    for name in EXCLUDED:
        if not any(getattr(options, name) is absent for absent in (None, False)):
            raise ValueError(f"--{name.replace('_', '-')} does not fit --prompts: leave it out.")


# ---- the processes ---------------------------------------------------------------------------


def rank_from_environment() -> tuple[int, int]:
    """The number of this process, from 0 on, and the number of processes.

    torchrun and accelerate set the environment variables. Without them, there is one process.

    Raises ValueError if the variables make no sense.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return 0, 1
    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size):
        return int(rank), int(world_size)
    raise ValueError(
        f"RANK is {rank!r} and WORLD_SIZE is {world_size!r}, but RANK must be a number below "
        "WORLD_SIZE: unset both, or start minisd with torchrun."
    )


def use_local_gpu(device: str) -> None:
    """Choose the GPU of this process, if several processes of this machine use --device cuda.

    Raises ValueError if there are fewer GPUs than processes.
    """
    local_rank = os.environ.get("LOCAL_RANK", "")
    if device != "cuda" or not local_rank.isdecimal():
        return
    import torch

    count = torch.cuda.device_count()
    if 0 < count <= int(local_rank):
        raise ValueError(
            f"there are more processes on this machine than GPUs ({count}): start one process per "
            "GPU, or give --device cpu."
        )
    if count:  # without a GPU, loading the model says so
        torch.cuda.set_device(int(local_rank))


@contextmanager
def lock_picture(path: Path, wait: bool) -> Iterator[bool]:
    """Lock a picture during the `with` block. Yields whether this process has the lock.

    wait: whether to wait until the lock is free

    On a disk without locks, nothing is locked. Then only the shares keep the processes apart.
    """
    lock = FileLock(lock_path(path))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError):
        yield True
        return
    try:
        yield True
    finally:
        lock.release()
    remove_lock(path)


def lock_path(path: Path) -> Path:
    """The hidden file that is locked while a picture is drawn."""
    return path.with_name(f".{path.stem}.lock")


def remove_lock(path: Path) -> None:
    """Remove the lock of a picture. If another process needs it, the process makes it again."""
    with suppress(OSError):
        lock_path(path).unlink()


# ---- drawing ---------------------------------------------------------------------------------


def draw_missing(sd, pictures: list[ListedPicture]) -> int:
    """Draw the pictures that are not finished. Returns how many this process has drawn.

    If another process is drawing a picture, the picture is left for the end. Then this process
    waits, and draws the picture if the other process has ended without it.

    Raises ValueError if an existing file is another picture. Then nothing is drawn.
    """
    drawn = 0
    missing = [one for one in pictures if not is_finished(one)]
    for wait in (False, True):
        left = []
        for one in missing:
            with lock_picture(one.path, wait) as locked:
                if not locked:
                    left.append(one)
                elif not is_finished(one):
                    draw_listed(sd, one)
                    drawn += 1
        missing = left
    for one in pictures:  # a killed process may have left the lock of a finished picture
        remove_lock(one.path)
    return drawn


def draw_listed(sd, one: ListedPicture) -> None:
    """Draw a picture of the list, and write its file."""
    with name_line(one.where), enough_memory(sd, *one.size):
        picture = sd.txt2img(**one.settings, progress=sys.stderr.isatty())
    write_png(picture, one.path, one.about)


def is_finished(one: ListedPicture) -> bool:
    """Whether the file of a picture exists. The settings inside must be those of the list.

    Raises ValueError if the file is damaged, or if its settings are different.
    """
    if not os.path.lexists(one.path):
        return False
    there, wanted = picture_settings.read_settings(one.path) or {}, one.about
    names = (there.keys() | wanted.keys()) - {*MAY_DIFFER}
    if different := sorted(name for name in names if there.get(name) != wanted.get(name)):
        what = ", ".join(different).replace("hashes", "sha256 of a file")
        raise ValueError(f"{one.path} was drawn with other settings ({what}): {TWO_WAYS}.")
    return True


def refuse_strangers(options: argparse.Namespace, pictures: list[ListedPicture]) -> None:
    """Raise ValueError if the folder holds a numbered picture that is not in the list."""
    known = {one.path.name for one in pictures}
    for path in sorted(options.output.iterdir()):
        if NAME.fullmatch(path.name) and path.name not in known:
            raise ValueError(f"{path} is no picture of {options.prompts}: {TWO_WAYS}.")


def check_folder(folder: Path) -> None:
    """Raise ValueError if no pictures can be written into this folder, which may not exist yet."""
    if not folder.is_dir() and (folder.exists() or folder.suffix.lower() == ".png"):
        raise ValueError(f"--prompts writes many pictures: name a folder with -o, not {folder}.")
    check_writable(folder / ".new" if folder.is_dir() else folder)


# ---- the list --------------------------------------------------------------------------------


# For each line of the list: its place, for error messages, and the options that it sets.
Lines = list[tuple[str, dict[str, Any]]]


def list_pictures(sd, common: argparse.Namespace, lines: Lines) -> list[ListedPicture]:
    """Return a ListedPicture for each line. common: the options of the command

    Raises ValueError if the model cannot draw a line.
    """
    pictures, checked, stored = [], set(), {}
    for number, (where, own) in enumerate(lines, start=1):
        options = argparse.Namespace(**vars(common) | own)
        settings = draw.text_settings(sd, options)
        stored = stored or picture_settings.collect_settings(options, sd, settings)
        settings |= {"prompt": options.prompt, "seed": options.seed}
        path = common.output / file_name(number, options.prompt)
        one = ListedPicture(where, path, settings, stored)
        kind = (*one.size, settings["steps"], settings["sampler"])
        with name_line(where):
            check_lcm(options)
            check_texts_of(sd, options)
            if kind not in checked:
                check_settings(sd, settings)
        checked.add(kind)
        pictures.append(one)
    return pictures


def check_texts_of(sd, options: argparse.Namespace) -> None:
    """Raise ValueError if the model cannot read the prompt or the negative prompt of a line."""
    from minisd.prompt import weighted_chunks

    for text in (options.prompt, options.negative):
        if options.extended:
            weighted_chunks(sd.tokenizer, text)
        else:
            sd.tokenizer.encode(text)


def check_settings(sd, settings: dict[str, Any]) -> None:
    """Raise ValueError if the model cannot draw a picture with these settings."""
    from minisd.files.pictures import check_size
    from minisd.sampling import sampler_levels

    size = settings["width"], settings["height"]
    check_size(*size, sd.config)
    check_memory(sd, *size)
    sampler_levels(settings["sampler"], sd.schedule, settings["steps"], settings["spacing"])


def file_name(number: int, prompt: str) -> str:
    """The name of a picture's file: its number in the list, and the first words of the prompt.

    >>> file_name(7, "A cat, on a blue background")
    '000007-a-cat-on-a-blue-background.png'
    """
    slug = "-".join(re.findall("[a-z0-9]+", prompt.lower()))[:LONGEST_SLUG].rstrip("-")
    return f"{number:06}-{slug}.png" if slug else f"{number:06}.png"


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
