"""Find out why a module of theirs differs, by trying common mistakes on our module.

Our module runs on their inputs with one mistake built in. If its output then agrees with their
output, this mistake is reported as the cause. There are three kinds of mistakes:

- another operation: replacements.py lists them
- another wire: an operation, or a submodule without an error of its own, gets a wrong input
- an edit of our module: each is a function of a few lines in EDITS
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from minisd import unet
from minisd.clip import TextTransformer
from minisd.compare.calls import tensors_in
from minisd.compare.hunt import Case, run_module
from minisd.compare.layouts import errors
from minisd.compare.replacements import OTHER_ACTIVATIONS, REPLACED, Change, cast

Attempt = tuple[str, Callable[[], Tensor]]  # a mistake in words, and our output with this mistake
Wire = tuple[int, int, int]  # the numbers of an operation, its argument, and the wrong tensor

MOST_SECONDS = 120  # the time that all attempts together may take


class Rewrite(TorchFunctionMode):
    """During the `with` block, count the operations of our module, and change some of them.

    An operation is a call of a torch function in REPLACED, or a call of an innocent submodule. A
    submodule is innocent if it makes no error of its own. Operations inside an innocent submodule
    are neither counted nor changed.

    change: the torch function to replace, such as "gelu", and the function to call instead
    only: the number of the call to replace, counted from 0. None: every call
    wire: an argument of one operation, and the tensor that it gets instead
    """

    def __init__(
        self,
        case: Case,
        change: tuple[str, Change] | None = None,
        only: int | None = None,
        wire: Wire | None = None,
    ):
        super().__init__()
        self.case, self.change, self.only, self.wire = case, change, only, wire
        self.depth = 0  # how many innocent modules are running
        self.counts: Counter[str] = Counter()  # operation -> its calls so far
        self.uses: list[tuple[str, list, int]] = []  # operation, arguments, tensors so far
        self.tensors = [("the input", one) for one in tensors_in((case.args, case.kwargs))]

    def __enter__(self):
        innocent = {n: m for n, m in self.case.module.named_modules() if m in self.case.innocent}
        self.hooks = []
        for name, module in innocent.items():
            self.hooks.append(module.register_forward_pre_hook(partial(self.enter, name)))
            self.hooks.append(module.register_forward_hook(partial(self.leave, name)))
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)

    def enter(self, name: str, module: nn.Module, args: tuple) -> tuple:
        self.depth += 1
        return self.use(name, args) if self.depth == 1 else args

    def leave(self, name: str, module: nn.Module, args: tuple, output: object) -> None:
        self.depth -= 1
        self.add_tensors(name, output if self.depth == 0 else ())

    def use(self, name: str, args: tuple) -> tuple:
        """Count one operation. Returns its arguments.

        If `wire` names this operation, one of the arguments is exchanged.
        """
        leaves, structure = tree_flatten(args)
        self.uses.append((name, [*leaves], len(self.tensors)))
        if self.wire is None or self.wire[0] != len(self.uses) - 1:
            return args  # the same object, because our networks empty their lists
        leaves[self.wire[1]] = self.tensors[self.wire[2]][1]
        return tree_unflatten(leaves, structure)

    def add_tensors(self, name: str, output: object) -> None:
        self.tensors += [(f"the output of {name}", one) for one in tensors_in(output)]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "").strip("_")
        if self.depth or name not in REPLACED:
            return func(*args, **(kwargs or {}))
        if self.change and name == self.change[0] and self.only in (None, self.counts[name]):
            func = self.change[1]
        self.counts[name] += 1
        label = f"{name} {self.counts[name]}"
        output = func(*self.use(label, args), **(kwargs or {}))
        self.add_tensors(label, output)
        return output

    def other_wires(self) -> Iterator[Attempt]:
        """All mistakes in which one operation gets a wrong tensor as an argument.

        The wrong tensor has the same shape as the right one, and exists before the operation runs.
        """
        for number, (name, leaves, known) in enumerate(self.uses):
            for i, leaf in enumerate(leaves):
                for j, (source, other) in enumerate(self.tensors[:known]):
                    if isinstance(leaf, Tensor) and other.shape == leaf.shape and other is not leaf:
                        what = f"{name} from {source}, not from its own input"
                        yield what, partial(rerun, self.case, wire=(number, i, j))


def rerun(case: Case, *change, **wire) -> Tensor:
    """Run our module again, with one of the mistakes that Rewrite can make. Returns its output."""
    with Rewrite(case, *change, **wire):
        return case.run()


def find_cause(case: Case, tolerance: float) -> tuple[str, float] | None:
    """Find the mistake with which our output agrees best with their output.

    Returns a description of the mistake, and the difference that is left. Returns None if no
    mistake makes the two outputs agree.
    """
    best, end = None, time.monotonic() + MOST_SECONDS
    with Rewrite(case) as plain:
        case.run()
    # there are many other wires, so they are tried only if no other mistake fits
    for attempts in (usual_mistakes(case, plain), plain.other_wires()):
        for what, attempt in attempts if best is None else ():
            if time.monotonic() > end:
                return best
            try:
                output = attempt()
            except Exception:  # the change does not fit this module
                continue
            if output.shape == case.output.shape:
                left = errors(case.output, output).error
                if left <= tolerance and (best is None or left < best[1] / 2):
                    best = what, left
    return best


def usual_mistakes(case: Case, plain: Rewrite) -> Iterator[Attempt]:
    """All mistakes except other wires: edits and replaced operations.

    plain: a Rewrite in which our module ran without a mistake
    """
    for edit in EDITS:
        yield from edit(case)
    for name, count in plain.counts.items():
        for what, change in REPLACED[name].items():
            yield what, partial(rerun, case, (name, change))
            for n in range(count if count > 1 else 0):
                where = f"in {name} {n + 1} of {count}"
                yield f"{what}, {where}", partial(rerun, case, (name, change), n)
    for source, tensor in plain.tensors if not case.inner else ():
        yield f"{source} in place of its own output", lambda tensor=tensor: tensor


# ---- edits of our module ------------------------------------------------------------------------


def time_embedding(case: Case) -> Iterator[Attempt]:
    def waves(t, width, less=0, dtype=torch.float32):
        steps = torch.arange(width // 2, dtype=torch.float32, device=t.device)
        frequencies = torch.exp(-math.log(10000) * steps / (width // 2 - less)).to(dtype).float()
        angles = t.float()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def run(made):
        with patch.object(unet, "timestep_embedding", made):
            return case.run()

    def swap(wave):
        return torch.cat(wave.chunk(2, dim=-1)[::-1], dim=-1)

    changes = {
        "sines before cosines": lambda t, n: swap(waves(t, n)),
        "frequencies divided by half - 1": partial(waves, less=1),
        "sines first and frequencies divided by half - 1": lambda t, n: swap(waves(t, n, less=1)),
        "t one too large": lambda t, n: waves(t + 1, n),
        "t one too small": lambda t, n: waves(t - 1, n),
        "t divided by 1000": lambda t, n: waves(t / 1000, n),
        "t rounded down": lambda t, n: waves(t.long(), n),
    }
    for name, dtype in (("half precision", torch.half), ("bfloat16", torch.bfloat16)):
        changes[f"t in {name}"] = lambda t, n, dtype=dtype: waves(t.to(dtype), n)
        changes[f"frequencies in {name}"] = partial(waves, dtype=dtype)
    if any(isinstance(one, unet.TimeEmbedding) for one in case.module.modules()):
        for what, made in changes.items():
            yield f"time embedding with {what}", partial(run, made)


def other_attributes(case: Case) -> Iterator[Attempt]:
    """Try other numbers of heads. In a text transformer, also change other attributes.

    These are the activation, the positions and the number of layers.
    """

    def run(name: str, value: object) -> Tensor:
        module = deepcopy(case.module)
        for one in module.modules():
            if hasattr(one, name):
                setattr(one, name, value)
        return case.run(module)

    edits = [(f"with {n} heads", "heads", n) for n in (1, 2, 4, 5, 8, 10, 12, 16, 20, 32)]
    edits += [(f"{name} as activation", "activation", f) for name, f in OTHER_ACTIVATIONS.items()]
    for text in [one for one in case.module.modules() if isinstance(one, TextTransformer)]:
        known = text.position_embedding
        positions = {
            "without positions": torch.zeros_like(known),
            "with positions counted from 1": torch.cat([known[1:], known[-1:]]),
            "with positions moved by one": known.roll(1, 0),
        }
        edits += [(what, "position_embedding", nn.Parameter(x)) for what, x in positions.items()]
        layers = [(n, text.layers[:-n]) for n in range(1, min(len(text.layers), 4))]
        edits += [(f"without the last {n} layer{'s' * (n > 1)}", "layers", x) for n, x in layers]
    for what, name, value in edits:
        if any(hasattr(one, name) for one in case.module.modules()):
            yield what, partial(run, name, value)


def left_out_submodules(case: Case) -> Iterator[Attempt]:
    def run(module: nn.Module) -> Tensor:
        hook = module.register_forward_hook(lambda module, args, output: args[0])
        try:
            return case.run()
        finally:
            hook.remove()

    for name, module in case.module.named_modules():
        if name and module not in case.innocent and [*module.parameters()]:
            yield f"without {name}", partial(run, module)


def precision(case: Case) -> Iterator[Attempt]:
    def run(dtype: torch.dtype) -> Tensor:
        module, args = deepcopy(case.module).to(dtype), cast(case.args, dtype)
        return run_module(module, args, case.kwargs, case.inner).to(case.output.dtype)

    for dtype in {torch.float16, torch.bfloat16, torch.float32} - {case.output.dtype}:
        yield f"computing in {str(dtype).removeprefix('torch.')}", partial(run, dtype)


def output_as_a_whole(case: Case) -> Iterator[Attempt]:
    """Change only the output: multiply it, mirror it, move it, or apply an activation to it."""
    ours = case.run()
    what = "input" if isinstance(case.module, nn.Identity) else "output"
    factor = (ours.double() * case.output.double()).sum() / ours.double().pow(2).sum()
    yield f"an {what} that is {factor:.5g} times ours", lambda: ours * factor.to(ours)
    for axis in range(1, ours.ndim):
        yield f"an {what} mirrored along axis {axis}", partial(ours.flip, axis)
        for by in (1, -1):
            yield f"an {what} moved by {by} along axis {axis}", partial(ours.roll, by, axis)
    yield f"an {what} with height and width swapped", lambda: ours.mT
    for name, f in OTHER_ACTIVATIONS.items():
        yield f"the {what} with {name} at the end", partial(f, ours)


EDITS = [time_embedding, other_attributes, left_out_submodules, precision, output_as_a_whole]
