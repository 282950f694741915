"""Single files of an unusual form, brought to the usual one: averaged or 8-bit weights."""

import re
from collections.abc import Mapping

from torch import Tensor

from minisd.checkpoints.names import LEAVES, PREFIXES_V1, flat, unet
from minisd.config import UNetConfig

UNET = PREFIXES_V1["unet"]
AVERAGED = "model_ema.diffusion_model"  # how the flattened names of averaged weights begin
SCALES = (".scale_weight", ".weight_scale")
NOTES = (".scale_input", ".input_scale", "scaled_fp8")


# ---- averaged weights ------------------------------------------------------------------------


def with_averaged_unet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the averaged weights, whose names were flattened, in place of the U-Net's last ones.

    Some files hold the averaged ones alone. Raises ValueError for a file without them.
    """
    names = [key for key in tensors if key.startswith(UNET)]
    if not names and holds_only_averaged(tensors):
        names = [unflattened(key) for key in tensors if key.startswith(AVERAGED)]
    flattened = {key: "model_ema." + key.removeprefix("model.").replace(".", "") for key in names}
    absent = [name for name in flattened.values() if name not in tensors]
    if absent or not names:
        raise ValueError("lacks averaged weights (model_ema.…): load without ema=True")
    return dict(tensors) | {key: tensors[name] for key, name in flattened.items()}


def holds_only_averaged(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds the U-Net's averaged weights without the last ones."""
    averaged = any(key.startswith(AVERAGED) for key in tensors)
    return averaged and not any(key.startswith(UNET) for key in tensors)


def unflattened(key: str) -> str:
    """The name of an averaged weight with its dots. Raises ValueError for none of a U-Net's.

    >>> unflattened("model_ema.diffusion_modelinput_blocks110in_layers0weight")
    'model.diffusion_model.input_blocks.11.0.in_layers.0.weight'
    """
    name = key.removeprefix(AVERAGED)
    block = re.match(r"(input|output)_blocks(\d+)(?=\d)", name)  # no block has ten modules
    start = f"{block[1]}_blocks.{block[2]}." if block else ""
    rest = name[block.end() :] if block else name
    ends = block_ends() if block else {**block_ends("middle_block."), **block_ends("")}
    if rest not in ends:
        raise ValueError(f"holds {key}, which is no averaged weight of an SD U-Net")
    return UNET + start + ends[rest]


def block_ends(start: str = r"(?:in|out)put_blocks\.\d+\.") -> dict[str, str]:
    """What may stand behind `start` in the names of a U-Net: without its dots, and with them."""
    keys = [row.key("original", leaf) for row in flat(unet(UNetConfig())) for leaf in LEAVES]
    found = [re.match(f"({start})(.+)", key) for key in keys]
    kept = "middle_block." if start == "middle_block." else ""
    ends = [kept + match[2] for match in found if match]
    return {end.replace(".", ""): end for end in ends}


# ---- 8-bit weights ---------------------------------------------------------------------------


def with_scales_applied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of 8 bits that are stored with a scale each, multiplied by it (ComfyUI's scaled fp8).

    Raises ValueError for another number of scales.
    """
    usual = {}
    for key, tensor in tensors.items():
        weight = re.sub(r"\.(scale_weight|weight_scale)$", ".weight", key)
        if key.endswith(NOTES) or (key.endswith(SCALES) and weight in tensors):
            continue
        scales = [key.removesuffix(".weight") + ending for ending in SCALES]
        scale = next((tensors[name] for name in scales if name in tensors), None)
        scaled = scale is not None and key.endswith(".weight")
        usual[key] = scaled_weight(key, tensor, scale) if scaled else tensor
    return usual


def scaled_weight(key: str, weight: Tensor, scale: Tensor) -> Tensor:
    """One scale for all, or one for each row."""
    if scale.numel() not in (1, len(weight)):
        raise ValueError(f"holds {key} with {scale.numel()} scales: get the same model as fp16")
    return weight.float() * scale.float().reshape(-1, *[1] * (weight.ndim - 1))
