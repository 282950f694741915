"""What a network says that predicts v."""

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import draw_by_v


def read_v(x, v, level):
    """Compute the guesses x0 and eps from a predicted v.

    x: b c h w, the noisy latent    v: b c h w
    level: has .signal_rate and .noise_rate, two numbers
    returns: two tensors, x0 and eps, each b c h w
    """
    x0 = level.signal_rate * x - level.noise_rate * v
    eps = level.noise_rate * x + level.signal_rate * v
    return x0, eps


def plus_v(x, v, level):
    return level.signal_rate * x + level.noise_rate * v, read_v(x, v, level)[1]


def minus_in_eps(x, v, level):
    return read_v(x, v, level)[0], level.noise_rate * x - level.signal_rate * v


def both_signs(x, v, level):
    return plus_v(x, v, level)[0], minus_in_eps(x, v, level)[1]


def swap_rates(x, v, level):
    x0 = level.noise_rate * x - level.signal_rate * v
    return x0, level.signal_rate * x + level.noise_rate * v


def swap_results(x, v, level):
    return read_v(x, v, level)[::-1]


def v_as_eps(x, v, level):
    return (x - level.noise_rate * v) / level.signal_rate, v


def v_as_x0(x, v, level):
    return v, (x - level.signal_rate * v) / level.noise_rate


def squares(x, v, level):
    a, b = level.signal_rate**2, level.noise_rate**2
    return a * x - b * v, b * x + a * v


def divide_by_signal(x, v, level):
    x0, eps = read_v(x, v, level)
    return x0 / level.signal_rate, eps


def eps_from_x_alone(x, v, level):
    x0, _ = read_v(x, v, level)
    return x0, x - x0


def inputs(shape, sigma):
    level = Made("level", {"sigma": sigma, "t": 400})
    return lambda g: [normal(g, *shape), normal(g, *shape), level]


EXERCISE = Exercise(
    name="read_v",
    lesson="16",
    place=1,
    title="x0 and eps from v",
    question=(
        "SD 2.1 at 768 pixels predicts v = signal_rate * eps - noise_rate * x0. The network "
        "reads x = signal_rate * x0 + noise_rate * eps. The squares of the two rates add up to "
        "1. These are two equations with two unknowns. Solve them for x0 and eps, and write "
        "`read_v(x, v, level)`. The solution needs no division."
    ),
    solution=read_v,
    stages=(
        Stage("one number", 1, inputs((1, 1, 1, 1), 0.8)),
        Stage("a batch of 2, much noise", 1, inputs((2, 4, 3, 5), 9.0)),
        Stage("a batch of 2, little noise", 1, inputs((2, 4, 5, 3), 0.1)),
    ),
    hints=(
        "Multiply the first equation by one rate and the second by the other. Then add or subtract "
        "them.",
        "signal_rate * x - noise_rate * v: write both out. eps vanishes, and the factor of x0 is "
        "signal_rate² + noise_rate² = 1.",
        "x0 = signal_rate * x - noise_rate * v. In the same way, eps = noise_rate * x + "
        "signal_rate * v.",
    ),
    mistakes={
        "You added v in x0. Subtract it.": plus_v,
        "You subtracted v in eps. Add it.": minus_in_eps,
        "Both signs of v are wrong. Subtract it in x0, and add it in eps.": both_signs,
        "The rates are swapped. In x0, the signal rate belongs to x.": swap_rates,
        "You returned eps first. Return x0, and then eps.": swap_results,
        "You took v for eps. Solve both equations.": v_as_eps,
        "You took v for x0. Solve both equations.": v_as_x0,
        "You used the squares of the rates. Use the rates themselves.": squares,
        "You divided x0 by the signal rate, as with a network that predicts eps. Leave it out.": (
            divide_by_signal
        ),
        "You took x - x0 for eps. But both have factors in x.": eps_from_x_alone,
    },
    passing="A sampler needs x0 and eps only. So every sampler works for both kinds of networks.",
    difficulty=2,
    minutes=12,
    replaces={
        "minisd.guidance.x0_from_v": lambda answer: lambda x, v, level: answer(x, v, level)[0],
        "minisd.guidance.eps_from_v": lambda answer: lambda x, v, level: answer(x, v, level)[1],
    },
    draw=draw_by_v,
    in_lesson=True,
)
