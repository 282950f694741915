"""Compare depth maps whose scale and shift nobody knows."""

from minisd.exercises.exercise import Exercise, Stage, normal


def align_depth(depth, truth):
    """scale * depth + shift, as close to the truth as possible.

    depth, truth: b 1 h w    returns: b 1 h w
    """
    depth_mean = depth.mean(dim=(1, 2, 3), keepdim=True)
    truth_mean = truth.mean(dim=(1, 2, 3), keepdim=True)
    products = (depth - depth_mean) * (truth - truth_mean)
    squares = (depth - depth_mean) ** 2
    scale = products.sum(dim=(1, 2, 3), keepdim=True) / squares.sum(dim=(1, 2, 3), keepdim=True)
    return truth_mean + scale * (depth - depth_mean)


def mean(x):
    return x.mean(dim=(1, 2, 3), keepdim=True)


def spread(x):
    return x.std(dim=(1, 2, 3), keepdim=True)


def same_spread(depth, truth):
    return mean(truth) + spread(truth) / spread(depth) * (depth - mean(depth))


def only_shift(depth, truth):
    return depth - mean(depth) + mean(truth)


def only_scale(depth, truth):
    return mean(depth * truth) / mean(depth**2) * depth


def shift_last(depth, truth):
    scale = mean(depth * truth) / mean(depth**2)
    return scale * depth + mean(truth - scale * depth)


def whole_batch(depth, truth):
    whole = align_depth(depth.reshape(1, 1, 1, -1), truth.reshape(1, 1, 1, -1))
    return whole.reshape(depth.shape)


def other_direction(depth, truth):
    return align_depth(truth, depth)


def inverse_scale(depth, truth):
    products = mean((depth - mean(depth)) * (truth - mean(truth)))
    return mean(truth) + mean((truth - mean(truth)) ** 2) / products * (depth - mean(depth))


def mixed_counts(depth, truth):
    products = mean((depth - mean(depth)) * (truth - mean(truth)))
    return mean(truth) + products / spread(depth) ** 2 * (depth - mean(depth))


def same_range(depth, truth):
    low, high = depth.amin(dim=(2, 3), keepdim=True), depth.amax(dim=(2, 3), keepdim=True)
    first, last = truth.amin(dim=(2, 3), keepdim=True), truth.amax(dim=(2, 3), keepdim=True)
    return first + (depth - low) / (high - low) * (last - first)


def correlation_as_scale(depth, truth):
    products = mean((depth - mean(depth)) * (truth - mean(truth)))
    spreads = [mean((x - mean(x)) ** 2) ** 0.5 for x in (depth, truth)]
    return mean(truth) + products / (spreads[0] * spreads[1]) * (depth - mean(depth))


def mean_not_back(depth, truth):
    return align_depth(depth, truth) - mean(truth) + mean(depth)


def inputs(*shape):
    def draw(g):
        depth, noise = 2 + normal(g, *shape), normal(g, *shape)
        signs = normal(g, shape[0], 1, 1, 1)
        return [depth, 5 + 3 * signs * depth + noise]

    return draw


EXERCISE = Exercise(
    name="align_depth",
    lesson="13",
    place=2,
    title="How good is an estimate of depth?",
    question=(
        "An estimator of depth does not know the scale and the shift of its values. To compare "
        "its map with a true one, choose for each picture the scale and the shift for which "
        "(scale * depth + shift - truth)² is smallest, summed over all pixels. Write "
        "`align_depth(depth, truth)`, which returns scale * depth + shift. The scale is the sum "
        "of (depth - its mean) * (truth - its mean), divided by the sum of (depth - its mean)². "
        "The shift makes the two means equal. The scale may be negative."
    ),
    solution=align_depth,
    stages=(
        Stage("a map of 2 x 2", 1, inputs(1, 1, 2, 2)),
        Stage("a map of 5 x 3", 1, inputs(1, 1, 5, 3)),
        Stage("a batch of 3", 2, inputs(3, 1, 4, 6)),
    ),
    hints=(
        "x.mean(dim=(1, 2, 3), keepdim=True) is the mean of each map.",
        "Subtract the mean from both maps. Then only the scale is left to find.",
        "scale = (d * t).sum / (d * d).sum for the maps d and t without their means. The result is "
        "truth_mean + scale * (depth - depth_mean).",
    ),
    mistakes={
        "Your scale is a ratio of spreads, which is never negative. Use the two sums.": same_spread,
        "The scale is missing. You only made the means equal.": only_shift,
        "The shift is missing. The result should have the mean of the truth.": only_scale,
        "You computed the scale first. Subtract the means before you compute it.": shift_last,
        "There is one scale for the whole batch. Each map has its own.": whole_batch,
        "You aligned the truth with the estimate. Do it the other way round.": other_direction,
        "Divide by the squares of the estimate, not by the products.": inverse_scale,
        "You divided one sum by n and the other by n - 1. Divide neither.": mixed_counts,
        "You matched the smallest and the largest values. Match all pixels.": same_range,
        "This is the correlation. Divide by the sum of the squares of depth only.": (
            correlation_as_scale
        ),
        "The result should have the mean of the truth.": mean_not_back,
    },
    passing="Papers about depth do this before they measure an error.",
    difficulty=3,
    minutes=20,
)
