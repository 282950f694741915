"""FreeU: weigh the skip connections and the decoder's own channels. With student's constants."""

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def free_u(x, skip, *, gain=1.2, damping=0.6):
    """Join x with a skip, after x has become stronger and the mean of the skip weaker.

    x: b c h w    skip: b c_skip h w    returns: b c+c_skip h w
    """
    half = x.shape[1] // 2
    x = torch.cat([x[:, :half] * gain, x[:, half:]], dim=1)
    mean = skip.mean(dim=(2, 3), keepdim=True)
    skip = skip - mean + damping * mean
    return torch.cat([x, skip], dim=1)


def all_channels(x, skip, *, gain=1.2, damping=0.6):
    return torch.cat([x * gain, free_u(x, skip, damping=damping)[:, x.shape[1] :]], dim=1)


def other_half(x, skip, *, gain=1.2, damping=0.6):
    x = x.roll(x.shape[1] // 2, dims=1)
    joined = free_u(x, skip, gain=gain, damping=damping)
    backbone = joined[:, : x.shape[1]].roll(x.shape[1] // 2, dims=1)
    return torch.cat([backbone, joined[:, x.shape[1] :]], dim=1)


def whole_skip(x, skip, *, gain=1.2, damping=0.6):
    joined = free_u(x, skip, gain=gain, damping=1)
    return torch.cat([joined[:, : x.shape[1]], damping * skip], dim=1)


def damps_the_details(x, skip, *, gain=1.2, damping=0.6):
    joined = free_u(x, skip, gain=gain, damping=1)
    mean = skip.mean(dim=(2, 3), keepdim=True)
    return torch.cat([joined[:, : x.shape[1]], mean + damping * (skip - mean)], dim=1)


def mean_is_lost(x, skip, *, gain=1.2, damping=0.6):
    return free_u(x, skip, gain=gain, damping=0)


def mean_of_everything(x, skip, *, gain=1.2, damping=0.6):
    joined = free_u(x, skip, gain=gain, damping=1)
    skip = skip + (damping - 1) * skip.mean()
    return torch.cat([joined[:, : x.shape[1]], skip], dim=1)


def mean_over_channels(x, skip, *, gain=1.2, damping=0.6):
    joined = free_u(x, skip, gain=gain, damping=1)
    skip = skip + (damping - 1) * skip.mean(dim=1, keepdim=True)
    return torch.cat([joined[:, : x.shape[1]], skip], dim=1)


def swapped_numbers(x, skip, *, gain=1.2, damping=0.6):
    return free_u(x, skip, gain=damping, damping=gain)


def without_weights(x, skip, *, gain=1.2, damping=0.6):
    return torch.cat([x, skip], dim=1)


def skip_before_x(x, skip, *, gain=1.2, damping=0.6):
    joined = free_u(x, skip, gain=gain, damping=damping)
    return joined.roll(skip.shape[1], dims=1)


def as_up_forward(answer):
    """Up.forward with the answer in it."""

    def forward(self, x, skips, time, context):
        for i, res in enumerate(self.res):
            x = res(answer(x, skips.pop()), time)
            x = self.attn[i](x, context) if self.attn else x
        return x if self.upsample is None else self.upsample(x, skips)

    return forward


def draw_inputs(b, c, c_skip, h, w):
    return lambda g: [normal(g, b, c, h, w), normal(g, b, c_skip, h, w) + 1]


EXERCISE = Exercise(
    name="free_u",
    lesson="08",
    place=13,
    title="FreeU: weaker skips, stronger features",
    question=(
        "FreeU (Si et al. 2023) changes the pictures of a trained U-Net. Where a block reads a "
        "skip, FreeU makes x stronger, and it makes the coarse part of the skip weaker. Write "
        "`free_u(x, skip)`, a simple version. Multiply the first half of the channels of x by "
        "{gain} and keep the others. Split each channel of the skip into its mean over all "
        "places and the rest. Multiply only the mean by {damping} and add the rest again. Then "
        "join both along the channels, x first."
    ),
    solution=free_u,
    stages=(
        Stage("x has 2 channels, the skip has 1", 1, draw_inputs(1, 2, 1, 2, 3)),
        Stage("a batch of 2", 2, draw_inputs(2, 6, 4, 5, 3)),
    ),
    hints=(
        "x[:, :half] are the first channels, x[:, half:] are the others. Do not write into x: "
        "torch.cat makes a new tensor.",
        "The mean over all places has one number for each sample and channel: "
        "skip.mean(dim=(2, 3), keepdim=True).",
        "mean + rest is the skip, where rest = skip - mean. The new skip is your number * mean + "
        "rest.",
    ),
    mistakes={
        "You multiplied all channels of x. Multiply only the first half.": all_channels,
        "You multiplied the second half of x. Multiply the first half.": other_half,
        "You multiplied the whole skip. Multiply only its mean.": whole_skip,
        "You multiplied the rest of the skip. Multiply its mean.": damps_the_details,
        "The mean is lost: only the rest of the skip is left.": mean_is_lost,
        "The mean is over the whole tensor. Take one for each sample and channel.": (
            mean_of_everything
        ),
        "The mean is over the channels. It should be over all places, the last two axes.": (
            mean_over_channels
        ),
        "Your two numbers are swapped. The question says which belongs to x.": swapped_numbers,
        "Nothing is multiplied. Use your two numbers.": without_weights,
        "The skip comes before x. It should come after x.": skip_before_x,
    },
    passing="Compare both pictures: the network is the same, only the weights of the skips differ.",
    difficulty=2,
    minutes=15,
    needs=("read_skip",),
    constants=lambda rng: {
        "gain": rng.choice([1.1, 1.2, 1.3]),
        "damping": rng.choice([0.3, 0.5, 0.7]),
    },
    in_picture={"minisd.unet.Up.forward": as_up_forward},
    draw=draw_cat,
    in_lesson=True,
)
