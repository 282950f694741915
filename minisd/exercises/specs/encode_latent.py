"""From a picture to the latent that the U-Net reads."""

from typing import Any

from torch import Tensor

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.files.pictures import check_tensor, to_pil
from minisd.mini.emoji import Emoji
from minisd.mini.scenes import batch
from minisd.vae import DiagonalGaussian


def encode_latent(encoder, image, scale, generator=None):
    """The latent of a picture, with a standard deviation of about 1.

    encoder: turns b 3 h w into the moments, b 2c h' w'    image: b 3 h w
    generator: None: the latent is the mean. Otherwise, it is drawn at random
    returns: b c h' w'
    """
    gaussian = DiagonalGaussian(encoder(image))
    z = gaussian.mode() if generator is None else gaussian.sample(generator)
    return z * scale


def divide_by_scale(encoder, image, scale, generator=None):
    return encode_latent(encoder, image, 1 / scale, generator)


def without_scale(encoder, image, scale, generator=None):
    return encode_latent(encoder, image, 1, generator)


def scale_moments(encoder, image, scale, generator=None):
    gaussian = DiagonalGaussian(encoder(image) * scale)
    return gaussian.mode() if generator is None else gaussian.sample(generator)


def always_mean(encoder, image, scale, generator=None):
    return encode_latent(encoder, image, scale)


def scale_only_the_mean(encoder, image, scale, generator=None):
    z = encode_latent(encoder, image, 1, generator)
    mean = encode_latent(encoder, image, 1)
    return mean * scale + z - mean


def all_moments(encoder, image, scale, generator=None):
    return encoder(image) * scale


def as_method(answer):
    """The answer as StableDiffusion.encode, which also checks the picture and the latent."""

    def encode(self, image, generator=None):
        check_tensor(image, "picture", 3, -1, 1)
        image = image.to(self.vae.encoder.conv_in.weight)
        z = answer(self.vae.encoder, image, self.vae.config.scale, generator)
        self.check_finite(z, "autoencoder's encoder")
        return z.to(self.dtype)

    return encode


def unseen_picture(sd: Any) -> Tensor:
    """A picture that training has not seen, 1 3 h w."""
    return batch(Emoji.load(), sd.config.size, 1, seed=5, step=0, split="heldout").images


def draw_copy(sd: Any) -> Any:
    """A picture that training has not seen, encoded and decoded."""
    return to_pil(sd.decode(sd.encode(unseen_picture(sd))))[0]


def draw_inputs(b, h, w, seed=None):
    encoder = Made("layer", {"name": "PixelUnshuffle", "downscale_factor": 2})

    def draw(g):
        given = [encoder, normal(g, b, 3, h, w).tanh(), 0.18215]
        return given if seed is None else [*given, Made("generator", {"seed": seed})]

    return draw


EXERCISE = Exercise(
    name="encode_latent",
    lesson="04",
    place=3,
    title="From a picture to a scaled latent",
    question=(
        "Write `encode_latent(encoder, image, scale, generator=None)`. Call the encoder and give "
        "its output to `DiagonalGaussian`. Take the `mode()` of the Gaussian if there is no "
        "generator; otherwise take `sample(generator)`. Multiply the latent by `scale`, so that "
        "its numbers become as large as those of the noise."
    ),
    solution=encode_latent,
    stages=(
        Stage("the mean", 1, draw_inputs(1, 2, 4)),
        Stage("the mean of a batch of 2", 1, draw_inputs(2, 4, 6)),
        Stage("drawn at random", 1, draw_inputs(2, 4, 6, seed=5)),
    ),
    hints=(
        "The encoder returns moments, not a latent. DiagonalGaussian(moments) holds the mean and "
        "the std.",
        "`if generator is None` decides between gaussian.mode() and gaussian.sample(generator).",
        "z * scale at the end, in both cases. The moments themselves are not scaled.",
    ),
    mistakes={
        "The latent is divided by the scale. Encoding multiplies, decoding divides.": (
            divide_by_scale
        ),
        "The latent is not scaled.": without_scale,
        "The moments are scaled. That changes the standard deviation in a wrong way.": (
            scale_moments
        ),
        "The generator is ignored: this is always the mean.": always_mean,
        "Only the mean is scaled. Scale the latent after the noise has been added.": (
            scale_only_the_mean
        ),
        "These are all moments. The latent has half the channels: call mode() or sample().": (
            all_moments
        ),
    },
    passing="Every picture that img2img or inpainting starts from goes through this function.",
    difficulty=1,
    minutes=10,
    needs=("diagonal_gaussian",),
    given="from minisd.vae import DiagonalGaussian",
    replaces={"minisd.pipeline.StableDiffusion.encode": as_method},
    draw=draw_copy,
)
