"""How varied a list of names is, and how much a number depends on the samples."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from math import log2
from typing import Any


def entropy(names: Sequence[str]) -> float:
    """The entropy of the names in bits: 0 if all are the same, 1 if two are equally frequent.

    >>> entropy(["cat", "dog", "cat", "dog"])
    1.0
    """
    shares = [count / len(names) for count in Counter(names).values()]
    return sum(-share * log2(share) for share in shares)


def interval(
    values: Sequence, measure: Callable[[list], Any], times: int = 400
) -> tuple[float, float]:
    """The 95 % interval of a number, by the bootstrap (Efron 1979).

    The values are drawn again and again, with repetition. 95 % of the results lie in the interval.

    measure: a function that computes the number from a list of values
    times: how often the values are drawn
    """
    dice = random.Random(0)
    results = sorted(measure(dice.choices(values, k=len(values))) for _ in range(times))
    cut = times // 40
    return results[cut], results[-1 - cut]
