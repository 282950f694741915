"""The block in which the picture reads itself and the prompt."""

from einops import rearrange
from torch import nn

from minisd.attention import GEGLU, Attention
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal


class SpatialTransformer(nn.Module):
    """Every place of a feature map reads all other places, then the prompt.

    channels: the number of channels c of x
    context_dim: the number of channels of the context
    heads: the number of heads of both attentions
    norm_groups: the number of groups of the group norm

    x: b c h w    context: b m context_dim    returns: b c h w
    """

    def __init__(self, channels, context_dim, heads, norm_groups):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.norm_self = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, channels, heads)
        self.norm_cross = nn.LayerNorm(channels)
        self.cross = Attention(channels, context_dim, heads)
        self.norm_ff = nn.LayerNorm(channels)
        self.ff = GEGLU(channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x, context):
        height, width = x.shape[2:]
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        tokens = self.proj_in(tokens)
        normed = self.norm_self(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        tokens = tokens + self.cross(self.norm_cross(tokens), context)
        tokens = tokens + self.ff(self.norm_ff(tokens))
        change = self.proj_out(tokens).transpose(1, 2)
        return x + change.unflatten(2, (height, width))


class InParts(SpatialTransformer):
    """The solution again, with the three steps in a method of their own: the mistakes change it."""

    def forward(self, x, context):
        tokens = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        tokens = self.proj_out(self.block(tokens, context))
        return x + rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])

    def block(self, tokens, context):
        normed = self.norm_self(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        tokens = tokens + self.cross(self.norm_cross(tokens), context)
        return tokens + self.ff(self.norm_ff(tokens))


class UsualEps(InParts):
    def __init__(self, channels, context_dim, heads, norm_groups):
        super().__init__(channels, context_dim, heads, norm_groups)
        self.norm.eps = 1e-5


class NoOuterResidual(InParts):
    def forward(self, x, context):
        return super().forward(x, context) - x


class NoInnerResiduals(InParts):
    def block(self, tokens, context):
        normed = self.norm_self(tokens)
        tokens = self.self_attention(normed, normed)
        tokens = self.cross(self.norm_cross(tokens), context)
        return self.ff(self.norm_ff(tokens))


class ResidualOfNormed(InParts):
    def block(self, tokens, context):
        tokens = self.norm_self(tokens)
        tokens = tokens + self.self_attention(tokens, tokens)
        tokens = self.norm_cross(tokens)
        tokens = tokens + self.cross(tokens, context)
        tokens = self.norm_ff(tokens)
        return tokens + self.ff(tokens)


class NormsAfter(InParts):
    def block(self, tokens, context):
        tokens = self.norm_self(tokens + self.self_attention(tokens, tokens))
        tokens = self.norm_cross(tokens + self.cross(tokens, context))
        return self.norm_ff(tokens + self.ff(tokens))


class PlainSelfContext(InParts):
    def block(self, tokens, context):
        tokens = tokens + self.self_attention(self.norm_self(tokens), tokens)
        tokens = tokens + self.cross(self.norm_cross(tokens), context)
        return tokens + self.ff(self.norm_ff(tokens))


class CrossFirst(InParts):
    def block(self, tokens, context):
        tokens = tokens + self.cross(self.norm_cross(tokens), context)
        normed = self.norm_self(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        return tokens + self.ff(self.norm_ff(tokens))


class NoLayerNorms(InParts):
    def block(self, tokens, context):
        tokens = tokens + self.self_attention(tokens, tokens)
        tokens = tokens + self.cross(tokens, context)
        return tokens + self.ff(tokens)


class OneNorm(InParts):
    def block(self, tokens, context):
        normed = self.norm_self(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        tokens = tokens + self.cross(self.norm_self(tokens), context)
        return tokens + self.ff(self.norm_self(tokens))


class AllFromTheStart(InParts):
    def block(self, tokens, context):
        normed = self.norm_self(tokens)
        read = self.self_attention(normed, normed) + self.cross(self.norm_cross(tokens), context)
        return tokens + read + self.ff(self.norm_ff(tokens))


class NoFeedForward(InParts):
    def block(self, tokens, context):
        normed = self.norm_self(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        return tokens + self.cross(self.norm_cross(tokens), context)


class NoGroupNorm(InParts):
    def forward(self, x, context):
        tokens = self.proj_in(rearrange(x, "b c h w -> b (h w) c"))
        tokens = self.proj_out(self.block(tokens, context))
        return x + rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])


class ResidualOfNormedMap(InParts):
    def forward(self, x, context):
        return super().forward(x, context) - x + self.norm(x)


class SwappedSides(InParts):
    def forward(self, x, context):
        tokens = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        tokens = self.proj_out(self.block(tokens, context))
        change = rearrange(tokens, "b (w h) c -> b c h w", h=x.shape[2])
        return x + change


class PlainReshape(InParts):
    def forward(self, x, context):
        batch, channels, height, width = x.shape
        tokens = self.proj_in(self.norm(x).reshape(batch, height * width, channels))
        tokens = self.proj_out(self.block(tokens, context))
        return x + tokens.reshape(batch, channels, height, width)


class NoProjections(InParts):
    def forward(self, x, context):
        tokens = self.block(rearrange(self.norm(x), "b c h w -> b (h w) c"), context)
        return x + rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])


def inputs(height, width, words, batch=2, size=1.0):
    def draw(g):
        init = {"channels": 12, "context_dim": 10, "heads": 3, "norm_groups": 4}
        x, context = size * normal(g, batch, 12, height, width), normal(g, batch, words, 10)
        return module_inputs(g, SpatialTransformer, init, x, context)

    return draw


EXERCISE = Exercise(
    name="spatial_transformer",
    lesson="07",
    place=8,
    title="The whole transformer of the U-Net",
    question=(
        "Write the class `SpatialTransformer(channels, context_dim, heads, norm_groups)`. Its "
        "layers are `norm` (a GroupNorm with norm_groups groups and eps=1e-6), `proj_in` and "
        "`proj_out` (Linear layers from channels to channels), `norm_self`, `norm_cross` and "
        "`norm_ff` (LayerNorms of the channels), `self_attention` (`Attention(channels, "
        "channels, heads)`), `cross` (`Attention(channels, context_dim, heads)`), and `ff` "
        "(`GEGLU(channels)`).\n\n"
        "`forward(x, context)` applies `norm`, makes one token of each place, row by row (b n "
        "c), and applies `proj_in`. Then come three steps. Each one normalizes the tokens, "
        "applies its part, and adds the result to the tokens: first the tokens read each "
        "other (`self_attention`, the context is the normalized tokens), then they read the "
        "context (`cross`), then comes `ff`. At the end, apply `proj_out`, turn the tokens "
        "into a feature map again, and add x."
    ),
    solution=SpatialTransformer,
    stages=(
        Stage("one place, one word", 1, inputs(1, 1, 1, batch=1), call="module"),
        Stage("a batch of 2, 3 x 5 places, 7 words", 3, inputs(3, 5, 7), call="module"),
        Stage("a map with small numbers", 1, inputs(2, 3, 4, size=0.003), call="module"),
    ),
    hints=(
        "There are four residuals: one for each of the three steps, and x at the end.",
        'rearrange(self.norm(x), "b c h w -> b (h w) c") makes the tokens. For the way back, '
        "rearrange needs to know h.",
        "normed = self.norm_self(tokens), then tokens = tokens + self.self_attention(normed, "
        "normed). The other two steps follow the same plan: tokens + part(norm(tokens)).",
    ),
    mistakes={
        "The group norm has torch's eps 1e-5. This one has eps=1e-6.": UsualEps,
        "x is not added at the end.": NoOuterResidual,
        "Each of the three steps should add its result to the tokens.": NoInnerResiduals,
        "You added to the normalized tokens. Add to the tokens as they were before the norm.": (
            ResidualOfNormed
        ),
        "Your norms come after the steps. They should come before: tokens + part(norm(tokens)).": (
            NormsAfter
        ),
        "The context of self_attention must be the normalized tokens, too.": PlainSelfContext,
        "The order is wrong: self_attention comes before cross.": CrossFirst,
        "The step with ff is missing.": NoFeedForward,
        "The layer norms are not applied.": NoLayerNorms,
        "You used norm_self three times. Each step has a norm of its own.": OneNorm,
        "All three steps start from the same tokens. Each should start from the last result.": (
            AllFromTheStart
        ),
        "The group norm is not applied.": NoGroupNorm,
        "You added norm(x) at the end. Add x itself.": ResidualOfNormedMap,
        "Height and width are swapped on the way back.": SwappedSides,
        "reshape() alone mixes channels and places. Move the channels to the end first.": (
            PlainReshape
        ),
        "proj_in and proj_out are not applied.": NoProjections,
    },
    passing="This is how a prompt gets into the picture. The U-Net of the mini has seven of them.",
    difficulty=3,
    minutes=30,
    needs=("attention", "geglu"),
    given="from minisd.attention import GEGLU, Attention",
    replaces={"minisd.attention.SpatialTransformer": lambda answer: answer},
    draw=draw_cat,
)
