"""Check that a file's tensors fit the networks exactly.

The file must hold every weight that the networks need, in the right shape. Every other tensor must
be one that not_needed.json lists. Otherwise one error lists everything that does not fit.
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
# Tensors that published files hold, but minisd does not use: purpose -> their whole names. In a
# name, * stands for any text and LAST for the number of text layers. Any other tensor is an error.
NOT_NEEDED = json.loads(Path(__file__).with_name("not_needed.json").read_text(encoding="utf-8"))


def cover_model(
    tensors: Mapping[str, Tensor], config: ModelConfig, layout: str, name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Each part's tensors under minisd's names, and the tensors not needed under the file's names.

    Raises one ValueError that lists the tensors that are missing, unknown or of another shape.
    """
    rows = model_rows(config)
    starts = prefixes(config) if layout == "original" else OUR_PREFIXES
    needed = {}
    for part, network in empty_networks(config).items():
        official = to_official(network.state_dict(), rows[part], layout)
        needed |= {starts[part] + key: tensor for key, tensor in official.items()}
    rest = {key: tensor for key, tensor in tensors.items() if key not in needed}
    unknown = [key for key in rest if why_unneeded(key, config) is None]
    advice = "It is incomplete, or a variant of SD v1 or v2 that minisd does not know."
    tensors = match_linear_and_conv(tensors, needed)
    check_cover(name, tensors, needed, unknown, advice)
    parts = {}
    for part, start in starts.items():
        within = {key.removeprefix(start): tensors[key] for key in needed if key.startswith(start)}
        parts[part] = from_official(within, rows[part], layout)
    return parts, rest


def cover_network(
    tensors: Mapping[str, Tensor], network: nn.Module, rows: list[Row], layout: str, name: str
) -> dict[str, Tensor]:
    """The tensors of a file that holds only one network, under minisd's names.

    rows: the network's table of names, flat    layout: "original" or "diffusers"
    Raises ValueError as cover_model() does.
    """
    needed = to_official(network.state_dict(), rows, layout)
    unknown = [key for key in tensors if key not in needed]
    advice = "It is incomplete, or made for another model: get one that fits this model."
    tensors = match_linear_and_conv(tensors, needed)
    check_cover(name, tensors, needed, unknown, advice)
    return from_official(tensors, rows, layout)


def empty_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """The three networks without weights: building them takes almost no time or memory."""
    with torch.device("meta"):
        return {
            "text_encoder": TextTransformer(config.text),
            "unet": UNet(config.unet),
            "vae": VAE(config.vae),
        }


def match_linear_and_conv(
    tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors, with matrices and 1x1 convolutions exchanged where the network needs the other.

    Both compute the same linear map, and programs differ in which one they store.
    """
    fitting = dict(tensors)
    for key in tensors.keys() & needed.keys():
        old, new = tensors[key].shape, needed[key].shape
        if {len(old), len(new)} == {2, 4} and (*old, 1, 1)[:4] == (*new, 1, 1)[:4]:
            fitting[key] = tensors[key].reshape(new)
    return fitting


def why_unneeded(key: str, config: ModelConfig) -> str | None:
    """What a tensor is for that minisd does not need; None if not_needed.json does not list it."""
    patterns = not_needed_patterns(config.text.layers)
    return next((what for what, pattern in patterns.items() if pattern.match(key)), None)


@lru_cache(maxsize=8)
def not_needed_patterns(layers: int) -> dict[str, re.Pattern]:
    """Purpose -> a pattern for all of its names. layers: those of the text transformer"""
    return {
        what: re.compile("|".join(translate(name.replace("LAST", str(layers))) for name in keys))
        for what, keys in NOT_NEEDED.items()
    }


def check_cover(
    name: str,
    tensors: Mapping[str, Tensor],
    needed: Mapping[str, Tensor],
    unknown: list[str],
    advice: str,
) -> None:
    """Raise one ValueError if any tensor is missing, unknown, of another shape or of integers.

    For each kind of fault, it says how many tensors have it and names the first few.
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
    faults["not floating-point"] = integers
    lists = [f"{len(keys)} {fault} ({first_names(keys)})" for fault, keys in faults.items() if keys]
    if lists:
        what = "does not fit the networks that its tensors or settings describe"
        raise ValueError(f"{name} {what}: {'; '.join(lists)}. {advice}")


def first_names(names: list[str]) -> str:
    """The first few names, then dots if there are more."""
    return ", ".join([*names[:MOST_LISTED_NAMES], *["…"][: len(names) - MOST_LISTED_NAMES]])
