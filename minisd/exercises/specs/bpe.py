"""Byte-pair encoding: merge the letters of a word into pieces."""

import math
from itertools import pairwise

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, draw_choice
from minisd.tokenizer import learn_merges


def bpe(word, ranks):
    """Split a word into letters, and merge them into pieces.

    word: a string    returns: a list of strings
    ranks: a dictionary: pair of pieces -> when it was learnt. 0 is the earliest
    """
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        earliest = min(pairs, key=lambda pair: ranks.get(pair, math.inf))
        if earliest not in ranks:
            break
        at = pairs.index(earliest)
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]
    return pieces


def merge_by(pieces, ranks, order, limit=99):
    """Merge the known pair that comes first in another order."""
    for _ in range(limit):
        known = [(order(at, pair), at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not known:
            break
        _, at = min(known)
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]
    return pieces


def with_mark(word):
    return [*word[:-1], word[-1] + "</w>"]


def without_mark(word, ranks):
    return merge_by(list(word), ranks, lambda at, pair: ranks[pair])


def mark_apart(word, ranks):
    return merge_by([*word, "</w>"], ranks, lambda at, pair: ranks[pair])


def leftmost(word, ranks):
    return merge_by(with_mark(word), ranks, lambda at, pair: at)


def latest(word, ranks):
    return merge_by(with_mark(word), ranks, lambda at, pair: -ranks[pair])


def one_merge(word, ranks):
    return merge_by(with_mark(word), ranks, lambda at, pair: ranks[pair], limit=1)


def no_merge(word, ranks):
    return with_mark(word)


def by_hand(g):
    a, b = draw_choice(g, "bcf"), draw_choice(g, "dgt")
    return [a + "a" + b, {("a", b + "</w>"): 0, (a, "a"): 1}]


def five_letters(g):
    a, b, c, d, e = (draw_choice(g, choices) for choices in ("ab", "cd", "ef", "gh", "ij"))
    return [a + b + c + d + e, {(b, c): 0, (c, d): 1, (a, b): 2, (d, e + "</w>"): 3}]


def ranks_from_words(word):
    def draw(g):
        texts = ["cat", "cats", "that", "beach", "dream", "dreams", "each", "teach", "reach"]
        counts = {text: 10 + int(draw_choice(g, range(9))) for text in texts}
        return [word, {pair: rank for rank, pair in enumerate(learn_merges(counts, 24))}]

    return draw


EXERCISE = Exercise(
    name="bpe",
    lesson="05",
    place=4,
    title="Byte-pair encoding",
    question=(
        "Write `bpe(word, ranks)`. Split the word into characters, and append `</w>` to the last "
        "character. Then repeat: of all pairs of neighbouring pieces, take the pair that was "
        "learnt earliest, the one with the smallest rank, and join it. If it occurs several "
        "times, join the leftmost one first. Stop when no pair is in `ranks`, or when only one "
        "piece is left."
    ),
    solution=bpe,
    stages=(
        Stage("three letters", 1, by_hand),
        Stage("five letters", 1, five_letters),
        Stage("many merges", 1, ranks_from_words("dreambeach")),
        Stage("the same pair several times", 1, ranks_from_words("atatatcat")),
        Stage("one letter", 1, ranks_from_words("a")),
    ),
    hints=(
        "itertools.pairwise(pieces) gives the pairs of neighbours.",
        "ranks.get(pair, math.inf) is a rank for every pair: unknown pairs come last. The "
        "smallest rank wins, not the first pair of the word.",
        "earliest = min(pairs, key=lambda pair: ranks.get(pair, math.inf)). If earliest is not in "
        "ranks, stop. Otherwise at = pairs.index(earliest), and join pieces[at] and "
        "pieces[at + 1].",
    ),
    mistakes={
        "The last character needs the end-of-word mark </w>.": without_mark,
        "</w> should not be a piece of its own. Append it to the last character.": mark_apart,
        "You join the first known pair of the word. Join the pair with the smallest rank.": (
            leftmost
        ),
        "You join the pair that was learnt last. Join the pair with the smallest rank.": latest,
        "You join the pair that comes first in the alphabet. The smallest rank wins.": (
            lambda word, ranks: merge_by(with_mark(word), ranks, lambda at, pair: pair)
        ),
        "You stop after one merge. Go on until no pair is in ranks.": one_merge,
        "No pair is joined. Join the pair with the smallest rank, again and again.": no_merge,
    },
    passing="With `minisd generate --mine`, your merges split every word of the prompt.",
    difficulty=2,
    minutes=20,
    given="import math\nfrom itertools import pairwise",
    replaces={
        "minisd.tokenizer.Tokenizer.bpe": lambda answer: lambda self, word: answer(word, self.ranks)
    },
    draw=draw_cat,
    in_lesson=True,
)
