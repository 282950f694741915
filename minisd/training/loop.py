"""The loop that every training uses: train(), and what happens before and after its steps.

All random numbers of a step depend only on the seed and the number of the step. So a run that was
stopped and resumed gives the same result as a run without a break. If the run is killed, the last
few seconds of work are lost. After ctrl-C, nothing is lost (process/signals.py). Several processes
can share the work (distributed.py).
"""

import copy
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from minisd.checkpoints.finite import is_finite
from minisd.process.signals import Interrupted, StopRequest, stop_request
from minisd.training import run_folder
from minisd.training.distributed import (
    any_process,
    barrier,
    mean_over_processes,
    rank_and_world_size,
    shard_size,
    share_gradients,
)
from minisd.training.muon import Muon, split_for_muon
from minisd.training.threads import threads_of

# is_due() asks for a checkpoint after 5 seconds at the earliest. save_every adds more checkpoints.
SAVE_SECONDS = 5
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Hyperparameters:
    """How long and how fast to train.

    There are two learning rates: `rate` and `adam_rate`. Both first rise linearly. Then both fall
    along half a cosine wave.
    """

    steps: int
    rate: float = 0.05  # of Muon, for the matrices of hidden layers
    adam_rate: float = 2e-3  # of AdamW, for everything else
    warmup: int = 100  # steps
    final: float = 0.01  # the last rate / the highest rate
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # the share of the old average that stays at each step
    save_every: int = 500  # steps
    log_every: int = 50  # steps

    def rate_factor(self, step: int) -> float:
        """The factor by which both learning rates are multiplied at this step, 0 … 1."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class Draw:
    """The part of a batch that one process draws in one step.

    number: the number of this part. Each part of each step has its own number
    batch_size: the number of examples in this part
    generator: the source of all random numbers for this part
    """

    number: int
    batch_size: int
    generator: torch.Generator


class LossModule(nn.Module):
    """A module whose forward pass computes the loss of a model.

    DistributedDataParallel can only share the gradients if it calls the forward pass itself.
    """

    def __init__(self, model: nn.Module, loss_at: Callable[[Draw], dict[str, Tensor]]):
        super().__init__()
        self.model = model
        self.loss_at = loss_at

    def forward(self, draw: Draw) -> dict[str, Tensor]:
        return self.loss_at(draw)


def train(
    model: Model,
    loss_at: Callable[[Draw], dict[str, Tensor]],
    settings: Hyperparameters,
    folder: Path,
    batch_size: int,
    seed: int,
    about: dict,
) -> Model:
    """Train a model until settings.steps steps are done. Returns a copy with the EMA weights.

    If the folder holds a checkpoint, the training continues from the checkpoint. Writes state.pt,
    log.jsonl and loss.png into the folder.

    loss_at: a function that takes a Draw, and computes the loss of the model for this Draw. It
        returns a dictionary: name -> term of the loss
    batch_size: the number of examples in a batch, for all processes together
    about: name -> plain value, such as the sizes of the network. A run can only be resumed with the
        same values

    Raises ValueError if the folder cannot be written, if another training uses the folder, or if
        the run in the folder cannot be resumed. Also raises ValueError if the loss, the gradient or
        a weight is not finite. After an error, the last checkpoint is unchanged.
    Raises Interrupted on ctrl-C, SIGTERM or SIGHUP. Before that, saves the state after the last
        complete step.
    """
    about = {**about, "batch_size": batch_size, "seed": seed}
    with open_run(model, settings, folder, about) as run:
        own_size = shard_size(batch_size)
        compute_terms = share_gradients(LossModule(model, loss_at))
        for step in run.steps:
            set_rates(run.optimizers, settings, step)
            for optimizer in run.optimizers:
                optimizer.zero_grad()
            # MATH, because the backward pass of the fused kernel is twice as slow on a CPU
            with fast_precision(), sdpa_kernel(SDPBackend.MATH):
                terms = compute_terms(draw_at(step, own_size, seed))
            loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            check_finite(terms, norm, step)
            with fast_precision():  # Muon mostly multiplies matrices; rounding them does no harm
                for optimizer in run.optimizers:
                    optimizer.step()
            update_ema(run.ema, model, keep=min(settings.ema, (1 + step) / (10 + step)))
            run.end_step(terms)
    return run.ema


def draw_at(step: int, own_size: int, seed: int) -> Draw:
    """Describe the part of a batch that this process draws in one step.

    own_size: the number of examples in this part
    """
    rank, world_size = rank_and_world_size()
    number = step * world_size + rank
    return Draw(number, own_size, generator_at(seed, number))


def generator_at(seed: int, number: int) -> torch.Generator:
    """Create a random generator. The random numbers depend only on `seed` and `number`.

    number: the number of a batch, or of a part of a batch (see Draw)
    """
    return torch.Generator().manual_seed(1_000_003 * seed + number)


def fast_precision() -> torch.autocast | nullcontext:
    """A context that computes in bfloat16 if the processor supports it, otherwise in float32."""
    if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def create_optimizers(model: nn.Module, settings: Hyperparameters) -> list[torch.optim.Optimizer]:
    """Create Muon for the matrices of hidden layers, and AdamW for all other parameters.

    One of the two optimizers may have no parameters.
    """
    hidden, others = split_for_muon(model)
    decay = settings.weight_decay
    muon = Muon([{"params": hidden}], settings.rate, weight_decay=decay)
    adam = torch.optim.AdamW(
        [{"params": others}], settings.adam_rate, betas=(0.9, 0.99), weight_decay=decay, fused=True
    )
    return [muon, adam]


def set_rates(
    optimizers: list[torch.optim.Optimizer], settings: Hyperparameters, step: int
) -> None:
    """Give each optimizer its learning rate for this step."""
    for optimizer, rate in zip(optimizers, (settings.rate, settings.adam_rate), strict=True):
        optimizer.param_groups[0]["lr"] = rate * settings.rate_factor(step)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, keep: float) -> None:
    """Set ema to keep * ema + (1 - keep) * model, for every parameter."""
    for slow, fast in zip(ema.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)


def check_finite(terms: dict[str, Tensor], norm: Tensor, step: int) -> None:
    """Raise ValueError in every process if the loss or the gradient is not finite."""
    means = {f"the loss {name}": mean_over_processes(term).item() for name, term in terms.items()}
    found = {**means, "the norm of the gradient": norm.item()}
    broken = [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(divergence_message(step, " and ".join(broken)))


def divergence_message(step: int, what: str) -> str:
    """The error message of a run in which a number is NaN or infinite."""
    return (
        f"The training failed at step {step}: {what}. The last checkpoint is from an earlier step. "
        "Train in another folder, with a lower rate or another seed."
    )


# ---- around the steps: resume, log, save, stop ---------------------------------------------------


@dataclass
class Run(Generic[Model]):
    """A training, and the folder that holds its state and log.

    about: name -> plain value, everything that defines this run
    steps: a progress bar that yields the numbers of the steps that are left
    done: the number of steps that are done
    began: the value of time.monotonic() when this process began the run or resumed it, minus the
        seconds of training in earlier processes
    saved: the value of time.monotonic() when the last checkpoint was written
    cost: the number of seconds that it took to write the last checkpoint
    request: records a signal that asks the training to stop
    """

    folder: Path
    settings: Hyperparameters
    about: dict
    model: Model
    ema: Model
    optimizers: list[torch.optim.Optimizer]
    steps: tqdm
    done: int
    began: float
    saved: float
    cost: float = 0.0
    request: StopRequest = field(default_factory=StopRequest)

    def seconds(self) -> float:
        """The seconds of training so far. The time between a stop and a resume does not count."""
        return round(time.monotonic() - self.began, 3)

    def end_step(self, terms: dict[str, Tensor]) -> None:
        """End a step: write the log and a checkpoint, if it is time to do so.

        Stops the training if any process was asked to stop.
        """
        if self.done % self.settings.log_every == 0:
            self.log(terms)
        self.done += 1
        asked, due = any_process(self.request.number is not None, self.is_due())
        if asked:
            self.stop(self.request.number or signal.SIGTERM)
        if due or self.done % self.settings.save_every == 0 or self.done == self.settings.steps:
            self.save()

    def log(self, terms: dict[str, Tensor]) -> None:
        """Write the terms of the loss into the log and the progress bar.

        The terms are averaged over the processes.
        """
        means = {name: round(mean_over_processes(term).item(), 5) for name, term in terms.items()}
        if rank_and_world_size()[0] == 0:
            run_folder.log(self.folder, {"step": self.done, **means, "seconds": self.seconds()})
        self.steps.set_postfix(means)

    def is_due(self) -> bool:
        """Whether it is time for rank 0 to write a checkpoint.

        The pause between two checkpoints is at least 50 times as long as it takes to write one. So
        the checkpoints take at most 2 % of the time.
        """
        pause = max(SAVE_SECONDS, 50 * self.cost)
        return rank_and_world_size()[0] == 0 and time.monotonic() - self.saved > pause

    def save(self) -> None:
        """Write the state after the last complete step into state.pt.

        Raises ValueError if the state cannot be written, or if a weight is NaN or infinite.
        """
        started = time.monotonic()
        for network in (self.model, self.ema):
            for name, tensor in network.state_dict().items():
                if not is_finite(tensor):
                    what = f"the weight {name} is NaN or infinite"
                    raise ValueError(divergence_message(self.done - 1, what))
        if rank_and_world_size()[0] == 0:
            networks = self.model, self.ema, self.optimizers
            state = run_folder.state_of(self.done, self.seconds(), self.about, *networks)
            run_folder.save_state(self.folder, state)
        self.saved = time.monotonic()
        self.cost = self.saved - started

    def stop(self, number: int) -> None:
        """Save the state, and end the training. Raises Interrupted.

        number: the number of the signal that asked the training to stop
        """
        self.save()
        barrier()  # rank 0 has written the state before any process ends
        raise Interrupted(
            f"Stopped after {self.done} of {self.settings.steps} steps. The state is saved in "
            f"{self.folder}. Give the same command again to go on.",
            number,
        ) from None


@contextmanager
def open_run(
    model: Model, settings: Hyperparameters, folder: Path, about: dict
) -> Iterator[Run[Model]]:
    """Open a run in this folder: the run that was saved there, or else a new run.

    Plots the losses at the end of the `with` block.
    """
    barrier()
    with run_folder.lock_folder(folder), threads_of(folder) as threads:
        run = resume_run(model, settings, folder, {**about, "threads": threads})
        with stop_request() as run.request, run.steps:
            try:
                yield run
            except Interrupted:
                raise
            except KeyboardInterrupt:
                if run.request.number is None:  # loss_at() raised it, so no weight changed
                    run.stop(signal.SIGINT)
                raise
    if rank_and_world_size()[0] == 0:
        run_folder.plot_losses(folder)
    barrier()  # the other processes wait until everything is saved


def resume_run(model: Model, settings: Hyperparameters, folder: Path, about: dict) -> Run[Model]:
    """Create the run. If the folder holds a checkpoint, fill the model from the checkpoint.

    Warns if the training is already complete.
    """
    about = description(settings, about)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizers = create_optimizers(model, settings)
    start, spent, about["commit"] = run_folder.resume(folder, about, model, ema, optimizers)
    rank, _ = rank_and_world_size()
    if start >= settings.steps and rank == 0:
        done = f"The training in {folder} is complete: {start} of {settings.steps} steps. "
        warnings.warn(f"{done}To go on, ask for more steps.", stacklevel=5)
    left = range(start, settings.steps)
    bar = tqdm(left, initial=start, total=settings.steps, mininterval=5, disable=rank > 0)
    now = time.monotonic()
    return Run(folder, settings, about, model, ema, optimizers, bar, start, now - spent, now)


def description(settings: Hyperparameters, about: dict) -> dict:
    """Everything that defines a run: {"hyperparameters.steps": 10000, "vae.channels": (16, 32)}."""
    learning = asdict(settings)
    del learning["save_every"], learning["log_every"]  # the result does not depend on them
    return join_keys({"hyperparameters": learning, **about})


def join_keys(values: dict, prefix: str = "") -> dict:
    """Turn nested dictionaries into one: {"vae": {"scale": 1}} becomes {"vae.scale": 1}."""
    flat = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        flat |= join_keys(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
