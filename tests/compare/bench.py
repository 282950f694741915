"""The localisation bench: python -m tests.compare.bench prints a table of all bugs and hosts.

For each bug: whether the first module named is the right one, and whether the cause is.
"""

import copy
import re
import sys
import tempfile
import types
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from minisd.compare.report import Report
from minisd.compare.run import compare_part, compare_trace
from minisd.compare.sides import MODEL_PARTS, Side, run_our_vae
from minisd.compare.trace_file import read_trace
from tests.compare import nhwc_port, shuffled
from tests.compare.bugs import Bug, change_module, read_bugs
from tests.helpers.reference_networks import Pair, pair
from tests.helpers.tiny_models import V1


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


@cache
def networks(part: str) -> Pair:
    return pair(part, V1, "diffusers", "small", torch.float32)


def port_of(bug: Bug) -> tuple[nn.Module, object]:
    """The network with the bug, and how to run it."""
    both = networks(bug.part)
    if bug.host == "diffusers":
        port = copy.deepcopy(both.theirs)
        change_module(port, *bug.edit)
        return port, both.run_theirs
    if bug.host == "nhwc":
        port = edited("nhwc_port", *bug.edit[1:]).Net(V1.unet)
        nhwc_port.take(port, both.ours)
        return port, lambda network, *inputs: network(*inputs)
    file, old, new = bug.edit
    port = shuffled.build(bug.part, V1, {file: (old, new)})
    shuffled.load(port, both.ours)
    if bug.part == "vae":
        return port, lambda vae, image, z: [
            half(one) for half, one in zip(vae.children(), (image, z), strict=True)
        ]
    return port, lambda network, *inputs: network(*inputs)


def edited(port: str, old: str, new: str) -> types.ModuleType:
    """A port's module with an edit of its source."""
    text = Path(__file__).with_name(f"{port}.py").read_text(encoding="utf-8")
    assert old in text, f"{port}.py has no {old!r}"
    module = types.ModuleType("edited_port")
    exec(compile(text.replace(old, new), "edited_port.py", "exec"), vars(module))
    return module


def hunt(bug: Bug) -> Report:
    """Compare the port with the bug."""
    if bug.host == "numpy":
        return hunt_trace(bug)
    both, inputs, report = networks(bug.part), bench_inputs(bug.part), Report()
    with torch.no_grad():
        port, run = port_of(bug)
        compare_part(
            report,
            "",
            both.ours,
            port.eval(),
            lambda one: both.run_ours(one, *inputs),
            lambda one: run(one, *inputs),
        )
    return report


def hunt_trace(bug: Bug) -> Report:
    """Let the numpy port write a trace, without fingerprints, and compare that."""
    both, inputs = networks(bug.part), bench_inputs(bug.part)
    numpy_port = edited("numpy_port", *bug.edit[1:])
    ours = both.ours.decoder if bug.part == "vae" else both.ours
    weights = {name: one.numpy() for name, one in ours.state_dict().items()}
    tape = numpy_port.Tape()
    if bug.part == "vae":
        z = inputs[1].numpy()
        numpy_port.decode(weights, z, len(V1.vae.channels), V1.vae.res_blocks + 1, 32, tape)
        given = {"z": z}
    else:
        tokens = inputs[0].numpy()
        numpy_port.text(weights, tokens, V1.text.heads, V1.text.layers, tape)
        given = {"tokens": tokens}
    with tempfile.TemporaryDirectory() as folder:
        tape.save(f"{folder}/port.safetensors", given)
        trace = read_trace(f"{folder}/port.safetensors")
    side = Side("ours", {name: networks(name).ours for name in MODEL_PARTS}, {"vae": run_our_vae})
    report = compare_trace(side, trace)
    if report.first:
        report.first = replace(
            report.first, name=report.first.name.removeprefix(f"{bug.part}").lstrip(".")
        )
    return report


def judged(bug: Bug, report: Report) -> tuple[bool, bool | None, bool]:
    """Whether the module is right, whether the cause is (None: none was expected), and whether a
    wrong cause was given."""
    named = report.first.name if report.first else None
    right = named == bug.module or named in bug.other
    if bug.cause is None:
        return right, None, report.cause is not None
    cause = bool(report.cause and re.search(bug.cause, report.cause))
    return right, cause, report.cause is not None and not cause


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    counts: dict[str, list] = defaultdict(list)
    for bug in [*read_bugs(), *read_bugs("blind_bugs.jsonl"), *read_bugs("blind_bugs_2.jsonl")]:
        if wanted not in f"{bug.host} {bug.part} {bug.name}":
            continue
        try:
            report = hunt(bug)
        except (ValueError, AssertionError) as error:
            print(f"BROKE {bug.host} {bug.name}: {error}")
            counts[bug.host].append((False, bug.cause and False, False))
            continue
        result = judged(bug, report)
        counts[bug.host].append(result)
        mark = ("ok   " if result[0] else "WRONG") + {
            True: " ok   ",
            False: " WRONG",
            None: " -    ",
        }[result[1]]
        named = report.first.name if report.first else "nothing"
        print(
            f"{mark} {bug.host:9} {bug.part:12} {bug.name:40} {named or '(all)'}: {report.cause}",
            flush=True,
        )
    print(f"\n{'host':10} bugs  module  cause  wrong cause")
    for host, results in counts.items():
        module = sum(one[0] for one in results) / len(results)
        known = [one[1] for one in results if one[1] is not None]
        unknown = [one[2] for one in results if one[1] is None]
        cause = sum(known) / len(known) if known else float("nan")
        wrong = sum(unknown) / len(unknown) if unknown else 0.0
        print(f"{host:10} {len(results):4}  {module:6.0%}  {cause:5.0%}  {wrong:.0%}")


if __name__ == "__main__":
    main()
