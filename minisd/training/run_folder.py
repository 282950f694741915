"""Read and write the files in a run's folder: state.pt, log.jsonl and loss.png.

state.pt holds everything that is needed to resume the run. log.jsonl holds the losses, and loss.png
is a plot of them.
"""

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
from torch.optim import Optimizer

from minisd.files.json_files import check_value, parse_json
from minisd.files.whole_files import make_folder, written_whole
from minisd.training.distributed import broadcast, rank_and_world_size
from minisd.training.muon import Muon

FORMAT = 2  # of state.pt. A file of format 1 does not contain the number of its format
STATE = {  # the entries of a state
    "format": int,
    "step": int,
    "seconds": float,
    "run": dict,
    "processes": int,
    "model": dict,
    "ema": dict,
    "optimizers": list,
}
RUN = {"hyperparameters.steps": int, "threads": int, "commit": str}  # every run has these entries
FORMAT_1 = {"step", "model", "average", "optimizers"}  # every state of format 1 has these entries
MOMENTS = {Muon: {"momentum"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock the folder, so that no other training uses it. Makes the folder if it does not exist.

    Rank 0 takes the lock for all processes of a training. A process that has the lock may take the
    lock again. When a process ends, the system releases its lock.

    If the disk does not support locks, two trainings can use the same folder. On a network disk, a
    training may not see the locks of other machines.

    Raises ValueError in every process if another training uses the folder.
    """
    make_folder(folder)
    lock, note = FileLock(folder / "in_use.lock", is_singleton=True), folder / "in_use.txt"
    first = rank_and_world_size()[0] == 0
    if not broadcast(float(acquire(lock)) if first else 0.0):
        owner = ""
        with suppress(OSError):  # the file is gone if the other training has just ended
            owner = f" ({note.read_text(encoding='utf-8', errors='replace')[:99]})"
        raise ValueError(
            f"Another training{owner} uses {folder}. Wait until it ends, or train in another "
            "folder."
        )
    try:
        if lock.lock_counter == 1:
            note.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            note.unlink(missing_ok=True)
            with suppress(OSError):  # Windows removes the file when the lock is released
                (folder / "in_use.lock").unlink()
            lock.release()
            with suppress(OSError):  # remove the folder if nothing was written into it
                folder.rmdir()
        elif lock.is_locked:
            lock.release()


def acquire(lock: FileLock) -> bool:
    """Take the lock. Returns False if another process holds the lock.

    If the disk does not support locks, always returns True.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError):
        pass
    return True


def save_state(folder: Path, state: dict) -> None:
    """Replace state.pt by a file with the new state.

    If the process is killed, or if an error occurs, state.pt holds the complete old state or the
    complete new state.

    Raises ValueError if state.pt cannot be written.
    """
    content = io.BytesIO()  # when torch.save writes to a full disk, it hides the reason
    torch.save(state, content)
    with written_whole(folder / "state.pt") as unfinished:
        unfinished.write_bytes(content.getbuffer())


def last_state(folder: Path) -> dict | None:
    """Read the last saved state. Returns None if no state was saved.

    Raises ValueError if state.pt is damaged, or if another version of minisd wrote it in another
    format.
    """
    path = folder / "state.pt"
    if not path.exists():
        return None
    with report_damage(path):
        with zipfile.ZipFile(path) as file:
            if file.testzip():  # torch.load does not check checksums
                raise ValueError("the bytes do not fit their checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("the file does not hold a dictionary")
        version = state.get("format", 1 if state.keys() >= FORMAT_1 else FORMAT)
        if not isinstance(version, int) or version == FORMAT:
            check_state(state)
    if version != FORMAT:
        age = "an earlier" if version < FORMAT else "a later"
        raise ValueError(
            f"{path} was written by {age} version of minisd, which used other random numbers. "
            f"Train in another folder, or delete {folder} to start over."
        )
    return state


def check_state(state: dict) -> None:
    """Raise ValueError if an entry of the state is missing, or has a wrong type or value."""
    for values, kinds in ((state, STATE), (state["run"], RUN)):
        for name, kind in kinds.items():
            if not isinstance(values.get(name), kind):
                raise ValueError(f"{name} is {type(values.get(name))}, not {kind.__name__}")
    for name, value, most in (
        ("step", state["step"] + 1, 2**40),
        ("seconds", state["seconds"] + 1, 2**40),
        ("processes", state["processes"], 2**20),
        ("threads", state["run"]["threads"], 2**10),
        ("steps", state["run"]["hyperparameters.steps"], 2**40),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name} is out of range")
    json.dumps(state["run"])  # fails if a value is not plain, for example a tensor


@contextmanager
def report_damage(path: Path) -> Iterator[None]:
    """Turn every error inside the `with` block into a ValueError that says the file is damaged.

    A damaged state can cause errors of many types.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path} is damaged. Delete it to start over, or restore a copy."
        ) from error


def state_of(
    step: int, seconds: float, about: dict, model: nn.Module, ema: nn.Module, optimizers: list
) -> dict:
    """Collect the state: everything that is needed to resume a run. STATE lists the entries."""
    return {
        "format": FORMAT,
        "step": step,
        "seconds": seconds,
        "run": about,
        "processes": rank_and_world_size()[1],
        "model": model.state_dict(),
        "ema": ema.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }


def resume(
    folder: Path, about: dict, model: nn.Module, ema: nn.Module, optimizers: list[Optimizer]
) -> tuple[int, float, str]:
    """Fill the networks and the optimizers from the last saved state, if there is one.

    Returns the number of steps that are done, the seconds of training so far, and the commit (the
    version of this code) with which the run began.

    about: the settings of the new run

    Raises ValueError if the state is damaged, or if it comes from a run with other settings or from
    another model.
    """
    state = last_state(folder)
    if state is None:
        return 0, 0.0, commit()
    path = folder / "state.pt"
    refuse_another_run(folder, state["run"], about)
    fill_network(model, state["model"], path)
    fill_network(ema, state["ema"], path)
    with report_damage(path):
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            fill_optimizer(optimizer, saved)
    return state["step"], state["seconds"], state["run"]["commit"]


def fill_network(network: nn.Module, weights: dict, path: Path) -> None:
    """Fill the network with the weights of a state.pt.

    path: the path of state.pt, for error messages

    Raises ValueError if the weights are damaged, or if their shapes do not fit the network.
    """
    own = network.state_dict()
    with report_damage(path):
        if weights.keys() != own.keys() or not all(map(torch.is_tensor, weights.values())):
            raise ValueError("a weight is missing, unknown or not a tensor")
    if any(weights[name].shape != tensor.shape for name, tensor in own.items()):
        raise ValueError(
            f"The weights in {path} have other shapes than those of this model. Train in another "
            f"folder, or delete {path.parent} to start over."
        )
    network.load_state_dict(weights)


def fill_optimizer(optimizer: Optimizer, saved: dict) -> None:
    """Fill the optimizer with the saved moments (averages of the gradients and of their squares).

    The settings of the optimizer, such as its rate, do not change.

    If the moments do not belong to the optimizer's parameters, raises an error of any type.
    """
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [g["params"] for g in groups]:
        raise ValueError("the saved optimizer has other parameters")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    parameters = set(optimizer.param_groups[0]["params"])
    for parameter, moments in optimizer.state.items():
        if parameter not in parameters or moments.keys() != MOMENTS[type(optimizer)]:
            raise ValueError("a moment is missing or unknown")
        for name, value in moments.items():
            if value.shape != (() if name == "step" else parameter.shape):
                raise ValueError(f"{name} and its parameter have different shapes")


def refuse_another_run(folder: Path, before: dict, now: dict) -> None:
    """Raise ValueError if the saved run may not be resumed with the new settings.

    before: the settings of the saved run
    now: the new settings

    The new number of steps may be larger. Then the learning rate follows a longer cosine, so it
    jumps up at the step where the run is resumed. The number of threads may also differ: if
    possible, threads.py uses the number that the saved run recorded.
    """
    may_differ = {"threads"}
    if now["hyperparameters.steps"] >= before["hyperparameters.steps"]:
        may_differ.add("hyperparameters.steps")
    shared = [name for name in before if name in now and name not in may_differ]
    differences = [
        f"{name} was {before[name]} and is now {now[name]}"
        for name in shared
        if before[name] != now[name]
    ]
    if differences:
        raise ValueError(
            f"The run in {folder} has other settings: {'; '.join(differences)}. Train in another "
            "folder, or give the same settings again. Only the number of steps may become larger."
        )


def commit() -> str:
    """The git commit of this code, or "unknown" if the code is not in a git repository."""
    command = ("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def log(folder: Path, record: dict) -> None:
    """Append one record to log.jsonl, as one line.

    The last line is incomplete if the disk was full, or if the process was killed. Even then, the
    new record starts on a new line.

    record: name -> number

    Raises ValueError if the record cannot be written.
    """
    try:
        with open(folder / "log.jsonl", "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                cut_off = file.read(1) != b"\n"
                file.write(b"\n" * cut_off)
            file.write(json.dumps(record).encode() + b"\n")
    except OSError as error:
        raise ValueError(
            f"Cannot write into {folder} ({error.strerror}). Free some disk space, then give the "
            "same command again to go on from the last checkpoint."
        ) from error


def log_records(folder: Path) -> list[dict]:
    """Read the records of the log, in the order of the steps.

    If the log has several records of a step, only the last of them is returned.
    """
    path, records = folder / "log.jsonl", {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        with suppress(ValueError):  # the disk was full, or the process was killed
            record = parse_json(line)
            if isinstance(record, dict):
                check_value("step", record.get("step"), int, (0, 10**9))
                records[record["step"]] = record
    return [records[step] for step in sorted(records)]


def plot_losses(folder: Path) -> None:
    """Draw loss.png: each term of the loss over the steps, raw and smoothed."""
    from matplotlib.figure import Figure  # pyplot would choose a backend for the whole process

    records = log_records(folder)
    if not records:
        return
    steps = [record["step"] for record in records]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in [name for name in records[-1] if name not in ("step", "seconds")]:
        values = np.array([record.get(name, np.nan) for record in records])
        (raw,) = axes.plot(steps, values, alpha=0.25)
        axes.plot(steps, moving_average(values), color=raw.get_color(), label=name)
    axes.set(yscale="log", xlabel="step", ylabel="loss", title=f"{folder.name}: terms of the loss")
    axes.legend()
    with written_whole(folder / "loss.png") as unfinished:
        figure.savefig(unfinished, dpi=120)


def moving_average(values: np.ndarray) -> np.ndarray:
    """Replace each value by the mean of the value and its neighbours.

    Each mean is over about a twentieth of all values.
    """
    window = np.ones(len(values) // 20 + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
