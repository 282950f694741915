"""Attention with a temperature for each head, and a sink. Every student has other numbers."""

import math

import torch
from einops import einsum, rearrange

from minisd import attention
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def sink_attend(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    """Attention with three heads, each with its own temperature, and a sink.

    q: b n 3 d    k, v: b m 3 d    returns: b n 3 d    (the heads come after the tokens)
    """
    scores = einsum(q, k, "b n heads d, b m heads d -> b heads n m") / q.shape[-1] ** 0.5
    divisors = torch.tensor(temperatures, dtype=q.dtype)
    scores = scores / rearrange(divisors, "heads -> heads 1 1")
    powers = scores.exp()
    weights = powers / (sink + powers.sum(dim=-1, keepdim=True))
    return einsum(weights, v, "b heads n m, b m heads d -> b n heads d")


def multiply(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    return sink_attend(q, k, v, temperatures=[1 / one for one in temperatures], sink=sink)


def without_temperatures(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    return sink_attend(q, k, v, temperatures=[1.0, 1.0, 1.0], sink=sink)


def first_temperature(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    return sink_attend(q, k, v, temperatures=[temperatures[0]] * 3, sink=sink)


def temperatures_of_queries(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    q = q / rearrange(torch.tensor(temperatures).to(q), "d -> d 1 1")[: q.shape[1]]
    return sink_attend(q, k, v, temperatures=[1.0, 1.0, 1.0], sink=sink)


def without_sink(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    return sink_attend(q, k, v, temperatures=temperatures, sink=0.0)


def sink_as_score(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    power = math.exp(sink)
    return sink_attend(q, k, v, temperatures=temperatures, sink=power)


def sink_of_one(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    return sink_attend(q, k, v, temperatures=temperatures, sink=1.0)


def sink_for_each_key(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    return sink_attend(q, k, v, temperatures=temperatures, sink=sink * k.shape[1])


def without_root(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    return sink_attend(q * q.shape[-1] ** 0.5, k, v, temperatures=temperatures, sink=sink)


def heads_before_tokens(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    right = sink_attend(q, k, v, temperatures=temperatures, sink=sink)
    return rearrange(right, "b n heads d -> b heads n d")


def scale_the_weights(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    plain = sink_attend(q, k, v, temperatures=[1.0, 1.0, 1.0], sink=sink)
    return plain / rearrange(torch.tensor(temperatures).to(q), "heads -> heads 1")


def subtract_largest(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    scores = einsum(q, k, "b n heads d, b m heads d -> b heads n m") / q.shape[-1] ** 0.5
    scores = scores / rearrange(torch.tensor(temperatures).to(q), "heads -> heads 1 1")
    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    weights = powers / (sink + powers.sum(dim=-1, keepdim=True))
    return einsum(weights, v, "b heads n m, b m heads d -> b n heads d")


def multiply_as_they_are(q, k, v, *, temperatures=(0.5, 1.0, 2.0), sink=2.0):
    return q @ k.transpose(-1, -2)


def where_three_heads_are(answer):
    """The core's attend(). The layers of the mini that have three heads use the answer."""
    core = attention.attend

    def attend(q, k, v, tap, mask=None):
        if q.shape[1] != 3 or mask is not None:
            return core(q, k, v, tap, mask)
        # in float64, because exp() of a large score overflows in float32
        wide = (rearrange(each, "b heads n d -> b n heads d").double() for each in (q, k, v))
        return rearrange(answer(*wide), "b n heads d -> b heads n d").to(q)

    return attend


def draw_constants(rng):
    temperatures = rng.sample([0.5, 0.625, 0.75, 1.25, 1.5, 1.75], 3)
    return {"temperatures": temperatures, "sink": rng.choice([0.5, 1.5, 2.0, 2.5, 3.0])}


EXERCISE = Exercise(
    name="sink_attend",
    lesson="07",
    place=9,
    title="Temperatures and a sink",
    question=(
        "With a softmax, the weights of a query always sum to 1, even if no key fits. A "
        "*sink* changes this: it is one more number in the denominator, so the weights of a "
        "query sum to less than 1. A *temperature* divides the scores of a head. With a low "
        "temperature, the head gives most of the weight to a few keys.\n\n"
        "Write `sink_attend(q, k, v)` for three heads. In your version, their temperatures are "
        "{temperatures}, and the sink is s = {sink}. The scores of a head are divided by the "
        "square root of d and by the head's temperature. The weight of key m is exp(score_m) / "
        "(s + the sum of exp(score_j) over all keys j). In q, k, v and in the result, the heads "
        "come after the tokens: b n 3 d."
    ),
    solution=sink_attend,
    stages=(
        Stage(
            "one query, two keys", 1, lambda g: [normal(g, 1, 1, 3, 4), *normal(g, 2, 1, 2, 3, 4)]
        ),
        Stage(
            "a batch of 2, 5 queries, 7 keys",
            3,
            lambda g: [normal(g, 2, 5, 3, 6), *normal(g, 2, 2, 7, 3, 6)],
        ),
    ),
    hints=(
        "einsum can read the axes in the order in which they come: b n heads d and b m heads d.",
        "The scores are b heads n m. So the temperatures need the shape 3 1 1. You cannot use "
        "softmax(): write exp(), the sum and the division yourself.",
        "weights = powers / (s + powers.sum(dim=-1, keepdim=True)), where powers = scores.exp(). "
        'The last einsum is "b heads n m, b m heads d -> b n heads d".',
    ),
    mistakes={
        "You multiplied by the temperatures. Divide the scores by them.": multiply,
        "The temperatures are missing.": without_temperatures,
        "All heads have the first temperature. Each head has its own.": first_temperature,
        "The temperatures belong to the heads, not to the queries. Give them the shape 3 1 1.": (
            temperatures_of_queries
        ),
        "The sink is missing: the weights of each query sum to 1.": without_sink,
        "You added exp(s). The sink is s itself, without exp().": sink_as_score,
        "You added 1 in the denominator. Add your own sink.": sink_of_one,
        "You added the sink once for each key. Add it once to the sum.": sink_for_each_key,
        "The scores are not divided by the square root of d.": without_root,
        "The heads come before the tokens in your result. The order must be b n heads d.": (
            heads_before_tokens
        ),
        "You subtracted the largest score of each row. With a sink, this changes the weights.": (
            subtract_largest
        ),
        "The heads come after the tokens, so @ multiplies the wrong axes. Use einsum.": (
            multiply_as_they_are
        ),
        "Divide the scores by the temperatures, before exp(). You divided afterwards.": (
            scale_the_weights
        ),
    },
    passing=(
        "With a sink, a query can read almost nothing. Some language models have one. Stable "
        "Diffusion does not: there, the begin mark of the prompt takes the attention that nobody "
        "needs."
    ),
    difficulty=3,
    minutes=20,
    needs=("attend",),
    constants=draw_constants,
    in_picture={"minisd.attention.attend": where_three_heads_are},
    draw=draw_cat,
    in_lesson=True,
)
