"""Hypernetworks: small MLPs that change the context from which attention makes keys and values.

For each width of the context, there are two MLPs: net0 and net1. If c is the context, attention
makes the keys from c + strength * net0(c), and the values from c + strength * net1(c). This happens
in self-attention and in cross-attention. The idea comes from NovelAI (2022). The file layout is
that of AUTOMATIC1111's web UI (modules/hypernetworks/hypernetwork.py).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from minisd.adapters.handle import Handle, refuse_non_finite
from minisd.attention import Attention
from minisd.checkpoints.file_kinds import refuse_other_kinds
from minisd.checkpoints.finite import is_finite
from minisd.checkpoints.first_bytes import is_safetensors
from minisd.checkpoints.known_settings import settings_tables
from minisd.checkpoints.pickles import unpickle
from minisd.checkpoints.read import named_tensors, read_tensors, rename_tensors
from minisd.checkpoints.registry import local_path
from minisd.files.one_line import name_errors
from minisd.pipeline import StableDiffusion

# Names in files -> functions of torch.nn.functional. The web UI's "swish" is torch's Hardswish.
ACTIVATION_FUNCTIONS = {
    name: name
    for name in (
        *("relu", "relu6", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish"),
        *("tanh", "tanhshrink", "sigmoid", "logsigmoid", "softplus", "softsign", "softshrink"),
        *("hardshrink", "hardsigmoid", "hardswish", "hardtanh"),
    )
}
ACTIVATION_FUNCTIONS |= {"leakyrelu": "leaky_relu", "swish": "hardswish"}
LAYER_KEY = re.compile(r"\d{1,9}\.[01]\.linear\.\d{1,9}\.(weight|bias)")
# The settings that the web UI writes into a file together with the networks (Hypernetwork.save). An
# older file may lack a setting. Then the shapes of the tensors decide.
HYPERNETWORK_SETTINGS = settings_tables()["list of settings (hypernetwork)"]
INCOMPLETE = "is not a complete hypernetwork (two networks for each width): get another copy"
Layers = dict[int, dict[str, Tensor]]  # the number of a layer -> its weight and its bias


@dataclass(frozen=True)
class HypernetworkMLP:
    """One small MLP: linear layers. Each is followed by an activation and perhaps a layer norm.

    layers: pairs of weight and bias, in order. The weight of a linear layer is a matrix. The weight
        of a layer norm is a vector
    activation: a key of ACTIVATION_FUNCTIONS, or "linear" for no activation
    activates_output: whether an activation also follows the last linear layer
    """

    layers: list[tuple[Tensor, Tensor]]
    activation: str
    activates_output: bool

    def __call__(self, c: Tensor) -> Tensor:
        """Compute the change that is added to a context c. c: b m width    returns: b m width"""
        last = max(i for i, (weight, _) in enumerate(self.layers) if weight.ndim == 2)
        x = c
        for i, (weight, bias) in enumerate(self.layers):
            weight, bias = weight.to(c), bias.to(c)
            if weight.ndim == 1:
                x = F.layer_norm(x, weight.shape, weight, bias)
                continue
            x = F.linear(x, weight, bias)
            if self.activation != "linear" and (i < last or self.activates_output):
                x = getattr(F, ACTIVATION_FUNCTIONS[self.activation])(x)
        return x


def hypernetwork(sd: StableDiffusion, path: str | Path, strength: float = 1.0) -> Handle:
    """Add the MLPs of a file to the U-Net. They stay until the returned handle is removed.

    A file may also have MLPs for widths that this model does not have. These MLPs are ignored, as
    in the web UI. But such a file must also have MLPs for the width of this model's text contexts.

    Raises ValueError if the file is not a hypernetwork, if the file has an unknown activation or
    setting, if the file is made for other widths, or if the strength is not finite. In these cases,
    the model stays as it is.
    """
    refuse_non_finite(strength, "strength")
    networks = read_hypernetwork(path)
    widths = {layer.to_k.in_features for layer in attentions(sd.unet).values()}
    if not networks.keys() <= widths and sd.config.unet.context_dim not in networks:
        known, needed = (", ".join(map(str, sorted(each))) for each in (networks, widths))
        what = f"changes contexts of width {known}, but the model's widths are {needed}"
        raise ValueError(f"{Path(path).name} {what}: the file is made for another model.")
    return apply_networks(sd.unet, networks, strength)


def attentions(unet: nn.Module) -> dict[str, Attention]:
    """All attention modules of the U-Net. Returns a dictionary: path in the U-Net -> module."""
    return {name: part for name, part in unet.named_modules() if isinstance(part, Attention)}


def apply_networks(
    unet: nn.Module, networks: Mapping[int, Sequence[HypernetworkMLP]], strength: float
) -> Handle:
    """Add the networks to the U-Net. They stay until the returned handle is removed.

    networks: width of the contexts -> two networks, for keys and for values
    """
    layers = attentions(unet).values() if strength != 0 else ()
    return Handle(
        projection.register_forward_pre_hook(rewriting_hook(net, strength))
        for layer in layers
        if (nets := networks.get(layer.to_k.in_features, ()))  # maybe none for this width
        for projection, net in zip((layer.to_k, layer.to_v), nets, strict=True)
    )


def rewriting_hook(net: HypernetworkMLP, strength: float) -> Callable:
    """A hook that adds strength * net(context) to the input of a projection (to_k or to_v)."""

    def hook(projection: nn.Linear, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (context,) = inputs
        return (context + strength * net(context),)

    return hook


def read_hypernetwork(path: str | Path) -> dict[int, tuple[HypernetworkMLP, HypernetworkMLP]]:
    """Read a file. Returns a dictionary: width -> the MLP for keys and the MLP for values.

    Raises ValueError if the file is not a hypernetwork, or if the file has an unknown activation or
    setting.
    """
    path = local_path(path)
    content = read_tensors(path) if is_safetensors(path) else unpickle(path)
    content = content if isinstance(content, dict) else {}
    with name_errors(path.name):
        tensors = dict(named_tensors(content))
    refuse_other_kinds(path.name, tensors, "hypernetwork")
    with name_errors(path.name):
        if is_safetensors(path):
            raise ValueError("does not state the activation, but a .pt file does: get the .pt file")
        return parse_networks(content)


def parse_networks(content: Mapping) -> dict[int, tuple[HypernetworkMLP, HypernetworkMLP]]:
    """Build the MLPs. Returns a dictionary: width -> the MLP for keys and the MLP for values.

    content: what the file holds: key -> value

    Raises ValueError if the content is not that of a hypernetwork.
    """
    layers = {key: it for key, it in content.items() if key not in HYPERNETWORK_SETTINGS.ignored}
    found: dict[tuple[int, int], Layers] = defaultdict(lambda: defaultdict(dict))
    for key, tensor in rename_tensors(named_tensors(layers), usual_key).items():
        if not LAYER_KEY.fullmatch(key):
            raise ValueError(f"holds {key}, which is no layer of a hypernetwork: get another copy")
        if not (tensor.is_floating_point() and is_finite(tensor)):
            raise ValueError(f"holds numbers in {key} that are not finite: get another copy")
        width, which, _, number, leaf = key.split(".")
        found[int(width), int(which)][int(number)][leaf] = tensor
    settings = parse_settings(
        {str(key): each for key, each in content.items() if not str(key).isdigit()}
    )
    if not found:
        raise ValueError(INCOMPLETE)
    widths = {width for width, _ in found}
    keys, values = (
        {width: build_mlp(found[width, which], width, settings) for width in widths}
        for which in (0, 1)
    )
    return {width: (keys[width], values[width]) for width in widths}


def usual_key(key: str) -> str:
    """The usual name of a tensor. The first hypernetworks name layers "linear1", not "linear.0"."""
    return key.replace(".linear1.", ".linear.0.").replace(".linear2.", ".linear.1.")


def parse_settings(stored: Mapping[str, object]) -> dict[str, Any]:
    """Read the settings. Raises ValueError if a setting is unknown or has a wrong value."""
    settings: dict[str, Any] = HYPERNETWORK_SETTINGS.read(stored)
    activation = str(settings["activation_func"] or "linear").lower()
    if activation not in {"linear", *ACTIVATION_FUNCTIONS}:
        known = f"linear, {', '.join(ACTIVATION_FUNCTIONS)}"
        what = f"has the activation {activation!r}, which minisd does not know"
        raise ValueError(f"{what}: the known ones are {known}")
    return settings | {"activation_func": activation}


def build_mlp(parts: Layers, width: int, settings: Mapping[str, Any]) -> HypernetworkMLP:
    """Build an MLP from its layers.

    parts: number of a layer -> its tensors. Some numbers are missing, because activations and
        dropout have numbers, too, but no tensors

    Raises ValueError if the layers do not fit together, if the input or the output of the MLP does
    not have the width `width`, or if the settings contradict the layers.
    """
    layers, sizes = [], [width]
    for number in sorted(parts):
        weight, bias = parts[number].get("weight"), parts[number].get("bias")
        if weight is None or bias is None or weight.ndim not in (1, 2):
            raise ValueError(INCOMPLETE)
        if weight.shape[-1] != sizes[-1] or bias.shape != weight.shape[:1]:
            raise ValueError(INCOMPLETE)
        sizes += weight.shape[:-1]  # adds nothing for a layer norm, whose weight is a vector
        layers.append((weight, bias))
    structure, norms = settings["layer_structure"], any(weight.ndim == 1 for weight, _ in layers)
    if structure is not None and sizes != [int(width * multiple) for multiple in structure]:
        raise ValueError(INCOMPLETE)
    if len(sizes) == 1 or sizes[-1] != width or settings["is_layer_norm"] not in (None, norms):
        raise ValueError(INCOMPLETE)
    return HypernetworkMLP(layers, settings["activation_func"], settings["activate_output"])
