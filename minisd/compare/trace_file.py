"""Read and write traces. With a trace, a port in any language can be compared.

A trace is a .safetensors file with the tensors of a run. docs/compare.md describes the format for
people who write a trace themselves. The tensors in a trace have names such as:

    00012/down.0.res.0/out0   the first output of the 13th module that returned. The module can have
                              any name.
    00012/down.0.res.0/in0    the first input of this module. It is optional, but without it, the
                              module's own error is unknown.
    inputs/tokens             the input of the text transformer
    inputs/x.0                an input of the U-Net in its first call. The other two inputs are
                              inputs/t.0 and inputs/context.0. The second call has inputs/x.1.
    inputs/image.0            the input of the VAE's encoder
    inputs/z.0                the input of the VAE's decoder
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
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
KEPT_VALUES = 8  # how many values of a tensor are part of its statistics
# module -> the names of its inputs in a trace
INPUT_NAMES = {"text_encoder": ("tokens",), "unet": ("x", "t", "context")}
INPUT_NAMES |= {"vae.encoder": ("image",), "vae.decoder": ("z",)}


@dataclass
class TraceFile:
    """A trace that was read from a file.

    label: the file's name
    calls: the recorded calls, in running order
    inputs: name of an input, such as "x.0" -> tensor
    weights: parameter's name -> fingerprint. Empty: the file holds no fingerprints
    stats: whether the trace holds only statistics of the outputs
    settings: the settings with which the picture was drawn, such as steps
    """

    label: str
    calls: list[Call]
    inputs: dict[str, Tensor]
    weights: dict[str, Fingerprint]
    stats: bool
    settings: dict


def is_trace(path: str | Path) -> bool:
    """Whether a file's header says that the file is a trace."""
    path = Path(path)
    return path.suffix == ".safetensors" and path.is_file() and "trace" in read_metadata(path)


def read_trace(path: str | Path) -> TraceFile:
    """Read a trace.

    Raises ValueError if the file is cut off or damaged, or if it is not a trace.
    """
    path = Path(path)
    metadata = read_metadata(path)
    said = metadata.get("trace", "nothing")
    if said != TRACE_FORMAT:
        what = f'{path.name} is no trace: its header should say "{TRACE_FORMAT}"'
        raise ValueError(f'{what}, not "{said}".')
    inputs, calls = read_calls(path)
    with name_errors(path.name):
        weights = read_fingerprints(parse_json(metadata.get("weights", "{}")))
        settings = parse_json(metadata.get("settings", "{}"))
    settings = settings if isinstance(settings, dict) else {}
    return TraceFile(path.name, calls, inputs, weights, any(call.stats for call in calls), settings)


def read_calls(path: Path) -> tuple[dict[str, Tensor], list[Call]]:
    """Read the inputs and the calls of a trace."""
    inputs, rows = {}, []
    for key, tensor in sorted(load_file(path).items()):
        if match := KEY.fullmatch(key):
            rows.append((int(match[1]), match[2], match[3], int(match[4]), tensor))
        elif key.startswith("inputs/"):
            inputs[key.removeprefix("inputs/")] = tensor
        else:
            what = f"{path.name} holds {key}, which is not part of a trace"
            raise ValueError(f"{what}. Names are like 00012/mid.attn/out0 or inputs/x.0.")
    rows.sort(key=lambda row: row[:4])  # calls in running order, and in10 after in9
    calls, numbers = [], defaultdict(count)
    for (_, name), parts in groupby(rows, key=lambda row: row[:2]):
        tensors = defaultdict(list)
        for _, _, kind, _, tensor in parts:
            tensors[kind].append(tensor)
        given, outputs, stats = (tensors[kind] for kind in ("in", "out", "stats"))
        calls.append(Call(name, next(numbers[name]), (*given,), {}, outputs + stats, bool(stats)))
    return inputs, calls


def read_fingerprints(stored: object) -> dict[str, Fingerprint]:
    """Read the fingerprints in a trace's metadata.

    stored: parameter's name -> three numbers (count, sum, sum of squares)
    Raises ValueError if a parameter does not have three numbers.
    """
    found = {}
    for name, values in stored.items() if isinstance(stored, dict) else ():
        check_value(name, values, tuple[float, ...], (-1e30, 1e30), " among its weights")
        if len(values) != 3:
            raise ValueError(f"has {len(values)} numbers for {name}: give count, sum and squares")
        found[name] = Fingerprint(int(values[0]), *values[1:])
    return found


def write_trace(
    path: Path, tensors: Mapping[str, Tensor], settings: dict, weights: Mapping[str, Fingerprint]
) -> None:
    """Write a trace. If this fails, no incomplete file is left.

    tensors: as trace_tensors() returns them
    settings: the settings with which the picture was drawn
    weights: parameter's name -> fingerprint
    Raises ValueError if the file cannot be written.
    """
    versions = {"minisd": minisd.__version__, "torch": torch.__version__}
    parts = {"settings": settings, "weights": weights, "versions": versions}
    metadata = {name: json.dumps(part) for name, part in parts.items()} | {"trace": TRACE_FORMAT}
    with written_whole(path) as unfinished:
        save_file(dict(tensors), unfinished, metadata)


def trace_tensors(calls: Iterable[Call], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Collect the tensors of a trace under the names that they get in the file.

    calls: the calls to write. If a call has stats=True, its outputs are already statistics
    Returns a dictionary: name in the file -> tensor.
    """
    tensors = {f"inputs/{name}": one for name, one in inputs.items()}
    for number, call in enumerate(calls):
        start, kind = f"{number:05}/{call.name}", "stats" if call.stats else "out"
        tensors |= {f"{start}/{kind}{i}": one for i, one in enumerate(call.outputs)}
        tensors |= {f"{start}/in{i}": one for i, one in enumerate(call.inputs)}
    return {name: one.clone().contiguous() for name, one in tensors.items()}


def statistics(name: str, tensor: Tensor) -> Tensor:
    """Mean, standard deviation, smallest value, largest value, and KEPT_VALUES single values.

    returns: rows n, where n = 4 + KEPT_VALUES. For attention weights, there is one row for each
        head. For all other tensors, there is only one row. If the tensor already holds the rows of
        attention weights, it is returned unchanged
    """
    if name.endswith("weights") and tensor.ndim == 2:  # the rows were computed during the run
        return tensor
    if name.endswith("weights") and tensor.ndim == 4:  # head by head, because maps are large
        return torch.cat([statistics("one head", head) for head in tensor.unbind(1)])
    values = tensor.double().flatten()
    ends = torch.stack([values.mean(), values.std(correction=0), *values.aminmax()])
    few = values[torch.linspace(0, len(values) - 1, KEPT_VALUES, dtype=torch.float64).long()]
    return torch.cat([ends, few])[None].float()


def fingerprints(networks: Mapping[str, nn.Module]) -> dict[str, Fingerprint]:
    """Compute the fingerprints of all weights of a model.

    networks: part's name -> network
    Returns a dictionary: parameter's name, with the part's name in front -> fingerprint.
    """
    weights = weights_of(nn.ModuleDict(networks))
    return {name: make_fingerprint(tensor) for name, tensor in weights.items()}
