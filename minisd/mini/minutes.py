"""Train for a given time: measure the seconds per step, then choose the number of steps."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minisd.process.signals import Interrupted
from minisd.training.distributed import broadcast
from minisd.training.loop import Hyperparameters
from minisd.training.run_folder import last_state, log_records

TRIAL = 8  # steps
TrainIn = Callable[[Hyperparameters, Path], Any]  # (settings, folder) -> trained network


def check_minutes(minutes: float) -> None:
    """Raise ValueError if `minutes` is not a finite number above 0."""
    if not 0 < minutes < math.inf:
        raise ValueError(f"Cannot train for {minutes} minutes. Give a number above 0.")


def fit_to_minutes(
    settings: Hyperparameters, minutes: float, folder: Path, train_in: TrainIn
) -> Hyperparameters:
    """Choose how many steps to train in `minutes` minutes. Returns settings with this number.

    A short trial in a temporary folder measures the seconds per step. The minutes do not include
    the trial. If `folder` already holds a run, there is no trial. Then the settings get the number
    of steps of this run, so that the run can be resumed.

    folder: the folder of the run
    train_in: a function (settings, folder) that trains

    Raises ValueError if `minutes` is not a finite number above 0.
    """
    check_minutes(minutes)
    earlier_run = (last_state(folder) or {}).get("run")
    if earlier_run:
        steps = earlier_run["hyperparameters.steps"]
    else:
        steps = max(1, int(60 * minutes / seconds_per_step(settings, train_in)))
    return replace(
        settings,
        steps=steps,
        warmup=min(settings.warmup, steps // 10),
        save_every=min(settings.save_every, steps // 4 + 1),
        log_every=min(settings.log_every, steps // 50 + 1),
    )


def seconds_per_step(settings: Hyperparameters, train_in: TrainIn) -> float:
    """Train for a few steps in a temporary folder. Returns the seconds per step.

    The first two steps are slower, so they do not count.
    """
    with TemporaryDirectory() as scratch:
        try:
            train_in(replace(settings, steps=TRIAL, log_every=1), Path(scratch))
        except Interrupted as stop:
            sentence = "Stopped during the trial. Nothing has been trained yet."
            raise Interrupted(sentence, stop.number) from None
        at = [record["seconds"] for record in log_records(Path(scratch))]
    return broadcast(max((at[-1] - at[1]) / (len(at) - 2), 1e-4) if at else 0.0)
