"""Find the file of a LoRA, and read the settings that its tensors do not show.

These settings state which layers the LoRA changes, and the alpha of each layer. PEFT writes them
into adapter_config.json next to the weights. diffusers writes them into the header of the file
(lora_adapter_metadata). In the header, the name of a setting begins with the part of the model, as
in "unet.r".
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from time import thread_time
from typing import Any, TypeVar

import regex

from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.known_settings import settings_tables
from minisd.files.json_files import check_value, has_type, parse_json, read_json, shorten
from minisd.files.one_line import name_errors

ADAPTER_CONFIG = "adapter_config.json"
LORA_FILE_STEMS = ("adapter_model", "pytorch_lora_weights")  # in PEFT, and in diffusers
# Every field of PEFT's LoraConfig (peft/tuners/lora/config.py)
LORA_CONFIG = settings_tables()[ADAPTER_CONFIG]
LAYER_CHOICES = ("target_modules", "exclude_modules")
# Each of these settings is a dictionary: regular expression for names of layers -> number.
LAYER_NUMBERS = {"rank_pattern": int, "alpha_pattern": float}

# The most seconds that minisd spends on the patterns (regular expressions) of a file. Most files
# take 0.001 seconds. A pattern such as "(a+)+b" could take years.
PATIENCE = 3
LONGEST_PATTERN = 10_000  # characters
MOST_PATTERNS = 1_000  # Stable Diffusion has about 700 layers

Number = TypeVar("Number", int, float)


class Matcher:
    """Finds patterns (regular expressions) of one file that match the names of layers.

    All searches with the patterns of the file together may take at most PATIENCE seconds.
    """

    def __init__(self):
        self.left = PATIENCE

    def first_match(self, patterns: Iterable[str], layer: str) -> str | None:
        """Find the first pattern that matches the layer's name. None: no pattern matches.

        Raises ValueError if the time for this file is used up, or if a pattern is not valid.
        """
        names, begun = spellings(layer), thread_time()
        try:
            for pattern in patterns:
                compiled = compile_pattern(pattern)
                if any(compiled.fullmatch(name, timeout=self.left) for name in names):
                    return pattern
        except (TimeoutError, regex.error) as error:
            what = f"has patterns in its {ADAPTER_CONFIG} that take too long or are not valid"
            raise ValueError(f"{what}: replace them by the names of the layers") from error
        finally:
            self.left = max(self.left - (thread_time() - begun), 1e-6)
        return None


@dataclass(frozen=True)
class LoraSettings:
    """What one adapter_config.json or header states about the layers of a LoRA.

    The fields have PEFT's names.

    r, lora_alpha: the rank and the alpha of a layer that matches none of the patterns below
    use_rslora: whether the update has the factor alpha / sqrt(rank) instead of alpha / rank
    rank_pattern: pattern -> the rank of the layers whose names match the pattern
    alpha_pattern: pattern -> the alpha of the layers whose names match the pattern
    target_modules: the layers that the LoRA changes. This is a regular expression for their names,
        or a set of endings of their names
    exclude_modules: layers that the LoRA does not change although they are in target_modules. This
        is also a regular expression or a set of endings
    matcher: the object that compares the names of layers with the patterns
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int] | None
    alpha_pattern: Mapping[str, float] | None
    target_modules: str | set[str] | None
    exclude_modules: str | set[str] | None
    matcher: Matcher = field(default_factory=Matcher)

    def alpha_of(self, layer: str, rank: int) -> float:
        """The alpha of one layer. The update of the layer is alpha / rank * up @ down.

        layer: the layer's name in diffusers
        rank: the rank of the two matrices, up and down

        Raises ValueError if the settings state another rank, or leave out the layer.
        """
        stated = value_for_layer(self.rank_pattern, layer, self.r, self.matcher)
        if stated != rank:
            raise ValueError(f"has rank {rank}, but its settings say {stated}: get another copy")
        targets, excluded = self.target_modules, self.exclude_modules
        chosen = targets in (None, "all-linear") or is_among(targets, layer, self.matcher)
        if not chosen or is_among(excluded, layer, self.matcher):
            raise ValueError("is left out by target_modules or exclude_modules: get another copy")
        alpha = value_for_layer(self.alpha_pattern, layer, self.lora_alpha, self.matcher)
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


def find_lora_file(path: Path) -> Path:
    """Find the file of a LoRA.

    path: the file itself, or the folder into which PEFT or diffusers wrote the file

    Raises ValueError if the folder holds no such file, or a file of PEFT and a file of diffusers.
    """
    if not path.is_dir():
        return path
    names = [f"{stem}{ending}" for stem in LORA_FILE_STEMS for ending in (".safetensors", ".bin")]
    files = [path / name for name in names if (path / name).exists()]
    if len({file.stem for file in files}) != 1:
        what = f"{path} must hold one file named {' or '.join(LORA_FILE_STEMS)}"
        raise ValueError(f"{what}: give the path of the LoRA's file.")
    return files[0]


def read_lora_settings(path: Path, keys: Iterable[str]) -> list[tuple[str, LoraSettings]]:
    """Read the settings of a LoRA from adapter_config.json and from the LoRA's header.

    path: the file of the LoRA
    keys: the names of the file's tensors

    Returns a list of pairs: a part of the model, such as "unet", and the settings for this part. If
    the part is "", the settings are for the whole model.

    If the LoRA's file has one of the usual names (LORA_FILE_STEMS), an adapter_config.json in the
    same folder describes this LoRA. If the file has another name, the adapter_config.json may
    describe a different LoRA. minisd then accepts the file only if its header contains the
    settings, or if its tensors have kohya's names. (kohya stores each alpha as a tensor.)

    Raises ValueError if a setting is unknown, or if minisd cannot obey the setting.
    """
    places = list(header_settings(path).items())
    config = path.parent / ADAPTER_CONFIG
    if config.exists() and path.stem.startswith(LORA_FILE_STEMS):
        places.append(("", read_json(config)))
    elif config.exists() and not places and any("lora_A" in key for key in keys):
        what = f"{path.name} lies next to an {ADAPTER_CONFIG} that may describe another LoRA"
        way = f"name the LoRA {LORA_FILE_STEMS[0]}{path.suffix} if the two match, or move the LoRA"
        raise ValueError(f"{what}: {way}.")
    with name_errors(path.name):
        return [(part, parse_lora_config(fields)) for part, fields in places]


def header_settings(path: Path) -> dict[str, dict[str, object]]:
    """Read the settings in the header of a LoRA's file, without checking them.

    Returns a dictionary: part of the model -> settings for this part. A setting whose name does not
    begin with a part is under "".
    """
    parts: dict[str, dict[str, object]] = {}
    with name_errors(f"{path.name} has a damaged header: its lora_adapter_metadata"):
        stored = parse_json(read_metadata(path).get("lora_adapter_metadata", "{}"))
        check_value("lora_adapter_metadata", stored, dict)
    assert isinstance(stored, dict), "check_value has made sure of it"
    for key, value in stored.items():
        part, _, name = key.rpartition(".")
        if part not in ("", "unet", "text_encoder"):
            what = f"{path.name} has settings for a part named {shorten(part)[1:-1]}"
            raise ValueError(f"{what}: this LoRA is made for another kind of model.")
        parts.setdefault(part, {})[name] = value
    return parts


def parse_lora_config(stored: Mapping[str, object]) -> LoraSettings:
    """Check the settings of one adapter_config.json or header. Returns them as LoraSettings.

    Raises ValueError if a setting is unknown, or if its value makes no sense.
    """
    values: dict[str, Any] = LORA_CONFIG.read(stored)
    wrong = []
    for key, kind in LAYER_NUMBERS.items():
        numbers = values[key] or {}
        if len(numbers) > MOST_PATTERNS:
            raise ValueError(f"has more than {MOST_PATTERNS} entries in {key}: get another copy")
        if not all(is_pattern(one) and has_type(kind, number) for one, number in numbers.items()):
            wrong.append(key)
    for key in LAYER_CHOICES:
        if isinstance(values[key], str) and not is_pattern(values[key]):
            wrong.append(key)
        if isinstance(values[key], list):
            values[key] = set(values[key])
    if wrong:
        what = f"has {wrong[0]} = {shorten(values[wrong[0]])} in its {ADAPTER_CONFIG}"
        raise ValueError(f"{what}, but this value makes no sense: get another copy")
    return LoraSettings(**values)


def is_pattern(text: str) -> bool:
    """Whether a text is a valid regular expression in two modules: re and regex.

    PEFT uses re, and minisd uses regex.
    """
    try:
        return len(text) <= LONGEST_PATTERN and bool(re.compile(text)) and bool(regex.compile(text))
    except (re.error, regex.error, TypeError, OverflowError, RecursionError):
        return False


@lru_cache(maxsize=4 * MOST_PATTERNS)
def compile_pattern(pattern: str) -> regex.Pattern:
    return regex.compile(pattern)


def value_for_layer(
    values: Mapping[str, Number] | None, layer: str, default: Number, matcher: Matcher
) -> Number:
    """Find the first pattern that matches the end of a layer's name. Returns the pattern's value.

    values: pattern -> value
    layer: the layer's name
    default: the value that is returned if no pattern matches

    Source: get_pattern_key in PEFT.

    value_for_layer({"attn2.to_.": 4, "to_q": 8}, "mid_block.attn2.to_q", 1, Matcher()) -> 4
    """
    by_ending = {rf"(.*\.)?({pattern})$": value for pattern, value in (values or {}).items()}
    found = matcher.first_match(by_ending, layer)
    return default if found is None else by_ending[found]


def is_among(choice: str | set[str] | None, layer: str, matcher: Matcher) -> bool:
    """Whether a choice of layers contains the layer, according to the rules of PEFT.

    choice: a regular expression for names of layers, or a set of endings of names. None: no layers
    layer: the layer's name
    """
    if isinstance(choice, str):
        return matcher.first_match([choice], layer) is not None
    parts = [name.split(".") for name in spellings(layer)]
    return any(".".join(each[at:]) in (choice or ()) for each in parts for at in range(len(each)))


def spellings(layer: str) -> set[str]:
    """The layer's name with and without "text_model." at the beginning.

    Newer versions of transformers leave out "text_model.".
    """
    return {layer, layer.removeprefix("text_model.")}
