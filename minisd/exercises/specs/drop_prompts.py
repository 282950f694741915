"""A part of the training pictures loses its prompt, Ho & Salimans 2022, algorithm 1."""

import torch
from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal


def drop_prompts(context, empty, draws, share):
    """Replace the prompt of some samples by the empty prompt.

    context: b m c, the embedded prompts    empty: m c, the embedded empty prompt
    draws: b, random numbers from 0 to 1    share: the share of samples that lose their prompt
    returns: b m c
    """
    dropped = rearrange(draws < share, "b -> b 1 1")
    return torch.where(dropped, empty, context)


def with_empty(context, draws, share, empty):
    return torch.where(rearrange(draws < share, "b -> b 1 1"), empty, context)


def with_zeros(context, empty, draws, share):
    return with_empty(context, draws, share, torch.zeros_like(empty))


def keep_the_others(context, empty, draws, share):
    return context[draws >= share]


def scale_the_rest(context, empty, draws, share):
    return with_empty(context / (1 - share), draws, share, empty)


def all_or_nothing(context, empty, draws, share):
    return empty.expand_as(context) if draws[0] < share else context


def first_samples(context, empty, draws, share):
    count = round(share * len(context))
    return torch.cat([empty.expand_as(context)[:count], context[count:]])


def blend(context, empty, draws, share):
    return (1 - share) * context + share * empty


def add_the_empty_prompt(context, empty, draws, share):
    return context + rearrange(draws < share, "b -> b 1 1") * empty


def inputs(chances, share):
    def draw(g):
        draws = torch.tensor(chances, dtype=torch.float64)
        jitter = 0.01 * torch.rand(len(chances), generator=g, dtype=torch.float64)
        return [normal(g, len(chances), 3, 4), normal(g, 3, 4), draws + jitter, share]

    return draw


EXERCISE = Exercise(
    name="drop_prompts",
    lesson="02",
    place=4,
    title="Replace some prompts by the empty prompt",
    question=(
        "A network that should draw with and without a prompt must be trained with both. So in "
        "each batch, some samples get the empty prompt instead of their own. Write "
        "`drop_prompts(context, empty, draws, share)`. draws holds one random number from 0 to 1 "
        "for each sample. Where it is below share, the whole prompt of this sample is replaced "
        "by `empty`. Stable Diffusion uses a share of 0.1. Do not change context itself."
    ),
    solution=drop_prompts,
    stages=(
        Stage("two samples, one of them dropped", 1, inputs([0.05, 0.6], 0.1)),
        Stage("six samples, another share", 1, inputs([0.7, 0.1, 0.3, 0.22, 0.05, 0.95], 0.25)),
    ),
    hints=(
        "draws < share is a tensor of True and False, one for each sample.",
        "Give it two more axes of length 1, so that it fits b m c. torch.where(condition, a, b) "
        "takes a where the condition is True.",
        'rearrange(draws < share, "b -> b 1 1") is the condition, empty is a, context is b.',
    ),
    mistakes={
        "The wrong samples lost their prompt: those with a draw above share.": (
            lambda context, empty, draws, share: drop_prompts(context, empty, 1 - draws, 1 - share)
        ),
        "The chosen samples must get the empty prompt, not zeros.": with_zeros,
        "Samples are missing. Replace the prompt, and keep the sample.": keep_the_others,
        "The other prompts must stay as they are. Do not divide them, as dropout does.": (
            scale_the_rest
        ),
        "You used the draw of the first sample for all. Each has its own draw.": all_or_nothing,
        "You replaced the prompts of the first samples. Use draws to choose.": first_samples,
        "You mixed the prompts. Each sample gets either its own prompt or the empty one.": blend,
        "The empty prompt is added. It must replace the prompt.": add_the_empty_prompt,
        "No prompt was replaced. Replace it where the draw is below share.": (
            lambda context, empty, draws, share: context
        ),
        "Every prompt was replaced. Replace it only where the draw is below share.": (
            lambda context, empty, draws, share: empty.expand_as(context)
        ),
        "The condition needs the shape b 1 1, because axes are lined up from the right.": (
            lambda context, empty, draws, share: torch.where(draws < share, empty, context)
        ),
    },
    passing=(
        "After such training, the network works with and without a prompt. Guidance (lesson 09) "
        "needs both."
    ),
    difficulty=1,
    minutes=8,
)
