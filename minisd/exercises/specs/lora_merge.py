"""LoRA: add the product of two thin matrices to a weight."""

import torch.nn.functional as F

from minisd.adapters.lora import lora
from minisd.config import WEIGHTS
from minisd.exercises.exercise import Exercise, Stage, normal


def merge_lora(weight, down, up, alpha, scale):
    """The weight of a layer with a LoRA in it.

    A linear layer:  weight: c_out c_in        down: rank c_in        up: c_out rank
    A convolution:   weight: c_out c_in h w    down: rank c_in h w    up: c_out rank 1 1
    alpha, scale: numbers    returns: the shape of weight
    """
    rank = len(down)
    update = up.flatten(1) @ down.flatten(1)
    return weight + scale * alpha / rank * update.reshape(weight.shape)


def without_rank(weight, down, up, alpha, scale):
    return merge_lora(weight, down, up, alpha * len(down), scale)


def without_alpha(weight, down, up, alpha, scale):
    return merge_lora(weight, down, up, len(down), scale)


def rank_over_alpha(weight, down, up, alpha, scale):
    return merge_lora(weight, down, up, len(down) ** 2 / alpha, scale)


def root_of_rank(weight, down, up, alpha, scale):
    return merge_lora(weight, down, up, alpha * len(down) ** 0.5, scale)


def without_scale(weight, down, up, alpha, scale):
    return merge_lora(weight, down, up, alpha, 1)


def scale_twice(weight, down, up, alpha, scale):
    return merge_lora(weight, down, up, alpha, scale**2)


def input_as_rank(weight, down, up, alpha, scale):
    return merge_lora(weight, down, up, alpha * len(down) / down.shape[1], scale)


def output_as_rank(weight, down, up, alpha, scale):
    return merge_lora(weight, down, up, alpha * len(down) / len(up), scale)


def only_update(weight, down, up, alpha, scale):
    return merge_lora(0 * weight, down, up, alpha, scale)


def blend(weight, down, up, alpha, scale):
    return merge_lora((1 - scale) * weight, down, up, alpha, scale)


def minus(weight, down, up, alpha, scale):
    return merge_lora(weight, down, up, alpha, -scale)


def turn(weight, down, up, alpha, scale):
    update = (up.flatten(1) @ down.flatten(1)).T
    return weight + scale * alpha / len(down) * update.reshape(weight.shape)


def all_scaled(weight, down, up, alpha, scale):
    return scale * merge_lora(weight, down, up, alpha, 1)


def inputs(c_out, c_in, rank, *window):
    def draw(g):
        ends = [1] * len(window)
        weight, down = normal(g, c_out, c_in, *window), normal(g, rank, c_in, *window)
        return [weight, down, normal(g, c_out, rank, *ends), 5.0, 0.7]

    return draw


def as_update(answer):
    """The answer as LowRankUpdate.__call__(), which returns only the update of the output."""

    def __call__(self, layer, x):
        down, up = self.down.to(layer.weight), self.up.to(layer.weight)
        merged = answer(layer.weight, down, up, 2 * self.alpha, 0.5)
        return F.linear(x, merged - layer.weight)

    return __call__


def draw_blueprint(sd):
    """A cat with the LoRA of blueprints."""
    with lora(sd, WEIGHTS / "mini-blueprint.safetensors"):
        return sd.txt2img("a cat on a yellow background", steps=8, seed=2)


EXERCISE = Exercise(
    name="lora_merge",
    lesson="15",
    place=3,
    title="Merge a LoRA",
    question=(
        "A LoRA can be merged into a weight: W + scale * (alpha / rank) * up @ down. Here, scale "
        "is the strength s. Write `merge_lora(weight, down, up, alpha, scale)`. The rank is the "
        "length of the first axis of `down`. It should work for linear layers and for "
        "convolutions. For a convolution, `down` has the kernel size of the layer, and `up` is a "
        "1x1 convolution: at each position of the kernel, the update is again up @ down."
    ),
    solution=merge_lora,
    stages=(
        Stage("a layer of 2 x 2, rank 1", 1, inputs(2, 2, 1)),
        Stage("a linear layer, rank 3", 2, inputs(6, 5, 3)),
        Stage("a 1x1 convolution", 1, inputs(4, 5, 2, 1, 1)),
        Stage("a 3x3 convolution", 1, inputs(4, 5, 2, 3, 3)),
    ),
    hints=(
        "For a linear layer this is one line with @.",
        "For a convolution, make matrices of both: down.flatten(1) is rank (c_in h w), and "
        "up.flatten(1) is c_out rank.",
        "update = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) works for both kinds of "
        "layers. Multiply it by scale * alpha / len(down), and add the weight.",
    ),
    mistakes={
        "You multiplied by alpha. Multiply by alpha / rank.": without_rank,
        "alpha / rank is missing. Multiply the update by it.": without_alpha,
        "You used rank / alpha. Use alpha / rank.": rank_over_alpha,
        "You divided by the square root of the rank. Divide by the rank.": root_of_rank,
        "The scale is missing. Multiply the update by it.": without_scale,
        "You multiplied by the scale twice. Do it once.": scale_twice,
        "You divided by c_in. The rank is the length of the first axis of down.": input_as_rank,
        "You divided by c_out. The rank is the length of the first axis of down.": output_as_rank,
        "This is only the update. Add it to the weight.": only_update,
        "You multiplied the weight by 1 - scale. It keeps its full size.": blend,
        "You subtracted the update. Add it.": minus,
        "Your product is transposed. up @ down is c_out c_in.": turn,
        "You multiplied the weight by the scale. Multiply only the update.": all_scaled,
    },
    passing=(
        "Programs merge a LoRA in this way to save time. minisd keeps the weight, and adds the "
        "update to the layer's output."
    ),
    difficulty=2,
    minutes=12,
    in_picture={"minisd.adapters.lora.LowRankUpdate.__call__": as_update},
    draw=draw_blueprint,
    in_lesson=True,
)
