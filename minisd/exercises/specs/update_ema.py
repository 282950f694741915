"""The average of the weights over the last steps."""

from minisd.exercises.exercise import Exercise, Stage, normal


def update_ema(ema, weights, step, most):
    """The new average of the weights.

    ema: the old average, a dictionary: name -> tensor    weights: the network's weights, likewise
    step: the number of this step, from 0    most: the largest share of the old average that stays
    returns: the new average, a dictionary with the same names
    """
    keep = min(most, (1 + step) / (10 + step))
    return {name: keep * ema[name] + (1 - keep) * weights[name] for name in ema}


def with_keep(share):
    """The average with another share. share: (step, most) -> the share that stays."""

    def answer(ema, weights, step, most):
        keep = share(step, most)
        return {name: keep * ema[name] + (1 - keep) * weights[name] for name in ema}

    return answer


def warm_up(step):
    return (1 + step) / (10 + step)


def swap_shares(ema, weights, step, most):
    return update_ema(weights, ema, step, most)


def running_sum(ema, weights, step, most):
    keep = min(most, warm_up(step))
    return {name: keep * ema[name] + weights[name] for name in ema}


def without_names(ema, weights, step, most):
    return list(update_ema(ema, weights, step, most).values())


def only_the_weights(ema, weights, step, most):
    return weights


def draw_weights(g, names):
    return {name: normal(g, *shape) for name, shape in names.items()}


def inputs(names, step, most):
    return lambda g: [draw_weights(g, names), draw_weights(g, names), step, most]


LAYER = {"layer.weight": (3, 2), "layer.bias": (3,)}

EXERCISE = Exercise(
    name="update_ema",
    lesson="02",
    place=6,
    title="The average of the weights",
    question=(
        "After training, we do not keep the last weights, but an average over the last steps: "
        "the EMA (exponential moving average). Write `update_ema(ema, weights, step, most)`. For "
        "each name, the new average is keep times the old average plus (1 - keep) times the "
        "current weights. Here, keep is the smaller of two numbers: `most`, such as 0.999, and "
        "(1 + step) / (10 + step). The second number makes keep small at the start, when the old "
        "average is still poor. Return a new dictionary."
    ),
    solution=update_ema,
    stages=(
        Stage("one weight, late in the training", 1, inputs({"w": (1,)}, 50_000, 0.99)),
        Stage("a layer, late in the training", 1, inputs(LAYER, 50_000, 0.95)),
        Stage("a layer, at the start", 1, inputs(LAYER, 3, 0.999)),
    ),
    hints=(
        "First compute keep: the smaller of two numbers.",
        "keep = min(most, (1 + step) / (10 + step)).",
        "Go through all names: keep * ema[name] + (1 - keep) * weights[name].",
    ),
    mistakes={
        "The two shares are swapped: keep belongs to the old average.": swap_shares,
        "At the start, keep is (1 + step) / (10 + step), the smaller of the two.": (
            with_keep(lambda step, most: most)
        ),
        "keep is the smaller of the two numbers, not the larger one.": (
            with_keep(lambda step, most: max(most, warm_up(step)))
        ),
        "keep must not be larger than `most`. Take the smaller of the two.": (
            with_keep(lambda step, most: warm_up(step))
        ),
        "Multiply the current weights by (1 - keep).": running_sum,
        "This is the mean of both. Use keep and 1 - keep.": with_keep(lambda step, most: 0.5),
        "These are the current weights. Keep a part of the old average.": only_the_weights,
        "Your average does not change. Add (1 - keep) times the current weights.": (
            lambda ema, weights, step, most: ema
        ),
        "Return a dictionary with the same names.": without_names,
        "The fraction is wrong. It should be (1 + step) / (10 + step).": (
            with_keep(lambda step, most: min(most, step / (10 + step)))
        ),
        "At the start, you multiplied `most` by the fraction. Take the smaller of the two.": (
            with_keep(lambda step, most: most * warm_up(step))
        ),
    },
    passing="The weights in weights/mini.safetensors are such an average.",
    difficulty=1,
    minutes=10,
)
