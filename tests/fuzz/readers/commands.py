"""The command line: odd arguments, and `minisd info` on every kind of file."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from minisd.checkpoints import registry as official
from minisd.checkpoints import write
from minisd.cli import draw, lessons
from minisd.mini import examples, stages
from tests.fuzz import good
from tests.fuzz.case import Case, Printed, Reader
from tests.fuzz.edits import broken
from tests.fuzz.edits.text_edits import nasty
from tests.fuzz.judge import run_command
from tests.fuzz.readers import adapters, files, models

COMMANDS_OF_IT = ["generate", "img2img", "inpaint", "depth", "control", "convert", "info"]
COMMANDS_OF_IT += ["download", "lessons", "examples", "train"]
OPTIONS = [
    *("-o", "--output", "--force", "--like", "--model", "--negative", "--steps", "--scale", "-n"),
    *("--sampler", "--spacing", "--seed", "--prediction", "--ema", "--device", "--width", "--vae"),
    *("--height", "--extended", "--clip-skip", "--every-step", "--strength", "--paste", "--lora"),
    *(
        "--depth",
        "--estimator",
        "--weight",
        "--embedding",
        "--hypernetwork",
        "--control",
        "--edges",
    ),
    *("--classifier", "--folder", "--minutes", "--half", "--keep-unused", "--version", "--help"),
    *("--no-open", "--", "-", "--no", "--s", "--number", "--prompts"),
]
VALUES = [
    *(
        "a cat",
        "mini",
        "x.png",
        "out.png",
        "p.png",
        "m.safetensors",
        "m.safetensors:0.5",
        "nowhere",
    ),
    *("m.safetensors:nan", ":", "::", "a:b:c", "cpu", "cuda", "meta", "mps:0", "ddim", "karras"),
    *("eps", "v", "0", "1", "2", "-1", "64", "8", "7", "1e3", "nan", "inf", "1e999", "99999999999"),
    *(
        "18446744073709551616",
        "512",
        "1_0",
        "٣",
        "0.5",
        "",
        " ",
        "/",
        ".",
        "..",
        "/dev/null",
        "sd15",
    ),
    *(
        "vae",
        "lora",
        "tokenizer",
        "judge",
        "@x",
        "=",
        "--model=mini",
        "--steps=1",
        "~",
        "p.png:p.png",
    ),
]
if os.name == "posix":
    VALUES += ["/dev/zero", "/dev/stdin", "/proc/self/mem"]


@st.composite
def command_lines(draw: st.DrawFn) -> Case:
    word = st.one_of(st.sampled_from(VALUES), st.sampled_from(OPTIONS), st.sampled_from(VALUES))
    words = [draw(st.sampled_from(COMMANDS_OF_IT))] if draw(st.integers(0, 9)) else []
    for _ in range(draw(st.integers(0, 6))):
        words.append(draw(word) if draw(st.integers(0, 4)) else nasty(draw)[:3000])
    return arguments(words)


def arguments(words: list[str]) -> Case:
    """With a picture and a file of weights at hand. The kernel hands on no word with a zero."""
    words = [word.replace("\0", "") for word in words]
    files = {"argv.json": json.dumps(words).encode(), "p.png": good.drawn_picture()}
    return Case(files | {"m.safetensors": good.small_depth()}, "argv.json")


def some_arguments() -> list[Case]:
    return [arguments(words) for words in (["--version"], ["info", "p.png"], ["generate", "a cat"])]


# What the commands would do: fetch, train, and write into the folder that the user names.
BEHIND = [(official, "download"), (stages, "run_stage"), (write, "convert")]
BEHIND += [(lessons, "copy_notebooks"), (examples, "write_input_pictures")]


def run_arguments(path: Path) -> Printed:
    """The command, with nothing behind it that draws, trains, downloads or opens a browser."""
    words, folder = json.loads(path.read_text(encoding="utf-8")), os.getcwd()
    drawing, kept = dict(draw.COMMANDS), [getattr(module, name) for module, name in BEHIND]
    if words[:1] == ["lessons"]:
        words.insert(1, "--no-open")
    draw.COMMANDS.update({name: lambda options, outputs: None for name in drawing})
    for module, name in BEHIND:
        setattr(module, name, lambda *arguments, **more: [])
    os.chdir(path.parent)
    try:
        return run_command(words)
    finally:
        os.chdir(folder)
        draw.COMMANDS.update(drawing)
        for (module, name), function in zip(BEHIND, kept, strict=True):
            setattr(module, name, function)


@cache
def everything() -> list[Case]:
    kinds = [files.some_safetensors, files.zip_pickles, files.old_pickles, models.our_models]
    kinds += [models.model_folders, models.vae_files, adapters.loras, adapters.words]
    kinds += [adapters.hypernetworks, adapters.control_nets, adapters.classifiers, adapters.dpts]
    cases = [case for kind in kinds for case in kind()]
    parts = ("autoencoder", "lora-folder", "control-net")  # folders that are no whole models
    return [replace(case, refused=case.target in parts) for case in cases]


def describe(path: Path) -> Printed:
    return run_command(["info", str(path)])


COMMANDS = [
    Reader("arguments", some_arguments, command_lines, run_arguments, share=1.5),
    Reader("info", everything, lambda: broken(everything()), describe, share=2),
]
