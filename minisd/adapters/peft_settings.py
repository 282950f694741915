"""PEFT's settings of a LoRA: how strong the change of each layer is, and which layers it means.

PEFT writes them into adapter_config.json next to the weights. diffusers writes the same settings
into the file's header (lora_adapter_metadata), each with the name of its part in front.
"""

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from time import thread_time

import regex

from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.known_settings import settings_tables
from minisd.files.json_files import check_value, is_of, parse_json, read_json, shorten
from minisd.files.one_line import name_errors

ADAPTER_CONFIG = "adapter_config.json"
LORA_FILE_STEMS = (
    "adapter_model",
    "pytorch_lora_weights",
)  # the names of the files that it describes
PATIENCE = 3  # seconds; those of an honest file take some milliseconds, "(a+)+b" could take years
LONGEST_PATTERN = 10_000  # characters
MOST_PATTERNS = 1_000  # one for each layer of SD are 700
LORA_CONFIG = settings_tables()[
    ADAPTER_CONFIG
]  # every field of PEFT's LoraConfig (peft/tuners/lora/config.py)


LAYER_CHOICES = ("target_modules", "exclude_modules")


def read_peft_settings(path: Path, keys: Iterable[str]) -> list[tuple[str, dict[str, object]]]:
    """(part, the obeyed settings) for each place that states them; part "" means every part.

    adapter_config.json describes the file next to it that has one of PEFT's or diffusers' own
    names. A file of kohya's naming states its alphas itself. Any other file next to it may be
    described or not, so it is refused, unless its header has the settings.

    keys: the names of the file's tensors
    Raises ValueError for an unknown setting, or one that cannot be obeyed.
    """
    places, config = list(header_settings(path).items()), path.parent / ADAPTER_CONFIG
    if config.exists() and path.stem.startswith(LORA_FILE_STEMS):
        places.append(("", read_json(config)))
    elif config.exists() and not places and any("lora_A" in key for key in keys):
        what = f"{path.name} lies next to an {ADAPTER_CONFIG} that may be another LoRA's"
        way = f"rename it {LORA_FILE_STEMS[0]}{path.suffix} if that describes it, else move it"
        raise ValueError(f"{what}: {way}.")
    with name_errors(path.name):
        return [(part, parse_lora_config(fields)) for part, fields in places]


def header_settings(path: Path) -> dict[str, dict[str, object]]:
    """Part -> its settings as the header has them; the part is "" where a setting names none."""
    parts: dict[str, dict[str, object]] = {}
    with name_errors(f"{path.name} has a damaged header: its lora_adapter_metadata"):
        stored = parse_json(read_metadata(path).get("lora_adapter_metadata", "{}"))
        check_value("lora_adapter_metadata", stored, dict)
    for key, value in stored.items():
        part, _, name = key.rpartition(".")
        if part not in ("", "unet", "text_encoder"):
            what = f"{path.name} has settings of a part named {shorten(part)[1:-1]}"
            raise ValueError(f"{what}: it is made for another kind of model.")
        parts.setdefault(part, {})[name] = value
    return parts


def parse_lora_config(stored: Mapping[str, object]) -> dict[str, object]:
    """The obeyed settings. Raises ValueError for what is unknown or makes no sense."""
    values = LORA_CONFIG.read(stored)
    for key in ("rank_pattern", "alpha_pattern"):
        if isinstance(values[key], dict) and len(values[key]) > MOST_PATTERNS:
            raise ValueError(f"has more than {MOST_PATTERNS} entries in {key}: get another copy")
    for key, makes_sense in MAKES_SENSE.items():
        if not makes_sense(values[key]):
            what = f"has {key} = {shorten(values[key])} in its {ADAPTER_CONFIG}"
            raise ValueError(f"{what}, which makes no sense: get another copy")
    ends = {
        key: set(v) for key, v in values.items() if key in LAYER_CHOICES and isinstance(v, list)
    }
    return values | ends | {"matcher": Matcher()}


def is_pattern(value: object) -> bool:
    """Whether it is a regular expression, to PEFT and to us."""
    try:
        short = len(value) <= LONGEST_PATTERN
        return short and bool(re.compile(value)) and bool(regex.compile(value))
    except (re.error, regex.error, TypeError, OverflowError, RecursionError):
        return False


class Matcher:
    """Matches layers with the patterns of one file, for PATIENCE seconds in all."""

    def __init__(self):
        self.left = PATIENCE

    def first_match(self, patterns: Iterable[str], layer: str) -> str | None:
        """The first pattern that fits the layer. ValueError: the time is up."""
        names, begun = spellings(layer), thread_time()
        try:
            for pattern in patterns:
                if any(
                    compile_pattern(pattern).fullmatch(name, timeout=self.left) for name in names
                ):
                    return pattern
        except (TimeoutError, regex.error) as error:
            what = f"has patterns in its {ADAPTER_CONFIG} that take too long or make no sense"
            raise ValueError(f"{what}: write out the names of the layers") from error
        finally:
            self.left = max(self.left - (thread_time() - begun), 1e-6)
        return None


@lru_cache(maxsize=4 * MOST_PATTERNS)
def compile_pattern(pattern: str) -> regex.Pattern:
    return regex.compile(pattern)


def maps_patterns(value: dict | None, kind: type) -> bool:
    """Whether it is None, or leads from patterns to numbers of that kind."""
    return all(is_pattern(pattern) and is_of(kind, one) for pattern, one in (value or {}).items())


MAKES_SENSE = {  # beyond being of the right type
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
    matcher = values["matcher"]
    stated = value_for_layer(values["rank_pattern"], layer, values["r"], matcher)
    if stated != rank:
        raise ValueError(f"has rank {rank}, and the settings say {stated}: get another copy")
    targets, excluded = (values[key] for key in LAYER_CHOICES)
    chosen = targets in (None, "all-linear") or is_among(targets, layer, matcher)
    if not chosen or is_among(excluded or set(), layer, matcher):
        raise ValueError("is left out by target_modules or exclude_modules: get another copy")
    alpha = value_for_layer(values["alpha_pattern"], layer, values["lora_alpha"], matcher)
    return alpha * math.sqrt(rank) if values["use_rslora"] else alpha


def value_for_layer(
    patterns: Mapping[str, object] | None,
    layer: str,
    default: object,
    matcher: Matcher | None = None,
) -> object:
    """The value of the first pattern that a layer's name ends with (peft get_pattern_key).

    >>> value_for_layer({"attn2.to_.": 4, "to_q": 8}, "mid_block.attn2.to_q", 1)
    4
    """
    ends = {rf"(.*\.)?({pattern})$": value for pattern, value in (patterns or {}).items()}
    return ends.get((matcher or Matcher()).first_match(ends, layer), default)


def is_among(choice: str | set[str], layer: str, matcher: Matcher) -> bool:
    """Whether PEFT would choose the layer: by a regular expression, or by the ends of names."""
    if isinstance(choice, str):
        return matcher.first_match([choice], layer) is not None
    parts = [name.split(".") for name in spellings(layer)]
    return any(".".join(each[at:]) in choice for each in parts for at in range(len(each)))


def spellings(layer: str) -> set[str]:
    """Newer versions of transformers leave out "text_model."."""
    return {layer, layer.removeprefix("text_model.")}
