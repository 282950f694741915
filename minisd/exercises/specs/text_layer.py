"""One layer of the text transformer."""

from torch import nn

from minisd.clip import ACTIVATIONS, CausalSelfAttention
from minisd.config import TextConfig
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, as_namespace, module_inputs, normal


class Layer(nn.Module):
    """Attention between the tokens, then an MLP for each token alone.

    config: with width, heads, activation and mlp_width
    x: b n width    returns: b n width
    """

    def __init__(self, config):
        super().__init__()
        mlp_width = config.mlp_width
        if mlp_width is None:
            mlp_width = 4 * config.width
        self.activation = ACTIVATIONS[config.activation]
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = CausalSelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, mlp_width)
        self.narrow = nn.Linear(mlp_width, config.width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        hidden = self.activation(self.widen(self.norm2(x)))
        return x + self.narrow(hidden)


class Mistake(Layer):
    """The solution in parts, so that a mistake can change one of them."""

    def mlp(self, x):
        return self.narrow(self.activation(self.widen(x)))


class NoFirstResidual(Mistake):
    def forward(self, x):
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class NoSecondResidual(Mistake):
    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return self.mlp(self.norm2(x))


class NoResiduals(Mistake):
    def forward(self, x):
        return self.mlp(self.norm2(self.attn(self.norm1(x))))


class NormAfter(Mistake):
    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class NoNorms(Mistake):
    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


class NoSecondNorm(Mistake):
    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(x)


class NormInResidual(Mistake):
    def forward(self, x):
        x = self.norm1(x)
        x = x + self.attn(x)
        x = self.norm2(x)
        return x + self.mlp(x)


class SameNorm(Mistake):
    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm1(x))


class SideBySide(Mistake):
    def forward(self, x):
        return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))


class FirstInputInResidual(Mistake):
    def forward(self, x):
        return x + self.mlp(self.norm2(x + self.attn(self.norm1(x))))


class MlpFirst(Mistake):
    def forward(self, x):
        x = x + self.mlp(self.norm2(x))
        return x + self.attn(self.norm1(x))


class NoActivation(Mistake):
    def mlp(self, x):
        return self.narrow(self.widen(x))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ActivationAtEnd(NoActivation):
    def mlp(self, x):
        return self.activation(self.narrow(self.widen(x)))


class ActivationTwice(NoActivation):
    def mlp(self, x):
        return self.activation(self.narrow(self.activation(self.widen(x))))


class AlwaysGelu(Mistake):
    def forward(self, x):
        self.activation = ACTIVATIONS["gelu"]
        return super().forward(x)


class AlwaysQuick(Mistake):
    def forward(self, x):
        self.activation = ACTIVATIONS["quick_gelu"]
        return super().forward(x)


def inputs(activation, heads, mlp_width):
    config = TextConfig(width=12, heads=heads, activation=activation, mlp_width=mlp_width)

    def draw(g):
        init = {"config": as_namespace(config)}
        return module_inputs(g, Layer, init, 0.3 + 2 * normal(g, 2, 5, 12))

    return draw


EXERCISE = Exercise(
    name="text_layer",
    lesson="06",
    place=5,
    title="A layer of the text transformer",
    question=(
        "Write the class `Layer`, with the argument `config`. Its modules are `norm1`, `norm2` "
        "(`nn.LayerNorm`), `attn` (`CausalSelfAttention(config.width, config.heads)`), `widen` "
        "(`nn.Linear` from `config.width` to the width of the MLP) and `narrow` (`nn.Linear` "
        "back). The width of the MLP is `config.mlp_width`, or 4 times `config.width` if it is "
        "None. The activation is the function `ACTIVATIONS[config.activation]`. First half: "
        "apply norm1 and attn to x, and add the result to x. Second half: apply norm2, widen, "
        "the activation and narrow to this new x, and add the result to it."
    ),
    solution=Layer,
    stages=(
        Stage("gelu, one head", 1, inputs("gelu", 1, None), call="module"),
        Stage("quick gelu, three heads", 2, inputs("quick_gelu", 3, 20), call="module"),
    ),
    hints=(
        "Each half has the form x = x + f(norm(x)).",
        "The norm is only on the way into f. What you add f to is x without a norm.",
        "x = x + self.attn(self.norm1(x)), then hidden = self.activation(self.widen("
        "self.norm2(x))). Then add self.narrow(hidden) to x.",
    ),
    mistakes={
        "The attention is not added to x: the first residual is missing.": NoFirstResidual,
        "The MLP is not added to x: the second residual is missing.": NoSecondResidual,
        "Both residuals are missing: x = x + f(norm(x)), twice.": NoResiduals,
        "Your norms come after the sums. They should come before the attention and the MLP.": (
            NormAfter
        ),
        "The norms are missing: norm1 before the attention, norm2 before the MLP.": NoNorms,
        "norm2 is missing before the MLP.": NoSecondNorm,
        "You replaced x by norm(x). The norm should change only what f reads.": NormInResidual,
        "norm1 is used twice. The MLP has its own norm, norm2.": SameNorm,
        "The MLP should read the result of the first half, not the layer's input.": SideBySide,
        "Add the MLP to the result of the first half, not to the layer's input.": (
            FirstInputInResidual
        ),
        "Your MLP comes first. The attention should come before it.": MlpFirst,
        "The activation between widen and narrow is missing.": NoActivation,
        "The activation is in the wrong place. It belongs between widen and narrow.": (
            ActivationAtEnd
        ),
        "You used the activation twice. Use it once, between widen and narrow.": ActivationTwice,
        "The activation is always the gelu. Read it from config.activation.": AlwaysGelu,
        "The activation is always the quick gelu. Read it from config.activation.": AlwaysQuick,
    },
    passing="The text transformer of the mini has 4 of these layers, SD v1 has 12.",
    difficulty=3,
    minutes=25,
    needs=("causal_attention",),
    given="from minisd.clip import ACTIVATIONS, CausalSelfAttention",
    replaces={"minisd.clip.Layer": lambda answer: answer},
    draw=draw_cat,
)
