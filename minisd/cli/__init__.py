"""The command line: minisd generate | img2img | inpaint | depth | control | convert | info | …"""

import argparse
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import minisd
from minisd.cli import doctor, draw, lessons
from minisd.cli.memory import TOO_LITTLE, check_limits, is_out_of_memory
from minisd.cli.messages import never_fail, print_message, print_results
from minisd.cli.options import SHORT_OPTIONS, add_drawing
from minisd.cli.parser import Parser
from minisd.cli.pictures import check_writable, is_picture
from minisd.training.interrupt import ends_like_ctrl_c

# torch and the models are imported by the commands that need them: `minisd --help` is instant.

DRAWING = {
    "generate": "draw a picture from a prompt",
    "img2img": "draw a picture again, following a prompt",
    "inpaint": "draw a part of a picture again",
    "depth": "draw a picture again, keeping its depth",
    "control": "draw along a hint with a ControlNet",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 2 after a one-sentence error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    never_fail()
    name = f"minisd {arguments[0]}" if arguments and arguments[0].isidentifier() else "minisd"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = in_a_line
            with ends_like_ctrl_c():
                run_command(arguments)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        print_message(error_sentence(error), by=name)
        return 2
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be closed
            if str(stop):  # a training, which says what is saved
                print_message(stop, by=name)
        return 128 + getattr(stop, "number", 2)  # as shells do: 130 for ctrl-C
    return 0


def error_sentence(error: Exception) -> str:
    """What an error says to a user: of a reader that lacked memory, that alone is true."""
    says_so = isinstance(error, ValueError) and "memory" in str(error)
    if is_out_of_memory(error) and not says_so:
        return f"{TOO_LITTLE}."
    if isinstance(error, OSError):
        what = error.filename or "a file"
        return f"{what} cannot be read or written ({error.strerror}): check the path and the disk."
    return str(error)


def run_command(arguments: list[str]) -> None:
    """Find the command and run it."""
    if not arguments:
        parser().print_help()
        return
    ours, passed_on = lessons.split_arguments(arguments)
    options, extra = parser().parse_known_args(ours)
    check_limits()
    if options.command in SHORT_OPTIONS:
        draw.draw_command(options, extra)
    elif options.command == "lessons":
        lessons.lessons(options, extra + passed_on)
    elif extra:
        what = "no option of it" if extra[0].startswith("-") else "one too many"
        raise ValueError(f"{extra[0]!r} is {what}: see minisd {options.command} --help.")
    else:
        options.run(options)


def in_a_line(message: Warning, *where: object, **more: object) -> None:
    """A warning as a user reads it, without the line of code that gave it."""
    print_message(message)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="minisd", description="Stable Diffusion, small and exact.")
    top.add_argument("--version", action="version", version=f"minisd {minisd.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in DRAWING.items():
        add_drawing(commands.add_parser(name, help=purpose, description=purpose), name)
    add_convert(commands.add_parser("convert", help="write a model in another file layout"))
    add_info(commands.add_parser("info", help="say what is in a checkpoint, or in a picture"))
    add_download(commands.add_parser("download", help="fetch published weights by name"))
    lessons.add_lessons(
        commands.add_parser("lessons", help="copy the course to a folder and open it")
    )
    add_examples(commands.add_parser("examples", help="write the pictures of docs/steering.md"))
    look = commands.add_parser("doctor", help="check this machine, and say what to fix")
    look.set_defaults(run=lambda options: print_results(*doctor.doctor_lines().split("\n")))
    add_train(commands.add_parser("train", help="train the mini model's parts"))
    return top


def add_convert(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", help="FILE, FOLDER or NAME of a model")
    add("destination", type=Path, help="a .safetensors file, or a folder for diffusers")
    add("--half", action="store_true", help="store 16-bit numbers, half the size")
    add("--prediction", choices=("eps", "v"), help="where the file cannot say it")
    add("--ema", action="store_true", help="the averaged weights of a training checkpoint")
    add("--vae", metavar="FILE", help="take this VAE, for a model that has none or another")
    add("--keep-unused", action="store_true", help="copy what the model does not need as well")
    command.set_defaults(run=convert_command)


def convert_command(options: argparse.Namespace) -> None:
    """Write the model as an official single file (.safetensors) or as a diffusers folder."""
    import torch

    from minisd.checkpoints import write

    write.convert(
        options.model,
        options.destination,
        keep_unused=options.keep_unused,
        dtype=torch.float16 if options.half else None,
        prediction=options.prediction,
        ema=options.ema,
        vae=options.vae,
    )
    print_results(options.destination)


def add_info(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="FILE, FOLDER or NAME, or a picture")
    command.set_defaults(run=info_command)


def info_command(options: argparse.Namespace) -> None:
    """Print what a checkpoint is and holds, or how a picture was drawn."""
    from minisd.checkpoints.info import inspect_source as describe
    from minisd.cli import metadata

    path = Path(options.model)
    if path.is_file() and is_picture(path):
        print_results(*metadata.describe(path).split("\n"))
    else:
        print_results(*str(describe(options.model)).split("\n"))


def add_download(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", nargs="?", help="none: list the names")
    command.set_defaults(run=download_command)


def download_command(options: argparse.Namespace) -> None:
    """Say what a published file is and whose licence it bears, then fetch it."""
    from minisd.checkpoints import registry as official

    if options.name in official.SHIPPED:
        print_message(f"{options.name} came with minisd.")
        print_results(official.local_path(options.name))
        return
    for name in [options.name] if options.name else official.OFFICIAL:
        print_results(official.describe_official(name))
    if options.name:
        print_results(official.download(options.name))
    else:
        print_message(f"these came with minisd: {', '.join(official.SHIPPED)}.")


def add_examples(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("folder", nargs="?", type=Path, default=Path("examples"), help="(examples)")
    command.set_defaults(run=examples_command)


def examples_command(options: argparse.Namespace) -> None:
    """Write the pictures that docs/steering.md starts from; what is there stays as it is."""
    from minisd.mini.examples import given_pictures

    for path in given_pictures(options.folder):
        print_results(path)


# the stages that write no file of their own, and what they leave in the folder
FOLDER_ONLY = {"tokenizer": "tokenizer.json", "vae": "vae", "diffusion": "diffusion"}
STAGES = ("tokenizer", "vae", "diffusion", "export", "decoder", "classifier", "judge")
STAGES += ("lora", "word", "hypernetwork", "controlnet", "controlnet-half")
STAGES += ("inpaint", "depth", "cats-and-dogs")


def add_train(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    known = f"{', '.join(STAGES)}, in this order. The same command again resumes"
    add("stage", choices=STAGES, metavar="STAGE", help=known)
    add("--folder", type=Path, default=Path("runs/mini"), help="for checkpoints, logs (runs/mini)")
    length = command.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="of training in all (the recipe's)")
    length.add_argument("--minutes", type=float, help="how long to train, instead of --steps")
    add("--seed", type=int, default=0, help="of the first weights and all batches (0)")
    add("-o", "--output", type=Path, help="the file to write (STAGE/STAGE.safetensors in --folder)")
    command.set_defaults(run=train_command)


def train_command(options: argparse.Namespace) -> None:
    """Train one stage of the mini model, or export what is trained."""
    from minisd.mini.job import Job
    from minisd.mini.stages import run_stage, with_default_output
    from minisd.training.distributed import barrier, rank_and_world_size

    if options.output and options.stage in FOLDER_ONLY:
        raise ValueError(
            f"{options.stage} writes only into --folder: leave -o out. `minisd train export -o "
            "FILE` writes the model file."
        )
    if options.output:
        check_writable(options.output)
    barrier()  # if torchrun started several processes, rank 0 alone writes files
    names = ("folder", "output", "steps", "minutes", "seed")
    job = Job(**{name: getattr(options, name) for name in names})
    if options.stage not in FOLDER_ONLY:
        job = with_default_output(options.stage, job)
    run_stage(options.stage, job)
    written = job.output
    if options.stage in FOLDER_ONLY:
        written = job.folder / FOLDER_ONLY[options.stage]
    if written and rank_and_world_size()[0] == 0:
        print_results(written)
