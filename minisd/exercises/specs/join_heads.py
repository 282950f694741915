"""From heads back to channels."""

from einops import rearrange

from minisd import attention
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def join_heads(x):
    """Put the heads together again.

    x: b heads n d    returns: b n c, with c = heads * d
    """
    batch, heads, tokens, d = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * d)


def interleave(x):
    return rearrange(x, "b heads n d -> b n (d heads)")


def only_reshape(x):
    batch, heads, tokens, d = x.shape
    return x.reshape(batch, tokens, heads * d)


def mean_of_heads(x):
    return x.mean(dim=1)


def sum_of_heads(x):
    return x.sum(dim=1)


def more_tokens(x):
    return rearrange(x, "b heads n d -> b (heads n) d")


def in_attention(answer):
    """The core's Attention, which joins its heads with the answer."""

    class JoinedByAnswer(attention.Attention):
        def forward(self, x, context):
            linears = ((self.to_q, x), (self.to_k, context), (self.to_v, context))
            pattern = "b n (heads d) -> b heads n d"
            q, k, v = (rearrange(linear(t), pattern, heads=self.heads) for linear, t in linears)
            return self.to_out(answer(attention.attend(q, k, v, tap=self.weights)))

    return JoinedByAnswer


EXERCISE = Exercise(
    name="join_heads",
    lesson="07",
    place=5,
    title="Join the heads",
    question=(
        "Write `join_heads(x)`. It undoes `split_heads`. In the result, the first d channels of a "
        "token come from head 0, the next d from head 1, and so on."
    ),
    solution=join_heads,
    stages=(
        Stage("one token, two heads", 1, lambda g: [normal(g, 1, 2, 1, 3)]),
        Stage("a batch of 2, three heads, five tokens", 1, lambda g: [normal(g, 2, 3, 5, 4)]),
    ),
    hints=(
        "The result has as many tokens as x, and heads times as many channels.",
        "reshape() does not move numbers. Bring the axis of the heads next to the channels first. "
        "rearrange does both.",
        'The left side of the pattern is "b heads n d". On the right, one pair of brackets joins '
        "two axes. Which of the two must be first?",
    ),
    mistakes={
        "(d heads) mixes the heads. The first d channels should come from head 0.": interleave,
        "reshape() alone joins the wrong numbers. Move the axis of the heads first.": only_reshape,
        "This is the mean of the heads. Put their channels side by side.": mean_of_heads,
        "This is the sum of the heads. Put their channels side by side.": sum_of_heads,
        "You made more tokens. The heads should become channels.": more_tokens,
    },
    passing="After this, to_out mixes what the heads have read.",
    difficulty=1,
    minutes=5,
    needs=("split_heads",),
    in_picture={"minisd.attention.Attention": in_attention},
    draw=draw_cat,
)
