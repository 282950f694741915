"""Settings of a ControlNet that its tensors do not show, from the three places that have them.

diffusers writes a config.json into the folder of the weights. The original code reads a .yaml with
the name of the weights. minisd writes the settings into the header of its own files.
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

STEM = "diffusion_pytorch_model"  # every file of diffusers has this name: its folder says more
# Every parameter of diffusers' ControlNetModel (models/controlnets/controlnet.py)
CONTROLNET_JSON = settings_tables()["config.json (ControlNet)"]
# "model: params:" in the original's .yaml: ControlLDM in cldm/cldm.py and the classes below it
CONTROLNET_YAML = settings_tables()[".yaml (ControlNet)"]
# "control_stage_config: params:" inside it: every parameter of the original's ControlNet
STAGE_YAML = settings_tables()["control_stage_config in the .yaml (ControlNet)"]


@dataclass(frozen=True)
class HintSettings:
    """How a ControlNet reads its hint, and how its corrections reach the U-Net.

    pools: average each correction over the picture, and give none to the unconditional half
    channel_order: of the hint's colours, "rgb" or "bgr"
    widths: of the hint's convolutions. The hint's size halves between two of them
    """

    pools: bool = False
    channel_order: Literal["rgb", "bgr"] = "rgb"
    widths: tuple[int, ...] = (16, 32, 96, 256)


DEFAULT_HINT = HintSettings()
HINT_NAMES = {  # ours -> in diffusers' config.json
    "pools": "global_pool_conditions",
    "channel_order": "controlnet_conditioning_channel_order",
    "widths": "conditioning_embedding_out_channels",
}
SizesAndHint = tuple[UNetConfig, HintSettings]


def read_controlnet_settings(
    path: Path, layout: str, given: UNetConfig | None
) -> tuple[UNetConfig | None, HintSettings]:
    """The sizes of the U-Net, or None if no settings say them, and how the hint is read.

    layout: "original" or "diffusers". With the original's layout, config.json counts only if it
        says that it describes a ControlNet
    given: sizes from the caller, for what the settings leave out

    Without settings, the word "shuffle" in the name counts. ControlNet v1.1's shuffle is the only
    published network that pools, and its weights do not show it.

    Raises ValueError if minisd cannot obey a setting, or if two places differ.
    """
    with name_errors(path.name):
        found = all_settings(path, layout, given)
        for config, _ in found:
            validate_config(ModelConfig(unet=config))
        stated = found[0][0] if found else None
        if any(one != found[0] for one in found):
            raise ValueError("has settings in two places that differ: delete the wrong ones")
        said, needed = (describe_heads(one) if one else "" for one in (stated, given))
        if said and needed and said != needed:
            differ = f"its settings say {said}, and the U-Net has {needed}"
            raise ValueError(f"does not fit the U-Net: {differ}. It is made for another model")
    if found:
        return found[0]
    called = path.absolute().parent.name if path.stem.startswith(STEM) else path.stem
    pools = re.search(r"(^|[\W_])shuffle($|[\W_])", called.lower()) is not None
    if pools:
        what = "By its name it is a shuffle ControlNet, so its corrections are pooled"
        said = f"{path.name} has no settings next to it. {what} (global_average_pooling)."
        warnings.warn(said, stacklevel=4)
    return None, replace(DEFAULT_HINT, pools=pools)


def all_settings(path: Path, layout: str, given: UNetConfig | None) -> list[SizesAndHint]:
    """What each place says that describes the file."""
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
        what = "has a damaged header, or one of another version of minisd"
        raise ValueError(f"{what}: it {error}") from error


def hint_settings(stored: object) -> HintSettings:
    """Raises ValueError if a setting is unknown, or a value makes no sense."""
    settings = build_dataclass(HintSettings, stored)
    check_levels(settings.widths)
    return settings


def settings_to_header(config: UNetConfig, settings: HintSettings) -> dict[str, str]:
    """The inverse of settings_from_header."""
    return {
        "controlnet": json.dumps(asdict(config)),
        "controlnet_hint": json.dumps(asdict(settings)),
    }


def settings_from_json(stored: Mapping[str, object], given: UNetConfig | None) -> SizesAndHint:
    """What diffusers' config.json says. given: sizes for what it leaves out"""
    sizes = unet_json(ModelConfig(unet=given)) if given else {}
    sizes = {name: value for name, value in sizes.items() if name in CONTROLNET_JSON.obeyed}
    said: dict[str, Any] = CONTROLNET_JSON.read({**sizes, **stored})
    hint = {ours: said.pop(theirs) for ours, theirs in HINT_NAMES.items()}
    up = [block.replace("Down", "Up") for block in reversed(said["down_block_types"])]
    return unet_config({**said, "up_block_types": up, "out_channels": 4}), hint_settings(hint)


def settings_from_yaml(path: Path) -> SizesAndHint:
    """What the original's .yaml says."""
    params = read_yaml(path)
    for key in ("model", "params"):
        params = params.get(key) if isinstance(params, dict) else None
    if not isinstance(params, dict):
        raise ValueError(f"has {path.name} next to it, which describes no ControlNet: move it away")
    said: dict[str, Any] = CONTROLNET_YAML.read(params)
    stage = said["control_stage_config"].get("params")
    check_value("params", stage, dict, where=" of its control_stage_config")
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
    """The heads and norm groups of a U-Net, in words. No tensor's shape shows them."""
    split = config.head_width
    heads = [width // split if split else config.heads for width in config.channels]
    return f"{heads} heads and {config.norm_groups} norm groups"
