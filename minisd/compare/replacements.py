"""Common mistakes of ports: operations that ports often get wrong, and what they compute instead.

REPLACED maps the name of a torch function to the mistakes that ports make with it. Each mistake has
a description and a function. The function takes the same arguments as the torch function, and
returns the wrong result. If compare should try another mistake, add an entry to REPLACED.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minisd.compare.calls import map_floats

Change = Callable[..., object]  # takes the arguments of a torch function, returns a wrong result

OTHER_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "exact gelu": F.gelu,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "quick gelu with 1.7 (not 1.702)": lambda x: x * torch.sigmoid(1.7 * x),
    "relu": F.relu,
    "tanh": torch.tanh,
    "the identity (no activation)": lambda x: x,
}


def other_norm(
    other_eps: float | None = None,
    weighted: bool = True,
    shifted: bool = True,
    outside: bool = False,
    less: int = 0,
    groups: int = 0,
    mixed: bool = False,
) -> Change:
    """A group norm or a layer norm that is computed in another way. The defaults change nothing.

    other_eps: the eps. None: the eps of the norm
    weighted: whether the result is multiplied by the weight
    shifted: whether the bias is added to the result
    outside: whether eps is added to the standard deviation, not to the variance
    less: for the variance, the sum of the n squares is divided by n - less
    groups: the number of groups. 0: as many as the norm has
    mixed: whether a group consists of every n-th channel, and not of neighbouring channels
    """

    def deal(x: Tensor, n: int) -> Tensor:
        return rearrange(x, "b (d n) ... -> b (n d) ...", n=n) if mixed else x

    def change(x, size, weight, bias, eps):
        is_group_norm = isinstance(size, int)
        n = groups or (size if is_group_norm else 1)
        rows = deal(x, n).reshape(len(x), n, -1) if is_group_norm else x
        rows = rows - rows.mean(-1, keepdim=True)
        variance = rows.pow(2).sum(-1, keepdim=True) / (rows.shape[-1] - less)
        added = eps if other_eps is None else other_eps
        rows = rows / (variance.sqrt() + added if outside else (variance + added).sqrt())
        y = deal(rows.reshape(x.shape), x.shape[1] // n) if is_group_norm else rows
        axes = (-1, *[1] * (x.ndim - 2)) if is_group_norm else (-1,)
        y = y * weight.reshape(axes) if weighted else y
        return y + bias.reshape(axes) if shifted else y

    return change


EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-4, 1e-3, 0)
NORMS = {
    **{f"norms with eps = {eps:g}": other_norm(eps) for eps in EPSILONS},
    "norms without their weights": other_norm(weighted=False, shifted=False),
    "norms without their gain": other_norm(weighted=False),
    "norms without their shift": other_norm(shifted=False),
    "norms with eps outside the root": other_norm(outside=True),
    "norms with the variance of a sample (n - 1)": other_norm(less=1),
    "without the norm": lambda x, *_: x,
}
WRONG_ACTIVATIONS = {
    f"{name} as activation": lambda x, f=f, **_: f(x) for name, f in OTHER_ACTIVATIONS.items()
}


PADDINGS = ("reflect", "replicate", "circular")


def other_padding(pad: tuple[int, ...], only: int = 0, mode: str = "constant") -> Change:
    """A 3 x 3 convolution that pads its input in another way.

    pad: the padding on the left, right, top and bottom
    only: the stride of the convolutions to change. 0: convolutions with any stride are changed
    """

    def change(x, weight, bias, stride, padding, *more):
        assert weight.shape[-1] == 3 and only in (0, stride[0])
        return F.conv2d(F.pad(x, pad, mode), weight, bias, stride, 0, *more)

    return change


def other_weight(function: Callable, edit: Callable[[Tensor], Tensor]) -> Change:
    return lambda x, weight, *more: function(x, edit(weight), *more)


def upsample(mode: str) -> Change:
    return lambda x, size=None, scale_factor=None, **_: F.interpolate(x, size, scale_factor, mode)


sdpa = F.scaled_dot_product_attention


def set_scale(power: float, all_channels: bool = False) -> Change:
    def change(q, k, v, attn_mask=None):
        size = float(q.shape[-1] * (q.shape[1] if all_channels else 1))
        return sdpa(q, k, v, attn_mask=attn_mask, scale=size**power)

    return change


def other_mask(edit: Callable[[Tensor], Tensor | None]) -> Change:
    return lambda q, k, v, attn_mask: sdpa(q, k, v, attn_mask=edit(attn_mask))


def hide(mask: Tensor, diagonal: int) -> Tensor:
    return torch.full_like(mask, -1e9).triu(diagonal)


def mask_by_zero(q, k, v, attn_mask) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return scores.masked_fill(attn_mask < 0, 0).softmax(-1) @ v


def softmax_over_queries(q, k, v, attn_mask=None) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores if attn_mask is None else scores + attn_mask).softmax(dim=-2) @ v


def other_order(split: bool, merge: bool) -> Change:
    """A reshape that uses the order (d heads) instead of the order (heads d).

    split: whether this concerns reshapes that split an axis in two
    merge: whether this concerns reshapes that merge two axes
    """

    def change(x, shape):
        if split and len(shape) == x.ndim + 1:
            i = next(i for i, size in enumerate(x.shape) if size != shape[i])
            return x.unflatten(i, (shape[i + 1], shape[i])).transpose(i, i + 1)
        if merge and len(shape) == x.ndim - 1:
            i = next(i for i, size in enumerate(shape) if size != x.shape[i])
            return x.transpose(i, i + 1).reshape(shape)
        return x.reshape(shape)

    return change


def cast(tree: Any, dtype: torch.dtype) -> Any:
    return map_floats(lambda x: x.to(dtype), tree)


def in_precision(f: Callable, dtype: torch.dtype) -> Change:
    return lambda *args, **named: cast(f(*cast(args, dtype), **cast(named, dtype)), args[0].dtype)


REPLACED: dict[str, dict[str, Change]] = {
    "group_norm": {
        **NORMS,
        **{f"group norms with {n} groups": other_norm(groups=n) for n in (1, 2, 4, 8, 16, 32, 64)},
        "group norms with every n-th channel in a group": other_norm(mixed=True),
    },
    "layer_norm": NORMS.copy(),
    "silu": WRONG_ACTIVATIONS.copy(),
    "gelu": WRONG_ACTIVATIONS.copy(),
    "linear": {
        "without the bias": lambda x, weight, bias=None: F.linear(x, weight),
        "with a transposed weight": other_weight(F.linear, lambda w: w.T),
    },
    "conv2d": {
        "without the bias": lambda x, w, b, *more: F.conv2d(x, w, None, *more),
        "with height and width of the kernel swapped": other_weight(F.conv2d, lambda w: w.mT),
        "with a flipped kernel": other_weight(F.conv2d, lambda w: w.flip(2, 3)),
        "with the two channels of the kernel swapped": other_weight(
            F.conv2d, lambda w: w.swapdims(0, 1)
        ),
        "padding on left and top (or all sides) before it halves": other_padding((1, 0, 1, 0), 2),
        "padding on right and bottom before it halves": other_padding((0, 1, 0, 1), 2),
        "padding on left and top only": other_padding((2, 0, 2, 0), 1),
        "padding on right and bottom only": other_padding((0, 2, 0, 2), 1),
        **{f"padding by {m}": other_padding((1, 1, 1, 1), mode=m) for m in PADDINGS},
    },
    "pad": {
        "padding on left and top, as on all sides": lambda x, old, **_: F.pad(x, (1, 0, 1, 0)),
        "padding on right and bottom": lambda x, old, **_: F.pad(x, (0, 1, 0, 1)),
        "padding that repeats the edge": lambda x, old, **_: F.pad(x, old, mode="replicate"),
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
        "attention scaled by 1 / root of the width of all heads, not of one": set_scale(-0.5, True),
        "attention without the mask": other_mask(lambda mask: None),
        "attention with the mask turned round": other_mask(lambda mask: mask.T),
        "attention that hides each token from itself": other_mask(lambda mask: hide(mask, 0)),
        "attention that shows one token too many": other_mask(lambda mask: hide(mask, 2)),
        "attention with a mask that sets scores to 0": mask_by_zero,
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
        "with every n-th channel, not halves": lambda x, n, dim=0: x.unflatten(dim, (-1, n)).unbind(
            dim
        ),
    },
    "cat": {
        "with the joined tensors in the other order": lambda two, **at: torch.cat(two[::-1], **at),
        "with zeros for the second": lambda two, **at: torch.cat([two[0], 0 * two[1]], **at),
    },
}
OPERATIONS = ("silu", "gelu", "group_norm", "layer_norm", "linear", "conv2d", sdpa.__name__)
for name in OPERATIONS:
    REPLACED[name][f"{name} in half precision"] = in_precision(getattr(F, name), torch.half)
    REPLACED[name][f"{name} in bfloat16"] = in_precision(getattr(F, name), torch.bfloat16)
