"""Read a model's config from the JSON files of a diffusers folder, and write such JSON files."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minisd.checkpoints.folder_scheduler import SCHEDULER_FILE, sampler_and_schedule, scheduler_json
from minisd.checkpoints.known_settings import equal_values, settings_tables
from minisd.checkpoints.sizes_from_tensors import with_text_layout
from minisd.checkpoints.validate import validate_config
from minisd.config import ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from minisd.files.json_files import read_json, shorten
from minisd.files.one_line import name_errors
from minisd.tokenizer import Tokenizer

PART_TABLES = {
    part: settings_tables()[f"{part}/config.json"] for part in ("unet", "vae", "text_encoder")
}
INDEX_TABLE, OUR_TABLE = settings_tables()["model_index.json"], settings_tables()["minisd.json"]

# folder_settings.json holds four tables.
# names: part -> a table: minisd's name of a setting -> diffusers' name of the setting. The table
#     lists the settings that have the same values in minisd and in diffusers
# index: part -> the library and the class with which diffusers reads the part
# pipelines: the number of the U-Net's input channels -> diffusers' class of the whole pipeline
# per_level: the settings with one value for all levels, or with a list of values, one per level
FOLDER_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
NAMES, CLASSES = FOLDER_TABLES["names"], FOLDER_TABLES["index"]
PIPELINES = FOLDER_TABLES["pipelines"]
SAMPLING_FIELDS = ("spacing", "steps_offset", "set_alpha_to_one", "final", "karras")
BLOCK_ATTENDS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}


def our_fields(part: str, settings: Mapping) -> dict[str, Any]:
    """Rename the settings of a part from diffusers' names to minisd's names.

    Settings that are not in NAMES are left out.

    part: "unet", "vae" or "text_encoder"
    """
    return lists_to_tuples({ours: settings[name] for ours, name in NAMES[part].items()})


def config_from_folder(folder: Path, vae: VAEConfig | None = None) -> ModelConfig:
    """Read the config of a model from the files of a diffusers folder.

    vae: the config of another VAE that replaces the folder's VAE. None: the folder's VAE is used

    Raises ValueError if a file or a required setting is missing, or if a setting is unknown.
    """
    parts = [part for part in PART_TABLES if not (vae and part == "vae")]
    stored = {part: read_json(folder / PART_TABLES[part].file) for part in parts}
    scheduler = read_json(folder / SCHEDULER_FILE)
    files = (folder / "model_index.json", folder / "minisd.json")
    index, ours = (read_json(file) if file.exists() else {} for file in files)
    with name_errors(folder.name):
        INDEX_TABLE.read({part: value for part, value in index.items() if value != [None, None]})
        vae = vae or vae_config(stored["vae"])
        text, unet = text_config(stored["text_encoder"]), unet_config(stored["unet"])
        sampler, schedule = sampler_and_schedule(scheduler, index, unet.in_channels)
        size = native_size(stored["unet"], vae)
        own: dict[str, Any] = OUR_TABLE.read(ours)
        config = ModelConfig(folder.name, text, unet, vae, schedule, size, sampler=sampler, **own)
        config = undo_conversion(config, scheduler) if ours else config
        return validate_config(with_text_layout(config, open_clip=text.activation == "gelu"))


def undo_conversion(config: ModelConfig, scheduler: Mapping) -> ModelConfig:
    """Restore the sampling of the original code in the config of a folder that minisd wrote.

    Some models sample as the original code does. If minisd writes such a model into a folder, it
    also writes a scheduler_config.json for diffusers. If nobody has changed this file, the returned
    config samples as the original code does. Otherwise, `config` is returned unchanged.

    config: the config that was read from the folder
    scheduler: the content of the folder's scheduler_config.json
    """
    usual = {name: getattr(ScheduleConfig, name) for name in SAMPLING_FIELDS}
    original = replace(config, schedule=replace(config.schedule, **usual))
    return original if scheduler_json(original) == scheduler else config


def absent_sizes(folder: Path) -> str:
    """A sentence for an error: it lists the settings that the folder does not state.

    If the folder states all settings, the sentence is "".
    """
    absent = []
    for part, table in PART_TABLES.items():
        path = folder / table.file
        stored = read_json(path) if path.exists() else table.obeyed
        missing = [name for name in NAMES[part].values() if name not in stored]
        absent += [f"{name} in {table.file}" for name in missing]
    what = "These settings are missing, so minisd took their defaults"
    return f" {what}: {', '.join(absent)}." if absent else ""


def native_size(stored: Mapping, vae: VAEConfig) -> int:
    """The width and height in pixels of the pictures for which the model was made.

    By mistake, diffusers before version 0.9 wrote a sample_size that was too small. If the file
    comes from such a version, a sample_size below 64 is replaced by 64. Later versions of diffusers
    do the same.

    stored: the content of the U-Net's config.json

    Raises ValueError if the pictures are not square.
    """
    side = one_value(stored.get("sample_size"))
    side = 64 if side is None else side
    if isinstance(side, list):
        raise ValueError(f"has sample_size = {side} for its unet: minisd knows only square sizes")
    version = re.match(r"(\d{1,4})\.(\d{1,4})", str(stored.get("_diffusers_version", "1.0")))
    old = version and (int(version[1]), int(version[2])) < (0, 9)
    return (max(side, 64) if old else side) * vae.factor


def one_value(value: Any) -> Any:
    """If a list or a nested list repeats one value, return this value.

    Otherwise, return `value` unchanged.

    >>> one_value([[1, 1], [1, 1]]), one_value([1, 2])
    (1, [1, 2])
    """
    while isinstance(value, list) and value and all(equal_values(each, value[0]) for each in value):
        value = value[0]
    return value


def unet_config(stored: Mapping) -> UNetConfig:
    stored = {
        key: one_value(v) if key in FOLDER_TABLES["per_level"] else v for key, v in stored.items()
    }
    settings: dict[str, Any] = PART_TABLES["unet"].read(stored)
    channels = tuple(settings["block_out_channels"])
    attention = attention_by_level(settings, len(channels))
    # "attention_head_dim" is the number of heads, in spite of the name (source: diffusers' code)
    heads = settings["num_attention_heads"] or settings["attention_head_dim"]
    heads = [heads] * len(channels) if isinstance(heads, int) else heads
    alike = len(set(heads)) == 1
    levels = zip(channels, heads, attention, strict=False)  # other lengths raise an error below
    divided = [(channels[-1], heads[-1])]  # first the middle block, then levels with attention
    divided += [(width, number) for width, number, attends in levels if attends]
    head_widths = {width // number for width, number in divided}
    uneven = any(width % number for width, number in divided)
    if uneven or len(heads) != len(channels) or (not alike and len(head_widths) > 1):
        rule = "minisd needs the same number of heads at all levels, or heads of the same width"
        raise ValueError(f"has {heads} heads for levels of width {channels}: {rule}")
    for name in ("layers_per_block", "cross_attention_dim"):
        if isinstance(settings[name], list):
            what = f"has {name} = {settings[name]} in the config.json of the unet"
            raise ValueError(f"{what}: minisd needs one value for all levels")
    return UNetConfig(
        **our_fields("unet", settings),
        attention=attention,
        heads=heads[0] if alike else UNetConfig.heads,
        head_width=None if alike else head_widths.pop(),
    )


def attention_by_level(settings: Mapping, levels: int) -> tuple[bool, ...]:
    """Find out which levels of a U-Net have attention. Returns True or False for each level.

    settings: the settings in the U-Net's config.json
    levels: the number of levels

    Raises ValueError if minisd does not have one of the blocks.
    """
    down, up = settings["down_block_types"], settings["up_block_types"]
    for block in down:
        if block not in BLOCK_ATTENDS:
            what = f"has the block {shorten(block)} in the down_block_types of the unet"
            raise ValueError(f"{what}: minisd knows only {' and '.join(BLOCK_ATTENDS)}")
    mirrored = [block.replace("Down", "Up") for block in reversed(down)]
    if len(down) == levels and list(up) != mirrored:
        raise ValueError(f"has up_block_types = {shorten(up)} for its unet: it must be {mirrored}")
    return tuple(BLOCK_ATTENDS[block] for block in down)


def vae_config(stored: Mapping) -> VAEConfig:
    """The config of the VAE.

    stored: the content of the VAE's config.json

    Raises ValueError if minisd does not support one of the settings.
    """
    settings: dict[str, Any] = PART_TABLES["vae"].read(stored)
    levels = len(settings["block_out_channels"])
    for name, block in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        blocks, fitting = list(settings[f"{name}_block_types"]), [block] * levels
        if blocks != fitting:
            wrong = f"{name}_block_types = {shorten(blocks)} for {levels} levels of the vae"
            raise ValueError(f"has {wrong}: minisd needs {fitting}")
    settings["layers_per_block"] = one_value(settings["layers_per_block"])
    return VAEConfig(**our_fields("vae", settings))


def text_config(stored: Mapping) -> TextConfig:
    """The config of the text transformer.

    stored: the content of the config.json of the text transformer, or of a whole CLIP model
    """
    if isinstance(stored.get("text_config"), dict):
        stored = stored["text_config"]
    settings = PART_TABLES["text_encoder"].read(stored)
    config = TextConfig(**our_fields("text_encoder", settings))
    return replace(config, mlp_width=None) if config.mlp_width == 4 * config.width else config


# ---- writing -----------------------------------------------------------------------------------


def folder_json_files(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, dict]:
    """The contents of the JSON files that describe a model in a diffusers folder.

    This is the inverse of config_from_folder. Returns a dictionary: path of a file in the folder ->
    content of the file.
    """
    text = text_json(config, tokenizer)
    parts = {"unet": unet_json(config), "vae": vae_json(config), "text_encoder": text}
    scheduler = scheduler_json(config)
    files = {
        "model_index.json": index_json(config, scheduler["_class_name"]),
        SCHEDULER_FILE: scheduler,
    }
    for part, settings in parts.items():
        table = PART_TABLES[part]
        fixed = {name: value for name, (_, value) in table.fixed.items() if name[0] != "_"}
        files[table.file] = {"_class_name": CLASSES[part][1], **fixed, **settings}
    if config.cfg_scale != ModelConfig.cfg_scale:
        files["minisd.json"] = {"cfg_scale": config.cfg_scale}
    return files


def to_folder_names(part: str, config: object) -> dict[str, object]:
    """Rename the settings of a part from minisd's names to diffusers' names.

    This is the inverse of our_fields.

    part: "unet", "vae" or "text_encoder"
    """
    return {name: getattr(config, ours) for ours, name in NAMES[part].items()}


def index_json(config: ModelConfig, scheduler: str) -> dict:
    """The content of model_index.json. For each part, it states the library and the class.

    diffusers expects that model_index.json also lists the parts that the model does not have. For
    such a part, it states [null, null].

    scheduler: the name of the scheduler's class
    """
    channels = config.unet.in_channels
    absent = ["depth_estimator" if channels == 5 else "safety_checker", "feature_extractor"]
    return {
        "_class_name": PIPELINES.get(str(channels), PIPELINES["4"]),
        "_diffusers_version": "0.20.0",  # if this is before 0.9, diffusers changes some settings
        **CLASSES,
        "scheduler": ["diffusers", scheduler],
        **{part: [None, None] for part in absent},
    }


def unet_json(config: ModelConfig) -> dict:
    unet = config.unet
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in unet.attention]
    up = [block.replace("Down", "Up") for block in reversed(down)]
    heads = [width // unet.head_width for width in unet.channels] if unet.head_width else unet.heads
    return {
        **to_folder_names("unet", unet),
        "attention_head_dim": heads,
        "down_block_types": down,
        "sample_size": config.size // config.vae.factor,
        "up_block_types": up,
    }


def vae_json(config: ModelConfig) -> dict:
    levels = len(config.vae.channels)
    return {
        **to_folder_names("vae", config.vae),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "sample_size": config.size,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_json(config: ModelConfig, tokenizer: Tokenizer) -> dict:
    text = config.text
    return {
        **to_folder_names("text_encoder", text),
        "architectures": CLASSES["text_encoder"][1:],
        "bos_token_id": tokenizer.begin,
        "eos_token_id": tokenizer.end,
        "intermediate_size": text.mlp_width or 4 * text.width,
    }


def lists_to_tuples(fields: dict) -> dict:
    """Turn lists into tuples. JSON has only lists, and configs have only tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
