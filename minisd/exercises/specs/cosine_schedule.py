"""Another noise schedule, with the student's own constants."""

import math

import torch

from minisd.exercises.exercise import Exercise, Stage
from minisd.exercises.specs.add_noise import draw_noisy_pet


def cosine_alpha_bar(t, *, offset=0.008, power=2):
    """alpha_bar of a cosine schedule.

    t: any shape, from 0 (a clean picture) to 1 (noise)    returns: the same shape
    """
    start = math.cos(offset / (1 + offset) * math.pi / 2) ** power
    return torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** power / start


def not_divided(t, *, offset=0.008, power=2):
    return torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** power


def start_without_power(t, *, offset=0.008, power=2):
    start = math.cos(offset / (1 + offset) * math.pi / 2)
    return torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** power / start


def shifted_to_start(t, *, offset=0.008, power=2):
    start = math.cos(offset / (1 + offset) * math.pi / 2) ** power
    return torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** power + 1 - start


def of_another_angle(angle):
    """f(t) / f(0) for another angle of the cosine."""

    def answer(t, *, offset=0.008, power=2):
        start = torch.cos(angle(torch.zeros((), dtype=torch.float64), offset)) ** power
        return torch.cos(angle(t, offset)) ** power / start

    return answer


def without_power(t, *, offset=0.008, power=2):
    return cosine_alpha_bar(t, offset=offset, power=1)


def noise_share(t, *, offset=0.008, power=2):
    return 1 - cosine_alpha_bar(t, offset=offset, power=power)


def power_of_the_angle(t, *, offset=0.008, power=2):
    angle = ((t + offset) / (1 + offset) * math.pi / 2) ** power
    return torch.cos(angle) / math.cos((offset / (1 + offset) * math.pi / 2) ** power)


def of_the_sine(t, *, offset=0.008, power=2):
    start = math.sin(offset / (1 + offset) * math.pi / 2) ** power
    return torch.sin((t + offset) / (1 + offset) * math.pi / 2) ** power / start


def usual_constants(t, *, offset=0.008, power=2):
    """What the paper and most sources have."""
    return cosine_alpha_bar(t, offset=0.008, power=2)


def middle_t(generator):
    return 0.35 + 0.1 * torch.rand(1, generator=generator, dtype=torch.float64)


def six_t(generator):
    """From 0 to 0.9. Near 1, alpha_bar is so small that a wrong one would pass, too."""
    drawn = 0.9 * torch.rand(4, generator=generator, dtype=torch.float64)
    return torch.cat([torch.tensor([0.0, 0.9], dtype=torch.float64), drawn]).reshape(2, 3)


def as_method(answer):
    """The answer as Schedule.add_noise: noise by this schedule instead of SD's table."""

    def add_noise(self, x0, noise, t):
        alpha_bar = answer(torch.tensor((t + 1) / self.config.timesteps))
        return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise

    return add_noise


def draw_at_500(sd):
    return draw_noisy_pet(sd, 500)


EXERCISE = Exercise(
    name="cosine_schedule",
    lesson="01",
    place=6,
    title="A cosine schedule",
    question=(
        "Nichol & Dhariwal (2021) define alpha_bar by a cosine: f(t) = cos((t + s) / (1 + s) * "
        "pi / 2) to the power p, and alpha_bar(t) = f(t) / f(0). Write `cosine_alpha_bar(t)` "
        "with your own constants s = {offset} and p = {power}. Here, t goes from 0 to 1, and it "
        "is a tensor of any shape."
    ),
    solution=cosine_alpha_bar,
    stages=(
        Stage("one t", 1, lambda g: [middle_t(g)]),
        Stage("six t, from 0 to 0.9", 2, lambda g: [six_t(g)]),
    ),
    hints=(
        "Because of s, f(0) is not 1. So compute f(t) and f(0), and divide.",
        "torch.cos fails for the plain number 0. For f(0), take math.cos, or let t be "
        "torch.zeros_like(t).",
        "f(t) is torch.cos((t + s) / (1 + s) * math.pi / 2) ** p. In f(0), t + s is only s. "
        "The rest is the same, with its power.",
    ),
    mistakes={
        "alpha_bar(0) must be 1: divide by f(0).": not_divided,
        "In f(0), too, the cosine has the power p.": start_without_power,
        "You added a number so that alpha_bar(0) is 1. Divide by f(0) instead.": shifted_to_start,
        "The offset s is missing.": of_another_angle(lambda t, s: t * math.pi / 2),
        "t + s must be divided by 1 + s, so that the cosine ends at 0.": (
            of_another_angle(lambda t, s: (t + s) * math.pi / 2)
        ),
        "The angle goes to pi. It should go to pi / 2.": (
            of_another_angle(lambda t, s: (t + s) / (1 + s) * math.pi)
        ),
        "Put t + s into brackets: (t + s) / (1 + s).": (
            of_another_angle(lambda t, s: (t + s / (1 + s)) * math.pi / 2)
        ),
        "The power p is missing.": without_power,
        "These are the constants of the paper. Use your own s and p.": usual_constants,
        "The power belongs to the cosine, not to the angle.": power_of_the_angle,
        "This is 1 - alpha_bar. Return alpha_bar.": noise_share,
        "This is the sine. Use the cosine, which falls.": of_the_sine,
    },
    passing="This schedule adds noise more slowly at both ends.",
    difficulty=2,
    minutes=10,
    given="import math",
    constants=lambda rng: {
        "offset": rng.choice([0.004, 0.012, 0.02, 0.03]),
        "power": rng.choice([3, 4, 5]),
    },
    in_picture={"minisd.schedule.Schedule.add_noise": as_method},
    draw=draw_at_500,
    in_lesson=True,
)
