"""Sigma at any t, also between two entries of the table."""

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage
from minisd.schedule import Schedule


def interpolate_sigma(t, alpha_bar):
    """Sigma at t. Between two whole t, log sigma lies on a straight line.

    t: a tensor of any shape, from 0 to timesteps - 1    alpha_bar: timesteps
    returns: the shape of t
    """
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
    lower = t.floor().long()
    upper = t.ceil().long()
    share = t - lower
    log_sigma = (1 - share) * sigmas[lower].log() + share * sigmas[upper].log()
    return log_sigma.exp()


def on_a_line(there, back):
    """The interpolation of another number: there(alpha_bar), and back(that) = sigma."""

    def answer(t, alpha_bar):
        values, lower, share = there(alpha_bar), t.floor().long(), t - t.floor()
        return back((1 - share) * values[lower] + share * values[t.ceil().long()])

    return answer


def sigma_of(alpha_bar):
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def swapped_shares(t, alpha_bar):
    share = t - t.floor()
    ends = [sigma_of(alpha_bar)[one.long()].log() for one in (t.floor(), t.ceil())]
    return (share * ends[0] + (1 - share) * ends[1]).exp()


def past_the_table(t, alpha_bar):
    lower = t.floor().long()
    logs = sigma_of(alpha_bar).log()
    return torch.lerp(logs[lower], logs[lower + 1], t - lower).exp()


def table(generator, timesteps):
    betas = 0.1 + 0.3 * torch.rand(timesteps, generator=generator, dtype=torch.float64)
    return (1 - betas).cumprod(0)


def inputs(*ts):
    return lambda g: [torch.tensor(*ts, dtype=torch.float64), table(g, 7)]


def as_method(answer):
    """The answer as Schedule.sigma. A table with an infinite sigma keeps the usual function."""
    usual_sigma = Schedule.sigma

    def sigma(self, t):
        t = torch.as_tensor(t).cpu().double()
        top = self.config.timesteps - 1
        outside = t.min() < 0 or t.max() > top
        if outside or not self.sigmas.isfinite().all():
            return usual_sigma(self, t)
        return answer(t, self.alpha_bar)

    return sigma


EXERCISE = Exercise(
    name="interpolate_sigma",
    lesson="01",
    place=5,
    title="Sigma between two timesteps",
    question=(
        "Write `interpolate_sigma(t, alpha_bar)`. alpha_bar is the table, one number for each "
        "whole t. sigma is the square root of (1 - alpha_bar) / alpha_bar. Some samplers ask for "
        "sigma at a t between two whole numbers. There, interpolate the logarithm of sigma "
        "linearly. For example, log sigma at t = 2.25 is 0.75 times log sigma at 2, plus 0.25 "
        "times log sigma at 3. t is a tensor of any shape. It may contain the last t of the "
        "table."
    ),
    solution=interpolate_sigma,
    stages=(
        Stage("one whole t", 1, inputs(4.0)),
        Stage("a t between two others", 1, inputs(2.3)),
        Stage("a table of t, up to the last", 2, inputs([[0.0, 6.0, 5.6], [1.2, 3.0, 4.9]])),
    ),
    hints=(
        "Compute the sigma of every entry first. Between which two entries of the table does t "
        "lie?",
        "lower = t.floor().long() and upper = t.ceil().long() are the two entries. At a whole t, "
        "they are the same. share = t - lower says how far t is from the lower one.",
        "(1 - share) * log of the lower sigma + share * log of the upper sigma. Then .exp().",
    ),
    mistakes={
        "You interpolated sigma itself. Interpolate its logarithm, then take exp().": (
            on_a_line(sigma_of, lambda sigma: sigma)
        ),
        "You interpolated alpha_bar. Interpolate the logarithm of sigma.": (
            on_a_line(lambda alpha_bar: alpha_bar, sigma_of)
        ),
        "You interpolated the logarithm of alpha_bar. Interpolate that of sigma.": (
            on_a_line(torch.log, lambda log: sigma_of(log.exp()))
        ),
        "This is the logarithm of sigma. Take exp() at the end.": (
            on_a_line(lambda alpha_bar: sigma_of(alpha_bar).log(), lambda log: log)
        ),
        "You rounded t down. Between two whole t, interpolate.": (
            lambda t, alpha_bar: interpolate_sigma(t.floor(), alpha_bar)
        ),
        "You rounded t to the nearest whole number. Between two whole t, interpolate.": (
            lambda t, alpha_bar: interpolate_sigma(t.round(), alpha_bar)
        ),
        "You rounded t up. Between two whole t, interpolate.": (
            lambda t, alpha_bar: interpolate_sigma(t.ceil(), alpha_bar)
        ),
        "The two shares are swapped. Close to the lower t, the lower sigma counts more.": (
            swapped_shares
        ),
        "At the last t, there is no entry above it. Use t.ceil(), or clamp the index.": (
            past_the_table
        ),
        "The square root is missing: this is sigma squared.": (
            lambda t, alpha_bar: interpolate_sigma(t, alpha_bar) ** 2
        ),
        "This is 1 / sigma. Turn the fraction around: (1 - alpha_bar) / alpha_bar.": (
            lambda t, alpha_bar: 1 / interpolate_sigma(t, alpha_bar)
        ),
        "This is the noise rate. sigma is noise rate / signal rate.": (
            on_a_line(
                lambda alpha_bar: (1 - alpha_bar).sqrt().log(),
                lambda log: log.exp(),
            )
        ),
    },
    passing="The schedule now gives sigma at every t, also between the entries of its table.",
    difficulty=2,
    minutes=15,
    needs=("alpha_bar_table",),
    replaces={"minisd.schedule.Schedule.sigma": as_method},
    draw=draw_cat,
)
