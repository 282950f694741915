"""The exact cover: each weight that the networks need is there once, in the right shape.

Whatever else a file holds is of a kind that is known not to be needed. Otherwise one error lists
all that does not fit.
"""

import json
import re
from collections.abc import Mapping
from fnmatch import translate
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.checkpoints.names import Row, from_official, model_rows, prefixes, to_official
from minisd.clip import TextTransformer
from minisd.config import ModelConfig
from minisd.unet import UNet
from minisd.vae import VAE

MOST_LISTED_NAMES = 3  # names per list in an error
OUR_PREFIXES = {part: f"{part}." for part in ("text_encoder", "unet", "vae")}  # a folder's as well
# What published files hold beside the weights we use, whole names, in not_needed.json: * stands for
# anything, LAST for the number of text layers. Anything else is an error.
NOT_NEEDED = json.loads(Path(__file__).with_name("not_needed.json").read_text(encoding="utf-8"))


def cover_model(
    tensors: Mapping[str, Tensor], config: ModelConfig, layout: str, name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Each part's tensors under our names, and all that is not needed under the file's.

    Raises one ValueError that lists what is missing, what is too much and what has another shape.
    """
    rows = model_rows(config)
    starts = prefixes(config) if layout == "original" else OUR_PREFIXES
    needed = {}
    for part, network in empty_networks(config).items():
        official = to_official(network.state_dict(), rows[part], layout)
        needed |= {starts[part] + key: tensor for key, tensor in official.items()}
    rest = {key: tensor for key, tensor in tensors.items() if key not in needed}
    unknown = [key for key in rest if why_unneeded(key, config) is None]
    mend = "It is not whole, or a variant of SD v1 or v2 that is unknown here."
    tensors = match_linear_and_conv(tensors, needed)
    check_cover(name, tensors, needed, unknown, mend)
    parts = {}
    for part, start in starts.items():
        within = {key.removeprefix(start): tensors[key] for key in needed if key.startswith(start)}
        parts[part] = from_official(within, rows[part], layout)
    return parts, rest


def cover_network(
    tensors: Mapping[str, Tensor], network: nn.Module, rows: list[Row], layout: str, name: str
) -> dict[str, Tensor]:
    """The tensors of a file that holds one network alone, under our names.

    rows: its table, flat    layout: "original" or "diffusers"
    Raises ValueError as cover_model() does.
    """
    needed = to_official(network.state_dict(), rows, layout)
    unknown = [key for key in tensors if key not in needed]
    mend = "It is not whole, or made for another model: get one of the model's sizes."
    tensors = match_linear_and_conv(tensors, needed)
    check_cover(name, tensors, needed, unknown, mend)
    return from_official(tensors, rows, layout)


def empty_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """The three networks without weights, which costs neither time nor memory."""
    with torch.device("meta"):
        return {
            "text_encoder": TextTransformer(config.text),
            "unet": UNet(config.unet),
            "vae": VAE(config.vae),
        }


def match_linear_and_conv(
    tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors, with matrices as 1x1 convolutions and the reverse: both are the same map."""
    fitting = dict(tensors)
    for key in tensors.keys() & needed.keys():
        old, new = tensors[key].shape, needed[key].shape
        if {len(old), len(new)} == {2, 4} and (*old, 1, 1)[:4] == (*new, 1, 1)[:4]:
            fitting[key] = tensors[key].reshape(new)
    return fitting


def why_unneeded(key: str, config: ModelConfig) -> str | None:
    """What a tensor is for that we do not need; None if it is none of the known."""
    patterns = not_needed_patterns(config.text.layers)
    return next((what for what, pattern in patterns.items() if pattern.match(key)), None)


@lru_cache(maxsize=8)
def not_needed_patterns(layers: int) -> dict[str, re.Pattern]:
    """One pattern for all the names of a purpose. layers: of the text transformer"""
    return {
        what: re.compile("|".join(translate(name.replace("LAST", str(layers))) for name in keys))
        for what, keys in NOT_NEEDED.items()
    }


def check_cover(
    name: str,
    tensors: Mapping[str, Tensor],
    needed: Mapping[str, Tensor],
    unknown: list[str],
    mend: str,
) -> None:
    """Raise one ValueError that lists what is missing, too much or of another kind, if anything.

    It says for every kind of fault how many there are, and names the first few.
    """
    misshapen = [
        f"{key} {list(tensors[key].shape)}, expected {list(tensor.shape)}"
        for key, tensor in needed.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    missing = [key for key in needed if key not in tensors]
    held = [(key, tensors[key]) for key in needed if key in tensors]
    integers = [f"{key} {t.dtype}" for key, t in held if not t.is_floating_point()]
    faults = {"missing": missing, "unknown": unknown, "of another shape": misshapen}
    faults["not of real numbers"] = integers
    lists = [f"{len(keys)} {fault} ({first_names(keys)})" for fault, keys in faults.items() if keys]
    if lists:
        what = "does not fit the networks that its tensors or settings describe"
        raise ValueError(f"{name} {what}: {'; '.join(lists)}. {mend}")


def first_names(names: list[str]) -> str:
    """The first few names, and dots for the others."""
    return ", ".join([*names[:MOST_LISTED_NAMES], *["…"][: len(names) - MOST_LISTED_NAMES]])
