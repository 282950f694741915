"""A model's config in words: as our own files keep it and as a diffusers folder does, both ways."""

import json
from dataclasses import asdict
from pathlib import Path

from minisd.checkpoints.read import read_json
from minisd.checkpoints.scheduler_settings import (
    FILE,
    PREDICTIONS,
    check_schedule,
    sampler_and_schedule,
    scheduler_json,
)
from minisd.clip import ACTIVATIONS
from minisd.config import ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from minisd.tokenizer import Tokenizer

# ---- our own files: in the header of the .safetensors ------------------------------------------


def to_metadata(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """What load() needs beside the tensors. CLIP's vocabulary ships with the package: left out."""
    stored = {"format": "pt", "minisd": json.dumps(asdict(config))}
    if tokenizer.words or tokenizer.merges != Tokenizer.clip().merges:
        stored["tokenizer"] = tokenizer.to_json()
    return stored


def from_metadata(stored: dict[str, str]) -> tuple[ModelConfig, Tokenizer]:
    """Undo to_metadata. Raises ValueError for what a newer minisd wrote."""
    try:
        fields = json.loads(stored["minisd"])
        parts = {
            "text": TextConfig(**fields.pop("text")),
            "unet": UNetConfig(**tuples(fields.pop("unet"))),
            "vae": VAEConfig(**tuples(fields.pop("vae"))),
            "schedule": ScheduleConfig(**tuples(fields.pop("schedule"))),
        }
        config = ModelConfig(**parts, **fields)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        what = f"a header that is damaged or of another version of minisd ({error})"
        raise ValueError(f"has {what}: get another copy") from error
    if "tokenizer" in stored:
        return config, Tokenizer.from_json(stored["tokenizer"])
    return config, Tokenizer.clip(config.text.pad_token)


def tuples(fields: dict) -> dict:
    """JSON knows only lists, the configs only tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}


# ---- what no network can be built with ---------------------------------------------------------

NUMBERS = {int: (int,), float: (int, float)}  # a float may be stored as 1


def checked(config: ModelConfig) -> ModelConfig:
    """The config itself. Raises ValueError for sizes that are none or do not fit together."""
    text, unet, vae = config.text, config.unet, config.vae
    for part in (text, unet, vae, config.schedule):
        positive(asdict(part) | {"steps_offset": 1}, asdict(type(part)()) | {"steps_offset": 1})
    check_schedule(config.schedule)
    positive({"size": config.size}, {"size": ModelConfig.size})
    if text.activation not in ACTIVATIONS:
        known = " and ".join(ACTIVATIONS)
        raise ValueError(f"has the activation {text.activation!r}: only {known} are known here")
    if config.schedule.prediction not in PREDICTIONS.values():
        raise ValueError(f"predicts {config.schedule.prediction!r}: only eps and v are known here")
    if config.schedule.zero_terminal_snr and config.schedule.prediction != "v":
        raise ValueError("has a last level without signal, of which eps says nothing: it must be v")
    if len(unet.attention) != len(unet.channels):
        levels = f"{len(unet.channels)} U-Net levels, but says of {len(unet.attention)}"
        raise ValueError(f"has {levels} whether they attend to the text: get another copy")
    divided = [(text.width, text.heads)]
    divided += [(width, unet.norm_groups) for width in unet.channels]
    attending = zip(unet.channels, [*unet.attention[:-1], True])  # the middle attends, too
    divided += [(width, unet.head_width or unet.heads) for width, attends in attending if attends]
    divided += [(width, vae.norm_groups) for width in vae.channels]
    for width, number in divided:
        if width % number:
            raise ValueError(
                f"has {width} channels in {number} groups or heads, which does not come out even: "
                "get another copy"
            )
    return config


def positive(stored: dict, usual: dict):
    """Raises ValueError for what should be a number as in `usual`, or several, and is not."""
    for key, value in stored.items():
        many = isinstance(usual[key], tuple)
        kind = type(usual[key][0] if many else usual[key])
        numbers = value if many and isinstance(value, tuple) else (value,)
        good = all(type(number) in NUMBERS.get(kind, ()) and number > 0 for number in numbers)
        if kind in NUMBERS and not (numbers and good):
            raise ValueError(f"has {key} = {value!r}, which is no size: get another copy")


# ---- diffusers folders: one config.json for each part -------------------------------------------

# What these networks always are. Written as it stands; a folder that says otherwise is refused.
FIXED = {
    "unet": {
        "act_fn": "silu",
        "addition_embed_type": None,
        "center_input_sample": False,
        "class_embed_type": None,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5,
        "only_cross_attention": False,
        "resnet_time_scale_shift": "default",
        "transformer_layers_per_block": 1,
    },
    "vae": {
        "act_fn": "silu",
        "in_channels": 3,
        "mid_block_add_attention": True,
        "out_channels": 3,
        "shift_factor": None,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    },
    "text_encoder": {"layer_norm_eps": 1e-5},
}
# The class that opens each part, and for which kind of U-Net input a pipeline is made.
CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
PIPELINES = {
    4: "StableDiffusionPipeline",
    5: "StableDiffusionDepth2ImgPipeline",
    9: "StableDiffusionInpaintPipeline",
}
ATTENDS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}


def from_folder(folder: Path) -> ModelConfig:
    """The config that a diffusers folder spells out.

    Raises ValueError for a folder that lacks a part or a setting, or has one unknown here.
    """
    stored = {part: read_json(json_path(folder, part)) for part in FIXED}
    scheduler, index = read_json(folder / FILE), folder / "model_index.json"
    index = read_json(index) if index.exists() else {}
    try:
        refuse_others(stored)
        unet, vae = unet_config(stored["unet"]), vae_config(stored["vae"])
        text = text_config(stored["text_encoder"])
        sampler, schedule = sampler_and_schedule(scheduler, index, unet.in_channels)
        size = (stored["unet"].get("sample_size") or 64) * vae.factor
        config = ModelConfig(folder.name, text, unet, vae, schedule, size, sampler=sampler)
        return checked(config)
    except KeyError as error:
        lacks = f"{folder.name} lacks {error} in one of its config.json, or names a wrong one"
        raise ValueError(f"{lacks}: get another copy.") from error
    except (TypeError, ArithmeticError) as error:
        wrong = f"{folder.name} has a setting of a wrong kind in one of its config.json ({error})"
        raise ValueError(f"{wrong}: get another copy.") from error
    except ValueError as error:
        raise ValueError(f"{folder.name} {error}.") from error


def refuse_others(stored: dict[str, dict]):
    """Raises ValueError for a setting that these networks do not have."""
    for part, fixed in FIXED.items():
        for key, value in fixed.items():
            if stored[part].get(key, value) != value:
                got = f"{key} = {stored[part][key]!r}"
                raise ValueError(f"has {got} in its {part}: only {value!r} is known here")


def json_path(folder: Path, part: str) -> Path:
    return folder / part / "config.json"


def unet_config(stored: dict) -> UNetConfig:
    channels = tuple(stored["block_out_channels"])
    attention = tuple(ATTENDS[block] for block in stored["down_block_types"])
    # "attention_head_dim" is a misnomer for the number of heads: diffusers' own source admits it
    heads = stored.get("num_attention_heads") or stored["attention_head_dim"]
    heads = [heads] * len(channels) if isinstance(heads, int) else heads
    alike = len(set(heads)) == 1
    divided = [(channels[-1], heads[-1])]  # in the middle; then the levels that attend
    divided += [both for both, attends in zip(zip(channels, heads), attention) if attends]
    head_widths = {width // number for width, number in divided}
    uneven = any(width % number for width, number in divided)
    if uneven or (not alike and len(head_widths) > 1):
        raise ValueError(f"has {heads} heads at levels {channels} wide: no rule fits both")
    return UNetConfig(
        in_channels=stored["in_channels"],
        out_channels=stored["out_channels"],
        channels=channels,
        attention=attention,
        res_blocks=stored["layers_per_block"],
        context_dim=stored["cross_attention_dim"],
        heads=heads[0] if alike else UNetConfig.heads,
        head_width=None if alike else head_widths.pop(),
        linear_projection=stored.get("use_linear_projection", False),
        norm_groups=stored.get("norm_num_groups", UNetConfig.norm_groups),
    )


def vae_config(stored: dict) -> VAEConfig:
    return VAEConfig(
        channels=tuple(stored["block_out_channels"]),
        latent_channels=stored["latent_channels"],
        res_blocks=stored["layers_per_block"],
        scale=stored.get("scaling_factor", VAEConfig.scale),  # old folders do not say it
        norm_groups=stored.get("norm_num_groups", VAEConfig.norm_groups),
    )


def text_config(stored: dict) -> TextConfig:
    width, mlp_width = stored["hidden_size"], stored["intermediate_size"]
    return TextConfig(
        vocab_size=stored["vocab_size"],
        width=width,
        layers=stored["num_hidden_layers"],
        heads=stored["num_attention_heads"],
        activation=stored["hidden_act"],
        max_length=stored["max_position_embeddings"],
        mlp_width=None if mlp_width == 4 * width else mlp_width,
    )


def to_folder(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, dict]:
    """The JSON files of a diffusers folder, by their path in it. Undoes from_folder."""
    parts = {
        "unet": unet_json(config),
        "vae": vae_json(config),
        "text_encoder": text_json(config, tokenizer),
    }
    scheduler = scheduler_json(config)
    files = {"model_index.json": index_json(config, scheduler["_class_name"]), FILE: scheduler}
    for part, settings in parts.items():
        path = json_path(Path(), part).as_posix()
        files[path] = {"_class_name": CLASSES[part], **FIXED[part], **settings}
    return files


def index_json(config: ModelConfig, scheduler: str) -> dict:
    """Which class opens which folder; diffusers wants the parts that we lack named as absent."""
    transformers, classes = ("text_encoder", "tokenizer"), {**CLASSES, "scheduler": scheduler}
    library = {part: "transformers" if part in transformers else "diffusers" for part in classes}
    absent = ["safety_checker", "feature_extractor"]
    if config.unet.in_channels == 5:
        absent = ["depth_estimator", "feature_extractor"]
    return {
        "_class_name": PIPELINES.get(config.unet.in_channels, PIPELINES[4]),
        "_diffusers_version": "0.20.0",  # diffusers mends what versions before 0.9 wrote
        **{part: [library[part], name] for part, name in classes.items()},
        **{part: [None, None] for part in absent},
    }


def unet_json(config: ModelConfig) -> dict:
    unet = config.unet
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in unet.attention]
    up = [block.replace("Down", "Up") for block in reversed(down)]
    heads = [width // unet.head_width for width in unet.channels] if unet.head_width else unet.heads
    return {
        "attention_head_dim": heads,
        "block_out_channels": unet.channels,
        "cross_attention_dim": unet.context_dim,
        "down_block_types": down,
        "in_channels": unet.in_channels,
        "layers_per_block": unet.res_blocks,
        "norm_num_groups": unet.norm_groups,
        "out_channels": unet.out_channels,
        "sample_size": config.size // config.vae.factor,
        "up_block_types": up,
        "use_linear_projection": unet.linear_projection,
    }


def vae_json(config: ModelConfig) -> dict:
    vae, levels = config.vae, len(config.vae.channels)
    return {
        "block_out_channels": vae.channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "latent_channels": vae.latent_channels,
        "layers_per_block": vae.res_blocks,
        "norm_num_groups": vae.norm_groups,
        "sample_size": config.size,
        "scaling_factor": vae.scale,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_json(config: ModelConfig, tokenizer: Tokenizer) -> dict:
    text = config.text
    return {
        "architectures": [CLASSES["text_encoder"]],
        "bos_token_id": tokenizer.begin,
        "eos_token_id": tokenizer.end,
        "hidden_act": text.activation,
        "hidden_size": text.width,
        "intermediate_size": text.mlp_width or 4 * text.width,
        "max_position_embeddings": text.max_length,
        "model_type": "clip_text_model",
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "vocab_size": text.vocab_size,
    }
