"""Common mistakes of ports: operations that they often get wrong, and what they compute instead.

REPLACED maps the name of a torch function to its mistakes. Each mistake is a description and a
function. This function takes the same arguments as the torch function, and makes the mistake. To
try another mistake, add an entry.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils._pytree import tree_map

Change = Callable[..., object]  # takes the arguments of a torch function, returns another result

EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-4, 1e-3, 0.0)
OTHER_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "exact gelu": F.gelu,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "quick gelu with 1.7 (not 1.702)": lambda x: x * torch.sigmoid(1.7 * x),
    "relu": F.relu,
    "tanh": torch.tanh,
    "no activation": lambda x: x,
}


def with_eps(norm: Callable, eps: float) -> Change:
    return lambda x, shape, weight=None, bias=None, **_: norm(x, shape, weight, bias, eps)


def outside_root(x: Tensor, shape, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """A group norm or a layer norm that divides by std + eps, not by the root of (var + eps)."""
    groups = shape if isinstance(shape, int) else x[..., 0].numel()
    rows = x.reshape(len(x) * groups, -1) if isinstance(shape, int) else x.reshape(groups, -1)
    rows = rows - rows.mean(1, keepdim=True)
    y = (rows / (rows.pow(2).mean(1, keepdim=True).sqrt() + eps)).reshape(x.shape)
    axes = (-1, *[1] * (x.ndim - 2)) if isinstance(shape, int) else (-1,)
    return y * weight.reshape(axes) + bias.reshape(axes)


def with_groups(groups: int, mixed: bool = False) -> Change:
    """mixed: whether each group takes every groups-th channel, not neighbouring channels"""

    def change(x, own_groups, weight, bias, eps):
        n = groups or own_groups
        y = rearrange(x, "b (d n) ... -> b (n d) ...", n=n) if mixed else x
        y = F.group_norm(y, n, eps=eps)
        y = rearrange(y, "b (n d) ... -> b (d n) ...", n=n) if mixed else y
        axes = (-1, *[1] * (x.ndim - 2))
        return y * weight.reshape(axes) + bias.reshape(axes)

    return change


def sample_variance(x: Tensor, shape, weight, bias, eps) -> Tensor:
    """A layer norm whose variance is the sum of the squares divided by n - 1, not by n."""
    spread = (x.var(-1, keepdim=True) + eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) / spread * weight + bias


def norm_changes(norm: Callable) -> dict[str, Change]:
    plain = lambda x, shape, eps=1e-5, **_: norm(x, shape, None, None, eps)  # noqa: E731
    known = {f"norms with eps = {eps:g}": with_eps(norm, eps) for eps in EPSILONS}
    return {
        **known,
        "norms without their weights": plain,
        "norms without their gain": lambda x, shape, weight=None, bias=None, eps=1e-5: norm(
            x, shape, None, bias, eps
        ),
        "norms with eps outside the root": outside_root,
        "without the norm": lambda x, *_, **__: x,
    }


def activation_changes() -> dict[str, Change]:
    return {
        f"{name} as activation": lambda x, f=f, **_: f(x) for name, f in OTHER_ACTIVATIONS.items()
    }


def lopsided_conv(pad: tuple[int, ...]) -> Change:
    """A 3 x 3 convolution that pads only two sides of its input.

    pad: the padding on the left, right, top and bottom
    """

    def change(x, weight, bias, stride, padding, *more):
        assert tuple(stride) == (1, 1) and weight.shape[-1] == 3
        return F.conv2d(F.pad(x, pad), weight, bias, stride, 0, *more)

    return change


def strided_conv(pad: tuple[int, ...]) -> Change:
    """A convolution that uses other padding where it halves the height and the width.

    pad: the padding on the left, right, top and bottom
    """

    def change(x, weight, bias, stride, padding, *more):
        halves = tuple(stride) == (2, 2)
        x, padding = (F.pad(x, pad), 0) if halves else (x, padding)
        return F.conv2d(x, weight, bias, stride, padding, *more)

    return change


def padded_conv(mode: str) -> Change:
    def change(x, weight, bias, stride, padding, *more):
        x = F.pad(x, (int(padding[0]),) * 4, mode=mode)
        return F.conv2d(x, weight, bias, stride, 0, *more)

    return change


def upsample(mode: str) -> Change:
    return lambda x, size=None, scale_factor=None, **_: F.interpolate(x, size, scale_factor, mode)


sdpa = F.scaled_dot_product_attention


def set_scale(power: float, all_channels: bool = False) -> Change:
    def change(q, k, v, attn_mask=None):
        size = float(q.shape[-1] * (q.shape[1] if all_channels else 1))
        return sdpa(q, k, v, attn_mask=attn_mask, scale=size**power)

    return change


def with_mask(diagonal: int, hidden: float = float("-inf")) -> Change:
    """Attention whose causal mask begins at another diagonal, or hides with another score."""

    def change(q, k, v, attn_mask):
        scores = q @ k.mT * q.shape[-1] ** -0.5
        hides = torch.ones_like(attn_mask, dtype=torch.bool).triu(diagonal)
        return scores.masked_fill(hides, hidden).softmax(-1).nan_to_num() @ v

    return change


def softmax_over_queries(q, k, v, attn_mask=None) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores if attn_mask is None else scores + attn_mask).softmax(dim=-2) @ v


def other_order(split: bool, merge: bool) -> Change:
    """A reshape with another order of axes: split as (d heads), not as (heads d), or merged so."""

    def change(x, shape):
        if split and len(shape) == x.ndim + 1:
            i = next(i for i, size in enumerate(x.shape) if size != shape[i])
            return x.unflatten(i, (shape[i + 1], shape[i])).transpose(i, i + 1)
        if merge and len(shape) == x.ndim - 1:
            i = next(i for i, size in enumerate(shape) if size != x.shape[i])
            return x.transpose(i, i + 1).reshape(shape)
        return x.reshape(shape)

    return change


def in_precision(function: Callable, dtype: torch.dtype) -> Change:
    def cast(leaf, to):
        return leaf.to(to) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    def change(*args, **kwargs):
        less = tree_map(lambda leaf: cast(leaf, dtype), (args, kwargs))
        return function(*less[0], **less[1]).to(args[0].dtype)

    return change


REPLACED: dict[str, dict[str, Change]] = {
    "group_norm": {
        **norm_changes(F.group_norm),
        **{f"group norms with {n} groups": with_groups(n) for n in (1, 2, 4, 8, 16, 32, 64)},
        "group norms with every n-th channel in a group": with_groups(0, mixed=True),
    },
    "layer_norm": {
        **norm_changes(F.layer_norm),
        "layer norms with the variance of a sample (n - 1)": sample_variance,
    },
    "silu": activation_changes(),
    "gelu": activation_changes(),
    "linear": {
        "without the bias": lambda x, weight, bias=None: F.linear(x, weight),
        "with a transposed weight": lambda x, weight, bias=None: F.linear(x, weight.T, bias),
    },
    "conv2d": {
        "without the bias": lambda x, w, b, *more: F.conv2d(x, w, None, *more),
        "with height and width of the kernel swapped": lambda x, w, *more: F.conv2d(x, w.mT, *more),
        "with a flipped kernel": lambda x, w, *more: F.conv2d(x, w.flip(2, 3), *more),
        "with input and output channels of the kernel swapped": lambda x, w, *more: F.conv2d(
            x, w.transpose(0, 1), *more
        ),
        "padding on left and top, as on all sides, before it halves": strided_conv((1, 0, 1, 0)),
        "padding on right and bottom before it halves": strided_conv((0, 1, 0, 1)),
        "padding on left and top only": lopsided_conv((2, 0, 2, 0)),
        "padding on right and bottom only": lopsided_conv((0, 2, 0, 2)),
        **{f"padding by {m}": padded_conv(m) for m in ("reflect", "replicate", "circular")},
    },
    "pad": {
        "padding on left and top": lambda x, old, **_: F.pad(x, (1, 0, 1, 0)),
        "padding on right and bottom": lambda x, old, **_: F.pad(x, (0, 1, 0, 1)),
        "padding that repeats the edge": lambda x, old, **_: F.pad(x, old, mode="replicate"),
        "padding on all sides": lambda x, old, **_: F.pad(x, (1, 1, 1, 1)),
    },
    "interpolate": {
        **{f"{m} upsampling": upsample(m) for m in ("bilinear", "bicubic", "nearest-exact")},
        "upsampling that tiles the picture": lambda x, **_: x.repeat(1, 1, 2, 2),
    },
    "scaled_dot_product_attention": {
        "attention without the scale": set_scale(0),
        "attention scaled by 1 / width of a head": set_scale(-1),
        "attention scaled by the width of a head to the power -1/4": set_scale(-0.25),
        "attention multiplied by the root of the width, not divided": set_scale(0.5),
        "attention scaled by the root of all channels, not of one head's": set_scale(-0.5, True),
        "attention without the mask": lambda q, k, v, attn_mask=None: sdpa(q, k, v),
        "attention with the mask turned round": lambda q, k, v, attn_mask: sdpa(
            q, k, v, attn_mask.T
        ),
        "attention with a mask that hides each token from itself": with_mask(0),
        "attention with a mask that shows one token too many": with_mask(2),
        "attention with a mask that sets scores to 0": with_mask(1, hidden=0.0),
        "attention with the softmax over the queries": softmax_over_queries,
        "attention with queries and keys swapped": lambda q, k, v, **mask: sdpa(k, q, v, **mask),
        "attention with keys and values swapped": lambda q, k, v, **mask: sdpa(q, v, k, **mask),
        "attention with queries and values swapped": lambda q, k, v, **mask: sdpa(v, k, q, **mask),
    },
    "reshape": {
        "with an axis split in the other order (d heads)": other_order(True, False),
        "with two axes merged in the other order (d heads)": other_order(False, True),
        "with axes split and merged in the other order (d heads)": other_order(True, True),
    },
    "permute": {"without a swap of axes": lambda x, axes: x},
    "add": {
        "without the second summand (a residual, a shift)": lambda a, b: a,
        "without the first summand (a residual)": lambda a, b: b + 0 * a,
        "with a sum divided by the root of 2": lambda a, b: (a + b) / 2**0.5,
        "with a sum halved": lambda a, b: (a + b) / 2,
        "with a difference in place of a sum": lambda a, b: a - b,
        "with the second summand twice": lambda a, b: a + 2 * b,
    },
    "mul": {
        "without the second factor": lambda a, b: a,
        "without the first factor": lambda a, b: b,
        "with a sum in place of a product": lambda a, b: a + b,
    },
    "chunk": {
        "with the two halves swapped": lambda x, n, dim=0: x.chunk(n, dim)[::-1],
        "with every second channel in place of halves": lambda x, n, dim=0: [
            x.unflatten(dim, (-1, n)).select(dim, i) for i in range(n)
        ],
    },
    "cat": {
        "with the joined tensors in the other order": lambda parts, **at: torch.cat(
            [*parts][::-1], **at
        ),
        "with zeros for the second of the joined tensors": lambda parts, **at: torch.cat(
            [parts[0], *map(torch.zeros_like, parts[1:])], **at
        ),
    },
}
LESS_PRECISE = {
    "silu": F.silu,
    "gelu": F.gelu,
    "group_norm": F.group_norm,
    "layer_norm": F.layer_norm,
}
LESS_PRECISE |= {"linear": F.linear, "conv2d": F.conv2d, sdpa.__name__: sdpa}
for name, function in LESS_PRECISE.items():
    REPLACED[name][f"{name} in half precision"] = in_precision(function, torch.half)
    REPLACED[name][f"{name} in bfloat16"] = in_precision(function, torch.bfloat16)
