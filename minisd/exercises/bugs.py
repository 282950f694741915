"""The bugs of the bug hunts. Each changes what one module of the mini computes, not its weights.

A bug is a function that takes a module and returns a wrong forward(). The bugs of level 1 change
the picture at first sight. The bugs of level 3 change it so little that only tensors show them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd import attention, clip, unet, vae


class Bug(NamedTuple):
    """A bug: the kind of module that has it, how to make it, and what it is, in one sentence."""

    kind: type[nn.Module]
    make: Callable[[Any], Callable]
    what: str


def swapped_gate(module: attention.GEGLU) -> Callable:
    def forward(x: Tensor) -> Tensor:
        gate, value = module.widen(x).chunk(2, dim=-1)
        return module.narrow(value * F.gelu(gate))

    return forward


def tanh_gelu(module: attention.GEGLU) -> Callable:
    def forward(x: Tensor) -> Tensor:
        value, gate = module.widen(x).chunk(2, dim=-1)
        return module.narrow(value * F.gelu(gate, approximate="tanh"))

    return forward


def no_shortcut(module: Any) -> Callable:
    def forward(x: Tensor, time: Tensor) -> Tensor:
        h = module.conv1(F.silu(module.norm1(x)))
        h = h + rearrange(module.time(F.silu(time)), "b c -> b c 1 1")
        return module.conv2(F.silu(module.norm2(h)))

    return forward


def no_silu_on_time(module: unet.ResBlock) -> Callable:
    def forward(x: Tensor, time: Tensor) -> Tensor:
        h = module.conv1(F.silu(module.norm1(x)))
        h = h + rearrange(module.time(time), "b c -> b c 1 1")
        h = module.conv2(F.silu(module.norm2(h)))
        return module.shortcut(x) + h

    return forward


def late_time(module: unet.ResBlock) -> Callable:
    def forward(x: Tensor, time: Tensor) -> Tensor:
        h = module.norm2(module.conv1(F.silu(module.norm1(x))))
        h = h + rearrange(module.time(F.silu(time)), "b c -> b c 1 1")
        h = module.conv2(F.silu(h))
        return module.shortcut(x) + h

    return forward


def interleaved_heads(module: attention.Attention) -> Callable:
    def forward(x: Tensor, context: Tensor) -> Tensor:
        q = rearrange(module.to_q(x), "b n (d heads) -> b heads n d", heads=module.heads)
        k = rearrange(module.to_k(context), "b m (d heads) -> b heads m d", heads=module.heads)
        v = rearrange(module.to_v(context), "b m (d heads) -> b heads m d", heads=module.heads)
        answer = attention.attend(q, k, v, tap=module.weights)
        return module.to_out(rearrange(answer, "b heads n d -> b n (d heads)"))

    return forward


def unscaled_scores(module: attention.Attention) -> Callable:
    def forward(x: Tensor, context: Tensor) -> Tensor:
        q = rearrange(module.to_q(x), "b n (heads d) -> b heads n d", heads=module.heads)
        k = rearrange(module.to_k(context), "b m (heads d) -> b heads m d", heads=module.heads)
        v = rearrange(module.to_v(context), "b m (heads d) -> b heads m d", heads=module.heads)
        answer = attention.attend(q * q.shape[-1] ** 0.5, k, v, tap=module.weights)
        return module.to_out(rearrange(answer, "b heads n d -> b n (heads d)"))

    return forward


def transposed_places(module: attention.SpatialTransformer) -> Callable:
    right = module.forward

    def forward(x: Tensor, context: Tensor) -> Tensor:
        inside = right(x, context) - x
        return x + rearrange(inside, "b c h w -> b c (w h)").reshape(x.shape)

    return forward


def future_words(module: clip.CausalSelfAttention) -> Callable:
    def forward(x: Tensor) -> Tensor:
        q = rearrange(module.to_q(x), "b n (heads d) -> b heads n d", heads=module.heads)
        k = rearrange(module.to_k(x), "b n (heads d) -> b heads n d", heads=module.heads)
        v = rearrange(module.to_v(x), "b n (heads d) -> b heads n d", heads=module.heads)
        answer = attention.attend(q, k, v, tap=module.weights)
        return module.to_out(rearrange(answer, "b heads n d -> b n (heads d)"))

    return forward


def quick_activation(module: clip.Layer) -> Callable:
    def forward(x: Tensor) -> Tensor:
        x = x + module.attn(module.norm1(x))
        return x + module.narrow(clip.quick_gelu(module.widen(module.norm2(x))))

    return forward


def post_norm(module: clip.Layer) -> Callable:
    def forward(x: Tensor) -> Tensor:
        x = module.norm1(x + module.attn(x))
        return module.norm2(x + module.narrow(module.activation(module.widen(x))))

    return forward


def sines_first(module: unet.TimeEmbedding) -> Callable:
    def forward(t: Tensor) -> Tensor:
        cosines, sines = unet.timestep_embedding(t, module.channels).chunk(2, dim=-1)
        return module.linear2(F.silu(module.linear1(torch.cat([sines, cosines], dim=-1))))

    return forward


def half_less_one(module: unet.TimeEmbedding) -> Callable:
    def forward(t: Tensor) -> Tensor:
        half = module.channels // 2
        frequencies = torch.exp(-torch.arange(half) * (9.210340371976184 / (half - 1)))
        angles = rearrange(t.float(), "b -> b 1") * frequencies
        wave = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return module.linear2(F.silu(module.linear1(wave)))

    return forward


def bilinear(module: Any) -> Callable:
    def forward(x: Tensor, skips: list[Tensor] | None = None) -> Tensor:
        size = skips[-1].shape[2:] if skips else (2 * x.shape[2], 2 * x.shape[3])
        return module.conv(F.interpolate(x, size, mode="bilinear"))

    return forward


def large_eps(module: nn.GroupNorm) -> Callable:
    def forward(x: Tensor) -> Tensor:
        return F.group_norm(x, module.num_groups, module.weight, module.bias, eps=1e-2)

    return forward


def unbiased_variance(module: nn.LayerNorm) -> Callable:
    def forward(x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.var(dim=-1, keepdim=True)  # torch's var divides by n - 1
        return centred / (variance + module.eps).sqrt() * module.weight + module.bias

    return forward


BUGS_BY_LEVEL = {
    1: (
        Bug(attention.GEGLU, swapped_gate, "the gate and the value are swapped"),
        Bug(unet.ResBlock, no_shortcut, "the residual block does not add its input"),
        Bug(attention.SpatialTransformer, transposed_places, "rows and columns are swapped"),
        Bug(clip.Layer, post_norm, "the norms come after the sums, not before"),
        Bug(unet.TimeEmbedding, sines_first, "the sines come first, not the cosines"),
    ),
    2: (
        Bug(attention.Attention, interleaved_heads, "the heads are interleaved"),
        Bug(attention.Attention, unscaled_scores, "the scores are not divided by sqrt(d)"),
        Bug(clip.CausalSelfAttention, future_words, "the causal mask is missing"),
        Bug(unet.ResBlock, late_time, "t is added after the second norm"),
        Bug(unet.ResBlock, no_silu_on_time, "the silu of the time embedding is missing"),
        Bug(unet.TimeEmbedding, half_less_one, "the frequencies divide by half - 1"),
        Bug(vae.Upsample, bilinear, "the upsampling is bilinear, not nearest"),
    ),
    3: (
        Bug(attention.GEGLU, tanh_gelu, "the gelu is the tanh approximation"),
        Bug(clip.Layer, quick_activation, "the activation is quick_gelu, not gelu"),
        Bug(nn.GroupNorm, large_eps, "eps is 0.01"),
        Bug(nn.LayerNorm, unbiased_variance, "the variance is divided by n - 1, not n"),
    ),
}
