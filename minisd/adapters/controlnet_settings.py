"""What a ControlNet's weights do not show, and the three places where programs write it.

diffusers writes config.json, for the files in its own layout in the same folder. The original's
settings are a .yaml of the file's own name. Our own files say it in their header.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from minisd.checkpoints.folder_settings import unet_config, unet_json
from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.known_settings import settings_tables
from minisd.checkpoints.validate import RANGES, check_levels, validate_config
from minisd.checkpoints.yaml_files import read_yaml
from minisd.config import ModelConfig, UNetConfig
from minisd.files.json_files import build_dataclass, check_value, parse_json, read_json
from minisd.files.one_line import name_errors

STEM = "diffusion_pytorch_model"  # diffusers' name of every file: its folder bears the real one
# Every parameter of diffusers' ControlNetModel (models/controlnets/controlnet.py). "model: params:"
# of the original's .yaml (cldm/cldm.py, ControlLDM and the classes below it), and within it
# "control_stage_config: params:", every parameter of the original's ControlNet.
CONTROLNET_JSON, CONTROLNET_YAML = (
    settings_tables()["config.json (ControlNet)"],
    settings_tables()[".yaml (ControlNet)"],
)
STAGE_YAML = settings_tables()["control_stage_config in the .yaml (ControlNet)"]


@dataclass(frozen=True)
class HintSettings:
    """How a ControlNet sees its hint, and what it makes of its corrections.

    pools: each correction is its mean over the picture, and the unconditional half gets none
    channel_order: in which it sees the hint's colours, "rgb" or "bgr"
    widths: of the hint's convolutions; between two of them the hint's size halves
    """

    pools: bool = False
    channel_order: Literal["rgb", "bgr"] = "rgb"
    widths: tuple[int, ...] = (16, 32, 96, 256)


DEFAULT_HINT = HintSettings()


def read_controlnet_settings(
    path: Path, layout: str, given: UNetConfig | None
) -> tuple[UNetConfig | None, HintSettings]:
    """The sizes that a file's settings state, and how it sees its hint.

    layout: "original" or "diffusers". config.json describes the former only if it names the class
    given: sizes from the caller, which hold for what the settings leave out
    Where nothing is said, a name with "shuffle" in it counts: ControlNet v1.1's shuffle is the one
    published network that pools, and its weights do not show it.
    Raises ValueError for a setting that cannot be obeyed and for places that disagree.
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


def all_settings(
    path: Path, layout: str, given: UNetConfig | None
) -> list[tuple[UNetConfig, HintSettings]]:
    """What each place says that describes the file."""
    header, config_json = read_metadata(path), path.with_name("config.json")
    found = [settings_from_header(header)] if "controlnet" in header else []
    stored = read_json(config_json) if config_json.exists() else {}
    if stored and (layout == "diffusers" or "ControlNet" in str(stored.get("_class_name"))):
        found.append(settings_from_json(stored, given))
    yamls = path.with_suffix(".yaml"), path.with_suffix(".yml")
    return found + [settings_from_yaml(file) for file in yamls if file.exists()]


def settings_from_header(header: Mapping[str, str]) -> tuple[UNetConfig, HintSettings]:
    try:
        stored, hint = (parse_json(header.get(f"controlnet{one}", "{}")) for one in ("", "_hint"))
        return build_dataclass(UNetConfig, stored, RANGES), hint_settings(hint)
    except ValueError as error:
        what = "has a damaged header, or one of another version of minisd"
        raise ValueError(f"{what}: it {error}") from error


def hint_settings(stored: object) -> HintSettings:
    """Raises ValueError for values that mean nothing."""
    settings = build_dataclass(HintSettings, stored)
    check_levels(settings.widths)
    return settings


def settings_to_header(config: UNetConfig, settings: HintSettings) -> dict[str, str]:
    """Undone by settings_from_header."""
    return {
        "controlnet": json.dumps(asdict(config)),
        "controlnet_hint": json.dumps(asdict(settings)),
    }


def settings_from_json(
    stored: Mapping[str, object], given: UNetConfig | None
) -> tuple[UNetConfig, HintSettings]:
    """What diffusers' config.json says."""
    sizes = unet_json(ModelConfig(unet=given)) if given else {}
    said = CONTROLNET_JSON.read(
        {k: sizes[k] for k in sizes if k in CONTROLNET_JSON.obeyed} | stored
    )
    up = [block.replace("Down", "Up") for block in reversed(said["down_block_types"])]
    settings = hint_settings(
        {
            "pools": said.pop("global_pool_conditions"),
            "channel_order": said.pop("controlnet_conditioning_channel_order"),
            "widths": said.pop("conditioning_embedding_out_channels"),
        }
    )
    return unet_config({**said, "up_block_types": up, "out_channels": 4}), settings


def settings_from_yaml(path: Path) -> tuple[UNetConfig, HintSettings]:
    """What the original's .yaml says."""
    stored = read_yaml(path)
    model = stored.get("model") if isinstance(stored, dict) else None
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(params, dict):
        raise ValueError(f"has {path.name} next to it, which describes no ControlNet: move it away")
    said = CONTROLNET_YAML.read(params)
    stage = said["control_stage_config"].get("params")
    check_value("params", stage, dict, where=" of its control_stage_config")
    stage = STAGE_YAML.read(stage)
    multiples, split = stage["channel_mult"], stage["num_head_channels"]
    config = UNetConfig(
        in_channels=stage["in_channels"],
        channels=tuple(stage["model_channels"] * multiple for multiple in multiples),
        attention=tuple(2**i in stage["attention_resolutions"] for i in range(len(multiples))),
        res_blocks=stage["num_res_blocks"],
        context_dim=stage["context_dim"],
        heads=stage["num_heads"] if split == -1 else UNetConfig.heads,
        head_width=None if split == -1 else split,
        linear_projection=stage["use_linear_in_transformer"],
    )
    return config, HintSettings(pools=said["global_average_pooling"])


def describe_heads(config: UNetConfig) -> str:
    """What no tensor's shape shows of a U-Net, in words."""
    split = config.head_width
    heads = [width // split if split else config.heads for width in config.channels]
    return f"{heads} heads and {config.norm_groups} norm groups"
