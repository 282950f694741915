"""The module around attend(): projections, heads, and the way back."""

from einops import rearrange
from torch import nn

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal
from minisd.exercises.parts import attend


class Attention(nn.Module):
    """Every token of x reads all tokens of the context.

    x: b n width    context: b m context_dim    returns: b n width
    """

    def __init__(self, width, context_dim, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_dim, width, bias=False)
        self.to_v = nn.Linear(context_dim, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x, context):
        q = rearrange(self.to_q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        k = rearrange(self.to_k(context), "b m (heads d) -> b heads m d", heads=self.heads)
        v = rearrange(self.to_v(context), "b m (heads d) -> b heads m d", heads=self.heads)
        answer = attend(q, k, v)
        return self.to_out(rearrange(answer, "b heads n d -> b n (heads d)"))


class InterleavedHeads(Attention):
    def forward(self, x, context):
        q = rearrange(self.to_q(x), "b n (d heads) -> b heads n d", heads=self.heads)
        k = rearrange(self.to_k(context), "b m (d heads) -> b heads m d", heads=self.heads)
        v = rearrange(self.to_v(context), "b m (d heads) -> b heads m d", heads=self.heads)
        answer = attend(q, k, v)
        return self.to_out(rearrange(answer, "b heads n d -> b n (d heads)"))


class CutTokens(Attention):
    def forward(self, x, context):
        b, n, m, d = len(x), x.shape[1], context.shape[1], self.to_q.out_features // self.heads
        q = self.to_q(x).reshape(b, self.heads, n, d)
        k = self.to_k(context).reshape(b, self.heads, m, d)
        v = self.to_v(context).reshape(b, self.heads, m, d)
        return self.to_out(rearrange(attend(q, k, v), "b heads n d -> b n (heads d)"))


class WrongWayBack(Attention):
    def forward(self, x, context):
        q = rearrange(self.to_q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        k = rearrange(self.to_k(context), "b m (heads d) -> b heads m d", heads=self.heads)
        v = rearrange(self.to_v(context), "b m (heads d) -> b heads m d", heads=self.heads)
        return self.to_out(rearrange(attend(q, k, v), "b heads n d -> b n (d heads)"))


class ReshapeBack(Attention):
    def forward(self, x, context):
        q = rearrange(self.to_q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        k = rearrange(self.to_k(context), "b m (heads d) -> b heads m d", heads=self.heads)
        v = rearrange(self.to_v(context), "b m (heads d) -> b heads m d", heads=self.heads)
        return self.to_out(attend(q, k, v).reshape(len(x), x.shape[1], -1))


class OneHead(Attention):
    def forward(self, x, context):
        self.heads = 1
        return super().forward(x, context)


class WithResidual(Attention):
    def forward(self, x, context):
        return x + super().forward(x, context)


class SwappedKeysAndValues(Attention):
    def forward(self, x, context):
        self.to_k, self.to_v = self.to_v, self.to_k
        return super().forward(x, context)


class NoOutput(Attention):
    def forward(self, x, context):
        self.to_out = nn.Identity()
        return super().forward(x, context)


def inputs(n, m, heads):
    def draw(g):
        init = {"width": 12, "context_dim": 10, "heads": heads}
        return module_inputs(g, Attention, init, normal(g, 2, n, 12), normal(g, 2, m, 10))

    return draw


EXERCISE = Exercise(
    name="attention",
    lesson="07",
    place=6,
    title="The attention module",
    question=(
        "Write the class `Attention(width, context_dim, heads)`. It has four `nn.Linear` layers: "
        "`to_q` goes from width to width, `to_k` and `to_v` go from context_dim to width, and "
        "`to_out` goes from width to width. Only `to_out` has a bias. `to_q` reads x, `to_k` and "
        "`to_v` read the context. Split the channels of the results into heads of d = width / "
        "heads channels (the first d channels are head 0), call `attend`, put the heads together "
        "again and apply `to_out`."
    ),
    solution=Attention,
    stages=(
        Stage("one head", 1, inputs(5, 7, 1), call="module"),
        Stage("three heads", 3, inputs(5, 7, 3), call="module"),
    ),
    hints=(
        "Three projections, three times rearrange, one attend, one rearrange back, to_out.",
        'rearrange(self.to_q(x), "b n (heads d) -> b heads n d", heads=self.heads) gives q.',
        "The keys and the values come from the context: self.to_k(context), self.to_v(context).",
    ),
    mistakes={
        "(d heads) gives every third channel to head 0. It should get the first d channels.": (
            InterleavedHeads
        ),
        "reshape() alone cuts the tokens into pieces. Split the channels, then move the axis.": (
            CutTokens
        ),
        "(d heads) mixes the heads on the way back. It must be (heads d) again.": WrongWayBack,
        "reshape() alone joins the wrong numbers on the way back. Move the heads first.": (
            ReshapeBack
        ),
        "There is only one head. Split the channels into heads.": OneHead,
        "You added x. The transformer does this, not the Attention.": WithResidual,
        "The keys and the values are swapped: k comes from to_k, v from to_v.": (
            SwappedKeysAndValues
        ),
        "to_out is not applied. Call it at the end.": NoOutput,
    },
    passing=(
        "Each transformer of the U-Net has two of these: one reads the picture, the other the "
        "prompt."
    ),
    difficulty=2,
    minutes=20,
    needs=("attend",),
    given="from einops import rearrange\n\nfrom minisd.exercises.parts import attend",
    replaces={"minisd.attention.Attention": lambda answer: answer},
    draw=draw_cat,
)
