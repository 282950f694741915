"""Check that a file's tensors fit the networks exactly.

The file must hold every weight that the networks need, in the right shape. Every other tensor in
the file must be listed in not_needed.json. If tensors do not fit, one error reports them all.
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
OUR_PREFIXES = {part: f"{part}." for part in ("text_encoder", "unet", "vae")}  # and in a folder
# The tensors that published files hold, but minisd does not use. A dictionary: purpose of the
# tensors -> full names of the tensors. In a name, * stands for any text, and LAST stands for the
# number of text layers. A tensor that is neither needed nor listed in this dictionary is an error.
NOT_NEEDED = json.loads(Path(__file__).with_name("not_needed.json").read_text(encoding="utf-8"))


def cover_model(
    tensors: Mapping[str, Tensor], config: ModelConfig, layout: str, name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Check that the tensors fit the model's networks, and sort the tensors by part.

    name: the name of the file or folder, for error messages

    Returns two dictionaries. The first dictionary: part -> tensors of the part, under minisd's
    names. The second dictionary holds the tensors that minisd does not need: name in the file ->
    tensor.

    Raises ValueError if tensors are missing, unknown or of another shape.
    """
    rows = model_rows(config)
    starts = prefixes(config) if layout == "original" else OUR_PREFIXES
    needed = {}
    for part, network in empty_networks(config).items():
        official = to_official(network.state_dict(), rows[part], layout)
        needed |= {starts[part] + key: tensor for key, tensor in official.items()}
    rest = {key: tensor for key, tensor in tensors.items() if key not in needed}
    unknown = [key for key in rest if why_unneeded(key, config) is None]
    advice = "The model is incomplete, or a variant of SD v1 or v2 that minisd does not know."
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
    """Check that the tensors of a file fit one network, and give the tensors minisd's names.

    The file must hold only this network.

    rows: a list with one row of names for each tensor of the network
    layout: "original" or "diffusers"
    name: the name of the file, for error messages

    Raises ValueError if tensors are missing, unknown or of another shape.
    """
    needed = to_official(network.state_dict(), rows, layout)
    unknown = [key for key in tensors if key not in needed]
    advice = "The file is incomplete, or made for another model: get a file for this model."
    tensors = match_linear_and_conv(tensors, needed)
    check_cover(name, tensors, needed, unknown, advice)
    return from_official(tensors, rows, layout)


def empty_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """Build the three networks without weights. This takes almost no time or memory."""
    with torch.device("meta"):
        return {
            "text_encoder": TextTransformer(config.text),
            "unet": UNet(config.unet),
            "vae": VAE(config.vae),
        }


def match_linear_and_conv(
    tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Reshape matrices and 1x1 convolutions to the shapes that the network needs.

    A matrix becomes a 1x1 convolution, or a 1x1 convolution becomes a matrix. Both compute the same
    linear map. Some programs store matrices, and others store 1x1 convolutions.

    needed: name -> tensor with the shape that the network needs
    """
    fitting = dict(tensors)
    for key in tensors.keys() & needed.keys():
        old, new = tensors[key].shape, needed[key].shape
        if {len(old), len(new)} == {2, 4} and (*old, 1, 1)[:4] == (*new, 1, 1)[:4]:
            fitting[key] = tensors[key].reshape(new)
    return fitting


def why_unneeded(key: str, config: ModelConfig) -> str | None:
    """The purpose of a tensor that minisd does not need.

    key: the tensor's name

    Returns None if not_needed.json does not list the tensor.
    """
    patterns = not_needed_patterns(config.text.layers)
    return next((what for what, pattern in patterns.items() if pattern.match(key)), None)


@lru_cache(maxsize=8)
def not_needed_patterns(layers: int) -> dict[str, re.Pattern]:
    """A dictionary: purpose of unneeded tensors -> pattern that matches all names of the tensors.

    layers: the number of layers of the text transformer
    """
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
    """Raise ValueError if any tensor is missing, unknown, of another shape or of integers.

    For each of these faults, the error states how many tensors have the fault, and lists the first
    few of these tensors.
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
    """The first few names, and an ellipsis (…) if there are more names."""
    dots = ["…"] if len(names) > MOST_LISTED_NAMES else []
    return ", ".join(names[:MOST_LISTED_NAMES] + dots)
