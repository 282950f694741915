"""A mask in the size of the latent."""

import torch.nn.functional as F

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import redraw_hat


def latent_mask(mask, z):
    """The mask in the size of the latent, once for each sample.

    mask: 1 1 h w, from 0 to 1    z: b c h' w', where h / h' = w / w' is a whole number
    returns: b 1 h' w'
    """
    step = mask.shape[2] // z.shape[2]
    small = mask[:, :, ::step, ::step]
    return small.repeat(len(z), 1, 1, 1)


def mean_pixel(mask, z):
    return F.interpolate(mask, z.shape[2:], mode="area").repeat(len(z), 1, 1, 1)


def largest_pixel(mask, z):
    return F.adaptive_max_pool2d(mask, z.shape[2:]).repeat(len(z), 1, 1, 1)


def middle_pixel(mask, z):
    step = mask.shape[2] // z.shape[2]
    half = step // 2
    return mask[:, :, half::step, half::step].repeat(len(z), 1, 1, 1)


def last_pixel(mask, z):
    step = mask.shape[2] // z.shape[2]
    return mask[:, :, step - 1 :: step, step - 1 :: step].repeat(len(z), 1, 1, 1)


def bilinear(mask, z):
    return F.interpolate(mask, z.shape[2:], mode="bilinear").repeat(len(z), 1, 1, 1)


def one_sample(mask, z):
    return latent_mask(mask, z[:1])


def eighth(mask, z):
    return mask[:, :, ::8, ::8].repeat(len(z), 1, 1, 1)


def all_channels(mask, z):
    return latent_mask(mask, z).repeat(1, z.shape[1], 1, 1)


def hard(mask, z):
    return (latent_mask(mask, z) >= 0.5).double()


def swap_sides(mask, z):
    return F.interpolate(mask, z.shape[2:][::-1]).repeat(len(z), 1, 1, 1)


def inputs(shape, step):
    def draw(g):
        sides = (step * side for side in shape[2:])
        return [normal(g, 1, 1, *sides).sigmoid(), normal(g, *shape)]

    return draw


EXERCISE = Exercise(
    name="latent_mask",
    lesson="12",
    place=1,
    title="The mask in latent space",
    question=(
        "Write `latent_mask(mask, z)`. One place of the latent z stands for a square of pixels. "
        "In Stable Diffusion, the square has 8 x 8 pixels. The pixel in the upper left corner of "
        "the square decides the mask at this place, and the other pixels do not count (nearest "
        "neighbour). The sizes of the mask and of z say how large the squares are. Return the "
        "small mask once for each sample of z, with one channel."
    ),
    solution=latent_mask,
    stages=(
        Stage("one square of 8 x 8 pixels", 1, inputs((1, 4, 1, 1), 8)),
        Stage("3 x 5 squares", 2, inputs((1, 4, 3, 5), 8)),
        Stage("a batch of 3, squares of 4 x 4 pixels", 2, inputs((3, 4, 5, 3), 4)),
    ),
    hints=(
        "The side of a square is h / h' pixels.",
        "x[::8] takes every eighth row, the first one included. Do the same with the columns.",
        "small = mask[:, :, ::step, ::step], and then one copy for each of the len(z) samples.",
    ),
    mistakes={
        "You average the pixels of a square. Only its upper left pixel counts.": mean_pixel,
        "You take the largest pixel of a square. Only its upper left pixel counts.": largest_pixel,
        "You take the pixel in the middle of each square, not the upper left one.": middle_pixel,
        "You take the lower right pixel of each square, not the upper left one.": last_pixel,
        "Bilinear interpolation mixes several pixels. Use the nearest one.": bilinear,
        "The mask is not repeated for every sample of z.": one_sample,
        "The squares are not always 8 x 8 pixels. Divide h of the mask by h' of z.": eighth,
        "Return a mask with one channel, not one for each channel of z.": all_channels,
        "The mask is rounded to 0 and 1. A soft mask stays soft.": hard,
        "Height and width are swapped.": swap_sides,
    },
    passing="A thin line can fall between the pixels that count. So make your masks wide.",
    difficulty=1,
    minutes=10,
    in_picture={"minisd.tasks.inpaint.latent_mask": lambda answer: answer},
    draw=redraw_hat,
)
