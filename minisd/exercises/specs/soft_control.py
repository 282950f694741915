"""How much a ControlNet counts in each step and at each depth of the U-Net."""

import torch

from minisd.adapters.controlnet import ControlNet
from minisd.config import WEIGHTS
from minisd.exercises.exercise import Exercise, Stage
from minisd.exercises.specs._pictures import RABBIT, draw_scene
from minisd.files.pictures import from_pil, to_pil
from minisd.pipeline import make_generators
from minisd.sampling import from_noise, sampler_levels
from minisd.tasks.canny import canny


def control_factors(steps, count, *, base=0.8, begin=0.15, end=0.7):
    """The factor of each correction in each step.

    steps: the number of steps    count: the number of corrections, the last for the middle block
    returns: steps count, float64
    """
    step = torch.arange(steps, dtype=torch.float64)[:, None]
    is_on = (step / steps >= begin) & ((step + 1) / steps <= end)
    distance = count - 1 - torch.arange(count, dtype=torch.float64)
    return is_on * base**distance


def interval(steps, begin, end):
    """Whether the control is on, with other rules than the right one."""
    step = torch.arange(steps, dtype=torch.float64)[:, None]
    return (step / steps >= begin) & (step / steps <= end)


def strengths(count, base):
    return base ** (count - 1 - torch.arange(count, dtype=torch.float64))


def falls_to_the_middle(steps, count, *, base=0.8, begin=0.15, end=0.7):
    return control_factors(steps, count, base=base, begin=begin, end=end).flip(1)


def one_power_more(steps, count, *, base=0.8, begin=0.15, end=0.7):
    return base * control_factors(steps, count, base=base, begin=begin, end=end)


def twelve(steps, count, *, base=0.8, begin=0.15, end=0.7):
    wide = control_factors(steps, 13, base=base, begin=begin, end=end)
    more = base ** (12 - torch.arange(count, dtype=torch.float64))
    return (wide[:, -1:] > 0) * more


def starts_in_time(steps, count, *, base=0.8, begin=0.15, end=0.7):
    return interval(steps, begin, end) * strengths(count, base)


def any_overlap(steps, count, *, base=0.8, begin=0.15, end=0.7):
    step = torch.arange(steps, dtype=torch.float64)[:, None]
    is_on = ((step + 1) / steps > begin) & (step / steps < end)
    return is_on * strengths(count, base)


def last_step_is_one(steps, count, *, base=0.8, begin=0.15, end=0.7):
    share = torch.arange(steps, dtype=torch.float64)[:, None] / max(1, steps - 1)
    return ((share >= begin) & (share <= end)) * strengths(count, base)


def excludes_the_ends(steps, count, *, base=0.8, begin=0.15, end=0.7):
    step = torch.arange(steps, dtype=torch.float64)[:, None]
    is_on = (step / steps > begin) & ((step + 1) / steps < end)
    return is_on * strengths(count, base)


def always_on(steps, count, *, base=0.8, begin=0.15, end=0.7):
    return control_factors(steps, count, base=base, begin=0, end=1)


def outside(steps, count, *, base=0.8, begin=0.15, end=0.7):
    inside = control_factors(steps, count, base=base, begin=begin, end=end)
    return (inside == 0) * strengths(count, base)


def one_outside(steps, count, *, base=0.8, begin=0.15, end=0.7):
    inside = control_factors(steps, count, base=base, begin=begin, end=end)
    return torch.where(inside == 0, 1.0, inside)


def even_factors(steps, count, *, base=0.8, begin=0.15, end=0.7):
    return control_factors(steps, count, base=1, begin=begin, end=end)


def one_factor(steps, count, *, base=0.8, begin=0.15, end=0.7):
    return base * control_factors(steps, count, base=1, begin=begin, end=end)


def straight_line(steps, count, *, base=0.8, begin=0.15, end=0.7):
    distance = count - 1 - torch.arange(count, dtype=torch.float64)
    inside = control_factors(steps, count, base=1, begin=begin, end=end)
    return inside * (1 - (1 - base) * distance)


def other_axes(steps, count, *, base=0.8, begin=0.15, end=0.7):
    return control_factors(steps, count, base=base, begin=begin, end=end).T


def only_begin(steps, count, *, base=0.8, begin=0.15, end=0.7):
    return control_factors(steps, count, base=base, begin=begin, end=1)


def only_end(steps, count, *, base=0.8, begin=0.15, end=0.7):
    return control_factors(steps, count, base=base, begin=0, end=end)


def factors_to_draw(steps, count):
    """What the picture calls. check() puts the answer here."""
    return control_factors(steps, count)


def draw_rabbit(sd):
    """A pink rabbit whose edges are controlled with these factors."""
    network, steps = ControlNet.load(WEIGHTS / "mini-edges.safetensors"), 8
    edges = canny(from_pil(draw_scene("rabbit", style="twemoji")))
    factors = iter(factors_to_draw(steps, len(network.zero) + 1).float())

    def with_control(x, t, context):
        corrections = network(x, t, context, edges.repeat(len(x), 1, 1, 1))
        now = next(factors)
        corrections = [factor * one for factor, one in zip(now, corrections, strict=True)]
        return sd.unet(x, t, context, corrections)

    levels = sampler_levels("ddim", sd.schedule, steps)
    noise = sd.noise(make_generators(1, 1), 64, 64)
    *_, last = from_noise("ddim", sd.denoiser([RABBIT], network=with_control), noise, levels)
    return to_pil(sd.decode(last.x))[0]


EXERCISE = Exercise(
    name="soft_control",
    lesson="14",
    place=4,
    title="Softer control",
    question=(
        "Often a ControlNet should not decide everything. In each step, we multiply each "
        "correction by a factor. Write `control_factors(steps, count)`. It returns the factors as "
        "a table: one row for each step, one column for each correction, in float64 "
        "(`dtype=torch.float64`). The last correction, that of the middle block, has the factor "
        "1. The one before it has {base}, the one before that {base}², and so on: the earlier a "
        "correction is in the encoder, the smaller is its factor. The control is on from the "
        "share {begin} to the share {end} of the steps. Step s (counted from 0) covers the shares "
        "from s / steps to (s + 1) / steps. The control is on in a step only if the whole step "
        "lies in this range. It may begin exactly at the start of the range, and it may end "
        "exactly at its end. In all other steps, the factors are 0."
    ),
    solution=control_factors,
    stages=(
        Stage("7 steps, one correction", 1, lambda g: [7, 1]),
        Stage("7 steps, 4 corrections", 1, lambda g: [7, 4]),
        Stage("11 steps, 13 corrections", 1, lambda g: [11, 13]),
        Stage("20 steps, 5 corrections", 1, lambda g: [20, 5]),
    ),
    hints=(
        "The table is a column (is the control on?) times a row (how far from the middle?).",
        "The row is base ** (count - 1 - i) for i = torch.arange(count, dtype=torch.float64).",
        "s = torch.arange(steps, dtype=torch.float64)[:, None]. The column is (s / steps >= begin) "
        "& ((s + 1) / steps <= end). Multiply it by the row.",
    ),
    mistakes={
        "The factors fall towards the middle block. The middle block should have 1.": (
            falls_to_the_middle
        ),
        "The power is one too high: the last correction has the factor 1.": one_power_more,
        "The power is 12 - i, as in Stable Diffusion. It should be count - 1 - i.": twelve,
        "The last step goes beyond the end. The whole step must lie inside.": starts_in_time,
        "A step is on if a part of it lies inside. The whole step must lie inside.": any_overlap,
        "A step may begin or end exactly at an end of the range: use >= and <=.": excludes_the_ends,
        "You divided by steps - 1. Step s goes from s / steps to (s + 1) / steps.": (
            last_step_is_one
        ),
        "The control is on in all steps.": always_on,
        "The control is on where it should be off.": outside,
        "Outside the interval the factor is 0, not 1.": one_outside,
        "All corrections have the factor 1. They should differ.": even_factors,
        "All corrections have the same factor. Take powers of it.": one_factor,
        "The factors fall along a straight line. Take powers.": straight_line,
        "The axes are swapped. Steps are rows, and corrections are columns.": other_axes,
        "The end of the interval is ignored. The control must stop there.": only_begin,
        "The beginning of the interval is ignored. The control must start there.": only_end,
    },
    passing='The web UI of AUTOMATIC1111 offers a similar table as "My prompt is more important".',
    difficulty=2,
    minutes=15,
    needs=("add_control",),
    constants=lambda rng: {
        "base": rng.choice([0.6, 0.7, 0.75, 0.8, 0.85]),
        "begin": rng.choice([0.1, 0.2]),
        "end": rng.choice([0.5, 0.6, 0.7, 0.8]),
    },
    in_picture={"minisd.exercises.specs.soft_control.factors_to_draw": lambda answer: answer},
    draw=draw_rabbit,
    in_lesson=True,
)
