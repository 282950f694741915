"""One step of learning a vocabulary: choose the pair to join."""

from collections import Counter
from itertools import pairwise

from minisd.exercises.exercise import Exercise, Stage, draw_choice


def best_pair(words, ids):
    """The most frequent pair of neighbouring pieces.

    words: a list with (pieces, count) for each word. count: how often the word occurs
    ids: a dictionary: piece -> id. Of equally frequent pairs, the one with the lowest ids wins
    returns: a tuple of two strings
    """
    counts = Counter()
    for pieces, count in words:
        for pair in pairwise(pieces):
            counts[pair] += count
    most = max(counts.values())
    candidates = [pair for pair in counts if counts[pair] == most]
    return min(candidates, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def count_pairs(words):
    counts = Counter()
    for pieces, count in words:
        for pair in pairwise(pieces):
            counts[pair] += count
    return counts


def ignore_counts(words, ids):
    return best_pair([(pieces, 1) for pieces, _ in words], ids)


def once_per_word(words, ids):
    counts = Counter()
    for pieces, count in words:
        for pair in set(pairwise(pieces)):
            counts[pair] += count
    return min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))


def across_words(words, ids):
    pieces = [piece for word, count in words for piece in word * count]
    return best_pair([(pieces, 1)], ids)


def first_seen(words, ids):
    counts = count_pairs(words)
    return max(counts, key=lambda pair: counts[pair])


def last_seen(words, ids):
    counts = count_pairs(words)
    return max(reversed(counts), key=lambda pair: counts[pair])


def alphabetical(words, ids):
    counts = count_pairs(words)
    return min(counts, key=lambda pair: (-counts[pair], pair))


def highest_ids(words, ids):
    counts = count_pairs(words)
    return max(counts, key=lambda pair: (counts[pair], ids[pair[0]], ids[pair[1]]))


def second_id_first(words, ids):
    counts = count_pairs(words)
    return min(counts, key=lambda pair: (-counts[pair], ids[pair[1]], ids[pair[0]]))


def rarest(words, ids):
    counts = count_pairs(words)
    return min(counts, key=lambda pair: (counts[pair], ids[pair[0]], ids[pair[1]]))


def joined_text(words, ids):
    return "".join(best_pair(words, ids))


def number(g, low, high):
    return draw_choice(g, range(low, high))


IDS = {piece: index for index, piece in enumerate(["t", "h", "e", "c", "a", "s", "e</w>", "t</w>"])}


def one_word(g):
    return [[(["c", "a", "c", "a", "t</w>"], number(g, 1, 9))], IDS]


def several_words(g):
    words = [
        (["t", "h", "e</w>"], number(g, 30, 40)),
        (["a"], number(g, 60, 70)),
        (["c", "a", "t</w>"], number(g, 2, 5)),
        (["s", "a", "t</w>"], number(g, 2, 5)),
        (["h", "a", "t</w>"], number(g, 2, 5)),
        (["t", "h", "a", "t</w>"], number(g, 2, 5)),
        (["s", "e"], number(g, 2, 5)),
        (["s", "e"], number(g, 2, 5)),
    ]
    return [words, IDS]


def repeats(g):
    few = number(g, 5, 9)
    words = [(["c", "a", "c", "a", "c", "a", "s"], few), (["t", "h", "e</w>"], few + 2)]
    return [words, IDS]


def ties(g):
    count = number(g, 3, 9)
    pairs = [("c", "e"), ("a", "t"), ("t", "s"), ("s", "h"), ("a", "c"), ("t", "e"), ("e", "h")]
    words = [(list(pair), count) for pair in pairs]
    return [[*words, (["a", "h"], count - 1)], IDS]


EXERCISE = Exercise(
    name="best_pair",
    lesson="05",
    place=5,
    title="Learn the next merge",
    question=(
        "To learn a vocabulary, we join the most frequent pair of neighbouring pieces, again and "
        "again. Write `best_pair(words, ids)`, which chooses this pair. `words` is a list: for "
        "each word, it holds the pieces and how often the word occurs. A word that occurs 5 "
        "times counts 5 times. If several pairs are equally frequent, take the pair whose left "
        "piece has the lowest id. If the left pieces are equal, too, the lowest id of the right "
        "piece decides. Return the pair as a tuple."
    ),
    solution=best_pair,
    stages=(
        Stage("one word", 1, one_word),
        Stage("several words", 1, several_words),
        Stage("a pair that occurs several times in a word", 1, repeats),
        Stage("equally frequent pairs", 2, ties),
    ),
    hints=(
        "Count first: a Counter with a pair as the key. Then choose.",
        "For each pair of a word, add the count of the word, not 1.",
        "min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]])) compares the "
        "counts first, and then both ids.",
    ),
    mistakes={
        "A word that occurs 5 times should count 5 times.": ignore_counts,
        "A pair may occur several times in one word. Count each of them.": once_per_word,
        "You counted pairs across the border between two words.": across_words,
        "Of equally frequent pairs, you took the first one. The lowest ids should decide.": (
            first_seen
        ),
        "Of equally frequent pairs, you took the last one. The lowest ids should decide.": (
            last_seen
        ),
        "Compare equally frequent pairs by their ids, not by the alphabet.": alphabetical,
        "Of equally frequent pairs, you took the highest ids. Take the lowest ones.": highest_ids,
        "Compare the id of the left piece first, then the id of the right piece.": (
            second_id_first
        ),
        "This is the rarest pair. Choose the most frequent one.": rarest,
        "Return the pair as a tuple of two strings, not joined.": joined_text,
    },
    passing=(
        "If you repeat this, join each pair and give each new piece the next id, you learn a "
        "vocabulary."
    ),
    difficulty=2,
    minutes=15,
    needs=("join_pair",),
    given="from collections import Counter\nfrom itertools import pairwise",
)
