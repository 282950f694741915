"""Hypernetworks: small MLPs that change what attention reads, before keys and values.

Each width of context has two of them. Keys are made of c + strength * net0(c), values of
c + strength * net1(c), in self- and cross-attention alike. The idea is NovelAI's (2022), the file
layout that of AUTOMATIC1111's web UI (modules/hypernetworks/hypernetwork.py).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from minisd.adapters.handle import Handle, refuse_non_finite
from minisd.attention import Attention
from minisd.checkpoints.file_kinds import refuse_other_kinds
from minisd.checkpoints.first_bytes import is_safetensors
from minisd.checkpoints.known_settings import settings_tables
from minisd.checkpoints.load import is_finite
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
# What the web UI writes next to the networks (Hypernetwork.save). Files from before some of it
# existed lack them. Then the tensors decide.
HYPERNETWORK_SETTINGS = settings_tables()["list of settings (hypernetwork)"]


@dataclass(frozen=True)
class HypernetworkMLP:
    """One small MLP: linear layers, each followed by an activation and perhaps a layer norm.

    layers: (weight, bias) in order, a matrix for a linear layer, a vector for a norm
    """

    layers: list[tuple[Tensor, Tensor]]
    activation: str
    activates_output: bool

    def __call__(self, c: Tensor) -> Tensor:
        """What is added to c. c: b m width    returns: b m width"""
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
    """Let the file's MLPs change the contexts of the U-Net, until the handle is removed.

    A file may serve several models. Widths that this model lacks are ignored, as in the web UI, if
    the file has the width of this model's text.

    Raises ValueError, and leaves the model as it is, if the file is not a hypernetwork, has an
    unknown activation or setting or is made for other widths, or if the strength is not finite.
    """
    refuse_non_finite(strength, "strength")
    networks = read_hypernetwork(path)
    widths = {layer.to_k.in_features for layer in attentions(sd.unet).values()}
    if not networks.keys() <= widths and sd.config.unet.context_dim not in networks:
        known, needed = (", ".join(map(str, sorted(all))) for all in (networks, widths))
        what = f"rewrites contexts {known} wide, and the model's are {needed}"
        raise ValueError(f"{Path(path).name} {what}: it is made for another model.")
    return apply_networks(sd.unet, networks, strength)


def attentions(unet: nn.Module) -> dict[str, Attention]:
    """Every attention of the U-Net, by path."""
    return {name: part for name, part in unet.named_modules() if isinstance(part, Attention)}


def apply_networks(
    unet: nn.Module, networks: Mapping[int, Sequence[HypernetworkMLP]], strength: float
) -> Handle:
    """Let the two networks of each width rewrite keys' and values' context, till it is removed."""
    layers = attentions(unet).values() if strength != 0 else ()
    return Handle(
        projection.register_forward_pre_hook(rewriting_hook(net, strength))
        for layer in layers
        if (nets := networks.get(layer.to_k.in_features, ()))  # a file may have none for a width
        for projection, net in zip((layer.to_k, layer.to_v), nets, strict=True)
    )


def rewriting_hook(net: HypernetworkMLP, strength: float) -> Callable:
    """A hook that adds the MLP's answer to what a projection reads."""

    def hook(projection: nn.Linear, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (context,) = inputs
        return (context + strength * net(context),)

    return hook


def read_hypernetwork(path: str | Path) -> dict[int, tuple[HypernetworkMLP, HypernetworkMLP]]:
    """Width -> the MLP for keys and the one for values. Raises ValueError as hypernetwork()."""
    path = local_path(path)
    content = read_tensors(path) if is_safetensors(path) else unpickle(path)
    content = content if isinstance(content, dict) else {}
    with name_errors(path.name):
        tensors = dict(named_tensors(content))
    refuse_other_kinds(path.name, tensors, "hypernetwork")
    with name_errors(path.name):
        if is_safetensors(path):
            raise ValueError("is no .pt of a hypernetwork, which alone says its activation: get it")
        return parse_networks(content)


def parse_networks(content: Mapping) -> dict[int, tuple[HypernetworkMLP, HypernetworkMLP]]:
    """Width -> its two MLPs. Raises ValueError if the file's content is anything else."""
    layers = {
        key: each for key, each in content.items() if key not in HYPERNETWORK_SETTINGS.ignored
    }
    held: defaultdict = defaultdict(lambda: defaultdict(dict))
    for key, tensor in rename_tensors(named_tensors(layers), usual_layer).items():
        if not LAYER_KEY.fullmatch(key):
            raise ValueError(f"holds {key}, which is no layer of a hypernetwork: get another copy")
        if not (tensor.is_floating_point() and is_finite(tensor)):
            raise ValueError(f"holds no finite numbers in {key}: get another copy")
        width, which, _, number, leaf = key.split(".")
        held[int(width), int(which)][int(number)][leaf] = tensor
    said = parse_settings(
        {str(key): each for key, each in content.items() if not str(key).isdigit()}
    )
    networks = {}
    for width in {width for width, _ in held}:
        networks[width] = tuple(build_mlp(held[width, which], width, said) for which in (0, 1))
    if not networks or any(None in pair for pair in networks.values()):
        raise ValueError("is no whole hypernetwork, two networks for each width: get another copy")
    return networks


def usual_layer(key: str) -> str:
    """The usual name of a tensor. The first hypernetworks named them "linear1" and "linear2"."""
    return key.replace(".linear1.", ".linear.0.").replace(".linear2.", ".linear.1.")


def parse_settings(stored: Mapping[str, object]) -> dict[str, object]:
    """The settings of a file. Raises ValueError if one is unknown or makes no sense."""
    said = HYPERNETWORK_SETTINGS.read(stored)
    said["activation_func"] = str(said["activation_func"] or "linear").lower()
    if said["activation_func"] not in {"linear", *ACTIVATION_FUNCTIONS}:
        what = f"has the activation {said['activation_func']!r}, which is unknown here"
        raise ValueError(f"{what}: known are linear, {', '.join(ACTIVATION_FUNCTIONS)}")
    return said


def build_mlp(
    held: Mapping[int, Mapping[str, Tensor]], width: int, said: Mapping[str, object]
) -> HypernetworkMLP | None:
    """The MLP of these layers. None if they do not lead from the width back to it as stated.

    held: number of a layer -> its weight and bias. Their numbers have gaps, since activations and
        dropout count as well
    """
    layers = [(held[number].get("weight"), held[number].get("bias")) for number in sorted(held)]
    sizes = [width]
    for weight, bias in layers:
        whole = weight is not None and bias is not None and weight.ndim in (1, 2)
        if not whole or weight.shape[-1] != sizes[-1] or bias.shape != weight.shape[:1]:
            return None
        sizes += weight.shape[: weight.ndim - 1]  # a norm, a vector, keeps the size
    structure, norms = said["layer_structure"], any(weight.ndim == 1 for weight, _ in layers)
    as_said = structure is None or sizes == [int(width * multiple) for multiple in structure]
    as_said = as_said and said["is_layer_norm"] in (None, norms)
    if not as_said or len(sizes) == 1 or sizes[-1] != width:
        return None
    return HypernetworkMLP(layers, said["activation_func"], said["activate_output"])
