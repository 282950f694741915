"""The sampler of rectified flow: straight steps along the predicted velocity."""

import torch

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal


def flow_euler(network, noise, steps):
    """Go from the noise at t = 1 to the data at t = 0, in equal steps of t.

    network: network(x, t) returns the velocity, b c h w. It reads t from 0 to 1000, b numbers
    noise: b c h w    returns: b c h w
    """
    x = noise
    for step in range(steps):
        t = torch.full((len(x),), 1 - step / steps).to(x)
        x = x - network(x, 1000 * t) / steps
    return x


def walk(rule=lambda x, velocity, steps: x - velocity / steps, time=lambda n, s: 1 - n / s):
    """A sampler with another step, or with other times. time: (step, steps) -> t."""

    def answer(network, noise, steps):
        x = noise
        for step in range(steps):
            t = torch.full((len(x),), time(step, steps)).to(x)
            x = rule(x, network(x, 1000 * t), steps)
        return x

    return answer


def one_velocity(network, noise, steps):
    x, t = noise, torch.ones(len(noise)).to(noise)
    for _ in range(steps):
        x = x - network(noise, 1000 * t) / steps
    return x


def small_t(network, noise, steps):
    return flow_euler(lambda x, t: network(x, t / 1000), noise, steps)


def one_step_less(network, noise, steps):
    x = noise
    for step in range(steps - 1):
        t = torch.full((len(x),), 1 - step / steps).to(x)
        x = x - network(x, 1000 * t) / steps
    return x


def return_inside(network, noise, steps):
    t = torch.ones(len(noise)).to(noise)
    return noise - network(noise, 1000 * t) / steps


def inputs(b, steps):
    def draw(g):
        return [Made("velocity_network", {"gain": 0.7}), normal(g, b, 2, 1, 3), steps]

    return draw


EXERCISE = Exercise(
    name="flow_euler",
    lesson="18",
    place=3,
    title="The sampler of rectified flow",
    question=(
        "Write `flow_euler(network, noise, steps)`. Start from x = noise, and go from t = 1 to "
        "t = 0 in equal steps. The first step begins at t = 1, the second step begins at t = 1 - "
        "1/steps, and so on. In each step, call `network(x, 1000 * t)` with the t at which the "
        "step begins. This t has one number for each sample of the batch. The network returns the "
        "velocity, dx/dt: the one that your `flow_loss` trains. t falls by 1/steps, so x changes "
        "by minus the velocity, divided by steps. Return x at t = 0."
    ),
    solution=flow_euler,
    stages=(
        Stage("one step", 1, inputs(1, 1)),
        Stage("two steps", 1, inputs(2, 2)),
        Stage("seven steps", 2, inputs(3, 7)),
    ),
    hints=(
        "Begin with x = noise, and write a loop: for step in range(steps).",
        "In the loop, t is 1 - step / steps. torch.full((len(x),), t) repeats it for the batch.",
        "x = x - network(x, 1000 * t) / steps",
    ),
    mistakes={
        "You add the velocity. t falls, so subtract it.": (
            walk(lambda x, velocity, steps: x + velocity / steps)
        ),
        "Every step goes all the way. Divide the velocity by steps.": (
            walk(lambda x, velocity, steps: x - velocity)
        ),
        "The velocity is never used at a later x. Call the network in every step.": one_velocity,
        "t is the one of the end of each step. Begin with t = 1.": (
            walk(time=lambda n, s: 1 - (n + 1) / s)
        ),
        "Your t grows from 0. It falls from 1.": walk(time=lambda n, s: n / s),
        "t is 1 in every step. It falls by 1/steps.": walk(time=lambda n, s: 1.0),
        "The times go from 1 to 0, with both ends. The last step begins at t = 1/steps.": (
            walk(time=lambda n, s: 1 - n / max(s - 1, 1))
        ),
        "The network reads t from 0 to 1000. Pass 1000 * t.": small_t,
        "There is one step too few.": one_step_less,
        "There is only one step. Is the return inside the loop?": return_inside,
        "You return the last velocity. Return x.": (walk(lambda x, velocity, steps: velocity)),
        "Keep the old x in each step: subtract from it.": (
            walk(lambda x, velocity, steps: -velocity / steps)
        ),
    },
    passing=(
        "Stable Diffusion 3 and FLUX draw with this sampler. They only choose other values of t "
        "between 1 and 0."
    ),
    difficulty=2,
    minutes=10,
    needs=("flow_loss",),
    in_lesson=True,
)
