"""Parts of the model that exercises call, in the form in which students write them.

If a student's own part is installed, these functions call it (install.py).
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from minisd import attention, guidance, samplers
from minisd.guidance import Network
from minisd.schedule import Level
from minisd.tokenizer import Tokenizer


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """minisd.attention.attend without a tap: for each query, the weighted average of the values.

    q: b heads n d    k, v: b heads m d    returns: b heads n d
    mask: n m, numbers that are added to the scores. None: nothing is added
    """
    return attention.attend(q, k, v, tap=nn.Identity(), mask=mask)


def as_tokenizer(**fields: Any) -> Any:
    """An object with only these fields of a tokenizer."""
    return SimpleNamespace(**fields)


def bpe(word: str, ranks: dict[tuple[str, ...], int]) -> list[str]:
    """Tokenizer.bpe: split a word into letters, and merge them into pieces.

    ranks: pair of pieces -> when it was learnt. 0 is the earliest
    """
    return Tokenizer.bpe(as_tokenizer(ranks=ranks), word)


def token_row(ids: list[int], begin: int, end: int, pad: int) -> list[int]:
    """Tokenizer.row: the begin mark, the first 75 ids, the end mark, padding. 77 ids in all."""
    sizes = {"places": Tokenizer.places, "max_length": Tokenizer.max_length}
    return Tokenizer.row(as_tokenizer(begin=begin, end=end, pad_token=pad, **sizes), ids)


def starting_noise(seeds: list[int], channels: int, height: int, width: int) -> Tensor:
    """samplers.unit_noise for latents: float32 noise with variance 1, one seed for each sample.

    returns: b channels height width
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return samplers.unit_noise(torch.zeros(len(seeds), channels, height, width), generators)


def guided_eps(
    network: Network, x: Tensor, t: float, uncond_context: Tensor, context: Tensor, scale: float
) -> Tensor:
    """The eps of guidance.guided_denoiser: the noise that a network predicts with guidance.

    network: network(x, t, context) -> eps    x: b c h w    t: one number, the same for all samples
    uncond_context, context: b m d, the embedded negative prompt and the embedded prompt
    returns: b c h w
    """
    denoise = guidance.guided_denoiser(network, "eps", context, uncond_context, scale)
    return denoise(x, Level(t, sigma=1.0)).eps  # eps does not depend on sigma
