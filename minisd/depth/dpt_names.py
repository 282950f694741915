"""The names of the depth estimator's tensors: in MiDaS files, in transformers' DPT, and here.

depth_names.json is the table: our name, that of MiDaS, that of transformers, which counts the
pyramid's levels from its top. In it # stands for a number and * for anything. What has no name here
is in the published files and no depth depends on it: what classifies, what the coarsest level of
the pyramid would do with a finer map.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.checkpoints.contents import check_cover
from minisd.checkpoints.kinds import refuse_other_kinds
from minisd.checkpoints.read import rename

INSIDE = "depth_model.model."  # of an official depth checkpoint
NAMES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
PATTERNS = {
    re.escape(name).replace(r"\#", r"(\d+)").replace(r"\*", "(.*)"): re.sub(r"[#*]", "{}", ours)
    for ours, *theirs in NAMES
    for name in theirs
}


def to_ours(tensors: Mapping[str, Tensor], network: nn.Module, name: str) -> dict[str, Tensor]:
    """A file's tensors under our names. name: what to call the file in an error

    Raises ValueError, in one sentence, unless they are exactly what the network needs.
    """
    inside = {
        key.removeprefix(INSIDE): tensor
        for key, tensor in tensors.items()
        if key.startswith(INSIDE)
    }
    if not inside:
        refuse_other_kinds(name, tensors, "depth estimator")
    tensors = with_joined_attention(inside or tensors)
    if not any(key.startswith(("dpt.", "pretrained.")) for key in tensors):
        raise ValueError(f"{name} holds no depth estimator: give a depth model, or a DPT-hybrid.")
    wanted = [(key, tensor) for key, tensor in tensors.items() if our_name(key)]
    try:
        ours = rename(wanted, our_name)
    except ValueError as error:
        raise ValueError(f"{name} {error}.") from error
    needed = network.state_dict()
    unknown = [key for key in ours if key not in needed]
    check_cover(name, ours, needed, unknown, "It is no DPT-hybrid: get another file.")
    return ours


def our_name(key: str) -> str:
    """What the table calls it here; the key itself if the table does not know it.

    >>> our_name("dpt.encoder.layer.3.output.dense.bias")
    'layers.3.narrow.bias'
    """
    for pattern, ours in PATTERNS.items():
        fits = re.fullmatch(pattern, key)
        if fits:
            return ours.format(*fits.groups())
    return key


def with_joined_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers keeps q, k and v apart: joined as MiDaS has them, where all three are there."""
    joined = dict(tensors)
    for key in tensors:
        three = [key.replace(".query.", f".{one}.") for one in ("query", "key", "value")]
        if ".attention.attention.query." in key and all(one in joined for one in three):
            matrix = torch.cat([joined.pop(one) for one in three])
            joined[key.replace(".query.", ".qkv.")] = matrix
    return joined
