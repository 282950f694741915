"""One step of gradient descent, by hand."""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal


def sgd_step(w, x, y, rate):
    """The weights after one step of gradient descent.

    w: d, the weights    x: n d, the inputs    y: n, the right answers    rate: the learning rate
    returns: d, the new weights
    """
    errors = x @ w - y
    gradient = 2 / len(x) * (x.T @ errors)
    return w - rate * gradient


def with_gradient(gradient):
    """The step with another gradient. gradient: (x, errors) -> d."""
    return lambda w, x, y, rate: w - rate * gradient(x, x @ w - y)


def two_steps(w, x, y, rate):
    return sgd_step(sgd_step(w, x, y, rate), x, y, rate)


def uphill(w, x, y, rate):
    return sgd_step(w, x, y, -rate)


def inputs(n, d):
    def draw(g):
        rate = 0.05 + 0.1 * torch.rand(1, generator=g).item()
        return [normal(g, d), normal(g, n, d), normal(g, n), rate]

    return draw


EXERCISE = Exercise(
    name="sgd_step",
    lesson="02",
    place=5,
    title="One step downhill, by hand",
    question=(
        "The smallest network is a single product: its answer is x @ w. Its loss is the mean of "
        "(answer - y) squared over the n examples. Write `sgd_step(w, x, y, rate)`: one step of "
        "gradient descent. The gradient is 2 / n times the sum over all examples of (answer - y) "
        "* x. The new weights are w minus rate times the gradient. Return them. Do not change w "
        "itself."
    ),
    solution=sgd_step,
    stages=(
        Stage("one weight, one example", 1, inputs(1, 1)),
        Stage("three weights, five examples", 1, inputs(5, 3)),
    ),
    hints=(
        "x @ w gives n answers. What is the error of each?",
        "x.T @ errors adds up errors[i] * x[i] over all examples.",
        "gradient = 2 / len(x) * (x.T @ errors). Then w - rate * gradient.",
    ),
    mistakes={
        "The step goes uphill. Subtract the gradient.": uphill,
        "The factor 2 is missing. It comes from the square.": (
            with_gradient(lambda x, errors: x.T @ errors / len(x))
        ),
        "The gradient is a sum. Divide it by the number of examples.": (
            with_gradient(lambda x, errors: 2 * x.T @ errors)
        ),
        "The gradient is a sum without its factor 2 / n.": (
            with_gradient(lambda x, errors: x.T @ errors)
        ),
        "You divided by the number of weights. Divide by the number of examples.": (
            with_gradient(lambda x, errors: 2 / x.shape[1] * (x.T @ errors))
        ),
        "The learning rate is missing.": lambda w, x, y, rate: sgd_step(w, x, y, 1.0),
        "This is the gradient. Return the new weights.": (
            lambda w, x, y, rate: w - sgd_step(w, x, y, 1.0)
        ),
        "This is only the change. Add it to w.": lambda w, x, y, rate: sgd_step(w, x, y, rate) - w,
        "The error is answer - y. You left out y.": (
            lambda w, x, y, rate: sgd_step(w, x, torch.zeros_like(y), rate)
        ),
        "Each error must be multiplied by its x.": (
            with_gradient(lambda x, errors: 2 * errors.mean())
        ),
        "You used only the signs of the errors. Take the errors themselves.": (
            with_gradient(lambda x, errors: 2 / len(x) * (x.T @ errors.sign()))
        ),
        "You squared the errors. In the gradient, the error is not squared.": (
            with_gradient(lambda x, errors: 2 / len(x) * (x.T @ errors**2))
        ),
        "These are two steps. Do only one.": two_steps,
        "You divided by the learning rate. Multiply by it.": (
            lambda w, x, y, rate: sgd_step(w, x, y, 1 / rate)
        ),
    },
    passing=(
        "Training makes many thousands of such steps, with millions of weights and a better rule."
    ),
    difficulty=2,
    minutes=12,
)
