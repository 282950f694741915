"""What minisd itself left in folders and finds there later: runs, notes, training data."""

import json
from pathlib import Path

from torch import nn

from minisd.checkpoints import registry as official
from minisd.cli.file_hashes import known_hashes
from minisd.mini.emoji import Emoji
from minisd.mini.job import training_notes
from minisd.tokenizer import Tokenizer
from minisd.training.loop import Hyperparameters, create_optimizers, description
from minisd.training.run_folder import log_records, resume
from minisd.training.threads import threads_of
from tests.fuzz import good
from tests.fuzz.case import Case, Reader
from tests.fuzz.edits import broken


def runs() -> list[Case]:
    return [Case(good.run_folder(), "run")]


def read_run(path: Path) -> None:
    """All that a training asks of its folder before it goes on."""
    Tokenizer.load(path / "tokenizer.json")
    log_records(path)
    if not (path / "state.pt").exists():  # a new run: it would ask git for the commit
        return
    with threads_of(path):
        model, ema = nn.Linear(2, 2), nn.Linear(2, 2)
        settings = Hyperparameters(steps=4, rate=0.1)
        optimizers = create_optimizers(model, settings)
        resume(path, description(settings, dict(good.RUN)), model, ema, optimizers)
        training_notes(path.name, path.parent)


def read_run_file(path: Path) -> None:
    """A file in the place that a run's folder has for its kind, among good ones."""
    kinds = {".ckpt": "run/state.pt", ".pt": "run/state.pt", ".json": "run/tokenizer.json"}
    broken_one = kinds.get(path.suffix, "run/log.jsonl")
    for name, content in good.run_folder().items():
        file = path.with_name("other") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.read_bytes() if name == broken_one else content)
    read_run(path.with_name("other") / "run")


def notes() -> list[Case]:
    name = "sd21-depth" if "sd21-depth" in official.OFFICIAL else next(iter(official.OFFICIAL))
    note = {"repository": "a/b", "revision": "c", "sha256": "d" * 64}
    hashes = {"/some/file 1 2": "e" * 64}
    return [
        Case(
            {
                f"{name}/{official.NOTE_FILE}": json.dumps(note).encode(),
                "hashes.json": json.dumps(hashes).encode(),
            },
            "",
        )
    ]


def read_notes(path: Path) -> None:
    """The hashes of large files, and what was noted about a download."""
    known_hashes(path / "hashes.json")
    for note in path.glob(f"*/{official.NOTE_FILE}"):
        official.read_json(note)


def drawings() -> list[Case]:
    return [Case({"e.safetensors": good.cut_outs()}, "e.safetensors")]


RUNS = [
    Reader("run folder", runs, lambda: broken(runs()), read_run, share=1.5),
    Reader("download notes", notes, lambda: broken(notes()), read_notes),
    Reader("training pictures", drawings, lambda: broken(drawings()), Emoji.load),
]
