"""The loss of rectified flow, Liu et al. 2022, eq. 1."""

from einops import rearrange

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._points import draw_flow_points


def flow_loss(network, x0, noise, t):
    """The mean squared error of the predicted velocity.

    network: network(x, t) returns the predicted velocity, b c h w. It reads t from 0 to 1000
    x0, noise: b c h w    t: b, from 0 (clean) to 1 (noise)    returns: one number
    """
    share = rearrange(t, "b -> b 1 1 1")
    x = (1 - share) * x0 + share * noise
    velocity = network(x, 1000 * t)
    return (velocity - (noise - x0)).square().mean()


def with_error(error):
    """The loss with another error. error: (velocity, x0, noise, x) -> the loss."""

    def answer(network, x0, noise, t):
        share = rearrange(t, "b -> b 1 1 1")
        x = (1 - share) * x0 + share * noise
        return error(network(x, 1000 * t), x0, noise, x)

    return answer


def with_input(mix, scale=1000):
    """The loss with another input. mix: (x0, noise, share) -> x."""

    def answer(network, x0, noise, t):
        x = mix(x0, noise, rearrange(t, "b -> b 1 1 1"))
        return (network(x, scale * t) - (noise - x0)).square().mean()

    return answer


def without_axes(network, x0, noise, t):
    x = (1 - t) * x0 + t * noise
    return (network(x, 1000 * t) - (noise - x0)).square().mean()


def one_t_for_all(network, x0, noise, t):
    return flow_loss(network, x0, noise, t[:1].expand_as(t))


def backwards(network, x0, noise, t):
    x = with_input(lambda x0, noise, share: share * x0 + (1 - share) * noise)
    return x(network, x0, noise, t)


def turned_t(network, x0, noise, t):
    share = rearrange(t, "b -> b 1 1 1")
    x = (1 - share) * x0 + share * noise
    return (network(x, 1000 * (1 - t)) - (noise - x0)).square().mean()


def inputs(b, *shape):
    def draw(g):
        t = 0.1 + 0.8 * normal(g, b).sigmoid()
        return [Made("velocity_network", {"gain": 0.8}), *normal(g, 2, b, *shape), t]

    return draw


def loss_in_picture(network, x0, noise, t):
    """What the picture is trained on. check() puts the answer here."""
    return flow_loss(network, x0, noise, t)


def draw_points(sd):
    """Points of a ring, drawn in 25 steps with a small network that was trained on this loss."""
    return draw_flow_points(loss_in_picture)


EXERCISE = Exercise(
    name="flow_loss",
    lesson="18",
    place=2,
    title="The loss of rectified flow",
    question=(
        "Write `flow_loss(network, x0, noise, t)`, the loss of one training step of rectified "
        "flow. It is built like `noise_loss` of lesson 02, but with another x and another right "
        "answer. For each sample, x is (1 - t) times x0, plus t times the noise. Call "
        "`network(x, 1000 * t)`, which returns the predicted velocity. The right velocity is "
        "noise - x0. Return the mean of the squared errors over all numbers of the batch, as a "
        "tensor, so that its gradient can be computed."
    ),
    solution=flow_loss,
    stages=(
        Stage("one sample", 1, inputs(1, 2, 1, 1)),
        Stage("three samples, each with its own t", 1, inputs(3, 4, 2, 3)),
        Stage("its gradient", 1, inputs(2, 2, 3, 2), call="loss"),
    ),
    hints=(
        "t has one number for each sample. Give it three more axes of length 1 to make x.",
        "x = (1 - share) * x0 + share * noise. There are no square roots in this method.",
        "Compare network(x, 1000 * t) with noise - x0: (...).square().mean().",
    ),
    mistakes={
        "You compare the prediction with the noise. Compare it with noise - x0.": (
            with_error(lambda velocity, x0, noise, x: (velocity - noise).square().mean())
        ),
        "You compare the prediction with x0. Compare it with noise - x0.": (
            with_error(lambda velocity, x0, noise, x: (velocity - x0).square().mean())
        ),
        "The sign is wrong. The velocity is noise - x0.": (
            with_error(lambda velocity, x0, noise, x: (velocity - (x0 - noise)).square().mean())
        ),
        "You compare the prediction with noise - x. Subtract the clean x0.": (
            with_error(lambda velocity, x0, noise, x: (velocity - (noise - x)).square().mean())
        ),
        "This is the sum of the squared errors. Take the mean.": (
            with_error(lambda velocity, x0, noise, x: (velocity - noise + x0).square().sum())
        ),
        "The errors are not squared.": (
            with_error(lambda velocity, x0, noise, x: (velocity - noise + x0).abs().mean())
        ),
        "These are the squared errors. Return their mean, one number.": (
            with_error(lambda velocity, x0, noise, x: (velocity - noise + x0).square())
        ),
        "Return one number: take the mean over the samples, too.": (
            with_error(
                lambda velocity, x0, noise, x: (velocity - noise + x0).square().mean(dim=(1, 2, 3))
            )
        ),
        "There are no square roots here: the shares of x0 and noise are 1 - t and t.": (
            with_input(lambda x0, noise, share: (1 - share).sqrt() * x0 + share.sqrt() * noise)
        ),
        "The shares are swapped. At t = 0, x is x0, and at t = 1, x is the noise.": backwards,
        "You pass the clean x0 to the network. Pass the mixture x.": (
            with_input(lambda x0, noise, share: x0)
        ),
        "You pass the noise alone to the network. Pass the mixture x.": (
            with_input(lambda x0, noise, share: noise)
        ),
        "x0 is not multiplied by 1 - t.": (with_input(lambda x0, noise, share: x0 + share * noise)),
        "The network reads t from 0 to 1000. Pass 1000 * t.": (
            with_input(lambda x0, noise, share: (1 - share) * x0 + share * noise, scale=1)
        ),
        "You pass 1 - t to the network. Pass 1000 * t.": turned_t,
        "Axes are lined up from the right, so b meets w. Give t the shape b 1 1 1.": without_axes,
        "Every sample got the t of the first sample.": one_t_for_all,
    },
    passing=(
        "Stable Diffusion 3 was trained on this loss, with more samples at middle t. For the "
        "picture, we trained a small network with your loss. It draws the points of a ring."
    ),
    difficulty=2,
    minutes=10,
    needs=("noise_loss",),
    in_picture={"minisd.exercises.specs.flow_loss.loss_in_picture": lambda answer: answer},
    draw=draw_points,
    in_lesson=True,
)
