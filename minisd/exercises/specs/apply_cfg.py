"""The formula of classifier-free guidance."""

from minisd import guidance
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.schedule import Prediction


def apply_cfg(eps_uncond, eps_cond, scale):
    """Classifier-free guidance.

    eps_uncond, eps_cond: the noise that the network predicts without and with the prompt, b c h w
    scale: a number
    returns: the guided eps, b c h w
    """
    return eps_uncond + scale * (eps_cond - eps_uncond)


def swap_eps(eps_uncond, eps_cond, scale):
    return apply_cfg(eps_cond, eps_uncond, scale)


def start_at_cond(eps_uncond, eps_cond, scale):
    return eps_cond + scale * (eps_cond - eps_uncond)


def subtract_arrow(eps_uncond, eps_cond, scale):
    return eps_uncond - scale * (eps_cond - eps_uncond)


def no_difference(eps_uncond, eps_cond, scale):
    return eps_uncond + scale * eps_cond


def only_difference(eps_uncond, eps_cond, scale):
    return scale * (eps_cond - eps_uncond)


def no_brackets(eps_uncond, eps_cond, scale):
    return eps_uncond + scale * eps_cond - eps_uncond


def scale_less_one(eps_uncond, eps_cond, scale):
    return apply_cfg(eps_uncond, eps_cond, scale - 1)


def take_average(eps_uncond, eps_cond, scale):
    return (eps_uncond + scale * eps_cond) / (1 + scale)


def with_formula(answer):
    """The core's guided_denoiser, which combines the two eps with the answer."""

    def guided_denoiser(network, objective, context, uncond_context, cfg_scale):
        def denoise(x, level):
            uncond, cond = guidance.run_network_twice(network, x, level, uncond_context, context)
            eps = answer(uncond, cond, cfg_scale)
            return Prediction(guidance.x0_from_eps(x, eps, level), eps, uncond, cond)

        return denoise

    return guided_denoiser


EXERCISE = Exercise(
    name="apply_cfg",
    lesson="09",
    place=1,
    title="The formula of guidance",
    question=(
        "The network predicts the noise twice: without the prompt (`eps_uncond`) and with it "
        "(`eps_cond`). The difference of the two is an arrow: it shows what the prompt changes. "
        "Write `apply_cfg(eps_uncond, eps_cond, scale)`. It starts at `eps_uncond` and goes "
        "`scale` times along this arrow. So scale 1 gives `eps_cond`, scale 0 gives "
        "`eps_uncond`, and a larger scale goes beyond `eps_cond`."
    ),
    solution=apply_cfg,
    stages=(
        Stage("one number, scale 3", 1, lambda g: [*normal(g, 2, 1), 3.0]),
        Stage("a batch, scale 7.5", 1, lambda g: [*normal(g, 2, 2, 4, 3, 5), 7.5]),
        Stage("scale 1: only the prompt counts", 1, lambda g: [*normal(g, 2, 2, 4, 3, 5), 1.0]),
    ),
    hints=(
        "The arrow is a difference of the two eps. Which of them is at its tip?",
        "The arrow leads from eps_uncond to eps_cond. So it is eps_cond - eps_uncond.",
        "Return the start plus scale times the arrow. Try it with scale 1: eps_uncond must cancel.",
    ),
    mistakes={
        "The two eps are swapped: this moves away from the prompt.": swap_eps,
        "You started at eps_cond. Start at eps_uncond.": start_at_cond,
        "The sign is wrong: add the arrow, do not subtract it.": subtract_arrow,
        "You added scale * eps_cond. Add scale times the difference of the two eps.": (
            no_difference
        ),
        "The start is missing: add eps_uncond.": only_difference,
        "The scale belongs to the whole difference. Write brackets around it.": no_brackets,
        "You used scale - 1. In this formula, scale 1 gives eps_cond.": scale_less_one,
        "This is an average, which is never stronger than eps_cond. Do not divide.": take_average,
    },
    passing=(
        "This line makes the picture follow the prompt. The argument cfg_scale of txt2img is its "
        "scale."
    ),
    difficulty=1,
    minutes=5,
    in_picture={"minisd.guidance.guided_denoiser": with_formula},
    draw=draw_cat,
    in_lesson=True,
)
