"""A context from two layers of the text transformer. Layer and share are the student's own."""

from minisd.exercises.calls import Made
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def mix_layers(x, layers, norm, *, back=1, share=0.4):
    """The context: a mixture of the last layer and an earlier one, and then the final norm.

    x: b n width, the embedded tokens    layers: a list of functions, b n width -> b n width
    norm: a function, the final norm    returns: b n width
    """
    outputs = []
    for layer in layers:
        x = layer(x)
        outputs.append(x)
    earlier = outputs[-1 - back]
    return norm((1 - share) * x + share * earlier)


def list_outputs(x, layers):
    """The outputs of all layers. The first entry is x itself."""
    outputs = [x]
    for layer in layers:
        outputs.append(layer(outputs[-1]))
    return outputs


def norm_first(x, layers, norm, *, back=1, share=0.4):
    outputs = list_outputs(x, layers)
    return (1 - share) * norm(outputs[-1]) + share * norm(outputs[-1 - back])


def without_norm(x, layers, norm, *, back=1, share=0.4):
    return mix_layers(x, layers, lambda one: one, back=back, share=share)


def norm_of_last(x, layers, norm, *, back=1, share=0.4):
    outputs = list_outputs(x, layers)
    return (1 - share) * norm(outputs[-1]) + share * outputs[-1 - back]


def other_share(x, layers, norm, *, back=1, share=0.4):
    return mix_layers(x, layers, norm, back=back, share=1 - share)


def one_too_early(x, layers, norm, *, back=1, share=0.4):
    outputs = list_outputs(x, layers)
    return norm((1 - share) * outputs[-1] + share * outputs[-2 - back])


def one_too_late(x, layers, norm, *, back=1, share=0.4):
    outputs = list_outputs(x, layers)
    return norm((1 - share) * outputs[-1] + share * outputs[-back])


def from_the_start(x, layers, norm, *, back=1, share=0.4):
    outputs = list_outputs(x, layers)
    return norm((1 - share) * outputs[-1] + share * outputs[back])


def only_earlier(x, layers, norm, *, back=1, share=0.4):
    return mix_layers(x, layers, norm, back=back, share=1)


def only_last(x, layers, norm, *, back=1, share=0.4):
    return mix_layers(x, layers, norm, back=back, share=0)


def with_tokens(x, layers, norm, *, back=1, share=0.4):
    outputs = list_outputs(x, layers)
    return norm((1 - share) * outputs[-1] + share * x)


def full_last(x, layers, norm, *, back=1, share=0.4):
    outputs = list_outputs(x, layers)
    return norm(outputs[-1] + share * outputs[-1 - back])


def norm_in_each(x, layers, norm, *, back=1, share=0.4):
    outputs = [x]
    for layer in layers:
        outputs.append(norm(layer(outputs[-1])))
    return norm((1 - share) * outputs[-1] + share * outputs[-1 - back])


def skip_first_layers(x, layers, norm, *, back=1, share=0.4):
    last, short = list_outputs(x, layers)[-1], list_outputs(x, layers[back:])[-1]
    return norm((1 - share) * last + share * short)


def inputs(b, n, width, names):
    settings = {"name": "LayerNorm", "normalized_shape": width, "elementwise_affine": False}
    layers = [Made("layer", {"name": name}) for name in names]
    return lambda g: [2 * normal(g, b, n, width), layers, Made("layer", settings)]


def as_forward(answer):
    """The answer inside TextTransformer.forward()."""

    def forward(self, tokens, clip_skip=0):
        x = self.token_embedding(tokens) + self.position_embedding[: tokens.shape[1]]
        return answer(x, self.layers, self.norm_out)

    return forward


EXERCISE = Exercise(
    name="mix_layers",
    lesson="16",
    place=4,
    title="Between the last layer and an earlier one",
    question=(
        "v1 uses the last layer of its text transformer, and v2 uses the penultimate layer. Your "
        "function mixes the last layer with an earlier one. Write `mix_layers(x, layers, norm)`. "
        "Run all layers, each on the output of the layer before. Keep the output of the last "
        "layer. Keep also the output of the earlier layer: count back from the last layer by "
        "{back}. (If you count back by 1, you get the penultimate layer.) The mixture is {share} "
        "times the earlier output, plus (1 - {share}) times the last output. At the end, apply "
        "the final norm once, to the mixture."
    ),
    solution=mix_layers,
    stages=(
        Stage("one token, four layers", 1, inputs(1, 1, 6, ["Tanh", "Softplus", "GELU", "Tanh"])),
        Stage(
            "a batch of 2, five layers",
            2,
            inputs(2, 5, 7, ["Softplus", "Tanh", "SELU", "Sigmoid", "Softplus"]),
        ),
    ),
    hints=(
        "Keep the output of every layer in a list.",
        "outputs[-1] is the output of the last layer, and outputs[-2] that of the last but one.",
        "norm((1 - share) * outputs[-1] + share * outputs[-1 - back])",
    ),
    mistakes={
        "You applied the norm to both outputs. Mix first, then apply it once.": norm_first,
        "The final norm is missing. Apply it to the mixture.": without_norm,
        "You applied the norm to the last output only. Apply it to the mixture.": norm_of_last,
        "The shares are swapped. The given share belongs to the earlier output.": other_share,
        "Your earlier layer is one too early. outputs[-2] is 1 before the last.": one_too_early,
        "Your earlier layer is one too late. outputs[-2] is 1 before the last.": one_too_late,
        "You counted the layers from the start. Count from the end.": from_the_start,
        "The output of the last layer is missing. Mix it in.": only_earlier,
        "The output of the earlier layer is missing. Mix it in.": only_last,
        "You mixed with the embedded tokens. Mix with the output of a layer.": with_tokens,
        "The last output has the factor 1. The two factors should add up to 1.": full_last,
        "You applied the norm after every layer. Apply it once, at the end.": norm_in_each,
        "You left out the first layers. The earlier output lacks the last ones.": skip_first_layers,
    },
    passing=(
        "The U-Net was trained with one layer only. The picture shows how it draws with a mixture."
    ),
    difficulty=2,
    minutes=15,
    constants=lambda rng: {
        "back": rng.choice([1, 2]),
        "share": rng.choice([0.2, 0.3, 0.4, 0.6, 0.7]),
    },
    in_picture={"minisd.clip.TextTransformer.forward": as_forward},
    draw=draw_cat,
    in_lesson=True,
)
