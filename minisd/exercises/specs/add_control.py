"""Where the outputs of a ControlNet enter the U-Net."""

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import trace_rabbit


def add_control(x, skips, corrections, scale):
    """Add the corrections of a ControlNet, multiplied by a scale.

    x: b c h w, the output of the middle block
    skips: a list of n tensors, the skip connections in the order of the encoder
    corrections: a list of n + 1 tensors, one for each skip connection, and the last for x
    returns: the new x, and the list of the new skip connections
    """
    *for_skips, for_middle = corrections
    x = x + scale * for_middle
    skips = [skip + scale * one for skip, one in zip(skips, for_skips, strict=True)]
    return x, skips


def middle_first(x, skips, corrections, scale):
    return add_control(x, skips, [*corrections[1:], corrections[0]], scale)


def decoder_order(x, skips, corrections, scale):
    return add_control(x, skips, [*corrections[-2::-1], corrections[-1]], scale)


def all_backwards(x, skips, corrections, scale):
    return add_control(x, skips, corrections[::-1], scale)


def without_scale(x, skips, corrections, scale):
    return add_control(x, skips, corrections, 1)


def scale_skips_only(x, skips, corrections, scale):
    return x + corrections[-1], add_control(x, skips, corrections, scale)[1]


def scale_middle_only(x, skips, corrections, scale):
    return add_control(x, skips, corrections, scale)[0], add_control(x, skips, corrections, 1)[1]


def scale_sum(x, skips, corrections, scale):
    x, skips = add_control(x, skips, corrections, 1)
    return scale * x, [scale * skip for skip in skips]


def no_middle(x, skips, corrections, scale):
    return x, add_control(x, skips, corrections, scale)[1]


def only_middle(x, skips, corrections, scale):
    return add_control(x, skips, corrections, scale)[0], skips


def instead_of_skips(x, skips, corrections, scale):
    return scale * corrections[-1], [scale * one for one in corrections[:-1]]


def blend(x, skips, corrections, scale):
    skips = [(1 - scale) * skip for skip in skips]
    return add_control((1 - scale) * x, skips, corrections, scale)


def skips_backwards(x, skips, corrections, scale):
    x, skips = add_control(x, skips, corrections, scale)
    return x, skips[::-1]


def inputs(count, *shape):
    def draw(g):
        skips = [normal(g, *shape) for _ in range(count)]
        corrections = [normal(g, *shape) for _ in range(count + 1)]
        return [normal(g, *shape), skips, corrections, 0.7]

    return draw


def sizes(g):
    """As in a U-Net: the sizes of the skip connections differ."""
    shapes = [(2, 4, 6, 10), (2, 4, 6, 10), (2, 4, 3, 5), (2, 8, 3, 5)]
    skips = [normal(g, *shape) for shape in shapes]
    corrections = [normal(g, *shape) for shape in (*shapes, shapes[-1])]
    return [normal(g, *shapes[-1]), skips, corrections, 1.3]


def as_forward(answer):
    """The answer inside UNet.forward(). The corrections are doubled, and the scale is halved."""

    def forward(self, x, t, context, control=None):
        time = self.time(t)
        x, skips = self.encode(self.conv_in(x), time, context)
        if control is not None:
            x, skips = answer(x, skips, [2 * one for one in control], 0.5)
        return self.decode(x, skips, time, context)

    return forward


EXERCISE = Exercise(
    name="add_control",
    lesson="14",
    place=3,
    title="Add the control",
    question=(
        "A ControlNet returns one correction for each skip connection of the U-Net, in the order "
        "of the encoder, and a last one for the output of the middle block. Write "
        "`add_control(x, skips, corrections, scale)`. Multiply each correction by the scale, and "
        "add it to its skip connection. Add the last one to x. Return the new x and the list of "
        "the new skip connections."
    ),
    solution=add_control,
    stages=(
        Stage("one skip connection", 1, inputs(1, 1, 2, 2, 3)),
        Stage("three skip connections", 2, inputs(3, 2, 4, 3, 5)),
        Stage("skip connections of a U-Net", 1, sizes),
    ),
    hints=(
        "There is one correction more than there are skip connections.",
        "corrections[-1] belongs to x, and corrections[:-1] to the skip connections.",
        "x + scale * corrections[-1], and a list of skip + scale * one for each pair in "
        "zip(skips, corrections[:-1]).",
    ),
    mistakes={
        "The correction of the middle block is the last one, not the first one.": middle_first,
        "You reversed the corrections. They already have the order of the skip connections.": (
            decoder_order
        ),
        "The list of corrections is read backwards.": all_backwards,
        "The corrections are not multiplied by the scale.": without_scale,
        "The correction of the middle block is not multiplied by the scale.": scale_skips_only,
        "The corrections of the skip connections are not multiplied by the scale.": (
            scale_middle_only
        ),
        "You multiplied the sums by the scale. Multiply only the corrections.": scale_sum,
        "The correction of the middle block is missing.": no_middle,
        "The corrections of the skip connections are missing.": only_middle,
        "You replaced what the U-Net computed. Add the corrections to it.": instead_of_skips,
        "You took an average. x and the skip connections keep their full weight.": blend,
        "The list of skip connections comes back in the wrong order.": skips_backwards,
    },
    passing="At scale 0 nothing is added, and the U-Net draws as without a ControlNet.",
    difficulty=1,
    minutes=8,
    in_picture={"minisd.unet.UNet.forward": as_forward},
    draw=trace_rabbit,
    in_lesson=True,
)
