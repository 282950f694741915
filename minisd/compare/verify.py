"""Check a model against numbers that were published or recorded before.

For the mini, these are statistics of a recorded run. For official weights, they are slices of
pictures from the tests of diffusers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import minisd
from minisd.checkpoints.registry import OFFICIAL, local_path
from minisd.compare.run import replay
from minisd.compare.sides import our_side
from minisd.compare.trace_file import INPUT_NAMES, KEPT_VALUES, read_trace, statistics
from minisd.pipeline import StableDiffusion

GOLDENS = json.loads(Path(__file__).with_name("goldens.json").read_text(encoding="utf-8"))
MINI_RUN = Path(__file__).with_name("mini-run.safetensors")
# The largest error of a statistic, relative to the spread of the tensor, by precision.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 6e-2, torch.bfloat16: 3e-1}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    name: what was checked
    error: the largest difference. For statistics, it is relative to the tensor's spread.
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
    ours = {
        (call.name, call.number): statistics(call.name, call.outputs[0])
        for call in replay(nn.ModuleDict(side.networks), side, trace)
    }
    checks = []
    for network in INPUT_NAMES:
        errors = [
            statistics_error(ours[call.name, call.number], call.outputs[0])
            for call in trace.calls
            if f"{call.name}.".startswith(f"{network}.")
        ]
        if errors:
            worst = float(np.max(errors))  # NaN if one is
            checks.append(Check(f"{network}, {label}", worst, TOLERANCES[sd.dtype]))
    return checks


def statistics_error(ours: Tensor, recorded: Tensor) -> float:
    """The largest difference between two sets of statistics, relative to the spread.

    Differences of the smallest and of the largest value are divided by 4.
    """
    spread = recorded[:, 1:2].clamp(min=1e-6)
    gap = (ours - recorded).abs() / spread
    gap[:, 2:4] /= 4  # the smallest and the largest value vary most
    assert recorded.shape[1] == 4 + KEPT_VALUES
    return gap.max().item()


def verify_published(sd: StableDiffusion, name: str) -> list[Check]:
    """Draw with an official model, and compare slices of the pictures with published ones.

    name: the name that `minisd download` uses for the model
    """
    checks = []
    noise = np.random.RandomState(0).standard_normal((1, 4, 64, 64)).astype(np.float32)
    for golden in GOLDENS["checks"]:
        if golden["model"] != name:
            continue
        settings = {key: GOLDENS[key] for key in ("prompt", "steps", "cfg_scale")}
        latent = torch.from_numpy(noise)
        for step in sd.txt2img_steps(**settings, sampler=golden["sampler"], latent=latent):
            x = step.x
        image = (sd.decode(x) / 2 + 0.5).clamp(0, 1)
        found = image[0, -1, -3:, -3:].flatten().cpu().double()  # the last channel, as diffusers'
        error = (found - torch.tensor(golden["slice"], dtype=torch.float64)).abs().max().item()
        checks.append(Check(f"diffusers' {golden['name']}", error, golden["tolerance"]))
    return checks


def published_models() -> list[str]:
    return list(dict.fromkeys(golden["model"] for golden in GOLDENS["checks"]))


def other_ways() -> list[tuple[str, str, torch.dtype]]:
    """The devices and precisions that can be checked besides float32 on the CPU.

    Returns a label, a device and a precision for each combination.
    """
    ways = [
        (f"cpu, {str(d).removeprefix('torch.')}", "cpu", d) for d in (torch.bfloat16, torch.float16)
    ]
    for device, present in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
    ):
        ways += [(f"{device}, float32", device, torch.float32)] if present else []
    return ways


def run_checks(name: str | None) -> list[Check]:
    """Run the checks of one model.

    name: the model. None: the mini, and all official models that were downloaded
    """
    checks = []
    if name in (None, "mini"):
        checks += verify_mini(minisd.load("mini"), "cpu, float32")
        for label, device, dtype in other_ways():
            checks += verify_mini(minisd.load("mini", device=device, dtype=dtype), label)
    for model in published_models():
        there = model in OFFICIAL and is_there(model)
        if name == model or (name is None and there):
            checks += verify_published(minisd.load(model), model)
    return checks


def is_there(model: str) -> bool:
    """Whether an official model was downloaded."""
    try:
        return bool(local_path(model))
    except ValueError:
        return False
