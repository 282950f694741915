"""A zero convolution: silent at first, but able to learn."""

from einops import einsum, rearrange

from minisd.exercises.exercise import Exercise, Stage, normal


def zero_convolution(x, weight, bias, slope):
    """A 1x1 convolution, and the gradients of its three inputs.

    x: b c_in h w    weight: c_out c_in    bias: c_out
    slope: b c_out h w, the gradient of the loss with respect to the output
    returns: the output, b c_out h w, and the gradients of the weight, the bias and x
    """
    output = einsum(x, weight, "b i h w, o i -> b o h w") + rearrange(bias, "o -> o 1 1")
    weight_slope = einsum(slope, x, "b o h w, b i h w -> o i")
    bias_slope = slope.sum(dim=(0, 2, 3))
    x_slope = einsum(slope, weight, "b o h w, o i -> b i h w")
    return output, weight_slope, bias_slope, x_slope


def mean_of_places(x, weight, bias, slope):
    output, weight_slope, bias_slope, x_slope = zero_convolution(x, weight, bias, slope)
    count = x[:, 0].numel()
    return output, weight_slope / count, bias_slope / count, x_slope


def mean_of_samples(x, weight, bias, slope):
    output, weight_slope, bias_slope, x_slope = zero_convolution(x, weight, bias, slope)
    return output, weight_slope / len(x), bias_slope / len(x), x_slope


def times_weight(x, weight, bias, slope):
    output, weight_slope, bias_slope, x_slope = zero_convolution(x, weight, bias, slope)
    return output, weight_slope * weight, bias_slope, x_slope


def inputs_first(x, weight, bias, slope):
    output, weight_slope, bias_slope, x_slope = zero_convolution(x, weight, bias, slope)
    return output, weight_slope.T, bias_slope, x_slope


def not_turned(x, weight, bias, slope):
    output, weight_slope, bias_slope, _ = zero_convolution(x, weight, bias, slope)
    return output, weight_slope, bias_slope, einsum(slope, weight, "b i h w, o i -> b o h w")


def slope_passes(x, weight, bias, slope):
    output, weight_slope, bias_slope, _ = zero_convolution(x, weight, bias, slope)
    return output, weight_slope, bias_slope, slope


def no_bias(x, weight, bias, slope):
    output, *slopes = zero_convolution(x, weight, 0 * bias, slope)
    return output, *slopes


def output_times_slope(x, weight, bias, slope):
    output, _, bias_slope, x_slope = zero_convolution(x, weight, bias, slope)
    return output, einsum(slope, output, "b o h w, b i h w -> o i"), bias_slope, x_slope


def bias_from_output(x, weight, bias, slope):
    output, weight_slope, bias_slope, x_slope = zero_convolution(x, weight, bias, slope)
    return output, weight_slope, bias_slope * bias, x_slope


def transposed_weight(x, weight, bias, slope):
    return zero_convolution(x, weight.T, bias, slope)


def residual(x, weight, bias, slope):
    output, *slopes = zero_convolution(x, weight, bias, slope)
    return x + output, *slopes


def inputs(b, h, w, zero):
    def draw(g):
        weight, bias = normal(g, 3, 3), normal(g, 3)
        if zero:
            weight, bias = 0 * weight, 0 * bias
        return [normal(g, b, 3, h, w), weight, bias, normal(g, b, 3, h, w)]

    return draw


def wide_inputs(g):
    return [normal(g, 2, 4, 3, 5), normal(g, 3, 4), normal(g, 3), normal(g, 2, 3, 3, 5)]


EXERCISE = Exercise(
    name="zero_convolution",
    lesson="14",
    place=2,
    title="How a layer of zeros can learn",
    question=(
        "All weights of a zero convolution start at 0, so its output is 0. Why can it learn? "
        "Write `zero_convolution(x, weight, bias, slope)`, and compute the gradients by hand. A "
        "1x1 convolution applies the matrix `weight` at each place, and adds the bias. `slope` "
        "says how the loss changes with each number of the output. The gradient of weight[o, i] "
        "is the sum of slope[:, o] * x[:, i] over all samples and places. The gradient of "
        "bias[o] is the sum of slope[:, o]. The gradient of x comes back through the matrix: at "
        "each place, for channel i, it is the sum of slope[:, o] * weight[o, i] over o. Return "
        "the output and these three gradients."
    ),
    solution=zero_convolution,
    stages=(
        Stage("one place, weights of 0", 1, inputs(1, 1, 1, zero=True)),
        Stage("one place", 1, inputs(1, 1, 1, zero=False)),
        Stage("3 x 5 places, weights of 0", 1, inputs(1, 3, 5, zero=True)),
        Stage("a batch of 2, and 4 channels to 3", 2, wide_inputs),
    ),
    hints=(
        "Each of the four results is one einsum or one sum.",
        'einsum(x, weight, "b i h w, o i -> b o h w") is the output without the bias. The letters '
        "that are missing on the right are summed.",
        'The gradients: einsum(slope, x, "b o h w, b i h w -> o i"), slope.sum(dim=(0, 2, 3)) and '
        'einsum(slope, weight, "b o h w, o i -> b i h w").',
    ),
    mistakes={
        "The gradients of the weight and the bias are sums over all places, not means.": (
            mean_of_places
        ),
        "The gradients of the weight and the bias are sums over the samples, not means.": (
            mean_of_samples
        ),
        "The weight does not occur in its own gradient. Multiply slope by x only.": (times_weight),
        "The gradient of the weight has the axes c_in c_out. It should be c_out c_in.": (
            inputs_first
        ),
        "On the way back, sum over c_out: the matrix is transposed.": not_turned,
        "The gradient of x is not the slope itself. Multiply the slope by the weight.": (
            slope_passes
        ),
        "The bias is not added to the output.": no_bias,
        "The gradient of the weight needs the input x, not the output.": output_times_slope,
        "The bias does not occur in its own gradient. Sum the slope.": bias_from_output,
        "The matrix is transposed: weight is c_out c_in.": transposed_weight,
        "This convolution does not add x to its output.": residual,
    },
    passing=(
        "At first only the zero convolution itself learns, because the gradient of x is 0. After "
        "one step its weights are no longer 0, and the layers before it learn as well."
    ),
    difficulty=3,
    minutes=20,
)
