"""From a picture to the noise that draws it: DDIM's steps in the other direction."""

from itertools import pairwise

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import draw_scene
from minisd.files.pictures import from_pil, to_pil
from minisd.samplers import ddim_move
from minisd.sampling import sampler_levels


def invert_ddim(denoise, z, levels):
    """Add to z the noise that the denoiser sees in it, step by step.

    denoise: a function. denoise(x, level) returns an object with .x0 and .eps, each b 4 h w
    z: b 4 h w, the latent of a picture
    levels: a list, the noisiest level first. Each level has .signal_rate and .noise_rate
    returns: b 4 h w, x at the noisiest level
    """
    x = z
    for level, noisier in pairwise(levels[::-1]):
        guess = denoise(x, level)
        x = noisier.signal_rate * guess.x0 + noisier.noise_rate * guess.eps
    return x


def invert_with(denoise, z, levels, step):
    """The same loop, with another rule for each step."""
    x = z
    for level, noisier in pairwise(levels[::-1]):
        x = step(denoise(x, level), x, level, noisier)
    return x


def not_reversed(denoise, z, levels):
    return invert_ddim(denoise, z, levels[::-1])


def same_level(denoise, z, levels):
    return invert_with(
        denoise, z, levels, lambda g, x, a, b: a.signal_rate * g.x0 + a.noise_rate * g.eps
    )


def noise_on_x(denoise, z, levels):
    return invert_with(
        denoise, z, levels, lambda g, x, a, b: b.signal_rate * x + b.noise_rate * g.eps
    )


def swap_rates(denoise, z, levels):
    return invert_with(
        denoise, z, levels, lambda g, x, a, b: b.noise_rate * g.x0 + b.signal_rate * g.eps
    )


def full_signal(denoise, z, levels):
    return invert_with(denoise, z, levels, lambda g, x, a, b: g.x0 + b.noise_rate * g.eps)


def sigma_noise(denoise, z, levels):
    return invert_with(
        denoise, z, levels, lambda g, x, a, b: g.x0 + b.noise_rate / b.signal_rate * g.eps
    )


def minus_noise(denoise, z, levels):
    return invert_with(
        denoise, z, levels, lambda g, x, a, b: b.signal_rate * g.x0 - b.noise_rate * g.eps
    )


def one_jump(denoise, z, levels):
    return invert_ddim(denoise, z, [levels[0], levels[-1]])


def step_too_few(denoise, z, levels):
    return invert_ddim(denoise, z, levels[1:])


def all_steps(denoise, z, levels):
    ends = range(len(levels) - 2, -1, -1)
    return [invert_ddim(denoise, z, levels[first:]) for first in ends]


def inputs(shape, sigmas):
    def draw(g):
        levels = [Made("level", {"sigma": sigma, "t": 100 * sigma}) for sigma in sigmas]
        return [Made("denoise", {"gain": 0.7}), normal(g, *shape), levels]

    return draw


def invert_to_draw(denoise, z, levels):
    """What the picture calls. check() puts the answer here."""
    return invert_ddim(denoise, z, levels)


def draw_dog(sd):
    """A small cat in a corner becomes a dog in the same corner."""
    z = sd.encode(from_pil(draw_scene("cat", background="orange", spot="bottom left")))
    levels = sampler_levels("ddim", sd.schedule, 16)[8:]
    x = invert_to_draw(sd.denoiser(["a cat"], cfg_scale=1), z, levels)
    denoise = sd.denoiser(["a dog"])
    for level, next_level in pairwise(levels):
        x = ddim_move(x, denoise(x, level).eps, level, next_level)
    return to_pil(sd.decode(x))[0]


EXERCISE = Exercise(
    name="invert_ddim",
    lesson="11",
    place=3,
    title="From a picture to its noise",
    question=(
        "Write `invert_ddim(denoise, z, levels)`. It goes through the levels from the last one, "
        "with almost no noise, up to the first one. Start from x = z. In each step, call "
        "denoise(x, level) with the level that x has now. Then compute the new x: the guess x0 "
        "times the signal rate of the noisier level, plus the guess eps times its noise rate. "
        "Return the x of the noisiest level."
    ),
    solution=invert_ddim,
    stages=(
        Stage("one step", 1, inputs((1, 4, 2, 3), [3.0, 0.2])),
        Stage("two steps", 1, inputs((1, 4, 3, 5), [4.0, 1.0, 0.1])),
        Stage("five steps, a batch of 2", 2, inputs((2, 4, 5, 3), [9, 4, 2, 1, 0.4, 0.1])),
    ),
    hints=(
        "levels[::-1] is the list in the other direction. pairwise gives each level with the next.",
        "One step: guess = denoise(x, level), and then the same sum as in a step of DDIM, with the "
        "rates of the noisier level.",
        "for level, noisier in pairwise(levels[::-1]): compute guess, then x = noisier.signal_rate "
        "* guess.x0 + noisier.noise_rate * guess.eps. Return x after the loop.",
    ),
    mistakes={
        "You go from the noisiest level to the last one. This is drawing. Go the other way.": (
            not_reversed
        ),
        "Your x stays z. Give denoise() the level of x, and use the rates of the noisier one.": (
            same_level
        ),
        "The signal rate belongs to the guess x0, not to x, which has noise already.": noise_on_x,
        "The two rates are swapped: the signal rate belongs to x0.": swap_rates,
        "x0 is not multiplied by the signal rate.": full_signal,
        "This is x0 + sigma eps. The network reads signal rate * x0 + noise rate * eps.": (
            sigma_noise
        ),
        "The noise is added. You subtracted it.": minus_noise,
        "You use only one guess. Visit every level, and call denoise() in each step.": one_jump,
        "You stop one level too early. The last x has the level levels[0].": step_too_few,
        "Return only the last x, not a list of all of them.": all_steps,
    },
    passing="With this noise, a change of one word keeps more of the picture.",
    difficulty=2,
    minutes=12,
    given="from itertools import pairwise",
    in_picture={"minisd.exercises.specs.invert_ddim.invert_to_draw": lambda answer: answer},
    draw=draw_dog,
    in_lesson=True,
)
