"""The text transformer turns token ids into the context: the vectors that cross-attention reads."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.attention import attend
from minisd.config import TextConfig


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of the gelu. OpenAI trained its CLIP with this function."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def causal_mask(x: Tensor) -> Tensor:
    """The mask that hides later tokens: 0 where a token may look at another token, else -inf.

    x: b n c    returns: n n
    """
    n = x.shape[1]
    forbidden = torch.full((n, n), float("-inf"), dtype=x.dtype, device=x.device)
    return forbidden.triu(1)


class CausalSelfAttention(nn.Module):
    """Each token reads itself and the tokens before it.

    In "blue eyes", the token "eyes" reads "blue", but "blue" does not read "eyes".

    x: b n c    returns: b n c
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)
        self.weights = nn.Identity()  # tap: b heads n n, zero above the diagonal

    def forward(self, x: Tensor) -> Tensor:
        q = rearrange(self.to_q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        k = rearrange(self.to_k(x), "b n (heads d) -> b heads n d", heads=self.heads)
        v = rearrange(self.to_v(x), "b n (heads d) -> b heads n d", heads=self.heads)
        answer = attend(q, k, v, tap=self.weights, mask=causal_mask(x))
        return self.to_out(rearrange(answer, "b heads n d -> b n (heads d)"))


class Layer(nn.Module):
    """One transformer layer: attention between the tokens, then an MLP for each token alone.

    x: b n c    returns: b n c
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        mlp_width = config.mlp_width or 4 * config.width
        self.activation = ACTIVATIONS[config.activation]
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = CausalSelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, mlp_width)
        self.narrow = nn.Linear(mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        hidden = self.activation(self.widen(self.norm2(x)))
        return x + self.narrow(hidden)


class TextTransformer(nn.Module):
    """Reads a row of tokens. Each token gets a vector that also depends on earlier tokens.

    tokens: b n, n <= 77    returns: context, b n width    (Radford et al. 2021, section 2.4)

    In SD v1, this is OpenAI's CLIP ViT-L/14 with its final norm. In SD v2, it is OpenCLIP ViT-H/14.
    SD v2 leaves out the last of the 24 layers, but keeps the final norm ("penultimate"). So the
    config of v2 has 23 layers, and the same code works for v1 and v2.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.max_length, config.width))
        nn.init.normal_(self.position_embedding, std=0.01)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, clip_skip: int = 0) -> Tensor:
        """Compute the context.

        clip_skip: the number of layers to leave out at the end, before the final norm
        """
        n = tokens.shape[1]
        x = self.token_embedding(tokens) + self.position_embedding[:n]
        for layer in self.layers[: len(self.layers) - clip_skip]:
            x = layer(x)
        return self.norm_out(x)
