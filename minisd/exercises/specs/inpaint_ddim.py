"""Inpainting with any model: DDIM, and after each step the picture is put back."""

from itertools import pairwise
from types import SimpleNamespace

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import redraw_hat


def inpaint_ddim(denoise, z, noise, levels, mask):
    """Draw again what the mask covers. Yields x after each step.

    denoise: a function. denoise(x, level) returns an object with .x0 and .eps, each b 4 h w
    z: b 4 h w, the latent of the picture    noise: b 4 h w, with variance 1
    levels: a list. Each level has .signal_rate and .noise_rate
    mask: b 1 h w, from 0 (keep the picture) to 1 (draw again)
    """
    x = noise
    last = levels[-1]
    for level, next_level in pairwise(levels):
        guess = denoise(x, level)
        drawn = next_level.signal_rate * guess.x0 + next_level.noise_rate * guess.eps
        kept = next_level.signal_rate * z + next_level.noise_rate * noise
        if next_level is last:
            kept = z
        x = mask * drawn + (1 - mask) * kept
        yield x


def inpaint_with(denoise, z, noise, levels, mask, keep, x=None):
    """The loop, with another rule for the part that is kept."""
    x = noise if x is None else x
    for level, next_level in pairwise(levels):
        guess = denoise(x, level)
        drawn = next_level.signal_rate * guess.x0 + next_level.noise_rate * guess.eps
        kept = z if next_level is levels[-1] else keep(level, next_level, guess)
        x = mask * drawn + (1 - mask) * kept
        yield x


def other_mask(denoise, z, noise, levels, mask):
    return inpaint_ddim(denoise, z, noise, levels, 1 - mask)


def clean_picture(denoise, z, noise, levels, mask):
    return inpaint_with(denoise, z, noise, levels, mask, lambda *_: z)


def level_before(denoise, z, noise, levels, mask):
    def keep(level, next_level, guess):
        return level.signal_rate * z + level.noise_rate * noise

    return inpaint_with(denoise, z, noise, levels, mask, keep)


def predicted_noise(denoise, z, noise, levels, mask):
    def keep(level, next_level, guess):
        return next_level.signal_rate * z + next_level.noise_rate * guess.eps

    return inpaint_with(denoise, z, noise, levels, mask, keep)


def sigma_noise(denoise, z, noise, levels, mask):
    def keep(level, next_level, guess):
        return z + next_level.noise_rate / next_level.signal_rate * noise

    return inpaint_with(denoise, z, noise, levels, mask, keep)


def noisy_end(denoise, z, noise, levels, mask):
    x = noise
    for level, next_level in pairwise(levels):
        guess = denoise(x, level)
        drawn = next_level.signal_rate * guess.x0 + next_level.noise_rate * guess.eps
        kept = next_level.signal_rate * z + next_level.noise_rate * noise
        x = mask * drawn + (1 - mask) * kept
        yield x


def never_put_back(denoise, z, noise, levels, mask):
    x = noise
    for level, next_level in pairwise(levels):
        guess = denoise(x, level)
        x = next_level.signal_rate * guess.x0 + next_level.noise_rate * guess.eps
        yield mask * x + (1 - mask) * z if next_level is levels[-1] else x


def noisy_picture(denoise, z, noise, levels, mask):
    first = levels[0]
    x = first.signal_rate * z + first.noise_rate * noise

    def keep(level, next_level, guess):
        return next_level.signal_rate * z + next_level.noise_rate * noise

    return inpaint_with(denoise, z, noise, levels, mask, keep, x)


def level_after(denoise, z, noise, levels, mask):
    x = noise
    for _, next_level in pairwise(levels):
        guess = denoise(x, next_level)
        drawn = next_level.signal_rate * guess.x0 + next_level.noise_rate * guess.eps
        kept = next_level.signal_rate * z + next_level.noise_rate * noise
        x = mask * drawn + (1 - mask) * (z if next_level is levels[-1] else kept)
        yield x


def only_the_end(denoise, z, noise, levels, mask):
    return list(inpaint_ddim(denoise, z, noise, levels, mask))[-1]


def inputs(shape, sigmas, soft):
    def draw(g):
        levels = [Made("level", {"sigma": sigma, "t": 100 * sigma}) for sigma in sigmas]
        mask = normal(g, shape[0], 1, *shape[2:])
        mask = mask.sigmoid() if soft else (mask > 0).double()
        denoise = Made("denoise", {"gain": 0.7})
        return [denoise, normal(g, *shape), normal(g, *shape), levels, mask]

    return draw


def as_blend_steps(answer):
    """The answer instead of minisd's blend_steps(), which takes the part to keep."""

    def blend_steps(sampler, denoise, start, keep):
        for x in answer(denoise, start.z, start.noise, start.levels, 1 - keep):
            yield SimpleNamespace(x=x)

    return blend_steps


EXERCISE = Exercise(
    name="inpaint_ddim",
    lesson="12",
    place=3,
    title="Inpainting with any model",
    question=(
        "Write `inpaint_ddim(denoise, z, noise, levels, mask)`. Start from x = noise. In each "
        "step from a level to the next level, do three things. Call denoise(x, level). Compute "
        "DDIM's new x: the guess x0 times the signal rate of the next level, plus the guess eps "
        "times its noise rate. Then put the picture back where the mask is 0: z with the given "
        "noise, with the same two rates. After the last step, put back z itself, without noise. "
        "A soft mask blends both: x = mask * drawn + (1 - mask) * kept, where drawn is the new x "
        "of DDIM and kept is the picture that is put back. Yield x after each step."
    ),
    solution=inpaint_ddim,
    stages=(
        Stage("one step", 1, inputs((1, 4, 2, 3), [3.0, 0.2], soft=False)),
        Stage("two steps", 2, inputs((1, 4, 3, 5), [4.0, 1.0, 0.1], soft=False)),
        Stage("a soft mask, a batch of 2", 2, inputs((2, 4, 5, 3), [9, 4, 1, 0.4, 0.1], soft=True)),
    ),
    hints=(
        "pairwise(levels) gives each level with the next one. How do you know which step is the "
        "last?",
        "drawn = signal_rate * x0 + noise_rate * eps and kept = signal_rate * z + noise_rate * "
        "noise, both with the rates of the next level. Then x = mask * drawn + (1 - mask) * kept.",
        "In the last step, kept = z. After the blend, `yield x`. The next step starts from this x.",
    ),
    mistakes={
        "The mask is inverted: where it is 1, the picture is drawn again.": other_mask,
        "You put back the picture without noise. Give it the noise of the next level.": (
            clean_picture
        ),
        "You put back the picture with the noise of the level before the step.": level_before,
        "You put back the picture with the predicted noise. Use the given noise.": predicted_noise,
        "The kept part is z + sigma noise. Use the signal rate and the noise rate.": sigma_noise,
        "After the last step, the kept part should be z without any noise.": noisy_end,
        "The picture is put back only at the end. Put it back after every step.": never_put_back,
        "You start from the noisy picture. Start from pure noise.": noisy_picture,
        "denoise() gets the next level. x has the noise of the level before the step.": level_after,
        "Only the last x is returned. Yield x after each step.": only_the_end,
    },
    passing="Any model can inpaint in this way, without any training for it.",
    difficulty=3,
    minutes=25,
    given="from itertools import pairwise",
    in_picture={"minisd.tasks.inpaint.blend_steps": as_blend_steps},
    draw=redraw_hat,
    in_lesson=True,
)
