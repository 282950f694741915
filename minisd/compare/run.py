"""Compare two networks, or two sides. A side is a model, a port or a trace."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from minisd.compare.align import align
from minisd.compare.align_by_values import align_by_values
from minisd.compare.calls import Call, watch_calls
from minisd.compare.causes import find_cause
from minisd.compare.hunt import ROUNDING_ONLY, ErrorLimits, Hunt, record
from minisd.compare.layouts import same_numbers
from minisd.compare.report import Report, join_names, neighbourhood, place_of, powers_of_ten
from minisd.compare.sides import Side, make_inputs
from minisd.compare.trace_file import INPUT_NAMES, TraceFile
from minisd.compare.whole_run import compare_run

NO_WEIGHTS = "{} shares no weights with {}. Load the same weights into both."
Runner = Callable[[nn.Module], object]


def compare(
    reference: nn.Module,
    port: nn.Module,
    inputs: tuple,
    rtol: float | None = None,
    atol: float = 0.0,
    call: Callable | None = None,
) -> Report:
    """Run two networks on the same inputs. Report where the port first differs, and why.

    reference: one of minisd's networks, or a module in one of them
    port: the network to judge
    inputs: the arguments for the reference, such as (x, t, context)
    rtol: the largest root mean square error of a module that is accepted, relative to the spread of
        its output. None: the largest error that rounding explains. Rounding depends on the coarser
        of the two precisions
    atol: an absolute error that is accepted in addition
    call: a function call(port, *inputs) that runs the port. It is needed if the port takes other
        arguments than the reference

    Raises ValueError if the networks share no weights, or if the port raises an error when it runs.
    """
    report = Report(limits=ErrorLimits(rtol, atol))
    run_theirs = (lambda port: call(port, *inputs)) if call else (lambda port: port(*inputs))
    compare_part(report, "", reference, port, lambda ours: ours(*inputs), run_theirs)
    return report


def compare_part(
    report: Report,
    part: str,
    reference: nn.Module,
    port: nn.Module,
    run_ours: Runner,
    run_theirs: Runner,
) -> None:
    """Compare one network, and add the results to the report."""
    calls = record(reference, lambda: run_ours(reference))
    order = cache(lambda: running_order(port, run_theirs))
    tolerance = align_tolerance(reference, port)
    alignment = align(
        reference, port, [*dict.fromkeys(call.name for call in calls)], order, tolerance
    )
    if not alignment.modules:
        raise ValueError(NO_WEIGHTS.format(part or "the port", "the reference"))
    hunt = Hunt(dict(reference.named_modules()), calls, alignment, report.limits)
    try:
        with torch.no_grad(), watch_calls(port, hunt.judge):
            run_theirs(port)
    except Exception as error:
        where = "before any module ended" if hunt.last is None else f"after {hunt.last}"
        what = f"the port broke {where}: {type(error).__name__}: {error}"
        raise ValueError(what) from error
    conclude(report, part, hunt, port)


def running_order(network: nn.Module, run: Runner) -> list[str]:
    """Run a network. Returns the names of its modules in the order in which they first returned.

    If the network raises an error, the list contains only the modules that returned before.
    """
    names: dict[str, None] = {}
    watch = watch_calls(network, lambda call: names.setdefault(call.name))
    with torch.no_grad(), watch, suppress(Exception):  # compare_part() reports the error
        run(network)
    return list(names)


def conclude(report: Report, part: str, hunt: Hunt, port: nn.Module | None = None) -> None:
    """Add the results of one network to the report.

    If no earlier network has an error, also find the first error of this network, and its cause.

    port: their network. None: there is only a trace of their network
    """
    first = hunt.first_source
    if report.nan is None and hunt.nan is not None:
        report.nan = join_names(part, hunt.nan)
    rows = [replace(row, name=join_names(part, row.name)) for row in hunt.rows]
    if first is not None and report.first is None:
        name, cases = hunt.locate(first)
        report.first = replace(first, name=join_names(part, name))
        for case in cases:
            found = None if report.cause else find_cause(case, first.tolerance)
            report.cause, report.left = found or (report.cause, report.left)
        if cases:
            ours = cases[0].run()
            report.worst = neighbourhood(cases[0].output, ours)
            report.histogram = powers_of_ten(cases[0].output, ours)
        places = [place_of(hunt.modules, name) if hunt.modules else None]
        places += [place_of(dict(port.named_modules()), first.theirs) if port else None]
        named = zip(report.labels, places, strict=True)
        report.sources[report.first.name] = [f"{label}: {at}" for label, at in named if at]
    report.add(part, hunt.alignment, rows)


def align_tolerance(a: nn.Module, b: nn.Module) -> float:
    """The largest relative difference at which two fingerprints belong to the same weight.

    It depends on the precisions of the two networks, because half precision rounds the weights.
    """
    known = {torch.bfloat16: 8e-3, torch.float16: 1e-3}
    return max(known.get(t.dtype, 1e-5) for network in (a, b) for t in network.parameters())


# ---- two sides ---------------------------------------------------------------------------------


def compare_sides(
    reference: Side | TraceFile,
    port: Side | TraceFile,
    seed: int = 0,
    limits: ErrorLimits = ROUNDING_ONLY,
) -> Report:
    """Compare every part (U-Net, VAE, text encoder) that two sides have in common.

    Both sides run on the same inputs: the inputs in a trace, or inputs drawn from the seed. If only
    the port is a whole model, the two sides swap places, because the inputs come from a model.

    Raises ValueError if nothing can be compared.
    """
    ours, theirs = sorted((reference, port), key=completeness, reverse=True)  # equal ones stay
    if isinstance(theirs, TraceFile):
        return compare_trace(ours, theirs, limits)
    if isinstance(ours, TraceFile) or ours.load is None:
        what = f"neither {ours.label} nor {theirs.label} is a whole model, so there are no inputs"
        raise ValueError(f"{what}. Give a model or a trace as one of the two.")
    inputs = make_inputs(ours.load(), seed)
    report = Report(labels=(ours.label, theirs.label), limits=limits)
    for part in theirs.networks:
        compare_network(report, ours, theirs, part, inputs)
    return report


def compare_network(report: Report, ours: Side, theirs: Side, part: str, inputs: dict) -> None:
    """Compare one network of theirs with the same part of ours, or with our module that it fits.

    inputs: as make_inputs() returns them
    """
    network = theirs.networks[part]
    check_device(ours, network, theirs.label)
    where, name = (part, "") if part in ours.networks else find_module(ours, theirs, network)
    whole, given = ours.networks[where], inputs[where]
    run_ours = lambda one: ours.run(where, one, inputs[where])  # noqa: E731
    if name:  # our whole network runs first, to get the inputs of this module
        call = next(call for call in record(whole, lambda: run_ours(whole)) if call.name == name)
        given = (*call.args, *call.kwargs.values())
        run_ours = lambda one: one(*call.args, **call.kwargs)  # noqa: E731
    run_theirs = lambda one: theirs.run(part, one, given)  # noqa: E731
    module, label = whole.get_submodule(name), join_names(where, name)
    compare_part(report, label, module, network, run_ours, run_theirs)


def completeness(side: Side | TraceFile) -> int:
    """How complete a side is: 0 for a trace, 1 for a function that returns a port, 2 for a model.

    A trace cannot run. A port can run, but only a whole model also supplies inputs.
    """
    return 0 if isinstance(side, TraceFile) else 1 if side.load is None else 2


def find_module(ours: Side, theirs: Side, network: nn.Module) -> tuple[str, str]:
    """Find our module that holds the same weights as their network.

    Returns the name of a part of our model, and the name of the module in this part.
    Raises ValueError if there is no such module.
    """
    found, most = None, 0
    for part, whole in ours.networks.items():
        alignment = align(whole, network, tolerance=align_tolerance(network, whole))
        if "" in alignment.modules and len(alignment.parameters) > most:
            found, most = (part, alignment.modules[""]), len(alignment.parameters)
    if found is None:
        raise ValueError(NO_WEIGHTS.format(theirs.label, ours.label))
    return found


def check_device(ours: Side, network: nn.Module, label: str) -> None:
    """Raise ValueError if the port is on another device than the reference."""
    here = next(one.device for net in ours.networks.values() for one in net.parameters()).type
    for there in {one.device.type for one in network.parameters()} - {here}:
        what = f"{label} is on {there}, and the reference on {here}"
        raise ValueError(f"{what}. Move the port with .to({here!r}).")


# ---- a side and a trace ------------------------------------------------------------------------


def compare_trace(ours: Side | TraceFile, trace: TraceFile, limits: ErrorLimits) -> Report:
    """Compare a trace with another trace or with our networks.

    Our networks run on the inputs that are in the trace.

    Raises ValueError if the trace has no inputs for any network, if it holds only statistics, or if
    none of its outputs fits an output of ours.
    """
    report = Report(labels=(ours.label, trace.label), limits=limits)
    for one in (ours, trace):
        if isinstance(one, TraceFile) and one.stats:
            raise ValueError(f"{one.label} holds statistics only. Write it without --stats.")
    if isinstance(ours, TraceFile):
        check_inputs(ours, trace)
        whole, calls = nn.ModuleDict(), ours.calls
    else:
        if "" in ours.networks:
            what = f"{ours.label} returned a network, but not which part of a model it is"
            raise ValueError(f"{what}. Return a dictionary, such as {{'unet': network}}.")
        whole = nn.ModuleDict(ours.networks)  # one tree of all networks, so that a name is a path
        calls = replay(whole, ours, trace)
    modules = dict(whole.named_modules()) if len(whole) else {}
    if trace.weights and modules:
        names = {call.name for call in trace.calls}
        alignment = align(whole, trace.weights, modules=names)
    else:
        alignment = align_by_values(modules, calls, trace.calls)
    hunt = Hunt(modules, calls, alignment, limits)
    for call in trace.calls:
        hunt.judge(call)
    conclude(report, "", hunt)
    for row, cause, left in compare_run(ours, trace):
        report.rows.append(row)
        if report.first is None and not row.error <= row.tolerance:
            report.first, report.cause, report.left = row, cause, left
    if not report.rows:
        raise ValueError(f"no output in {trace.label} fits one of {ours.label}. Check the model.")
    return report


def check_inputs(ours: TraceFile, theirs: TraceFile) -> None:
    """Raise ValueError if two traces were recorded on different inputs."""
    for name in ours.inputs.keys() & theirs.inputs.keys():
        first = name.partition(".")[2] in ("", "0")
        if first and not same_numbers(theirs.inputs[name], ours.inputs[name]):
            what = f"{ours.label} and {theirs.label} have different inputs ({name})"
            raise ValueError(f"{what}. Record both on the same inputs.")


def replay(whole: nn.Module, ours: Side, trace: TraceFile) -> list[Call]:
    """Run our networks on the inputs of a trace. Returns every call, in order."""
    runs = [(part, given) for part in ours.networks for given in inputs_of(part, ours, trace)]
    if not runs:
        names = ", ".join(f"inputs/{one}.0" for names in INPUT_NAMES.values() for one in names)
        what = f"{trace.label} does not say what it was run on"
        raise ValueError(f"{what}. Add the inputs of at least one network: {names}.")
    try:
        return record(
            whole, lambda: [ours.run(key, ours.networks[key], given) for key, given in runs]
        )
    except (RuntimeError, TypeError, IndexError) as error:
        what = f"{ours.label} cannot run on the inputs of {trace.label} ({error})"
        raise ValueError(f"{what}. Compare the trace with the model that it came from.") from error


def inputs_of(part: str, ours: Side, trace: TraceFile) -> list[tuple]:
    """The inputs of one network in a trace. Returns one tuple for each call of the network.

    The names of the inputs contain the number of the call: "x.0", "x.1" and so on. If the trace has
    no "x.0", the input "x" (without a number) is used for call 0.
    """
    names = [n for path, all_ in INPUT_NAMES.items() if path.split(".")[0] == part for n in all_]
    like, enough = next(ours.networks[part].parameters()), all if part == "unet" else any
    found = []
    for number in range(len(trace.inputs)):
        row: dict[str, Any] = {}
        for name in names:
            one = trace.inputs.get(f"{name}.{number}", None if number else trace.inputs.get(name))
            wide = one is not None and one.is_floating_point() and name != "t"  # t stays exact
            row[name] = one if one is None else one.to(like.device, like.dtype if wide else None)
        if not enough(one is not None for one in row.values()):
            break
        if part == "unet":
            row["t"] = row["t"].reshape(-1).expand(len(row["x"]))
        found.append(tuple(row.values()))
    return found
