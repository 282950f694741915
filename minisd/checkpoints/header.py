"""The header of a .safetensors file: its tensors' types and shapes, and its metadata.

minisd's own files keep the config and the tokenizer in the metadata.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open

from minisd.checkpoints.first_bytes import cut_off_sentence, damage_sentence, is_safetensors
from minisd.checkpoints.validate import RANGES
from minisd.config import ModelConfig
from minisd.files.json_files import build_dataclass, parse_json
from minisd.files.one_line import name_errors
from minisd.tokenizer import Tokenizer

LARGEST_HEADER = 20 * 10**6  # bytes; a model's has 0.2 MB, and a LoRA's with all its captions a few
# As safetensors and as torch call them. The integers are positions and numbers of steps.
READABLE_DTYPES = r"[UI](8|16|32|64)|BF16|F(16|32|64)|F8_\w+|BOOL"
READABLE_DTYPES += r"|torch\.(u?int(8|16|32|64)|b?float(16|32|64)|float8_\w+|bool)"
MOST_TENSORS = 20_000  # SD v1 with its averaged weights has 2,000


def read_metadata(path: str | Path) -> dict[str, str]:
    """What the header of a .safetensors file says beside its tensors; {} for other files."""
    path = Path(path)
    return (read_header(path).get("__metadata__") or {}) if is_safetensors(path) else {}


def read_header(path: Path) -> dict:
    """The JSON at the head of a .safetensors file.

    Raises ValueError if the file is cut off, damaged, or holds tensors of unknown numbers.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, LARGEST_HEADER + 1))
    if 8 + length > size:
        raise ValueError(cut_off_sentence(path))
    try:
        content = parse_json(text, LARGEST_HEADER)
        said = {} if content.get("__metadata__") is None else content["__metadata__"]  # or null
        entries = {name: entry for name, entry in content.items() if name != "__metadata__"}
        end = 8 + length + max((each["data_offsets"][1] for each in entries.values()), default=0)
        dtypes = {name: str(entry["dtype"]) for name, entry in entries.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} has a damaged header: fetch it again.") from error
    except ValueError as error:
        raise ValueError(f"{path.name} has a damaged header, which {error}.") from error
    if end > size:
        raise ValueError(cut_off_sentence(path, end))
    with name_errors(path.name):
        check_header(said, dtypes)
    try:
        with safe_open(path, framework="pt"):  # it compares places, shapes and sizes
            return content
    except SafetensorError as error:
        raise ValueError(damage_sentence(path)) from error


def check_header(said: object, dtypes: dict[str, str]) -> None:
    """Raise ValueError for a header's __metadata__ or tensors that no model's file has."""
    if not isinstance(said, dict) or not all(isinstance(each, str) for each in said.values()):
        wrong = "whose __metadata__ is not names with texts, as the format demands"
        raise ValueError(f"has a header {wrong}: get another copy")
    if len(dtypes) > MOST_TENSORS:
        many = f"holds {len(dtypes):,} tensors, more than {MOST_TENSORS:,}"
        raise ValueError(f"{many}: get another copy")
    for name, dtype in dtypes.items():
        refuse_unreadable(name, dtype)


def refuse_unreadable(name: str, dtype: str) -> None:
    """Raise ValueError for numbers that no network computes with, such as complex ones."""
    if not re.fullmatch(READABLE_DTYPES, dtype):
        raise ValueError(f"holds {name} in {dtype.removeprefix('torch.')}: get it in float16")


def config_to_metadata(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """What load() needs beside the tensors. CLIP's vocabulary ships with the package: left out."""
    stored = {"format": "pt", "minisd": json.dumps(asdict(config))}
    usual = Tokenizer.clip()
    if tokenizer.words or (tokenizer.merges, tokenizer.ids) != (usual.merges, usual.ids):
        stored["tokenizer"] = tokenizer.to_json()
    return stored


def config_from_metadata(stored: dict[str, str]) -> tuple[ModelConfig, Tokenizer]:
    """Undo to_metadata. Raises ValueError for what a newer minisd wrote."""
    try:
        config = build_dataclass(ModelConfig, parse_json(stored["minisd"]), RANGES)
    except ValueError as error:
        what = "has a header that is damaged or of another version of minisd"
        raise ValueError(f"{what}: it {error}") from error
    if "tokenizer" in stored:
        return config, Tokenizer.from_json(stored["tokenizer"])
    return config, Tokenizer.clip(config.text.pad_token)


def sort_settings(path: Path) -> None:
    """Bring a header's settings into order: safetensors shuffles them, so that equal content would
    be other bytes each time.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, f"{path.name}: a header of {len(text)} bytes, not {length}"
        file.seek(8)
        file.write(text.ljust(length))
