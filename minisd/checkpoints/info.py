"""What is in a file of weights: for whoever has one, or wonders why it does not load."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

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
    """What a file or folder of weights holds. The fields with defaults are for whole models.

    numbers: how many, by part    tensors: how many, by dtype    not_needed: how many, by use
    known_by: where it is said what the U-Net predicts; None if nowhere
    use: what to do with the file, for all but whole models
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
    """What the sizes mean, in rows of a name and a text."""
    unsaid = "eps or v: no word of it; loading tries it on noise"
    return [
        ("laid out as", "SD v2" if is_v2(config) else "SD v1"),
        ("input", f"{config.unet.in_channels} channels"),
        ("predicts", f"{config.schedule.prediction}, by {known_by}" if known_by else unsaid),
        ("made for", f"{config.size} x {config.size} pixels"),
    ]


def inspect_source(source: str | Path) -> Info:
    """Look into any file of weights, or a diffusers folder, without building anything.

    Raises ValueError for what is no file of weights, or is a model that would not load.
    """
    path, averaged, what = locate(source), False, MODEL_KIND
    if path.is_file():
        tensors = read_tensors(path)
        what, averaged = kind_of_tensors(tensors), holds_only_ema(tensors)
    if what != MODEL_KIND:
        parts, more = {"in all": tensors}, {"use": advice_for(tensors)}
    else:
        checkpoint = open_checkpoint(path, ema=averaged)
        about = {name: getattr(checkpoint, name) for name in ("layout", "config", "known_by")}
        unused = count_names(why_unneeded(key, checkpoint.config) for key in checkpoint.not_needed)
        parts, more = checkpoint.parts, {**about, "not_needed": unused}
    stored = [tensor for part in parts.values() for tensor in part.values()]
    dtypes = count_names(str(tensor.dtype).removeprefix("torch.") for tensor in stored)
    numbers = {name: sum(t.numel() for t in part.values()) for name, part in parts.items()}
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return Info(path.name, what, size, numbers, dtypes, **more)


def count_names(names: Iterable[str]) -> dict[str, int]:
    """How often each name is there, the most frequent first."""
    return dict(Counter(names).most_common())
