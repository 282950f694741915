"""Find the tensors of a ControlNet in a file, and list all names that these tensors may have.

A tensor has one name in minisd, one in the original code and one in diffusers.
"""

import re
from pathlib import Path

from torch import Tensor

from minisd.checkpoints import names
from minisd.checkpoints.controlnet_settings import (
    DEFAULT_HINT,
    HintSettings,
)
from minisd.checkpoints.cover import why_unneeded
from minisd.config import SD15, SD20_BASE, UNetConfig
from minisd.unet import skip_channels

CONTROLNET_PREFIX = "control_model."  # some files put it before the name of every tensor
MODEL_KEYS = re.compile(r"(model\.diffusion_model|first_stage_model|cond_stage_model)\..+")
# The name of a tensor. kohya's script adds this tensor to a file after it subtracted the weights of
# a U-Net from the weights of the ControlNet.
DIFFERENCE = "difference"
PUBLISHED_UNETS = {config.unet.context_dim: config.unet for config in (SD15, SD20_BASE)}


def strip_prefix(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Keep only the tensors of the ControlNet, and remove "control_model." from their names.

    A file for the original code may also hold a whole Stable Diffusion model. The tensors of this
    model are left out. If no name begins with "control_model.", all tensors are kept.

    tensors: name in the file -> tensor
    name: the name of the file, for error messages

    Raises ValueError if the file also holds a tensor that belongs neither to the ControlNet nor to
    a Stable Diffusion model.
    """
    if not any(key.startswith(CONTROLNET_PREFIX) for key in tensors):
        return dict(tensors)
    own = {k: t for k, t in tensors.items() if k.startswith(CONTROLNET_PREFIX) or k == DIFFERENCE}
    for key in tensors:
        if key not in own and not MODEL_KEYS.fullmatch(key) and why_unneeded(key, SD15) is None:
            what = f"holds a ControlNet and also the tensor {key}, which minisd does not know"
            raise ValueError(f"{name} {what}: get another copy.")
    return {key.removeprefix(CONTROLNET_PREFIX): tensor for key, tensor in own.items()}


def published_config(path: Path, tensors: dict[str, Tensor]) -> UNetConfig:
    """Find the sizes of the U-Net to which a ControlNet belongs: the U-Net of SD v1 or SD v2.

    The width of the contexts decides. It is 768 in SD v1 and 1024 in SD v2.

    path: the path of the file, for error messages
    tensors: the tensors of the ControlNet. They have the names of the original code

    Raises ValueError if the contexts have another width.
    """
    widths = {t.shape[1] for key, t in tensors.items() if key.endswith("attn2.to_k.weight")}
    if len(widths) != 1 or not widths <= PUBLISHED_UNETS.keys():
        raise ValueError(f"{path.name} is not a ControlNet for Stable Diffusion v1 or v2.")
    return PUBLISHED_UNETS[widths.pop()]


def controlnet_rows(config: UNetConfig, settings: HintSettings = DEFAULT_HINT) -> list[names.Row]:
    """List the names of all tensors of a ControlNet. Each row has the three names of one tensor.

    A ControlNet has copies of the layers in the U-Net's encoder and middle block. It also has
    convolutions that read the hint (the picture that steers the drawing), and one 1x1 convolution
    for each output.

    config: the sizes of the U-Net to which the ControlNet belongs
    settings: how the ControlNet reads the hint
    """
    way_up = ("up.", "norm_", "conv_o")  # a ControlNet has no decoder
    shared = [row for row in names.unet_rows(config) if not row.ours.startswith(way_up)]
    embedding, last = "controlnet_cond_embedding", 2 * len(settings.widths) - 1
    theirs = ["conv_in", *(f"blocks.{i}" for i in range(last - 1)), "conv_out"]
    ours = [*(f"convs.{i}" for i in range(last)), "conv_out"]
    hint = [
        names.Row(f"hint.{name}", f"input_hint_block.{2 * i}", f"{embedding}.{official}")
        for i, (name, official) in enumerate(zip(ours, theirs, strict=True))
    ]
    zero = [
        names.Row(f"zero.{i}", f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}")
        for i in range(len(skip_channels(config)))
    ]
    middle = names.Row("zero_mid", "middle_block_out.0", "controlnet_mid_block")
    return names.flat_rows([*shared, *hint, *zero, middle])
