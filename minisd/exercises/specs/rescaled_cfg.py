"""Guidance that does not saturate. Every student has another phi."""

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs.apply_cfg import with_formula


def rescaled_cfg(eps_uncond, eps_cond, scale, *, phi=0.7):
    """Classifier-free guidance with a smaller spread.

    eps_uncond, eps_cond: what the network predicts without and with the prompt, b c h w
    scale: a number
    returns: the guided eps, b c h w
    """
    guided = eps_uncond + scale * (eps_cond - eps_uncond)
    axes = (1, 2, 3)
    ratio = eps_cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return phi * ratio * guided + (1 - phi) * guided


def shrink(eps_uncond, eps_cond, scale, phi, ratio):
    """The solution with another ratio: a function of eps_cond and of the guided eps."""
    guided = eps_uncond + scale * (eps_cond - eps_uncond)
    return phi * ratio(eps_cond, guided) * guided + (1 - phi) * guided


def over_batch(eps_uncond, eps_cond, scale, *, phi=0.7):
    return shrink(eps_uncond, eps_cond, scale, phi, lambda cond, guided: cond.std() / guided.std())


def over_channels(eps_uncond, eps_cond, scale, *, phi=0.7):
    def ratio(cond, guided):
        return cond.std(dim=1, keepdim=True) / guided.std(dim=1, keepdim=True)

    return shrink(eps_uncond, eps_cond, scale, phi, ratio)


def over_places(eps_uncond, eps_cond, scale, *, phi=0.7):
    def ratio(cond, guided):
        return cond.std(dim=(2, 3), keepdim=True) / guided.std(dim=(2, 3), keepdim=True)

    return shrink(eps_uncond, eps_cond, scale, phi, ratio)


def over_samples(eps_uncond, eps_cond, scale, *, phi=0.7):
    def ratio(cond, guided):
        return cond.std(dim=0, keepdim=True) / guided.std(dim=0, keepdim=True)

    return shrink(eps_uncond, eps_cond, scale, phi, ratio)


def inverse_ratio(eps_uncond, eps_cond, scale, *, phi=0.7):
    def ratio(cond, guided):
        return guided.std(dim=(1, 2, 3), keepdim=True) / cond.std(dim=(1, 2, 3), keepdim=True)

    return shrink(eps_uncond, eps_cond, scale, phi, ratio)


def variances(eps_uncond, eps_cond, scale, *, phi=0.7):
    def ratio(cond, guided):
        return cond.var(dim=(1, 2, 3), keepdim=True) / guided.var(dim=(1, 2, 3), keepdim=True)

    return shrink(eps_uncond, eps_cond, scale, phi, ratio)


def spread_of_uncond(eps_uncond, eps_cond, scale, *, phi=0.7):
    def ratio(cond, guided):
        spread = eps_uncond.std(dim=(1, 2, 3), keepdim=True)
        return spread / guided.std(dim=(1, 2, 3), keepdim=True)

    return shrink(eps_uncond, eps_cond, scale, phi, ratio)


def lengths(eps_uncond, eps_cond, scale, *, phi=0.7):
    def ratio(cond, guided):
        ratios = cond.flatten(1).norm(dim=1) / guided.flatten(1).norm(dim=1)
        return ratios[:, None, None, None]

    return shrink(eps_uncond, eps_cond, scale, phi, ratio)


def without_axes(eps_uncond, eps_cond, scale, *, phi=0.7):
    def ratio(cond, guided):
        return cond.std(dim=(1, 2, 3)) / guided.std(dim=(1, 2, 3))

    return shrink(eps_uncond, eps_cond, scale, phi, ratio)


def without_axes_behind(eps_uncond, eps_cond, scale, *, phi=0.7):
    guided = eps_uncond + scale * (eps_cond - eps_uncond)
    return phi * (guided * (eps_cond.std(dim=(1, 2, 3)) / guided.std(dim=(1, 2, 3)))) + guided


def swap_phi(eps_uncond, eps_cond, scale, *, phi=0.7):
    return rescaled_cfg(eps_uncond, eps_cond, scale, phi=1 - phi)


def start_at_cond(eps_uncond, eps_cond, scale, *, phi=0.7):
    return rescaled_cfg(eps_uncond, eps_cond, scale + 1, phi=phi)


def no_phi(eps_uncond, eps_cond, scale, *, phi=0.7):
    return rescaled_cfg(eps_uncond, eps_cond, scale, phi=1)


def mix_with_cond(eps_uncond, eps_cond, scale, *, phi=0.7):
    rescaled = rescaled_cfg(eps_uncond, eps_cond, scale, phi=1)
    return phi * rescaled + (1 - phi) * eps_cond


def plain_cfg(eps_uncond, eps_cond, scale, *, phi=0.7):
    return rescaled_cfg(eps_uncond, eps_cond, scale, phi=0)


def draw_at_ten(sd):
    return sd.txt2img("a rocket on a blue background", steps=12, seed=3, cfg_scale=10)


def inputs(b, *sizes):
    """The samples differ in their mean and in their spread."""

    def draw(g):
        sample = normal(g, 2, b, *sizes)
        spread = 1 + 3 * normal(g, b, 1, 1, 1).abs()
        return [*(sample * spread + normal(g, b, 1, 1, 1)), 7.5]

    return draw


EXERCISE = Exercise(
    name="rescaled_cfg",
    lesson="09",
    place=5,
    title="Guidance that does not saturate",
    question=(
        "A high scale makes the spread of eps too large, and the colours of the picture too "
        "strong. Lin et al. (2024) make the spread smaller again. Write "
        "`rescaled_cfg(eps_uncond, eps_cond, scale)`. Compute the guided eps with the usual "
        "formula. Multiply it by a ratio: the standard deviation of `eps_cond`, divided by the "
        "standard deviation of the guided eps. Each sample has its own standard deviation, over "
        "all its channels and places. The result is a mix: phi times this rescaled eps, plus 1 - "
        "phi times the guided eps. Your phi is {phi}."
    ),
    solution=rescaled_cfg,
    stages=(
        Stage("one sample", 1, inputs(1, 4, 2, 3)),
        Stage("a batch of 2", 2, inputs(2, 4, 3, 5)),
    ),
    hints=(
        "There are three parts: the guided eps, the ratio, the mix.",
        "tensor.std(dim=(1, 2, 3), keepdim=True) has the shape b 1 1 1: one number for each "
        "sample.",
        "ratio = std(eps_cond) / std(guided). Then phi * ratio * guided + (1 - phi) * guided.",
    ),
    mistakes={
        "The formula starts at eps_uncond: eps_uncond + scale * (eps_cond - eps_uncond).": (
            start_at_cond
        ),
        "The standard deviation goes over the whole batch. Each sample has its own.": over_batch,
        "The standard deviation goes over the channels only. It should go over channels and "
        "places.": over_channels,
        "Each channel has its own standard deviation. Take one for the whole sample.": over_places,
        "The standard deviation goes over the samples. Keep axis 0, and take the others.": (
            over_samples
        ),
        "The ratio is upside down: divide by the standard deviation of the guided eps.": (
            inverse_ratio
        ),
        "You used the variance. Use the standard deviation.": variances,
        "The ratio begins with the standard deviation of eps_cond, not of eps_uncond.": (
            spread_of_uncond
        ),
        "You used the length of the vector. Use the standard deviation, tensor.std().": (lengths),
        "The ratio has the shape b, so it met the width. Use keepdim=True: b 1 1 1.": without_axes,
        "The ratio needs the shape b 1 1 1 to fit b c h w. Use keepdim=True.": without_axes_behind,
        "phi and 1 - phi are swapped: phi belongs to the rescaled eps.": swap_phi,
        "The mix is missing: phi times the rescaled eps, plus 1 - phi times the guided eps.": (
            no_phi
        ),
        "You mixed with eps_cond. Mix with the guided eps.": mix_with_cond,
        "The guided eps is not rescaled. Multiply it by the ratio, then mix.": plain_cfg,
    },
    passing="At a scale of 10, the colours stay milder. Stable Diffusion itself does not do this.",
    difficulty=3,
    minutes=15,
    needs=("apply_cfg",),
    constants=lambda rng: {"phi": rng.choice([0.4, 0.6, 0.65, 0.7, 0.75, 0.8])},
    in_picture={"minisd.guidance.guided_denoiser": with_formula},
    draw=draw_at_ten,
)
