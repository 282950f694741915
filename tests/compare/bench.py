"""The localisation bench: python -m tests.compare.bench prints a table of all bugs and hosts.

For each bug: whether the first module named is the right one, and whether the cause is.
"""

import copy
import re
import sys
import tempfile
import types
from collections import defaultdict
from functools import cache, partial
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from minisd.compare.hunt import ErrorLimits
from minisd.compare.report import Report
from minisd.compare.run import compare_part, compare_trace
from minisd.compare.sides import Side, run_vae
from minisd.compare.trace_file import read_trace
from tests.compare import nhwc_port, shuffled
from tests.compare.bugs import Bug, change_module, read_bugs
from tests.helpers.reference_networks import pair
from tests.helpers.tiny_models import V1

MARKS = {True: "ok", False: "WRONG", None: "-"}
# part -> its two networks
networks = cache(partial(pair, config=V1, layout="diffusers", draw="small", dtype=torch.float32))


def bench_inputs(part: str) -> tuple:
    """Inputs of unequal height and width, two samples, and a t with a fraction."""
    draw = torch.Generator().manual_seed(3)
    if part == "unet":
        x = torch.randn(2, V1.unet.in_channels, 16, 24, generator=draw)
        context = torch.randn(2, 77, V1.unet.context_dim, generator=draw)
        return x, torch.tensor([981.0, 3.5]), context
    if part == "vae":
        image = torch.rand(2, 3, 64, 96, generator=draw) * 2 - 1
        return image, torch.randn(2, 4, 8, 12, generator=draw)
    return (torch.randint(0, 1000, (2, 77), generator=draw),)


def port_of(bug: Bug) -> nn.Module:
    """The network with the bug."""
    both = networks(bug.part)
    if bug.host == "diffusers":
        port = copy.deepcopy(both.theirs)
        change_module(port, *bug.edit)
    elif bug.host == "nhwc":
        port = edited_module(bug).Net(V1.unet)
        nhwc_port.take(port, both.ours)
    else:
        port = shuffled.build(bug.part, V1, {bug.edit[0]: bug.edit[1:]})
        shuffled.load(port, both.ours)
    return port.eval()


def edited_module(bug: Bug) -> types.ModuleType:
    """The module of a port, with the bug in its source."""
    file, (_, old, new) = f"{bug.host}_port.py", bug.edit
    text = Path(__file__).with_name(file).read_text(encoding="utf-8")
    assert old in text, f"{file} has no {old!r}"
    module = types.ModuleType("edited_port")
    exec(compile(text.replace(old, new), "edited_port.py", "exec"), vars(module))
    return module


@torch.no_grad()
def hunt(bug: Bug) -> Report:
    """Compare the port with the bug."""
    ours, inputs = networks(bug.part).ours, bench_inputs(bug.part)
    side = Side("ours", {bug.part: ours}, {"vae": run_vae})
    if bug.host == "numpy":
        return hunt_trace(bug, side)
    report, run = Report(), lambda network: side.run(bug.part, network, inputs)
    compare_part(report, "", ours, port_of(bug), run, run)
    return report


def hunt_trace(bug: Bug, side: Side) -> Report:
    """Let the numpy port write a trace, without fingerprints, and compare that."""
    port, given = edited_module(bug), bench_inputs(bug.part)[-1].numpy()
    weights = {name: one.numpy() for name, one in side.networks[bug.part].state_dict().items()}
    tape = port.Tape()
    if bug.part == "vae":
        weights = {name.removeprefix("decoder."): one for name, one in weights.items()}
        port.decode(weights, given, len(V1.vae.channels), V1.vae.res_blocks + 1, 32, tape)
    else:
        port.text(weights, given, V1.text.heads, V1.text.layers, tape)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/port.safetensors"
        tape.save(path, {"z" if bug.part == "vae" else "tokens": given})
        return compare_trace(side, read_trace(path), ErrorLimits())


def first_name(bug: Bug, report: Report) -> str | None:
    """The name, without that of the network, of the first module that differs. None: none does."""
    return report.first and report.first.name.removeprefix(bug.part).lstrip(".")


def judged(bug: Bug, report: Report) -> tuple[bool, bool | None, bool]:
    """Whether the module is right, whether the cause is (None: none was expected), and whether a
    wrong cause was given."""
    cause = None if bug.cause is None else bool(re.search(bug.cause, report.cause or ""))
    right = first_name(bug, report) in (bug.module, *bug.other)
    return right, cause, report.cause is not None and not cause


def main() -> None:
    wanted, results = " ".join(sys.argv[1:]), defaultdict(list)
    bugs = [*read_bugs(), *read_bugs("blind_bugs.jsonl"), *read_bugs("blind_bugs_2.jsonl")]
    for bug in [one for one in bugs if wanted in f"{one.host} {one.part} {one.name}"]:
        try:
            report = hunt(bug)
        except (ValueError, AssertionError) as error:
            report = Report()
            print(f"BROKE {bug.host} {bug.name}: {error}")
        right, cause, wrong = judged(bug, report)
        results[bug.host].append((right, cause, wrong))
        marks = f"{MARKS[right]:5} {MARKS[cause]:5} {bug.host:9} {bug.part:12}"
        named = (first_name(bug, report) or "(all)") if report.first else "nothing"
        print(f"{marks} {bug.name:40} {named}: {report.cause}", flush=True)
    print(f"\n{'host':10} bugs  module  cause  wrong cause")
    for host, judgements in results.items():
        modules, causes, _ = zip(*judgements, strict=True)
        known = [cause for cause in causes if cause is not None] or [float("nan")]
        unknown = [wrong for _, cause, wrong in judgements if cause is None] or [0.0]
        module, cause, wrong = map(fmean, (modules, known, unknown))
        print(f"{host:10} {len(modules):4}  {module:6.0%}  {cause:5.0%}  {wrong:.0%}")


if __name__ == "__main__":
    main()
