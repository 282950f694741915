"""minisd mine, and minisd generate --mine: the model that consists of a student's own parts."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minisd.cli.messages import print_message, print_results


def add_mine(command: argparse.ArgumentParser) -> None:
    """Add the options of `minisd mine`."""
    what = "the folder with your answers (mine)"
    command.add_argument("folder", nargs="?", type=existing_folder, metavar="FOLDER", help=what)
    command.set_defaults(run=mine_command)


def mine_command(options: argparse.Namespace) -> None:
    """Show which parts of the model are the student's."""
    from minisd.exercises.mine import describe_model

    print_results(*describe_model(options.folder))


def add_mine_option(command: argparse.ArgumentParser) -> None:
    """Add the option --mine of `minisd generate`."""
    what = "draw with your own parts (mine): see minisd mine"
    settings = {"nargs": "?", "const": True, "type": existing_folder, "metavar": "FOLDER"}
    command.add_argument("--mine", **settings, help=what)


def existing_folder(name: str) -> Path:
    """The type of an option. argparse turns the error into a message."""
    if not Path(name).is_dir():
        way = "Write the prompt before --mine" if " " in name else "Check the path"
        raise argparse.ArgumentTypeError(f"there is no folder {name!r}. {way}")
    return Path(name)


@contextmanager
def use_mine_option(options: argparse.Namespace) -> Iterator[None]:
    """Draw with the student's parts inside a `with` block, if --mine is given.

    Raises ValueError if --mine comes with an adapter, an engine or a dtype, or if the parts cannot
    be used.
    """
    from minisd.cli.drawing_options import ADAPTERS
    from minisd.cli.picture_settings import read_settings

    if getattr(options, "mine", None) is None:
        if options.like and (read_settings(options.like) or {}).get("own_parts"):
            print_message(f"{options.like} was drawn with own parts. To use yours, add --mine.")
        yield
        return
    from minisd.exercises.learner_folder import learner_folder
    from minisd.exercises.mine import saved_exercises, use_own_parts

    if options.engine == "openvino" or options.dtype != "float32":
        other = "--engine" if options.engine == "openvino" else "--dtype"
        raise ValueError(f"--mine draws with PyTorch in float32. Leave out --mine or {other}.")
    if adapters := [name for name in ADAPTERS if getattr(options, name)]:
        raise ValueError(f"--mine draws without adapters. Leave out --mine or --{adapters[0]}.")
    folder = learner_folder() if options.mine is True else options.mine
    options.own_parts = [one.name for one in saved_exercises(folder)]
    with use_own_parts(folder):
        yield
