"""The activation of OpenAI's CLIP."""

import torch
import torch.nn.functional as F

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def quick_gelu(x):
    """An approximation of the gelu.

    x: any shape    returns: the same shape
    """
    return x * torch.sigmoid(1.702 * x)


def silu(x):
    return x * torch.sigmoid(x)


def only_gate(x):
    return torch.sigmoid(1.702 * x)


def factor_outside(x):
    return 1.702 * x * torch.sigmoid(x)


def minus(x):
    return x * torch.sigmoid(-1.702 * x)


def tanh_gate(x):
    return x * torch.tanh(1.702 * x)


def added_gate(x):
    return x + torch.sigmoid(1.702 * x)


def exact_gelu(x):
    return F.gelu(x)


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


EXERCISE = Exercise(
    name="quick_gelu",
    lesson="06",
    place=1,
    title="Quick GELU",
    question=(
        "Write `quick_gelu(x)`, the activation in OpenAI's CLIP: each number x is multiplied by "
        "the sigmoid of 1.702 times x. So large numbers stay nearly the same, and negative "
        "numbers become nearly 0."
    ),
    solution=quick_gelu,
    stages=(
        Stage("one number", 1, lambda g: [normal(g) + 1]),
        Stage("a batch", 1, lambda g: [3 * normal(g, 2, 5, 7)]),
    ),
    hints=(
        "torch.sigmoid works on every number of a tensor.",
        "The factor 1.702 belongs inside the sigmoid.",
        "x times torch.sigmoid(1.702 * x).",
    ),
    mistakes={
        "The factor 1.702 is missing. This is the SiLU.": silu,
        "This is only the sigmoid. Multiply it by x.": only_gate,
        "The factor 1.702 belongs inside the sigmoid.": factor_outside,
        "The sign in the sigmoid is wrong: large numbers should stay nearly the same.": minus,
        "This is tanh. Use the sigmoid.": tanh_gate,
        "Multiply x by the sigmoid. You added it.": added_gate,
        "This is the exact gelu. CLIP was trained with the approximation in the question.": (
            exact_gelu
        ),
        "This is the gelu with tanh. CLIP was trained with the approximation in the question.": (
            tanh_gelu
        ),
    },
    passing=(
        "SD v1 uses this function in every layer of its text transformer. The mini uses the "
        "exact gelu, so your function changes its picture a little."
    ),
    difficulty=1,
    minutes=5,
    replaces={"minisd.clip.quick_gelu": lambda answer: answer},
    in_picture={"torch.nn.functional.gelu": lambda answer: answer},
    draw=draw_cat,
)
