"""A model's config as our own files keep it, both ways, and what no network can be built with."""

import json
from dataclasses import asdict

from minisd.checkpoints.scheduler_settings import PREDICTIONS, check_schedule
from minisd.clip import ACTIVATIONS
from minisd.config import ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from minisd.tokenizer import Tokenizer

# ---- our own files: in the header of the .safetensors ------------------------------------------


def to_metadata(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """What load() needs beside the tensors. CLIP's vocabulary ships with the package: left out."""
    stored = {"format": "pt", "minisd": json.dumps(asdict(config))}
    usual = Tokenizer.clip()
    if tokenizer.words or (tokenizer.merges, tokenizer.ids) != (usual.merges, usual.ids):
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
    if type(config.cfg_scale) not in NUMBERS[float]:
        raise ValueError(f"has cfg_scale = {config.cfg_scale!r}, which is no number: correct it")
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
