"""Compare a recorded run of a port with a run of our networks on the same inputs."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from minisd.compare.align import Alignment, align_weights
from minisd.compare.calls import Call, watch_calls
from minisd.compare.hunt import Hunt
from minisd.compare.layouts import find_layout
from minisd.compare.record_run import INPUT_NAMES, NETWORKS, part_of
from minisd.compare.report import Report, join_names
from minisd.compare.run import conclude, judge_call
from minisd.compare.sides import MODEL_PARTS
from minisd.compare.trace_file import TraceFile
from minisd.compare.weights import weights_of
from minisd.compare.whole_run import compare_run
from minisd.pipeline import StableDiffusion

CLOSE = 0.02  # two outputs that differ by less than this come from the same module
FAR = 0.7  # two outputs that differ by more than this come from different modules
UNRELATED = 1.2  # inputs that differ more are two different tensors
CALLS_AHEAD = 60  # how many of our next calls are searched if no output is close


def compare_trace(
    sd: StableDiffusion, label: str, trace: TraceFile, rtol: float | None = None
) -> Report:
    """Run our networks on the inputs in the trace, and compare the outputs.

    label: the name of our model in the report
    rtol: the largest error that is accepted, as in compare()
    Raises ValueError if the trace has no inputs for any network, or if it holds only statistics.
    """
    if trace.stats:
        what = f"{trace.label} holds statistics only"
        raise ValueError(
            f"{what}. Compare it with `minisd verify`, or write a trace without --stats."
        )
    report = Report(labels=(label, trace.label))
    ours = replay(sd, trace)
    if not ours:
        names = ", ".join(f"inputs/{one}.0" for names in INPUT_NAMES.values() for one in names)
        what = f"{trace.label} does not say what it was run on"
        raise ValueError(f"{what}. Add the inputs of at least one network: {names}.")
    whole = nn.ModuleDict()  # one tree of all networks, so that a name is a path
    for part in MODEL_PARTS:
        whole[part] = getattr(sd, part)
    judge_calls(report, whole, ours, trace, rtol)
    for row, cause, left in compare_run(sd, trace):
        report.rows.append(row)
        if report.first is None and not row.error <= row.tolerance:
            report.first, report.cause, report.left = row, cause, left
    return report


def judge_calls(
    report: Report, whole: nn.Module, ours: list[Call], trace: TraceFile, rtol: float | None
) -> None:
    """Compare every call of the trace, and find the cause of the first error."""
    calls: dict[str, list[Call]] = {}
    for call in ours:
        calls.setdefault(call.name, []).append(call)
    hunt = Hunt(whole, calls, align_trace(whole, ours, trace), rtol)
    for call in trace.calls:
        judge_call(report, "", hunt, call)
    conclude(report, "", hunt)


def replay(sd: StableDiffusion, trace: TraceFile) -> list[Call]:
    """Run our networks on the inputs of the trace. Returns every call, in order."""
    ours: list[Call] = []
    numbers: dict[str, int] = {}

    def keep(network: str, call: Call) -> None:
        call.name = join_names(network, call.name)
        call.number = numbers[call.name] = numbers.get(call.name, -1) + 1
        ours.append(call)

    for network in NETWORKS:
        for given in inputs_of(network, trace.inputs, sd):
            part = part_of(sd, network)
            with torch.no_grad(), watch_calls(part, lambda c, n=network: keep(n, c), copy=False):
                part(*given)
    return ours


def inputs_of(
    network: str, inputs: dict[str, Tensor], sd: StableDiffusion
) -> Iterable[tuple[Tensor, ...]]:
    """Yield the inputs of one network for each of its calls. The name "x" counts as "x.0"."""
    names, dtype = INPUT_NAMES[network], next(part_of(sd, network).parameters()).dtype
    for number in range(len(inputs)):
        keys = [(f"{name}.{number}", name) for name in names]
        found = [inputs.get(a, inputs.get(b) if number == 0 else None) for a, b in keys]
        if any(one is None for one in found):
            return
        tensors = [one.to(sd.device) for one in found if one is not None]
        wide = [one.to(dtype) if one.is_floating_point() else one for one in tensors]
        if network == "unet":
            wide[1] = tensors[1]  # t keeps its precision
            wide[1] = wide[1].reshape(-1).expand(len(wide[0])) if wide[1].numel() == 1 else wide[1]
        yield tuple(wide)


def align_trace(whole: nn.Module, ours: list[Call], trace: TraceFile) -> Alignment:
    """Match their modules with ours.

    This uses the fingerprints of the weights if the trace has them. Otherwise, it uses the running
    order and the values of the outputs.
    """
    if trace.weights:
        modules = {call.name for call in trace.calls}
        return align_weights(whole, weights_of(whole), trace.weights, modules)
    return Alignment({}, align_by_values(ours, trace.calls))


def align_by_values(ours: list[Call], theirs: list[Call]) -> dict[str, str]:
    """Match their modules with ours by the values of inputs and outputs.

    A module of theirs and one of ours belong together if their outputs are nearly equal. After an
    error, no outputs are equal. Modules then belong together if they got the same inputs, or else
    if their outputs are the most similar among our next calls.

    ours, theirs: calls in running order
    Returns a dictionary: their module's name -> our module's name.
    """
    matched: dict[str, str] = {}
    place = 0
    for call in theirs:
        if not call.outputs or call.name in matched:
            continue
        later = ours[place:]
        gaps = {
            i: (gap(call.outputs[0], one.outputs[0]), input_gap(call, one))
            for i, one in enumerate(later)
            if one.outputs and one.outputs[0].numel() == call.outputs[0].numel()
        }
        same = [i for i in gaps if call.inputs and gaps[i][1] < CLOSE]
        close = [i for i in gaps if gaps[i][0] < CLOSE]
        both = [i for i in same if i in close]
        near = both or same or close or [i for i in gaps if i < CALLS_AHEAD]
        found = min(near, key=lambda i, gaps=gaps: gaps[i], default=None)
        if found is not None and not same and (gaps[found][0] > FAR or gaps[found][1] > UNRELATED):
            found = None
        if found is not None:
            matched[call.name] = later[found].name
            place += found + 1
    return matched


def gap(theirs: Tensor, ours: Tensor) -> float:
    return find_layout(theirs, ours, CLOSE / 10)[1]


def input_gap(theirs: Call, ours: Call) -> float:
    """How much our inputs differ from theirs.

    This number decides if several of our outputs are equally similar to their output.
    """
    if not theirs.inputs or not ours.inputs:
        return 0.0
    return max(min(gap(one, our) for one in theirs.inputs) for our in ours.inputs)
