"""Which exercises are parts of a picture, and how many numbers each of them multiplies."""

import inspect
import sys
from collections import Counter
from functools import cache
from types import CodeType
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import minisd
from minisd.exercises.exercise import all_exercises
from minisd.exercises.install import find_part


@cache
def count_products(steps: int) -> dict[str, int]:
    """Draw a picture with our mini, and count the products that each part computes.

    A part is an exercise whose function or class runs while the picture is drawn. A product of a
    matrix product or a convolution belongs to the innermost part that computes it. For example, the
    products of the Linear layers in GEGLU belong to the exercise geglu.

    Returns a dictionary: name of the exercise -> number of products. The name "" stands for what
    is outside of all parts.
    """
    codes = part_codes()
    counter = ProductCounter(codes)
    ran: set[CodeType] = set()
    sd = minisd.load("mini")
    before = sys.getprofile()
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:  # the fused kernel would hide its two products
            sys.setprofile(lambda frame, event, argument: ran.add(frame.f_code))
            sd.txt2img("a blue cat on a red background", steps=steps)
    finally:
        sys.setprofile(before)
    names = dict.fromkeys(name for code, name in codes.items() if code in ran)
    return {name: counter.products[name] for name in [*names, ""]}


class ProductCounter(TorchDispatchMode):
    """Counts the products of the matrix products and convolutions that run in its `with` block.

    codes: the code of every function and method of the parts -> the name of the exercise
    """

    def __init__(self, codes: dict[CodeType, str]):
        super().__init__()
        self.codes = codes
        self.products: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            frame = sys._getframe()
            while frame and frame.f_code not in self.codes:
                frame = frame.f_back
            name = self.codes[frame.f_code] if frame else ""
            self.products[name] += count(*args, **(kwargs or {}), out_val=result) // 2
        return result


def part_codes() -> dict[CodeType, str]:
    """The code of every function and method that an exercise replaces -> the exercise's name.

    If one exercise asks for a class, and another one for a method of it, the method belongs to the
    other one.
    """
    targets = [(target, one.name) for one in all_exercises() for target in one.replaces]
    codes = {}
    for target, name in sorted(targets, key=lambda pair: pair[0].count(".")):
        *_, thing = find_part(target)
        for member in vars(thing).values() if isinstance(thing, type) else [thing]:
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if code := getattr(inspect.unwrap(function), "__code__", None):
                codes[code] = name
    return codes
