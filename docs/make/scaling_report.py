"""How far many GPUs help, for drawing and for training: the tables of docs/many_pictures.md.

`python -m docs.make.scaling_report` computes the tables from docs/many_pictures.json (what was
measured here) and from the published figures below. With --measure, it measures first: this needs
15 GB of memory, 5 GB of disk and some minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from functools import cache
from math import ceil
from pathlib import Path

import torch

import minisd
from docs.make.mini_report import format_number, markdown, refill_page
from minisd.checkpoints import write
from minisd.checkpoints.checkpoint import Parts
from minisd.clip import TextTransformer
from minisd.config import MINI, SD15, ModelConfig
from minisd.files.whole_files import write_text
from minisd.teaching.work import count_multiplications, unet_multiplications
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE

PAGE = Path(__file__).parents[1] / "many_pictures.md"
MEASURED = PAGE.with_suffix(".json")

# Published facts about one GPU and its machine. docs/many_pictures.md names the sources.
PEAK = 312e12  # FLOPs per second of an A100 in 16 bit
STEPS_PER_SECOND = 21.66  # SD 1.5, 512 x 512, guided, batch size 1, torch 2.0 without compile
NVLINK = 300e9  # bytes per second and direction between the 8 GPUs of a machine
INFINIBAND = 8 * 25e9  # bytes per second between machines: eight links of 200 Gbit/s
TRAINED = {8: 290, 16: 585, 32: 1195, 64: 2340, 128: 4590}  # GPUs -> pictures of 512 x 512 a second

SMALLEST_STEP = 3 / STEPS_PER_SECOND  # s

# Assumptions without a source
GPUS_PER_MACHINE = 8
STORAGE = 10e9  # bytes per second of the disk that all machines share
ETHERNET = 1.25e9  # bytes per second between machines: one link of 10 Gbit/s
STEPS = 30
BATCH = 2048  # pictures, as in the training that TRAINED is about
FLOAT32 = 4  # bytes per parameter in the file, and per number of the gradient

DRAWING = (
    "GPUs | pictures per GPU | minutes | of these, to start | efficiency | the same for 100,000"
)
TRAINING = "GPUs | pictures per GPU | s to compute | s to send, InfiniBand | efficiency, if sending"
TRAINING += " overlaps | if it does not | s to send, Ethernet | efficiency, if it overlaps"


# ---- the work, counted -----------------------------------------------------------------------


@cache
def unet_flops(config: ModelConfig) -> float:
    """FLOPs of one sample of the U-Net: two for each multiplication, which is added to a sum."""
    side = config.size // config.vae.factor
    return 2 * sum(unet_multiplications(config.unet, config.vae.latent_channels, side).values())


@cache
def decoder_flops(config: ModelConfig) -> float:
    """FLOPs of decoding one latent."""
    side = config.size // config.vae.factor
    with torch.device("meta"):
        latent = torch.empty(1, config.vae.latent_channels, side, side)
        return 2 * sum(count_multiplications(VAE(config.vae).decoder, latent).values())


@cache
def parameters(config: ModelConfig) -> dict[str, int]:
    """The number of parameters of the U-Net, and of all networks."""
    with torch.device("meta"):
        unet, others = UNet(config.unet), [TextTransformer(config.text), VAE(config.vae)]
    counts = [sum(p.numel() for p in network.parameters()) for network in (unet, *others)]
    return {"unet": counts[0], "all": sum(counts)}


# ---- the model of the costs ------------------------------------------------------------------


def seconds_per_picture() -> float:
    """On one A100: the guided steps as published, and the decoder at the same FLOPs a second."""
    speed = 2 * unet_flops(SD15) * STEPS_PER_SECOND
    return STEPS / STEPS_PER_SECOND + decoder_flops(SD15) / speed


def seconds_to_start(gpus: int, loading: float) -> float:
    """Every machine reads the weights once from the shared disk. loading: on a free disk, in s"""
    machines = ceil(gpus / GPUS_PER_MACHINE)
    return loading + machines * FLOAT32 * parameters(SD15)["all"] / STORAGE


def seconds_to_draw(count: int, gpus: int, loading: float) -> float:
    """The time until the last of `count` pictures is drawn."""
    return seconds_to_start(gpus, loading) + ceil(count / gpus) * seconds_per_picture()


def seconds_to_send(gpus: int, size: float, between: float) -> float:
    """The time of a ring all-reduce of `size` bytes: each GPU sends 2 (n - 1) / n of them.

    The GPUs of a machine form one chain of the ring, so a machine sends no more than one GPU.

    between: bytes per second between two machines
    """
    bandwidth = NVLINK if gpus <= GPUS_PER_MACHINE else min(NVLINK, between)
    return 2 * (gpus - 1) / gpus * size / bandwidth


def seconds_to_compute(gpus: int) -> float:
    """The time of a training step without sending, from the published speed of 8 GPUs.

    The GPU also needs some time to start each of the U-Net's operations, however small the batch
    is. This is the time of a guided step with batch size 1, once forward and twice backward.
    """
    return max(SMALLEST_STEP, ceil(BATCH / gpus) * 8 / TRAINED[8])


# ---- the tables ------------------------------------------------------------------------------


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def drawing_rows(loading: float) -> list[list[str]]:
    rows = []
    for gpus in (1, 8, 64, 256, 512, 1000):
        taken = {count: seconds_to_draw(count, gpus, loading) for count in (10_000, 100_000)}
        useful = {count: count * seconds_per_picture() / gpus / taken[count] for count in taken}
        times = (taken[10_000] / 60, seconds_to_start(gpus, loading) / 60)
        shares = map(percent, useful.values())
        rows.append([f"{gpus:,}", f"{ceil(10_000 / gpus):,}", *map(format_number, times), *shares])
    return rows


def training_rows() -> list[list[str]]:
    size, rows = FLOAT32 * parameters(SD15)["unet"], []
    for gpus in (1, 8, 16, 32, 64, 128, 256, 512, 1024):
        compute, ideal = seconds_to_compute(gpus), BATCH / gpus * 8 / TRAINED[8]
        send, slow = (seconds_to_send(gpus, size, speed) for speed in (INFINIBAND, ETHERNET))
        shares = [ideal / max(compute, send), ideal / (compute + send), ideal / max(compute, slow)]
        overlapped, not_overlapped, over_ethernet = map(percent, shares)
        figures = [format_number(compute), format_number(send), overlapped, not_overlapped]
        figures += [format_number(slow), over_ethernet]
        rows.append([f"{gpus:,}", str(ceil(BATCH / gpus)), *figures])
    return rows


def published_rows() -> list[list[str]]:
    """What the model says for the published training, next to what was measured there."""
    size, rows = FLOAT32 * parameters(SD15)["unet"], []
    for gpus, measured in TRAINED.items():
        compute, send = seconds_to_compute(gpus), seconds_to_send(gpus, size, INFINIBAND)
        speeds = BATCH / (compute + send), BATCH / max(compute, send)
        rows.append([str(gpus), f"{measured:,}", *(f"{speed:,.0f}" for speed in speeds)])
    return rows


def work_rows(measured: dict) -> list[list[str]]:
    """What was counted and measured, and the FLOPs per second that follow."""
    guided, decoder = 2 * unet_flops(SD15), decoder_flops(SD15)
    speeds = [
        ("a guided step, this page's CPU", guided, measured["guided step"]),
        ("decoding, this page's CPU", decoder, measured["decoding"]),
        ("a guided step, A100", guided, 1 / STEPS_PER_SECOND),
        ("training with one picture, A100", 3 * unet_flops(SD15), 8 / TRAINED[8]),
    ]
    rows = []
    for what, flops, seconds in speeds:
        share = percent(flops / seconds / PEAK) if "A100" in what else "-"
        figures = (flops / 1e12, seconds, flops / seconds / 1e12)
        rows.append([what, *map(format_number, figures), share])
    return rows


def computed_parts(measured: dict) -> dict[str, str]:
    """The parts of docs/many_pictures.md that this program writes."""
    loading = measured["importing"] + measured["loading"]
    counts = parameters(SD15)
    gradient = FLOAT32 * counts["unet"] / 1e9
    alone = STEPS * measured["guided step"] + measured["decoding"]
    whole = BATCH * 8 / TRAINED[8]  # s that one GPU computes for a batch
    stops = [whole / (2 * gradient * 1e9 / speed) for speed in (INFINIBAND, ETHERNET)]
    facts = (
        f"SD 1.5 has {counts['all'] / 1e6:,.0f} million parameters, {counts['unet'] / 1e6:,.0f} "
        f"million of them in the U-Net. So the gradient has {gradient:.2f} GB in float32. A "
        f"picture with {STEPS} guided steps takes {alone / 60:.1f} minutes on the CPU of this page "
        f"({measured['threads']} threads), and {seconds_per_picture():.2f} s on an A100. Loading "
        f"takes {loading:.1f} s: {measured['importing']:.1f} s to import torch and minisd, "
        f"{measured['loading']:.1f} s for the weights. In the mini, the backward "
        f"pass takes {measured['backward / forward']:.1f} times as long as the forward pass."
    )
    return {
        "facts": textwrap.fill(facts, 120),
        "work": markdown("what | TFLOP | s | TFLOPS | of the peak", work_rows(measured)),
        "drawing": markdown(DRAWING, drawing_rows(loading)),
        "training": markdown(TRAINING, training_rows()),
        "stop": textwrap.fill(
            f"From {whole / SMALLEST_STEP:,.0f} GPUs on, a GPU has so few pictures that its step "
            f"does not get shorter. Without this limit, sending over InfiniBand would take longer "
            f"than computing from {stops[0]:,.0f} GPUs on. Over Ethernet, sending takes longer "
            f"from {stops[1]:,.0f} GPUs on, so from the second machine on.",
            120,
        ),
        "published": markdown(
            "GPUs | measured | model, sending does not overlap | model, it overlaps",
            published_rows(),
        ),
    }


# ---- measuring -------------------------------------------------------------------------------


def fastest(action: Callable[[], object], times: int) -> float:
    """The seconds of the fastest of several calls."""
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def backward_over_forward() -> float:
    """How many times as long as the forward pass the gradient of the mini's U-Net takes."""
    unet, x = UNet(MINI.unet), torch.randn(16, 4, 8, 8)
    inputs = x, torch.full((16,), 500.0), torch.randn(16, 77, MINI.unet.context_dim)
    forward = fastest(lambda: unet(*inputs), 9)
    return fastest(lambda: unet(*inputs).square().mean().backward(), 9) / forward - 1


def seconds_to_import() -> float:
    """How long a new process takes to import torch and minisd."""
    command = [sys.executable, "-c", "import minisd.pipeline"]
    return fastest(lambda: subprocess.run(command, check=True), 3)


def measure() -> dict:
    """Measure SD 1.5 with random weights."""
    measured = {"threads": torch.get_num_threads(), "importing": seconds_to_import()}
    measured["backward / forward"] = backward_over_forward()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd15.safetensors"
        networks = TextTransformer(SD15.text), UNet(SD15.unet), VAE(SD15.vae)
        write.save(path, Parts(SD15, Tokenizer.clip(), *networks))
        del networks
        settings = {"prediction": "eps"}
        measured["loading"] = fastest(lambda: minisd.load(path, **settings), 2)
        sd = minisd.load(path, **settings)
        side, context = SD15.size // SD15.vae.factor, sd.embed(["", "a cat"])
        x, t = torch.randn(2, SD15.vae.latent_channels, side, side), torch.full((2,), 500.0)
        measured["guided step"] = fastest(lambda: sd.unet(x, t, context), 3)
        measured["decoding"] = fastest(lambda: sd.decode(x[:1]), 2)
    return {name: round(value, 3) for name, value in measured.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m docs.make.scaling_report")
    parser.add_argument("--measure", action="store_true", help="measure first, with idle cores")
    options = parser.parse_args()
    if options.measure:
        write_text(MEASURED, json.dumps(measure(), indent=1) + "\n")
    figures = json.loads(MEASURED.read_text(encoding="utf-8"))
    refill_page(PAGE, computed_parts(figures))
