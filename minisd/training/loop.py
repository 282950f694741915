"""The loop that every training here shares: schedule the rate, step, average, log, save, resume.

All randomness of a step comes from (seed, step), so a run that was killed and resumed computes what
an unbroken run would have computed. A kill loses a few seconds, ctrl-C nothing (interrupt.py).
Several processes can share the work (parallel.py).
"""

import copy
import math
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from minisd.checkpoints.load import is_finite
from minisd.files.whole_files import make_folder
from minisd.training.interrupt import Interrupted, StopRequest, stop_request
from minisd.training.muon import Muon, split_for_muon
from minisd.training.parallel import (
    anyone,
    average_gradients,
    averaged,
    from_first,
    meet,
    place,
)
from minisd.training.run_folder import (
    commit,
    in_use,
    last_state,
    log,
    logged,
    plot_losses,
    refuse_another,
    save,
)
from minisd.training.threads import threads_of

SAVE_SECONDS = 5  # at least between two checkpoints, but for those that a recipe asks for


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train. Both rates rise linearly, then fall as half a cosine."""

    steps: int
    rate: float = 0.05  # of Muon, for the matrices of hidden layers
    adam_rate: float = 2e-3  # of AdamW, for all else
    warmup: int = 100
    final: float = 0.01  # what is left of a rate at the end
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.999  # how much of the average each step keeps
    save_every: int = 500
    log_every: int = 50

    def share_at(self, step: int) -> float:
        """The share of its full rate with which an optimizer steps."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for the rest."""
    hidden, others = split_for_muon(model)
    decay = recipe.weight_decay
    others = [{"params": others}]  # as groups, which may be empty: small models lack one or other
    adam = torch.optim.AdamW(
        others, recipe.adam_rate, betas=(0.9, 0.99), weight_decay=decay, fused=True
    )
    return [Muon([{"params": hidden}], recipe.rate, weight_decay=decay), adam]


def fast_precision() -> torch.autocast | nullcontext:
    """bfloat16 where the processor multiplies it in hardware, else plain float32."""
    if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def generator_at(seed: int, step: int) -> torch.Generator:
    """The random numbers that belong to this step of this run, whatever ran before."""
    return torch.Generator().manual_seed(1_000_003 * seed + step)


@dataclass
class Run:
    """A training on its way, and the folder that keeps it.

    began: seconds of the monotonic clock, earlier by what was spent before a resume
    saved, cost: when the last checkpoint was written, and how many seconds that took
    """

    folder: Path
    about: dict
    model: nn.Module
    average: nn.Module
    both: list[torch.optim.Optimizer]
    began: float = 0.0
    saved: float = 0.0
    cost: float = 0.0

    def seconds(self) -> float:
        """How long the run has taken, pauses between two calls left out."""
        return round(time.monotonic() - self.began, 3)

    def is_due(self) -> bool:
        """Whether the first process wants a checkpoint. Saving takes 2 % of the time at most."""
        pause = max(SAVE_SECONDS, 50 * self.cost)
        return place()[0] == 0 and time.monotonic() - self.saved > pause

    def save(self, step: int) -> None:
        """Write the state after so many steps. ValueError: it cannot be, or is not worth it."""
        begun = time.monotonic()
        for network in (self.model, self.average):
            for name, tensor in network.state_dict().items():
                if not is_finite(tensor):
                    raise ValueError(diverged(step - 1, f"{name} holds NaN or infinity"))
        if place()[0] == 0:
            state = state_of(step, self.seconds(), self.about, self.model, self.average, self.both)
            save(self.folder, state)
        self.saved = time.monotonic()
        self.cost = self.saved - begun

    def stop(self, step: int, number: int) -> NoReturn:
        """Save, and end the training as the signal of this number asked. Raises Interrupted."""
        self.save(step)
        meet()  # the first has written it before any process ends
        raise Interrupted(
            f"stopped after {step} of {self.about['recipe.steps']} steps, which are saved in "
            f"{self.folder}. Give the same command again to go on.",
            number,
        ) from None


def begin(model: nn.Module, recipe: Recipe, folder: Path, about: dict) -> tuple[Run, int]:
    """The run in this folder, new or as it was saved last, and the step to go on from."""
    about = description(recipe, about)
    average = copy.deepcopy(model).requires_grad_(False)
    both = optimizers(model, recipe)
    start, spent, about["commit"] = resume(folder, about, model, average, both)
    if start >= recipe.steps and place()[0] == 0:
        done = f"the training in {folder} is complete, {start} of {recipe.steps} steps: "
        warnings.warn(f"{done}ask for more steps to train it further.", stacklevel=3)
    now = time.monotonic()
    return Run(folder, about, model, average, both, began=now - spent, saved=now), start


def train(
    model: nn.Module,
    loss_at: Callable[[int], dict[str, Tensor]],
    recipe: Recipe,
    folder: Path,
    about: dict | None = None,
) -> nn.Module:
    """Train until recipe.steps, continuing from the folder's last checkpoint if there is one.

    loss_at(step) gives the terms of the loss by name; their sum is minimised.
    about: what else, besides the recipe, makes this run: plain values by name.
    Returns the averaged model (EMA). Writes state.pt, log.jsonl and loss.png into the folder.
    ValueError: nothing can be written there, or another training is at work there; what is there
        cannot be continued; or the loss, the gradient or the weights are not finite, and then the
        last checkpoint stays as it is.
    Interrupted: by ctrl-C, SIGTERM or SIGHUP; the state after the last whole step is saved.
    """
    make_folder(folder)
    meet()
    first = place()[0] == 0  # of the processes; it alone shows, logs and saves
    with in_use(folder), threads_of(folder) as threads:
        run, start = begin(model, recipe, folder, {**(about or {}), "threads": threads})
        steps = range(start, recipe.steps)
        bar = tqdm(steps, initial=start, total=recipe.steps, mininterval=5, disable=not first)
        with stop_request() as stop, bar:
            for step in bar:
                terms = take_step(run, loss_at, recipe, step, stop)
                if step % recipe.log_every == 0:
                    numbers = {
                        name: round(averaged(term).item(), 5) for name, term in terms.items()
                    }
                    bar.set_postfix(numbers)
                    if first:
                        log(folder, {"step": step, **numbers, "seconds": run.seconds()})
                keep(run, recipe, step + 1, stop)
    if first:
        plot_losses(folder)
    meet()  # the others go on when all is saved
    return run.average


def take_step(
    run: Run, loss_at: Callable, recipe: Recipe, step: int, stop: StopRequest
) -> dict[str, Tensor]:
    """Change the model and its average once. Returns the terms of the loss before it."""
    try:
        terms = descend(run.model, loss_at, run.both, recipe, step)
    except KeyboardInterrupt:
        if stop.number is None:  # loss_at raised it itself, and no weight has changed
            run.stop(step, signal.SIGINT)
        raise
    update_average(run.average, run.model, keep=min(recipe.ema, (1 + step) / (10 + step)))
    return terms


def keep(run: Run, recipe: Recipe, step: int, stop: StopRequest) -> None:
    """Save if it is time, in the opinion of the first process; stop if any was asked to."""
    asked, due = anyone(stop.number is not None, run.is_due())
    if asked:
        run.stop(step, stop.number or signal.SIGTERM)
    if due or step % recipe.save_every == 0 or step == recipe.steps:
        run.save(step)


def descend(
    model: nn.Module,
    loss_at: Callable,
    both: list[torch.optim.Optimizer],
    recipe: Recipe,
    step: int,
) -> dict[str, Tensor]:
    """One step down the slope of the loss. Returns the terms of the loss before it.

    ValueError: the loss or its gradient is not finite. No weight has changed then.
    """
    for optimizer, rate in zip(both, (recipe.rate, recipe.adam_rate), strict=True):
        optimizer.param_groups[0]["lr"] = rate * recipe.share_at(step)
    model.zero_grad(set_to_none=True)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward is 2x slower on a CPU
        terms = loss_at(step)
        sum(terms.values()).backward()
    terms = {name: term.detach() for name, term in terms.items()}
    average_gradients(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    check_finite(terms, norm, step)
    with fast_precision():  # Muon is mostly products of matrices, and forgives their rounding
        for optimizer in both:
            optimizer.step()
    return terms


def check_finite(terms: dict[str, Tensor], norm: Tensor, step: int) -> None:
    """ValueError, in every process, unless each term of the loss and the gradient are finite."""
    loss = averaged(sum(terms.values()))
    if loss.isfinite() and norm.isfinite():
        return
    found = {f"the loss {name}": averaged(term).item() for name, term in terms.items()}
    found |= {"the norm of the gradient": norm.item()}
    broken = [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]
    raise ValueError(diverged(step, " and ".join(broken) or f"the whole loss is {loss}"))


def diverged(step: int, what: str) -> str:
    """The sentence for a run that has left all bounds."""
    return (
        f"the training broke off at step {step}: {what}. The last checkpoint is from before that. "
        "Try a lower rate, or another seed in a fresh folder."
    )


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, keep: float) -> None:
    """average = keep * average + (1 - keep) * model, for every parameter."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)


def description(recipe: Recipe, about: dict) -> dict:
    """What makes this run and no other: {"recipe.steps": 10000, "vae.channels": (16, 32), ...}."""
    learning = asdict(recipe)
    del learning["save_every"], learning["log_every"]  # they change nothing that is learnt
    return by_name({"recipe": learning, **about})


def by_name(values: dict, within: str = "") -> dict:
    """Nested dictionaries as one, their keys joined with dots."""
    flat = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        flat |= by_name(value, f"{within}{name}.") if nested else {within + name: value}
    return flat


def state_of(
    step: int, seconds: float, run: dict, model: nn.Module, average: nn.Module, both: list
) -> dict:
    """All that a run needs to go on."""
    return {
        "step": step,
        "seconds": seconds,
        "run": run,
        "processes": place()[1],
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in both],
    }


def resume(
    folder: Path, run: dict, model: nn.Module, average: nn.Module, both: list[torch.optim.Optimizer]
) -> tuple[int, float, str]:
    """Fill in the last saved state, if any.

    Returns the step to go on from, the seconds so far, and the commit of the code that began.

    ValueError: the state is damaged, or of another run or model.
    """
    state = last_state(folder)
    if state is None:
        return 0, 0.0, commit()
    if "run" in state:
        refuse_another(folder, state["run"], run)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(
            f"{folder}/state.pt was saved by a model of another shape; train into another folder "
            "or delete it."
        ) from error
    average.load_state_dict(state["average"])
    for optimizer, saved in zip(both, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["seconds"], state.get("run", {}).get("commit", "unknown")


TRIAL = 8  # steps


def check_minutes(minutes: float) -> None:
    """ValueError unless one can train for so long."""
    if not 0 < minutes < math.inf:
        raise ValueError(f"cannot train for {minutes} minutes: give a number above 0.")


def for_minutes(
    recipe: Recipe, minutes: float, folder: Path, train_in: Callable[[Recipe, Path], nn.Module]
) -> Recipe:
    """The recipe with as many steps as these minutes have room for, by the pace of a few trials.

    train_in(recipe, folder) trains. It is tried in a folder that is thrown away; the trial's time
    comes on top. A run that this folder already holds keeps its steps, and so can be resumed.
    ValueError: no minutes.
    """
    check_minutes(minutes)
    begun = (last_state(folder) or {}).get("run")
    pace = None if begun else seconds_a_step(recipe, train_in)
    steps = begun["recipe.steps"] if begun else max(1, int(60 * minutes / pace))
    return replace(
        recipe,
        steps=steps,
        warmup=min(recipe.warmup, steps // 10),
        save_every=min(recipe.save_every, steps // 4 + 1),
        log_every=min(recipe.log_every, steps // 50 + 1),
    )


def seconds_a_step(recipe: Recipe, train_in: Callable[[Recipe, Path], nn.Module]) -> float:
    """How long a step takes, measured on a few after the first two, which are slower."""
    with TemporaryDirectory() as scratch:
        try:
            train_in(replace(recipe, steps=TRIAL, log_every=1), Path(scratch))
        except Interrupted as stop:
            sentence = "stopped while it measured the pace: nothing has been trained yet."
            raise Interrupted(sentence, stop.number) from None
        at = [record["seconds"] for record in logged(Path(scratch))]
    return from_first(max((at[-1] - at[1]) / (len(at) - 2), 1e-4) if at else 0.0)
