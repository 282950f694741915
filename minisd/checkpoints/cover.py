"""Check that a file's tensors fit the networks exactly.

The file must hold every weight that the networks need, in the right shape. Every other tensor in
the file must be listed in not_needed.json. If tensors do not fit, one error reports them all.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import translate
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minisd.checkpoints.names import Row, from_official, model_rows, prefixes, to_official
from minisd.clip import TextTransformer
from minisd.config import ModelConfig
from minisd.unet import UNet
from minisd.vae import VAE

MOST_LISTED_NAMES = 3  # the most names in each list of an error
# The beginnings of tensor names in minisd's own files. minisd also adds them to the names in a
# diffusers folder.
OUR_PREFIXES = {part: f"{part}." for part in ("text_encoder", "unet", "vae")}
# The tensors that are in published files, but that minisd does not use. A dictionary: purpose of
# the tensors -> names of the tensors. In a name, * stands for any text, and LAST stands for the
# number of text layers. A tensor that is neither needed nor listed in this dictionary is an error.
NOT_NEEDED = json.loads(Path(__file__).with_name("not_needed.json").read_text(encoding="utf-8"))


def cover_model(
    tensors: Mapping[str, Tensor], config: ModelConfig, layout: str, name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Check that the tensors fit the model's networks, and sort the tensors by network.

    tensors: name in the file -> tensor
    layout: the naming scheme of the file: "ours", "original" or "diffusers"
    name: the name of the file or folder, for error messages

    Returns two dictionaries. The first dictionary: "text_encoder", "unet" or "vae" -> the tensors
    of this network. These tensors get minisd's names. The second dictionary holds the tensors that
    minisd does not need: name in the file -> tensor.

    Raises ValueError if a tensor is missing or unknown, or has the wrong shape.
    """
    rows = model_rows(config)
    starts = prefixes(config) if layout == "original" else OUR_PREFIXES
    needed = {}
    for part, network in empty_networks(config).items():
        official = to_official(network.state_dict(), rows[part], layout)
        needed |= {starts[part] + key: tensor for key, tensor in official.items()}
    rest = {key: tensor for key, tensor in tensors.items() if key not in needed}
    unknown = [key for key in rest if why_unneeded(key, config) is None]
    advice = "Get another copy. If that one fails too, minisd does not know this variant of SD."
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
    """Check that the tensors of a file fit one network. Returns the tensors with minisd's names.

    The file must hold only this network.

    tensors: name in the file -> tensor
    rows: a list with the names of the network's tensors. Each row has the names of one tensor
    layout: the naming scheme of the file: "original" or "diffusers"
    name: the name of the file, for error messages

    Raises ValueError if a tensor is missing or unknown, or has the wrong shape.
    """
    needed = to_official(network.state_dict(), rows, layout)
    unknown = [key for key in tensors if key not in needed]
    advice = "The file is incomplete, or made for another model: get a file for this model."
    tensors = match_linear_and_conv(tensors, needed)
    check_cover(name, tensors, needed, unknown, advice)
    return from_official(tensors, rows, layout)


class LeaveUnset(TorchFunctionMode):
    """While it is active, new layers do not draw random weights."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        sets_weights = getattr(func, "__module__", None) == "torch.nn.init"
        return kwargs["tensor"] if sets_weights else func(*args, **kwargs)


@contextmanager
def without_numbers() -> Iterator[None]:
    """Build networks whose weights have shapes, but no numbers (torch's meta device).

    Without LeaveUnset, torch would import its compiler to draw numbers that nobody stores. This
    takes about a second.
    """
    with torch.device("meta"), LeaveUnset():
        yield


def empty_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """Build the three networks of a model without weights. This takes almost no time or memory."""
    with without_numbers():
        return {
            "text_encoder": TextTransformer(config.text),
            "unet": UNet(config.unet),
            "vae": VAE(config.vae),
        }


def match_linear_and_conv(
    tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Turn matrices into 1x1 convolutions, or 1x1 convolutions into matrices, where needed.

    A 1x1 convolution computes the same linear map as a matrix. So some programs store a matrix
    where other programs store a 1x1 convolution.

    tensors: name -> tensor in the file
    needed: name -> tensor with the shape that the network needs
    """
    fitting = dict(tensors)
    for key in tensors.keys() & needed.keys():
        old, new = tensors[key].shape, needed[key].shape
        if {len(old), len(new)} == {2, 4} and (*old, 1, 1)[:4] == (*new, 1, 1)[:4]:
            fitting[key] = tensors[key].reshape(new)
    return fitting


def why_unneeded(key: str, config: ModelConfig) -> str | None:
    """The purpose of a tensor that minisd does not need, as not_needed.json states it.

    key: the tensor's name

    Returns None if not_needed.json does not list the tensor.
    """
    patterns = not_needed_patterns(config.text.layers)
    return next((what for what, pattern in patterns.items() if pattern.match(key)), None)


@lru_cache(maxsize=8)
def not_needed_patterns(layers: int) -> dict[str, re.Pattern]:
    """Turn the names in not_needed.json into patterns.

    layers: the number of layers of the text transformer

    Returns a dictionary: purpose of some tensors -> a pattern that matches the names of all these
    tensors.
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
    """Raise ValueError if a tensor is missing or unknown, has the wrong shape, or holds integers.

    The error states how many tensors have each of these faults. For each fault, it lists at most
    MOST_LISTED_NAMES tensors.

    name: the name of the file or folder, for the error
    tensors: name -> tensor in the file
    needed: name -> tensor with the shape that the network needs
    unknown: the names of the tensors that minisd does not know
    advice: the last sentence of the error
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
        what = "does not hold exactly the tensors that its networks need"
        raise ValueError(f"{name} {what}: {'; '.join(lists)}. {advice}")


def first_names(names: list[str]) -> str:
    """A text with the first few names. If there are more names, the text ends with "…"."""
    dots = ["…"] if len(names) > MOST_LISTED_NAMES else []
    return ", ".join(names[:MOST_LISTED_NAMES] + dots)
