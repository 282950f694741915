"""PEFT's settings of a LoRA: how strong the change of each layer is, and which layers it means.

PEFT writes them into adapter_config.json next to the weights. diffusers writes the same settings
into the file's header (lora_adapter_metadata), each with the name of its part in front.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from minisd.checkpoints.known_settings import tables
from minisd.checkpoints.read import metadata, read_json
from minisd.checkpoints.settings import naming
from minisd.json_files import check_value, is_of, parse_json, shortened

FILE = "adapter_config.json"
OWNERS = ("adapter_model", "pytorch_lora_weights")  # the names of the files that it describes
LORA_CONFIG = tables()[FILE]  # every field of PEFT's LoraConfig (peft/tuners/lora/config.py)


def stated_settings(path: Path, keys: Iterable[str]) -> list[tuple[str, dict[str, object]]]:
    """(part, the obeyed settings) for each place that states them; part "" means every part.

    adapter_config.json describes the file next to it that has one of PEFT's or diffusers' own
    names. A file of kohya's naming states its alphas itself. Any other file next to it may be
    described or not, so it is refused, unless its header has the settings.

    keys: the names of the file's tensors
    Raises ValueError for an unknown setting, or one that cannot be obeyed.
    """
    places, config = list(header_settings(path).items()), path.parent / FILE
    if config.exists() and path.stem.startswith(OWNERS):
        places.append(("", read_json(config)))
    elif config.exists() and not places and any("lora_A" in key for key in keys):
        what = f"{path.name} lies next to an {FILE} that may be another LoRA's"
        way = f"call it {OWNERS[0]}{path.suffix} if it is described there, else move it elsewhere"
        raise ValueError(f"{what}: {way}.")
    with naming(path.name):
        return [(part, read_settings(fields)) for part, fields in places]


def header_settings(path: Path) -> dict[str, dict[str, object]]:
    """Part -> its settings as the header has them; the part is "" where a setting names none."""
    parts: dict[str, dict[str, object]] = {}
    with naming(f"{path.name} has a damaged header: its lora_adapter_metadata"):
        stored = parse_json(metadata(path).get("lora_adapter_metadata", "{}"))
        check_value("lora_adapter_metadata", stored, dict)
    for key, value in stored.items():
        part, _, name = key.rpartition(".")
        if part not in ("", "unet", "text_encoder"):
            what = f"{path.name} has settings of a part named {shortened(part)[1:-1]}"
            raise ValueError(f"{what}: it is made for another kind of model.")
        parts.setdefault(part, {})[name] = value
    return parts


def read_settings(stored: Mapping[str, object]) -> dict[str, object]:
    """The obeyed settings. Raises ValueError for what is unknown or makes no sense."""
    values = LORA_CONFIG.read(stored)
    for key, makes_sense in SENSE.items():
        if not makes_sense(values[key]):
            what = f"has {key} = {shortened(values[key])} in its {FILE}, which makes no sense"
            raise ValueError(f"{what}: get another copy")
    return values


def is_pattern(value: object) -> bool:
    """Whether it is a regular expression."""
    try:
        return bool(re.compile(value))
    except (re.error, TypeError):
        return False


def maps_patterns(value: dict | None, kind: type) -> bool:
    """Whether it is None, or leads from patterns to numbers of that kind."""
    return all(is_pattern(pattern) and is_of(kind, one) for pattern, one in (value or {}).items())


SENSE = {  # beyond being of the right type
    "rank_pattern": lambda value: maps_patterns(value, int),
    "alpha_pattern": lambda value: maps_patterns(value, float),
    "target_modules": lambda value: not isinstance(value, str) or is_pattern(value),
    "exclude_modules": lambda value: not isinstance(value, str) or is_pattern(value),
}


def alpha_of(values: Mapping[str, object], layer: str, rank: int) -> float:
    """The alpha of one layer, such that the change is alpha / rank * up @ down.

    layer: its name in diffusers    rank: of its matrices
    Raises ValueError where the settings speak of another rank, or leave the layer out.
    """
    stated = of_pattern(values["rank_pattern"], layer, values["r"])
    if stated != rank:
        raise ValueError(f"has rank {rank}, and the settings say {stated}: get another copy")
    targets = values["target_modules"]
    chosen = targets in (None, "all-linear") or is_among(targets, layer)
    if not chosen or is_among(values["exclude_modules"] or [], layer):
        raise ValueError("is left out by target_modules or exclude_modules: get another copy")
    alpha = of_pattern(values["alpha_pattern"], layer, values["lora_alpha"])
    return alpha * math.sqrt(rank) if values["use_rslora"] else alpha


def of_pattern(patterns: Mapping[str, object] | None, layer: str, default: object) -> object:
    """The value of the first pattern that a layer's name ends with (peft get_pattern_key).

    >>> of_pattern({"attn2.to_.": 4, "to_q": 8}, "mid_block.attn2.to_q", 1)
    4
    """
    for pattern, value in (patterns or {}).items():
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in spellings(layer)):
            return value
    return default


def is_among(choice: str | list[str], layer: str) -> bool:
    """Whether PEFT would choose the layer: by a regular expression, or by the ends of names."""
    if isinstance(choice, str):
        return any(re.fullmatch(choice, name) for name in spellings(layer))
    return any(f".{name}".endswith(f".{end}") for name in spellings(layer) for end in choice)


def spellings(layer: str) -> set[str]:
    """Newer versions of transformers leave out "text_model."."""
    return {layer, layer.removeprefix("text_model.")}
