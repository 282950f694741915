"""Compare two tensors as a test does."""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal


def first_difference(ours, theirs, tolerance):
    """Where two tensors differ for the first time, and how much they differ at most.

    ours, theirs: two tensors of the same shape    tolerance: the largest error that is allowed
    returns: the index of the first difference, a list with one number for each axis, and the
        largest error, a number. The list is empty if there is no difference
    """
    error = (ours - theirs).abs()
    differs = ~(error <= tolerance)
    places = differs.nonzero().tolist()
    return (places[0] if places else []), error.max().item()


def find_first(differs):
    places = differs.nonzero().tolist()
    return places[0] if places else []


def largest_place(ours, theirs, tolerance):
    error = (ours - theirs).abs()
    differs = ~(error <= tolerance)
    place = torch.where(differs, error, -1).argmax()
    index = [int(one) for one in torch.unravel_index(place, error.shape)]
    return (index if differs.any() else []), error.max().item()


def last_place(ours, theirs, tolerance):
    error = (ours - theirs).abs()
    places = (~(error <= tolerance)).nonzero().tolist()
    return (places[-1] if places else []), error.max().item()


def without_abs(ours, theirs, tolerance):
    error = ours - theirs
    return find_first(~(error <= tolerance)), error.max().item()


def other_signs(ours, theirs, tolerance):
    error = theirs - ours
    return find_first(~(error <= tolerance)), error.max().item()


def blind_to_nan(ours, theirs, tolerance):
    error = (ours - theirs).abs()
    return find_first(error > tolerance), error.max().item()


def nan_is_zero(ours, theirs, tolerance):
    error = (ours - theirs).abs().nan_to_num()
    return find_first(error > tolerance), error.max().item()


def flat_index(ours, theirs, tolerance):
    index, error = first_difference(ours.flatten(), theirs.flatten(), tolerance)
    return index, error


def mean_error(ours, theirs, tolerance):
    error = (ours - theirs).abs()
    return find_first(~(error <= tolerance)), error.mean().item()


def error_at_first(ours, theirs, tolerance):
    index, most = first_difference(ours, theirs, tolerance)
    return index, (ours - theirs).abs()[tuple(index)].item() if index else most


def relative_error(ours, theirs, tolerance):
    error = ((ours - theirs) / theirs).abs()
    return find_first(~(error <= tolerance)), error.max().item()


def squared_error(ours, theirs, tolerance):
    error = (ours - theirs) ** 2
    return find_first(~(error <= tolerance)), error.max().item()


def no_tolerance(ours, theirs, tolerance):
    return first_difference(ours, theirs, 0)


def column_first(ours, theirs, tolerance):
    axes = list(range(ours.ndim))[::-1]
    index, error = first_difference(ours.permute(axes), theirs.permute(axes), tolerance)
    return index[::-1], error


ERRORS = [-0.1, 0.3, 0.9, -0.4, 0.6, -0.5]  # the first one is small, and the largest is not last


def inputs(shape, wrong, with_nan=False):
    """Two tensors. The first difference is at the end of the first row.

    The second one is at the start of the next row, so it comes first if one looks down the columns.
    """

    def draw(g):
        ours = normal(g, *shape)
        theirs = (ours + 1e-6 * normal(g, *shape).tanh()).flatten()
        row = shape[-1]
        others = torch.randperm(len(theirs) - row - 1, generator=g) + row + 1
        places = torch.cat([torch.tensor([row - 1, row]), others])[:wrong].sort().values
        errors = torch.tensor(ERRORS[:wrong], dtype=torch.float64)
        theirs[places] = theirs[places] + errors + 0.05 * normal(g, wrong).tanh()
        if with_nan:
            theirs[places[0]] = float("nan")
        return [ours, theirs.reshape(shape), 1e-4]

    return draw


EXERCISE = Exercise(
    name="first_difference",
    lesson="17",
    place=3,
    title="Where do two tensors differ?",
    question=(
        "Write `first_difference(ours, theirs, tolerance)`. The error of two numbers is their "
        "absolute difference. They differ if the error is larger than the tolerance, or if it is "
        "NaN. Return two things: the index of the first number that differs, as a list with one "
        "number for each axis, and the largest error. First means: in the order in which the "
        "numbers are stored, so the last axis changes fastest. If nothing differs, the list is "
        "empty. If one error is NaN, the largest error is NaN."
    ),
    solution=first_difference,
    stages=(
        Stage("two axes, one difference", 1, inputs((2, 5), 1)),
        Stage("no difference", 1, inputs((3, 5), 0)),
        Stage("three axes", 2, inputs((3, 4, 5), 6)),
        Stage("a NaN", 1, inputs((4, 6), 3, with_nan=True)),
    ),
    hints=(
        "Make a tensor of true and false first: where do the numbers differ?",
        "x.nonzero() lists the indices of all places where x is true, the first one first.",
        "A comparison with NaN is false. So ~(error <= tolerance) is true for a NaN, but "
        "error > tolerance is not. error.max() is NaN if there is a NaN.",
    ),
    mistakes={
        "This is the place of the largest error. Find the first difference.": largest_place,
        "This is the last difference. Find the first one.": last_place,
        "You took ours - theirs, which may be negative. Take its absolute value.": without_abs,
        "You took theirs - ours, which may be negative. Take its absolute value.": other_signs,
        "You missed a NaN. It should count as a difference.": blind_to_nan,
        "You replaced NaN by 0. It should count as a difference.": nan_is_zero,
        "You counted through the flat tensor. The index needs one number for each axis.": (
            flat_index
        ),
        "You returned the mean error. Return the largest one.": mean_error,
        "You returned the error at the first difference. Return the largest one.": error_at_first,
        "You divided the error by the number. Take the absolute difference.": relative_error,
        "You squared the error. Take the absolute difference.": squared_error,
        "Every difference counts in your answer. Errors up to the tolerance are allowed.": (
            no_tolerance
        ),
        "You looked down the columns. The last axis changes fastest, so look along the rows.": (
            column_first
        ),
    },
    passing="check() finds the first wrong number of your answers in the same way.",
    difficulty=2,
    minutes=15,
)
