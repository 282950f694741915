"""What stands where a file should: folders, devices, pipes, links, odd names, other kinds."""

import os
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from minisd.adapters.classifier import load_classifier
from minisd.adapters.controlnet import ControlNet
from minisd.checkpoints.load import load
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.vae_file import open_vae
from minisd.files.pictures import open_picture
from minisd.mini import judge
from minisd.mini.emoji import Emoji
from minisd.tokenizer import Tokenizer
from tests.fuzz import good
from tests.fuzz.case import Case, Printed, Reader
from tests.fuzz.edits import broken
from tests.fuzz.edits.text_edits import nasty
from tests.fuzz.judge import run_command
from tests.fuzz.readers.adapters import hypernetwork, lora, read_depth, textual_inversion
from tests.fuzz.readers.commands import everything
from tests.fuzz.readers.models import read_next_to
from tests.fuzz.readers.runs import read_run_file
from tests.fuzz.readers.text import read_infotext, read_prompt


def where_there_is_a_file(read: Callable) -> Callable:
    """For readers here that open the file themselves before minisd sees what is in it."""
    return lambda path: read(path) if path.is_file() and path.parts[1] != "proc" else None


READING = {
    "read": read_tensors,
    "load": load,
    "vae": open_vae,
    "lora": lambda path: lora(good.small_sd(), path).remove(),
    "word": lambda path: textual_inversion(good.small_sd(), path).remove(),
    "hypernetwork": lambda path: hypernetwork(good.small_sd(), path).remove(),
    "controlnet": ControlNet.load,
    "classifier": load_classifier,
    "judge": judge.load_judge,
    "depth": read_depth,
    "picture": open_picture,
    "tokenizer": Tokenizer.load,
    "emoji": Emoji.load,
    "prompt": where_there_is_a_file(read_prompt),
    "web UI": where_there_is_a_file(read_infotext),
    "yaml": where_there_is_a_file(read_next_to),
    "run": where_there_is_a_file(read_run_file),
    "info": lambda path: run_command(["info", str(path)]),
}
PLACES = ["folder", "absent", "empty", "loop"]
if os.name == "posix":
    PLACES += [
        "/dev/zero",
        "/dev/null",
        "/dev/stdin",
        "pipe",
        "/proc/self/mem",
        "/proc/self/maps",
        "dark",
    ]


@st.composite
def odd_places(draw: st.DrawFn) -> Case:
    """The name of a reader, what it finds, and how that is called."""
    reader, place = draw(st.sampled_from(sorted(READING))), draw(st.sampled_from(PLACES))
    name = (
        (nasty(draw).replace("\0", "").replace("/", "")[:40] or "x") if draw(st.booleans()) else "x"
    )
    ending = draw(st.sampled_from((".safetensors", ".ckpt", ".png", ".json", "")))
    text = f"{reader}\n{place}\n".encode() + (name + ending).encode("utf-8", "surrogatepass")
    return Case({"place.txt": text}, "place.txt")


def some_places() -> list[Case]:
    texts = [f"{reader}\n{place}\nx.pt" for reader in READING for place in PLACES[1:3]]
    return [Case({"place.txt": text.encode()}, "place.txt", refused=None) for text in texts]


def made(place: str, path: Path) -> Path:
    """Put the odd thing there."""
    if place.startswith("/"):
        return Path(place)
    if place == "folder":
        path.mkdir()
    elif place == "empty":
        path.write_bytes(b"")
    elif place == "loop":
        path.symlink_to(path)
    elif place == "pipe":
        os.mkfifo(path)
    elif place == "dark":
        path.write_bytes(b"{}")
        path.chmod(0)
    return path


def read_odd(path: Path) -> object:
    reader, place, name = path.read_bytes().decode("utf-8", "surrogateescape").split("\n", 2)
    folder = path.with_name("odd")
    folder.mkdir()
    try:
        found = made(place, folder / (name.replace("\0", "").replace("/", "") or "x"))
    except (OSError, ValueError):  # no such name is possible here
        return None
    result = READING[reader](found)
    return result if isinstance(result, Printed) else None


@st.composite
def wrong_kinds(draw: st.DrawFn) -> Case:
    """A file that another reader would take, good or broken."""
    case = draw(st.one_of(st.sampled_from(everything()), broken(everything())))
    reader = draw(st.sampled_from(sorted(READING)))
    return Case(case.files | {"reader.txt": f"{reader}\n{case.target}".encode()}, "reader.txt")


def some_wrong_kinds() -> list[Case]:
    """One harmless file through every reader."""
    file = {"a.pt": good.pickled({"a": good.word_vectors()})}
    return [
        Case(file | {"reader.txt": f"{reader}\na.pt".encode()}, "reader.txt", refused=None)
        for reader in READING
    ]


def read_as_another(path: Path) -> object:
    reader, target = path.read_text(encoding="utf-8").split("\n")
    result = READING[reader](path.with_name(target))
    return result if isinstance(result, Printed) else None


ODD_FILES = [
    Reader("odd places", some_places, odd_places, read_odd, named=False),
    Reader("wrong kinds", some_wrong_kinds, wrong_kinds, read_as_another, named=False),
]
