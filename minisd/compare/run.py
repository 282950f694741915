"""Compare two networks, or the same parts of two models."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from minisd.compare.align import align
from minisd.compare.calls import Call, watch_calls
from minisd.compare.causes import find_cause
from minisd.compare.hunt import Case, Hunt, record
from minisd.compare.layouts import has_no_nan
from minisd.compare.report import Report, join_names, neighbourhood, place_of, powers_of_ten
from minisd.compare.sides import Inputs, Side, our_side
from minisd.pipeline import StableDiffusion

Caller = Callable[[nn.Module], object]


def compare(
    reference: nn.Module,
    port: nn.Module,
    inputs: tuple,
    rtol: float | None = None,
    call: Callable | None = None,
) -> Report:
    """Run two networks on the same inputs. Report where the port first differs, and why.

    reference: one of minisd's networks, or a module in one of them
    port: the network to judge
    inputs: the arguments for the reference, such as (x, t, context)
    rtol: the largest root mean square error of a module, relative to the spread of its output, that
        is accepted. None: what rounding explains in the coarser precision of the two
    call: a function call(port, *inputs) that runs the port. It is needed if the port takes other
        arguments than the reference.

    Raises ValueError if the two share no weights, or if the port raises an error while it runs.
    """
    report = Report()
    run_theirs = (lambda port: call(port, *inputs)) if call else (lambda port: port(*inputs))
    compare_part(report, "", reference, port, lambda ours: ours(*inputs), run_theirs, rtol)
    return report


def compare_part(
    report: Report,
    part: str,
    reference: nn.Module,
    port: nn.Module,
    run_ours: Caller,
    run_theirs: Caller,
    rtol: float | None = None,
) -> None:
    """Compare one network, and add the results to the report."""
    calls = record(reference, lambda: run_ours(reference))
    order = cache(lambda: running_order(port, run_theirs))
    alignment = align(reference, port, list(calls), order, align_tolerance(reference, port))
    if not alignment.modules:
        raise ValueError(
            f"{part or 'the port'} shares no weights with the reference, so nothing can be "
            "compared. Load the same weights into both."
        )
    hunt = Hunt(reference, calls, alignment, rtol)
    last = []

    def judge(call: Call) -> None:
        last[:] = [call.name]
        judge_call(report, part, hunt, call)

    try:
        with torch.no_grad(), watch_calls(port, judge):
            run_theirs(port)
    except Exception as error:
        where = f"after {last[0]}" if last else "before any module ended"
        what = f"the port broke {where}: {type(error).__name__}: {error}"
        raise ValueError(what) from error
    conclude(report, part, hunt, port)


def running_order(network: nn.Module, run: Caller) -> list[str]:
    """The modules that returned, in the order in which each returned for the first time.

    If the network raises an error, the list ends there.
    """
    names: dict[str, None] = {}
    watch = watch_calls(network, lambda call: names.setdefault(call.name))
    with torch.no_grad(), watch, suppress(Exception):  # compare_part() reports the error
        run(network)
    return list(names)


def judge_call(report: Report, part: str, hunt: Hunt, call: Call) -> None:
    """Compare one call of theirs, and report the first module that returns NaN."""
    if report.nan is None and not all(map(has_no_nan, call.outputs)):
        report.nan = join_names(part, call.name)
    hunt.judge(call)


def conclude(report: Report, part: str, hunt: Hunt, port: nn.Module | None = None) -> None:
    """Add the results of one network to the report.

    If no earlier network has an error, also find the first error of this network and its cause.

    port: their network. None: there is only a trace of it
    """
    first = hunt.first_source
    rows = [replace(row, name=join_names(part, row.name)) for row in hunt.rows]
    if first is not None and report.first is None:
        name, case = hunt.locate(first)
        report.first = replace(first, name=join_names(part, name))
        explain(report, case, first.tolerance)
        places = [place_of(hunt.modules[""], name)]
        places += [place_of(port, first.theirs)] if port is not None else []
        report.sources[report.first.name] = [one for one in places if one]
    report.add(part, hunt.alignment, rows)


def explain(report: Report, case: Case | None, tolerance: float) -> None:
    """Find the cause of a module's error. Add the cause and the worst values to the report."""
    if case is None:
        return
    found = find_cause(case, tolerance)
    report.cause, report.left = found or (None, None)
    ours = case.run()
    report.worst = neighbourhood(case.output, ours)
    report.histogram = powers_of_ten(case.output, ours)


def align_tolerance(a: nn.Module, b: nn.Module) -> float:
    """The largest relative difference between two fingerprints of the same weight.

    It depends on the precisions of the two networks, because half precision rounds the weights.
    """
    dtypes = {t.dtype for network in (a, b) for t in network.parameters()}
    if torch.bfloat16 in dtypes:
        return 8e-3
    return 1e-3 if torch.float16 in dtypes else 1e-5


def compare_sides(
    sd: StableDiffusion, label: str, port: Side, inputs: Inputs, rtol: float | None = None
) -> Report:
    """Compare every part that the port has with the same part of the model `sd`.

    Raises ValueError if nothing can be compared.
    """
    report = Report(labels=(label, port.label))
    ours = our_side(sd, label)
    for part, network in port.networks.items():
        check_device(network, sd, port.label)
        if part in ours.networks:
            given = inputs.of(part)
            compare_part(
                report,
                part,
                ours.networks[part],
                network,
                lambda one, part=part, given=given: ours.run(part, one, given),
                lambda one, part=part, given=given: port.run(part, one, given),
                rtol,
            )
        else:
            compare_anywhere(report, ours, port, part, inputs, rtol)
    return report


def compare_anywhere(
    report: Report, ours: Side, port: Side, part: str, inputs: Inputs, rtol: float | None
) -> None:
    """Find our module that holds the same weights as the port, and compare the two.

    Our whole network runs first, to get this module's inputs. The port then runs on these inputs.
    """
    network = port.networks[part]
    tolerance = align_tolerance(network, ours.networks["unet"])
    best, name, found = None, "", 0
    for candidate, whole in ours.networks.items():
        alignment = align(whole, network, tolerance=tolerance)
        if "" in alignment.modules and len(alignment.parameters) > found:
            best, name, found = candidate, alignment.modules[""], len(alignment.parameters)
    if best is None:
        raise ValueError(
            f"{port.label} shares no weights with {ours.label}, so nothing can be compared. Load "
            "the same weights into both."
        )
    whole, given = ours.networks[best], inputs.of(best)
    calls = record(whole, lambda: ours.run(best, whole, given))
    args, kwargs = calls[name][0].args, calls[name][0].kwargs
    same = (*args, *kwargs.values())
    compare_part(
        report,
        join_names(best, name),
        whole.get_submodule(name),
        network,
        lambda one: one(*args, **kwargs),
        lambda one: port.run(part, one, same),
        rtol,
    )


def check_device(network: nn.Module, sd: StableDiffusion, label: str) -> None:
    """Raise ValueError if the port is on another device than the reference."""
    devices = {str(one.device.type) for one in network.parameters()} - {sd.device.type}
    if devices:
        there = f"{label} is on {devices.pop()}, and the reference on {sd.device.type}"
        raise ValueError(f"{there}. Move the port with .to({sd.device.type!r}).")
