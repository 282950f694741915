"""How far a place of the output sees: the receptive field of a stack of layers."""

from minisd.exercises.exercise import Exercise, Stage, draw_choice


def receptive_field(layers):
    """How many places of the input, along one side, can change one place of the output.

    layers: a list of pairs (kernel, stride), from the input to the output
    """
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
    return field


def ignores_strides(layers):
    return receptive_field([(kernel, 1) for kernel, _ in layers])


def whole_kernels(layers):
    return receptive_field([(kernel + 1, stride) for kernel, stride in layers])


def jumps_too_early(layers):
    field, jump = 1, 1
    for kernel, stride in layers:
        jump *= stride
        field += (kernel - 1) * jump
    return field


def starts_at_zero(layers):
    return receptive_field(layers) - 1


def one_side(layers):
    return (receptive_field(layers) - 1) / 2


def adds_strides(layers):
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump += stride - 1
    return field


def from_the_output(layers):
    return receptive_field(layers[::-1])


def draw_layers(generator):
    pairs = [(k, s) for k in (1, 3, 5) for s in (1, 2, 3)]
    return [[(3, 2), (5, 3), *(draw_choice(generator, pairs) for _ in range(4)), (3, 1)]]


EXERCISE = Exercise(
    name="receptive_field",
    lesson="08b",
    place=1,
    title="How far a place sees",
    question=(
        "Write `receptive_field(layers)`. Start at the input: the field is 1, and the jump is 1. "
        "The jump is the distance between two neighbouring places of a layer's input, counted in "
        "places of the network's input. Each layer adds (kernel - 1) times the jump to the field. "
        "Then it multiplies the jump by its stride. An upsampling that doubles the size counts as "
        "kernel 1 with stride 0.5. Return the field after the last layer."
    ),
    solution=receptive_field,
    stages=(
        Stage("two 3x3 convolutions", 1, lambda g: [[(3, 1), (3, 1)]]),
        Stage("down and up again", 1, lambda g: [[(3, 1), (3, 2), (3, 1), (1, 0.5), (3, 1)]]),
        Stage("seven layers", 1, draw_layers),
    ),
    hints=(
        "Keep two numbers while you go through the layers: the field and the jump.",
        "The kernel of a layer counts with the jump of the layers before it. So change the field "
        "first, then the jump.",
        "for kernel, stride in layers: field = field + (kernel - 1) * jump, then jump = jump * "
        "stride.",
    ),
    mistakes={
        "The strides are not used. After a stride of 2, each place counts twice.": ignores_strides,
        "You added kernel * jump. A kernel of 3 sees 2 more places: add (kernel - 1) * jump.": (
            whole_kernels
        ),
        "The jump is multiplied too early: a layer's own stride does not change its own field.": (
            jumps_too_early
        ),
        "The field starts at 0. A place sees at least itself: start at 1.": starts_at_zero,
        "This is how far a place sees to one side. Count both sides and the place.": one_side,
        "The strides are added. Two strides of 2 make a jump of 4: multiply.": adds_strides,
        "You went from the output to the input. Go from the input to the output.": from_the_output,
    },
    passing="The lesson applies the same rule to all layers of the U-Net.",
    difficulty=2,
    minutes=10,
    in_lesson=True,
)
