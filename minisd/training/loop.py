"""The loop that every training here shares: schedule the rate, step, average, log, save, resume.

All randomness of a step comes from (seed, step), so a run that was killed and resumed computes what
an unbroken run would have computed. Several processes can share the work (parallel.py).
"""

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from minisd.training.folder import (
    commit,
    last_state,
    log,
    logged,
    plot_losses,
    refuse_another,
    save,
)
from minisd.training.muon import Muon, split_for_muon
from minisd.training.parallel import average_gradients, averaged, from_first, meet, place


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
    ValueError: nothing can be written there, or what is there cannot be continued.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meet()
    first = place()[0] == 0  # of the processes; it alone shows, logs and saves
    run = description(recipe, about or {})
    average = copy.deepcopy(model).requires_grad_(False)
    both = optimizers(model, recipe)
    start, spent, begun_at = resume(folder, run, model, average, both)
    run["commit"] = begun_at
    began = time.monotonic() - spent
    steps = range(start, recipe.steps)
    bar = tqdm(steps, initial=start, total=recipe.steps, mininterval=5, disable=not first)
    for step in bar:
        terms = descend(model, loss_at, both, recipe, step)
        update_average(average, model, keep=min(recipe.ema, (1 + step) / (10 + step)))
        seconds = round(time.monotonic() - began, 3)
        if step % recipe.log_every == 0:
            numbers = {name: round(averaged(term).item(), 5) for name, term in terms.items()}
            bar.set_postfix(numbers)
            if first:
                log(folder, {"step": step, **numbers, "seconds": seconds})
        if first and ((step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps):
            save(folder, state_of(step + 1, seconds, run, model, average, both))
    if first:
        plot_losses(folder)
    meet()  # the others go on when all is saved
    return average


def descend(
    model: nn.Module,
    loss_at: Callable,
    both: list[torch.optim.Optimizer],
    recipe: Recipe,
    step: int,
) -> dict[str, Tensor]:
    """One step down the slope of the loss. Returns the terms of the loss before it."""
    for optimizer, rate in zip(both, (recipe.rate, recipe.adam_rate), strict=True):
        optimizer.param_groups[0]["lr"] = rate * recipe.share_at(step)
    model.zero_grad(set_to_none=True)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward is 2x slower on a CPU
        terms = loss_at(step)
        sum(terms.values()).backward()
    average_gradients(model)
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    with fast_precision():  # Muon is mostly products of matrices, and forgives their rounding
        for optimizer in both:
            optimizer.step()
    return {name: term.detach() for name, term in terms.items()}


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


def for_minutes(
    recipe: Recipe, minutes: float, folder: Path, train_in: Callable[[Recipe, Path], nn.Module]
) -> Recipe:
    """The recipe with as many steps as these minutes have room for, by the pace of a few trials.

    train_in(recipe, folder) trains. It is tried in a folder that is thrown away; the trial's time
    comes on top. A run that this folder already holds keeps its steps, and so can be resumed.
    ValueError: no minutes.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"cannot train for {minutes} minutes: give a number above 0.")
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
        train_in(replace(recipe, steps=TRIAL, log_every=1), Path(scratch))
        at = [record["seconds"] for record in logged(Path(scratch))]
    return from_first(max((at[-1] - at[1]) / (len(at) - 2), 1e-4) if at else 0.0)
