"""Describe what a file of weights contains, without building a model from it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from minisd.checkpoints.cover import why_unneeded
from minisd.checkpoints.file_kinds import MODEL_KIND, advice_for, kind_of_tensors
from minisd.checkpoints.first_bytes import size_in_words
from minisd.checkpoints.load import locate, open_checkpoint
from minisd.checkpoints.names import is_v2
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.single_file_variants import holds_only_ema
from minisd.config import ModelConfig
from minisd.files.one_line import one_line

KNOWN_FILES = {"ours": "minisd's own single file", "original": "an original single file"}
LAYOUT_NAMES = {**KNOWN_FILES, "diffusers": "a diffusers folder"}


@dataclass(frozen=True)
class Info:
    """What a file or folder of weights contains.

    name: the name of the file or folder
    kind: the kind of the file, such as "LoRA"
    bytes: the size of the file, or of all files in the folder
    numbers: part of the model -> number of parameters
    tensors: dtype -> number of tensors
    use: a text that says how to use the file. None: the file is a whole model

    The next four fields are set only for a whole model.

    layout: the naming scheme of the tensors: "ours", "original" or "diffusers"
    config: the model's config
    known_by: where the file states whether the U-Net predicts eps or v, for example "the settings
        in its header". None: the file does not state it
    not_needed: a purpose of tensors that minisd does not need -> number of these tensors
    """

    name: str
    kind: str
    bytes: int
    numbers: dict[str, int]
    tensors: dict[str, int]
    use: str | None = None
    layout: str | None = None
    config: ModelConfig | None = None
    known_by: str | None = None
    not_needed: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        layout = f", {LAYOUT_NAMES[self.layout]}" if self.layout else ""
        rows = [("", f"{self.name}: {self.kind}{layout}, {size_in_words(self.bytes)}")]
        rows += [(part, f"{numbers:,} numbers") for part, numbers in self.numbers.items()]
        rows += [("stored as", f"{dtype}: {n} tensors") for dtype, n in self.tensors.items()]
        if self.config:
            rows += describe_sizes(self.config, self.known_by)
        rows += [("use", self.use)] if self.use else []
        rows += [("not needed", f"{what}: {n}") for what, n in self.not_needed.items()]
        lines = [f"  {name:<13} {text}" if name else text for name, text in rows]
        return "\n".join(map(one_line, lines))


def describe_sizes(config: ModelConfig, known_by: str | None) -> list[tuple[str, str]]:
    """Describe the U-Net and the pictures of a model. Returns rows, each with a name and a text.

    known_by: where the file states whether the U-Net predicts eps or v. None: the file does not
        state it
    """
    unstated = "eps or v: the file does not say which. load() will test the U-Net on noise"
    return [
        ("laid out as", "SD v2" if is_v2(config) else "SD v1"),
        ("input", f"{config.unet.in_channels} channels"),
        ("predicts", f"{config.schedule.prediction}, by {known_by}" if known_by else unstated),
        ("made for", f"{config.size} x {config.size} pixels"),
    ]


def inspect_source(source: str | Path) -> Info:
    """Describe any file of weights, or a diffusers folder, without building a network.

    Raises ValueError if `source` does not contain weights, or if it contains a model that load()
    refuses.
    """
    path = locate(source)
    tensors = read_tensors(path) if path.is_file() else {}
    kind = kind_of_tensors(tensors) if path.is_file() else MODEL_KIND
    if kind != MODEL_KIND:
        return replace(count_contents(path, kind, {"in all": tensors}), use=advice_for(tensors))
    checkpoint = open_checkpoint(path, ema=holds_only_ema(tensors))
    purposes = [str(why_unneeded(key, checkpoint.config)) for key in checkpoint.not_needed]
    return replace(
        count_contents(path, kind, checkpoint.parts),
        layout=checkpoint.layout,
        config=checkpoint.config,
        known_by=checkpoint.known_by,
        not_needed=count_names(purposes),
    )


def count_contents(path: Path, kind: str, parts: Mapping[str, Mapping[str, Tensor]]) -> Info:
    """Find the size of a file or folder, and count its parameters and tensors.

    kind: the kind of the file, such as "LoRA"
    parts: part of the model -> tensors of this part
    """
    stored = [tensor for part in parts.values() for tensor in part.values()]
    dtypes = count_names(str(tensor.dtype).removeprefix("torch.") for tensor in stored)
    numbers = {name: sum(t.numel() for t in part.values()) for name, part in parts.items()}
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return Info(path.name, kind, size, numbers, dtypes)


def count_names(names: Iterable[str]) -> dict[str, int]:
    """Count how often each name occurs. Returns a dictionary: name -> count.

    The most frequent name comes first.
    """
    return dict(Counter(names).most_common())
