"""A LoRA that turns the rows of a weight more than it lengthens them, as DoRA does."""

import torch.nn.functional as F

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs.lora_merge import draw_blueprint


def merge_rows(weight, down, up, *, strength=1.2, power=0.7):
    """The weight with a LoRA, with rows that are nearly as long as before.

    weight: c_out c_in    down: rank c_in    up: c_out rank    returns: c_out c_in
    """
    merged = weight + strength * up @ down
    old = weight.norm(dim=1, keepdim=True)
    new = merged.norm(dim=1, keepdim=True)
    return merged * (old / new) ** power


def with_lengths(weight, down, up, strength, power, size):
    """The formula with another way to measure the lengths."""
    merged = weight + strength * up @ down
    return merged * (size(weight) / size(merged)) ** power


def columns(weight, down, up, *, strength=1.2, power=0.7):
    return with_lengths(
        weight, down, up, strength, power, lambda one: one.norm(dim=0, keepdim=True)
    )


def whole_matrix(weight, down, up, *, strength=1.2, power=0.7):
    return with_lengths(weight, down, up, strength, power, lambda one: one.norm())


def squares(weight, down, up, *, strength=1.2, power=0.7):
    return merge_rows(weight, down, up, strength=strength, power=2 * power)


def sums_of_sizes(weight, down, up, *, strength=1.2, power=0.7):
    return with_lengths(
        weight, down, up, strength, power, lambda one: one.abs().sum(dim=1, keepdim=True)
    )


def plain_sums(weight, down, up, *, strength=1.2, power=0.7):
    return with_lengths(weight, down, up, strength, power, lambda one: one.sum(dim=1, keepdim=True))


def upside_down(weight, down, up, *, strength=1.2, power=0.7):
    return merge_rows(weight, down, up, strength=strength, power=-power)


def without_power(weight, down, up, *, strength=1.2, power=0.7):
    return merge_rows(weight, down, up, strength=strength, power=1)


def power_as_factor(weight, down, up, *, strength=1.2, power=0.7):
    return power * merge_rows(weight, down, up, strength=strength, power=1)


def no_correction(weight, down, up, *, strength=1.2, power=0.7):
    return merge_rows(weight, down, up, strength=strength, power=0)


def without_strength(weight, down, up, *, strength=1.2, power=0.7):
    return merge_rows(weight, down, up, strength=1, power=power)


def old_length_missing(weight, down, up, *, strength=1.2, power=0.7):
    merged = weight + strength * up @ down
    return merged / merged.norm(dim=1, keepdim=True) ** power


def only_update(weight, down, up, *, strength=1.2, power=0.7):
    merged = weight + strength * up @ down
    factor = (weight.norm(dim=1, keepdim=True) / merged.norm(dim=1, keepdim=True)) ** power
    return weight + factor * strength * up @ down


def strength_last(weight, down, up, *, strength=1.2, power=0.7):
    full = merge_rows(weight, down, up, strength=1, power=power)
    return weight + strength * (full - weight)


def divide_by_rank(weight, down, up, *, strength=1.2, power=0.7):
    return merge_rows(weight, down, up, strength=strength / len(down), power=power)


def inputs(c_out, c_in, rank):
    return lambda g: [normal(g, c_out, c_in), normal(g, rank, c_in), normal(g, c_out, rank)]


def as_update(answer):
    """The answer as LowRankUpdate.__call__(), which returns only the update of the output."""

    def __call__(self, layer, x):
        down, up = self.down.to(layer.weight), self.up.to(layer.weight)
        return F.linear(x, answer(layer.weight, down, up) - layer.weight)

    return __call__


EXERCISE = Exercise(
    name="dora_merge",
    lesson="15",
    place=4,
    title="A LoRA that keeps the lengths",
    question=(
        "A LoRA turns each row of a weight, and it also makes most rows longer. DoRA (Liu et al. "
        "2024) separates the two. Write `merge_rows(weight, down, up)`: first merge the LoRA with "
        "the strength {strength}, W' = W + {strength} * up @ down. Then multiply each row of W' by "
        "(length of this row in W / length of this row in W') to the power {power}. The length is "
        "the square root of the sum of squares. With the power 1, all rows would be as long as "
        "before. There is no alpha here."
    ),
    solution=merge_rows,
    stages=(
        Stage("one row", 1, inputs(1, 3, 1)),
        Stage("6 rows and 5 columns, rank 2", 3, inputs(6, 5, 2)),
    ),
    hints=(
        "There is one length for each of the c_out rows, so two tensors of the shape c_out 1.",
        "merged.norm(dim=1, keepdim=True) is the length of each row.",
        "merged * (weight.norm(dim=1, keepdim=True) / merged.norm(dim=1, keepdim=True)) ** power",
    ),
    mistakes={
        "These are the lengths of the columns. Take the rows, dim=1.": columns,
        "This is the length of the whole matrix. Each row has its own.": whole_matrix,
        "The lengths lack their square root.": squares,
        "The length is not the sum of the absolute values.": sums_of_sizes,
        "The length is not the sum of the row.": plain_sums,
        "The quotient is upside down: old length / new length.": upside_down,
        "The power is missing.": without_power,
        "The power is an exponent, not a factor.": power_as_factor,
        "The rows are not multiplied by the quotient of their lengths.": no_correction,
        "The strength is missing.": without_strength,
        "The new length is there, but the old length is missing.": old_length_missing,
        "Multiply the whole row by the factor, not only the update.": only_update,
        "The strength belongs to the update, before the lengths are measured.": strength_last,
        "There is no division by the rank here.": divide_by_rank,
    },
    passing="The style still changes, but the layer's output is about as large as before.",
    difficulty=2,
    minutes=15,
    needs=("lora_merge",),
    constants=lambda rng: {
        "strength": rng.choice([0.7, 0.8, 1.2, 1.3, 1.5]),
        "power": rng.choice([0.4, 0.6, 0.7, 0.8]),
    },
    in_picture={"minisd.adapters.lora.LowRankUpdate.__call__": as_update},
    draw=draw_blueprint,
    in_lesson=True,
)
