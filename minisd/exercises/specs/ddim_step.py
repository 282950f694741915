"""One step of DDIM, from alpha_bar to the next alpha_bar."""

from minisd.exercises.exercise import Exercise, Stage, normal


def ddim_step(x, eps, alpha_bar, next_alpha_bar):
    """One step of DDIM.

    x: a number or a tensor, with the noise of alpha_bar    eps: the predicted noise, as x
    alpha_bar, next_alpha_bar: numbers    returns: x with the noise of next_alpha_bar
    """
    x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return next_alpha_bar**0.5 * x0 + (1 - next_alpha_bar) ** 0.5 * eps


def no_roots(x, eps, alpha_bar, next_alpha_bar):
    x0 = (x - (1 - alpha_bar) * eps) / alpha_bar
    return next_alpha_bar * x0 + (1 - next_alpha_bar) * eps


def one_minus_root(x, eps, alpha_bar, next_alpha_bar):
    x0 = (x - (1 - alpha_bar**0.5) * eps) / alpha_bar**0.5
    return next_alpha_bar**0.5 * x0 + (1 - next_alpha_bar**0.5) * eps


def plus_noise(x, eps, alpha_bar, next_alpha_bar):
    x0 = (x + (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return next_alpha_bar**0.5 * x0 + (1 - next_alpha_bar) ** 0.5 * eps


def not_divided(x, eps, alpha_bar, next_alpha_bar):
    x0 = x - (1 - alpha_bar) ** 0.5 * eps
    return next_alpha_bar**0.5 * x0 + (1 - next_alpha_bar) ** 0.5 * eps


def only_guess(x, eps, alpha_bar, next_alpha_bar):
    return (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


def x_for_guess(x, eps, alpha_bar, next_alpha_bar):
    return next_alpha_bar**0.5 * x + (1 - next_alpha_bar) ** 0.5 * eps


def old_noise_rate(x, eps, alpha_bar, next_alpha_bar):
    x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return next_alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps


def without_noise(x, eps, alpha_bar, next_alpha_bar):
    x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return next_alpha_bar**0.5 * x0


def unit_signal(x, eps, alpha_bar, next_alpha_bar):
    x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return x0 + (1 - next_alpha_bar) ** 0.5 * eps


def swap_levels(x, eps, alpha_bar, next_alpha_bar):
    return ddim_step(x, eps, next_alpha_bar, alpha_bar)


def minus_noise(x, eps, alpha_bar, next_alpha_bar):
    x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return next_alpha_bar**0.5 * x0 - (1 - next_alpha_bar) ** 0.5 * eps


def two_alpha_bars(g):
    low = 0.1 + 0.3 * normal(g).sigmoid().item()
    return [low, low + 0.1 + 0.3 * normal(g).sigmoid().item()]


def as_move(answer):
    """The answer as samplers.ddim_move, which reads alpha_bar from two levels."""

    def move(x, eps, level, next_level):
        return answer(x, eps, level.alpha_bar, next_level.alpha_bar)

    return move


EXERCISE = Exercise(
    name="ddim_step",
    lesson="03",
    place=2,
    title="One step of DDIM",
    question=(
        "The noisy x is the square root of alpha_bar times x0, plus the square root of "
        "(1 - alpha_bar) times eps. Write `ddim_step(x, eps, alpha_bar, next_alpha_bar)`. First "
        "compute the guess x0 from x and the predicted eps. Then add the same eps to the guess "
        "again, with the rates of `next_alpha_bar`."
    ),
    solution=ddim_step,
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
        "Solve x = signal * x0 + noise * eps for x0.",
        "x0 = (x - noise * eps) / signal, where signal is the square root of alpha_bar and noise "
        "the square root of (1 - alpha_bar). For a number, write ** 0.5.",
        "The result has the same form as x: next_alpha_bar ** 0.5 * x0 plus "
        "(1 - next_alpha_bar) ** 0.5 * eps.",
    ),
    mistakes={
        "The square roots are missing: the rates are sqrt(alpha_bar) and sqrt(1 - alpha_bar).": (
            no_roots
        ),
        "The noise rate is the root of (1 - alpha_bar), not 1 minus the root.": one_minus_root,
        "The noise is subtracted from x to get x0. You added it.": plus_noise,
        "To get x0, also divide by the square root of alpha_bar.": not_divided,
        "This is the guess x0. Now add the noise of next_alpha_bar to it.": only_guess,
        "Add the noise to the guess x0, not to x.": x_for_guess,
        "The noise that you add has the old rate. Use next_alpha_bar.": old_noise_rate,
        "The noise is missing: add eps to the guess, with the noise rate of next_alpha_bar.": (
            without_noise
        ),
        "The guess x0 needs a factor, too: the square root of next_alpha_bar.": unit_signal,
        "alpha_bar and next_alpha_bar are swapped.": swap_levels,
        "The noise is added to the guess. You subtracted it.": minus_noise,
    },
    passing="The sampler PLMS makes its steps with this function. The picture is drawn with PLMS.",
    difficulty=1,
    minutes=10,
    replaces={"minisd.samplers.ddim_move": as_move},
    draw=lambda sd: sd.txt2img("a blue cat on a red background", steps=12, seed=1, sampler="plms"),
)
