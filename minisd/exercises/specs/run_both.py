"""Both answers of the network in one run."""

import torch
from einops import rearrange, repeat

from minisd.exercises.calls import Made
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def run_both(network, x, t, uncond_context, context):
    """Run the network once, for the empty prompt and for the prompt.

    network: network(x, t, context) -> eps, for any batch. Its t has one number for each sample
    x: b c h w    t: one number, the same for all samples
    uncond_context: b m d, the embedded empty prompt    context: b m d, the embedded prompt
    returns: eps without the prompt, and eps with the prompt, b c h w each
    """
    twice = torch.cat([x, x])
    contexts = torch.cat([uncond_context, context])
    both = network(twice, torch.full((len(twice),), t), contexts)
    return both[: len(x)], both[len(x) :]


def run_twice(network, x, t, uncond_context, context):
    times = torch.full((len(x),), t)
    return network(x, times, uncond_context), network(x, times, context)


def prompt_first(network, x, t, uncond_context, context):
    cond, uncond = run_both(network, x, t, context, uncond_context)
    return uncond, cond


def return_prompt_first(network, x, t, uncond_context, context):
    return run_both(network, x, t, uncond_context, context)[::-1]


def swap_contexts(network, x, t, uncond_context, context):
    return run_both(network, x, t, context, uncond_context)


def repeat_each(network, x, t, uncond_context, context):
    twice = x.repeat_interleave(2, dim=0)
    contexts = torch.cat([uncond_context, context])
    return network(twice, torch.full((len(twice),), t), contexts).chunk(2)


def alternate(network, x, t, uncond_context, context):
    twice = torch.cat([x, x])
    contexts = torch.cat([uncond_context, context])
    both = network(twice, torch.full((len(twice),), t), contexts)
    return both[::2], both[1::2]


def alternate_all(network, x, t, uncond_context, context):
    twice = repeat(x, "b c h w -> (b half) c h w", half=2)
    contexts = rearrange([uncond_context, context], "half b m c -> (b half) m c")
    both = network(twice, torch.full((len(twice),), t), contexts)
    return both[::2], both[1::2]


def short_t(network, x, t, uncond_context, context):
    contexts = torch.cat([uncond_context, context])
    return network(torch.cat([x, x]), torch.full((len(x),), t), contexts).chunk(2)


def short_x(network, x, t, uncond_context, context):
    contexts = torch.cat([uncond_context, context])
    return network(x, torch.full((len(x),), t), contexts).chunk(2)


def halves_of_channels(network, x, t, uncond_context, context):
    contexts = torch.cat([uncond_context, context])
    times = torch.full((2 * len(x),), t)
    return network(torch.cat([x, x]), times, contexts).chunk(2, dim=1)


def not_split(network, x, t, uncond_context, context):
    contexts = torch.cat([uncond_context, context])
    return network(torch.cat([x, x]), torch.full((2 * len(x),), t), contexts)


def match_precision(network, free):
    """The network, called as the core calls it: in the precision of the context.

    free: how many samples at the start of the batch have no prompt. A ControlNet reads this number
    """

    def run(x, t, context):
        context = context[:]  # a new tensor for this call, because it gets an attribute
        vars(context)["unconditional"] = free
        wide = torch.promote_types(x.dtype, torch.float32)
        return network(x.to(context.dtype), t.to(x.device, wide), context).to(x.dtype)

    return run


def with_level(answer):
    """The answer as the core's function, which takes a level in place of t."""

    def run_network_twice(network, x, level, uncond_context, context):
        network = match_precision(network, free=len(x))
        return answer(network, x, level.t, uncond_context, context)

    return run_network_twice


def inputs(b, m, rows):
    def draw(g):
        network = Made("network", {"gain": 0.7, "rows": rows})
        return [network, normal(g, b, 4, 3, 5), 481.0, *normal(g, 2, b, m, 6)]

    return draw


EXERCISE = Exercise(
    name="run_both",
    lesson="09",
    place=2,
    title="Two predictions in one run",
    question=(
        "Guidance needs two predictions of the network at every step. One run on a large batch "
        "is faster than two runs. Write `run_both(network, x, t, uncond_context, context)`. Run "
        "the network once on 2b samples: in the first half, x with `uncond_context`; in the "
        "second half, x again with `context`. Every sample of this batch gets the number t. "
        "Return the two halves of the result."
    ),
    solution=run_both,
    stages=(
        Stage("one sample", 1, inputs(1, 3, 0.0)),
        Stage("a batch of 2", 1, inputs(2, 7, 0.0)),
        Stage("one run, the empty prompt first", 1, inputs(2, 7, 0.3)),
    ),
    hints=(
        "The batch is the first axis. torch.cat joins tensors there.",
        "The batch has 2b samples, so the contexts and t must be 2b long, too. torch.full((n,), t) "
        "repeats t.",
        "both = network(torch.cat([x, x]), times, torch.cat([uncond_context, context])). Then "
        "uncond, cond = both.chunk(2).",
    ),
    mistakes={
        "The network runs twice. Join both halves to one batch, and run it once.": run_twice,
        "The prompt is in the first half of the batch. It belongs in the second half.": (
            prompt_first
        ),
        "Return the half without the prompt first.": return_prompt_first,
        "The contexts are swapped: uncond_context comes first.": swap_contexts,
        "x is repeated sample by sample. Repeat the whole batch: torch.cat([x, x]).": repeat_each,
        "You returned every second sample. Cut the result in the middle.": alternate,
        "Your batch alternates. First come all samples without the prompt, then all with it.": (
            alternate_all
        ),
        "t is too short. The batch has 2b samples, and each needs its t.": short_t,
        "x must be in the batch twice, because there are two contexts.": short_x,
        "You cut the channels. Cut the batch, which is axis 0.": halves_of_channels,
        "Return two tensors: the two halves of the batch.": not_split,
    },
    passing=(
        "The mini draws with such a batch at every step. On a GPU, one run on the double batch "
        "is faster than two runs."
    ),
    difficulty=2,
    minutes=12,
    replaces={"minisd.guidance.run_network_twice": with_level},
    draw=draw_cat,
)
