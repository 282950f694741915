"""How near words lie to each other."""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal


def word_cosines(vectors):
    """The cosine of each word with each word, without what all words have in common.

    vectors: n c, one row for each word    returns: n n
    """
    n = len(vectors)
    own = vectors - vectors.mean(dim=0)
    cosines = torch.zeros(n, n, dtype=vectors.dtype)
    for i in range(n):
        for j in range(n):
            length = own[i].norm() * own[j].norm()
            cosines[i, j] = (own[i] * own[j]).sum() / length
    return cosines


def with_mean(vectors):
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    return unit @ unit.T


def mean_of_each(vectors):
    return with_mean(vectors - vectors.mean(dim=1, keepdim=True))


def mean_number(vectors):
    return with_mean(vectors - vectors.mean())


def dot_products(vectors):
    own = vectors - vectors.mean(dim=0)
    return own @ own.T


def half_divided(vectors):
    own = vectors - vectors.mean(dim=0)
    return own @ own.T / own.norm(dim=1, keepdim=True)


def squared_lengths(vectors):
    own = vectors - vectors.mean(dim=0)
    return own @ own.T / (own.norm(dim=1)[:, None] * own.norm(dim=1)[None, :]) ** 2


def length_of_all(vectors):
    own = vectors - vectors.mean(dim=0)
    return own @ own.T / own.norm() ** 2


def lengths_of_columns(vectors):
    own = vectors - vectors.mean(dim=0)
    unit = own / own.norm(dim=0)
    return unit @ unit.T


def columns(vectors):
    own = vectors - vectors.mean(dim=0)
    unit = own / own.norm(dim=0)
    return unit.T @ unit


def lengths_before_mean(vectors):
    own = vectors - vectors.mean(dim=0)
    unit = own / vectors.norm(dim=1, keepdim=True)
    return unit @ unit.T


def unit_then_mean(vectors):
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    own = unit - unit.mean(dim=0)
    return own @ own.T


def divide_by_sums(vectors):
    own = vectors - vectors.mean(dim=0)
    unit = own / own.abs().sum(dim=1, keepdim=True)
    return unit @ unit.T


EXERCISE = Exercise(
    name="word_cosines",
    lesson="06",
    place=7,
    title="How similar are two words?",
    question=(
        "Write `word_cosines(vectors)`. `vectors` holds one vector for each word. All these "
        "vectors have much in common. So first subtract their mean vector from each of them. "
        "Then compute the cosine of each word with each word: multiply the two vectors number by "
        "number, sum up, and divide by both lengths."
    ),
    solution=word_cosines,
    stages=(
        Stage("two words", 1, lambda g: [normal(g, 2, 3) + 1]),
        Stage("five words", 2, lambda g: [normal(g, 5, 7) + normal(g, 7)]),
    ),
    hints=(
        "The mean goes over the words, so it is a vector of c numbers.",
        "If you first divide each vector by its own length, a cosine is only a dot product.",
        "own = vectors - vectors.mean(dim=0). unit = own / own.norm(dim=1, keepdim=True). The "
        "products of all rows with all rows are unit @ unit.T.",
    ),
    mistakes={
        "The mean vector of all words is not subtracted.": with_mean,
        "The mean goes over the words (dim=0), not over the numbers of one word.": mean_of_each,
        "Subtract the mean vector of the words, not one number.": mean_number,
        "These are dot products. Divide by both lengths.": dot_products,
        "You divided by one length only. Divide by the lengths of both words.": half_divided,
        "You divided by the squared lengths. Use the lengths themselves.": squared_lengths,
        "You divided by one length for all words. Each word has its own: norm(dim=1).": (
            length_of_all
        ),
        "The length of a word is the norm of its row, norm(dim=1).": lengths_of_columns,
        "You compared the columns. Compare the rows: one row is one word.": columns,
        "Compute the lengths after you have subtracted the mean.": lengths_before_mean,
        "Subtract the mean first. Then divide by the lengths.": unit_then_mean,
        "The length of a vector is the root of the sum of squares: norm().": divide_by_sums,
    },
    passing="The heat maps of the lesson are such tables. Synonyms lie near each other.",
    difficulty=1,
    minutes=10,
)
