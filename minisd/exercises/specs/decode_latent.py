"""From the last latent to the picture."""

from minisd.exercises.calls import Made
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def decode_latent(decoder, latent, scale):
    """The picture of a latent.

    decoder: turns unscaled latents into pictures    latent: b c h w, scaled
    """
    return decoder(latent / scale)


def multiply_by_scale(decoder, latent, scale):
    return decoder(latent * scale)


def without_scale(decoder, latent, scale):
    return decoder(latent)


def scale_picture(decoder, latent, scale):
    return decoder(latent) / scale


def clamp_picture(decoder, latent, scale):
    return decoder(latent / scale).clamp(-1, 1)


def as_bytes(decoder, latent, scale):
    return (decoder(latent / scale) + 1) * 127.5


def as_method(answer):
    """The answer as StableDiffusion.decode, which also checks the latent and the picture."""

    def decode(self, latent):
        self.check_finite(latent, "U-Net")
        latent = latent.to(self.vae.decoder.conv_in.weight)
        image = answer(self.vae.decoder, latent, self.vae.config.scale)
        self.check_finite(image, "autoencoder's decoder")
        return image

    return decode


def draw_inputs(layer, scale, *shape):
    return lambda g: [Made("layer", {"name": layer}), normal(g, *shape), scale]


EXERCISE = Exercise(
    name="decode_latent",
    lesson="04",
    place=4,
    title="From a scaled latent to a picture",
    question=(
        "The U-Net works on latents that were multiplied by `scale`. The decoder does not know "
        "that. Write `decode_latent(decoder, latent, scale)`: undo the scaling, then call the "
        "decoder. Return what the decoder returns."
    ),
    solution=decode_latent,
    stages=(
        Stage("one number", 1, draw_inputs("Softplus", 0.5, 1, 1, 1, 1)),
        Stage("a batch of 2", 1, draw_inputs("Softplus", 0.18215, 2, 4, 3, 5)),
    ),
    hints=(
        "encode_latent multiplies by the scale. What undoes that?",
        "The scale belongs to the latent, so undo it before the decoder runs.",
        "latent / scale goes into decoder(…).",
    ),
    mistakes={
        "The latent is multiplied by the scale. Divide by it.": multiply_by_scale,
        "The scaling is not undone.": without_scale,
        "The picture is divided by the scale. Divide the latent, before decoding.": scale_picture,
        "The picture is clamped. Return it as the decoder made it.": clamp_picture,
        "The picture is turned into the range from 0 to 255. Return it as the decoder made it.": (
            as_bytes
        ),
    },
    passing="This is the last step of every picture that the model draws.",
    difficulty=1,
    minutes=5,
    replaces={"minisd.pipeline.StableDiffusion.decode": as_method},
    draw=draw_cat,
)
