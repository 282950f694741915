"""LoRA: a small change of many weight matrices, each the product of two thin ones.

W + scale * (alpha / rank) * up @ down (Hu et al. 2022, eq. 3). It is kept beside the layer and
added to the layer's output, so W is never touched. Files name the layers in three ways: as kohya's
trainer, as PEFT and diffusers do now, as diffusers did at first.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.adapters.handle import Handle
from minisd.checkpoints.kinds import refuse_other_kinds
from minisd.checkpoints.load import is_finite
from minisd.checkpoints.names import model_rows, usual_name
from minisd.checkpoints.official import local
from minisd.checkpoints.read import metadata, read
from minisd.config import ModelConfig
from minisd.pipeline import StableDiffusion

UNKNOWN_SETTINGS = (".alpha_pattern", ".use_rslora", ".use_dora")  # of PEFT
PARTS = {"unet": "unet", "te": "text_encoder", "text_encoder": "text_encoder"}
KOHYA = re.compile(r"lora_(?P<part>unet|te)_(?P<layer>.+?)\.(?P<leaf>lora_down|lora_up|alpha)")
DIFFUSERS = re.compile(
    r"(?:(?P<part>unet|text_encoder)\.)?(?P<layer>.+?)[._]"
    r"(?P<leaf>lora_A|lora_B|lora\.down|lora\.up|lora_linear_layer\.down|lora_linear_layer\.up|alpha)"
)
READS_CONTEXT = re.compile(r"attn2.*to_[kv][._].*(lora_A|down)\b")
PEFT = "base_model.model."
LEAF = {"lora_A": "down", "lora_B": "up", "alpha": "alpha"}


@dataclass(frozen=True)
class Change:
    """What is added to one layer. down: rank c_in (h w)    up: c_out rank (1 1)"""

    down: Tensor
    up: Tensor
    alpha: float

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        """(alpha / rank) * up(down(x)), where down looks at x as the layer does."""
        down, up = self.down.to(layer.weight), self.up.to(layer.weight)
        share = self.alpha / len(down)
        if isinstance(layer, nn.Conv2d):
            thin = F.conv2d(x, down, stride=layer.stride, padding=layer.padding)
            return share * F.conv2d(thin, up)
        return share * F.linear(F.linear(x, down), up)


def lora(sd: StableDiffusion, path: str | Path, scale: float = 1.0) -> Handle:
    """Add the changes of a LoRA file to the model, `scale` times, until the handle is removed.

    Raises ValueError, and leaves the model as it is, for a file that is no LoRA, is of a kind
    unknown here, or is made for another model.
    """
    changes = read_lora(path, sd.config)
    networks = {"unet": sd.unet, "text_encoder": sd.text_encoder}
    fitted = {}
    for (part, name), change in changes.items():
        layer = networks[part].get_submodule(name)
        fitted[layer] = fit(change, layer, f"{Path(path).name}: {part}.{name}")
    return put_on(fitted, scale)


def put_on(changes: Mapping[nn.Module, Change], scale: float) -> Handle:
    """Add each layer's change, `scale` times, until the handle is removed."""
    if scale == 0:
        return Handle([])
    return Handle(
        layer.register_forward_hook(adding(change, scale), prepend=True)
        for layer, change in changes.items()
    )


def adding(change: Change, scale: float) -> Callable:
    """A hook that adds the change to the layer's output."""

    def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + scale * change(layer, inputs[0])

    return hook


def read_lora(path: str | Path, config: ModelConfig) -> dict[tuple[str, str], Change]:
    """(part, our name of a layer) -> its change. ValueError as lora()."""
    path = local(path)
    found: defaultdict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    names, strange, tensors = layer_names(config), [], read(path)
    refuse_other_kinds(path.name, tensors, "LoRA")
    for key, tensor in tensors.items():
        part, layer, leaf = taken_apart(key)
        if (part, layer) in names and leaf:
            found[part, names[part, layer]][leaf] = tensor
        else:
            strange.append(key)
    halves = [name for (_, name), held in found.items() if not {"down", "up"} <= held.keys()]
    if strange or halves or not found:
        what = "names that fit no layer" if strange else "layers without both matrices"
        some = ", ".join((strange or halves or ["none at all"])[:3])
        raise ValueError(
            f"{path.name} is no whole LoRA of {config.name}: it holds {what} ({some}). It is "
            f"damaged, or made for another kind of model{contexts_told(tensors, config)}."
        )
    stated = stated_alphas(metadata(path), path.name)
    return {
        (part, name): change_of(held, stated.get(part), f"{path.name}: {part}.{name}")
        for (part, name), held in found.items()
    }


def contexts_told(tensors: dict[str, Tensor], config: ModelConfig) -> str:
    """How wide the contexts are that the file changes, if that shows another model's, in words."""
    widths = {t.shape[1] for key, t in tensors.items() if READS_CONTEXT.search(key) and t.ndim > 1}
    other = sorted(widths - {config.unet.context_dim})
    wide = f", whose contexts are {', '.join(map(str, other))} wide, not {config.unet.context_dim}"
    return wide if other else ""


def change_of(held: dict[str, Tensor], stated: float | None, name: str) -> Change:
    """What a file holds of one layer. stated: its alpha, where the header has it

    ValueError: these are no two matrices of finite numbers.
    """
    down, up = held["down"], held["up"]
    if not all(matrix.ndim in (2, 4) and is_finite(matrix) for matrix in (down, up)):
        raise ValueError(f"{name} is no pair of matrices of finite numbers: get another copy.")
    rank = len(down)
    return Change(down, up, float(held.get("alpha", stated or rank)))


def taken_apart(key: str) -> tuple[str, str, str]:
    """A file's key as part, layer (its dots as underscores) and what it holds; "" where unknown.

    >>> taken_apart("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight")
    ('text_encoder', 'text_model_encoder_layers_0_mlp_fc1', 'down')
    >>> taken_apart("mid_block.attentions.0.attn1.processor.to_out_lora.up.weight")
    ('unet', 'mid_block_attentions_0_attn1_to_out_0', 'up')
    """
    plain = key.removesuffix(".weight").removesuffix(".default")
    match = KOHYA.fullmatch(plain) or DIFFUSERS.fullmatch(plain)
    if not match:
        return "", key, ""
    part, layer = PARTS[match["part"] or "unet"], match["layer"]
    if layer.startswith(PEFT):  # as PEFT itself saves a part, which it does not name
        layer = layer.removeprefix(PEFT)
        part = "text_encoder" if layer.startswith("text_model.") else part
    if ".processor." in layer:  # diffusers' first spelling
        layer = re.sub(r"\.to_out$", ".to_out.0", layer.replace(".processor.", "."))
    if part == "text_encoder" and "." in layer:
        layer = re.sub(r"\.to_([qkv]|out)$", r".\1_proj", usual_name(layer, part))
    leaf = LEAF.get(match["leaf"]) or re.search("down|up", match["leaf"])[0]
    return part, layer.replace(".", "_"), leaf


def layer_names(config: ModelConfig) -> dict[tuple[str, str], str]:
    """(part, a layer's official name with its dots as underscores) -> our name.

    Of the U-Net both official names, since kohya's files have either.
    """
    rows = model_rows(config)
    spellings = [("unet", "original"), ("unet", "diffusers"), ("text_encoder", "diffusers")]
    return {
        (part, getattr(row, layout).replace(".", "_")): row.ours
        for part, layout in spellings
        for row in rows[part]
    }


def stated_alphas(header: dict[str, str], name: str) -> dict[str, float]:
    """PEFT's alpha by part, where the header tells it: {"unet": 8.0}.

    ValueError: it tells of more than that. name: what to call the file there
    """
    try:
        settings = json.loads(header.get("lora_adapter_metadata", "{}"))
    except ValueError:
        settings = {}
    settings = settings if isinstance(settings, dict) else {}
    odd = [key for key, value in settings.items() if key.endswith(UNKNOWN_SETTINGS) and value]
    if odd:
        raise ValueError(f"{name} sets {odd[0]}, which is unknown here: give a plain LoRA.")
    alphas = {part: settings.get(f"{part}.lora_alpha") for part in ("unet", "text_encoder")}
    return {part: float(a) for part, a in alphas.items() if isinstance(a, (int, float))}


def fit(change: Change, layer: nn.Module, name: str) -> Change:
    """The change in the layer's own shape: 1x1 convolutions and linear layers are the same.

    ValueError: it is for a layer of other sizes, or what bears the name has no such weight.
    """
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        raise ValueError(f"{name} has no matrix to change: the file is made for another model.")
    weight = layer.weight
    down, up = (shaped_like(weight, matrix) for matrix in (change.down, change.up))
    ends = [1] * (weight.ndim - 2)  # up looks at one place only
    expected = [(len(down), *weight.shape[1:]), (len(weight), len(down), *ends)]
    if [tuple(down.shape), tuple(up.shape)] != expected:
        raise ValueError(
            f"{name} changes {down.shape[1]} channels into {up.shape[0]}, but the model's layer "
            f"takes {weight.shape[1]} into {weight.shape[0]}: the file is made for another model."
        )
    return Change(down.to(weight), up.to(weight), change.alpha)


def shaped_like(weight: Tensor, matrix: Tensor) -> Tensor:
    """A thin matrix with as many axes as the layer's weight has."""
    if weight.ndim == 2 and matrix.ndim == 4 and matrix.shape[2:] == (1, 1):
        return rearrange(matrix, "a b 1 1 -> a b")
    if weight.ndim == 4 and matrix.ndim == 2:
        return rearrange(matrix, "a b -> a b 1 1")
    return matrix
