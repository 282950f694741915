"""A model's config as a diffusers folder spells it out, a config.json for each part; both ways."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

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

# folder_settings.json. names: by part, our name -> diffusers', of what both say alike.
# index: the class that opens each part    pipelines: by the channels of the U-Net's input
# per_level: one value for all levels, or a list of one for each
FOLDER_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
NAMES, CLASSES = FOLDER_TABLES["names"], FOLDER_TABLES["index"]
PIPELINES = FOLDER_TABLES["pipelines"]
# how samplers walk
WALK_FIELDS = ("spacing", "steps_offset", "set_alpha_to_one", "final", "karras")
BLOCK_ATTENDS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}


def our_fields(part: str, said: Mapping) -> dict[str, object]:
    """Our settings of a part, of those in NAMES."""
    return lists_to_tuples({ours: said[theirs] for ours, theirs in NAMES[part].items()})


def config_from_folder(folder: Path, vae: VAEConfig | None = None) -> ModelConfig:
    """The config that a diffusers folder spells out.

    vae: that of another VAE, which takes the place of the folder's
    Raises ValueError for a folder that lacks a part or a setting, or has one unknown here.
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
        config = ModelConfig(
            folder.name, text, unet, vae, schedule, size, sampler=sampler, **OUR_TABLE.read(ours)
        )
        config = as_before_conversion(config, scheduler) if ours else config
        return validate_config(with_text_layout(config, open_clip=text.activation == "gelu"))


def as_before_conversion(config: ModelConfig, scheduler: Mapping) -> ModelConfig:
    """With the walks of our own files, if the scheduler's settings are still as we wrote them."""
    walks = {name: getattr(ScheduleConfig, name) for name in WALK_FIELDS}
    original = replace(config, schedule=replace(config.schedule, **walks))
    return original if scheduler_json(original) == scheduler else config


def absent_sizes(folder: Path) -> str:
    """A sentence on the sizes that the folder does not state, "" if it states all."""
    absent = []
    for part, table in PART_TABLES.items():
        path = folder / table.file
        stored = read_json(path) if path.exists() else table.obeyed
        lacks = [name for name in NAMES[part].values() if name not in stored]
        absent += [f"{name!r} in its {table.file}" for name in lacks]
    return f" It lacks {', '.join(absent)}, so the usual one was taken." if absent else ""


def native_size(stored: Mapping, vae: VAEConfig) -> int:
    """The native picture size. Raises ValueError for one that is no square.

    diffusers takes 64 for what versions before 0.9 called smaller, by mistake.
    """
    side = one_value(stored.get("sample_size"))
    side = 64 if side is None else side
    if isinstance(side, list):
        raise ValueError(f"has sample_size = {side} in its unet: only squares are known here")
    version = re.match(r"(\d{1,4})\.(\d{1,4})", str(stored.get("_diffusers_version", "1.0")))
    old = version and (int(version[1]), int(version[2])) < (0, 9)
    return (max(side, 64) if old else side) * vae.factor


def one_value(value: object) -> object:
    """The value that a list repeats, as deep as it is nested; anything else as it is.

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
    said = PART_TABLES["unet"].read(stored)
    channels = tuple(said["block_out_channels"])
    attention = attention_by_level(said, len(channels))
    # "attention_head_dim" is a misnomer for the number of heads: diffusers' own source admits it
    heads = said["num_attention_heads"] or said["attention_head_dim"]
    heads = [heads] * len(channels) if isinstance(heads, int) else heads
    alike = len(set(heads)) == 1
    divided = [(channels[-1], heads[-1])]  # in the middle; then the levels that attend
    divided += [both for both, attends in zip(zip(channels, heads), attention) if attends]
    head_widths = {width // number for width, number in divided}
    uneven = any(width % number for width, number in divided)
    if uneven or len(heads) != len(channels) or (not alike and len(head_widths) > 1):
        raise ValueError(f"has {heads} heads at levels {channels} wide: no rule fits both")
    for name in ("layers_per_block", "cross_attention_dim"):
        if isinstance(said[name], list):
            raise ValueError(f"has {name} = {said[name]} in its unet: only equal ones are known")
    return UNetConfig(
        **our_fields("unet", said),
        attention=attention,
        heads=heads[0] if alike else UNetConfig.heads,
        head_width=None if alike else head_widths.pop(),
    )


def attention_by_level(said: Mapping, levels: int) -> tuple[bool, ...]:
    """Which levels look at the text. Raises ValueError for blocks that minisd does not have."""
    down, up = said["down_block_types"], said["up_block_types"]
    for block in down:
        if block not in BLOCK_ATTENDS:
            lacks = f"minisd lacks {shorten(block)}, and has only {' and '.join(BLOCK_ATTENDS)}"
            raise ValueError(f"has an unknown block in its U-Net's down_block_types: {lacks}")
    mirrored = [block.replace("Down", "Up") for block in reversed(down)]
    if len(down) == levels and list(up) != mirrored:
        raise ValueError(f"has up_block_types = {shorten(up)} in its unet: only {mirrored} fit")
    return tuple(BLOCK_ATTENDS[block] for block in down)


def vae_config(stored: Mapping) -> VAEConfig:
    """Raises ValueError for settings that minisd's VAE does not have."""
    said = PART_TABLES["vae"].read(stored)
    levels = len(said["block_out_channels"])
    for name, block in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        blocks, fitting = list(said[f"{name}_block_types"]), [block] * levels
        if blocks != fitting:
            wrong = f"{name}_block_types = {shorten(blocks)} in its vae for {levels} levels"
            raise ValueError(f"has {wrong}: only {fitting} fit")
    said["layers_per_block"] = one_value(said["layers_per_block"])
    return VAEConfig(**our_fields("vae", said))


def text_config(stored: Mapping) -> TextConfig:
    """Of a text transformer alone, or of a whole CLIP with its picture half."""
    if isinstance(stored.get("text_config"), dict):
        stored = stored["text_config"]
    said = PART_TABLES["text_encoder"].read(stored)
    config = TextConfig(**our_fields("text_encoder", said))
    return replace(config, mlp_width=None) if config.mlp_width == 4 * config.width else config


# ---- writing -----------------------------------------------------------------------------------


def folder_json_files(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, dict]:
    """The JSON files of a diffusers folder, by their path in it. Undoes config_from_folder."""
    text = text_json(config, tokenizer)
    parts = {"unet": unet_json(config), "vae": vae_json(config), "text_encoder": text}
    scheduler = scheduler_json(config)
    files = {
        "model_index.json": index_json(config, scheduler["_class_name"]),
        SCHEDULER_FILE: scheduler,
    }
    for part, settings in parts.items():
        always = {
            name: value for name, (_, value) in PART_TABLES[part].fixed.items() if name[0] != "_"
        }
        files[PART_TABLES[part].file] = {"_class_name": CLASSES[part][1], **always, **settings}
    if config.cfg_scale != ModelConfig.cfg_scale:
        files["minisd.json"] = {"cfg_scale": config.cfg_scale}
    return files


def to_folder_names(part: str, config: object) -> dict[str, object]:
    """Undoes our_fields."""
    return {theirs: getattr(config, ours) for ours, theirs in NAMES[part].items()}


def index_json(config: ModelConfig, scheduler: str) -> dict:
    """Which class opens which folder; diffusers wants the parts that we lack named as absent."""
    channels = config.unet.in_channels
    absent = ["depth_estimator" if channels == 5 else "safety_checker", "feature_extractor"]
    return {
        "_class_name": PIPELINES.get(str(channels), PIPELINES["4"]),
        "_diffusers_version": "0.20.0",  # diffusers mends what versions before 0.9 wrote
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
    """JSON knows only lists, the configs only tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
