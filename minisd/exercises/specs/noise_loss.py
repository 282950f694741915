"""The loss of one training step, Ho et al. 2020, eq. 14."""

import torch
from einops import rearrange

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._points import draw_trained_points


def noise_loss(network, x0, noise, t, context, alpha_bar):
    """The mean squared error of the predicted noise.

    network: network(x, t, context) returns the predicted noise, b c h w
    x0, noise: b c h w    t: b, whole numbers    context: b m c, the embedded prompts
    alpha_bar: timesteps, the table    returns: one number
    """
    share = rearrange(alpha_bar[t], "b -> b 1 1 1")
    x = share.sqrt() * x0 + (1 - share).sqrt() * noise
    eps = network(x, t, context)
    return (eps - noise).square().mean()


def with_rates(rates):
    """The loss with other rates. rates: alpha_bar of each sample, b 1 1 1 -> the two rates."""

    def answer(network, x0, noise, t, context, alpha_bar):
        signal_rate, noise_rate = rates(rearrange(alpha_bar[t], "b -> b 1 1 1"))
        eps = network(signal_rate * x0 + noise_rate * noise, t, context)
        return (eps - noise).square().mean()

    return answer


def with_error(error):
    """The loss with another error. error: (eps, noise, x0, x) -> the loss."""

    def answer(network, x0, noise, t, context, alpha_bar):
        share = rearrange(alpha_bar[t], "b -> b 1 1 1")
        x = share.sqrt() * x0 + (1 - share).sqrt() * noise
        return error(network(x, t, context), noise, x0, x)

    return answer


def without_axes(network, x0, noise, t, context, alpha_bar):
    share = alpha_bar[t]
    x = share.sqrt() * x0 + (1 - share).sqrt() * noise
    return (network(x, t, context) - noise).square().mean()


def without_axes_behind(network, x0, noise, t, context, alpha_bar):
    share = alpha_bar[t]
    x = x0 * share.sqrt() + noise * (1 - share).sqrt()
    return (network(x, t, context) - noise).square().mean()


def show_the_clean_picture(network, x0, noise, t, context, alpha_bar):
    return (network(x0, t, context) - noise).square().mean()


def show_the_noise(network, x0, noise, t, context, alpha_bar):
    return (network(noise, t, context) - noise).square().mean()


def one_t_for_all(network, x0, noise, t, context, alpha_bar):
    return noise_loss(network, x0, noise, t[:1].expand_as(t), context, alpha_bar)


def inputs(b, *shape):
    def draw(g):
        betas = 0.05 + 0.3 * torch.rand(9, generator=g, dtype=torch.float64)
        t = torch.randperm(8, generator=g)[:b] + 1
        network = Made("network", {"gain": 0.8})
        context = normal(g, b, 5, 6)
        return [network, *normal(g, 2, b, *shape), t, context, (1 - betas).cumprod(0)]

    return draw


def loss_in_picture(*arguments):
    """What the picture is trained on. The answer is put in its place."""
    raise NotImplementedError


def draw_points(sd):
    """Points that a small network draws, which was trained on this loss."""
    table = sd.schedule.alpha_bar.float()

    def loss_of(network, x0, noise, t):
        return loss_in_picture(network, x0, noise, t, None, table)

    return draw_trained_points(sd.schedule, loss_of)


EXERCISE = Exercise(
    name="noise_loss",
    lesson="02",
    place=3,
    title="The loss of a training step",
    question=(
        "Write `noise_loss(network, x0, noise, t, context, alpha_bar)`, the loss of one training "
        "step. For each sample, look up alpha_bar at its t. Make the noisy x, as `add_noise` of "
        "lesson 01 does. Call `network(x, t, context)`, which returns the predicted noise. "
        "Return the mean of the squared errors over all numbers of the batch, as a tensor, so "
        "that its gradient can be computed."
    ),
    solution=noise_loss,
    stages=(
        Stage("one sample", 1, inputs(1, 1, 2, 2)),
        Stage("three samples, each with its own t", 1, inputs(3, 4, 2, 5)),
        Stage("its gradient", 1, inputs(2, 2, 3, 2), call="loss"),
    ),
    hints=(
        "alpha_bar[t] has one number for each sample. Give it three more axes of length 1.",
        "x is the root of alpha_bar times x0, plus the root of (1 - alpha_bar) times the noise. "
        "The network sees x, not x0.",
        "eps = network(x, t, context). Then return (eps - noise).square().mean().",
    ),
    mistakes={
        "You compare the prediction with x0. Compare it with the noise.": (
            with_error(lambda eps, noise, x0, x: (eps - x0).square().mean())
        ),
        "You compare the prediction with the noisy x. Compare it with the noise.": (
            with_error(lambda eps, noise, x0, x: (eps - x).square().mean())
        ),
        "You pass the clean picture to the network. Pass the noisy x.": show_the_clean_picture,
        "You pass the noise alone to the network. Pass the noisy x.": show_the_noise,
        "This is the sum of the squared errors. Take the mean.": (
            with_error(lambda eps, noise, x0, x: (eps - noise).square().sum())
        ),
        "The errors are not squared.": (with_error(lambda eps, noise, x0, x: (eps - noise).mean())),
        "This is the mean absolute error. Take the squares.": (
            with_error(lambda eps, noise, x0, x: (eps - noise).abs().mean())
        ),
        "This is the root of the mean squared error. Leave out the root.": (
            with_error(lambda eps, noise, x0, x: (eps - noise).square().mean().sqrt())
        ),
        "You took the mean before the square. Square each error first.": (
            with_error(lambda eps, noise, x0, x: (eps - noise).mean().square())
        ),
        "Return one number: take the mean over the samples, too.": (
            with_error(lambda eps, noise, x0, x: (eps - noise).square().mean(dim=(1, 2, 3)))
        ),
        "These are the squared errors. Return their mean.": (
            with_error(lambda eps, noise, x0, x: (eps - noise).square())
        ),
        "The sum of each sample is averaged. Take the mean over all numbers.": (
            with_error(lambda eps, noise, x0, x: (eps - noise).square().sum(dim=(1, 2, 3)).mean())
        ),
        "The square roots are missing in the noisy x. alpha_bar is a variance.": (
            with_rates(lambda share: (share, 1 - share))
        ),
        "The root is missing in front of the noise.": (
            with_rates(lambda share: (share.sqrt(), 1 - share))
        ),
        "The rates are swapped. The root of alpha_bar belongs to x0.": (
            with_rates(lambda share: ((1 - share).sqrt(), share.sqrt()))
        ),
        "x0 and noise are only added. Multiply each by its rate.": (
            with_rates(lambda share: (1, 1))
        ),
        "This is 1 minus the root of alpha_bar. Take the root of (1 - alpha_bar).": (
            with_rates(lambda share: (share.sqrt(), 1 - share.sqrt()))
        ),
        "Axes are lined up from the right, so b meets w. Give alpha_bar[t] the shape b 1 1 1.": (
            without_axes
        ),
        "Axes are lined up from the right, so w meets b. Give alpha_bar[t] the shape b 1 1 1.": (
            without_axes_behind
        ),
        "Every sample got the t of the first sample.": one_t_for_all,
        "alpha_bar is read one place too early. t counts from 0, as the table does.": (
            lambda network, x0, noise, t, context, alpha_bar: noise_loss(
                network, x0, noise, t, context, torch.roll(alpha_bar, 1)
            )
        ),
    },
    passing=(
        "Stable Diffusion was trained on this loss. For the picture, we trained a small network "
        "with your loss. It draws the points of a ring."
    ),
    difficulty=2,
    minutes=15,
    needs=("add_noise",),
    in_picture={"minisd.exercises.specs.noise_loss.loss_in_picture": lambda answer: answer},
    draw=draw_points,
    in_lesson=True,
)
