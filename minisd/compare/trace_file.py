"""Traces in files: every tensor of a run, so that a port in any language can be compared.

A trace is a .safetensors file. docs/compare.md describes it for those who write one themselves:

    00012/down.0.res.0/out0   the first output of the 13th module that returned; its name is free
    00012/down.0.res.0/in0    what it was given (optional, but only then its own error is known)
    inputs/tokens             what the networks were run on: tokens; x.0 t.0 context.0 for the first
                              call of the U-Net, x.1 … for the next; z for the VAE's decoder
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import minisd
from minisd.checkpoints.header import read_metadata
from minisd.compare.calls import Call
from minisd.compare.weights import Fingerprint, make_fingerprint, weights_of
from minisd.files.json_files import check_value, parse_json
from minisd.files.one_line import name_errors
from minisd.files.whole_files import written_whole

TRACE_FORMAT = "minisd-trace 1"
KEY = re.compile(r"(\d+)/(.*)/(in|out|stats)(\d+)")
KEPT_VALUES = 8  # values of a tensor that statistics keep


@dataclass
class TraceFile:
    """A trace that was read. calls: in running order    inputs: name -> tensor

    weights: module -> parameter -> fingerprint; empty if the writer left them out
    stats: whether the outputs are statistics only    settings: as the writer stated them
    """

    label: str
    calls: list[Call]
    inputs: dict[str, Tensor]
    weights: dict[str, Fingerprint]
    stats: bool
    settings: dict


def is_trace(path: str | Path) -> bool:
    """Whether a file says that it is a trace."""
    path = Path(path)
    return path.suffix == ".safetensors" and path.is_file() and "trace" in read_metadata(path)


def read_trace(path: str | Path) -> TraceFile:
    """Read a trace. Raises ValueError if the file is cut off, damaged or of a later format."""
    path = Path(path)
    metadata = read_metadata(path)
    if metadata.get("trace") != TRACE_FORMAT:
        said = metadata.get("trace", "nothing")
        raise ValueError(
            f'{path.name} is no trace: its header should say "{TRACE_FORMAT}", not "{said}".'
        )
    inputs, calls, stats = read_calls(path)
    with name_errors(path.name):
        weights = read_fingerprints(parse_json(metadata.get("weights", "{}")))
        settings = parse_json(metadata.get("settings", "{}"))
    settings = settings if isinstance(settings, dict) else {}
    return TraceFile(path.name, calls, inputs, weights, stats, settings)


def read_calls(path: Path) -> tuple[dict[str, Tensor], list[Call], bool]:
    """The inputs and the calls of a trace, and whether it holds statistics only."""
    inputs: dict[str, Tensor] = {}
    found: dict[tuple[int, str], Call] = {}
    counts: dict[str, int] = {}
    with safe_open(path, framework="pt") as file:
        for key in sorted(file.keys(), key=sort_key):
            match = KEY.fullmatch(key)
            if key.startswith("inputs/"):
                inputs[key.removeprefix("inputs/")] = file.get_tensor(key)
                continue
            if match is None:
                what = f"{path.name} holds {key}, which is not part of a trace"
                raise ValueError(f"{what}. Names are like 00012/mid.attn/out0 or inputs/x.0.")
            place, name = (int(match[1]), match[2]), match[2]
            if place not in found:
                counts[name] = counts.get(name, -1) + 1
                found[place] = Call(name, counts[name], (), {}, [])
            call, tensor = found[place], file.get_tensor(key)
            call.stats = call.stats or match[3] == "stats"
            if match[3] == "in":
                call.args = (*call.args, tensor)
            else:
                call.outputs.append(tensor)
    return inputs, [*found.values()], any(call.stats for call in found.values())


def sort_key(key: str) -> tuple:
    """Calls in running order, and in10 after in9."""
    match = KEY.fullmatch(key)
    return (int(match[1]), match[3], int(match[4])) if match else (-1, key, 0)


def read_fingerprints(stored: object) -> dict[str, Fingerprint]:
    """Parameter -> fingerprint. Raises ValueError for anything but three numbers each."""
    found = {}
    for name, values in stored.items() if isinstance(stored, dict) else ():
        check_value(name, values, tuple[float, ...], (-1e30, 1e30), " among its weights")
        if len(values) != 3:
            raise ValueError(f"has {len(values)} numbers for {name}: give count, sum and squares")
        found[name] = Fingerprint(int(values[0]), *values[1:])
    return found


def write_trace(
    path: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, object],
    weights: Mapping[str, Fingerprint],
) -> None:
    """Write a trace whole. tensors: as trace_tensors() makes them

    Raises ValueError if it cannot be written.
    """
    metadata = {
        "trace": TRACE_FORMAT,
        "settings": json.dumps(settings),
        "weights": json.dumps(weights),
        "versions": json.dumps({"minisd": minisd.__version__, "torch": torch.__version__}),
    }
    with written_whole(path) as unfinished:
        save_file(dict(tensors), unfinished, metadata)


def trace_tensors(calls: Iterable[Call], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Key -> tensor of a trace, as they are written. Statistics, made before, are kept as such."""
    tensors = {f"inputs/{name}": one.clone().contiguous() for name, one in inputs.items()}
    for number, call in enumerate(calls):
        start, kind = f"{number:05}/{call.name}", "stats" if call.stats else "out"
        for i, output in enumerate(call.outputs):
            tensors[f"{start}/{kind}{i}"] = output.clone().contiguous()
        for i, given in enumerate(call.inputs):
            tensors[f"{start}/in{i}"] = given.clone().contiguous()
    return tensors


def statistics(name: str, tensor: Tensor) -> Tensor:
    """Mean, spread, least, largest and a few values; of attention weights, for each head.

    returns: 1 or heads, 4 + FEW
    """
    is_map = name.endswith("weights") and tensor.ndim == 4
    rows = tensor.double().transpose(0, 1).flatten(1) if is_map else tensor.double().reshape(1, -1)
    few = rows[:, torch.linspace(0, rows.shape[1] - 1, KEPT_VALUES).long()]
    ends = [rows.mean(1), rows.std(1, correction=0), rows.amin(1), rows.amax(1)]
    return torch.cat([torch.stack(ends, dim=1), few], dim=1).float()


def fingerprints(networks: Mapping[str, nn.Module]) -> dict[str, Fingerprint]:
    """Parameter -> fingerprint, for all networks of a model."""
    return {
        f"{part}.{name}": make_fingerprint(tensor)
        for part, network in networks.items()
        for name, tensor in weights_of(network).items()
    }
