"""The attention of the text transformer."""

from einops import rearrange
from torch import nn

from minisd.clip import causal_mask
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal
from minisd.exercises.parts import attend


class CausalSelfAttention(nn.Module):
    """Each token reads itself and the tokens before it.

    x: b n width    returns: b n width
    """

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x):
        q = rearrange(self.to_q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        k = rearrange(self.to_k(x), "b n (heads d) -> b heads n d", heads=self.heads)
        v = rearrange(self.to_v(x), "b n (heads d) -> b heads n d", heads=self.heads)
        answer = attend(q, k, v, causal_mask(x))
        return self.to_out(rearrange(answer, "b heads n d -> b n (heads d)"))


class Mistake(CausalSelfAttention):
    """The solution in parts, so that a mistake can change one of them."""

    into = "b n (heads d) -> b heads n d"
    out_of = "b heads n d -> b n (heads d)"

    def mask(self, x):
        return causal_mask(x)

    def forward(self, x):
        parts = [self.to_q(x), self.to_k(x), self.to_v(x)]
        q, k, v = (rearrange(part, self.into, heads=self.heads) for part in parts)
        return self.to_out(rearrange(attend(q, k, v, self.mask(x)), self.out_of))


class NoMask(Mistake):
    def mask(self, x):
        return None


class TurnedMask(Mistake):
    def mask(self, x):
        return causal_mask(x).T


class InterleavedHeads(Mistake):
    into = "b n (d heads) -> b heads n d"
    out_of = "b heads n d -> b n (d heads)"


class OtherWayBack(Mistake):
    out_of = "b heads n d -> b n (d heads)"


class OneHead(Mistake):
    def forward(self, x):
        self.heads = 1
        return super().forward(x)


class NoOutput(Mistake):
    def forward(self, x):
        self.to_out = nn.Identity()
        return super().forward(x)


class SwappedKeysAndValues(Mistake):
    def forward(self, x):
        self.to_k, self.to_v = self.to_v, self.to_k
        return super().forward(x)


class SwappedQueriesAndKeys(Mistake):
    def forward(self, x):
        self.to_q, self.to_k = self.to_k, self.to_q
        return super().forward(x)


class WithResidual(Mistake):
    def forward(self, x):
        return x + super().forward(x)


class NoBias(Mistake):
    def forward(self, x):
        for layer in (self.to_q, self.to_k, self.to_v):
            layer.register_parameter("bias", None)
        return super().forward(x)


def inputs(heads):
    def draw(g):
        init = {"width": 12, "heads": heads}
        return module_inputs(g, CausalSelfAttention, init, normal(g, 2, 5, 12))

    return draw


EXERCISE = Exercise(
    name="causal_attention",
    lesson="06",
    place=4,
    title="Attention between the words",
    question=(
        "Write the class `CausalSelfAttention`, with the arguments `width` and `heads`. It has "
        "four `nn.Linear(width, width)`, all with a bias: `to_q`, `to_k`, `to_v`, `to_out`. The "
        "queries, keys and values all come from x. Split the channels into heads of d = width / "
        "heads channels (the first d channels are head 0), call `attend(q, k, v, mask)` with "
        "`causal_mask(x)`, put the heads together again, and apply `to_out`. Lesson 07 explains "
        "what `attend` does."
    ),
    solution=CausalSelfAttention,
    stages=(
        Stage("one head", 1, inputs(1), call="module"),
        Stage("three heads", 2, inputs(3), call="module"),
    ),
    hints=(
        "Six lines are enough for forward: q, k, v, attend, one rearrange back, to_out.",
        'rearrange(self.to_q(x), "b n (heads d) -> b heads n d", heads=self.heads) gives q. k and '
        "v are made in the same way.",
        'attend(q, k, v, causal_mask(x)), then rearrange(…, "b heads n d -> b n (heads d)"), then '
        "self.to_out.",
    ),
    mistakes={
        "The mask is missing, so tokens read later tokens.": NoMask,
        "The mask is turned over: tokens read only later tokens. Check its rows and columns.": (
            TurnedMask
        ),
        "(d heads) gives every third channel to head 0. It should get the first d channels.": (
            InterleavedHeads
        ),
        "When you join the heads, heads comes before d: b n (heads d).": OtherWayBack,
        "There is only one head. Split the channels into self.heads heads.": OneHead,
        "to_out is not applied.": NoOutput,
        "The keys and the values are swapped: k comes from to_k, v from to_v.": (
            SwappedKeysAndValues
        ),
        "The queries and the keys are swapped: q comes from to_q, k from to_k.": (
            SwappedQueriesAndKeys
        ),
        "Do not add x here. The layer around this module adds it.": WithResidual,
        "The biases of to_q, to_k and to_v are not added. Do not remove them.": NoBias,
    },
    passing=(
        "Each layer of the text transformer has one of these. Only here do words read earlier "
        "words."
    ),
    difficulty=2,
    minutes=20,
    needs=("causal_mask",),
    given=(
        "from einops import rearrange\n\n"
        "from minisd.clip import causal_mask\n"
        "from minisd.exercises.parts import attend"
    ),
    replaces={"minisd.clip.CausalSelfAttention": lambda answer: answer},
    draw=draw_cat,
)
