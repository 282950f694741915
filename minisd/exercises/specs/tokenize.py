"""The whole tokenizer: texts become rows of ids."""

from collections import defaultdict

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, draw_choice
from minisd.exercises.parts import bpe, token_row
from minisd.tokenizer import BEGIN, END, byte_words, clean, clip_layout, learn_merges


def tokenize(texts, ids, ranks, pad):
    """Turn each text into a row of 77 ids.

    texts: b strings    returns: b 77
    ids: a dictionary: piece -> id    ranks: a dictionary: pair of pieces -> when it was learnt
    pad: the id that fills up a row
    """
    rows = []
    for text in texts:
        found = []
        for word in byte_words(clean(text)):
            pieces = [word] if word in (BEGIN, END) else bpe(word, ranks)
            found += [ids[piece] for piece in pieces]
        rows.append(token_row(found, ids[BEGIN], ids[END], pad))
    return torch.tensor(rows)


def without_clean(texts, ids, ranks, pad):
    rows = []
    for text in texts:
        words = [[one] if one in (BEGIN, END) else bpe(one, ranks) for one in byte_words(text)]
        found = [ids[piece] for pieces in words for piece in pieces]
        rows.append(token_row(found, ids[BEGIN], ids[END], pad))
    return torch.tensor(rows)


def split_marks(texts, ids, ranks, pad):
    rows = []
    for text in texts:
        found = [ids[piece] for word in byte_words(clean(text)) for piece in bpe(word, ranks)]
        rows.append(token_row(found, ids[BEGIN], ids[END], pad))
    return torch.tensor(rows)


def pad_with_end(texts, ids, ranks, pad):
    return tokenize(texts, ids, ranks, ids[END])


def pad_with_zero(texts, ids, ranks, pad):
    return tokenize(texts, ids, ranks, 0)


def swapped_marks(texts, ids, ranks, pad):
    other = ids | {BEGIN: ids[END], END: ids[BEGIN]}
    return tokenize(texts, other, ranks, pad)


def first_text(texts, ids, ranks, pad):
    return tokenize(texts[:1], ids, ranks, pad)


def one_row(texts, ids, ranks, pad):
    return tokenize(texts[:1], ids, ranks, pad)[0]


def all_in_one(texts, ids, ranks, pad):
    return tokenize([" ".join(texts)], ids, ranks, pad)


def lists(texts, ids, ranks, pad):
    return tokenize(texts, ids, ranks, pad).tolist()


def no_merges(texts, ids, ranks, pad):
    return tokenize(texts, ids, {}, pad)


def texts_of(*templates):
    """The arguments of a stage. {a} and {b} stand for two things."""

    def draw(g):
        things = ["cat", "dog", "owl", "apple", "house", "tulip", "robot"]
        counts = {thing: 10 + draw_choice(g, range(9)) for thing in [*things, "blue", "café"]}
        merges = learn_merges(counts, 25)
        ids = {piece: index for index, piece in enumerate(clip_layout(merges))}
        ranks = {pair: rank for rank, pair in enumerate(merges)}
        a, b = draw_choice(g, things), draw_choice(g, things)
        texts = [one.format(a=a, b=b) for one in templates]
        return [texts, ids, ranks, draw_choice(g, range(1, 9))]

    return draw


def as_call(answer):
    """The answer as Tokenizer.__call__."""

    def call(self, texts):
        if self.added_words.by_form:
            raise ValueError(
                "your tokenize() does not know added words. Draw without textual inversions."
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("there is no text. Give one or more.")
        ids = defaultdict(lambda: self.unk_token, self.ids)
        return answer(texts, ids, self.ranks, self.pad_token)

    return call


EXERCISE = Exercise(
    name="tokenize",
    lesson="05",
    place=7,
    title="From texts to rows of ids",
    question=(
        "Put the parts together: write `tokenize(texts, ids, ranks, pad)`. For each text, call "
        "`clean`, then `byte_words`, then `bpe(word, ranks)` for each word. Look up the ids of "
        "all pieces of the text in the dictionary `ids`, and make one row of them with "
        "`token_row`. If a word is a mark itself (`BEGIN` or `END`), do not split it: it is one "
        "piece. The ids of the marks are `ids[BEGIN]` and `ids[END]`. Return a tensor with one "
        "row for each text."
    ),
    solution=tokenize,
    stages=(
        Stage("one text", 1, texts_of("a {a} and a {b}")),
        Stage("two texts that have to be cleaned", 2, texts_of("a  BLUE {a}", "{b}s &amp; a Café")),
        Stage(
            "a long text, and a text with a mark", 1, texts_of("{a} " * 80, f"{{b}} {END} {{a}}")
        ),
    ),
    hints=(
        "Write the loops first: over the texts, over the words of a text, over the pieces of a "
        "word.",
        "Collect the ids of one text in a list. After the loop over its words, make the row. "
        "Collect the rows in another list.",
        "pieces = [word] if word in (BEGIN, END) else bpe(word, ranks). The last line is "
        "torch.tensor(rows).",
    ),
    mistakes={
        "The texts are not cleaned.": without_clean,
        "A word that is a mark itself, such as <|endoftext|>, should stay one piece.": split_marks,
        "The padding is the end mark. It should be `pad`.": pad_with_end,
        "The padding is 0. It should be `pad`.": pad_with_zero,
        "The begin mark and the end mark are swapped.": swapped_marks,
        "Only the first text has a row. There should be one row for each text.": first_text,
        "This is one row without a batch axis. Return a tensor of shape b 77.": one_row,
        "All texts are in one row. There should be one row for each text.": all_in_one,
        "Return a tensor: torch.tensor(rows).": lists,
        "The ranks are not used, so no pieces are merged.": no_merges,
    },
    passing=(
        "The first part of Stable Diffusion is yours: from the prompt to the ids. (Ours also "
        "warns if a prompt is too long.)"
    ),
    difficulty=3,
    minutes=20,
    needs=("clean", "byte_words", "bpe", "token_row"),
    given=(
        "from minisd.exercises.parts import bpe, token_row\n"
        "from minisd.tokenizer import BEGIN, END, byte_words, clean"
    ),
    replaces={"minisd.tokenizer.Tokenizer.__call__": as_call},
    draw=draw_cat,
)
