"""A model's config as our own files keep it, both ways, and what no network can be built with."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from minisd.checkpoints.scheduler_settings import PREDICTIONS, check_schedule
from minisd.clip import ACTIVATIONS
from minisd.config import ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from minisd.tokenizer import Tokenizer


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors on what a file or folder says become sentences that begin with its name."""
    try:
        yield
    except (TypeError, LookupError, ArithmeticError, AttributeError) as error:
        wrong = f"{name} has a setting of a wrong kind ({error})"
        raise ValueError(f"{wrong}: get another copy.") from error
    except ValueError as error:
        raise ValueError(f"{name} {str(error).removesuffix('.')}.") from error


PARTS = {"text": TextConfig, "unet": UNetConfig, "vae": VAEConfig, "schedule": ScheduleConfig}

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
        for part, kind in PARTS.items():
            fields[part] = kind(**tuples(fields[part]))
        config = ModelConfig(**fields)
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
OPTIONAL = {"mlp_width": 1, "head_width": 1}  # None, or such a number
MAY_BE_0 = ("steps_offset", "cfg_scale")


def checked(config: ModelConfig) -> ModelConfig:
    """The config itself. Raises ValueError for sizes that are none or do not fit together."""
    text, unet, vae = config.text, config.unet, config.vae
    for part in (config, text, unet, vae, config.schedule):
        refuse_no_numbers(part)
    check_schedule(config.schedule)
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
            uneven = f"{width} channels in {number} groups or heads, which does not come out even"
            raise ValueError(f"has {uneven}: get another copy")
    return config


def refuse_no_numbers(part: object):
    """Raises ValueError for what should be a number above 0, or several, and is not."""
    for key, usual in (asdict(type(part)()) | OPTIONAL).items():
        value = getattr(part, key, None)
        if value is None and (key in OPTIONAL or usual is None):
            continue
        many = isinstance(usual, tuple)
        numbers = value if many and isinstance(value, tuple) else (value,)
        kinds = NUMBERS.get(type(usual[0] if many else usual))
        good = kinds and all(type(n) in kinds and (n > 0 or key in MAY_BE_0) for n in numbers)
        if kinds and not (numbers and good):
            raise ValueError(f"has {key} = {value!r}, which is no size: get another copy")
