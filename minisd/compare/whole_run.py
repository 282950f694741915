"""Check the timesteps, the guidance and the sampler's steps of a recorded drawing.

Each step is computed again from the x that the trace has before this step. So the errors of earlier
steps do not add up.
"""

from collections.abc import Callable, Iterator, Mapping

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
Finding = tuple[Comparison, str | None, float | None]  # result, cause, difference that is left


def compare_run(ours: Side | TraceFile, trace: TraceFile) -> Iterator[Finding]:
    """Compare the timesteps and the steps of a trace, if the trace states its settings.

    The settings are steps, cfg_scale and sampler. The steps are compared only for DDIM and Euler.
    Other samplers use earlier steps or draw noise, so only their timesteps are compared. Nothing is
    compared for PLMS and Heun, which call the network twice in some steps.
    """
    settings, xs = trace.settings, states(trace.inputs)
    known = isinstance(settings.get("steps"), int) and len(xs) > 1
    if not known or isinstance(ours, TraceFile) or ours.load is None:
        return
    sd = ours.load()
    name = settings.get("sampler") or sd.config.sampler
    if name in ("plms", "heun"):
        return
    levels = sampler_levels(name, sd.schedule, settings["steps"], settings.get("spacing"))
    ts = [trace.inputs[f"t.{i}"].double().flatten()[0].item() for i in range(len(xs))]
    expected = [level.t for level in levels[: len(ts)]]
    finding = compare_times(sd, name, settings["steps"], ts, expected)
    yield finding
    if name not in ("ddim", "euler") or finding[0].error > MOST_T_ERROR:
        return
    scale = settings.get("cfg_scale", settings.get("cfg"))
    scale = sd.config.cfg_scale if scale is None else float(scale)
    for i in range(len(xs) - 1):
        yield compare_step(sd, name, levels[i : i + 2], trace.inputs, i, scale)


def states(inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The x before each call of the U-Net: x.0, x.1 and so on. It ends at the first missing one."""
    found = []
    while f"x.{len(found)}" in inputs and f"t.{len(found)}" in inputs:
        found.append(inputs[f"x.{len(found)}"])
    return found


def compare_times(
    sd: StableDiffusion, name: str, steps: int, ts: list[float], expected: list[float]
) -> Finding:
    """Compare the timesteps. If they differ, find the spacing or the offset that explains this."""
    theirs, ours = torch.tensor(ts), torch.tensor(expected, dtype=torch.float32)
    _, largest, cosine, _ = errors(theirs, ours)
    gap = (theirs - ours).abs().max().item()
    shape = (len(ts),)
    row = Comparison("timesteps", "inputs/t", 0, shape, gap, largest, cosine, gap, MOST_T_ERROR)
    tries = {"timesteps one too large": ours + 1, "timesteps one too small": ours - 1}
    tries |= {"timesteps rounded down": ours.floor(), "timesteps rounded": ours.round()}
    for spacing in SPACINGS:
        levels = sampler_levels(name, sd.schedule, steps, spacing)[: len(ts)]
        tries[f"the timesteps of the spacing {spacing}"] = torch.tensor([one.t for one in levels])
    return row, *explain_gap(
        row, theirs, {what: lambda t=t: t for what, t in tries.items()}, MOST_T_ERROR
    )


def explain_gap(
    row: Comparison, theirs: Tensor, tries: Mapping[str, Callable[[], Tensor]], most: float
) -> tuple[str | None, float | None]:
    """Find the first mistake that gives their tensor.

    tries: mistake in words -> function that computes our tensor with this mistake
    most: the largest difference that may be left
    Returns the mistake and the difference that is left. Both are None if no mistake fits.
    """
    for what, attempt in tries.items() if row.error > row.tolerance else ():
        left = (theirs - attempt()).abs().max().item()
        if left <= most:
            return what, left
    return None, None


def compare_step(
    sd: StableDiffusion,
    name: str,
    pair: list[Level],
    inputs: Mapping[str, Tensor],
    number: int,
    scale: float,
) -> Finding:
    """Compute one step from their x, and compare the result with their next x.

    With guidance, each x in the trace is a batch of two equal halves: one for the empty prompt and
    one for the prompt.
    """
    keys = (f"x.{number}", f"context.{number}", f"x.{number + 1}")
    both, context, later = (inputs[key] for key in keys)
    half = len(both) // 2 if scale not in (0.0, 1.0) else 0
    x, target, uncond, cond = both[half:], later[half:], context[:half], context[half:]

    def step(scale: float, swapped: bool = False, pair: list[Level] = pair) -> Tensor:
        first, second = (cond, uncond) if swapped else (uncond, cond)
        objective, guided = sd.config.schedule.prediction, scale if half else 1.0
        denoise = guided_denoiser(sd.unet, objective, second, first if half else None, guided)
        with torch.no_grad():
            (made,) = sampler_for(name, pair)(denoise, x, pair, None)
        return made.x

    shape, measured = tuple(x.shape), errors(target, step(scale))[:3]
    theirs = f"inputs/{keys[2]}"
    row = Comparison(
        f"step {number}", theirs, number, shape, *measured, measured[0], STEP_TOLERANCE
    )
    clean = [pair[0], pair[1]._replace(sigma=0.0)]
    tries = {
        "guidance with the two halves swapped": lambda: step(scale, swapped=True),
        "guidance with a scale that is one larger": lambda: step(scale + 1),
        "guidance with a scale that is one smaller": lambda: step(scale - 1),
        "no guidance": lambda: step(1.0),
        "a step that leaves no noise (alpha_bar 1)": lambda: step(scale, pair=clean),
    }
    return row, *explain_gap(row, target, tries, 10 * STEP_TOLERANCE * target.std().item())
