"""One head of attention, without a batch."""

from einops import rearrange

from minisd import attention
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def one_head(q, k, v):
    """One head of attention for one picture.

    q: n d, one query for each place    k, v: m d, one key and one value for each token
    returns: the weights (n m) and the answers (n d)
    """
    scores = q @ k.T / q.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1)
    return weights, weights @ v


def without_scale(q, k, v):
    return one_head(q * q.shape[-1] ** 0.5, k, v)


def scale_by_d(q, k, v):
    return one_head(q / q.shape[-1] ** 0.5, k, v)


def softmax_over_queries(q, k, v):
    weights = (q @ k.T / q.shape[-1] ** 0.5).softmax(dim=0)
    return weights, weights @ v


def no_softmax(q, k, v):
    scores = q @ k.T / q.shape[-1] ** 0.5
    return scores, scores @ v


def scores_as_weights(q, k, v):
    scores = q @ k.T / q.shape[-1] ** 0.5
    return scores, scores.softmax(dim=-1) @ v


def wrong_order(q, k, v):
    return one_head(q, k, v)[::-1]


def keys_as_values(q, k, v):
    return one_head(q, k, k)


def only_answers(q, k, v):
    return one_head(q, k, v)[1]


def in_every_head(answer):
    """The core's attend(), with the answer for each head. The text transformer keeps ours."""
    core = attention.attend

    def attend(q, k, v, tap, mask=None):
        if mask is not None:
            return core(q, k, v, tap, mask)
        groups = [rearrange(each, "b heads n d -> (b heads) n d") for each in (q, k, v)]
        rows = [answer(*head)[1] for head in zip(*groups, strict=True)]
        return rearrange(rows, "(b heads) n d -> b heads n d", b=len(q))

    return attend


EXERCISE = Exercise(
    name="one_head",
    lesson="07",
    place=2,
    title="One head by hand",
    question=(
        "Write `one_head(q, k, v)`. The score of a place and a token is the dot product of the "
        "query and the key, divided by the square root of d. The weights of a place are the "
        "softmax over its tokens, so each row of the weights sums to 1. The answer of a place is "
        "the average of the values with these weights. Return the weights and the answers."
    ),
    solution=one_head,
    stages=(
        Stage("one query, three tokens", 1, lambda g: [normal(g, 1, 4), *normal(g, 2, 3, 4)]),
        Stage("five queries, seven tokens", 2, lambda g: [normal(g, 5, 6), *normal(g, 2, 7, 6)]),
    ),
    hints=(
        "The scores have the shape n m: one row for each place, one column for each token.",
        "q @ k.T gives all dot products. The softmax goes along a row, so over the last axis.",
        "weights = (q @ k.T / d ** 0.5).softmax(dim=-1), and the answers are weights @ v.",
    ),
    mistakes={
        "The scores are not divided by the square root of d.": without_scale,
        "You divided by d, not by its square root.": scale_by_d,
        "The softmax goes over the places. It should go over the tokens, the last axis.": (
            softmax_over_queries
        ),
        "The softmax is missing. Apply it to the scores before you average.": no_softmax,
        "You returned the scores. Return the weights, which are the softmax of the scores.": (
            scores_as_weights
        ),
        "Return the weights first, then the answers.": wrong_order,
        "You averaged the keys. The answer is an average of the values.": keys_as_values,
        "You returned only the answers. Return the weights, too.": only_answers,
    },
    passing="Several heads and a batch only add axes in front. The three steps stay the same.",
    difficulty=1,
    minutes=10,
    needs=("query_weights",),
    in_picture={"minisd.attention.attend": in_every_head},
    draw=draw_cat,
)
