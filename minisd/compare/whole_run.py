"""What happens between the networks' calls in a recorded drawing: timesteps, guidance, steps.

Each step is computed again from the x that the trace has there, so that errors do not add up.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from minisd.compare.hunt import Comparison, errors
from minisd.compare.trace_file import TraceFile
from minisd.guidance import guided_denoiser
from minisd.pipeline import StableDiffusion
from minisd.sampling import SPACINGS, sampler_for, sampler_levels
from minisd.schedule import Level

STEP_TOLERANCE = 1e-4  # of one whole step, in float32
MOST_T_ERROR = 1e-3  # of a timestep, which may have a fraction
Finding = tuple[Comparison, str | None, float | None]  # with the cause, and what is left with it


def compare_run(sd: StableDiffusion, trace: TraceFile) -> Iterator[Finding]:
    """Judge timesteps and steps of a trace that states steps, cfg_scale and sampler.

    Samplers that look back at earlier steps, or draw noise, are judged by their timesteps only, and
    those that call the network twice in a step not at all.
    """
    settings, xs = trace.settings, states(trace.inputs)
    if not isinstance(settings.get("steps"), int) or len(xs) < 2:
        return
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
    """x before each call of the U-Net, as long as they are numbered without a gap."""
    found = []
    while f"x.{len(found)}" in inputs and f"t.{len(found)}" in inputs:
        found.append(inputs[f"x.{len(found)}"])
    return found


def compare_times(
    sd: StableDiffusion, name: str, steps: int, ts: list[float], expected: list[float]
) -> Finding:
    """The timesteps, and the spacing or the offset that explains others."""
    theirs, ours = torch.tensor(ts), torch.tensor(expected, dtype=torch.float32)
    _, largest, cosine = errors(theirs, ours)
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
    """The first attempt that gives theirs, and what is left. (None, None) if none does.

    most: the largest difference that may be left
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
    """One step from their x to their next x. With guidance, both are there twice, in two halves."""
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

    shape, measured = tuple(x.shape), errors(target, step(scale))
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
