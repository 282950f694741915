"""Textual inversion: the vectors of a word that the table does not have."""

import torch

from minisd.adapters.textual_inversion import textual_inversion
from minisd.config import WEIGHTS
from minisd.exercises.exercise import Exercise, Stage, normal


def look_up(tokens, table, first, vectors):
    """The vector of each token. The ids of the new word are first, first + 1, and so on.

    tokens: b n, whole numbers    table: vocabulary c
    vectors: count c, the vectors of the new word    returns: b n c
    """
    is_new = (tokens >= first) & (tokens < first + len(vectors))
    old = table[torch.where(is_new, 0, tokens)]
    new = vectors[torch.where(is_new, tokens - first, 0)]
    return torch.where(is_new[..., None], new, old)


def find_new(tokens, first, vectors):
    return ((tokens >= first) & (tokens < first + len(vectors)))[..., None]


def one_vector(tokens, table, first, vectors):
    return look_up(tokens, table, first, vectors[:1].repeat(len(vectors), 1))


def mean_vector(tokens, table, first, vectors):
    mean = vectors.mean(dim=0, keepdim=True).repeat(len(vectors), 1)
    return look_up(tokens, table, first, mean)


def backwards(tokens, table, first, vectors):
    return look_up(tokens, table, first, vectors.flip(0))


def append_rows(tokens, table, first, vectors):
    return torch.cat([table, vectors])[tokens]


def last_row(tokens, table, first, vectors):
    return table[tokens.clamp(0, len(table) - 1)]


def zero_row(tokens, table, first, vectors):
    return torch.where(find_new(tokens, first, vectors), 0, last_row(tokens, table, first, vectors))


def count_from_start(tokens, table, first, vectors):
    """Vector number i goes to the i-th place, not to the id first + i."""
    new = vectors[torch.arange(tokens.shape[1]) % len(vectors)]
    old = table[tokens.clamp(0, len(table) - 1)]
    return torch.where(find_new(tokens, first, vectors), new, old)


def add_to_row(tokens, table, first, vectors):
    return look_up(tokens, table, first, vectors + table[0])


def first_id_only(tokens, table, first, vectors):
    is_first = (tokens == first)[..., None]
    return torch.where(is_first, vectors[0], last_row(tokens, table, first, vectors))


def one_sample(tokens, table, first, vectors):
    answer = last_row(tokens, table, first, vectors)
    return torch.cat([look_up(tokens[:1], table, first, vectors), answer[1:]])


def inputs(b, n, count, gap):
    def draw(g):
        first = 9 + gap
        tokens = torch.randint(9, (b, n), generator=g)
        for sample in range(b):
            start = int(torch.randint(n - count + 1, (1,), generator=g))
            tokens[sample, start : start + count] = torch.arange(first, first + count)
        return [tokens, normal(g, 9, 6), first, normal(g, count, 6)]

    return draw


def as_hooks(answer):
    """The answer instead of minisd's embedding_hooks(). The embedding itself reads only id 0."""

    def embedding_hooks(embedding, ids, vectors):
        seen = []

        def before(module, arguments):
            seen.append(arguments[0])
            return (0 * arguments[0],)

        def after(module, arguments, embedded):
            return answer(seen.pop(), module.weight, ids[0], vectors.to(embedded))

        return [
            embedding.register_forward_pre_hook(before),
            embedding.register_forward_hook(after),
        ]

    return embedding_hooks


def draw_blorp(sd):
    """The word <blorp>, which was learnt from pictures of foxes."""
    with textual_inversion(sd, WEIGHTS / "mini-blorp.safetensors"):
        return sd.txt2img("a <blorp> on a yellow background", steps=8, seed=2)


EXERCISE = Exercise(
    name="new_word",
    lesson="15",
    place=1,
    title="A word that is not in the table",
    question=(
        "Textual inversion gives a new word `count` vectors. In a prompt, the word stands for "
        "`count` tokens with the ids first, first + 1, and so on. These ids have no rows in the "
        "table, and they may be much larger than its number of rows. Write `look_up(tokens, "
        "table, first, vectors)`: the id first + i gets vectors[i], and every other id gets its "
        "row of the table."
    ),
    solution=look_up,
    stages=(
        Stage("a word with one vector", 1, inputs(1, 4, 1, 0)),
        Stage("a word with three vectors", 1, inputs(1, 6, 3, 0)),
        Stage("a batch of 2, and ids far beyond the table", 2, inputs(2, 8, 3, 5)),
    ),
    hints=(
        "is_new = (tokens >= first) & (tokens < first + len(vectors)) marks the places of the "
        "new word.",
        "table[tokens] fails at these places. So look up another id there, such as 0, and replace "
        "the result.",
        "torch.where(is_new[..., None], new, old), with new = vectors[tokens - first] and old = "
        "table[tokens]. Replace the indices by 0 where torch.where takes the other one, so that "
        "no index is outside of its table.",
    ),
    mistakes={
        "All tokens of the new word get the first vector. Id first + i gets vectors[i].": (
            one_vector
        ),
        "The vectors are averaged. Each id has its own vector.": mean_vector,
        "The order of the vectors is reversed. Id first + i gets vectors[i].": backwards,
        "You appended the vectors to the table. But first may be larger than the number of rows.": (
            append_rows
        ),
        "The new ids get the last row of the table. They should get their vectors.": last_row,
        "The new ids get zeros. They should get their vectors.": zero_row,
        "The place in the prompt decides which vector you take. The id should decide.": (
            count_from_start
        ),
        "You added the vectors to a row of the table. Take them alone.": add_to_row,
        "Only the first id of the word gets its vector. All its ids should.": first_id_only,
        "Only the first sample gets the new vectors. All samples should.": one_sample,
    },
    passing="The file of a word holds only these vectors. Nothing else in the model changes.",
    difficulty=2,
    minutes=15,
    in_picture={"minisd.adapters.textual_inversion.embedding_hooks": as_hooks},
    draw=draw_blorp,
)
