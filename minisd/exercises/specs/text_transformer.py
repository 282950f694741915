"""The whole text transformer."""

import torch
from torch import nn

from minisd.clip import Layer
from minisd.config import TextConfig
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, as_namespace, module_inputs


class TextTransformer(nn.Module):
    """Reads rows of tokens. Each token gets a vector that also depends on earlier tokens.

    config: with vocab_size, max_length, width, layers, and what a Layer reads
    tokens: b n    clip_skip: how many layers to leave out at the end    returns: b n width
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.randn(config.max_length, config.width) * 0.01)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.layers)])
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, tokens, clip_skip=0):
        n = tokens.shape[1]
        x = self.token_embedding(tokens) + self.position_embedding[:n]
        for layer in self.layers[: len(self.layers) - clip_skip]:
            x = layer(x)
        return self.norm_out(x)


class Mistake(TextTransformer):
    """The solution in parts, so that a mistake can change one of them."""

    def embed(self, tokens):
        return self.token_embedding(tokens) + self.position_embedding[: tokens.shape[1]]

    def chosen_layers(self, clip_skip):
        return self.layers[: len(self.layers) - clip_skip]

    def forward(self, tokens, clip_skip=0):
        x = self.embed(tokens)
        for layer in self.chosen_layers(clip_skip):
            x = layer(x)
        return self.norm_out(x)


class NoPositions(Mistake):
    def embed(self, tokens):
        return self.token_embedding(tokens)


class AllPositions(Mistake):
    def embed(self, tokens):
        return self.token_embedding(tokens) + self.position_embedding


class LastPositions(Mistake):
    def embed(self, tokens):
        return self.token_embedding(tokens) + self.position_embedding[-tokens.shape[1] :]


class MinusZero(Mistake):
    def chosen_layers(self, clip_skip):
        return self.layers[:-clip_skip]


class SkipNothing(Mistake):
    def chosen_layers(self, clip_skip):
        return self.layers


class SkipFirst(Mistake):
    def chosen_layers(self, clip_skip):
        return self.layers[clip_skip:]


class CountOnlySkipped(Mistake):
    def chosen_layers(self, clip_skip):
        return self.layers[:clip_skip] if clip_skip else self.layers


class SkipOneMore(Mistake):
    def chosen_layers(self, clip_skip):
        return self.layers[: len(self.layers) - clip_skip - 1]


class FirstLayerAgain(Mistake):
    def chosen_layers(self, clip_skip):
        return [self.layers[0]] * (len(self.layers) - clip_skip)


class ReverseLayers(Mistake):
    def chosen_layers(self, clip_skip):
        return self.layers[: len(self.layers) - clip_skip][::-1]


class LayersReadEmbedding(Mistake):
    def forward(self, tokens, clip_skip=0):
        x = embedded = self.embed(tokens)
        for layer in self.chosen_layers(clip_skip):
            x = layer(embedded)
        return self.norm_out(x)


class NoNorm(Mistake):
    def forward(self, tokens, clip_skip=0):
        self.norm_out = nn.Identity()
        return super().forward(tokens, clip_skip)


class NormFirst(Mistake):
    def forward(self, tokens, clip_skip=0):
        x = self.norm_out(self.embed(tokens))
        for layer in self.chosen_layers(clip_skip):
            x = layer(x)
        return x


class NormAfterEachLayer(Mistake):
    def forward(self, tokens, clip_skip=0):
        x = self.embed(tokens)
        for layer in self.chosen_layers(clip_skip):
            x = self.norm_out(layer(x))
        return x


class NoNormIfSkipped(Mistake):
    def forward(self, tokens, clip_skip=0):
        if clip_skip:
            self.norm_out = nn.Identity()
        return super().forward(tokens, clip_skip)


SIZES = TextConfig(vocab_size=20, width=12, layers=4, heads=3, activation="gelu", max_length=9)


def inputs(b, n, *clip_skip):
    def draw(g):
        tokens = torch.randint(20, (b, n), generator=g)
        return module_inputs(
            g, TextTransformer, {"config": as_namespace(SIZES)}, tokens, *clip_skip
        )

    return draw


EXERCISE = Exercise(
    name="text_transformer",
    lesson="06",
    place=6,
    title="The text transformer",
    question=(
        "Write the class `TextTransformer`, with the argument `config`. Keep it as "
        "`self.config`. `token_embedding` is an `nn.Embedding` with `config.vocab_size` rows of "
        "`config.width` numbers. `position_embedding` is an `nn.Parameter` of shape "
        "(`config.max_length`, `config.width`) with small random numbers. `layers` is an "
        "`nn.ModuleList` with `config.layers` layers `Layer(config)`, and `norm_out` is an "
        "`nn.LayerNorm`. `forward(tokens, clip_skip=0)` adds the first n rows of "
        "`position_embedding` to the embeddings of the n tokens. Then it runs the layers, but "
        "leaves out the last `clip_skip` of them. At the end, it applies norm_out."
    ),
    solution=TextTransformer,
    stages=(
        Stage("rows of full length", 1, inputs(1, 9), call="module"),
        Stage("a batch of shorter rows", 1, inputs(2, 6), call="module"),
        Stage("clip_skip", 1, inputs(2, 6, 1), call="module"),
    ),
    hints=(
        "forward() has three parts: add the positions to the embeddings, run the layers, apply "
        "the norm.",
        "self.position_embedding[:n] has the rows of the first n places. If clip_skip is 0, all "
        "layers run.",
        "for layer in self.layers[: len(self.layers) - clip_skip]: x = layer(x). With "
        "[:-clip_skip], no layer would run if clip_skip is 0.",
    ),
    mistakes={
        "The positions are missing.": NoPositions,
        "A row may be shorter than max_length. Add only the first n positions.": AllPositions,
        "A short row should get the first positions, not the last ones.": LastPositions,
        "If clip_skip is 0, layers[:-clip_skip] is empty. All layers should run.": MinusZero,
        "clip_skip has no effect. Leave out the last clip_skip layers.": SkipNothing,
        "You left out the first layers. Leave out the last clip_skip layers.": SkipFirst,
        "clip_skip is the number of layers to leave out, not the number to run.": (
            CountOnlySkipped
        ),
        "You left out one layer too many. Leave out clip_skip layers.": SkipOneMore,
        "The first layer runs again and again. Each layer has its own weights.": FirstLayerAgain,
        "The layers run in the reverse order. layers[0] should run first.": ReverseLayers,
        "Each layer should read the result of the layer before it.": LayersReadEmbedding,
        "norm_out should run even if layers are left out.": NoNormIfSkipped,
        "norm_out is missing at the end.": NoNorm,
        "norm_out belongs at the end, after the layers.": NormFirst,
        "norm_out should run only once, after the last layer.": NormAfterEachLayer,
    },
    passing="Everything between the ids and the context is yours now.",
    difficulty=3,
    minutes=25,
    needs=("embed_tokens", "text_layer"),
    given="from minisd.clip import Layer",
    replaces={"minisd.clip.TextTransformer": lambda answer: answer},
    draw=draw_cat,
)
