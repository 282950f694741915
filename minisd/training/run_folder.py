"""What a run keeps in its folder: state.pt, log.jsonl and, drawn from the log, loss.png."""

import hashlib
import io
import json
import os
import platform
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from minisd.files.json_files import check_value, parse_json
from minisd.files.whole_files import make_folder, written_whole
from minisd.training.parallel import from_first, place

KEYS = {"step", "seconds", "model", "average", "optimizers"}  # and "run", since runs describe it


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """ValueError, in place of an OSError that does not say what to do."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write into {folder} ({error.strerror}): make room there, then give the same "
            "command again to go on from the last whole checkpoint."
        ) from error


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep other trainings out of the folder, made if need be. A lock ends with its process.

    Of several processes that share the work the first takes it. The process that has it may take
    it again. On a disk without locks nobody is kept out; whether another machine's locks are seen
    depends on the network disk.

    ValueError, in each of the processes: another training is at work there.
    """
    make_folder(folder)
    lock, note = FileLock(folder / "in_use.lock", is_singleton=True), folder / "in_use.txt"
    first = place()[0] == 0
    if not from_first(float(take(lock)) if first else 0.0):
        whose = ""
        with suppress(OSError):  # it has ended meanwhile
            whose = f" ({note.read_text(encoding='utf-8', errors='replace')[:99]})"
        raise ValueError(
            f"another training{whose} is at work in {folder}: wait until it ends, or train into "
            "another folder."
        )
    try:
        if lock.lock_counter == 1:
            note.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            note.unlink(missing_ok=True)
            with suppress(OSError):  # Windows removes it when it is freed
                (folder / "in_use.lock").unlink()
            lock.release()
            with suppress(OSError):  # nothing was written into it
                folder.rmdir()
        elif lock.is_locked:
            lock.release()


def take(lock: FileLock) -> bool:
    """Whether nobody else holds the lock. On a disk without locks it is not taken."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError):
        pass
    return True


def save(folder: Path, state: dict) -> None:
    """Write the state beside the old one, then put it in its place in one move.

    A kill or a full disk leaves state.pt whole, the old or the new. No other process writes here
    meanwhile (in_use). ValueError: cannot be written.
    """
    whole = io.BytesIO()  # torch.save does not say why it could not write to a disk
    torch.save(state, whole)
    fresh = folder / "state.pt.new"
    with writing(folder):
        try:
            with open(fresh, "wb") as file:
                file.write(whole.getbuffer())
                file.flush()
                os.fsync(file.fileno())  # before the move: the machine itself may stop between
            os.replace(fresh, folder / "state.pt")
        finally:
            fresh.unlink(missing_ok=True)


def last_state(folder: Path) -> dict | None:
    """What was saved last, None where nothing was. ValueError: the file is damaged."""
    path = folder / "state.pt"
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip():  # torch.load compares no checksums
                raise ValueError("some bytes are others than those written")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if missing := KEYS - state.keys():
            raise ValueError(f"it lacks {missing}")
    except Exception as error:  # a damaged pickle can break its interpreter anywhere
        raise ValueError(
            f"{path} is damaged: delete it to begin anew, or restore a copy."
        ) from error
    return state


def refuse_another(folder: Path, before: dict, now: dict) -> None:
    """ValueError unless a run so described may go on as the run described now.

    Only recipe.steps may differ, and only be more: the rest of the run then follows the longer
    cosine, and its rate rises once, at the step where it goes on. The number of threads is no
    reason either: threads.py follows the recorded one where it can.
    """
    may_differ = {"threads"}
    if now["recipe.steps"] >= before["recipe.steps"]:
        may_differ.add("recipe.steps")
    shared = [name for name in before if name in now and name not in may_differ]
    parted = [
        f"{name} is {before[name]} there and {now[name]} here"
        for name in shared
        if before[name] != now[name]
    ]
    if parted:
        raise ValueError(
            f"the run in {folder} is another one: {'; '.join(parted)}. Train into another folder, "
            "or ask for the same again (steps alone may change, and only grow)."
        )


def fingerprint(network: nn.Module) -> str:
    """Eight letters that are others where any parameter is another."""
    numbers = hashlib.sha256()
    for parameter in network.parameters():
        numbers.update(parameter.detach().cpu().numpy().tobytes())
    return numbers.hexdigest()[:8]


def commit() -> str:
    """Which version of this code runs, as git names it; "unknown" outside a checkout."""
    asked = ("git", "-C", Path(__file__).parent, "rev-parse", "--short", "HEAD")
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def log(folder: Path, record: dict) -> None:
    """Append one line of numbers to log.jsonl. ValueError: it cannot be written.

    Where a full disk or a kill cut the last line off, this one begins on a line of its own.
    """
    with writing(folder), open(folder / "log.jsonl", "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            cut = file.read(1) != b"\n"
            file.write(b"\n" * cut)
        file.write(json.dumps(record).encode() + b"\n")


def logged(folder: Path) -> list[dict]:
    """The log's records by step, if any. A step that was done again after a kill counts once."""
    path, records = folder / "log.jsonl", {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        with suppress(ValueError):  # a full disk or a kill cut it off
            record = parse_json(line)
            check_value("record", record, dict)
            check_value("step", record.get("step"), int, (0, 10**9))
            records[record["step"]] = record
    return [records[step] for step in sorted(records)]


def plot_losses(folder: Path) -> None:
    """Draw every term of the logged loss over the steps, raw and smoothed, as loss.png."""
    from matplotlib.figure import Figure  # no pyplot: it would choose a backend for everyone

    records = logged(folder)
    if not records:
        return
    steps = [record["step"] for record in records]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in [name for name in records[-1] if name not in ("step", "seconds")]:
        values = np.array([record.get(name, np.nan) for record in records])
        (raw,) = axes.plot(steps, values, alpha=0.25)
        axes.plot(steps, smoothed(values), color=raw.get_color(), label=name)
    axes.set(yscale="log", xlabel="step", ylabel="loss", title=f"{folder.name}: terms of the loss")
    axes.legend()
    with written_whole(folder / "loss.png") as unfinished:
        figure.savefig(unfinished, dpi=120)


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each value's neighbourhood, a twentieth of all wide."""
    window = np.ones(len(values) // 20 + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
