"""A row of 77 ids for the text transformer."""

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, draw_choice


def token_row(ids, begin, end, pad):
    """Make a row of 77 ids: the begin mark, at most 75 ids, the end mark, padding.

    ids: a list of numbers    begin, end, pad: the ids of the marks and of the padding
    returns: a list of 77 numbers
    """
    row = [begin, *ids[:75], end]
    while len(row) < 77:
        row.append(pad)
    return row


def cut_end_mark(ids, begin, end, pad):
    return ([begin, *ids, end] + [pad] * 77)[:77]


def pad_with_zero(ids, begin, end, pad):
    return token_row(ids, begin, end, 0)


def pad_with_end(ids, begin, end, pad):
    return token_row(ids, begin, end, end)


def pad_before_end(ids, begin, end, pad):
    row = [begin, *ids[:75]]
    return [*row, *[pad] * (76 - len(row)), end]


def pad_in_front(ids, begin, end, pad):
    row = [begin, *ids[:75], end]
    return [pad] * (77 - len(row)) + row


def without_begin(ids, begin, end, pad):
    return ([*ids[:76], end] + [pad] * 77)[:77]


def without_end(ids, begin, end, pad):
    return ([begin, *ids[:76]] + [pad] * 77)[:77]


def keep_last_ids(ids, begin, end, pad):
    return token_row(ids[-75:], begin, end, pad)


def without_cut(ids, begin, end, pad):
    row = [begin, *ids, end]
    return row + [pad] * (77 - len(row))


def cut_to_77(ids, begin, end, pad):
    row = [begin, *ids[:77], end]
    return row + [pad] * (77 - len(row))


def marks_not_counted(ids, begin, end, pad):
    ids = ids[:75]
    return [begin, *ids, end] + [pad] * (77 - len(ids))


def filled_to_75(ids, begin, end, pad):
    row = [begin, *ids[:75], end]
    return row + [pad] * (75 - len(row))


def ids_and_marks(count):
    def draw(g):
        ids = torch.randint(1, 1000, (count,), generator=g).tolist()
        marks = [1022, 1023] if draw_choice(g, [True, False]) else [2001, 2002]
        return [ids, *marks, 1000 + draw_choice(g, range(9))]

    return draw


EXERCISE = Exercise(
    name="token_row",
    lesson="05",
    place=6,
    title="A row of 77 ids",
    question=(
        "The text transformer reads rows of 77 ids. Write `token_row(ids, begin, end, pad)`: the "
        "begin mark, at most the first 75 ids, and the end mark. If the row is shorter than 77, "
        "fill up its end with `pad`. Every row has its end mark, even if the ids were cut off."
    ),
    solution=token_row,
    stages=(
        Stage("a short prompt", 1, ids_and_marks(5)),
        Stage("exactly 75 ids", 1, ids_and_marks(75)),
        Stage("a prompt that is too long", 1, ids_and_marks(90)),
    ),
    hints=(
        "Cut the ids first. Then put the marks around them.",
        "ids[:75] is the whole list if there are fewer than 75 ids.",
        "row = [begin, *ids[:75], end]. Then append pad until len(row) is 77.",
    ),
    mistakes={
        "A long prompt lost its end mark. Cut the ids to 75 before you add the marks.": (
            cut_end_mark
        ),
        "The padding is 0. It should be `pad`.": pad_with_zero,
        "The padding is the end mark. It should be `pad`.": pad_with_end,
        "The padding should come after the end mark, not before it.": pad_before_end,
        "The padding should come at the end of the row, not in front.": pad_in_front,
        "The begin mark is missing.": without_begin,
        "The end mark is missing.": without_end,
        "Keep the first 75 ids of a long prompt, not the last 75.": keep_last_ids,
        "A long prompt is not cut. Keep only its first 75 ids.": without_cut,
        "You cut to 77 ids, and then added two marks. Only 75 ids fit.": cut_to_77,
        "There are two ids too many. The marks take two of the 77 places.": (marks_not_counted),
        "The row should have 77 ids in the end, the marks included.": filled_to_75,
    },
    passing="Each prompt reaches the text transformer as such a row.",
    difficulty=1,
    minutes=10,
    replaces={
        "minisd.tokenizer.Tokenizer.row": lambda answer: (
            lambda self, ids: answer(list(ids), self.begin, self.end, self.pad_token)
        )
    },
    draw=draw_cat,
    in_lesson=True,
)
