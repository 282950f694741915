"""A prompt that changes during the steps. Every student has other steps."""

from itertools import count

from minisd import guidance
from minisd.exercises.exercise import Exercise, Stage, normal


def changing_context(first, second, index, steps, *, begin=0.375, end=0.75):
    """The context of one step, while one prompt changes into another.

    first, second: b m d, the contexts of the two prompts
    index: the number of the step, from 0    steps: how many steps there are
    returns: b m d
    """
    done = index / steps
    share = min(max((done - begin) / (end - begin), 0), 1)
    return (1 - share) * first + share * second


def mix(first, second, share):
    return (1 - share) * first + share * second


def wrong_way(first, second, index, steps, *, begin=0.375, end=0.75):
    return changing_context(second, first, index, steps, begin=begin, end=end)


def no_limits(first, second, index, steps, *, begin=0.375, end=0.75):
    return mix(first, second, (index / steps - begin) / (end - begin))


def no_lower_limit(first, second, index, steps, *, begin=0.375, end=0.75):
    return mix(first, second, min((index / steps - begin) / (end - begin), 1))


def no_upper_limit(first, second, index, steps, *, begin=0.375, end=0.75):
    return mix(first, second, max((index / steps - begin) / (end - begin), 0))


def steps_less_one(first, second, index, steps, *, begin=0.375, end=0.75):
    return changing_context(first, second, index, max(steps - 1, 1), begin=begin, end=end)


def count_from_one(first, second, index, steps, *, begin=0.375, end=0.75):
    return changing_context(first, second, index + 1, steps, begin=begin, end=end)


def change_at_once(first, second, index, steps, *, begin=0.375, end=0.75):
    return first if index / steps < begin else second


def change_at_end(first, second, index, steps, *, begin=0.375, end=0.75):
    return first if index / steps < end else second


def whole_time(first, second, index, steps, *, begin=0.375, end=0.75):
    return mix(first, second, index / steps)


def jump_to_share(first, second, index, steps, *, begin=0.375, end=0.75):
    done = index / steps
    return mix(first, second, 0 if done < begin else 1 if done > end else done)


def divide_by_end(first, second, index, steps, *, begin=0.375, end=0.75):
    return mix(first, second, min(max((index / steps - begin) / end, 0), 1))


def whole_steps(first, second, index, steps, *, begin=0.375, end=0.75):
    return changing_context(first, second, index // steps, 1, begin=begin, end=end)


def in_denoiser(answer):
    """The core's denoiser of one prompt, which changes into another."""

    def denoiser(self, prompts, negative_prompt="", cfg_scale=None, **others):
        uncond, first, second = self.embed([negative_prompt, *prompts, SECOND]).split(1)
        indices = count()

        def denoise(x, level):
            context = answer(first, second, next(indices), STEPS)
            scale = self.config.cfg_scale
            return guidance.guided_denoiser(self.unet, "eps", context, uncond, scale)(x, level)

        return denoise

    return denoiser


FIRST, SECOND, STEPS = "a dog on a yellow background", "a cat on a blue background", 16


def draw_change(sd):
    return sd.txt2img(FIRST, steps=STEPS, seed=3)


def inputs(index, steps):
    return lambda g: [*normal(g, 2, 2, 5, 3), index, steps]


def draw_constants(rng):
    return {"begin": rng.choice([0.375, 0.4375, 0.5]), "end": rng.choice([0.75, 0.8125, 0.875])}


EXERCISE = Exercise(
    name="changing_context",
    lesson="10",
    place=3,
    title="A prompt that changes",
    question=(
        "The context may change from step to step. Write `changing_context(first, second, index, "
        "steps)`. Before step `index`, a part of the run is done: index / steps. While this "
        "part is at most {begin}, the context is `first`. From {end} on, it is `second`. In "
        "between, it is a mix: the share of `second` grows evenly from 0 to 1, and the share of "
        "`first` is the rest."
    ),
    solution=changing_context,
    stages=(
        Stage("the first step", 1, inputs(0, 20)),
        Stage("step 10 of 16, in between", 2, inputs(10, 16)),
        Stage("the last step", 1, inputs(18, 19)),
    ),
    hints=(
        "Compute the share of `second` first. It is a number from 0 to 1.",
        "Your two numbers are the ends of the change. In between, the share is the part of the way "
        "from the first number to the second.",
        "(index / steps - begin) / (end - begin), but at least 0 and at most 1: use min() and "
        "max().",
    ),
    mistakes={
        "The two contexts are swapped: begin with `first`.": wrong_way,
        "The share must stay between 0 and 1.": no_limits,
        "Before the change, the share must be 0. It must not be negative.": no_lower_limit,
        "After the change, the share must be 1. It must not grow further.": no_upper_limit,
        "You divided by steps - 1. The part that is done is index / steps.": steps_less_one,
        "You added 1 to the index. It is already the number of steps that are done.": (
            count_from_one
        ),
        "The context changes at once. In between, it should be a mix.": change_at_once,
        "The context changes at once at the end. In between, it should be a mix.": change_at_end,
        "Your change takes the whole run. It should begin and end at your two numbers.": whole_time,
        "In between, the share must grow from 0 to 1. You used index / steps itself.": (
            jump_to_share
        ),
        "Divide by the length of the change, which is the difference of your two numbers.": (
            divide_by_end
        ),
        "index // steps is a whole number. Use /.": whole_steps,
    },
    passing=(
        "The picture has something of both prompts. The first steps decide the large areas, so the "
        "background comes from the first prompt."
    ),
    difficulty=2,
    minutes=12,
    constants=draw_constants,
    in_picture={"minisd.pipeline.StableDiffusion.denoiser": in_denoiser},
    draw=draw_change,
    in_lesson=True,
)
