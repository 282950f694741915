"""Start img2img between two pictures: spherical interpolation, with the student's own share."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import APPLE, draw_scene
from minisd.files.pictures import from_pil
from minisd.mini.examples import crude_apple
from minisd.tasks.img2img import img2img


def mix_latents(a, b, *, share=0.3):
    """A latent on the arc from a to b.

    a, b: n 4 h w, n pairs of latents    returns: n 4 h w
    """
    vectors = rearrange(torch.stack([a, b]), "two n c h w -> two n (c h w)")
    lengths = vectors.norm(dim=-1)
    cosine = (vectors[0] * vectors[1]).sum(dim=-1) / (lengths[0] * lengths[1])
    angle = rearrange(cosine.acos(), "n -> n 1 1 1")
    first = ((1 - share) * angle).sin() / angle.sin()
    second = (share * angle).sin() / angle.sin()
    return first * a + second * b


def along(a, b, angle, share):
    """The formula, with an angle that may be wrong."""
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def straight(a, b, *, share=0.3):
    return (1 - share) * a + share * b


def other_share(a, b, *, share=0.3):
    return mix_latents(a, b, share=1 - share)


def batch_angle(a, b, *, share=0.3):
    return along(a, b, F.cosine_similarity(a.flatten(), b.flatten(), dim=0).acos(), share)


def place_angle(a, b, *, share=0.3):
    return along(a, b, F.cosine_similarity(a, b, dim=1).acos()[:, None], share)


def row_angle(a, b, *, share=0.3):
    return along(a, b, F.cosine_similarity(a, b, dim=-1).acos()[..., None], share)


def without_lengths(a, b, *, share=0.3):
    return along(a, b, (a * b).sum(dim=(1, 2, 3), keepdim=True).acos(), share)


def unit_vectors(a, b, *, share=0.3):
    sizes = [one.flatten(1).norm(dim=1)[:, None, None, None] for one in (a, b)]
    return mix_latents(a / sizes[0], b / sizes[1], share=share)


def without_division(a, b, *, share=0.3):
    angle = F.cosine_similarity(a.flatten(1), b.flatten(1)).acos()[:, None, None, None]
    return ((1 - share) * angle).sin() * a + (share * angle).sin() * b


def cosine_as_angle(a, b, *, share=0.3):
    return along(a, b, F.cosine_similarity(a.flatten(1), b.flatten(1))[:, None, None, None], share)


def mixed_start(answer):
    """add_noise() for a batch of two pictures. Each starts from its mixture with the other."""

    def add_noise(z, noise, level):
        return level.signal_rate * answer(z, z.flip(0)) + level.noise_rate * noise

    return add_noise


def draw_mixture(sd):
    """img2img from an apple that is mixed with a strawberry."""
    given = [crude_apple(), draw_scene("strawberry", style="twemoji", background="blue")]
    images = torch.cat([from_pil(one) for one in given])
    pictures: Any = img2img(sd, [APPLE, APPLE], images, strength=0.3, steps=8, seed=[1, 1])
    return pictures[0]


EXERCISE = Exercise(
    name="mix_latents",
    lesson="11",
    place=4,
    title="Start between two pictures",
    question=(
        "img2img can also start between two pictures. As vectors, straight mixtures of two "
        "latents are often shorter than both. So go along the arc between them (slerp). Read "
        "each latent as one long vector, and let w be the angle between the two vectors: cos w "
        "is their dot product, divided by both lengths. With the share s = {share}, the mixture "
        "is sin((1 - s) w) / sin(w) * a + sin(s w) / sin(w) * b. Write `mix_latents(a, b)` for n "
        "pairs. Each pair has its own angle."
    ),
    solution=mix_latents,
    stages=(
        Stage("four numbers", 1, lambda g: [*normal(g, 2, 1, 4, 1, 1)]),
        Stage("one pair", 1, lambda g: [*normal(g, 2, 1, 4, 3, 5)]),
        Stage("three pairs", 2, lambda g: [*normal(g, 2, 3, 4, 5, 3)]),
    ),
    hints=(
        "a.flatten(1) makes one vector for each latent: n (c h w).",
        "The cosine is (a * b).sum() / (|a| |b|), with both over c h w. torch.acos gives the angle "
        "in radians, one for each pair.",
        "Give the angle the shape n 1 1 1. Then compute ((1 - s) * w).sin() / w.sin() and "
        "(s * w).sin() / w.sin(), and multiply a and b themselves by these factors.",
    ),
    mistakes={
        "This is the straight line between a and b. Go along the arc.": straight,
        "The two shares are swapped. The share belongs to b: a share of 0 should give a.": (
            other_share
        ),
        "There is one angle for the whole batch. Each pair needs its own.": batch_angle,
        "Each place has its own angle. Read the whole latent as one vector.": place_angle,
        "Each row has its own angle. Read the whole latent as one vector.": row_angle,
        "The dot product is not divided by the lengths of a and b.": without_lengths,
        "You mix vectors of length 1. Use them for the angle only, and mix a and b.": unit_vectors,
        "The factors are not divided by sin(w).": without_division,
        "The cosine is used as the angle. Take acos first.": cosine_as_angle,
    },
    passing="This also mixes two noises: on the arc, the mixture is as long as noise should be.",
    difficulty=3,
    minutes=20,
    constants=lambda rng: {"share": rng.choice([0.2, 0.25, 0.35, 0.4, 0.6, 0.65])},
    in_picture={"minisd.tasks.img2img.add_noise": mixed_start},
    draw=draw_mixture,
    in_lesson=True,
)
