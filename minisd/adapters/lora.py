"""LoRA: low-rank updates for many weight matrices. Each update is the product of two thin matrices.

A layer computes as if its weight W were W + scale * (alpha / rank) * up @ down (Hu et al. 2022,
eq. 3). W itself never changes: the update is computed from x and added to the layer's output.

Files name the layers in three ways: as in kohya's trainer, as in PEFT and today's diffusers, or as
in the first diffusers. In kohya's files, alpha is a tensor, and an alpha of 0 stands for the rank.
In PEFT's settings, alpha is a number, and 0 means 0. If a file has no alpha, alpha is the rank.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import regex
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.adapters.handle import Handle, refuse_non_finite
from minisd.checkpoints.file_kinds import refuse_other_kinds
from minisd.checkpoints.finite import is_finite
from minisd.checkpoints.lora_settings import LoraSettings, find_lora_file, read_lora_settings
from minisd.checkpoints.names import Row, model_rows, usual_name
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.registry import local_path
from minisd.config import ModelConfig
from minisd.files.one_line import name_errors
from minisd.pipeline import StableDiffusion

PARTS = {"unet": "unet", "te": "text_encoder", "text_encoder": "text_encoder"}
LORA_LEAVES = r"(?P<leaf>lora_[AB]|lora(_linear_layer)?\.(down|up)|lora_(down|up)|alpha)"
KOHYA_KEY = re.compile(rf"lora_(?P<part>unet|te)_(?P<layer>.+?)\.{LORA_LEAVES}")
DIFFUSERS_KEY = re.compile(rf"((?P<part>unet|text_encoder)\.)?(?P<layer>.+?)[._]{LORA_LEAVES}")
# (?>…) keeps its first match. On some long names, it would take hours to try all other matches.
READS_CONTEXT = regex.compile(r"(?>.*?attn2)(?>.*?to_[kv][._]).*(lora_A|down)\b")
PEFT_PREFIX = "base_model.model."
TEXT_LAYER_STARTS = ("text_model.", "encoder.layers.")  # newer transformers leave out text_model
LEAF_NAMES = {"lora_A": "down", "lora_B": "up", "alpha": "alpha"}


@dataclass(frozen=True)
class LowRankUpdate:
    """The update of one layer. up @ down has the shape of the layer's weight, but a low rank.

    For a linear layer:  down: rank c_in        up: c_out rank
    For a convolution:   down: rank c_in h w    up: c_out rank 1 1
    """

    down: Tensor
    up: Tensor
    alpha: float

    def __call__(self, layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
        """Compute (alpha / rank) * up(down(x)).

        If the layer is a convolution, down is a convolution with the layer's stride and padding.
        """
        down, up = self.down.to(layer.weight), self.up.to(layer.weight)
        factor = self.alpha / len(down)
        if isinstance(layer, nn.Conv2d):
            thin = F.conv2d(x, down, stride=layer.stride, padding=layer.padding)
            return factor * F.conv2d(thin, up)
        return factor * F.linear(F.linear(x, down), up)


def lora(sd: StableDiffusion, path: str | Path, scale: float = 1.0) -> Handle:
    """Add the updates of a LoRA file to the model, multiplied by `scale`.

    The updates stay until the returned handle is removed.

    path: the file, or the folder into which PEFT or diffusers wrote it

    Raises ValueError if the file is not a LoRA, if the file is of an unknown kind or made for
    another model, or if the scale is not finite. In these cases, the model stays as it is.
    """
    refuse_non_finite(scale, "scale")
    fitted = {}
    for (part, name), update in read_lora(path, sd.config).items():
        layer = getattr(sd, part).get_submodule(name)
        fitted[layer] = fit_update(update, layer, f"{Path(path).name}: {part}.{name}")
    return apply_updates(fitted, scale)


def apply_updates(updates: Mapping[nn.Module, LowRankUpdate], scale: float) -> Handle:
    """Add updates to layers. The updates stay until the returned handle is removed.

    updates: layer -> its update
    scale: every update is multiplied by this number
    """
    return Handle(
        layer.register_forward_hook(partial(add_update, update, scale), prepend=True)
        for layer, update in updates.items()
        if scale != 0
    )


def add_update(
    update: LowRankUpdate,
    scale: float,
    layer: nn.Linear | nn.Conv2d,
    inputs: tuple[Tensor],
    output: Tensor,
) -> Tensor:
    """Add the scaled update to a layer's output.

    partial(add_update, update, scale) is a forward hook of the layer.
    """
    return output + scale * update(layer, inputs[0])


def read_lora(path: str | Path, config: ModelConfig) -> dict[tuple[str, str], LowRankUpdate]:
    """Read a file. Returns a dictionary: (part, our name of a layer) -> the update of the layer.

    The part is "unet" or "text_encoder".

    Raises ValueError if the file is not a LoRA, is of an unknown kind, or is made for another
    model.
    """
    path = find_lora_file(local_path(path))
    tensors = read_tensors(path)
    refuse_other_kinds(path.name, tensors, "LoRA")
    stated = read_lora_settings(path, tensors)
    updates = {}
    for (part, row), keys in keys_by_layer(tensors, config, path.name).items():
        settings = [values for where, values in stated if where in ("", part)]
        own = {leaf: tensors[key] for leaf, key in keys.items()}
        with name_errors(f"{path.name}: {part}.{row.ours}"):
            updates[part, row.ours] = make_update(own, settings, row.diffusers)
    return updates


def keys_by_layer(
    tensors: dict[str, Tensor], config: ModelConfig, file: str
) -> dict[tuple[str, Row], dict[str, str]]:
    """Group the keys of a file by layer. Returns a dictionary: (part, layer) -> keys of the layer.

    The keys of a layer are a dictionary, too: "down", "up" or "alpha" -> the key in the file. Some
    layers have no "alpha".

    Raises ValueError if a key fits no layer of the model, if a layer has no "down" or no "up", or
    if the file has a layer twice.
    """
    found: defaultdict[tuple[str, Row], dict[str, str]] = defaultdict(dict)
    layers, strange = layers_by_name(config), []
    for key in tensors:
        part, layer, leaf = parse_key(key)
        if (part, layer) not in layers:
            strange.append(key)
            continue
        first = found[part, layers[part, layer]].setdefault(leaf, key)
        if first != key:
            what = f"{file} changes a layer twice, as {first} and as {key}"
            raise ValueError(f"{what}: keep one of the two.")
    halves = [row.ours for (_, row), held in found.items() if not {"down", "up"} <= held.keys()]
    if strange or halves or not found:
        what = "names that fit no layer" if strange else "layers that lack a matrix"
        some = ", ".join((strange or halves or ["none at all"])[:3])
        what = f"{file} is no LoRA for {config.name}: it holds {what} ({some}). It is damaged"
        raise ValueError(f"{what} or made for another model{describe_contexts(tensors, config)}.")
    return found


def describe_contexts(tensors: dict[str, Tensor], config: ModelConfig) -> str:
    """The end of an error message: the width of the contexts for which the file is made.

    The text is empty if the contexts of the model have this width.
    """
    widths = {t.shape[1] for key, t in tensors.items() if READS_CONTEXT.match(key) and t.ndim > 1}
    other = ", ".join(map(str, sorted(widths - {config.unet.context_dim})))
    return other and f", whose contexts are {other} wide, not {config.unet.context_dim}"


def make_update(
    own: dict[str, Tensor], settings: Sequence[LoraSettings], layer: str
) -> LowRankUpdate:
    """Build the update of one layer.

    own: the layer's tensors: "down", "up", and perhaps "alpha"
    settings: the settings in the file's header and in adapter_config.json. Both may be missing
    layer: the layer's name in diffusers

    Raises ValueError if down and up are not two matrices of finite numbers, or if two places state
    different alphas.
    """
    down, up = own["down"], own["up"]
    if not all(m.ndim in (2, 4) and m.is_floating_point() and is_finite(m) for m in (down, up)):
        raise ValueError("does not hold two matrices of finite numbers: get another copy")
    if not len(down):
        raise ValueError("has rank 0, so its matrices are empty: get another copy")
    alphas = [stated.alpha_of(layer, len(down)) for stated in settings]
    if (alpha := own.get("alpha")) is not None:
        if alpha.numel() != 1 or not is_finite(alpha):
            raise ValueError("has an alpha that is not one finite number: get another copy")
        alphas.append(alpha.item() or len(down))  # 0 means the rank (kohya's networks/lora.py)
    alphas = alphas or [len(down)]
    if not all(math.isclose(alpha, alphas[0], rel_tol=1e-3) for alpha in alphas):
        some = " and ".join(f"{alpha:g}" for alpha in alphas)
        raise ValueError(f"has two alphas, {some}: keep the right one")
    return LowRankUpdate(down, up, float(alphas[0]))


def parse_key(key: str) -> tuple[str, str, str]:
    """Split a file's key into three texts: part, layer (with underscores for dots) and leaf.

    The leaf is "down", "up" or "alpha". If the key is unknown, part and leaf are "".

    >>> parse_key("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight")
    ('text_encoder', 'text_model_encoder_layers_0_mlp_fc1', 'down')
    >>> parse_key("mid_block.attentions.0.attn1.processor.to_out_lora.up.weight")
    ('unet', 'mid_block_attentions_0_attn1_to_out_0', 'up')
    """
    plain = key.removesuffix(".weight").removesuffix(".default")
    match = KOHYA_KEY.fullmatch(plain) or DIFFUSERS_KEY.fullmatch(plain)
    if not match:
        return "", key, ""
    part, layer = PARTS[match["part"] or "unet"], match["layer"]
    if layer.startswith(PEFT_PREFIX):  # PEFT writes one part into a file, and does not name it
        layer = layer.removeprefix(PEFT_PREFIX)
        part = "text_encoder" if layer.startswith(TEXT_LAYER_STARTS) else part
    if ".processor." in layer:  # diffusers' first spelling
        layer = re.sub(r"\.to_out$", ".to_out.0", layer.replace(".processor.", "."))
    if part == "text_encoder" and "." in layer:
        layer = re.sub(r"\.to_([qkv]|out)$", r".\1_proj", usual_name(layer, part))
    leaf = LEAF_NAMES.get(match["leaf"]) or ("down" if "down" in match["leaf"] else "up")
    return part, layer.replace(".", "_"), leaf


def layers_by_name(config: ModelConfig) -> dict[tuple[str, str], Row]:
    """A dictionary: (part, official name of a layer) -> all names of the layer.

    The official name has underscores for dots. Each layer of the U-Net is listed twice, under its
    original name and its name in diffusers, because kohya's files use one of these two names.
    """
    rows = model_rows(config)
    spellings = [("unet", "original"), ("unet", "diffusers"), ("text_encoder", "diffusers")]
    return {
        (part, getattr(row, layout).replace(".", "_")): row
        for part, layout in spellings
        for row in rows[part]
    }


def fit_update(update: LowRankUpdate, layer: nn.Module, name: str) -> LowRankUpdate:
    """Reshape the update to fit the layer. A linear layer's update also fits a 1x1 convolution.

    name: the name of the layer in an error message

    Raises ValueError if the update does not have the layer's sizes, or if the layer has no weight
    matrix.
    """
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        raise ValueError(f"{name} has no matrix to change: the file is made for another model.")
    weight, rank = layer.weight, len(update.down)
    ends = [1] * (weight.ndim - 2)  # in a convolution, up is 1x1
    shapes = (rank, *weight.shape[1:]), (len(weight), rank, *ends)
    pairs = list(zip((update.down, update.up), shapes, strict=True))
    if any((*matrix.shape, 1, 1)[:4] != (*shape, 1, 1)[:4] for matrix, shape in pairs):
        what = f"changes {update.down.shape[1]} channels into {len(update.up)}"
        own = f"the model's layer changes {weight.shape[1]} into {len(weight)}"
        raise ValueError(f"{name} {what}, but {own}: the file is made for another model.")
    down, up = (matrix.to(weight).reshape(shape) for matrix, shape in pairs)
    return LowRankUpdate(down, up, update.alpha)
