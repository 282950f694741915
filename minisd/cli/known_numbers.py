"""Check a model against numbers that were published or recorded before.

For the mini, the numbers are statistics of a recorded run. For official weights, the numbers are
small parts of pictures. They come from the tests of diffusers.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import minisd
from minisd.checkpoints.registry import local_path
from minisd.compare.run import replay
from minisd.compare.sides import our_side
from minisd.compare.trace_file import INPUT_NAMES, read_trace, statistics
from minisd.pipeline import StableDiffusion

GOLDENS = json.loads(Path(__file__).with_name("goldens.json").read_text(encoding="utf-8"))
MINI_RUN = Path(__file__).with_name("mini-run.safetensors")
# The largest error of a statistic, relative to the spread of the tensor, by precision.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-1, torch.float16: 6e-2}


class Check(NamedTuple):
    """The result of one check.

    name: what was checked
    error: the largest difference. For statistics, it is relative to the spread of the tensor
    tolerance: the largest error that is accepted
    """

    name: str
    error: float
    tolerance: float

    @property
    def is_ok(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.is_ok else "WRONG"
        return f"{verdict:6} {self.name}: off by {self.error:.1e}, of at most {self.tolerance:.0e}"


def verify_mini(sd: StableDiffusion, label: str) -> list[Check]:
    """Run the mini on the inputs of its recorded run. Returns one check for each network."""
    trace, side = read_trace(MINI_RUN), our_side(sd, label)
    runs = replay(nn.ModuleDict(side.networks), side, trace)
    ours = {(call.name, call.number): statistics(call.name, call.outputs[0]) for call in runs}
    checks = []
    for network in INPUT_NAMES:
        calls = [call for call in trace.calls if call.name.startswith(network)]
        errors = [statistics_error(ours[call.name, call.number], call.outputs[0]) for call in calls]
        if errors:  # if one error is NaN, np.max is NaN, too
            checks.append(Check(f"{network}, {label}", float(np.max(errors)), TOLERANCES[sd.dtype]))
    return checks


def statistics_error(ours: Tensor, recorded: Tensor) -> float:
    """The largest difference between two sets of statistics, relative to the tensor's spread.

    The difference of the smallest values and that of the largest values are divided by 4.
    """
    gap = (ours - recorded).abs() / recorded[:, 1:2].clamp(min=1e-6)
    gap[:, 2:4] /= 4  # the smallest and the largest value vary most
    return gap.max().item()


def verify_published(sd: StableDiffusion, name: str) -> list[Check]:
    """Draw with an official model, and compare a part of each picture with published numbers.

    name: the name that `minisd download` uses for the model
    """
    checks = []
    latent = torch.from_numpy(np.random.RandomState(0).standard_normal((1, 4, 64, 64))).float()
    for golden in GOLDENS["models"][name]:
        sampler = golden["sampler"]
        *_, last = sd.txt2img_steps(**GOLDENS["settings"], sampler=sampler, latent=latent)
        image = (sd.decode(last.x) / 2 + 0.5).clamp(0, 1)
        found = image[0, -1, -3:, -3:].flatten().cpu().numpy()  # the last channel, as in diffusers
        error = float(np.abs(found - golden["slice"]).max())
        checks.append(Check(f"diffusers' {golden['name']}", error, golden["tolerance"]))
    return checks


def mini_ways() -> list[tuple[str, torch.dtype]]:
    """The devices and precisions in which the mini is checked.

    On the CPU, the mini is checked in every precision. On other devices, only float32 is checked.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    others = [(device, torch.float32) for device, is_present in present.items() if is_present]
    return [*(("cpu", dtype) for dtype in TOLERANCES), *others]


def run_checks(name: str | None) -> list[Check]:
    """Run the checks of one model.

    name: the name of the model. None: the mini, and all official models that were downloaded
    """
    checks = []
    for device, dtype in mini_ways() if name in (None, "mini") else ():
        label = f"{device}, {str(dtype).removeprefix('torch.')}"
        checks += verify_mini(minisd.load("mini", device=device, dtype=dtype), label)
    for model in GOLDENS["models"]:
        if name == model or (name is None and is_there(model)):
            checks += verify_published(minisd.load(model), model)
    return checks


def is_there(model: str) -> bool:
    """Whether an official model was downloaded."""
    try:
        return bool(local_path(model))
    except ValueError:
        return False
