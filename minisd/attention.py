"""Attention: how each place of a picture reads the prompt and the picture's other places."""

import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn


def is_watched(tap: nn.Module) -> bool:
    """Whether this module has a hook. trace.py and adapters/ read or change tensors with hooks."""
    return bool(tap._forward_hooks or tap._forward_pre_hooks)


def attend(q: Tensor, k: Tensor, v: Tensor, tap: nn.Identity, mask: Tensor | None = None) -> Tensor:
    """For each query in q, compute a weighted average of the values v (Vaswani et al. 2017, eq. 1).

    The better a key matches the query, the more its value counts.

    q: b heads n d    k, v: b heads m d    returns: b heads n d
    mask: n m, numbers that are added to the scores. -inf hides a key from a query
    tap: an identity module. The attention weights (b heads n m) pass through this module, so that
        a hook can read them

    If a hook is on the tap, the code follows the definition, with softmax(). Otherwise, torch's
    fused kernel computes the same result without storing the attention weights. In self-attention
    at 64x64, these weights would take 1 GB.
    """
    if is_watched(tap):
        q = q * q.shape[-1] ** -0.5  # scaled first: q times k could overflow in half precision
        scores = einsum(q, k, "b heads n d, b heads m d -> b heads n m")
        if mask is not None:
            scores = scores + mask
        weights = tap(scores.softmax(dim=-1))
        return einsum(weights, v, "b heads n m, b heads m d -> b heads n d")
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Attention(nn.Module):
    """Every token of x reads all tokens of the context. Pass context=x for self-attention.

    x: b n c    context: b m c_context    returns: b n c
    """

    def __init__(self, width: int, context_dim: int, heads: int):
        super().__init__()
        assert width % heads == 0, f"{width} channels do not split into {heads} heads"
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_dim, width, bias=False)
        self.to_v = nn.Linear(context_dim, width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.weights = nn.Identity()  # tap: b heads n m, each row sums to 1

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = rearrange(self.to_q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        k = rearrange(self.to_k(context), "b m (heads d) -> b heads m d", heads=self.heads)
        v = rearrange(self.to_v(context), "b m (heads d) -> b heads m d", heads=self.heads)
        answer = attend(q, k, v, tap=self.weights)
        return self.to_out(rearrange(answer, "b heads n d -> b n (heads d)"))


class GEGLU(nn.Module):
    """A feed-forward layer. It multiplies one half of its channels by the gelu of the other half.

    x: b n c    returns: b n c    (Shazeer 2020)
    """

    def __init__(self, width: int, expand: int = 4):
        super().__init__()
        self.widen = nn.Linear(width, 2 * expand * width)
        self.narrow = nn.Linear(expand * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.widen(x).chunk(2, dim=-1)
        return self.narrow(value * F.gelu(gate))  # the exact gelu, not the tanh approximation


class SpatialTransformer(nn.Module):
    """Lets every place of a feature map look at all other places, then at the prompt's words.

    This module is one transformer block between two projections. Stable Diffusion v1 and v2 never
    stack several blocks (Rombach et al. 2022, appendix E.2.2; CompVis ldm/modules/attention.py).

    x: b c h w    context: b m c_context    returns: b c h w
    """

    def __init__(self, channels: int, context_dim: int, heads: int, norm_groups: int):
        super().__init__()
        # 1e-6 here, although the U-Net's other group norms keep torch's 1e-5 (docs/numerics.md)
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        # In v1 files, both projections are 1x1 convolutions. In v2 files, they are Linear layers.
        # Both kinds of layer apply one matrix at each place, so this class always uses Linear. The
        # loader reshapes the weights of v1 files.
        self.proj_in = nn.Linear(channels, channels)
        self.norm_self = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, channels, heads)
        self.norm_cross = nn.LayerNorm(channels)
        self.cross = Attention(channels, context_dim, heads)
        self.norm_ff = nn.LayerNorm(channels)
        self.ff = GEGLU(channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        height = x.shape[2]
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        tokens = self.proj_in(tokens)
        normed = self.norm_self(tokens)
        tokens = tokens + self.self_attention(normed, context=normed)
        tokens = tokens + self.cross(self.norm_cross(tokens), context)
        tokens = tokens + self.ff(self.norm_ff(tokens))
        tokens = self.proj_out(tokens)
        return x + rearrange(tokens, "b (h w) c -> b c h w", h=height)
