"""Read and write the header of a .safetensors file: the types and shapes of tensors, and metadata.

minisd's own files keep their config and tokenizer in the metadata.
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

# The most bytes of a header. A model needs 0.2 MB. A LoRA whose header lists the captions of its
# training pictures needs a few MB.
LARGEST_HEADER = 20 * 10**6
# The names of the dtypes that minisd can read, first in safetensors and then in torch. Models also
# contain integers: positions, and numbers of training steps.
READABLE_DTYPES = r"[UI](8|16|32|64)|BF16|F(16|32|64)|F8_\w+|BOOL"
READABLE_DTYPES += r"|torch\.(u?int(8|16|32|64)|b?float(16|32|64)|float8_\w+|bool)"
MOST_TENSORS = 20_000  # SD v1 has 2,000, with its averaged weights


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata in the header of a .safetensors file.

    If the file has another format, or has no metadata, returns {}.
    """
    path = Path(path)
    return (read_header(path).get("__metadata__") or {}) if is_safetensors(path) else {}


def read_header(path: Path) -> dict:
    """Read the header of a .safetensors file: the JSON at the start of the file.

    Raises ValueError if the file is cut off or damaged, or has tensors of an unknown dtype.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, LARGEST_HEADER + 1))
    if 8 + length > size:
        raise ValueError(cut_off_sentence(path))
    try:
        content = parse_json(text, LARGEST_HEADER)
        if not isinstance(content, dict):
            raise TypeError("not a dictionary")
        metadata = content.get("__metadata__")
        entries = {name: entry for name, entry in content.items() if name != "__metadata__"}
        end = 8 + length + max((each["data_offsets"][1] for each in entries.values()), default=0)
        dtypes = {name: str(entry["dtype"]) for name, entry in entries.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} has a damaged header: fetch it again.") from error
    except ValueError as error:
        raise ValueError(f"{path.name} has a damaged header: it {error}.") from error
    if end > size:
        raise ValueError(cut_off_sentence(path, end))
    with name_errors(path.name):
        check_header({} if metadata is None else metadata, dtypes)
    try:
        with safe_open(path, framework="pt"):  # safetensors checks positions and shapes
            return content
    except SafetensorError as error:
        raise ValueError(damage_sentence(path)) from error


def check_header(metadata: object, dtypes: dict[str, str]) -> None:
    """Raise ValueError if the metadata are damaged, or if minisd cannot read the tensors.

    metadata: the value of __metadata__ in the header
    dtypes: name of a tensor -> dtype of the tensor
    """
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        what = "has a header whose __metadata__ is not a list of names and texts"
        raise ValueError(f"{what}: get another copy")
    if len(dtypes) > MOST_TENSORS:
        many = f"holds {len(dtypes):,} tensors, but minisd reads at most {MOST_TENSORS:,}"
        raise ValueError(f"{many}: get another copy")
    for name, dtype in dtypes.items():
        refuse_unreadable(name, dtype)


def refuse_unreadable(name: str, dtype: str) -> None:
    """Raise ValueError if no network uses tensors of this dtype, such as complex64.

    name: the name of the tensor, for the error
    """
    if not re.fullmatch(READABLE_DTYPES, dtype):
        what = f"holds the tensor {name} in {dtype.removeprefix('torch.')}, which minisd cannot use"
        raise ValueError(f"{what}: get the same file in float16")


def config_to_metadata(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """The metadata of a file that minisd writes: the config and the tokenizer as texts.

    CLIP's own tokenizer is left out, because minisd already contains this tokenizer.
    """
    stored = {"format": "pt", "minisd": json.dumps(asdict(config))}
    usual = Tokenizer.clip()
    if tokenizer.words or (tokenizer.merges, tokenizer.ids) != (usual.merges, usual.ids):
        stored["tokenizer"] = tokenizer.to_json()
    return stored


def config_from_metadata(stored: dict[str, str]) -> tuple[ModelConfig, Tokenizer]:
    """Read the config and the tokenizer in the metadata. The inverse of config_to_metadata.

    stored: the metadata of a file that minisd wrote

    Raises ValueError if the metadata are damaged, or if another version of minisd wrote them.
    """
    try:
        config = build_dataclass(ModelConfig, parse_json(stored["minisd"]), RANGES)
    except ValueError as error:
        what = "has a header that is damaged, or that another version of minisd wrote"
        raise ValueError(f"{what}: the header {error}") from error
    if "tokenizer" in stored:
        return config, Tokenizer.from_json(stored["tokenizer"])
    return config, Tokenizer.clip(config.text.pad_token)


def sort_settings(path: Path) -> None:
    """Sort the metadata in a file's header by name.

    safetensors writes the metadata in random order. Without this function, two files with the same
    content would have different bytes.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, f"{path.name}: a header of {len(text)} bytes, not {length}"
        file.seek(8)
        file.write(text.ljust(length))
