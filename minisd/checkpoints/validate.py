"""Check that networks can be built from a config."""

from collections.abc import Iterable
from dataclasses import asdict

from minisd.checkpoints.folder_scheduler import CLASS_OF, PREDICTIONS, check_schedule
from minisd.clip import ACTIVATIONS
from minisd.config import ModelConfig, TextConfig
from minisd.files.json_files import build_dataclass, shorten

LEVELS = 8  # the most levels that a network may have; each level halves the resolution
RANGES = {
    "layers": (1, 100),
    "res_blocks": (1, 10),
    "max_length": (TextConfig.max_length, TextConfig.max_length),  # length of the tokenizer's rows
    "pad_token": (0, 10**6),
    "timesteps": (2, 100_000),
    "steps_offset": (0, 100),
    "size": (8, 2**14),  # px
    "cfg_scale": (0, 1000),
    "scale": (1e-6, 10**6),
}


def validate_config(config: ModelConfig) -> ModelConfig:
    """Return the config if networks can be built from it.

    Raises ValueError if a value is impossible or unknown, or if two values do not fit together.
    """
    text, unet, vae = config.text, config.unet, config.vae
    build_dataclass(ModelConfig, asdict(config), RANGES)
    check_levels(unet.channels, vae.channels)
    check_schedule(config.schedule)
    for what, value, known in (
        ("has the activation", text.activation, ACTIVATIONS),
        ("predicts", config.schedule.prediction, PREDICTIONS.values()),
        ("has the sampler", config.sampler, CLASS_OF),
    ):
        if value not in known:
            choice = " and ".join(known)
            raise ValueError(f"{what} {shorten(value)}: minisd knows only {choice}")
    if config.schedule.zero_terminal_snr and config.schedule.prediction != "v":
        raise ValueError('has a zero terminal SNR, so it must predict v: give prediction="v"')
    if len(unet.attention) != len(unet.channels):
        levels = f"{len(unet.channels)} U-Net levels, but a list of {len(unet.attention)} types"
        raise ValueError(f"has {levels}: get another copy")
    refuse_uneven([(text.width, text.heads), (unet.channels[0], 2)])  # 2: sines and cosines of t
    refuse_uneven((width, unet.norm_groups) for width in unet.channels)
    attending = zip(unet.channels, [*unet.attention[:-1], True], strict=True)  # True: the middle
    heads = unet.head_width or unet.heads
    refuse_uneven((width, heads) for width, attends in attending if attends)
    refuse_uneven((width, vae.norm_groups) for width in vae.channels)
    return config


def check_levels(*networks: tuple[int, ...]) -> None:
    """Raise ValueError if a network has more than LEVELS levels.

    networks: for each network, a tuple with the number of channels of each level
    """
    for channels in networks:
        if len(channels) > LEVELS:
            raise ValueError(f"has {len(channels)} levels, but minisd allows at most {LEVELS}")


def refuse_uneven(divided: Iterable[tuple[int, int]]) -> None:
    """Raise ValueError if channels cannot be divided evenly into groups or heads.

    divided: pairs of a number of channels, and the number of its groups or heads
    """
    for width, number in divided:
        if width % number:
            uneven = f"{width} channels that cannot be divided into {number} groups or heads"
            raise ValueError(f"has {uneven}: get another copy")
