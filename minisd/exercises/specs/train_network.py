"""The training loop: gradients, steps, and the average of the weights."""

import copy

import torch
from torch import nn

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._points import draw_trained_points
from minisd.teaching import toy


def train_network(network, draw_batch, loss_of, steps, rate, keep=0.0):
    """Train a network with Adam. At the end, it holds the average (EMA) of its weights.

    network: an nn.Module
    draw_batch: draw_batch() returns the next batch of examples
    loss_of: loss_of(network, batch) returns the loss, one number
    steps: the number of steps    rate: the learning rate
    keep: the share of the old average that stays at each step. 0: the last weights are the result
    returns: the network
    """
    adam = torch.optim.Adam(network.parameters(), lr=rate)
    ema = copy.deepcopy(network.state_dict())
    for _ in range(steps):
        loss = loss_of(network, draw_batch())
        adam.zero_grad()
        loss.backward()
        adam.step()
        for name, weight in network.state_dict().items():
            ema[name] = keep * ema[name] + (1 - keep) * weight
    network.load_state_dict(ema)
    return network


def descend(network, draw_batch, loss_of, steps, optimizer, zero=True, step=True):
    """The loop without an average. Yields the weights after each step.

    zero, step: whether to call zero_grad() and step()
    """
    for _ in range(steps):
        loss = loss_of(network, draw_batch())
        if zero:
            optimizer.zero_grad()
        loss.backward()
        if step:
            optimizer.step()
        yield copy.deepcopy(network.state_dict())


def mean(ema, weights, keep):
    return {name: keep * ema[name] + (1 - keep) * weights[name] for name in ema}


def with_optimizer(optimize, **settings):
    """The answer with another optimizer. optimize: (parameters, lr=...) -> the optimizer"""

    def answer(network, draw_batch, loss_of, steps, rate, keep=0.0):
        ema, optimizer = network.state_dict(), optimize(network.parameters(), lr=rate)
        ema = copy.deepcopy(ema)
        for weights in descend(network, draw_batch, loss_of, steps, optimizer, **settings):
            ema = mean(ema, weights, keep)
        network.load_state_dict(ema)
        return network

    return answer


def with_average(start, add):
    """The answer with another average.

    start: (the first weights, the weights after the first step) -> the average before the loop
    add: (average, weights, keep) -> the next average
    """

    def answer(network, draw_batch, loss_of, steps, rate, keep=0.0):
        first = copy.deepcopy(network.state_dict())
        adam = torch.optim.Adam(network.parameters(), lr=rate)
        every = list(descend(network, draw_batch, loss_of, steps, adam))
        ema = start(first, every[0])
        for weights in every:
            ema = add(ema, weights, keep)
        network.load_state_dict(ema)
        return network

    return answer


def first_weights(first, after):
    return first


def swap_shares(ema, weights, keep):
    return mean(weights, ema, keep)


def running_sum(ema, weights, keep):
    return {name: keep * ema[name] + weights[name] for name in ema}


def half(ema, weights, keep):
    return mean(ema, weights, 0.5)


def zeros(first, after):
    return {name: torch.zeros_like(value) for name, value in first.items()}


def average_before_the_step(network, draw_batch, loss_of, steps, rate, keep=0.0):
    first = copy.deepcopy(network.state_dict())
    adam = torch.optim.Adam(network.parameters(), lr=rate)
    every = [first, *descend(network, draw_batch, loss_of, steps, adam)]
    ema = first
    for weights in every[:-1]:
        ema = mean(ema, weights, keep)
    network.load_state_dict(ema)
    return network


def new_optimizer_each_step(network, draw_batch, loss_of, steps, rate, keep=0.0):
    ema = copy.deepcopy(network.state_dict())
    for _ in range(steps):
        adam = torch.optim.Adam(network.parameters(), lr=rate)
        (weights,) = descend(network, draw_batch, loss_of, 1, adam)
        ema = mean(ema, weights, keep)
    network.load_state_dict(ema)
    return network


def average_once(network, draw_batch, loss_of, steps, rate, keep=0.0):
    first = copy.deepcopy(network.state_dict())
    train_network(network, draw_batch, loss_of, steps, rate)
    network.load_state_dict(mean(first, network.state_dict(), keep))
    return network


def load_each_step(network, draw_batch, loss_of, steps, rate, keep=0.0):
    ema = copy.deepcopy(network.state_dict())
    adam = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(steps):
        (weights,) = descend(network, draw_batch, loss_of, 1, adam)
        ema = mean(ema, weights, keep)
        network.load_state_dict(ema)
    return network


def zero_before_the_step(network, draw_batch, loss_of, steps, rate, keep=0.0):
    return with_optimizer(torch.optim.Adam, step=False)(
        network, draw_batch, loss_of, steps, rate, keep
    )


def one_batch(network, draw_batch, loss_of, steps, rate, keep=0.0):
    batch = draw_batch()
    return train_network(network, lambda: batch, loss_of, steps, rate, keep)


def one_step(network, draw_batch, loss_of, steps, rate, keep=0.0):
    return train_network(network, draw_batch, loss_of, 1, rate, keep)


def fixed_rate(network, draw_batch, loss_of, steps, rate, keep=0.0):
    return train_network(network, draw_batch, loss_of, steps, 1e-3, keep)


def two_batches_in_each_step(network, draw_batch, loss_of, steps, rate, keep=0.0):
    def draw_again():
        draw_batch()
        return draw_batch()

    return train_network(network, draw_again, loss_of, steps, rate, keep)


def uphill(network, draw_batch, loss_of, steps, rate, keep=0.0):
    return train_network(
        network, draw_batch, lambda network, batch: -loss_of(network, batch), steps, rate, keep
    )


def inputs(steps, c_in, c_out, keep):
    """A linear layer, a batch of five examples for each step, and a learning rate."""

    def draw(g):
        layer = {"weight": normal(g, c_out, c_in), "bias": normal(g, c_out)}
        batches = [(normal(g, 5, c_in), normal(g, 5, c_out)) for _ in range(steps)]
        rate = 0.05 + 0.1 * torch.rand(1, generator=g).item()
        given = Made("linear", layer), Made("draw_batch", {"batches": batches})
        return [*given, Made("squared_error", {}), steps, rate, keep]

    return draw


def as_descend(answer):
    """The answer as toy.descend(), which the picture calls."""

    @torch.enable_grad()
    def descend(d, c_out, loss_of, steps, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: nn.Module = toy.PointNetwork(d, c_out)
        generator = torch.Generator().manual_seed(seed)
        network = answer(network, lambda: generator, loss_of, steps, 4e-3, 0.98)
        return network.eval().requires_grad_(False), []

    return descend


def draw_points(sd):
    """Points that a small network draws. The student's loop has trained it."""
    table = sd.schedule

    def loss_of(network, x0, noise, t):
        return (network(table.add_noise(x0, noise, t), t) - noise).square().mean()

    return draw_trained_points(table, loss_of)


EXERCISE = Exercise(
    name="train_network",
    lesson="02",
    place=7,
    title="The training loop",
    question=(
        "Write `train_network(network, draw_batch, loss_of, steps, rate, keep)`. Make the "
        "optimizer `torch.optim.Adam(network.parameters(), lr=rate)`. Then repeat `steps` times: "
        "draw a batch with `draw_batch()`, compute the loss with `loss_of(network, batch)`, clear "
        "the old gradients (`zero_grad`), compute the new ones (`backward`), and change the "
        "weights (`step`). Also keep an average of the weights, the EMA. `network.state_dict()` "
        "is a dictionary from names to weights. The average is such a dictionary, too. It starts "
        "as a copy of the first weights: `copy.deepcopy(network.state_dict())`. After each step, "
        "go through `network.state_dict().items()`. For each name, the new average is keep times "
        "the old average plus (1 - keep) times the weight. After the last step, put the average "
        "into the network (`network.load_state_dict(average)`), and return the network."
    ),
    solution=train_network,
    stages=(
        Stage("one step, without an average", 1, inputs(1, 1, 1, 0.0), "training"),
        Stage("ten steps, without an average", 2, inputs(10, 3, 2, 0.0), "training"),
        Stage("six steps, with the average", 2, inputs(6, 3, 2, 0.8), "training"),
    ),
    hints=(
        "The loop has five lines: the loss, zero_grad, backward, step, and the average. The "
        "optimizer is made once, before the loop.",
        "loss = loss_of(network, draw_batch()), then adam.zero_grad(), loss.backward(), and "
        "adam.step().",
        "network.state_dict() holds the weights by their names. After each step: for name, weight "
        "in network.state_dict().items(): ema[name] = keep * ema[name] + (1 - keep) * weight.",
    ),
    mistakes={
        "zero_grad() is missing, so each step also uses the gradients of earlier batches.": (
            with_optimizer(torch.optim.Adam, zero=False)
        ),
        "The weights never change. Call step() after backward(), and zero_grad() before it.": (
            zero_before_the_step
        ),
        "You made a new optimizer in each step. Make it once: Adam remembers earlier gradients.": (
            new_optimizer_each_step
        ),
        "This is plain gradient descent. Use torch.optim.Adam.": with_optimizer(torch.optim.SGD),
        "This is AdamW, which also shrinks the weights. Use torch.optim.Adam.": (
            with_optimizer(torch.optim.AdamW)
        ),
        "The learning rate is the default of Adam. Pass lr=rate.": fixed_rate,
        "You drew one batch and used it in every step. Draw a batch in each step.": one_batch,
        "You drew two batches in each step. Draw one.": two_batches_in_each_step,
        "There is only one step. Is the return inside the loop?": one_step,
        "The loss grows. Leave out the minus: step() already goes downhill.": uphill,
        "The average is missing. The result should not be the last weights.": (
            with_average(first_weights, lambda ema, weights, keep: weights)
        ),
        "You update the average once, after the loop. Do it after each step.": average_once,
        "You load the average inside the loop. Load it once, after the last step.": load_each_step,
        "A dictionary cannot be multiplied. Average its entries, one by one.": (
            lambda network, *rest: 0.0 * network.state_dict()
        ),
        "A loop over a dictionary gives its names. Use .items() to get the weights, too.": (
            lambda network, *rest: 0.0 * next(iter(network.state_dict()))
        ),
        "The two shares are swapped: keep belongs to the old average.": (
            with_average(first_weights, swap_shares)
        ),
        "Multiply the current weights by (1 - keep).": with_average(first_weights, running_sum),
        "This is the mean of both. Use keep and 1 - keep.": with_average(first_weights, half),
        "The average should start as a copy of the first weights, not at 0.": (
            with_average(zeros, mean)
        ),
        "state_dict() is no copy: your average changed with the weights. Use copy.deepcopy.": (
            with_average(lambda first, after: after, mean)
        ),
        "The average is one step late. Update it after step().": average_before_the_step,
    },
    passing=(
        "Every network of this course was trained by such a loop. Lessons 04 and 15 run yours. "
        "For the picture, it trained a small network, which draws the points of a ring."
    ),
    difficulty=2,
    minutes=20,
    needs=("sgd_step", "update_ema"),
    given="import copy",
    in_picture={"minisd.teaching.toy.descend": as_descend},
    draw=draw_points,
    in_lesson=True,
    is_reused=True,
)
