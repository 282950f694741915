"""The blend of inpainting: inside the mask what is drawn, outside it the given picture."""

from itertools import pairwise
from types import SimpleNamespace

import torch

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import redraw_hat


def blend_mask(x, z, noise, level, mask):
    """x inside the mask, the noisy picture outside it.

    x: b 4 h w, the state of the sampler, with the noise of this level
    z: b 4 h w, the latent of the picture    noise: b 4 h w, with variance 1
    level: the noise level. It has .signal_rate and .noise_rate
    mask: b 1 h w, from 0 (keep the picture) to 1 (keep x)
    returns: b 4 h w
    """
    noisy_picture = level.signal_rate * z + level.noise_rate * noise
    return mask * x + (1 - mask) * noisy_picture


def other_mask(x, z, noise, level, mask):
    return blend_mask(x, z, noise, level, 1 - mask)


def clean_picture(x, z, noise, level, mask):
    return mask * x + (1 - mask) * z


def full_signal(x, z, noise, level, mask):
    return mask * x + (1 - mask) * (z + level.noise_rate * noise)


def full_noise(x, z, noise, level, mask):
    return mask * x + (1 - mask) * (level.signal_rate * z + noise)


def sigma_noise(x, z, noise, level, mask):
    return mask * x + (1 - mask) * (z + level.noise_rate / level.signal_rate * noise)


def swap_rates(x, z, noise, level, mask):
    return blend_mask(x, noise, z, level, mask)


def noise_everywhere(x, z, noise, level, mask):
    return level.signal_rate * (mask * x + (1 - mask) * z) + level.noise_rate * noise


def noise_on_x(x, z, noise, level, mask):
    return mask * x + (1 - mask) * (level.signal_rate * x + level.noise_rate * noise)


def no_factor(x, z, noise, level, mask):
    return mask * x + level.signal_rate * z + level.noise_rate * noise


def factor_only_for_z(x, z, noise, level, mask):
    return mask * x + (1 - mask) * level.signal_rate * z + level.noise_rate * noise


def hard_mask(x, z, noise, level, mask):
    return torch.where(mask >= 0.5, x, level.signal_rate * z + level.noise_rate * noise)


def added_to_all(x, z, noise, level, mask):
    return x + (1 - mask) * (level.signal_rate * z + level.noise_rate * noise)


def inputs(shape, sigma, soft):
    def draw(g):
        mask = normal(g, shape[0], 1, *shape[2:])
        mask = mask.sigmoid() if soft else (mask > 0).double()
        level = Made("level", {"sigma": sigma, "t": 100 * sigma})
        return [normal(g, *shape), normal(g, *shape), normal(g, *shape), level, mask]

    return draw


def as_blend_steps(answer):
    """Inpainting with DDIM, with the answer after each step, instead of minisd's blend_steps()."""

    def blend_steps(sampler, denoise, start, keep):
        x = start.x
        for level, next_level in pairwise(start.levels):
            guess = denoise(x, level)
            x = next_level.signal_rate * guess.x0 + next_level.noise_rate * guess.eps
            noise = 0 * start.noise if next_level is start.levels[-1] else start.noise
            x = answer(x, start.z, noise, next_level, 1 - keep)
            yield SimpleNamespace(x=x)

    return blend_steps


EXERCISE = Exercise(
    name="blend_mask",
    lesson="12",
    place=2,
    title="The blend",
    question=(
        "Write `blend_mask(x, z, noise, level, mask)`. First add noise to the latent of the "
        "picture: z times the signal rate of the level, plus the noise times its noise rate. "
        "Where the mask is 1, return x. Where it is 0, return the noisy picture. A soft mask "
        "mixes both: mask * x + (1 - mask) * the noisy picture."
    ),
    solution=blend_mask,
    stages=(
        Stage("a hard mask", 1, inputs((1, 4, 3, 5), 1.5, soft=False)),
        Stage("a soft mask, a batch of 2", 1, inputs((2, 4, 5, 3), 0.7, soft=True)),
        Stage("hardly any noise", 1, inputs((1, 4, 2, 3), 0.03, soft=True)),
    ),
    hints=(
        "Two lines are enough: the noisy picture, and the mixture.",
        "noisy_picture = level.signal_rate * z + level.noise_rate * noise.",
        "mask * x + (1 - mask) * noisy_picture. The mask has one channel, and torch repeats it.",
    ),
    mistakes={
        "The mask is inverted: where it is 1, return x.": other_mask,
        "The picture is put back without noise. x has the noise of this level.": clean_picture,
        "z is not multiplied by the signal rate.": full_signal,
        "The noise is not multiplied by the noise rate.": full_noise,
        "This is z + sigma noise. Use the signal rate and the noise rate.": sigma_noise,
        "The two rates are swapped: the signal rate belongs to z.": swap_rates,
        "The noise is added to x, too. x is noisy already.": noise_everywhere,
        "The noise is added to x. Add it to z.": noise_on_x,
        "The noisy picture is added everywhere. Multiply it by 1 - mask.": no_factor,
        "Only z is multiplied by 1 - mask. The noise belongs to it.": factor_only_for_z,
        "The mask is rounded to 0 and 1. A soft mask mixes x and the picture.": hard_mask,
        "x is kept outside the mask, too. Multiply it by the mask.": added_to_all,
    },
    passing="Called after every step, this line turns any model into an inpainting model.",
    difficulty=1,
    minutes=8,
    in_picture={"minisd.tasks.inpaint.blend_steps": as_blend_steps},
    draw=redraw_hat,
    in_lesson=True,
)
