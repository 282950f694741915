"""The command line: minisd generate | img2img | inpaint | depth | control | convert | info | …"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import minisd
from minisd.cli import doctor, draw, lessons
from minisd.cli.argument_parser import Parser
from minisd.cli.bench import add_bench, bench_command
from minisd.cli.compare import add_compare, compare_command
from minisd.cli.drawing_options import DRAWING, add_drawing_options
from minisd.cli.exercises import add_assignment, add_exercises
from minisd.cli.grade import add_grade
from minisd.cli.memory import TOO_LITTLE, check_limits, is_out_of_memory
from minisd.cli.messages import escape_unprintable, print_message, print_results
from minisd.cli.mine import add_mine
from minisd.cli.picture_files import check_writable, is_picture
from minisd.cli.trace import add_trace, trace_command
from minisd.cli.verify import add_verify, verify_command
from minisd.process.signals import raise_on_signals

# Only the commands that need torch and the models import them, so `minisd --help` is instant.


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 for success, 2 after an error message.

    `minisd compare` returns 1 if it finds a difference. `minisd verify` returns 1 if a check fails.
    After ctrl-C or another signal, the status is 128 plus the number of the signal.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    escape_unprintable()
    name = f"minisd {arguments[0]}" if arguments and arguments[0].isidentifier() else "minisd"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = print_warning
            with raise_on_signals():
                return run_command(arguments)
    except BrokenPipeError:  # the reader of our output, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        print_message(error_sentence(error), by=name)
        return 2
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be closed
            if str(stop):  # the text says what a stopped training has saved
                print_message(stop, by=name)
        return 128 + getattr(stop, "number", 2)  # as shells do: 130 for ctrl-C


def error_sentence(error: Exception) -> str:
    """The message that tells the user about an error.

    If memory runs out while a file is read, the error may wrongly say that the file is damaged. For
    such an error, the message says only that there is too little memory.
    """
    says_so = isinstance(error, ValueError) and "memory" in str(error)
    if is_out_of_memory(error) and not says_so:
        return f"{TOO_LITTLE}."
    if isinstance(error, OSError):
        name = error.filename or "a file"
        return f"{name} cannot be read or written ({error.strerror}): check the path and the disk."
    return str(error)


def run_command(arguments: list[str]) -> int:
    """Find the command and run it. Returns the exit status."""
    if not arguments:
        build_parser().print_help()
        return 0
    ours, passed_on = lessons.split_arguments(arguments)
    options, extra = build_parser().parse_known_args(ours)
    check_limits()
    if options.command in DRAWING:
        draw.draw_command(options, extra)
    elif options.command == "lessons":
        lessons.lessons_command(options, extra + passed_on)
    elif extra:
        problem = "an unknown option" if extra[0].startswith("-") else "one word too many"
        raise ValueError(f"{extra[0]!r} is {problem}: see minisd {options.command} --help.")
    else:
        return options.run(options) or 0
    return 0


def print_warning(message: Warning, *where: object, **more: object) -> None:
    """Print only the text of a warning, on one line. (Python would also print a line of code.)"""
    print_message(message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, with one subparser for each command."""
    top = Parser(prog="minisd", description="Stable Diffusion, small and exact.")
    top.add_argument("--version", action="version", version=f"minisd {minisd.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, purpose: str, run: Callable | None = None) -> argparse.ArgumentParser:
        note = " (Defaults in parentheses.)" * (name in DRAWING or name == "train")
        command = commands.add_parser(name, help=purpose, description=f"{purpose}.{note}")
        command.set_defaults(run=run)
        return command

    for name, (purpose, _) in DRAWING.items():
        add_drawing_options(add(name, purpose), name)
    add_convert(add("convert", "write a model in another file layout", convert_command))
    info = add("info", "show what a checkpoint holds, or how a picture was drawn", info_command)
    info.add_argument("model", help="a model (FILE, FOLDER or NAME), or a picture")
    purpose = "find the first tensor that a port gets wrong, and why"
    add_compare(add("compare", purpose, compare_command))
    download = add("download", "download published weights by name", download_command)
    download.add_argument("name", nargs="?", help="what to download; none: list all names")
    lessons.add_lessons(add("lessons", "copy the course to a folder and open it"))
    add_exercise_commands(add)
    examples = add("examples", "write the pictures that docs/steering.md uses", examples_command)
    place = "where to write (examples)"
    examples.add_argument("folder", nargs="?", type=Path, default=Path("examples"), help=place)
    add_bench(add("bench", "compare the speed with diffusers", bench_command))
    check = add("doctor", "check this machine and say what to fix")
    check.set_defaults(run=lambda options: print_results(*doctor.doctor_lines()))
    add_trace(add("trace", "draw a picture and keep every tensor in a file", trace_command))
    add_train(add("train", "train the parts of the mini model", train_command))
    add_verify(add("verify", "check models against published numbers", verify_command))
    return top


def add_exercise_commands(add: Callable) -> None:
    """Add the commands for exercises, each with its options."""
    add_exercises(add("exercises", "copy the exercises to a folder, or show the next one"))
    add_mine(add("mine", "show which parts of the model are your own"))
    add_assignment(add("assignment", "write exercises as assignments for nbgrader"))
    add_grade(add("grade", "grade the exercises of a class"))


def add_convert(command: argparse.ArgumentParser) -> None:
    """Add the options of `minisd convert`."""
    add = command.add_argument
    add("model", help="a model: FILE, FOLDER or NAME")
    add("destination", type=Path, help="a .safetensors file, or a folder for diffusers")
    add("--half", action="store_true", help="store 16-bit numbers: half the size")
    add("--prediction", choices=("eps", "v"), help="what the U-Net predicts, if no file says so")
    add("--ema", action="store_true", help="take the averaged weights of a training checkpoint")
    add("--vae", metavar="FILE", help="use this VAE instead of the model's own")
    add("--keep-unused", action="store_true", help="also copy tensors that the model does not need")


def convert_command(options: argparse.Namespace) -> None:
    """Write the model as one .safetensors file in the official layout, or as a diffusers folder."""
    import torch

    from minisd.checkpoints import write

    names = ("keep_unused", "prediction", "ema", "vae")
    settings = {name: getattr(options, name) for name in names}
    dtype = torch.float16 if options.half else None
    write.convert(options.model, options.destination, dtype=dtype, **settings)
    print_results(options.destination)


def info_command(options: argparse.Namespace) -> None:
    """Print what a checkpoint holds, or how a picture was drawn."""
    from minisd.checkpoints.info import inspect_source
    from minisd.cli.picture_settings import describe_picture

    path = Path(options.model)
    picture = path.is_file() and is_picture(path)
    about = describe_picture(path) if picture else str(inspect_source(options.model))
    print_results(*about.split("\n"))


def download_command(options: argparse.Namespace) -> None:
    """Describe a published file and its licence, then download the file.

    If no name is given, describe all published files and download nothing.
    """
    from minisd.checkpoints import registry as official

    if options.name in official.SHIPPED:
        print_message(f"{options.name} came with minisd: there is nothing to download.")
        print_results(official.local_path(options.name))
        return
    for name in [options.name] if options.name else official.OFFICIAL:
        print_results(official.describe_official(name))
    if options.name:
        print_results(official.download(options.name))
    else:
        print_message(f"these files came with minisd: {', '.join(official.SHIPPED)}.")


def examples_command(options: argparse.Namespace) -> None:
    """Write the pictures that docs/steering.md uses. Existing files are kept."""
    from minisd.mini.examples import write_input_pictures

    for path in write_input_pictures(options.folder):
        print_results(path)


# A stage that writes only into --folder -> the name of the file or folder that it writes there.
FOLDER_ONLY = {"tokenizer": "tokenizer.json", "vae": "vae", "diffusion": "diffusion"}
STAGES = ("tokenizer", "vae", "diffusion", "export", "decoder", "classifier", "judge")
STAGES += ("lora", "lcm", "word", "hypernetwork", "controlnet", "controlnet-half")
STAGES += ("inpaint", "depth", "cats-and-dogs")


def add_train(command: argparse.ArgumentParser) -> None:
    """Add the options of `minisd train`."""
    add = command.add_argument
    known = f"{', '.join(STAGES)}, in this order. To resume, run the same command again"
    add("stage", choices=STAGES, metavar="STAGE", help=known)
    place = "where to write checkpoints and logs (runs/mini)"
    add("--folder", type=Path, default=Path("runs/mini"), help=place)
    length = command.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="how many training steps (the recipe's)")
    length.add_argument("--minutes", type=float, help="how long to train, instead of --steps")
    add("--seed", type=int, default=0, help="seed of the initial weights and batches (0)")
    add("-o", "--output", type=Path, help="the file to write (STAGE/STAGE.safetensors in --folder)")


def train_command(options: argparse.Namespace) -> None:
    """Train one stage of the mini model, or export the trained model."""
    from minisd.mini.job import Job
    from minisd.mini.stages import run_stage, with_default_output
    from minisd.training.distributed import barrier, rank_and_world_size

    left_in_folder = FOLDER_ONLY.get(options.stage)
    if options.output and left_in_folder:
        raise ValueError(
            f"{options.stage} writes only into --folder: leave out -o. To write a model file, run "
            "`minisd train export -o FILE`."
        )
    if options.output:
        check_writable(options.output)
    barrier()  # if torchrun started several processes, only rank 0 writes files
    names = ("folder", "output", "steps", "minutes", "seed")
    job = Job(**{name: getattr(options, name) for name in names})
    if not left_in_folder:
        job = with_default_output(options.stage, job)
    run_stage(options.stage, job)
    if rank_and_world_size()[0] == 0:
        print_results(job.folder / left_in_folder if left_in_folder else job.output)
