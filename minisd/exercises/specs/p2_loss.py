"""A loss with weights, Choi et al. 2022, eq. 8, with the student's own constants."""

import torch
from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._points import draw_trained_points


def p2_loss(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
    """The weighted mean squared error of the predicted noise.

    eps, noise: b c h w, the predicted noise and the true noise    alpha_bar: b
    returns: one number
    """
    errors = (eps - noise).square().mean(dim=(1, 2, 3))
    snr = alpha_bar / (1 - alpha_bar)
    weights = 1 / (k + snr) ** gamma
    return (weights * errors).mean()


def errors_of(eps, noise):
    return (eps - noise).square().mean(dim=(1, 2, 3))


def with_weights(weigh):
    """The loss with other weights. weigh: (alpha_bar, k, gamma) -> the weights, b."""

    def answer(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
        return (weigh(alpha_bar, k, gamma) * errors_of(eps, noise)).mean()

    return answer


def snr_of(alpha_bar):
    return alpha_bar / (1 - alpha_bar)


def right_weights(alpha_bar, k, gamma):
    return 1 / (k + snr_of(alpha_bar)) ** gamma


def two_means(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
    return right_weights(alpha_bar, k, gamma).mean() * errors_of(eps, noise).mean()


def weighted_mean(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
    weights = right_weights(alpha_bar, k, gamma)
    return (weights * errors_of(eps, noise)).sum() / weights.sum()


def weights_along_width(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
    return (right_weights(alpha_bar, k, gamma) * (eps - noise).square()).mean()


def errors_by_width(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
    return ((eps - noise).square() * right_weights(alpha_bar, k, gamma)).mean()


def weights_squared(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
    weights = rearrange(right_weights(alpha_bar, k, gamma), "b -> b 1 1 1")
    return (weights * (eps - noise)).square().mean()


def sum_of_samples(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
    return (right_weights(alpha_bar, k, gamma) * errors_of(eps, noise)).sum()


def sum_of_numbers(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
    errors = (eps - noise).square().sum(dim=(1, 2, 3))
    return (right_weights(alpha_bar, k, gamma) * errors).mean()


def each_sample(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
    return right_weights(alpha_bar, k, gamma) * errors_of(eps, noise)


def absolute_errors(eps, noise, alpha_bar, *, k=1.0, gamma=1.0):
    errors = (eps - noise).abs().mean(dim=(1, 2, 3))
    return (right_weights(alpha_bar, k, gamma) * errors).mean()


def inputs(b, *shape):
    def draw(g):
        alpha_bar = 0.1 + 0.8 * torch.rand(b, generator=g, dtype=torch.float64)
        return [*normal(g, 2, b, *shape), alpha_bar]

    return draw


def loss_in_picture(*arguments):
    """What the picture is trained on. The answer is put in its place."""
    raise NotImplementedError


def draw_points(sd):
    """Points that a small network draws, which was trained on this loss."""
    table = sd.schedule.alpha_bar.float()

    def loss_of(network, x0, noise, t):
        share = rearrange(table[t], "b -> b 1 1 1")
        eps = network(share.sqrt() * x0 + (1 - share).sqrt() * noise, t)
        return loss_in_picture(eps, noise, table[t])

    return draw_trained_points(sd.schedule, loss_of)


EXERCISE = Exercise(
    name="p2_loss",
    lesson="02",
    place=8,
    title="A loss that weighs the noise levels",
    question=(
        "Choi et al. (2022) give less weight to samples with little noise, because the network "
        "learns only invisible details from them. Write `p2_loss(eps, noise, alpha_bar)`. The "
        "error of a sample is the mean of (eps - noise) squared over its numbers. Its weight is "
        "`1 / (k + SNR) ** gamma`, where SNR = alpha_bar / (1 - alpha_bar). Return the mean of "
        "weight times error over the b samples, as a tensor that has a gradient. Your constants "
        "are k = {k} and gamma = {gamma}. Do not divide by the sum of the weights."
    ),
    solution=p2_loss,
    stages=(
        Stage("one sample", 1, inputs(1, 1, 2, 2)),
        Stage("three samples, each with its own alpha_bar", 1, inputs(3, 4, 2, 5)),
        Stage("its gradient", 1, inputs(2, 2, 3, 2), call="loss"),
    ),
    hints=(
        "First compute one error for each sample: a mean over the axes 1, 2 and 3.",
        "The weight also has one number for each sample: 1 / (k + snr) ** gamma.",
        "Multiply errors and weights, b numbers each. Then take .mean().",
    ),
    mistakes={
        "There are no weights: this is the plain loss.": (
            with_weights(lambda alpha_bar, k, gamma: torch.ones_like(alpha_bar))
        ),
        "The weight is upside down. A high SNR should give less weight.": (
            with_weights(lambda alpha_bar, k, gamma: (k + snr_of(alpha_bar)) ** gamma)
        ),
        "The SNR is upside down: it is alpha_bar / (1 - alpha_bar).": (
            with_weights(lambda alpha_bar, k, gamma: 1 / (k + 1 / snr_of(alpha_bar)) ** gamma)
        ),
        "The power gamma is missing.": (
            with_weights(lambda alpha_bar, k, gamma: 1 / (k + snr_of(alpha_bar)))
        ),
        "The constant k is missing.": (
            with_weights(lambda alpha_bar, k, gamma: 1 / snr_of(alpha_bar) ** gamma)
        ),
        "k and gamma are swapped.": (
            with_weights(lambda alpha_bar, k, gamma: 1 / (gamma + snr_of(alpha_bar)) ** k)
        ),
        "Take the power of the whole sum k + SNR.": (
            with_weights(lambda alpha_bar, k, gamma: 1 / (k + snr_of(alpha_bar) ** gamma))
        ),
        "These are the paper's constants, 1 and 1. Use your own.": (
            with_weights(lambda alpha_bar, k, gamma: right_weights(alpha_bar, 1, 1))
        ),
        "This is the ratio of the rates. The SNR is the ratio of their squares.": (
            with_weights(lambda alpha_bar, k, gamma: 1 / (k + snr_of(alpha_bar) ** 0.5) ** gamma)
        ),
        "You used alpha_bar as the SNR. Divide it by 1 - alpha_bar.": (
            with_weights(lambda alpha_bar, k, gamma: 1 / (k + alpha_bar) ** gamma)
        ),
        "You took the mean of the weights and the mean of the errors. First multiply them.": (
            two_means
        ),
        "You divided by the sum of the weights. Divide by the number of samples.": weighted_mean,
        "The weights met the columns. First take the mean error of each sample, then multiply.": (
            weights_along_width
        ),
        "The columns met the weights. First take the mean error of each sample, then multiply.": (
            errors_by_width
        ),
        "The weight is inside the square. Multiply the squared error by it.": weights_squared,
        "This is the sum over the samples. Take the mean.": sum_of_samples,
        "The error of a sample should be the mean over its numbers, not the sum.": sum_of_numbers,
        "Return one number: the mean over the samples.": each_sample,
        "The errors are not squared.": absolute_errors,
    },
    passing=(
        "The weights choose what a network learns best. The picture shows points that a small "
        "network draws. It was trained on a thin ring with this loss. Details got less weight, so "
        "the ring is blurred."
    ),
    difficulty=2,
    minutes=15,
    needs=("noise_loss",),
    constants=lambda rng: {"k": rng.choice([0.5, 2.0, 3.0]), "gamma": rng.choice([0.4, 0.7, 1.5])},
    in_picture={"minisd.exercises.specs.p2_loss.loss_in_picture": lambda answer: answer},
    draw=draw_points,
    in_lesson=True,
)
