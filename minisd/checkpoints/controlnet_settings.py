"""Read the settings of a ControlNet that its tensors do not show, such as the number of heads.

The settings may be in three places. diffusers writes a config.json into the folder of the weights.
The original code reads a .yaml that has the same name as the file of the weights. minisd writes the
settings into the header of its own files.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from minisd.checkpoints.folder_settings import unet_config, unet_json
from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.known_settings import settings_tables
from minisd.checkpoints.validate import RANGES, check_levels, validate_config
from minisd.checkpoints.yaml_files import read_yaml
from minisd.config import ModelConfig, UNetConfig
from minisd.files.json_files import build_dataclass, check_value, parse_json, read_json
from minisd.files.one_line import name_errors

STEM = "diffusion_pytorch_model"  # in diffusers, all ControlNets have this file name
# Every parameter of diffusers' ControlNetModel (models/controlnets/controlnet.py)
CONTROLNET_JSON = settings_tables()["config.json (ControlNet)"]
# The settings under "model: params:" in the .yaml of the original code. Sources: the class
# ControlLDM in cldm/cldm.py, and the classes from which ControlLDM inherits
CONTROLNET_YAML = settings_tables()[".yaml (ControlNet)"]
# The settings under "control_stage_config: params:" in the same .yaml: every parameter of the
# original code's ControlNet
STAGE_YAML = settings_tables()[".yaml under control_stage_config (ControlNet)"]


@dataclass(frozen=True)
class HintSettings:
    """How a ControlNet reads its hint, and how its corrections reach the U-Net.

    The hint is the picture that steers the drawing. The corrections are the tensors that the
    ControlNet adds to the U-Net's features.

    pools: whether each correction is averaged over height and width. If it is averaged, only the
        half of the batch that has the prompt gets corrections
    channel_order: the order of the hint's colours, "rgb" or "bgr"
    widths: the numbers of channels of the convolutions that read the hint. At each change from one
        width to the next, the height and the width of the hint are halved
    """

    pools: bool = False
    channel_order: Literal["rgb", "bgr"] = "rgb"
    widths: tuple[int, ...] = (16, 32, 96, 256)


DEFAULT_HINT = HintSettings()
HINT_NAMES = {  # minisd's name -> the name in diffusers' config.json
    "pools": "global_pool_conditions",
    "channel_order": "controlnet_conditioning_channel_order",
    "widths": "conditioning_embedding_out_channels",
}
SizesAndHint = tuple[UNetConfig, HintSettings]


def read_controlnet_settings(
    path: Path, layout: str, given: UNetConfig | None
) -> tuple[UNetConfig | None, HintSettings]:
    """Read the settings of a ControlNet: the sizes of its U-Net, and how it reads the hint.

    path: the file with the weights
    layout: "original" or "diffusers". With "original", config.json is used only if it states that
        it describes a ControlNet
    given: the sizes of the U-Net that the ControlNet should steer. If config.json leaves out a
        size, this size is taken from `given`. None: the caller does not know the U-Net

    Returns the sizes of the U-Net and the settings of the hint. The sizes are None if there are no
    settings in any of the three places (see the top of this file). In this case, minisd assumes
    that the ControlNet pools (see HintSettings) if the name of the file or of its folder contains
    the word "shuffle". The only published ControlNet that pools is ControlNet v1.1 shuffle. Its
    weights do not show that it pools.

    Raises ValueError if minisd does not support a setting, if two places state different settings,
    or if the ControlNet does not fit the given U-Net.
    """
    with name_errors(path.name):
        found = all_settings(path, layout, given)
        for config, _ in found:
            validate_config(ModelConfig(unet=config))
        stated = found[0][0] if found else None
        if any(one != found[0] for one in found):
            raise ValueError("has different settings in two places: delete the wrong settings")
        said, needed = (describe_heads(one) if one else "" for one in (stated, given))
        if said and needed and said != needed:
            differ = f"it was made for a U-Net with {said}, but this U-Net has {needed}"
            raise ValueError(f"does not fit the U-Net: {differ}. Use a ControlNet for this model")
    if found:
        return found[0]
    called = path.absolute().parent.name if path.stem.startswith(STEM) else path.stem
    pools = re.search(r"(^|[\W_])shuffle($|[\W_])", called.lower()) is not None
    if pools:
        what = "Its name contains 'shuffle', so minisd averages its corrections over the picture"
        said = f"{path.name} has no settings next to it. {what} (global_average_pooling)."
        warnings.warn(said, stacklevel=4)
    return None, replace(DEFAULT_HINT, pools=pools)


def all_settings(path: Path, layout: str, given: UNetConfig | None) -> list[SizesAndHint]:
    """Read the settings in the header of a file, and in a config.json or .yaml next to the file.

    Returns a list with one item for each of these places that has settings. An item contains the
    sizes of the U-Net and the settings of the hint.
    """
    header, config_json = read_metadata(path), path.with_name("config.json")
    found = [settings_from_header(header)] if "controlnet" in header else []
    stored = read_json(config_json) if config_json.exists() else {}
    if stored and (layout == "diffusers" or "ControlNet" in str(stored.get("_class_name"))):
        found.append(settings_from_json(stored, given))
    yamls = path.with_suffix(".yaml"), path.with_suffix(".yml")
    return found + [settings_from_yaml(file) for file in yamls if file.exists()]


def settings_from_header(header: Mapping[str, str]) -> SizesAndHint:
    try:
        stored, hint = (parse_json(header.get(f"controlnet{one}", "{}")) for one in ("", "_hint"))
        return build_dataclass(UNetConfig, stored, RANGES), hint_settings(hint)
    except ValueError as error:
        what = "has a header that is damaged, or that another version of minisd wrote"
        raise ValueError(f"{what}: the header {error}") from error


def hint_settings(stored: object) -> HintSettings:
    """Turn a dictionary into HintSettings.

    Raises ValueError if a setting is unknown, or if a value is impossible.
    """
    settings = build_dataclass(HintSettings, stored)
    check_levels(settings.widths)
    return settings


def settings_to_header(config: UNetConfig, settings: HintSettings) -> dict[str, str]:
    """Turn the settings into texts for a file's header. The inverse of settings_from_header."""
    return {
        "controlnet": json.dumps(asdict(config)),
        "controlnet_hint": json.dumps(asdict(settings)),
    }


def settings_from_json(stored: Mapping[str, object], given: UNetConfig | None) -> SizesAndHint:
    """Read the settings in a config.json of diffusers.

    stored: the content of config.json
    given: the sizes of the U-Net that the ControlNet should steer. If config.json leaves out a
        size, this size is taken from `given`. None: the size is diffusers' default
    """
    sizes = unet_json(ModelConfig(unet=given)) if given else {}
    sizes = {name: value for name, value in sizes.items() if name in CONTROLNET_JSON.obeyed}
    said: dict[str, Any] = CONTROLNET_JSON.read({**sizes, **stored})
    hint = {ours: said.pop(theirs) for ours, theirs in HINT_NAMES.items()}
    up = [block.replace("Down", "Up") for block in reversed(said["down_block_types"])]
    return unet_config({**said, "up_block_types": up, "out_channels": 4}), hint_settings(hint)


def settings_from_yaml(path: Path) -> SizesAndHint:
    """Read the settings in a .yaml of the original code."""
    params = read_yaml(path)
    for key in ("model", "params"):
        params = params.get(key) if isinstance(params, dict) else None
    if not isinstance(params, dict):
        what = f"has {path.name} next to it, but {path.name} does not describe a ControlNet"
        raise ValueError(f"{what}: move {path.name} to another folder")
    said: dict[str, Any] = CONTROLNET_YAML.read(params)
    stage = said["control_stage_config"].get("params")
    check_value("params", stage, dict, where=" in its .yaml under control_stage_config")
    sizes: dict[str, Any] = STAGE_YAML.read(stage)
    multiples, split = sizes["channel_mult"], sizes["num_head_channels"]
    config = UNetConfig(
        in_channels=sizes["in_channels"],
        channels=tuple(sizes["model_channels"] * multiple for multiple in multiples),
        attention=tuple(2**i in sizes["attention_resolutions"] for i in range(len(multiples))),
        res_blocks=sizes["num_res_blocks"],
        context_dim=sizes["context_dim"],
        heads=sizes["num_heads"] if split == -1 else UNetConfig.heads,
        head_width=None if split == -1 else split,
        linear_projection=sizes["use_linear_in_transformer"],
    )
    return config, HintSettings(pools=said["global_average_pooling"])


def describe_heads(config: UNetConfig) -> str:
    """A text with the numbers of heads and norm groups of a U-Net.

    The shapes of the tensors do not show these numbers.
    """
    split = config.head_width
    heads = [width // split if split else config.heads for width in config.channels]
    return f"{heads} heads and {config.norm_groups} norm groups"
