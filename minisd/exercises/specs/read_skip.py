"""Warm-up for the decoder: take a skip connection from the list, and join it."""

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def read_skip(x, skips):
    """Join x with the last skip.

    x: b c h w    skips: a list of tensors. The last one is b c_skip h w
    returns: b c+c_skip h w, and the list of the skips that are left
    """
    return torch.cat([x, skips[-1]], dim=1), skips[:-1]


def first_skip(x, skips):
    return torch.cat([x, skips[0]], dim=1), skips[1:]


def skip_before_x(x, skips):
    return torch.cat([skips[-1], x], dim=1), skips[:-1]


def keeps_skip(x, skips):
    return torch.cat([x, skips[-1]], dim=1), skips


def adds_skip(x, skips):
    return x + skips[-1], skips[:-1]


def along_the_width(x, skips):
    return torch.cat([x, skips[-1]], dim=3), skips[:-1]


def along_the_batch(x, skips):
    return torch.cat([x, skips[-1]], dim=0), skips[:-1]


def as_up_forward(answer):
    """Up.forward with the answer in it."""

    def forward(self, x, skips, time, context):
        for i, res in enumerate(self.res):
            x, skips[:] = answer(x, list(skips))
            x = res(x, time)
            x = self.attn[i](x, context) if self.attn else x
        return x if self.upsample is None else self.upsample(x, skips)

    return forward


def draw_inputs(b, h, w, channels, skip_channels):
    def draw(g):
        return [normal(g, b, channels, h, w), [normal(g, b, c, h, w) for c in skip_channels]]

    return draw


EXERCISE = Exercise(
    name="read_skip",
    lesson="08",
    place=7,
    title="Join a skip connection",
    question=(
        "The U-Net's way down appends each of its results to the list `skips`. The way up reads "
        "the last one first. Write `read_skip(x, skips)`: put the channels of the last skip after "
        "the channels of x. Return two things: the joined tensor, and the list without this skip."
    ),
    solution=read_skip,
    stages=(
        Stage("two skips", 1, draw_inputs(1, 2, 3, 2, [2, 2])),
        Stage("three skips, batch 2", 1, draw_inputs(2, 5, 3, 4, [3, 5, 6])),
    ),
    hints=(
        "The last entry of a list is skips[-1]. The others are skips[:-1].",
        "torch.cat joins tensors along one axis. Channels are the axis 1 of b c h w.",
        "torch.cat([x, skips[-1]], dim=1) is the joined tensor. Return it with skips[:-1].",
    ),
    mistakes={
        "The first skip is used. The decoder needs the last one.": first_skip,
        "The skip's channels come before x. They should come after x.": skip_before_x,
        "The skip stays in the list, so the next block would read it again.": keeps_skip,
        "You added the skip to x. Append its channels to those of x.": adds_skip,
        "The tensors are joined along the width. Channels are the axis 1.": along_the_width,
        "The tensors are joined along the batch. Channels are the axis 1.": along_the_batch,
    },
    passing="Each residual block of the decoder begins like this.",
    difficulty=1,
    minutes=5,
    in_picture={"minisd.unet.Up.forward": as_up_forward},
    draw=draw_cat,
    in_lesson=True,
)
