"""The loop of the first lesson: from noise to a latent, level by level."""

from itertools import pairwise

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.samplers import Step


def denoise_loop(denoise, x, levels):
    """Walk from noise to a latent, from each level to the next.

    denoise: denoise(x, level) returns a guess. guess.x0 is the clean latent, guess.eps the noise
    x: b c h w, noise    levels: a list, the noisiest level first    returns: b c h w

    A level has a signal_rate and a noise_rate. A noisy latent of this level is
    signal_rate * x0 + noise_rate * eps.
    """
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        x = below.signal_rate * guess.x0 + below.noise_rate * guess.eps
    return x


def walk(step):
    """A loop with another rule. step: (guess, level, below) -> the next x."""

    def loop(denoise, x, levels):
        for level, below in pairwise(levels):
            x = step(denoise(x, level), level, below)
        return x

    return loop


def keep_the_start(denoise, x, levels):
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        result = below.signal_rate * guess.x0 + below.noise_rate * guess.eps
    return result


def return_the_guess(denoise, x, levels):
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        x = below.signal_rate * guess.x0 + below.noise_rate * guess.eps
    return guess.x0


def list_all(denoise, x, levels):
    states = []
    for pair in pairwise(levels):
        x = denoise_loop(denoise, x, pair)
        states.append(x)
    return states


def return_in_the_loop(denoise, x, levels):
    return denoise_loop(denoise, x, levels[:2])


def inputs(sigmas, *shape):
    levels = [Made("level", {"sigma": sigma}) for sigma in sigmas]
    return lambda g: [Made("denoise", {"gain": 0.7}), normal(g, *shape), levels]


def as_sampler(loop):
    """The loop as a sampler of the package, which hands over each of its steps."""

    def sampler(denoise, x, levels, generators=None, **settings):
        calls = []

        def watch(x, level):
            calls.append((x, level, denoise(x, level)))
            return calls[-1][2]

        end = loop(watch, x, levels)
        states = [x for x, _, _ in calls[1:]] + [end]
        for i, ((_, level, guess), state) in enumerate(zip(calls, states, strict=True)):
            yield Step(i, level.t, level.sigma, guess, state)

    return sampler


def draw_with_ddim(sd):
    """The usual cat, by the sampler whose loop the student has written."""
    return sd.txt2img("a blue cat on a red background", sampler="ddim", steps=12, seed=1)


EXERCISE = Exercise(
    name="denoise_loop",
    lesson="00",
    place=2,
    title="From noise to a latent",
    question=(
        "Write the loop of this lesson: `denoise_loop(denoise, x, levels)`. For each pair of "
        "neighbouring levels, call `denoise(x, level)` with the noisier level. It returns a "
        "guess with two fields: `guess.x0`, the clean latent, and `guess.eps`, the noise. Mix "
        "the two again, with the rates of the less noisy level: signal_rate times x0 plus "
        "noise_rate times eps. This is the next x. Return the last x."
    ),
    solution=denoise_loop,
    stages=(
        Stage("one step, one number", 1, inputs([3.0, 0.5], 1, 1, 1, 1)),
        Stage("two latents, four steps", 2, inputs([12.0, 4.0, 1.5, 0.6, 0.2], 2, 4, 3, 5)),
        Stage("the last level has no noise", 1, inputs([5.0, 1.0, 0.0], 2, 4, 3, 5)),
    ),
    hints=(
        "pairwise(levels) gives the pairs (level 0, level 1), (level 1, level 2), and so on.",
        "denoise is called with the first level of a pair. The rates come from the second.",
        "In the loop `for level, below in pairwise(levels)`: guess = denoise(x, level), then x = "
        "below.signal_rate * guess.x0 + ... After the loop: return x.",
    ),
    mistakes={
        "Your x does not change. Use the rates of the next level, not those of this level.": (
            walk(
                lambda guess, level, below: (
                    level.signal_rate * guess.x0 + level.noise_rate * guess.eps
                )
            )
        ),
        "The rates are swapped: signal_rate belongs to x0, noise_rate to eps.": (
            walk(
                lambda guess, level, below: (
                    below.noise_rate * guess.x0 + below.signal_rate * guess.eps
                )
            )
        ),
        "You removed all noise at once. Add the noise of the next level again.": (
            walk(lambda guess, level, below: guess.x0)
        ),
        "x must change in the loop: each guess starts from the x of the step before.": (
            keep_the_start
        ),
        "You returned the last guess. Return the last x, which may still hold a little noise.": (
            return_the_guess
        ),
        "The last step is missing: S + 1 levels make S steps.": (
            lambda denoise, x, levels: denoise_loop(denoise, x, levels[:-1])
        ),
        "The first step is missing. Start at the first level.": (
            lambda denoise, x, levels: denoise_loop(denoise, x, levels[1:])
        ),
        "The return is inside the loop, so there is only one step.": return_in_the_loop,
        "You went through the list backwards. The noisiest level already comes first.": (
            lambda denoise, x, levels: denoise_loop(denoise, x, levels[::-1])
        ),
        "This is x0 + sigma * eps. Multiply x0 by the signal rate, and eps by the noise rate.": (
            walk(lambda guess, level, below: guess.x0 + below.sigma * guess.eps)
        ),
        "The signal rate is missing: it belongs to x0.": (
            walk(lambda guess, level, below: guess.x0 + below.noise_rate * guess.eps)
        ),
        "The noise is subtracted. x0 is already without noise: add a little noise to it.": (
            walk(
                lambda guess, level, below: (
                    below.signal_rate * guess.x0 - below.noise_rate * guess.eps
                )
            )
        ),
        "Return only the last x, not a list of all.": list_all,
    },
    passing="This is a complete sampler. Its name is DDIM, and lesson 03 compares it with others.",
    difficulty=2,
    minutes=15,
    given="from itertools import pairwise",
    in_picture={"minisd.samplers.ddim": as_sampler},
    draw=draw_with_ddim,
    in_lesson=True,
)
