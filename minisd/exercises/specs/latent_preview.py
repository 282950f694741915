"""A preview of a latent without the decoder, with the student's own order of axes."""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def latent_preview(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    """A coarse picture of each latent.

    latent: b 4 h w    matrix: 5 3    returns: numbers from 0 to 255, in your order of axes
    """
    colors = einsum(latent, matrix[:4], "b c h w, c rgb -> b rgb h w")
    colors = colors + matrix[4][:, None, None]
    colors = colors[:, ["RGB".index(letter) for letter in order]]
    large = colors.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    levels = ((large + 1) * 127.5).clamp(0, 255)
    return rearrange(levels, f"b c h w -> {axes}")


def without_last_row(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    matrix = torch.cat([matrix[:4], 0 * matrix[4:]])
    return latent_preview(latent, matrix, axes=axes, order=order, times=times)


def row_without_axes(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    return einsum(latent, matrix[:4], "b c h w, c rgb -> b rgb h w") + matrix[4]


def usual_axes(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    return latent_preview(latent, matrix, axes="b c h w", order=order, times=times)


def height_and_width_swapped(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    names = {"h": "w", "w": "h"}
    axes = " ".join(names.get(name, name) for name in axes.split())
    return latent_preview(latent, matrix, axes=axes, order=order, times=times)


def wrong_shape(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    levels = latent_preview(latent, matrix, axes="b c h w", order=order, times=times)
    sizes = dict(zip("bchw", levels.shape, strict=True))
    return levels.reshape([sizes[name] for name in axes.split()])


def red_green_blue(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    return latent_preview(latent, matrix, axes=axes, order="RGB", times=times)


def tiles(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    latent = latent.repeat(1, 1, times, times)
    return latent_preview(latent, matrix, axes=axes, order=order, times=1)


def not_larger(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    return latent_preview(latent, matrix, axes=axes, order=order, times=1)


def mix_pixels(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    latent = F.interpolate(latent, scale_factor=times, mode="bilinear")
    return latent_preview(latent, matrix, axes=axes, order=order, times=1)


def without_clamp(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    colors = torch.cat([latent, torch.ones_like(latent[:, :1])], dim=1)
    colors = einsum(colors, matrix, "b c h w, c rgb -> b rgb h w")
    colors = colors[:, ["RGB".index(letter) for letter in order]]
    colors = colors.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    return rearrange((colors + 1) * 127.5, f"b c h w -> {axes}")


def from_0_to_1(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    return latent_preview(latent, matrix, axes=axes, order=order, times=times) / 255


def times_255(latent, matrix, *, axes="h w b c", order="BGR", times=3):
    matrix = 2 * matrix
    matrix[4] = matrix[4] - 1
    return latent_preview(latent, matrix, axes=axes, order=order, times=times)


def as_decode(answer):
    """StableDiffusion.decode with the answer. Its matrix is the best one for this latent."""

    def decode(self, latent):
        image = self.vae.decode(latent / self.vae.config.scale)
        colors = rearrange(F.avg_pool2d(image, self.vae.config.factor), "b c h w -> (b h w) c")
        places = rearrange(latent, "b c h w -> (b h w) c")
        places = torch.cat([places, torch.ones(len(places), 1)], dim=1)
        matrix = torch.linalg.lstsq(places, colors).solution
        previews = [as_image(answer(one, matrix)) for one in latent.split(1)]
        return torch.cat(previews) / 127.5 - 1

    return decode


def as_image(preview):
    """One preview as 1 3 h w, whatever the order of its axes."""
    preview = preview.squeeze()
    return preview.movedim(list(preview.shape).index(3), 0)[None]


def draw_inputs(b, h, w):
    return lambda g: [normal(g, b, 4, h, w), 0.4 * normal(g, 5, 3)]


EXERCISE = Exercise(
    name="latent_preview",
    lesson="04",
    place=13,
    title="A preview without the decoder",
    question=(
        "User interfaces show a preview of the latent at each step. Write "
        "`latent_preview(latent, matrix)`. At each place, the four numbers of the latent times "
        "the first four rows of the matrix, plus the last row, give red, green and blue from -1 "
        "to 1. The program that shows the preview expects the following. The colours are in the "
        "order {order}. Each place becomes a block of {times} x {times} equal pixels. -1 becomes "
        "0 and 1 becomes 255; the numbers are not rounded, but clamped to the range from 0 to "
        "255. The axes are in the order `{axes}`."
    ),
    solution=latent_preview,
    stages=(
        Stage("one place", 1, draw_inputs(1, 1, 1)),
        Stage("one latent", 1, draw_inputs(1, 2, 5)),
        Stage("two latents", 1, draw_inputs(2, 4, 3)),
    ),
    hints=(
        'einsum(latent, matrix[:4], "b c h w, c rgb -> b rgb h w") is the product at each place. '
        "matrix[4] still has to be added.",
        "The colours are the axis 1: index it with a list, such as colors[:, [2, 0, 1]]. "
        "repeat_interleave(n, dim=2) repeats each row n times.",
        "Then ((colors + 1) * 127.5).clamp(0, 255), and one rearrange from b c h w to your order.",
    ),
    mistakes={
        "The last row of the matrix is not added.": without_last_row,
        "The last row met the width. Give it two new axes: matrix[4][:, None, None].": (
            row_without_axes
        ),
        "The axes are in the order b c h w. Use the order of your question.": usual_axes,
        "Height and width are swapped.": height_and_width_swapped,
        "The shape is right, but numbers are in the wrong places. Use rearrange, not reshape.": (
            wrong_shape
        ),
        "The colours are in the order RGB. Use the order of your question.": red_green_blue,
        "The whole picture is repeated. Each place should become a block.": tiles,
        "The preview is not enlarged. Each place should become a block of pixels.": not_larger,
        "You mixed the pixels of neighbouring places. All pixels of a block are equal.": mix_pixels,
        "The numbers are not clamped to the range from 0 to 255.": without_clamp,
        "The numbers go from 0 to 1. They should go from 0 to 255.": from_0_to_1,
        "-1 should become 0 and 1 should become 255: add 1, then multiply by 127.5.": times_255,
    },
    passing="The picture shows how much of a latent is plain colour. The rest needs the decoder.",
    difficulty=2,
    minutes=20,
    constants=lambda rng: {
        "axes": rng.choice(["b h w c", "h w b c", "h b w c", "c h w b"]),
        "order": rng.choice(["BGR", "GRB", "BRG", "GBR"]),
        "times": rng.choice([2, 3, 4]),
    },
    in_picture={"minisd.pipeline.StableDiffusion.decode": as_decode},
    draw=draw_cat,
    in_lesson=True,
)
