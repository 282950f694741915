"""Turn the averaged weights (EMA) and the 8-bit weights of single files into usual weights."""

import re
from collections.abc import Mapping

from torch import Tensor

from minisd.checkpoints.names import LEAVES, PREFIXES_V1, flat_rows, unet_rows
from minisd.config import UNetConfig

UNET_PREFIX = PREFIXES_V1["unet"]
EMA_START = "model_ema.diffusion_model"  # prefix of all averaged weights
MOST_BLOCKS = 50  # more than the encoder or the decoder of any U-Net has. In SD, each has 12
SCALE_KEYS = r"\.(scale_weight|weight_scale)$"
SCALE_NOTES = (".scale_input", ".input_scale", "scaled_fp8")  # tensors that minisd does not need


# ---- averaged weights ------------------------------------------------------------------------


def with_ema_unet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the last weights of the U-Net by its averaged weights.

    The last weights are the weights after the last training step. The averaged weights (EMA) are an
    average over many training steps. Some files hold only averaged weights.

    Raises ValueError if an averaged weight is missing.
    """
    names = {key: ema_key(key) for key in tensors if key.startswith(UNET_PREFIX)}
    if holds_only_ema(tensors):
        names = {key: flat for flat, key in ema_names(tensors).items()}
    if not names or any(name not in tensors for name in names.values()):
        raise ValueError("lacks averaged weights (model_ema.…): load it without ema=True")
    return dict(tensors) | {key: tensors[name] for key, name in names.items()}


def holds_only_ema(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds the U-Net's averaged weights, but not the U-Net's last weights."""
    averaged = any(key.startswith(EMA_START) for key in tensors)
    return averaged and not any(key.startswith(UNET_PREFIX) for key in tensors)


def ema_key(key: str) -> str:
    """The name of an averaged weight.

    It consists of "model_ema." and the usual name of the weight, without "model." and without dots.

    >>> ema_key("model.diffusion_model.input_blocks.11.0.in_layers.0.weight")
    'model_ema.diffusion_modelinput_blocks110in_layers0weight'
    """
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def ema_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A dictionary: name of an averaged weight in a file -> the usual name of the weight.

    Raises ValueError if a name does not belong to a weight of SD's U-Net. The U-Net may have up to
    MOST_BLOCKS blocks.
    """
    keys = [
        UNET_PREFIX + row.key("original", leaf)
        for row in flat_rows(unet_rows(UNetConfig()))
        for leaf in LEAVES
    ]
    inside = {re.sub(r"put_blocks\.\d+", "put_blocks.{}", key) for key in keys}
    known = {ema_key(name): name for key in inside for name in map(key.format, range(MOST_BLOCKS))}
    averaged = [key for key in tensors if key.startswith(EMA_START)]
    for key in averaged:
        if key not in known:
            raise ValueError(f"holds {key}, which SD's U-Net does not have: get another copy")
    return {key: known[key] for key in averaged}


# ---- 8-bit weights ---------------------------------------------------------------------------


def apply_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply 8-bit weights by the scales that are stored with them (ComfyUI's scaled fp8).

    Raises ValueError if a weight has neither one scale nor one scale for each of its rows.
    """
    usual = {key: tensor for key, tensor in tensors.items() if not key.endswith(SCALE_NOTES)}
    for name, scale in tensors.items():
        key = re.sub(SCALE_KEYS, ".weight", name)
        if key == name or key not in tensors:
            continue
        weight = tensors[key]
        if scale.numel() not in (1, *weight.shape[:1]):
            raise ValueError(f"has a wrong number of scales for {key}: get the model as fp16")
        usual[key] = weight.float() * scale.float().reshape(-1, *[1] * (weight.ndim - 1))
        del usual[name]
    return usual
