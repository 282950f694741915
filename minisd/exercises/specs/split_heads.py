"""From channels to heads."""

from einops import rearrange

from minisd import attention
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def split_heads(x, heads):
    """Split the channels of every token into heads.

    x: b n c    heads: how many heads    returns: b heads n d, with d = c / heads
    """
    batch, tokens, channels = x.shape
    x = x.reshape(batch, tokens, heads, channels // heads)
    return x.transpose(1, 2)


def interleave(x, heads):
    return rearrange(x, "b n (d heads) -> b heads n d", heads=heads)


def cut_tokens(x, heads):
    batch, tokens, channels = x.shape
    return x.reshape(batch, heads, tokens, channels // heads)


def no_transposition(x, heads):
    return rearrange(x, "b n (heads d) -> b n heads d", heads=heads)


def heads_last(x, heads):
    return rearrange(x, "b n (heads d) -> b n d heads", heads=heads)


def heads_first(x, heads):
    return rearrange(x, "b n (heads d) -> heads b n d", heads=heads)


def d_before_n(x, heads):
    return rearrange(x, "b n (heads d) -> b heads d n", heads=heads)


def in_attention(answer):
    """The core's Attention, which splits its channels with the answer."""

    class SplitByAnswer(attention.Attention):
        def forward(self, x, context):
            linears = ((self.to_q, x), (self.to_k, context), (self.to_v, context))
            q, k, v = (answer(linear(tokens), self.heads) for linear, tokens in linears)
            read = attention.attend(q, k, v, tap=self.weights)
            return self.to_out(rearrange(read, "b heads n d -> b n (heads d)"))

    return SplitByAnswer


EXERCISE = Exercise(
    name="split_heads",
    lesson="07",
    place=4,
    title="Split the channels into heads",
    question=(
        "Each head of an attention works on a part of the channels. Write `split_heads(x, heads)`. "
        "Head 0 gets the first d channels of every token, head 1 the next d channels, and so on. "
        "The heads come before the tokens in the result: b heads n d."
    ),
    solution=split_heads,
    stages=(
        Stage("one token, two heads", 1, lambda g: [normal(g, 1, 1, 6), 2]),
        Stage("a batch of 2, five tokens, three heads", 1, lambda g: [normal(g, 2, 5, 12), 3]),
    ),
    hints=(
        "One rearrange is enough. Its pattern names b, n, heads and d.",
        "On the left, the channels are two axes in one: (heads d). The axis that comes first in "
        "the brackets changes slowest.",
        'The left side is "b n (heads d)". The right side is the shape that you want. Pass '
        "heads=heads.",
    ),
    mistakes={
        "(d heads) gives every third channel to a head. Head 0 should get the first d channels.": (
            interleave
        ),
        "reshape() alone cuts the tokens into pieces. Split the channels, then move the axis.": (
            cut_tokens
        ),
        "The heads must come before the tokens: b heads n d.": no_transposition,
        "The heads are the last axis. The order must be b heads n d.": heads_last,
        "The heads come before the batch. The order must be b heads n d.": heads_first,
        "The last two axes are swapped: n should come before d.": d_before_n,
    },
    passing="An attention does this with its queries, its keys and its values.",
    difficulty=1,
    minutes=6,
    in_picture={"minisd.attention.Attention": in_attention},
    draw=draw_cat,
)
