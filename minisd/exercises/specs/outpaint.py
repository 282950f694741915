"""Outpainting: a wider canvas, and a mask with a soft edge. The margins are the student's own."""

import torch
import torch.nn.functional as F

import minisd
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import SANTA, draw_santa
from minisd.files.pictures import from_pil
from minisd.tasks.inpaint import inpaint


def widen_canvas(image, *, left=8, right=24, overlap=3):
    """A wider canvas around pictures, and the mask of what is to be drawn.

    image: b 3 h w in [-1, 1]
    returns: two tensors. The canvas, b 3 h w', and the mask, 1 1 h w'
    """
    height, width = image.shape[2:]
    canvas = F.pad(image, (left, right, 0, 0))
    column = torch.arange(left + width + right, dtype=image.dtype) - left
    from_edge = torch.minimum(column + 1, width - column)  # 1 at both outer columns of the picture
    ramp = (1 - from_edge / (overlap + 1)).clamp(0, 1)
    return canvas, ramp.repeat(1, 1, height, 1)


def swap_sides(image, *, left=8, right=24, overlap=3):
    return widen_canvas(image, left=right, right=left, overlap=overlap)


def black_margin(image, *, left=8, right=24, overlap=3):
    _, mask = widen_canvas(image, left=left, right=right, overlap=overlap)
    return F.pad(image, (left, right, 0, 0), value=-1), mask


def repeat_border(image, *, left=8, right=24, overlap=3):
    _, mask = widen_canvas(image, left=left, right=right, overlap=overlap)
    return F.pad(image, (left, right, 0, 0), mode="replicate"), mask


def other_mask(image, *, left=8, right=24, overlap=3):
    canvas, mask = widen_canvas(image, left=left, right=right, overlap=overlap)
    return canvas, 1 - mask


def hard_edge(image, *, left=8, right=24, overlap=3):
    return widen_canvas(image, left=left, right=right, overlap=0)


def full_overlap(image, *, left=8, right=24, overlap=3):
    canvas, mask = widen_canvas(image, left=left, right=right, overlap=overlap)
    return canvas, (mask > 0).to(image)


def ramp_to_zero(image, *, left=8, right=24, overlap=3):
    return widen_canvas(image, left=left, right=right, overlap=overlap - 1)


def ramp_from_one(image, *, left=8, right=24, overlap=3):
    canvas, _ = widen_canvas(image, left=left, right=right, overlap=overlap)
    width = image.shape[3]
    column = torch.arange(left + width + right, dtype=image.dtype) - left
    from_edge = torch.minimum(column, width - 1 - column)
    ramp = (1 - from_edge / overlap).clamp(0, 1)
    return canvas, ramp.repeat(1, 1, image.shape[2], 1)


def ramp_upwards(image, *, left=8, right=24, overlap=3):
    canvas, mask = widen_canvas(image, left=left, right=right, overlap=overlap)
    inside = (mask > 0) & (mask < 1)
    return canvas, torch.where(inside, 1 - mask, mask)


def ramp_outside(image, *, left=8, right=24, overlap=3):
    canvas, _ = widen_canvas(image, left=left, right=right, overlap=overlap)
    column = torch.arange(canvas.shape[3], dtype=image.dtype) - left
    beyond = torch.maximum(-column, column - image.shape[3] + 1)
    return canvas, (beyond / (overlap + 1)).clamp(0, 1).repeat(1, 1, image.shape[2], 1)


def top_and_bottom(image, *, left=8, right=24, overlap=3):
    canvas, mask = widen_canvas(image.mT, left=left, right=right, overlap=overlap)
    return canvas.mT, mask.mT


def canvas_to_draw(image):
    """What the picture calls. check() puts the answer here."""
    return widen_canvas(image)


def draw_wider(sd):
    """A santa on a wider canvas, whose margins the inpainting mini draws."""
    canvas, mask = canvas_to_draw(from_pil(draw_santa()))
    return inpaint(minisd.load("mini-inpaint"), SANTA, canvas, mask, steps=8, seed=1, paste=True)


EXERCISE = Exercise(
    name="outpaint",
    lesson="12",
    place=5,
    title="A wider canvas",
    question=(
        "Outpainting draws what lies beyond the border of a picture. Write "
        "`widen_canvas(image)`. The canvas has {left} more columns to the left of the picture "
        "and {right} more to the right. They are grey (0). The mask is 1 in these new columns. "
        "To hide the seam, the mask falls in even steps inside the picture: {overlap} columns at "
        "each side belong to this soft edge. Column k from the border (k = 1 is the outermost "
        "column of the picture) has the mask 1 - k / ({overlap} + 1). Elsewhere, the mask is 0."
    ),
    solution=widen_canvas,
    stages=(
        Stage("one picture, the canvas and the mask", 2, lambda g: [normal(g, 1, 3, 4, 15).tanh()]),
        Stage("a batch of 2", 2, lambda g: [normal(g, 2, 3, 5, 17).tanh()]),
    ),
    hints=(
        "F.pad(image, (left, right, top, bottom)) adds columns and rows of zeros.",
        "Build one row of the mask first: ones, the ramp downwards, zeros, the ramp upwards, ones.",
        "Number the columns so that 0 is the first column of the picture. Then "
        "torch.minimum(column + 1, width - column) is k, and (1 - k / (overlap + 1)).clamp(0, 1) "
        "is the row.",
    ),
    mistakes={
        "The left and the right margin are swapped.": swap_sides,
        "The margins are black (-1). Grey is 0.": black_margin,
        "The margins repeat the border of the picture. They should be grey (0).": repeat_border,
        "The mask is inverted: it should be 1 in the new columns.": other_mask,
        "The soft edge is missing.": hard_edge,
        "The mask is 1 in the whole soft edge. It should fall in even steps.": full_overlap,
        "The mask reaches 0 one column too early. Divide by the overlap plus 1.": ramp_to_zero,
        "The outermost column of the picture is number 1, so its mask is below 1.": ramp_from_one,
        "The soft edge rises towards the middle of the picture. It should fall.": ramp_upwards,
        "The soft edge lies in the new columns. It should lie inside the picture.": ramp_outside,
        "You added rows at the top and the bottom. Add columns to the left and the right.": (
            top_and_bottom
        ),
    },
    passing="Inpainting now draws the margins, and the soft edge hides the seam.",
    difficulty=3,
    minutes=20,
    constants=lambda rng: {
        "left": (left := rng.choice([8, 24])),
        "right": 32 - left,
        "overlap": rng.choice([2, 3, 4, 5]),
    },
    in_picture={"minisd.exercises.specs.outpaint.canvas_to_draw": lambda answer: answer},
    draw=draw_wider,
    in_lesson=True,
)
