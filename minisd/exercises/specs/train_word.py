"""One training step of textual inversion: only the rows of the new word may change."""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal


def train_step(table, tokens, slope, new_ids, rate):
    """The table of embeddings after one step of gradient descent.

    table: vocabulary c    tokens: b n, whole numbers
    slope: b n c, the gradient of the loss with respect to the vector at each place
    new_ids: a list of ids, the only rows that may change    rate: the learning rate
    returns: vocabulary c
    """
    table = table.clone()
    for index in new_ids:
        here = tokens == index
        table[index] = table[index] - rate * slope[here].sum(dim=0)
    return table


def row_gradients(table, tokens, slope):
    return torch.zeros_like(table).index_add(0, tokens.flatten(), slope.flatten(0, 1))


def all_rows(table, tokens, slope, new_ids, rate):
    return table - rate * row_gradients(table, tokens, slope)


def last_place_only(table, tokens, slope, new_ids, rate):
    table = table.clone()
    for index in new_ids:
        table[index] = table[index] - rate * slope[tokens == index][-1]
    return table


def first_place_only(table, tokens, slope, new_ids, rate):
    table = table.clone()
    for index in new_ids:
        table[index] = table[index] - rate * slope[tokens == index][0]
    return table


def mean_of_places(table, tokens, slope, new_ids, rate):
    table = table.clone()
    for index in new_ids:
        table[index] = table[index] - rate * slope[tokens == index].mean(dim=0)
    return table


def mean_of_samples(table, tokens, slope, new_ids, rate):
    return train_step(table, tokens, slope, new_ids, rate / len(tokens))


def uphill(table, tokens, slope, new_ids, rate):
    return train_step(table, tokens, slope, new_ids, -rate)


def without_rate(table, tokens, slope, new_ids, rate):
    return train_step(table, tokens, slope, new_ids, 1)


def old_rows(table, tokens, slope, new_ids, rate):
    old = [index for index in range(len(table)) if index not in new_ids]
    return train_step(table, tokens, slope, old, rate)


def one_new_id(table, tokens, slope, new_ids, rate):
    return train_step(table, tokens, slope, new_ids[:1], rate)


def only_gradient(table, tokens, slope, new_ids, rate):
    return train_step(table, tokens, slope, new_ids, 1) - table


def one_sample(table, tokens, slope, new_ids, rate):
    return train_step(table, tokens[:1], slope[:1], new_ids, rate)


def all_places(table, tokens, slope, new_ids, rate):
    table = table.clone()
    for index in new_ids:
        table[index] = table[index] - rate * slope.sum(dim=(0, 1))
    return table


def inputs(b, n, new_ids):
    def draw(g):
        tokens = torch.randint(7, (b, n), generator=g)
        for sample in range(b):
            places = torch.randperm(n, generator=g)[: 2 * len(new_ids)]
            tokens[sample, places] = torch.tensor(2 * new_ids)
        return [normal(g, 7, 4), tokens, normal(g, b, n, 4), new_ids, 0.3]

    return draw


EXERCISE = Exercise(
    name="train_word",
    lesson="15",
    place=2,
    title="Train only the new word",
    question=(
        "Write `train_step(table, tokens, slope, new_ids, rate)`, one step of gradient descent for "
        "the vectors of a new word. Here the new word has rows in the table. `slope` is the "
        "gradient at each place of the prompts. A token may stand at several places, and in "
        "several samples: the gradient of its row is the sum over all of them. Subtract rate times "
        "this gradient from the rows in new_ids. All other rows stay as they are. Return the "
        "whole table."
    ),
    solution=train_step,
    stages=(
        Stage("one new row, one prompt", 1, inputs(1, 4, [6])),
        Stage("two new rows", 1, inputs(1, 7, [4, 6])),
        Stage("two prompts", 2, inputs(2, 8, [2, 5])),
    ),
    hints=(
        "slope[tokens == index] holds the gradients of all places of one token.",
        "Sum them, and change only one row: table[index] - rate * sum.",
        "table[tokens] -= rate * slope does not add up: if a token stands at two places, only one "
        "of them counts. Use a loop over new_ids and .sum(dim=0).",
    ),
    mistakes={
        "All rows changed. Change only the rows in new_ids.": all_rows,
        "Only one of a token's places counts, the last one. Sum over its places.": last_place_only,
        "Only one of a token's places counts, the first one. Sum over its places.": (
            first_place_only
        ),
        "You took the mean over a token's places. Take the sum.": mean_of_places,
        "You divided by the number of samples. Take the sum over all of them.": mean_of_samples,
        "The step goes uphill. Subtract the gradient.": uphill,
        "The learning rate is missing. Multiply the gradient by it.": without_rate,
        "The old rows changed. Change the rows in new_ids instead.": old_rows,
        "Only the first row of new_ids changed. Change all of them.": (one_new_id),
        "You returned the change. Return the new table.": only_gradient,
        "You used the first prompt only. Sum over all prompts.": one_sample,
        "You summed over all places. Only those of the row's own token count.": all_places,
    },
    passing="In this way, the model forgets nothing, and the file of the word stays small.",
    difficulty=2,
    minutes=15,
    needs=("new_word",),
)
