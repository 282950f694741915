"""What the encoder returns: a mean and a standard deviation for each number of the latent."""

from typing import Any

import torch
from torch import Tensor

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs.encode_latent import unseen_picture
from minisd.files.pictures import to_pil


class DiagonalGaussian:
    """A mean and a standard deviation for each number of the latent.

    moments: b 2c h w. The first c channels are the mean, the others the logarithm of the variance
    """

    def __init__(self, moments):
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30, 20)
        self.std = torch.exp(0.5 * self.logvar)

    def sample(self, generators):
        """A random latent, b c h w.

        generators: a list with one random generator for each sample of the batch
        """
        shape = (1, *self.mean.shape[1:])
        noise = torch.cat([torch.randn(shape, generator=one) for one in generators])
        return self.mean + self.std * noise.to(self.mean)

    def mode(self):
        """The most likely latent, b c h w."""
        return self.mean

    def kl(self):
        """The KL divergence from noise of mean 0 and variance 1, one number for each sample."""
        nats = 0.5 * (self.mean**2 + self.std**2 - 1 - self.logvar)
        return nats.sum(dim=(1, 2, 3))


class StdIsVariance(DiagonalGaussian):
    def __init__(self, moments):
        super().__init__(moments)
        self.std = self.logvar.exp()


class LogvarAsStd(DiagonalGaussian):
    def __init__(self, moments):
        super().__init__(moments)
        self.std = self.logvar


class NoClamp(DiagonalGaussian):
    def __init__(self, moments):
        self.mean, self.logvar = moments.chunk(2, dim=1)
        self.std = (0.5 * self.logvar).exp()


class ClampOnlyForStd(DiagonalGaussian):
    def __init__(self, moments):
        super().__init__(moments)
        self.logvar = moments.chunk(2, dim=1)[1]


class ClampIsSwapped(DiagonalGaussian):
    def __init__(self, moments):
        super().__init__(moments)
        self.logvar = moments.chunk(2, dim=1)[1].clamp(-20, 30)
        self.std = (0.5 * self.logvar).exp()


class SwappedHalves(DiagonalGaussian):
    def __init__(self, moments):
        super().__init__(torch.cat(moments.chunk(2, dim=1)[::-1], dim=1))


class TakeTurns(DiagonalGaussian):
    def __init__(self, moments):
        super().__init__(torch.cat([moments[:, 0::2], moments[:, 1::2]], dim=1))


class AlongTheWidth(DiagonalGaussian):
    def __init__(self, moments):
        super().__init__(torch.cat(moments.chunk(2, dim=3), dim=1))


class NoiseAsItIs(DiagonalGaussian):
    def sample(self, generators):
        return self.mean + DiagonalGaussian.sample(self.around_zero(), generators)

    def around_zero(self):
        return DiagonalGaussian(torch.zeros_like(torch.cat([self.mean, self.mean], dim=1)))


class OneGenerator(DiagonalGaussian):
    def sample(self, generators):
        return super().sample(generators[:1] * len(generators))


class NoiseAtOnce(DiagonalGaussian):
    def sample(self, generators):
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generators[0])


class SameNoise(DiagonalGaussian):
    def sample(self, generators):
        noise = torch.randn((1, *self.mean.shape[1:]), generator=generators[0])
        return self.mean + self.std * noise


class NoiseInFloat64(DiagonalGaussian):
    def sample(self, generators):
        shape = (1, *self.mean.shape[1:])
        noise = [torch.randn(shape, generator=one, dtype=torch.float64) for one in generators]
        return self.mean + self.std * torch.cat(noise)


class SampleTimesVariance(DiagonalGaussian):
    def sample(self, generators):
        noise = (super().sample(generators) - self.mean) / self.std
        return self.mean + self.std**2 * noise


class MeanOfKl(DiagonalGaussian):
    def kl(self):
        return super().kl() / self.mean[0].numel()


class KlOfBatch(DiagonalGaussian):
    def kl(self):
        return super().kl().sum()


class KlTwice(DiagonalGaussian):
    def kl(self):
        return 2 * super().kl()


class NegativeKl(DiagonalGaussian):
    def kl(self):
        return -super().kl()


class KlWithoutOne(DiagonalGaussian):
    def kl(self):
        return (0.5 * (self.mean**2 + self.std**2 - self.logvar)).sum(dim=(1, 2, 3))


class KlWithStd(DiagonalGaussian):
    def kl(self):
        return (0.5 * (self.mean**2 + self.std - 1 - self.logvar)).sum(dim=(1, 2, 3))


class KlWithoutSquare(DiagonalGaussian):
    def kl(self):
        return (0.5 * (self.mean + self.std**2 - 1 - self.logvar)).sum(dim=(1, 2, 3))


def with_one_generator(answer):
    """The answer as the core's class, whose sample() also takes one generator for all samples."""

    class DiagonalGaussian(answer):
        def sample(self, generator: torch.Generator | list[torch.Generator]) -> Tensor:
            one = isinstance(generator, torch.Generator)
            return super().sample([generator] * len(self.mean) if one else generator)

    return DiagonalGaussian


def draw_random(sd: Any) -> Any:
    """A picture that training has not seen. Its latent is drawn at random, then decoded."""
    latent = sd.encode(unseen_picture(sd), torch.Generator().manual_seed(0))
    return to_pil(sd.decode(latent))[0]


def draw_seeds(g, count):
    seeds = torch.randint(1000, (count,), generator=g).tolist()
    return [Made("generator", {"seed": seed}) for seed in seeds]


EXERCISE = Exercise(
    name="diagonal_gaussian",
    lesson="04",
    place=2,
    title="The Gaussian of a latent",
    question=(
        "Write the class `DiagonalGaussian(moments)`. The first half of the channels of "
        "`moments` is the mean, the second half is the logarithm of the variance. Keep them "
        "as the attributes `mean` and `logvar`, but first clamp logvar to the range from -30 to "
        "20. Also keep the standard deviation as `std`.\n\n"
        "- `sample(generators)` returns mean + std * noise. Draw the noise of each sample "
        "alone, with its own generator: `torch.randn((1, c, h, w), generator=…)`, in torch's "
        "usual float32.\n"
        "- `mode()` returns the mean.\n"
        "- `kl()` returns one number for each sample: the sum over all its numbers of (mean² "
        "+ variance - 1 - logvar) / 2."
    ),
    solution=DiagonalGaussian,
    stages=(
        Stage(
            "mean and std of one number",
            1,
            lambda g: [[normal(g, 1, 2, 1, 1)], "mean", "std", ["mode"]],
            "object",
        ),
        Stage(
            "a batch of 2, with very small and very large variances",
            1,
            lambda g: [[20 * normal(g, 2, 6, 3, 4)], "mean", "logvar", "std"],
            "object",
        ),
        Stage(
            "sample",
            2,
            lambda g: [[normal(g, 2, 6, 3, 5)], ["sample", draw_seeds(g, 2)], ["mode"]],
            "object",
        ),
        Stage("kl", 1, lambda g: [[normal(g, 2, 6, 3, 4)], ["kl"]], "object"),
    ),
    hints=(
        "moments.chunk(2, dim=1) gives both halves. tensor.clamp(-30, 20) limits the numbers.",
        "The variance is exp(logvar). The standard deviation is its square root: exp(logvar / 2).",
        "noise = torch.cat([torch.randn((1, *self.mean.shape[1:]), generator=one) for one in "
        "generators]). For kl, sum over the axes 1, 2 and 3.",
    ),
    mistakes={
        "std is the variance. Take the square root: exp(logvar / 2).": StdIsVariance,
        "std is the logarithm of the variance. It should be exp(logvar / 2).": LogvarAsStd,
        "Clamp logvar to the range from -30 to 20.": NoClamp,
        "You clamp logvar only for std. Keep the clamped logvar, too.": ClampOnlyForStd,
        "The range of the clamp is from -30 to 20, not from -20 to 30.": ClampIsSwapped,
        "The halves are swapped. The mean comes first.": SwappedHalves,
        "You took every second channel. The first half of the channels is the mean.": TakeTurns,
        "You split the width. The halves are halves of the channels, dim=1.": AlongTheWidth,
        "The noise is not multiplied by std.": NoiseAsItIs,
        "Only the first generator is used. Each sample has its own.": OneGenerator,
        "All noise is drawn at once from the first generator. Each sample has its own.": (
            NoiseAtOnce
        ),
        "All samples get the same noise. Each has its own generator.": SameNoise,
        "Draw the noise in torch's usual float32. In float64, torch.randn draws other numbers.": (
            NoiseInFloat64
        ),
        "The noise is multiplied by the variance. It should be multiplied by std.": (
            SampleTimesVariance
        ),
        "kl is a mean. It should be the sum over all numbers of a sample.": MeanOfKl,
        "kl is one number for the whole batch. Each sample has its own.": KlOfBatch,
        "The factor 1/2 is missing in kl.": KlTwice,
        "The sign of kl is wrong. kl is never negative.": NegativeKl,
        "The -1 is missing in kl. Without it, noise of variance 1 does not give 0.": KlWithoutOne,
        "kl needs the variance, not std.": KlWithStd,
        "The mean must be squared in kl.": KlWithoutSquare,
    },
    passing="Between `with use_own_parts():`, the encoder draws its latents from your Gaussian.",
    difficulty=2,
    minutes=20,
    replaces={"minisd.vae.DiagonalGaussian": with_one_generator},
    draw=draw_random,
    in_lesson=True,
)
