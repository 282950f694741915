"""The student's saved answers, and the model that consists of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minisd import clip, unet, vae
from minisd.checkpoints import cover
from minisd.config import ModelConfig
from minisd.exercises.answer_source import standalone_source
from minisd.exercises.calls import check_weights
from minisd.exercises.exercise import Exercise, all_exercises, find_exercise
from minisd.exercises.install import find_part, install_parts
from minisd.exercises.judge import judge
from minisd.exercises.learner_folder import (
    explain_errors,
    find_answer,
    learner_folder,
    student_id,
)
from minisd.exercises.model_parts import count_products
from minisd.files.whole_files import make_folder, written_whole
from minisd.teaching.plot.canvas import say

BUILDER = "minisd.checkpoints.cover.empty_networks"


def save_answer(exercise: Exercise, answer: Callable, student: str = "") -> str:
    """Save a right answer to the student's folder, in place of an older one.

    The file holds the answer and what it uses. It is run and judged before it gets its name.

    Returns a sentence that says where the file is, or why there is none.
    """
    path = learner_folder() / f"{exercise.name}.py"
    try:
        code = standalone_source(exercise.solution.__name__, answer)
        make_folder(path.parent)
        with written_whole(path) as unfinished:
            unfinished.write_text(f'"""{exercise.title}."""\n\n{code}', encoding="utf-8")
            if not judge(exercise, find_answer(unfinished, exercise), student).has_passed:
                raise ValueError("its copy gives another result. Use only the arguments.")
    except ValueError as error:
        return f"The answer passes, but it cannot be saved: {error}"
    if not exercise.replaces:
        return f"Saved to {path}. Later lessons use it."
    parts = count_products(steps=1).keys() - {""}
    if exercise.name not in parts:
        return f"Saved to {path}. It is not one of the {len(parts)} parts that text-to-image uses."
    own = [name for name in parts if (path.parent / f"{name}.py").exists()]
    score = f"{len(own)} of {len(parts)} parts of the model are yours"
    return f"Saved to {path}: {score}. `minisd mine` lists them."


def yours(name: str) -> Callable:
    """The student's saved answer if there is one, otherwise our solution. Says which one it is.

        train_network = yours("train_network")

    It runs with gradients, also where a lesson has switched them off.

    Raises ValueError if there is no such exercise, or if the student's file cannot be used.
    """
    exercise = find_exercise(name)
    path = learner_folder() / f"{exercise.name}.py"
    if path.exists():
        say(f"This lesson runs your `{name}`, from {path}.")
        return torch.enable_grad()(find_answer(path, exercise))
    more = f"Pass the exercise in lesson {exercise.lesson}, and it runs yours."
    say(f"This lesson runs our `{name}`. {more}")
    return torch.enable_grad()(exercise.with_constants(exercise.solution, student_id()))


def saved_exercises(folder: Path) -> list[Exercise]:
    """The exercises whose answers the folder holds, in the order of the course.

    Raises ValueError if the folder holds another Python file.
    """
    exercises = {one.name: one for one in all_exercises() if one.replaces}
    reused = {one.name for one in all_exercises() if one.is_reused}
    files = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if others := [path for name, path in files.items() if name not in exercises.keys() | reused]:
        raise ValueError(f"{others[0]} belongs to no part of the model. Move it to another folder.")
    return [one for name, one in exercises.items() if name in files]


def own_parts(folder: Path) -> dict[str, Any]:
    """Name in the package -> the student's part, for install_parts(). Runs the student's files.

    A method comes before its class, so that it is put into our class, not into the student's.

    Raises ValueError if the folder holds no answer, or a file that cannot be used.
    """
    parts = {}
    for exercise in saved_exercises(folder):
        answer = find_answer(folder / f"{exercise.name}.py", exercise)
        parts |= {name: adapt(answer) for name, adapt in exercise.replaces.items()}
    if not parts:
        raise ValueError(f"{folder} holds no answer. check() saves right answers to it.")
    return dict(sorted(parts.items(), key=lambda part: -part[0].count(".")))


@contextmanager
def use_own_parts(folder: Path | None = None) -> Iterator[None]:
    """Load and run models that consist of the student's parts.

        with use_own_parts():
            picture = minisd.load("mini").txt2img("a cat")

    folder: None: the student's folder

    Raises ValueError in the cases of own_parts(), or if a parameter does not fit the model. An
    error in the student's code becomes a ValueError that names the file and the line.
    """
    folder = learner_folder() if folder is None else folder
    with explain_errors(folder):
        parts = own_parts(folder)
        ours = {name: find_part(name)[-1] for name in [BUILDER, *reversed(parts)]}
        with install_parts(parts | {BUILDER: partial(build_own_networks, ours)}):
            yield


def build_own_networks(ours: dict[str, Any], config: ModelConfig) -> dict[str, nn.Module]:
    """Build the networks from the student's parts, in place of cover.empty_networks().

    They are not built on the device "meta", where a mask that a class computes would stay.

    ours: name in the package -> our part

    Raises ValueError if a parameter of a class is missing, unknown, or of another shape than ours.
    """
    text_encoder, denoiser = clip.TextTransformer(config.text), unet.UNet(config.unet)
    networks = {"text_encoder": text_encoder, "unet": denoiser, "vae": vae.VAE(config.vae)}
    with install_parts(ours):
        wanted = {
            name: dict(one.named_modules()) for name, one in cover.empty_networks(config).items()
        }
    for name, network in networks.items():
        for path, module in reversed(list(network.named_modules())):  # the innermost module first
            right = wanted[name].get(path)
            if right is not None and type(right) is not type(module):
                check_weights(module, right.state_dict())
    return networks


def describe_model(folder: Path | None = None) -> list[str]:
    """Lines that say which parts of the model are the student's, for `minisd mine`.

    Our mini draws a guided picture in 20 steps. Every part that runs gets a line, with its share of
    the products that are computed.

    Raises ValueError if the folder holds another Python file.
    """
    own = [one.name for one in saved_exercises(folder or learner_folder())]
    products = count_products(steps=20)
    shares = {name: count / sum(products.values()) for name, count in products.items()}
    parts = [one for one in all_exercises() if one.name in products]
    lines = [f"lesson  {'part':<22} {'':<6} share"]
    for one in parts:
        owner = "yours" if one.name in own else "ours"
        lines.append(f"{one.lesson:<7} {one.name:<22} {owner:<6} {shares[one.name]:>5.1%}")
    others = [name for name in own if name not in products]
    lines += [f"not counted (text-to-image does not use it): {', '.join(others)}"] * bool(others)
    mine = [one.name for one in parts if one.name in own]
    share = sum(shares[name] for name in mine)
    return [*lines, f"{len(mine)} of {len(parts)} parts, {share:.0%} of the multiplications"]
