"""Run one stage of `minisd train`: lock the folder, set the threads, choose the output file.

A stage is the word after `minisd train`, for example `vae`.
"""

import signal
from dataclasses import replace
from pathlib import Path

from minisd.files.whole_files import make_folder
from minisd.mini.job import Job, export, mini_tokenizer
from minisd.mini.recipes import train_recipe
from minisd.process.signals import Interrupted
from minisd.training.distributed import rank_and_world_size
from minisd.training.run_folder import lock_folder
from minisd.training.threads import threads_of

STARTS_WITH = {"depth": "estimator"}  # a stage that runs two trainings -> its first training


def default_output(stage: str, folder: Path) -> Path:
    """The path of the file that a stage writes if -o is not given.

    The stage `export` writes into the run folder. Each other stage writes into its own folder
    inside the run folder.

    folder: the run folder
    """
    if stage == "export":
        return folder / "mini.safetensors"
    return folder / stage / (stage + (".pt" if stage == "hypernetwork" else ".safetensors"))


def with_default_output(stage: str, job: Job) -> Job:
    """If the job has no output file, choose one, and make its folder. Returns the new job."""
    if job.output is not None:
        return job
    output = default_output(stage, job.folder)
    make_folder(output.parent)
    return replace(job, output=output)


def run_stage(stage: str, job: Job) -> None:
    """Run one stage. A resumed training gets the number of threads that it began with.

    If torchrun started several processes, only the process of rank 0 writes the file.

    Raises ValueError if another training uses the stage's folder.
    Raises Interrupted on ctrl-C, SIGTERM or SIGHUP, also before the first step and after the last
        step.
    """
    if stage == "tokenizer":
        mini_tokenizer(job.folder)
        return
    if stage == "export":
        export(job)
        return
    run = job.folder / STARTS_WITH.get(stage, stage)
    job = job if rank_and_world_size()[0] == 0 else replace(job, output=None)
    try:
        with lock_folder(job.folder / stage), threads_of(run):
            train_recipe(stage, job)
    except KeyboardInterrupt as stop:
        if str(stop):  # the training has saved its state, and the text says so
            raise
        raise Interrupted(resume_message(run), getattr(stop, "number", signal.SIGINT)) from None


def resume_message(run: Path) -> str:
    """The message for a stage that was stopped before the first step or after the last step."""
    if (run / "state.pt").exists():
        return f"Stopped. The last checkpoint is in {run}. Give the same command again to go on."
    return "Stopped before the first checkpoint. Give the same command again to start over."
