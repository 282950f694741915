"""Common mistakes of ports: operations that they often get wrong, and what they compute instead.

REPLACED maps the name of a torch function to its mistakes. Each mistake is a description and a
function. This function takes the same arguments as the torch function, and makes the mistake. To
try another mistake, add an entry.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Change = Callable[..., object]  # takes the arguments of a torch function, returns another result

EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-4, 1e-3, 0.0)
OTHER_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "exact gelu": F.gelu,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
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


def with_groups(groups: int) -> Change:
    return lambda x, _, **more: F.group_norm(x, groups, **more)


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


def reorder(*places: int) -> Change:
    """Attention whose queries, keys and values are mixed up.

    places: which of (queries, keys, values) to use as queries, as keys and as values
    """
    return lambda *qkv, attn_mask=None: sdpa(*[qkv[i] for i in places], attn_mask=attn_mask)


def with_mask(diagonal: int) -> Change:
    def change(q, k, v, attn_mask):
        mask = torch.full(attn_mask.shape, float("-inf")).to(q).triu(diagonal)
        return sdpa(q, k, v, attn_mask=mask).nan_to_num()

    return change


def softmax_over_queries(q, k, v, attn_mask=None) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores if attn_mask is None else scores + attn_mask).softmax(dim=-2) @ v


def deal(x: Tensor, heads: int) -> Tensor:
    """Give each head every heads-th channel: split the channels as (d heads), not as (heads d).

    x: b heads n d    returns: b heads n d
    """
    b, _, n, d = x.shape
    return x.transpose(1, 2).reshape(b, n, d, heads).permute(0, 3, 1, 2)


def gather(x: Tensor) -> Tensor:
    """The reverse of deal(): bring the channels back to their old places. x: b heads n d"""
    b, heads, n, d = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, n, heads, d).transpose(1, 2)


def deal_heads(dealt_in: str, back: bool) -> Change:
    """Attention that splits channels into heads as deal() does.

    dealt_in: for which of q, k and v, such as "qk"
    back: whether gather() brings the channels of the answer back to their places
    """

    def change(q, k, v, attn_mask=None):
        given = {"q": q, "k": k, "v": v}
        q, k, v = (deal(x, x.shape[1]) if name in dealt_in else x for name, x in given.items())
        answer = sdpa(q, k, v, attn_mask=attn_mask)
        return gather(answer) if back else answer

    return change


REPLACED: dict[str, dict[str, Change]] = {
    "group_norm": {
        **norm_changes(F.group_norm),
        **{f"group norms with {n} groups": with_groups(n) for n in (1, 2, 4, 8, 16, 32, 64)},
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
        f"{m} upsampling": upsample(m) for m in ("bilinear", "bicubic", "nearest-exact")
    },
    "scaled_dot_product_attention": {
        "attention without the scale": set_scale(0),
        "attention scaled by 1 / width of a head": set_scale(-1),
        "attention scaled by the width of a head to the power -1/4": set_scale(-0.25),
        "attention multiplied by the root of the width, not divided": set_scale(0.5),
        "attention scaled by the root of all channels, not of one head's": set_scale(-0.5, True),
        "attention in half precision": lambda *qkv, attn_mask=None: sdpa(
            *[one.half() for one in qkv], attn_mask=attn_mask and attn_mask.half()
        ).to(qkv[0]),
        "attention in bfloat16": lambda *qkv, attn_mask=None: sdpa(
            *[one.bfloat16() for one in qkv]
        ).to(qkv[0]),
        "attention without the mask": lambda q, k, v, attn_mask=None: sdpa(q, k, v),
        "attention with the mask turned round": lambda q, k, v, attn_mask: sdpa(
            q, k, v, attn_mask.T
        ),
        "attention with a mask that hides each token from itself": with_mask(0),
        "attention with a mask that shows one token too many": with_mask(2),
        "attention with the softmax over the queries": softmax_over_queries,
        "attention with queries and keys swapped": reorder(1, 0, 2),
        "attention with keys and values swapped": reorder(0, 2, 1),
        "attention with queries and values swapped": reorder(2, 1, 0),
        "attention with the channels dealt to the heads in turn": deal_heads("qkv", back=True),
        "attention that puts its heads together in another order": deal_heads("", back=True),
        **{
            f"attention with the channels of {n} dealt to the heads in turn": deal_heads(n, False)
            for n in "qkv"
        },
    },
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
