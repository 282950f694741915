"""Where a step of DDPM leads, and how widely it spreads."""

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs.ddim_step import two_alpha_bars


def posterior(x, x0, alpha_bar, next_alpha_bar):
    """The mean and the variance of the next x, given x and the guess x0.

    x, x0: numbers or tensors    alpha_bar, next_alpha_bar: numbers    returns: (mean, variance)
    """
    alpha = alpha_bar / next_alpha_bar
    beta = 1 - alpha
    x0_weight = next_alpha_bar**0.5 * beta / (1 - alpha_bar)
    x_weight = alpha**0.5 * (1 - next_alpha_bar) / (1 - alpha_bar)
    variance = beta * (1 - next_alpha_bar) / (1 - alpha_bar)
    return x0_weight * x0 + x_weight * x, variance


def vary(mean=None, variance=None):
    """The formula with another mean or another variance. Both read a dictionary of rates."""

    def formula(x, x0, alpha_bar, next_alpha_bar):
        alpha = alpha_bar / next_alpha_bar
        right = posterior(x, x0, alpha_bar, next_alpha_bar)
        rates = (alpha, 1 - alpha, alpha_bar, next_alpha_bar)
        return (
            right[0] if mean is None else mean(x, x0, *rates),
            right[1] if variance is None else variance(*rates),
        )

    return formula


def alpha_upside_down(x, x0, alpha_bar, next_alpha_bar):
    alpha = next_alpha_bar / alpha_bar
    beta = 1 - alpha
    rest = (1 - next_alpha_bar) / (1 - alpha_bar)
    mean = next_alpha_bar**0.5 * beta / (1 - alpha_bar) * x0 + abs(alpha) ** 0.5 * rest * x
    return mean, beta * rest


def swapped_levels(x, x0, alpha_bar, next_alpha_bar):
    mean, variance = posterior(x, x0, next_alpha_bar, alpha_bar)
    return mean, variance


def mean_of_ddim(x, x0, alpha_bar, next_alpha_bar):
    eps = (x - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
    mean = next_alpha_bar**0.5 * x0 + (1 - next_alpha_bar) ** 0.5 * eps
    return mean, posterior(x, x0, alpha_bar, next_alpha_bar)[1]


EXERCISE = Exercise(
    name="posterior",
    lesson="03",
    place=4,
    title="The two parts of a DDPM step",
    question=(
        "A step of DDPM draws the next x from a Gaussian. Write `posterior(x, x0, alpha_bar, "
        "next_alpha_bar)`, which returns its mean and its variance. With alpha = alpha_bar / "
        "next_alpha_bar and beta = 1 - alpha, the mean is x0_weight * x0 + x_weight * x. Here, "
        "x0_weight is sqrt(next_alpha_bar) * beta / (1 - alpha_bar), and x_weight is sqrt(alpha) "
        "* (1 - next_alpha_bar) / (1 - alpha_bar). The variance is beta * (1 - next_alpha_bar) / "
        "(1 - alpha_bar)."
    ),
    solution=posterior,
    stages=(
        Stage(
            "one number",
            1,
            lambda g: [normal(g).item(), normal(g).item(), *two_alpha_bars(g)],
        ),
        Stage("a batch", 1, lambda g: [*normal(g, 2, 2, 4, 3, 5), *two_alpha_bars(g)]),
        Stage("the last step: no noise is left", 1, lambda g: [*normal(g, 2, 1, 4, 3, 5), 0.7, 1]),
    ),
    hints=(
        "Compute alpha and beta first. They belong to the step, not to one level.",
        "Four numbers occur several times: alpha, beta, 1 - alpha_bar, 1 - next_alpha_bar. Both "
        "weights and the variance are divided by 1 - alpha_bar.",
        "x0_weight = next_alpha_bar ** 0.5 * beta / (1 - alpha_bar) and x_weight = alpha ** 0.5 "
        "* (1 - next_alpha_bar) / (1 - alpha_bar). Return a tuple: the mean, then the variance.",
    ),
    mistakes={
        "The weights of x0 and x are swapped.": lambda x, x0, a, b: (
            posterior(x0, x, a, b)[0],
            posterior(x, x0, a, b)[1],
        ),
        "alpha is upside down. It should be alpha_bar / next_alpha_bar.": alpha_upside_down,
        "alpha_bar and next_alpha_bar are swapped.": swapped_levels,
        "This is the standard deviation. Return the variance, without a root.": vary(
            variance=lambda a, b, bar, after: (b * (1 - after) / (1 - bar)) ** 0.5
        ),
        "beta alone is the larger of the paper's two variances. Use that of the question.": vary(
            variance=lambda a, b, bar, after: b
        ),
        "The fraction in the variance is upside down.": vary(
            variance=lambda a, b, bar, after: b * (1 - bar) / (1 - after) if after < 1 else 0.0
        ),
        "The weight of x0 needs the square root of next_alpha_bar.": vary(
            lambda x, x0, a, b, bar, after: (
                after * b / (1 - bar) * x0 + a**0.5 * (1 - after) / (1 - bar) * x
            )
        ),
        "The weight of x0 needs the root of next_alpha_bar, not of alpha_bar.": vary(
            lambda x, x0, a, b, bar, after: (
                bar**0.5 * b / (1 - bar) * x0 + a**0.5 * (1 - after) / (1 - bar) * x
            )
        ),
        "The weight of x needs the square root of alpha.": vary(
            lambda x, x0, a, b, bar, after: (
                after**0.5 * b / (1 - bar) * x0 + a * (1 - after) / (1 - bar) * x
            )
        ),
        "The weight of x needs the root of alpha, not of alpha_bar.": vary(
            lambda x, x0, a, b, bar, after: (
                after**0.5 * b / (1 - bar) * x0 + bar**0.5 * (1 - after) / (1 - bar) * x
            )
        ),
        "The weights are divided by (1 - alpha_bar) itself, not by its root.": vary(
            lambda x, x0, a, b, bar, after: (
                (after**0.5 * b * x0 + a**0.5 * (1 - after) * x) / (1 - bar) ** 0.5
            )
        ),
        "Divide both weights by (1 - alpha_bar).": vary(
            lambda x, x0, a, b, bar, after: after**0.5 * b * x0 + a**0.5 * (1 - after) * x
        ),
        "This is the mean of DDIM, which keeps all predicted noise. Use the two weights.": (
            mean_of_ddim
        ),
    },
    passing=(
        "The lesson calls the change to the mean the drift. The variance belongs to the random "
        "part."
    ),
    difficulty=2,
    minutes=15,
    needs=("ddim_step",),
)
