"""Ids become vectors: token embedding and position embedding."""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal


def embed_tokens(tokens, table, positions):
    """For each token, its row of the table plus the row of its place.

    tokens: b n    table: vocabulary c    positions: 77 c (or fewer rows)    returns: b n c
    """
    b, n = tokens.shape
    x = torch.zeros(b, n, table.shape[1], dtype=table.dtype)
    for sample in range(b):
        for place in range(n):
            x[sample, place] = table[tokens[sample, place]] + positions[place]
    return x


def no_positions(tokens, table, positions):
    return table[tokens]


def positions_of_ids(tokens, table, positions):
    return table[tokens] + positions[tokens % len(positions)]


def last_positions(tokens, table, positions):
    return table[tokens] + positions[-tokens.shape[1] :]


def all_positions(tokens, table, positions):
    return table[tokens] + positions


def multiply_both(tokens, table, positions):
    return table[tokens] * positions[: tokens.shape[1]]


def from_one(tokens, table, positions):
    return table[tokens] + positions[1 : tokens.shape[1] + 1]


def one_position(tokens, table, positions):
    return table[tokens] + positions[0]


def only_positions(tokens, table, positions):
    return positions[: tokens.shape[1]].expand(len(tokens), -1, -1)


def tokens_of_first(tokens, table, positions):
    return embed_tokens(tokens[:1], table, positions)


def side_by_side(tokens, table, positions):
    x = table[tokens]
    return torch.cat([x, positions[: x.shape[1]].expand(len(x), -1, -1)], dim=-1)


def inputs(b, n):
    def draw(g):
        tokens = torch.randint(30, (b, n), generator=g)
        return [tokens, normal(g, 30, 5), normal(g, 9, 5)]

    return draw


EXERCISE = Exercise(
    name="embed_tokens",
    lesson="06",
    place=3,
    title="Token and position",
    question=(
        "Write `embed_tokens(tokens, table, positions)`. The table has one row for each id of the "
        "vocabulary, and `positions` has one row for each place. The vector of a token is the "
        "row of its id plus the row of its place. The row of tokens may be shorter than "
        "`positions`: the first token always gets the first row."
    ),
    solution=embed_tokens,
    stages=(
        Stage("one token", 1, inputs(1, 1)),
        Stage("a row of 6 tokens", 1, inputs(1, 6)),
        Stage("a batch of 2", 1, inputs(2, 7)),
    ),
    hints=(
        "A tensor of ids is an index: table[tokens] looks up all of them at once.",
        "table[tokens] is b n c. Which part of positions is n c?",
        "positions[: tokens.shape[1]] has a row for each place that is used. Add it: the batch "
        "axis is broadcast.",
    ),
    mistakes={
        "The positions are missing. Without them, word order does not matter.": no_positions,
        "You chose the row of positions by the id. Choose it by the token's place.": (
            positions_of_ids
        ),
        "A short row of tokens should get the first positions, not the last ones.": last_positions,
        "There may be fewer tokens than positions. Use the first n rows of positions.": (
            all_positions
        ),
        "You multiplied the two vectors. Add them.": multiply_both,
        "Places are counted from 0: the first token gets positions[0].": from_one,
        "Each place has its own row of positions. You added positions[0] everywhere.": (
            one_position
        ),
        "These are only the positions. Add the rows of the table.": only_positions,
        "This is the first sample only. Return all samples: b n c.": tokens_of_first,
        "You put the two vectors next to each other. Add them.": side_by_side,
    },
    passing="The text transformer begins with this line.",
    difficulty=1,
    minutes=10,
)
