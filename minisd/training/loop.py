"""The loop that every training here shares: schedule the rate, step, average, log, save, resume.

All randomness of a step comes from (seed, step), so a run that was killed and resumed computes what
an unbroken run would have computed.
"""

import copy
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from minisd.training.muon import Muon, split_for_muon


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
    adam = torch.optim.AdamW(
        others, recipe.adam_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
    )
    return [Muon(hidden, recipe.rate, weight_decay=recipe.weight_decay), adam]


def fast_precision() -> torch.autocast | nullcontext:
    """bfloat16 where the processor multiplies it in hardware, else plain float32."""
    if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def generator_at(seed: int, step: int) -> torch.Generator:
    """The random numbers that belong to this step of this run, whatever ran before."""
    return torch.Generator().manual_seed(1_000_003 * seed + step)


def train(
    model: nn.Module, loss_at: Callable[[int], dict[str, Tensor]], recipe: Recipe, folder: Path
) -> nn.Module:
    """Train until recipe.steps, continuing from the folder's last checkpoint if there is one.

    loss_at(step) gives the terms of the loss by name; their sum is minimised.
    Returns the averaged model (EMA). Writes state.pt and log.jsonl into the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    average = copy.deepcopy(model).requires_grad_(False)
    both = optimizers(model, recipe)
    start, spent = resume(folder, model, average, both)
    began = time.monotonic() - spent
    bar = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, mininterval=5)
    for step in bar:
        for optimizer, rate in zip(both, (recipe.rate, recipe.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * recipe.share_at(step)
        model.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward is 2x slower on a CPU
            terms = loss_at(step)
            sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimizer in both:
            optimizer.step()
        update_average(average, model, keep=min(recipe.ema, (1 + step) / (10 + step)))
        seconds = round(time.monotonic() - began, 1)
        if step % recipe.log_every == 0:
            numbers = {name: round(term.item(), 5) for name, term in terms.items()}
            bar.set_postfix(numbers)
            log(folder, {"step": step, **numbers, "seconds": seconds})
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            save(folder, step + 1, seconds, model, average, both)
    return average


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, keep: float) -> None:
    """average = keep * average + (1 - keep) * model, for every parameter."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)


def save(
    folder: Path, step: int, seconds: float, model: nn.Module, average: nn.Module, both: list
) -> None:
    """Write the whole state beside the old one, then put it in its place in one move."""
    state = {
        "step": step,
        "seconds": seconds,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in both],
    }
    fresh = folder / "state.pt.new"
    torch.save(state, fresh)
    os.replace(fresh, folder / "state.pt")


def resume(
    folder: Path, model: nn.Module, average: nn.Module, both: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Fill in the last saved state, if any. Returns the step to go on from, the seconds so far.

    ValueError: the folder holds a run of a model of another shape.
    """
    path = folder / "state.pt"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(
            f"{path} was saved by a model of another shape; train into another folder or delete it."
        ) from error
    average.load_state_dict(state["average"])
    for optimizer, saved in zip(both, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["seconds"]


def log(folder: Path, record: dict) -> None:
    """Append one line of numbers to log.jsonl."""
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
