"""The loop with a memory: the student's own share of the guess before."""

from itertools import pairwise

from minisd.exercises.exercise import Exercise, Stage
from minisd.exercises.specs.denoise_loop import (
    as_sampler,
    denoise_loop,
    draw_with_ddim,
    inputs,
)


def smooth_loop(denoise, x, levels, *, share=0.3):
    """Walk from noise to a latent. Each step also uses the x0 of the step before.

    denoise: denoise(x, level) returns a guess. guess.x0 is the clean latent, guess.eps the noise
    x: b c h w, noise    levels: a list, the noisiest level first    returns: b c h w
    """
    x0 = None
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        x0 = guess.x0 if x0 is None else share * x0 + (1 - share) * guess.x0
        x = below.signal_rate * x0 + below.noise_rate * guess.eps
    return x


def without_memory(denoise, x, levels, *, share=0.3):
    return denoise_loop(denoise, x, levels)


def swapped_shares(denoise, x, levels, *, share=0.3):
    return smooth_loop(denoise, x, levels, share=1 - share)


def start_at_zero(denoise, x, levels, *, share=0.3):
    x0 = 0
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        x0 = share * x0 + (1 - share) * guess.x0
        x = below.signal_rate * x0 + below.noise_rate * guess.eps
    return x


def keep_the_raw_guess(denoise, x, levels, *, share=0.3):
    before = None
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        x0 = guess.x0 if before is None else share * before + (1 - share) * guess.x0
        x = below.signal_rate * x0 + below.noise_rate * guess.eps
        before = guess.x0
    return x


def mix_the_noise(denoise, x, levels, *, share=0.3):
    x0, eps = None, None
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        x0 = guess.x0 if x0 is None else share * x0 + (1 - share) * guess.x0
        eps = guess.eps if eps is None else share * eps + (1 - share) * guess.eps
        x = below.signal_rate * x0 + below.noise_rate * eps
    return x


def only_the_noise(denoise, x, levels, *, share=0.3):
    eps = None
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        eps = guess.eps if eps is None else share * eps + (1 - share) * guess.eps
        x = below.signal_rate * guess.x0 + below.noise_rate * eps
    return x


def mix_with_x(denoise, x, levels, *, share=0.3):
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        x0 = share * x + (1 - share) * guess.x0
        x = below.signal_rate * x0 + below.noise_rate * guess.eps
    return x


def mix_the_states(denoise, x, levels, *, share=0.3):
    first = True
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        new = below.signal_rate * guess.x0 + below.noise_rate * guess.eps
        x = new if first else share * x + (1 - share) * new
        first = False
    return x


def always_the_first(denoise, x, levels, *, share=0.3):
    first = None
    for level, below in pairwise(levels):
        guess = denoise(x, level)
        first = guess.x0 if first is None else first
        x0 = share * first + (1 - share) * guess.x0
        x = below.signal_rate * x0 + below.noise_rate * guess.eps
    return x


EXERCISE = Exercise(
    name="smooth_loop",
    lesson="00",
    place=3,
    title="A loop with a memory",
    question=(
        "Write `smooth_loop(denoise, x, levels)`: the loop of `denoise_loop`, but with a memory. "
        "In the first step, x0 is guess.x0. In every later step, x0 is {share} times the x0 of "
        "the step before plus (1 - {share}) times guess.x0. The x0 of the step before is the "
        "mixture that the step before used, not the guess of the step before. Each step uses x0 "
        "in place of guess.x0. eps has no memory: every step uses its own guess.eps."
    ),
    solution=smooth_loop,
    stages=(
        Stage("two steps, one number", 1, inputs([3.0, 1.0, 0.3], 1, 1, 1, 1)),
        Stage("two latents, four steps", 2, inputs([12.0, 4.0, 1.5, 0.6, 0.2], 2, 4, 3, 5)),
    ),
    hints=(
        "You need a variable that keeps its value from step to step. Set it to None before the "
        "loop.",
        "If it is None, take guess.x0. Otherwise mix it with guess.x0.",
        "x0 = guess.x0 if x0 is None else share * x0 + (1 - share) * guess.x0. The rest of the "
        "loop stays the same.",
    ),
    mistakes={
        "The x0 of the step before is not used. Mix it with guess.x0.": without_memory,
        "The two shares are swapped. Your number belongs to the x0 of the step before.": (
            swapped_shares
        ),
        "The first step must use guess.x0 itself. Your memory starts at 0.": start_at_zero,
        "Remember the x0 that you used, not guess.x0.": keep_the_raw_guess,
        "eps has no memory. Use guess.eps.": mix_the_noise,
        "You mixed eps. Mix x0, and use guess.eps.": only_the_noise,
        "You mixed guess.x0 with x, which is noisy. Mix it with the x0 of the step before.": (
            mix_with_x
        ),
        "You mixed the noisy x of two steps. Mix the two x0.": mix_the_states,
        "You always used the x0 of the first step. Use the x0 of the step before.": (
            always_the_first
        ),
    },
    passing=(
        "Such a memory makes the walk calmer. The sampler PLMS of lesson 03 uses one too, but to "
        "look ahead."
    ),
    difficulty=2,
    minutes=15,
    needs=("denoise_loop",),
    given="from itertools import pairwise",
    constants=lambda rng: {"share": rng.choice([0.15, 0.2, 0.25, 0.3, 0.35])},
    in_picture={"minisd.samplers.ddim": as_sampler},
    draw=draw_with_ddim,
    in_lesson=True,
)
