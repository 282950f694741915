"""Weights with few bits. The number of bits is the student's own."""

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def round_bits(x, *, bits=4):
    """Round each number to a few significant binary digits.

    x: any shape    returns: the same shape
    """
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def fixed_point(x, *, bits=4):
    return (x * 2**bits).round() / 2**bits


def cut_off(x, *, bits=4):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).trunc() / 2**bits, exponent)


def round_down(x, *, bits=4):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).floor() / 2**bits, exponent)


def one_bit_more(x, *, bits=4):
    return round_bits(x, bits=bits + 1)


def one_bit_less(x, *, bits=4):
    return round_bits(x, bits=bits - 1)


def decimal_digits(x, *, bits=4):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 10**bits).round() / 10**bits, exponent)


def bits_times_two(x, *, bits=4):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2 * bits).round() / (2 * bits), exponent)


def half_precision(x, *, bits=4):
    return x.half().to(x)


def mantissa_only(x, *, bits=4):
    mantissa, _ = torch.frexp(x)
    return (mantissa * 2**bits).round() / 2**bits


def one_exponent(x, *, bits=4):
    _, exponent = torch.frexp(x.abs().max())
    return (x / 2.0**exponent * 2**bits).round() / 2**bits * 2.0**exponent


def whole_number_power(x, *, bits=4):
    mantissa, exponent = torch.frexp(x)
    return (mantissa * 2**bits).round() / 2**bits * 2**exponent


def without_sign(x, *, bits=4):
    return round_bits(x.abs(), bits=bits)


def not_divided(x, *, bits=4):
    return round_bits(x, bits=bits) * 2**bits


def inputs(*shape):
    def draw(g):
        sizes = 2.0 ** (3 * normal(g, *shape)).round()
        return [normal(g, *shape) * sizes]

    return draw


def round_to_draw(x):
    """What the picture calls. check() puts the answer here."""
    return round_bits(x)


@torch.no_grad()
def draw_with_few_bits(sd):
    """A cat. Every weight of the U-Net has been rounded."""
    for parameter in sd.unet.parameters():
        parameter.copy_(round_to_draw(parameter))
    return draw_cat(sd)


EXERCISE = Exercise(
    name="round_bits",
    lesson="17",
    place=4,
    title="How many bits does a weight need?",
    question=(
        "A floating-point number is m * 2^e. torch.frexp(x) returns m, with 0.5 <= |m| < 1, and "
        "the whole number e. float32 (32 bits) has 24 binary digits for m, and half precision "
        "(float16, 16 bits) has 11. Write `round_bits(x)`, which keeps {bits} binary digits: round "
        "m to the nearest multiple of 2^-{bits}, and compute m * 2^e again with torch.ldexp(m, e). "
        "The exponent e stays. Zeros stay zeros."
    ),
    solution=round_bits,
    stages=(
        Stage("five numbers", 1, inputs(5)),
        Stage("a weight of 6 x 7", 2, inputs(6, 7)),
        Stage("zeros", 1, lambda g: [torch.cat([torch.zeros(2).double(), normal(g, 3)])]),
    ),
    hints=(
        "mantissa, exponent = torch.frexp(x). torch.ldexp(mantissa, exponent) gives x again.",
        "To round to multiples of 2^-b, multiply by 2**b, round, and divide by 2**b.",
        "torch.ldexp((mantissa * 2**b).round() / 2**b, exponent)",
    ),
    mistakes={
        "You rounded x itself, so small numbers vanish. Round the mantissa.": fixed_point,
        "You cut the rest off. Round to the nearest multiple.": cut_off,
        "You round down. Round to the nearest multiple.": round_down,
        "You kept one binary digit too many. The mantissa is below 1.": one_bit_more,
        "You kept one binary digit too few. All of them come after the point.": one_bit_less,
        "You rounded to decimal digits. Use powers of 2.": decimal_digits,
        "You multiplied by 2 times the number of bits. Use 2 to its power.": (bits_times_two),
        "This is half precision, with 11 binary digits. Keep fewer.": half_precision,
        "The exponent is missing: put the number together again with torch.ldexp.": mantissa_only,
        "In torch, 2**e is 0 for a negative whole number e. Use torch.ldexp(m, e).": (
            whole_number_power
        ),
        "All numbers share one exponent. Each has its own.": one_exponent,
        "The sign is lost. Round x, not its absolute value.": without_sign,
        "Your numbers are too large. After rounding, divide by 2 to the power of the bits.": (
            not_divided
        ),
    },
    passing="The picture was drawn with such weights. The usual weights have 24 binary digits.",
    difficulty=2,
    minutes=12,
    constants=lambda rng: {"bits": rng.choice([3, 4, 5, 6])},
    in_picture={"minisd.exercises.specs.round_bits.round_to_draw": lambda answer: answer},
    draw=draw_with_few_bits,
    in_lesson=True,
)
