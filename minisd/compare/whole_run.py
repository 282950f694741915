"""Check the timesteps, the guidance and the sampler's steps of a recorded drawing.

Each step is computed again from the x that the trace has before this step. So the errors of earlier
steps do not add up.
"""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from minisd.compare.hunt import Comparison
from minisd.compare.layouts import errors
from minisd.compare.sides import Side
from minisd.compare.trace_file import TraceFile
from minisd.guidance import guided_denoiser
from minisd.pipeline import StableDiffusion
from minisd.sampling import SPACINGS, sampler_for, sampler_levels
from minisd.schedule import Level

STEP_TOLERANCE = 1e-4  # the largest error of one step, in float32
MOST_T_ERROR = 1e-3  # the largest error of a timestep, which need not be a whole number
Tries = Iterable[tuple[str, Tensor]]  # a mistake in words, and our tensor with this mistake
Finding = tuple[Comparison, str | None, float | None]  # result, cause, difference that is left


def compare_run(ours: Side | TraceFile, trace: TraceFile) -> Iterator[Finding]:
    """Compare the timesteps and the steps of a trace, if the trace states its settings.

    The settings must contain the number of steps. They may also contain cfg_scale, sampler and
    spacing. The steps are compared only for DDIM and Euler. Other samplers use earlier steps or
    draw noise, so only their timesteps are compared. Nothing is compared for PLMS and Heun, because
    they call the network twice in some steps.
    """
    settings, inputs, steps = trace.settings, trace.inputs, trace.settings.get("steps")
    calls = next(i for i in count() if not {f"x.{i}", f"t.{i}"} <= inputs.keys())
    if not isinstance(steps, int) or calls < 2 or isinstance(ours, TraceFile) or ours.load is None:
        return
    sd = ours.load()
    name = settings.get("sampler") or sd.config.sampler
    if name in ("plms", "heun"):
        return
    ts = torch.stack([inputs[f"t.{i}"].flatten()[0].float() for i in range(calls)])
    yield (finding := compare_times(sd, name, trace, ts))
    if name in ("ddim", "euler") and not finding[0].error > MOST_T_ERROR:
        levels = sampler_levels(name, sd.schedule, steps, settings.get("spacing"))
        for i in range(calls - 1):
            yield compare_step(sd, name, levels[i : i + 2], trace, i)


def compare_times(sd: StableDiffusion, name: str, trace: TraceFile, theirs: Tensor) -> Finding:
    """Compare the timesteps. If they differ, find a mistake that explains the difference."""

    def times(spacing: str | None) -> Tensor:
        levels = sampler_levels(name, sd.schedule, trace.settings["steps"], spacing)
        return torch.tensor([level.t for level in levels[: len(theirs)]]).float()

    ours = times(trace.settings.get("spacing"))
    _, largest, cosine, _ = errors(theirs, ours)
    gap, shape = (theirs - ours).abs().max().item(), tuple(theirs.shape)
    row = Comparison("timesteps", "inputs/t", 0, shape, gap, largest, cosine, gap, MOST_T_ERROR)
    tries = {"timesteps one too large": ours + 1, "timesteps one too small": ours - 1}
    tries |= {"timesteps rounded down": ours.floor(), "timesteps rounded": ours.round()}
    tries |= {f"the timesteps of the spacing {spacing}": times(spacing) for spacing in SPACINGS}
    return explain_gap(row, theirs, tries.items(), MOST_T_ERROR)


def explain_gap(row: Comparison, theirs: Tensor, tries: Tries, most: float) -> Finding:
    """Find the first mistake with which our tensor agrees with theirs.

    tries: the mistakes in words, and our tensor with each mistake
    most: the largest difference between two tensors that agree
    """
    for what, ours in tries if row.error > row.tolerance else ():
        left = (theirs - ours).abs().max().item()
        if left <= most:
            return row, what, left
    return row, None, None


def compare_step(
    sd: StableDiffusion, name: str, pair: list[Level], trace: TraceFile, number: int
) -> Finding:
    """Compute one step from their x, and compare the result with their next x.

    With guidance, each x in the trace is a batch of two equal halves: one for the empty prompt and
    one for the prompt.
    """
    stated = trace.settings.get("cfg_scale", trace.settings.get("cfg"))
    scale = float(sd.config.cfg_scale if stated is None else stated)
    keys = f"x.{number}", f"context.{number}", f"x.{number + 1}"
    guided = scale not in (0.0, 1.0) and len(trace.inputs[keys[0]]) > 1
    halves = (trace.inputs[key].chunk(2) if guided else [trace.inputs[key]] * 2 for key in keys)
    (_, x), (uncond, cond), (_, target) = halves
    usual = {"context": cond, "uncond_context": uncond, "cfg_scale": scale}

    def step(end: Level = pair[1], **changes: Any) -> Tensor:
        denoise = guided_denoiser(sd.unet, sd.config.schedule.prediction, **(usual | changes))
        (made,) = sampler_for(name, pair)(denoise, x, [pair[0], end], None)
        return made.x

    measured = errors(target, step())[:3]
    names = f"step {number}", f"inputs/{keys[2]}"
    row = Comparison(*names, number, tuple(x.shape), *measured, measured[0], STEP_TOLERANCE)
    tries = {
        "guidance with the two halves swapped": {"context": uncond, "uncond_context": cond},
        "guidance with a scale that is one larger": {"cfg_scale": scale + 1},
        "guidance with a scale that is one smaller": {"cfg_scale": scale - 1},
        "no guidance": {"cfg_scale": 1.0},
    }
    tries = tries if guided else {}
    tries["a step that leaves no noise (alpha_bar 1)"] = {"end": pair[1]._replace(sigma=0.0)}
    steps = ((what, step(**changes)) for what, changes in tries.items())
    return explain_gap(row, target, steps, 10 * STEP_TOLERANCE * target.std().item())
