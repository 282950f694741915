"""minisd generate --prompts FILE: draw every prompt of a list, each into a file of its own.

The command can be killed and started again: it draws only the pictures that are still missing.
torchrun and accelerate start several processes with the same command, and tell each process its
number in environment variables. Then each process draws its own share of the list. The processes
send each other no messages. A process locks a picture (filelock) while it draws the picture. So if
two processes should have the same share, for example because an earlier job was not killed
completely, still no picture is drawn twice. The system frees the lock of a process that is killed.
"""

import argparse
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
from minisd.cli.drawing_options import fill_in_options
from minisd.cli.lcm import add_lcm_lora, apply_lcm_option, check_lcm
from minisd.cli.memory import check_memory, enough_memory
from minisd.cli.messages import print_message
from minisd.cli.picture_files import check_writable, write_png
from minisd.cli.prompt_file import Lines, name_line, read_list
from minisd.files.json_files import shorten

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
