"""The attention of the VAE: one head over all places."""

from einops import rearrange
from torch import nn

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, module_inputs, normal
from minisd.exercises.parts import attend


class SpatialAttention(nn.Module):
    """Every place looks at all places, with one attention head.

    x: b c h w    returns: b c h w
    """

    def __init__(self, channels, norm_groups):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x):
        tokens = rearrange(self.norm(x), "b c h w -> b 1 (h w) c")
        answer = attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        answer = self.to_out(answer)
        return x + rearrange(answer, "b 1 (h w) c -> b c h w", h=x.shape[2])


class InSteps(SpatialAttention):
    """The same in steps. Each mistake below changes one of them."""

    def forward(self, x):
        answer = self.to_out(self.look(self.tokens_of(x)))
        return self.join(x, self.to_map(answer, x))

    def tokens_of(self, x):
        return rearrange(self.norm(x), "b c h w -> b 1 (h w) c")

    def look(self, tokens):
        return attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))

    def to_map(self, answer, x):
        return rearrange(answer, "b 1 (h w) c -> b c h w", h=x.shape[2])

    def join(self, x, answer):
        return x + answer


class UsualEps(InSteps):
    def __init__(self, channels, norm_groups):
        super().__init__(channels, norm_groups)
        self.norm.eps = 1e-5


class NoNorm(InSteps):
    def tokens_of(self, x):
        return rearrange(x, "b c h w -> b 1 (h w) c")


class NoResidual(InSteps):
    def join(self, x, answer):
        return answer


class NormedResidual(InSteps):
    def join(self, x, answer):
        return self.norm(x) + answer


class ColumnsBack(InSteps):
    def to_map(self, answer, x):
        return rearrange(answer, "b 1 (w h) c -> b c h w", h=x.shape[2])


class ReshapedBack(InSteps):
    def to_map(self, answer, x):
        return answer.reshape(x.shape)


class ReshapedTokens(InSteps):
    def tokens_of(self, x):
        return self.norm(x).reshape(len(x), 1, -1, x.shape[1])


class NoOutput(InSteps):
    def forward(self, x):
        return self.join(x, self.to_map(self.look(self.tokens_of(x)), x))


class SwappedKeysAndValues(InSteps):
    def look(self, tokens):
        return attend(self.to_q(tokens), self.to_v(tokens), self.to_k(tokens))


class SwappedQueriesAndKeys(InSteps):
    def look(self, tokens):
        return attend(self.to_k(tokens), self.to_q(tokens), self.to_v(tokens))


class RawValues(InSteps):
    def look(self, tokens):
        return attend(self.to_q(tokens), self.to_k(tokens), tokens)


class WithoutScale(InSteps):
    def look(self, tokens):
        q = self.to_q(tokens) * tokens.shape[-1] ** 0.5
        return attend(q, self.to_k(tokens), self.to_v(tokens))


class ChannelsAsTokens(InSteps):
    def look(self, tokens):
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        return attend(q.mT, k.mT, v.mT).mT


class EveryPlaceAlone(InSteps):
    def look(self, tokens):
        return self.to_v(tokens)


def draw_inputs(b, c, h, w):
    def draw(g):
        init = {"channels": c, "norm_groups": 2}
        return module_inputs(g, SpatialAttention, init, 2 * normal(g, b, c, h, w))

    return draw


EXERCISE = Exercise(
    name="vae_attention",
    lesson="04",
    place=6,
    title="Attention over all places",
    question=(
        "Write the class `SpatialAttention(channels, norm_groups)`. Apply `norm` (a group norm "
        "with eps=1e-6) to x. Make every place a token: from b c h w to b 1 (h w) c, where 1 is "
        "the number of heads. The layers `to_q`, `to_k` and `to_v` turn the tokens into queries, "
        "keys and values. Call `attend(q, k, v)`: for each query, it returns the weighted average "
        "of the values (lesson 07 shows how). Apply `to_out`, turn the tokens into a feature map "
        "again, and add x. All four layers are Linear layers from channels to channels, with a "
        "bias."
    ),
    solution=SpatialAttention,
    stages=(
        Stage("one place", 1, draw_inputs(1, 4, 1, 1), "module"),
        Stage("a batch of 2, 3 x 5 places", 3, draw_inputs(2, 6, 3, 5), "module"),
    ),
    hints=(
        "Queries, keys and values all come from the same normed tokens.",
        'rearrange(self.norm(x), "b c h w -> b 1 (h w) c") makes the tokens. The way back needs '
        "the height: h=x.shape[2].",
        "answer = self.to_out(attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))). "
        "Then rearrange it back, and add x, not the normed x.",
    ),
    mistakes={
        "The norm has torch's own eps, 1e-5. The VAE needs eps=1e-6.": UsualEps,
        "The norm is not applied.": NoNorm,
        "x is not added at the end.": NoResidual,
        "The normed x is added. Add x itself.": NormedResidual,
        "The places come back in another order. Use (h w) in both directions.": ColumnsBack,
        "The tokens are reshaped back without moving the channels. Use rearrange.": ReshapedBack,
        "The tokens are reshaped without moving the channels to the end. Use rearrange.": (
            ReshapedTokens
        ),
        "to_out is not applied.": NoOutput,
        "The keys and the values are swapped: k comes from to_k, v from to_v.": (
            SwappedKeysAndValues
        ),
        "The queries and the keys are swapped: q comes from to_q, k from to_k.": (
            SwappedQueriesAndKeys
        ),
        "The values are the tokens themselves. Use to_v.": RawValues,
        "The scores are not divided by the root of the number of channels. Call attend.": (
            WithoutScale
        ),
        "The channels are the tokens. The places should be.": ChannelsAsTokens,
        "No place looks at another one. Average the values with attend.": EveryPlaceAlone,
    },
    passing=(
        "This block is in the middle of the encoder and of the decoder, where the map is smallest."
    ),
    difficulty=3,
    minutes=25,
    given="from einops import rearrange\n\nfrom minisd.exercises.parts import attend",
    replaces={"minisd.vae.SpatialAttention": lambda answer: answer},
    draw=draw_cat,
)
