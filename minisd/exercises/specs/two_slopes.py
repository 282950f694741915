"""Another sampler with two slopes, with the student's own place for the second one."""

from itertools import pairwise

from minisd.exercises.exercise import Exercise, Stage
from minisd.exercises.specs.euler import as_sigma_sampler, draw_with_sampler, inputs


def two_slopes(denoise, x, sigmas, *, fraction=0.6):
    """Yield the next x for each step from one sigma to the next.

    denoise(x, sigma): returns the guess x0
    x: b c h w, which is x0 + sigmas[0] * eps    sigmas: S + 1 numbers, the largest first
    """
    weight = 1 / (2 * fraction)
    for index in range(len(sigmas) - 1):
        sigma, below = sigmas[index], sigmas[index + 1]
        slope = (x - denoise(x, sigma)) / sigma
        middle = sigma + fraction * (below - sigma)
        trial = x + (middle - sigma) * slope
        slope_there = (trial - denoise(trial, middle)) / middle
        mixed = (1 - weight) * slope + weight * slope_there
        x = x + (below - sigma) * mixed
        yield x


def vary(weight=None, middle=None, there=None, combine=None):
    """The sampler with other parts. Each part has the right one as its default."""

    def sampler(denoise, x, sigmas, *, fraction=0.6):
        share = (weight or (lambda f: 1 / (2 * f)))(fraction)
        for sigma, below in pairwise(sigmas):
            slope = (x - denoise(x, sigma)) / sigma
            place = (middle or (lambda s, b, f: s + f * (b - s)))(sigma, below, fraction)
            trial = x + (place - sigma) * slope
            if there is None:
                second = (trial - denoise(trial, place)) / place
            else:
                second = there(denoise, x, trial, sigma, place)
            step = (below - sigma) * ((1 - share) * slope + share * second)
            x = combine(x, trial, step) if combine else x + step
            yield x

    return sampler


def heun_weights(f):
    return 0.5


def up_to_middle(denoise, x, sigmas, *, fraction=0.6):
    for sigma, below in pairwise(sigmas):
        middle = sigma + fraction * (below - sigma)
        slope = (x - denoise(x, sigma)) / sigma
        trial = x + (middle - sigma) * slope
        slope_there = (trial - denoise(trial, middle)) / middle
        weight = 1 / (2 * fraction)
        x = x + (middle - sigma) * ((1 - weight) * slope + weight * slope_there)
        yield x


EXERCISE = Exercise(
    name="two_slopes",
    lesson="03",
    place=11,
    title="A sampler of your own",
    question=(
        "Heun computes its second slope at the end of the step. Your sampler computes it "
        "earlier. Write `two_slopes(denoise, x, sigmas)`, which yields the next x after each "
        "step. Compute the slope at sigma. Then try a step of Euler that goes only the fraction "
        "{fraction} of the way from sigma to the next sigma. Compute the slope at the end of "
        "this trial, with the sigma there. Make the whole step from the old x with a mixture of "
        "the slopes: the second slope has the weight 1 / (2 * {fraction}), and the first slope "
        "has the rest, so that the weights sum to 1. No step needs a special case, because the "
        "second slope is never at sigma 0."
    ),
    solution=two_slopes,
    stages=(
        Stage("one step", 1, inputs(2, (1, 1, 2, 3), [])),
        Stage("a step to no noise", 1, inputs(1, (1, 2, 3, 2), [0.0])),
        Stage("six steps, a batch of 2", 2, inputs(6, (2, 4, 3, 5), [0.0])),
    ),
    hints=(
        "Begin with heun(), and change three things: where the trial ends, the weights, and the "
        "special case.",
        "The trial ends at middle = sigma + fraction * (next_sigma - sigma). Compute the second "
        "slope from the trial x and this sigma.",
        "x = x + (next_sigma - sigma) * ((1 - weight) * slope + weight * slope_there), with "
        "weight = 1 / (2 * fraction).",
    ),
    mistakes={
        "This is the mean of both slopes, as in Heun. The second weight is 1 / (2 fraction).": vary(
            heun_weights
        ),
        "This is Heun: the second slope is at the end of the step.": vary(
            heun_weights,
            lambda s, b, f: b or 1e-300,
        ),
        "You use only the second slope, as in the midpoint rule. The first one counts, too.": vary(
            lambda f: 1.0
        ),
        "This is Euler: the second slope is not used.": vary(lambda f: 0.0),
        "The two weights are swapped. The second slope gets 1 / (2 fraction).": (
            vary(lambda f: 1 - 1 / (2 * f))
        ),
        "The weight of the second slope is 1 / (2 fraction), not the fraction.": vary(lambda f: f),
        "The weight is 1 / (2 fraction), not 1 / fraction.": vary(lambda f: 1 / f),
        "The weight is 1 / (2 fraction), not fraction / 2.": vary(lambda f: f / 2),
        "You measured the fraction from the next sigma. The trial starts at sigma.": vary(
            middle=lambda s, b, f: b + f * (s - b)
        ),
        "The trial should go to sigma + fraction * (next sigma - sigma).": vary(
            middle=lambda s, b, f: f * s
        ),
        "Call denoise with the sigma where the trial ends, not with the old sigma.": vary(
            there=lambda denoise, x, trial, s, m: (trial - denoise(trial, s)) / m
        ),
        "Divide the second slope by the sigma where the trial ends.": vary(
            there=lambda denoise, x, trial, s, m: (trial - denoise(trial, m)) / s
        ),
        "The trial has less noise than x. Use the sigma where the trial ends.": vary(
            there=lambda denoise, x, trial, s, m: (trial - denoise(trial, s)) / s
        ),
        "Call denoise with the trial for the second slope, not with the old x.": vary(
            there=lambda denoise, x, trial, s, m: (trial - denoise(x, m)) / m
        ),
        "Subtract the second guess from the trial, not from the old x.": vary(
            there=lambda denoise, x, trial, s, m: (x - denoise(trial, m)) / m
        ),
        "The second slope belongs to the trial. You used the old x for it.": vary(
            there=lambda denoise, x, trial, s, m: (x - denoise(x, m)) / m
        ),
        "The step should start from the old x, not from the end of the trial.": vary(
            combine=lambda x, trial, step: trial + step
        ),
        "At the end, go the whole step to the next sigma, not only as far as the trial.": (
            up_to_middle
        ),
    },
    passing="With any fraction, the error falls with the square of the step size, as with Heun.",
    difficulty=3,
    minutes=20,
    needs=("heun",),
    given="from itertools import pairwise",
    constants=lambda rng: {"fraction": rng.choice([0.4, 0.6, 0.7, 0.8])},
    in_picture={"minisd.samplers.heun": as_sigma_sampler},
    draw=draw_with_sampler("heun"),
    in_lesson=True,
)
