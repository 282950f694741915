"""The command line: minisd generate | convert | info | doctor | train."""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# torch and the models are imported by the commands that need them: `minisd --help` is instant.


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 2 after a one-sentence error."""
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = in_a_line
            options.run(options)
    except (ValueError, OSError) as error:
        print(f"minisd {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def in_a_line(message: Warning, *where: object, **more: object) -> None:
    """A warning as a user reads it, without the line of code that gave it."""
    print(f"minisd: {message}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="minisd", description="Stable Diffusion, small and exact.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_generate(commands.add_parser("generate", help="draw a picture from a prompt"))
    add_convert(commands.add_parser("convert", help="write a model in another file layout"))
    add_info(commands.add_parser("info", help="say what is in a checkpoint"))
    doctor = commands.add_parser("doctor", help="check this machine, and say what to mend")
    doctor.set_defaults(run=lambda options: print(examine()))
    add_train(commands.add_parser("train", help="train the mini model's parts"))
    return top


def add_generate(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("prompt", help='such as "a cat on a blue background"')
    add("-o", "--output", type=Path, default=Path("picture.png"), help="a PNG (picture.png)")
    add("--model", default="mini", help="FILE, FOLDER or NAME of a model (mini)")
    add("--negative", default="", metavar="PROMPT", help="what to steer away from")
    add("--steps", type=int, default=30, help="1 to 1000 (30); few want --spacing trailing")
    add("--scale", type=float, help="how strongly the prompt steers (the model's own)")
    add("--sampler", help="ddim, euler, dpmpp_2m, … (the model's own)")
    add("--spacing", help="of the noise levels: leading, trailing, karras, … (the sampler's own)")
    add("--seed", type=int, default=0, help="of the first picture; the next use seed + 1, … (0)")
    add("--width", type=int, help="in pixels (the model's own)")
    add("--height", type=int, help="in pixels (the model's own)")
    add("-n", "--number", type=int, default=1, help="how many pictures (1)")
    add("--extended", action="store_true", help="read (word:1.2) weights and long prompts")
    add("--clip-skip", type=int, default=0, help="text layers to leave out at the end (0)")
    add("--every-step", action="store_true", help="also write the guess of every step, as a strip")
    add("--prediction", choices=("eps", "v"), help="where the model's file cannot say it")
    add("--device", default="cpu", help="cpu, cuda or mps (cpu)")
    command.set_defaults(run=generate)


def generate(options: argparse.Namespace) -> None:
    """Draw the pictures one by one and write each, its settings inside."""
    outputs = output_paths(options.output, options.number, options.every_step)
    import minisd
    from minisd.pipeline import to_pil

    sd = minisd.load(options.model, device=options.device, prediction=options.prediction)
    settings = {
        "negative_prompt": options.negative,
        "steps": options.steps,
        "cfg_scale": sd.config.cfg_scale if options.scale is None else options.scale,
        "sampler": options.sampler or sd.config.sampler,
        "width": sd.config.size if options.width is None else options.width,
        "height": sd.config.size if options.height is None else options.height,
        "spacing": options.spacing,
        "clip_skip": options.clip_skip,
        "extended": options.extended,
    }
    for seed, path in enumerate(outputs, start=options.seed):
        guesses = []
        for step in progress_bar(sd.txt2img_steps(options.prompt, seed=seed, **settings), options):
            if options.every_step:
                guesses += to_pil(sd.decode(step.prediction.x0))
        about = {"prompt": options.prompt, "seed": seed, "model": options.model} | settings
        write_png(to_pil(sd.decode(step.x))[0], path, about)
        if guesses:
            write_png(side_by_side(guesses), strip_path(path), about)


def progress_bar(walk, options: argparse.Namespace):
    from tqdm import tqdm

    return tqdm(walk, total=options.steps, disable=not sys.stderr.isatty())


def output_paths(output: Path, number: int, every_step: bool) -> list[Path]:
    """Where the pictures go: the output itself, or output-1, output-2, …

    ValueError: not a PNG, no pictures asked for, or a place where nothing can be written. Asked
    before the work, so that none is lost.
    """
    if number < 1:
        raise ValueError(f"the number of pictures must be 1 or more, got {number}.")
    if output.suffix.lower() != ".png":
        raise ValueError(f"pictures are written as PNG: name the output {output.stem}.png.")
    numbered = [output.with_stem(f"{output.stem}-{i}") for i in range(1, number + 1)]
    paths = [output] if number == 1 else numbered
    for path in paths + [strip_path(path) for path in paths if every_step]:
        check_writable(path)
    return paths


def check_writable(path: Path) -> None:
    """Raise ValueError unless a file of this name can be written, without touching one there."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it with -o.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"cannot write over {path}: choose another name with -o.")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(
            f"cannot write into the folder {path.parent} ({error.strerror}): "
            "choose another place with -o."
        ) from error


def write_png(picture, path: Path, settings: dict) -> None:
    """Save the picture with its settings as JSON in the PNG's text chunk named minisd."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("minisd", json.dumps(settings))
    picture.save(path, pnginfo=info)
    print(path)


def strip_path(path: Path) -> Path:
    return path.with_stem(f"{path.stem}-steps")


def side_by_side(pictures: list):
    """One wide picture of all, left to right."""
    from PIL import Image

    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (i * width, 0))
    return strip


def add_convert(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", help="FILE, FOLDER or NAME of a model")
    add("destination", type=Path, help="a .safetensors file, or a folder for diffusers")
    add("--half", action="store_true", help="store 16-bit numbers, half the size")
    add("--prediction", choices=("eps", "v"), help="where the file cannot say it")
    add("--keep-unused", action="store_true", help="copy what the model does not need as well")
    command.set_defaults(run=convert)


def convert(options: argparse.Namespace) -> None:
    """Write the model as an official single file (.safetensors) or as a diffusers folder."""
    import torch

    from minisd.checkpoints import write

    write.convert(
        options.model,
        options.destination,
        keep_unused=options.keep_unused,
        dtype=torch.float16 if options.half else None,
        prediction=options.prediction,
    )
    print(options.destination)


def add_info(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="FILE, FOLDER or NAME")
    command.set_defaults(run=info)


def info(options: argparse.Namespace) -> None:
    """Print what a checkpoint is, what it holds, and what of it is not needed."""
    from minisd.checkpoints.info import info as describe

    print(describe(options.model))


def examine() -> str:
    """What a run depends on, a line each, and below it what should be mended."""
    import torch

    from minisd import __version__
    from minisd.config import WEIGHTS

    mini = WEIGHTS / "mini.safetensors"
    speed = gigaflops(torch.float32)
    facts = {
        "minisd": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "float32": f"{speed:.0f} GFLOPS",
        "bfloat16": f"{gigaflops(torch.bfloat16):.0f} GFLOPS",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "mps": "yes" if torch.backends.mps.is_available() else "none",
        "mini model": f"{mini.stat().st_size / 1e6:.0f} MB" if mini.exists() else "missing",
    }
    facts |= {name: installed(name) for name in ("diffusers", "transformers", "huggingface_hub")}
    lines = [f"{name:16}{value}" for name, value in facts.items()]
    advice = to_mend(torch.__version__, speed, mini)
    return "\n".join([*lines, "", *(advice or ["Nothing to mend."])])


def installed(package: str) -> str:
    """The version of an optional package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed (optional)"


def to_mend(torch_version: str, speed: float, mini: Path) -> list[str]:
    """One sentence for each thing that stands in the way."""
    import torch

    advice = []
    if tuple(int(part) for part in torch_version.split(".")[:2]) < (2, 4):
        advice.append(f"torch {torch_version} is too old: pip install -U 'torch>=2.4'.")
    if not mini.exists():
        advice.append(f"{mini} is missing: clone the repository anew, with its weights folder.")
    if torch.get_num_threads() < (os.cpu_count() or 1) // 2:
        advice.append("torch uses few of the cores: unset OMP_NUM_THREADS.")
    if speed < 20:
        advice.append(f"{speed:.0f} GFLOPS is slow: close other programs, or lower --steps.")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        advice.append("torchvision does not match torch and breaks transformers: uninstall it.")
    return advice


def gigaflops(dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """How fast this machine multiplies matrices, in 10^9 operations a second."""
    import torch

    a = torch.randn(size, size).to(dtype)
    a @ a  # the first product also starts the threads
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        a @ a
        products += 1
    return 2 * size**3 * products / (time.perf_counter() - began) / 1e9


def add_train(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    stages = ("tokenizer", "vae", "diffusion", "export", "decoder", "classifier", "judge")
    add("stage", choices=(*stages, "evaluate"), help="in this order; each resumes")
    add("--folder", type=Path, default=Path("runs/mini"), help="of checkpoints, logs (runs/mini)")
    length = command.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="of training in all (the recipe's)")
    length.add_argument("--minutes", type=float, help="train about so long, in place of --steps")
    add("--seed", type=int, default=0, help="of the first weights and all batches (0)")
    add("-o", "--output", type=Path, help="the file, or evaluate's folder, to write")
    command.set_defaults(run=train)


def train(options: argparse.Namespace) -> None:
    """Train one stage of the mini model, export what is trained, or measure what is shipped."""
    from minisd.training import mini

    if options.output and options.stage != "evaluate":
        check_writable(options.output)
    names = ("folder", "output", "steps", "minutes", "seed")
    order = mini.Order(**{name: getattr(options, name) for name in names})
    mini.STAGES[options.stage](order)
    if options.output:
        print(options.output)
