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


def without_keepdim(weight, down, up, *, strength=1.2, power=0.7):
    return with_lengths(weight, down, up, strength, power, lambda one: one.norm(dim=1))


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
        "A LoRA changes the direction of each row of a weight, and it also makes most rows "
        "longer. DoRA (Liu et al. 2024) separates the two. Write `merge_rows(weight, down, up)`: "
        "first merge the LoRA with the strength {strength}, W' = W + {strength} * up @ down. "
        "Then multiply each row of W' by (length of this row in W / length of this row in W') to "
        "the power {power}. The length of a row is the square root of the sum of its squares. "
        "With the power 1, all rows would be as long as before. There is no alpha here."
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
        "The lengths have one number for each row. Use keepdim=True: the shape is c_out 1.": (
            without_keepdim
        ),
        "You took the lengths of the columns. Take those of the rows, dim=1.": columns,
        "You took the length of the whole matrix. Take that of each row.": whole_matrix,
        "You used the sums of squares. Take their square roots.": squares,
        "You took sums of absolute values as lengths. Take roots of sums of squares.": (
            sums_of_sizes
        ),
        "You took the sum of a row as its length. Take the root of its sum of squares.": (
            plain_sums
        ),
        "Your quotient is upside down. Use old length / new length.": upside_down,
        "The power is missing. Raise the quotient to it.": without_power,
        "You multiplied by the power. It is an exponent.": power_as_factor,
        "This is W'. Multiply each row by the quotient of the lengths, to the power.": (
            no_correction
        ),
        "The strength is missing. Multiply by it what is added.": without_strength,
        "You divided by the new length alone. Multiply by the old length, too.": old_length_missing,
        "You multiplied only the update by the quotient. Multiply the whole row of W'.": (
            only_update
        ),
        "You used the strength at the end. Multiply the update by it, in W'.": (strength_last),
        "You divided by the rank. Here there is no such division.": divide_by_rank,
    },
    passing="The LoRA still changes the style, but the layer's output is about as large as before.",
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
