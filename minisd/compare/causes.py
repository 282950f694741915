"""Find out why a module of theirs differs, by trying common mistakes on our module.

Our module runs on their inputs with one mistake built in. If its output then agrees with their
output, this mistake is reported as the cause. Most mistakes replace one operation by another
(replacements.py). The others edit our module: each is a function of a few lines in EDITS.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from minisd import unet
from minisd.compare.hunt import Case, run_module
from minisd.compare.layouts import errors
from minisd.compare.replacements import OTHER_ACTIVATIONS, REPLACED, Change

Attempt = tuple[str, Callable[[], Tensor]]  # a mistake in words, and our output with this mistake

MOST_SECONDS = 120  # the time that all attempts together may take
MOST_PLACES = 40  # how many places of one operation are changed one by one


class Rewrite(TorchFunctionMode):
    """Inside the `with` block, replace a torch function: in every call, or only in one call.

    name: the torch function's name, such as "gelu"
    change: the function to call instead
    only: the number of the call to replace, counted from 0. None: every call
    innocent: modules in which nothing is replaced
    """

    def __init__(
        self,
        name: str = "",
        change: Change | None = None,
        only: int | None = None,
        innocent: Iterable[nn.Module] = (),
    ):
        super().__init__()
        self.name, self.change, self.only, self.innocent = name, change, only, innocent
        self.counts: Counter[str] = Counter()  # function -> its calls so far
        self.depth = 0  # how many innocent modules are running

    def __enter__(self):
        def move(by: int) -> Callable:
            return lambda *call: setattr(self, "depth", self.depth + by)

        self.hooks = [one.register_forward_pre_hook(move(1)) for one in self.innocent]
        self.hooks += [one.register_forward_hook(move(-1)) for one in self.innocent]
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").strip("_")
        if self.depth == 0:
            self.counts[name] += 1
            chosen = name == self.name and self.only in (None, self.counts[name] - 1)
            func = self.change if self.change and chosen else func
        return func(*args, **kwargs)


def find_cause(case: Case, tolerance: float) -> tuple[str, float] | None:
    """Find the mistake with which our output agrees best with their output.

    Returns a description of the mistake, and the difference that is left. Returns None if no
    mistake makes the two outputs agree.
    """
    best, end = None, time.monotonic() + MOST_SECONDS
    for what, attempt in attempts(case):
        if time.monotonic() > end:
            break
        try:
            output = attempt()
        except Exception:  # the change does not fit this module
            continue
        if output.shape == case.output.shape:
            left = errors(case.output, output).error
            if left <= tolerance and (best is None or left < best[1] / 2):
                best = what, left
    return best


def attempts(case: Case) -> Iterator[Attempt]:
    """All mistakes to try on a case: first the edits, then the replaced operations."""
    for edit in EDITS:
        yield from edit(case)
    with Rewrite(innocent=case.innocent) as places:  # which replaces nothing, and counts
        case.run()
    for name in REPLACED:
        count = places.counts[name]
        for what, change in REPLACED[name].items() if count else ():
            yield what, partial(replace_operation, case, name, change)
            for n in range(min(count, MOST_PLACES) if count > 1 else 0):
                where = f"{what}, at place {n + 1} of {count}"
                yield where, partial(replace_operation, case, name, change, n)


def replace_operation(case: Case, name: str, change: Change, only: int | None = None) -> Tensor:
    """Run our module with one operation replaced. Returns its output."""
    with Rewrite(name, change, only, case.innocent):
        return case.run()


# ---- edits of our module ------------------------------------------------------------------------


def with_module(case: Case, edit: Callable[[nn.Module], object]) -> Tensor:
    """Edit a copy of our module and run it. Returns its output."""
    module = deepcopy(case.module)
    edit(module)
    return case.run(module)


def set_all(module: nn.Module, name: str, value: object) -> None:
    for one in module.modules():
        if hasattr(one, name):
            setattr(one, name, value)


def time_embedding(case: Case) -> Iterator[Attempt]:
    def waves(sines_first=False, less=0, period=10000.0, moved=0.0, scale=1.0, whole=False):
        def wave(t, width):
            steps = torch.arange(width // 2, dtype=torch.float32, device=t.device)
            frequencies = torch.exp(-math.log(period) * steps / (width // 2 - less))
            t = (t.float().floor() if whole else t.float()) * scale + moved
            parts = [(t[:, None] * frequencies).cos(), (t[:, None] * frequencies).sin()]
            return torch.cat(parts[::-1] if sines_first else parts, dim=-1)

        return wave

    def run(made):
        with patch.object(unet, "timestep_embedding", made):
            return case.run()

    changes = {
        "sines before cosines": waves(sines_first=True),
        "frequencies divided by half - 1": waves(less=1),
        "sines first and frequencies divided by half - 1": waves(sines_first=True, less=1),
        "the period 1000": waves(period=1000.0),
        "t one too large": waves(moved=1),
        "t one too small": waves(moved=-1),
        "t divided by 1000": waves(scale=1 / 1000),
        "t rounded down": waves(whole=True),
    }
    if any(isinstance(one, unet.TimeEmbedding) for one in case.module.modules()):
        for what, made in changes.items():
            yield f"time embedding with {what}", lambda made=made: run(made)


def text_layers(case: Case) -> Iterator[Attempt]:
    """Mistakes of a text transformer: left-out last layers, no final norm, other positions."""
    if not hasattr(case.module, "position_embedding"):
        return
    text: Any = case.module
    layers, positions = text.layers, text.position_embedding
    edits = {
        "without the final norm": ("norm_out", nn.Identity()),
        "without positions": ("position_embedding", nn.Parameter(torch.zeros_like(positions))),
        "with positions counted from 1": (
            "position_embedding",
            nn.Parameter(torch.cat([positions[1:], positions[-1:]])),
        ),
    }
    for n in range(1, min(len(layers), 4)):
        edits[f"without the last {n} layer{'s' * (n > 1)}"] = ("layers", layers[:-n])
    for what, (name, value) in edits.items():
        yield (
            what,
            lambda name=name, value=value: with_module(case, lambda m: setattr(m, name, value)),
        )


def activation_of_text(case: Case) -> Iterator[Attempt]:
    if any(hasattr(one, "activation") for one in case.module.modules()):
        for name, f in OTHER_ACTIVATIONS.items():
            edit = lambda module, f=f: set_all(module, "activation", f)  # noqa: E731
            yield f"{name} as activation", lambda edit=edit: with_module(case, edit)


def other_heads(case: Case) -> Iterator[Attempt]:
    if any(hasattr(one, "heads") for one in case.module.modules()):
        for n in (1, 2, 4, 5, 8, 10, 12, 16, 20, 32):
            edit = lambda module, n=n: set_all(module, "heads", n)  # noqa: E731
            yield f"with {n} heads", lambda edit=edit: with_module(case, edit)


def precision(case: Case) -> Iterator[Attempt]:
    def run(dtype):
        cast = lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x  # noqa: E731
        args, module = tree_map(cast, case.args), deepcopy(case.module).to(dtype)
        return run_module(module, args, case.kwargs, case.inner).to(case.output.dtype)

    for dtype in {torch.float16, torch.bfloat16, torch.float32} - {case.output.dtype}:
        yield f"computing in {str(dtype).removeprefix('torch.')}", lambda dtype=dtype: run(dtype)


def output_as_a_whole(case: Case) -> Iterator[Attempt]:
    """Mistakes in the output only: multiplied by a number, mirrored, moved or transposed."""
    ours = case.run()
    factor = (ours.double() * case.output.double()).sum() / ours.double().pow(2).sum()
    yield f"an output that is {factor:.5g} times ours", lambda: ours * factor.to(ours)
    for axis in range(1, ours.ndim):
        yield f"an output mirrored along axis {axis}", lambda axis=axis: ours.flip(axis)
        for by in (1, -1):
            moved = f"an output moved by {by} along axis {axis}"
            yield moved, lambda axis=axis, by=by: ours.roll(by, axis)
    yield "an output with height and width swapped", lambda: ours.mT


EDITS = [time_embedding, text_layers, activation_of_text, other_heads, precision, output_as_a_whole]
