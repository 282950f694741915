"""Prompts of any length, and weights of words as in AUTOMATIC1111's web UI: (red:1.3)."""

import regex
import torch
from einops import rearrange, reduce
from torch import LongTensor, Tensor

from minisd.text.repair import refuse_long_text
from minisd.tokenizer import Tokenizer


def chunks(tokenizer: Tokenizer, text: str) -> LongTensor:
    """A prompt of any length as several full rows, 75 pieces in each; nothing is cut.

    returns: chunk 77, at least one row. Each row goes through the text tower by itself; the
    contexts are then laid end to end: rearrange(context, "chunk m c -> 1 (chunk m) c").
    """
    rows = fill_rows(tokenizer.units(text), tokenizer.room)
    return torch.tensor([tokenizer.row(ids) for ids in rows])


def fill_rows(units: list[list], room: int) -> list[list]:
    """Lay units end to end into rows; one that does not fit begins the next row, as in the web UI.

    fill_rows([[1], [2, 3], [4]], 2) -> [[1], [2, 3], [4]]
    """
    rows: list[list] = [[]]
    for unit in units:
        if len(rows[-1]) + len(unit) > room:
            rows.append([])
        rows[-1] = rows[-1] + unit
    return rows


# A backslash before a parenthesis makes it an ordinary character.
_LETTERS = r"(?:\\[()]|[^()])+"
_NUMBER = r"[+-]?(?:\d++(?:\.\d++)?|\.\d++)"  # ++ never tries fewer digits: long ones stay fast
LARGEST_WEIGHT = 1000  # beyond it, half precision overflows
WEIGHTED = regex.compile(rf"\(({_LETTERS}):\s*({_NUMBER})\s*\)|({_LETTERS})|([()].{{0,20}})")


def parse_weights(text: str) -> list[tuple[str, float]]:
    r"""Split "a (red:1.3) cat" into [("a ", 1.0), ("red", 1.3), (" cat", 1.0)].

    Raises ValueError for any other parenthesis, unbalanced, nested or without a number; those
    meant as text are written \( and \). Also for a weight beyond 1000 and for too long a text.
    """
    refuse_long_text(text)
    parts = []
    for words, number, plain, wrong in WEIGHTED.findall(text):
        if wrong:
            raise ValueError(
                rf"cannot read the weight at {wrong!r}: write (words:1.2), and \( \) for"
                " parentheses that are part of the text"
            )
        letters = regex.sub(r"\\([()])", r"\1", words or plain)
        weight = float(number or 1)
        if abs(weight) > LARGEST_WEIGHT:
            largest = f"{LARGEST_WEIGHT} is the largest that works"
            raise ValueError(f"the weight {number[:20]} is too large: {largest}, about 1 is usual.")
        parts.append((letters, weight))
    return parts


def weighted(tokenizer: Tokenizer, text: str) -> tuple[LongTensor, Tensor]:
    """The rows of chunks() for a text with (words:1.2) in it, and the weight of every token.

    returns: tokens, chunk 77, and weights, chunk 77: 1 on plain words, marks and padding.
    Raises ValueError as parse_weights does.
    """
    units = []
    for words, weight in parse_weights(text):
        units += [[(index, weight) for index in unit] for unit in tokenizer.units(words)]
    rows = fill_rows(units, tokenizer.room)
    tokens = [tokenizer.row([index for index, _ in row]) for row in rows]
    ones = [1.0] * tokenizer.max_length
    weights = [[1.0, *(weight for _, weight in row), *ones][: tokenizer.max_length] for row in rows]
    return torch.tensor(tokens), torch.tensor(weights)


def emphasize(context: Tensor, weights: Tensor) -> Tensor:
    """Scale each token's context by its weight, then the whole back to the mean it had.

    context: b m c    weights: b m    returns: b m c
    The convention of AUTOMATIC1111's web UI, except that the mean is each prompt's own and not
    the batch's, so that a prompt's context does not depend on its neighbours.
    """
    louder = context * rearrange(weights, "b m -> b m 1").to(context)
    mean = reduce(context, "b m c -> b 1 1", "mean")
    louder_mean = reduce(louder, "b m c -> b 1 1", "mean")
    ratio = torch.where(mean == louder_mean, 1, mean / louder_mean)  # a mean may be 0
    return louder * ratio
