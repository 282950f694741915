"""Read prompts of any length, and prompts with weights, such as "a (red:1.3) cat".

The weights are written as in AUTOMATIC1111's web UI.
"""

import regex
import torch
from einops import rearrange, reduce
from torch import Tensor

from minisd.text.repair import refuse_long_text
from minisd.tokenizer import Tokenizer


def chunks(tokenizer: Tokenizer, text: str) -> Tensor:
    """Split a prompt of any length into rows of at most 75 pieces. Nothing is cut off.

    returns: chunk 77. Each chunk is a row: the begin mark, at most 75 pieces, the end mark, padding

    The text transformer reads each row separately. After that, the contexts of all rows are joined:
    rearrange(context, "chunk m c -> 1 (chunk m) c").

    Raises ValueError if it would take too long to read the text.
    """
    rows = fill_rows(tokenizer.id_groups(text), tokenizer.places)
    return torch.tensor([tokenizer.row(ids) for ids in rows])


def fill_rows(groups: list[list], places: int) -> list[list]:
    """Fill rows with groups of ids. If a group does not fit into a row, it begins the next row.

    AUTOMATIC1111's web UI does the same.

    places: the number of ids that fit into a row

    fill_rows([[1], [2, 3], [4]], places=2) -> [[1], [2, 3], [4]]
    """
    rows: list[list] = [[]]
    for group in groups:
        if len(rows[-1]) + len(group) > places:
            rows.append([])
        rows[-1] = rows[-1] + group
    return rows


# A backslash before a parenthesis makes the parenthesis a part of the text.
_LETTERS = r"(?:\\[()]|[^()])+"
_NUMBER = r"[+-]?(?:\d++(?:\.\d++)?|\.\d++)"  # ++ never tries fewer digits, so matching is fast
LARGEST_WEIGHT = 1000  # larger weights overflow in half precision
WEIGHTED = regex.compile(rf"\(({_LETTERS}):\s*({_NUMBER})\s*\)|({_LETTERS})|([()].{{0,20}})")


def parse_weights(text: str) -> list[tuple[str, float]]:
    r"""Split "a (red:1.3) cat" into [("a ", 1.0), ("red", 1.3), (" cat", 1.0)].

    Parentheses that are a part of the text are written \( and \).

    Raises ValueError if any other parentheses are unbalanced, nested, or without a number, if a
    weight is above 1000 or below -1000, or if the text is too long.
    """
    refuse_long_text(text)
    parts = []
    for words, number, plain, wrong in WEIGHTED.findall(text):
        if wrong:
            raise ValueError(
                rf"the weight at {wrong!r} cannot be read. Write (words:1.2), and \( \) for"
                " parentheses that are a part of the text."
            )
        letters = regex.sub(r"\\([()])", r"\1", words or plain)
        weight = float(number or 1)
        if abs(weight) > LARGEST_WEIGHT:
            limit = f"Give at most {LARGEST_WEIGHT}; about 1 is usual"
            raise ValueError(f"the weight {number[:20]} is too large. {limit}.")
        parts.append((letters, weight))
    return parts


def weighted_chunks(tokenizer: Tokenizer, text: str) -> tuple[Tensor, Tensor]:
    """Split a text with weights, such as (words:1.2), into rows, as chunks() does.

    returns: two tensors of shape (chunk, 77): the tokens, and their weights. Words without a
    weight, marks and padding get the weight 1.

    Raises what parse_weights() and chunks() raise.
    """
    groups = []
    for words, weight in parse_weights(text):
        groups += [[(index, weight) for index in group] for group in tokenizer.id_groups(words)]
    rows = fill_rows(groups, tokenizer.places)
    tokens = [tokenizer.row([index for index, _ in row]) for row in rows]
    ones = [1.0] * tokenizer.max_length
    weights = [[1.0, *(weight for _, weight in row), *ones][: tokenizer.max_length] for row in rows]
    return torch.tensor(tokens), torch.tensor(weights)


def emphasize(context: Tensor, weights: Tensor) -> Tensor:
    """Multiply each token's context by its weight, then restore the mean of the whole context.

    context: b m c    weights: b m    returns: b m c

    AUTOMATIC1111's web UI restores the mean of the whole batch. minisd restores the mean of each
    prompt, so that the context of a prompt does not depend on the other prompts.
    """
    louder = context * rearrange(weights, "b m -> b m 1").to(context)
    mean = reduce(context, "b m c -> b 1 1", "mean")
    louder_mean = reduce(louder, "b m c -> b 1 1", "mean")
    ratio = torch.where(mean == louder_mean, 1, mean / louder_mean)  # a mean may be 0
    return louder * ratio
