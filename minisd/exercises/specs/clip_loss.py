"""The loss that CLIP was trained with (Radford et al. 2021, figure 3)."""

import torch
import torch.nn.functional as F

from minisd.exercises.exercise import Exercise, Stage, normal


def clip_loss(pictures, texts, temperature):
    """How well a batch of pictures and texts is matched: 0 is perfect.

    pictures, texts: b c, one vector for each. Row i of both belongs together
    temperature: a number, more than 0    returns: one number
    """
    pictures = F.normalize(pictures, dim=1)
    texts = F.normalize(texts, dim=1)
    scores = pictures @ texts.T / temperature
    right = torch.arange(len(scores))
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


def of_scores(scores):
    right = torch.arange(len(scores))
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


def cosines(pictures, texts):
    return F.normalize(pictures, dim=1) @ F.normalize(texts, dim=1).T


def dot_products(pictures, texts, temperature):
    return of_scores(pictures @ texts.T / temperature)


def normalize_columns(pictures, texts, temperature):
    return of_scores(F.normalize(pictures, dim=0) @ F.normalize(texts, dim=0).T / temperature)


def only_pictures_normalized(pictures, texts, temperature):
    return of_scores(F.normalize(pictures, dim=1) @ texts.T / temperature)


def no_temperature(pictures, texts, temperature):
    return of_scores(cosines(pictures, texts))


def times_temperature(pictures, texts, temperature):
    return of_scores(cosines(pictures, texts) * temperature)


def logarithm(pictures, texts, temperature):
    return of_scores(cosines(pictures, texts) * torch.tensor(temperature).exp())


def pictures_only(pictures, texts, temperature):
    scores = cosines(pictures, texts) / temperature
    return F.cross_entropy(scores, torch.arange(len(scores)))


def texts_only(pictures, texts, temperature):
    return pictures_only(texts, pictures, temperature)


def not_halved(pictures, texts, temperature):
    return 2 * clip_loss(pictures, texts, temperature)


def sum_over_batch(pictures, texts, temperature):
    return len(pictures) * clip_loss(pictures, texts, temperature)


def first_is_right(pictures, texts, temperature):
    scores = cosines(pictures, texts) / temperature
    right = torch.zeros(len(scores), dtype=torch.long)
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


def only_right_pairs(pictures, texts, temperature):
    return -(cosines(pictures, texts) / temperature).diagonal().mean()


def softmax_twice(pictures, texts, temperature):
    scores = cosines(pictures, texts) / temperature
    right = torch.arange(len(scores))
    rows, columns = scores.softmax(dim=1), scores.T.softmax(dim=1)
    return (F.cross_entropy(rows, right) + F.cross_entropy(columns, right)) / 2


def squared_error(pictures, texts, temperature):
    return F.mse_loss(F.normalize(pictures, dim=1), F.normalize(texts, dim=1))


def pairs(g, count, width, temperature):
    """Vectors that are matched, but not perfectly."""
    pictures = normal(g, count, width)
    return [pictures, 2 * pictures + normal(g, count, width), temperature]


EXERCISE = Exercise(
    name="clip_loss",
    lesson="06",
    place=9,
    title="The loss of CLIP",
    question=(
        "Write `clip_loss(pictures, texts, temperature)`. Row i of `pictures` and row i of `texts` "
        "belong together. Give every vector the length 1. Compute the score of each picture with "
        "each text: their dot product, divided by the temperature. This is a square of scores. "
        "In row i, the right answer is number i. The cross-entropy of all rows asks which text "
        "belongs to a picture. The cross-entropy of all columns asks which picture belongs to a "
        "text. Return the mean of the two."
    ),
    solution=clip_loss,
    stages=(
        Stage("two pairs", 1, lambda g: pairs(g, 2, 3, 1.0)),
        Stage("six pairs", 2, lambda g: pairs(g, 6, 8, 0.5)),
        Stage("a low temperature", 1, lambda g: pairs(g, 5, 16, 0.07)),
    ),
    hints=(
        "Three steps: the lengths, the square of scores, the two cross-entropies.",
        "F.normalize(pictures, dim=1) gives every row the length 1. F.cross_entropy(scores, right) "
        "takes scores b b, and the number of the right answer in each row.",
        "scores = pictures @ texts.T / temperature. right = torch.arange(len(scores)). The second "
        "cross-entropy is that of scores.T.",
    ),
    mistakes={
        "The vectors do not have the length 1. Divide each by its own length.": dot_products,
        "Each row is a vector: F.normalize(…, dim=1), not dim=0.": normalize_columns,
        "Only the pictures have the length 1. The texts need it, too.": only_pictures_normalized,
        "The scores are not divided by the temperature.": no_temperature,
        "You multiplied by the temperature. Divide by it.": times_temperature,
        "You multiplied by exp(temperature). Divide by the temperature itself.": logarithm,
        "The columns are missing: each text must also find its picture.": pictures_only,
        "The rows are missing: each picture must also find its text.": texts_only,
        "This is the sum of the two cross-entropies. Return their mean.": not_halved,
        "This is a sum over the batch. Return the mean over the batch.": sum_over_batch,
        "In row i the right answer is number i, not 0: torch.arange.": first_is_right,
        "You used only the right pairs. The wrong pairs must get low scores.": only_right_pairs,
        "F.cross_entropy contains the softmax already. Give it the scores.": softmax_twice,
        "This only moves pairs together. The loss must also compare with the wrong pairs.": (
            squared_error
        ),
    },
    passing="This one number trained both of CLIP's towers, on batches of 32,768 pairs.",
    difficulty=2,
    minutes=15,
    in_lesson=True,
)
