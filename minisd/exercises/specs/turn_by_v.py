"""A step of DDIM as the turn of an arrow."""

import math

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import walk_by_v


def turn_by_v(x, v, level, next_level):
    """The noisy latent at the next level.

    x, v: b c h w    level, next_level: have .sigma, a number    returns: b c h w
    """
    turn = math.atan(level.sigma) - math.atan(next_level.sigma)
    return math.cos(turn) * x - math.sin(turn) * v


def turn_by(x, v, turn):
    return math.cos(turn) * x - math.sin(turn) * v


def other_way(x, v, level, next_level):
    return turn_by_v(x, -v, level, next_level)


def swap_sine_and_cosine(x, v, level, next_level):
    turn = math.atan(level.sigma) - math.atan(next_level.sigma)
    return math.sin(turn) * x - math.cos(turn) * v


def sigma_as_angle(x, v, level, next_level):
    return turn_by(x, v, level.sigma - next_level.sigma)


def angle_of_difference(x, v, level, next_level):
    return turn_by(x, v, math.atan(level.sigma - next_level.sigma))


def whole_angle(x, v, level, next_level):
    return turn_by(x, v, math.atan(level.sigma))


def next_angle(x, v, level, next_level):
    return turn_by(x, v, math.atan(next_level.sigma))


def in_degrees(x, v, level, next_level):
    turn = math.atan(level.sigma) - math.atan(next_level.sigma)
    return turn_by(x, v, math.degrees(turn))


def straight_step(x, v, level, next_level):
    turn = math.atan(level.sigma) - math.atan(next_level.sigma)
    return x - turn * v


def tangent(x, v, level, next_level):
    return turn_by(x, v, math.tan(level.sigma) - math.tan(next_level.sigma))


def add_angles(x, v, level, next_level):
    return turn_by(x, v, math.atan(level.sigma) + math.atan(next_level.sigma))


def inputs(shape, sigma, next_sigma):
    levels = [Made("level", {"sigma": one, "t": 100 * one}) for one in (sigma, next_sigma)]
    return lambda g: [normal(g, *shape), normal(g, *shape), *levels]


def step_to_draw(x, v, level, next_level):
    """What the picture calls. check() puts the answer here."""
    return turn_by_v(x, v, level, next_level)


def draw_cat_by_turns(sd):
    return walk_by_v(sd, step_to_draw)


EXERCISE = Exercise(
    name="turn_by_v",
    lesson="16",
    place=3,
    title="A step of DDIM as a rotation",
    question=(
        "signal_rate and noise_rate are the cosine and the sine of an angle: the angle of a "
        "level is atan(sigma). This angle goes from 0 (a clean picture) towards a right angle "
        "(pure noise). v says how x changes with the angle. So a step of DDIM is only a "
        "rotation. Let d be the angle of the level, minus the angle of the next level. The new x "
        "is cos(d) * x - sin(d) * v. Write `turn_by_v(x, v, level, next_level)`. A level has the "
        "field .sigma."
    ),
    solution=turn_by_v,
    stages=(
        Stage("one number", 1, inputs((1, 1, 1, 1), 2.0, 0.7)),
        Stage("a batch of 2", 1, inputs((2, 4, 3, 5), 5.0, 0.5)),
        Stage("the last step, to sigma 0", 1, inputs((2, 4, 5, 3), 0.4, 0.0)),
    ),
    hints=(
        "math.atan(level.sigma) is the angle, in radians.",
        "d is positive, because the next level has less noise and so a smaller angle.",
        "d = math.atan(level.sigma) - math.atan(next_level.sigma). Then use math.cos(d) and "
        "math.sin(d).",
    ),
    mistakes={
        "You turned towards more noise. Subtract sin(d) * v, with a positive d.": other_way,
        "Sine and cosine are swapped. The cosine belongs to x.": swap_sine_and_cosine,
        "You used the sigmas as angles. The angle is atan(sigma).": sigma_as_angle,
        "You subtracted the sigmas. Take atan of each, then subtract.": angle_of_difference,
        "You turned by the whole angle. Subtract the angle of the next level.": whole_angle,
        "You turned by the angle of the next level. Subtract it from the angle of the level.": (
            next_angle
        ),
        "You used degrees. math.sin and math.cos take radians.": in_degrees,
        "You subtracted d * v. Use the cosine and the sine of d.": straight_step,
        "You took the tangent. The angle is atan(sigma), its inverse.": tangent,
        "You added the two angles. Subtract that of the next level.": add_angles,
    },
    passing="This is DDIM, without any x0 or eps, and without a division.",
    difficulty=2,
    minutes=12,
    needs=("read_v",),
    given="import math",
    in_picture={"minisd.exercises.specs.turn_by_v.step_to_draw": lambda answer: answer},
    draw=draw_cat_by_turns,
)
