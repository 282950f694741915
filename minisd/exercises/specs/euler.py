"""Euler, the simplest sampler on the scale x0 + sigma eps."""

from itertools import pairwise

from minisd.config import MINI
from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs.ddim import falling_sigmas
from minisd.samplers import Step
from minisd.schedule import Schedule


def euler(denoise, x, sigmas):
    """Yield the next x for each step from one sigma to the next.

    denoise(x, sigma): returns the guess x0
    x: b c h w, which is x0 + sigmas[0] * eps    sigmas: S + 1 numbers, the largest first
    """
    for index in range(len(sigmas) - 1):
        slope = (x - denoise(x, sigmas[index])) / sigmas[index]
        x = x + (sigmas[index + 1] - sigmas[index]) * slope
        yield x


def walk(rule):
    """A sampler with this rule for one step."""

    def sampler(denoise, x, sigmas):
        for sigma, below in pairwise(sigmas):
            x = rule(x, denoise(x, sigma), sigma, below)
            yield x

    return sampler


def ask_at_next(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        x = x + (below - sigma) * (x - denoise(x, below)) / sigma
        yield x


def never_update(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        yield x + (below - sigma) * (x - denoise(x, sigma)) / sigma


def in_place(denoise, x, sigmas):
    for sigma, below in pairwise(sigmas):
        x += (below - sigma) * (x - denoise(x, sigma)) / sigma
        yield x


def yield_start(denoise, x, sigmas):
    yield x
    yield from euler(denoise, x, sigmas)


def yield_before(denoise, x, sigmas):
    yield x
    yield from list(euler(denoise, x, sigmas))[:-1]


def one_step_less(denoise, x, sigmas):
    return euler(denoise, x, sigmas[:-1])


def inputs(steps, size, end):
    def draw(g):
        sigmas = falling_sigmas(g, steps) + end
        return [Made("sigma_denoise", {"gain": 1.3}), sigmas[0] * normal(g, *size), sigmas]

    return draw


def as_sigma_sampler(answer):
    """The answer as a function of samplers.py: on the other scale, and it yields Steps."""

    def sampler(denoise, x, levels, generators=None):
        known = {level.sigma: level for level in levels}
        seen = []

        def guess(x, sigma):
            if sigma not in known:
                known[sigma] = Schedule(MINI.schedule).levels_of_sigmas([sigma])[0]
            level = known[sigma]
            seen.append(denoise(x * level.signal_rate, level))
            return seen[-1].x0

        moves = answer(guess, x / levels[0].signal_rate, [level.sigma for level in levels])
        for index, moved in enumerate(moves):
            level, below = levels[index], levels[index + 1]
            yield Step(index, level.t, level.sigma, seen[0], moved * below.signal_rate)
            seen.clear()

    return sampler


def draw_with_sampler(name):
    """A function that draws a cat with this sampler."""
    prompt = "a blue cat on a red background"
    return lambda sd: sd.txt2img(prompt, steps=10, seed=1, sampler=name)


EXERCISE = Exercise(
    name="euler",
    lesson="03",
    place=7,
    title="Euler",
    question=(
        "This sampler uses the other scale, on which the noisy x is x0 + sigma * eps. There, eps "
        "is the slope of x: it says how x changes with sigma. Write the sampler `euler(denoise, "
        "x, sigmas)`, which yields the next x after each step. Here, `denoise(x, sigma)` returns "
        "the guess x0. Compute the slope from x, the guess and sigma. Then go along the slope "
        "from sigma to the next sigma."
    ),
    solution=euler,
    stages=(
        Stage("one step to no noise", 1, inputs(1, (1, 1, 2, 3), [0.0])),
        Stage("two steps that end with some noise", 1, inputs(3, (1, 2, 3, 2), [])),
        Stage("six steps, a batch of 2", 2, inputs(6, (2, 4, 3, 5), [0.0])),
    ),
    hints=(
        "Solve x = x0 + sigma * eps for eps.",
        "The slope is (x - x0) / sigma. By how much does sigma change in this step? The change "
        "is negative.",
        "x = x + (next_sigma - sigma) * slope, and then yield x inside the loop.",
    ),
    mistakes={
        "The sign is wrong, so x gets more noise. Check next_sigma - sigma, and x - x0.": walk(
            lambda x, x0, sigma, below: x + (sigma - below) * (x - x0) / sigma
        ),
        "The slope is (x - x0) divided by sigma. The division is missing.": walk(
            lambda x, x0, sigma, below: x + (below - sigma) * (x - x0)
        ),
        "The slope is (x - x0) / sigma, with the sigma where the step starts.": walk(
            lambda x, x0, sigma, below: x + (below - sigma) * (x - x0) / (below or 1)
        ),
        "The length of the step is the difference of the two sigmas, not the next sigma.": walk(
            lambda x, x0, sigma, below: x + below * (x - x0) / sigma
        ),
        "The slope is x / sigma only if x0 is 0. Subtract the guess.": walk(
            lambda x, x0, sigma, below: x + (below - sigma) * x / sigma
        ),
        "denoise returns the guess x0. It is not the slope yet.": walk(
            lambda x, x0, sigma, below: x + (below - sigma) * x0
        ),
        "This jumps to the guess x0. Go only to the next sigma.": walk(
            lambda x, x0, sigma, below: x0
        ),
        "Keep x, and add the step to it.": walk(
            lambda x, x0, sigma, below: (below - sigma) * (x - x0) / sigma
        ),
        "You added the step to the guess x0. Add it to x.": walk(
            lambda x, x0, sigma, below: x0 + (below - sigma) * (x - x0) / sigma
        ),
        "denoise should get the sigma where the step starts.": ask_at_next,
        "Each step should go on from the x of the step before.": never_update,
        "You change x in place, so you yield the same tensor every time. Write x = x + …": (
            in_place
        ),
        "You yield x before the step. Yield it after the step.": yield_before,
        "Do not yield the x from which you start. There is one x for each step.": yield_start,
        "The last step is missing. There is one step for each pair of sigmas.": one_step_less,
    },
    passing="On this scale, DDIM is the same as Euler. The picture is drawn with your sampler.",
    difficulty=2,
    minutes=15,
    needs=("ddim",),
    given="from itertools import pairwise",
    replaces={"minisd.samplers.euler": as_sigma_sampler},
    draw=draw_with_sampler("euler"),
)
