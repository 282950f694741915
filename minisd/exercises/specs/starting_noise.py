"""The noise from which a picture starts."""

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage
from minisd.pipeline import StableDiffusion


def starting_noise(seeds, channels, height, width):
    """Draw the noise from which each sample starts.

    seeds: a list of b whole numbers    channels, height, width: the size of a latent
    returns: b channels height width, float32, on the CPU
    """
    samples = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        samples.append(torch.randn((1, channels, height, width), generator=generator))
    return torch.cat(samples)


def first_seed(seeds, channels, height, width):
    return starting_noise([seeds[0]] * len(seeds), channels, height, width)


def count_up(seeds, channels, height, width):
    return starting_noise([seeds[0] + i for i in range(len(seeds))], channels, height, width)


def one_generator(seeds, channels, height, width):
    generator = torch.Generator().manual_seed(seeds[0])
    return torch.randn((len(seeds), channels, height, width), generator=generator)


def last_generator(seeds, channels, height, width):
    generator = torch.Generator().manual_seed(seeds[-1])
    return torch.randn((len(seeds), channels, height, width), generator=generator)


def use_places(seeds, channels, height, width):
    return starting_noise(range(len(seeds)), channels, height, width)


def use_rand(seeds, channels, height, width):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (1, channels, height, width)
    return torch.cat([torch.rand(shape, generator=each) for each in generators])


def in_float64(seeds, channels, height, width):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (1, channels, height, width)
    return torch.cat([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])


def swap_sides(seeds, channels, height, width):
    return starting_noise(seeds, channels, width, height)


def channels_last(seeds, channels, height, width):
    return starting_noise(seeds, height, width, channels)


def only_one(seeds, channels, height, width):
    return starting_noise(seeds[:1], channels, height, width)


def standardize(seeds, channels, height, width):
    noise = starting_noise(seeds, channels, height, width)
    axes = (1, 2, 3)
    return (noise - noise.mean(dim=axes, keepdim=True)) / noise.std(dim=axes, keepdim=True)


def as_method(answer):
    """The core's method, which gets generators. If one was used before, the core draws."""
    core = StableDiffusion.noise

    def noise(self, generators, width, height):
        states = [generator.get_state() for generator in generators]
        seeds = [generator.initial_seed() for generator in generators]
        ours = core(self, generators, width, height)  # a sampler draws from the generators later
        starts = [torch.Generator().manual_seed(seed).get_state() for seed in seeds]
        fresh = all(torch.equal(*pair) for pair in zip(states, starts, strict=True))
        return answer(seeds, *ours.shape[1:]) if fresh else ours

    return noise


EXERCISE = Exercise(
    name="starting_noise",
    lesson="10",
    place=1,
    title="The noise of a seed",
    question=(
        "Text-to-image starts from noise, and the seed decides which noise. A sample must "
        "start from the same noise, alone or in a batch. So each sample has a random "
        "generator of its own. Write `starting_noise(seeds, channels, height, width)`. For each "
        "seed, make a `torch.Generator()`, set its seed with `manual_seed`, and draw normal noise "
        "of the shape 1 channels height width in float32. Join all samples to one batch."
    ),
    solution=starting_noise,
    stages=(
        Stage("one seed", 1, lambda g: [[draw_seed(g)], 4, 2, 3]),
        Stage("three seeds", 2, lambda g: [[draw_seed(g) for _ in range(3)], 4, 5, 3]),
    ),
    hints=(
        "Write a loop over the seeds, and collect one tensor for each.",
        "torch.randn has an argument `generator`. Its usual dtype is float32.",
        "In the loop: generator = torch.Generator().manual_seed(seed), then torch.randn((1, "
        "channels, height, width), generator=generator). At the end, torch.cat(samples).",
    ),
    mistakes={
        "All samples have the noise of the first seed.": first_seed,
        "You counted up from the first seed. Use each seed of the list.": count_up,
        "One generator draws for the whole batch. Each sample needs a generator of its own.": (
            one_generator
        ),
        "Only the last seed counts. Draw the noise of a seed right after you set it.": (
            last_generator
        ),
        "You used 0, 1, 2 … as seeds. Use the numbers of the list.": use_places,
        "torch.rand draws between 0 and 1. Use torch.randn.": use_rand,
        "In float64, a generator draws other numbers. Use float32.": in_float64,
        "Height and width are swapped.": swap_sides,
        "The channels are your last axis. They should come right after the batch.": channels_last,
        "There is only one sample. Draw one for each seed.": only_one,
        "Do not change the mean and the spread of the noise.": standardize,
    },
    passing="The same seed now gives the same noise, alone or in a batch. Your txt2img uses it.",
    difficulty=1,
    minutes=8,
    replaces={
        "minisd.pipeline.StableDiffusion.noise": as_method,
        "minisd.exercises.parts.starting_noise": lambda answer: answer,
    },
    draw=draw_cat,
    in_lesson=True,
)


def draw_seed(generator):
    return int(torch.randint(1000, 10**6, (), generator=generator))
