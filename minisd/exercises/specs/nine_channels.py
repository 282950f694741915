"""What a U-Net reads that was trained for inpainting."""

import torch

import minisd
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import redraw_hat


def nine_channels(x, mask, hole):
    """The nine channels that an inpainting U-Net reads.

    x: (half b) 4 h w, the noisy latents: b samples, or twice b samples for guidance
    mask: b 1 h w    hole: b 4 h w, the latent of the picture with a hole
    returns: (half b) 9 h w
    """
    extra = torch.cat([mask, hole], dim=1)
    halves = [extra] * (len(x) // len(extra))
    return torch.cat([x, torch.cat(halves)], dim=1)


def mask_last(x, mask, hole):
    return nine_channels(x, mask, hole)[:, [0, 1, 2, 3, 5, 6, 7, 8, 4]]


def mask_first(x, mask, hole):
    return nine_channels(x, mask, hole)[:, [4, 0, 1, 2, 3, 5, 6, 7, 8]]


def latent_last(x, mask, hole):
    return nine_channels(x, mask, hole)[:, [4, 5, 6, 7, 8, 0, 1, 2, 3]]


def hole_first(x, mask, hole):
    return nine_channels(x, mask, hole)[:, [5, 6, 7, 8, 4, 0, 1, 2, 3]]


def each_twice(x, mask, hole):
    times = len(x) // len(mask)
    extra = torch.cat([mask, hole], dim=1).repeat_interleave(times, dim=0)
    return torch.cat([x, extra], dim=1)


def first_sample(x, mask, hole):
    extra = torch.cat([mask, hole], dim=1)[:1]
    return torch.cat([x, extra.repeat(len(x), 1, 1, 1)], dim=1)


def second_half(x, mask, hole):
    extra = torch.cat([mask, hole], dim=1)
    halves = [0 * extra] * (len(x) // len(extra) - 1)
    return torch.cat([x, torch.cat([*halves, extra])], dim=1)


def other_mask(x, mask, hole):
    return nine_channels(x, 1 - mask, hole)


def inputs(b, half, h, w):
    def draw(g):
        mask = (normal(g, b, 1, h, w) > 0).double()
        return [normal(g, half * b, 4, h, w), mask, normal(g, b, 4, h, w)]

    return draw


def as_wrapper(answer):
    """The answer inside minisd's with_extra_channels(), whose extra channels are mask and hole."""

    def with_extra_channels(network, extra):
        def read_more(x, t, context):
            mask, hole = extra.to(x).split([1, 4], dim=1)
            return network(answer(x, mask, hole), t, context)

        return read_more

    return with_extra_channels


EXERCISE = Exercise(
    name="nine_channels",
    lesson="12",
    place=4,
    title="Nine channels",
    question=(
        "A U-Net that was trained for inpainting reads nine channels: the four of the noisy latent "
        "x, the mask, and then the four of the picture with a hole. Write "
        "`nine_channels(x, mask, hole)`. With guidance, x is twice as long as mask and hole: all "
        "samples without the prompt come first, and then the same samples with the prompt. Both "
        "halves read the same mask and the same picture."
    ),
    solution=nine_channels,
    stages=(
        Stage("one sample without guidance", 1, inputs(1, 1, 3, 5)),
        Stage("two samples without guidance", 1, inputs(2, 1, 3, 5)),
        Stage("three samples with guidance", 2, inputs(3, 2, 5, 4)),
    ),
    hints=(
        "torch.cat(..., dim=1) joins channels, and dim=0 joins samples.",
        "Join mask and hole to five channels first. Then bring them to the length of x.",
        "extra.repeat(len(x) // len(extra), 1, 1, 1) repeats the samples in the order 0, 1, 0, 1. "
        "repeat_interleave would give 0, 0, 1, 1.",
    ),
    mistakes={
        "The mask should be channel 4, before the picture with the hole.": mask_last,
        "The noisy latent should come first, and then the mask.": mask_first,
        "The noisy latent should come first, then the mask and the picture.": latent_last,
        "The order is x, mask, hole.": hole_first,
        "The samples are repeated as 0, 0, 1, 1. Guidance needs 0, 1, 0, 1.": each_twice,
        "All samples read the mask and the picture of the first one.": first_sample,
        "Only one half reads the mask and the picture. Both halves should.": second_half,
        "The mask is inverted. Pass it on as it is.": other_mask,
    },
    passing="A depth model does the same with one more channel instead of five.",
    difficulty=2,
    minutes=10,
    in_picture={"minisd.tasks.inpaint.with_extra_channels": as_wrapper},
    draw=lambda sd: redraw_hat(minisd.load("mini-inpaint")),
)
