"""Bug hunts: a copy of the mini in which one module computes something wrong."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from textwrap import dedent
from typing import Any

import torch
from torch import Tensor, nn

from minisd import trace as tracing
from minisd.compare import compare
from minisd.exercises.bugs import BUGS_BY_LEVEL, Bug
from minisd.teaching.plot.canvas import say

HUNTS = {1: 1, 2: 1, 3: 1, 4: 1, 5: 2, 6: 2, 7: 2, 8: 3, 9: 3, 10: 3}  # the number -> its level
HUNT_POINTS, GUESSES = 4, 3  # half of the points for the name, in at most so many guesses
REPAIR_ERROR = 1e-4  # the largest error after a repair, relative to the spread of the output
LEAST_EFFECT = 2e-4  # a bug changes the output by at least this much


def bug_hunt(student: str, number: int = 1) -> "BugHunt":
    """Start one of ten bug hunts: 1 to 4 are of level 1, 5 to 7 of level 2, 8 to 10 of level 3.

        hunt = bug_hunt("ada", 1)
        with hunt.trace() as t:                # record what you like in hunt.sd
            hunt.sd.txt2img("a cat", steps=1)
        hunt.name("unet.mid.res.0")            # half of the points for the right module
        hunt.show_code()                       # works from now on, as hunt.compare() does
        hunt.repair(forward)                   # half of the points for a right forward

    student: the student's id. It decides which bug it is, and in which module

    Raises ValueError if there is no hunt of this number.
    """
    if number not in HUNTS:
        raise ValueError(f"there is no hunt {number}. Choose a number from 1 to {max(HUNTS)}.")
    return BugHunt(student, number)


class BugHunt:
    """One hunt. sd is the model with the bug."""

    def __init__(self, student: str, number: int):
        import minisd

        self.sd, self._right = minisd.load("mini"), minisd.load("mini")
        self.guesses, self.has_name, self.has_repair = 0, False, False
        self._bug = choose_bug(student, number)
        place = Random(f"the place of bug {number} for {student}")
        self._path = place_bug(self.sd, self._right, self._bug, place)

    @property
    def points(self) -> int:
        """The points so far, of 4: 2 for the name in at most three guesses, 2 for the repair."""
        named = self.has_name and self.guesses <= GUESSES
        return HUNT_POINTS // 2 * named + HUNT_POINTS // 2 * self.has_repair

    @property
    def score(self) -> str:
        return f"{self.points} of {HUNT_POINTS} points"

    def trace(self, *patterns: str, **settings: Any) -> AbstractContextManager:
        """Record the tensors of the model with the bug. The arguments are those of trace()."""
        return tracing.trace(self.sd, *patterns, **settings)

    def name(self, path: str) -> None:
        """Guess which module computes something wrong. Raises ValueError if it does not exist."""
        names = tracing.named_modules(self.sd)
        if path not in names:
            raise ValueError(f"there is no module {path!r}. {tracing.did_you_mean(path, names)}")
        if not self.has_name:
            self.guesses += 1
            self.has_name = path == self._path
        if self.has_name:
            opened = "Now use `hunt.show_code()` and `hunt.compare()`. Then write a right forward()"
            say(f"Yes, {path}. {self.score}. {opened}: `hunt.repair(forward)`.")
        elif self._path.startswith(f"{path}."):
            say(f"{path} is not it, but the bug is inside it.")
        else:
            say(f"{path} is not it. Its output may be wrong because its input is wrong.")

    def show_code(self) -> None:
        """Show the code that the module with the bug runs. Raises ValueError before it is named."""
        self._check_name()
        code = dedent(inspect.getsource(vars(self._module())["forward"])).rstrip()
        say(f"```python\n{code}\n```\nHere, `module` is `hunt.module`.")

    def compare(self) -> None:
        """Compare the model with the right one. Raises ValueError before the module is named."""
        self._check_name()
        network, inputs = self._path.split(".")[0], draw_network_inputs(self._right)
        right, wrong = network_part(self._right, network), network_part(self.sd, network)
        say(f"```\n{compare(right, wrong, inputs[network])}\n```")

    def repair(self, forward: Callable) -> None:
        """Put a new forward() into the module with the bug, and try it on hidden inputs.

        forward: a function of the same arguments as the module's forward, without self. Its module
            is `hunt.module`

        Raises ValueError before the module is named.
        """
        self._check_name()
        self._module().forward = forward
        error = largest_error(self.sd, self._right, self._path.split(".")[0])
        self.has_repair = self.has_repair or error <= REPAIR_ERROR
        verdict = "The repair is right" if error <= REPAIR_ERROR else "The repair is not right yet"
        what = f" The bug was: {self._bug.what}." if self.has_repair else ""
        say(f"{verdict}: the largest error is {error:.1e}. {self.score}.{what}")

    @property
    def module(self) -> nn.Module:
        """The module with the bug. Raises ValueError before it is named."""
        self._check_name()
        return self._module()

    def _module(self) -> Any:
        return tracing.named_modules(self.sd)[self._path]

    def _check_name(self) -> None:
        if not self.has_name:
            raise ValueError("name the module first: hunt.name(…). Until then, use hunt.trace().")


def choose_bug(student: str, number: int) -> Bug:
    """The bug of a hunt. One student gets ten different bugs, each student in another order."""
    level = HUNTS[number]
    order = Random(f"the bugs of level {level} for {student}")
    bugs = order.sample(BUGS_BY_LEVEL[level], len(BUGS_BY_LEVEL[level]))
    return bugs[number - min(one for one in HUNTS if HUNTS[one] == level)]


def place_bug(sd: Any, right: Any, bug: Bug, random: Random) -> str:
    """Give one module of the model this bug. Returns its path.

    Among the modules of this kind, it takes one in which the bug is visible.
    """
    modules = {
        path: module
        for path, module in tracing.named_modules(sd).items()
        if type(module) is bug.kind and not path.startswith("vae.encoder")
    }
    for path in random.sample(list(modules), len(modules)):
        modules[path].forward = bug.make(modules[path])
        if largest_error(sd, right, path.split(".")[0]) > LEAST_EFFECT:
            return path
        del modules[path].forward
    raise AssertionError(f"the bug is visible nowhere: {bug.what}")


def largest_error(sd: Any, right: Any, network: str) -> float:
    """The largest error of a network's output on hidden inputs, relative to the output's spread."""
    inputs = draw_network_inputs(right)[network]
    with torch.no_grad():
        wanted = network_part(right, network)(*inputs)
        got = network_part(sd, network)(*inputs)
    return ((got - wanted).abs().max() / wanted.std()).item()


def network_part(sd: Any, network: str) -> nn.Module:
    """The network of this name. Of the VAE, only the decoder, because the bugs are there."""
    return sd.vae.decoder if network == "vae" else getattr(sd, network)


def draw_network_inputs(sd: Any) -> dict[str, tuple[Tensor, ...]]:
    """Inputs for each network: two samples, and the height differs from the width."""
    generator = torch.Generator().manual_seed(27)
    prompts = ["a blue cat on a red background", "two green apples"]
    x = torch.randn(2, 4, 6, 8, generator=generator)
    t = torch.tensor([801.0, 120.5])
    return {
        "text_encoder": (sd.tokenizer(prompts),),
        "unet": (x, t, sd.embed(prompts)),
        "vae": (x,),
    }
