"""minisd bench: minisd and diffusers side by side, on the same weights, in turns.

Both do the same work: the same inputs, 77 tokens for each prompt, nothing kept from one run to the
next. A row counts only if both results agree. The ratio of a row is the median of the ratios of
its turns, so it hardly changes when other programs slow down both sides.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from minisd.cli.doctor import measure_gigaflops, system_load
from minisd.cli.messages import print_message, print_results

AGREE = 1e-4  # the largest difference of two results, as a share of their spread
STEPS, SCALE, DRAWN_PROMPT = 20, 7.5, "a cat on a blue background"
# The program of a process that draws one picture, and prints the most memory that it has used
DRAW_ONCE = """
import sys
from pathlib import Path
from minisd.cli import bench
folder, side, size = sys.argv[1:]
bench.drawing_functions(Path(folder), int(size))[side]()
print(bench.most_memory())
"""


class SideBySide(NamedTuple):
    """One kind of work. Each of the two functions does the work and returns its result.

    multiplications: of one run. None: unknown
    """

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    multiplications: int | None = None


class Times(NamedTuple):
    """The seconds of each turn, and the largest difference of the results."""

    row: SideBySide
    ours: list[float]
    theirs: list[float]
    error: float

    @property
    def ratios(self) -> list[float]:
        """How many times as fast our side was, in each turn."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]


def add_bench(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", nargs="?", default="mini", help="a model (FILE, FOLDER or NAME); the mini")
    add("--rounds", type=int, default=5, help="how many turns of each row (5)")
    add("--size", type=int, metavar="PIXELS", help="width and height of the picture (the model's)")


def bench_command(options: argparse.Namespace) -> None:
    """Print a table: the seconds of both sides, their ratio, and how near they are to the limit."""
    import torch

    from minisd.checkpoints.load import locate
    from minisd.checkpoints.write import convert

    if options.rounds < 1:
        raise ValueError(f"--rounds must be 1 or more, got {options.rounds}.")
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise ValueError("minisd bench compares with diffusers: pip install diffusers.") from error
    source = locate(options.model)
    with tempfile.TemporaryDirectory() as room:
        folder = source
        if not source.is_dir():
            folder = Path(room) / "model"
            convert(source, folder, dtype=torch.float32)
        with torch.no_grad():
            print_rows(folder, options)


def print_rows(folder: Path, options: argparse.Namespace) -> None:
    import torch

    if (load := system_load()) is not None and load > 0.5:
        print_message(f"{load:.1f} processes want a core already: the times will be too long.")
    peak = measure_gigaflops(torch.float32)
    size = options.size or load_ours(folder).config.size
    print_results(f"float32, {torch.get_num_threads()} threads, {size} x {size} pixels")
    print_results("| | minisd | diffusers | ratio (lowest to highest) | difference | of the peak |")
    print_results("|---|---|---|---|---|---|")
    for make in (rows_of_parts, rows_of_wholes):
        for row in make(folder, size):
            print_results(table_line(take_turns(row, options.rounds), peak))
    ours, theirs = (peak_memory(folder, size, side) for side in ("minisd", "diffusers"))
    print_results(f"| most memory | {ours:.2f} GB | {theirs:.2f} GB | {ours / theirs:.2f} | | |")
    print_results("", "| trick, alone | times as fast as the plain networks |", "|---|---|")
    for name, ratio in gains(folder, size, options.rounds):
        print_results(f"| {name} | {ratio:.2f} |")


def take_turns(row: SideBySide, rounds: int) -> Times:
    """Run both sides once to warm up and to compare them. Then run them in turns."""
    error = difference(row.ours(), row.theirs())
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(seconds(row.ours))
        theirs.append(seconds(row.theirs))
    return Times(row, ours, theirs, error)


def seconds(run: Callable[[], Any]) -> float:
    """The seconds that run() takes. Memory is freed before and after, not while the clock runs."""
    gc.collect()
    started = time.perf_counter()
    _kept = run()
    return time.perf_counter() - started


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference as a share of the spread."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().std())


def table_line(times: Times, peak: float) -> str:
    """A line of the table. peak: the most 10^9 operations per second of this machine"""
    ratios = times.ratios
    a, b = statistics.median(times.ours), statistics.median(times.theirs)
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    spread = spread if times.error < AGREE else "void: the results differ"
    counted = times.row.multiplications
    share = "" if counted is None else f"{2 * counted / a / 1e9 / peak:.0%}"
    return f"| {times.row.name} | {a:.3f} s | {b:.3f} s | {spread} | {times.error:.0e} | {share} |"


# ---- what is compared ------------------------------------------------------------------------


def load_ours(folder: Path) -> Any:
    import minisd

    return minisd.load(folder)


def load_theirs(folder: Path) -> Any:
    """The pipeline of diffusers with the sampler DDIM, and without progress bars."""
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    quiet = {"safety_checker": None, "requires_safety_checker": False}
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder, feature_extractor=None, **quiet)
    rules = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, **rules)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float32)


def load_and_read(load: Callable[[Path], Any], folder: Path):
    """Load a model and read every weight. Returns the sum of each weight, in order of size."""
    import torch

    loaded = load(folder)
    networks = torch.nn.ModuleList([loaded.text_encoder, loaded.unet, loaded.vae])
    sums = torch.stack([weight.detach().sum() for weight in networks.parameters()]).sort().values
    vars(sums)["loaded"] = loaded  # so that freeing it is not timed
    return sums


def rows_of_parts(folder: Path, size: int) -> list[SideBySide]:
    """Each network alone. The U-Net runs on two samples: without and with the prompt."""
    import torch

    from minisd.teaching.work import count_multiplications

    sd, pipe = load_ours(folder), load_theirs(folder)
    generator = torch.Generator().manual_seed(0)
    side = size // sd.config.vae.factor
    x = torch.randn(2, sd.config.unet.in_channels, side, side, generator=generator)
    image = torch.rand(1, 3, size, size, generator=generator) * 2 - 1
    tokens, t = sd.tokenizer(["", DRAWN_PROMPT]), torch.tensor([500, 500])
    context, z = sd.text_encoder(tokens), x[:1, : sd.config.vae.latent_channels]

    def work(network: Any, *inputs: Any) -> int:
        return sum(count_multiplications(network, *inputs).values())

    text = (lambda: sd.runner(sd.text_encoder)(tokens), lambda: pipe.text_encoder(tokens)[0])
    unet = sd.runner(sd.unet)  # one copy per picture, so one for all turns
    step = (lambda: unet(x, t, context), lambda: pipe.unet(x, t, context).sample)
    encode = (lambda: sd.runner(sd.vae.encoder)(image), lambda: moments(pipe.vae, image))
    decode = (lambda: sd.runner(sd.vae.decoder)(z), lambda: pipe.vae.decode(z).sample)
    return [
        SideBySide("text transformer, 2 prompts", *text),
        SideBySide("one step of the U-Net, 2 samples", *step, work(sd.unet, x, t, context)),
        SideBySide("encoder", *encode, work(sd.vae.encoder, image)),
        SideBySide("decoder", *decode, work(sd.vae.decoder, z)),
    ]


def moments(vae: Any, image: Any):
    """What diffusers' encoder returns before it makes a Gaussian of it."""
    return vae.encode(image).latent_dist.parameters


def rows_of_wholes(folder: Path, size: int) -> list[SideBySide]:
    loads = (partial(load_and_read, load_ours, folder), partial(load_and_read, load_theirs, folder))
    drawn = drawing_functions(folder, size)
    return [
        SideBySide("load, until every weight is read", *loads),
        SideBySide(f"a picture, {STEPS} steps", drawn["minisd"], drawn["diffusers"]),
    ]


def drawing_functions(folder: Path, size: int) -> dict[str, Callable[[], Any]]:
    """A dictionary: side -> a function that draws the picture. Its first run loads the model."""
    import torch

    from minisd.checkpoints.load import own_vae_config

    shared = {"width": size, "height": size}
    ours, theirs = cache(partial(load_ours, folder)), cache(partial(load_theirs, folder))

    def draw_ours() -> Any:
        settings = {"steps": STEPS, "cfg_scale": SCALE, "sampler": "ddim", "latent": latent}
        *_, step = ours().txt2img_steps(DRAWN_PROMPT, **settings, **shared)
        return ours().decode(step.x).clamp(-1, 1)

    def draw_theirs() -> Any:
        settings = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "pt"}
        return theirs()(DRAWN_PROMPT, latents=latent, **settings, **shared).images * 2 - 1

    config = own_vae_config(folder)
    assert config is not None, "a folder of diffusers states the sizes of its VAE"
    shape = (1, config.latent_channels, size // config.factor, size // config.factor)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return {"minisd": draw_ours, "diffusers": draw_theirs}


def peak_memory(folder: Path, size: int, side: str) -> float:
    """The most memory, in GB, of a process that draws the picture with one side."""
    command = [sys.executable, "-c", DRAW_ONCE, str(folder), side, str(size)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(ran.stdout.split()[-1]) / 1e9


def most_memory() -> int:
    """The most memory that this process has used until now, in bytes.

    On Linux, getrusage() would also count the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
    import resource  # macOS: in bytes

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gains(folder: Path, size: int, rounds: int) -> Iterator[tuple[str, float]]:
    """For each trick of fast.py alone: how many times as fast the network is that has it."""
    import torch

    from minisd import fast, vae

    sd = load_ours(folder)
    side = size // sd.config.vae.factor
    x, t = torch.randn(2, sd.config.unet.in_channels, side, side), torch.tensor([500, 500])
    context, z = sd.embed(["", DRAWN_PROMPT]), x[:1, : sd.config.vae.latent_channels]
    for plain in [each for each in fast.TRICKS if each is not vae.Encoder.forward]:
        in_unet = "vae" not in plain.__module__
        network, inputs = (sd.unet, (x, t, context)) if in_unet else (sd.vae.decoder, (z,))
        with mock.patch.dict(fast.TRICKS, {plain: fast.TRICKS[plain]}, clear=True):
            twin = fast.fast_copy(network)
        row = SideBySide("", partial(twin, *inputs), partial(network, *inputs))
        ratio = statistics.median(take_turns(row, rounds).ratios)
        yield f"{fast.TRICKS[plain].__name__} in the {'U-Net' if in_unet else 'decoder'}", ratio
