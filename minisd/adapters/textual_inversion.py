"""Textual inversion: a new word, made of one or more vectors that were learnt from pictures.

Nothing else changes: the vectors stand where a token's embedding would (Gal et al. 2023, section
3). Three kinds of file: diffusers' {word: vector}, AUTOMATIC1111's string_to_param, and emb_params.
"""

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from minisd.adapters.handle import Handle
from minisd.checkpoints.kinds import refuse_other_kinds
from minisd.checkpoints.official import local
from minisd.checkpoints.read import read
from minisd.pipeline import StableDiffusion

NAMELESS = ("string_to_param.", "emb_params")  # such a file's word is the file's own name


class Word(Handle):
    """A word that the model knows until remove(). word: as it is to be typed."""

    def __init__(self, sd: StableDiffusion, word: str, vectors: Tensor):
        """vectors: n width"""
        self.word, self.tokenizer = word, sd.tokenizer
        embedding = sd.text_encoder.token_embedding
        ids = sd.tokenizer.add_word(word, len(vectors))
        super().__init__(standing_for(embedding, ids, vectors))

    def remove(self) -> None:
        if self.hooks:
            self.tokenizer.remove_word(self.word)
        super().remove()


def textual_inversion(sd: StableDiffusion, path: str | Path, word: str | None = None) -> Word:
    """Teach the model the word of a file, for use in any prompt, until the handle is removed.

    word: how to call it. None: as the file says, else by the file's own name

    Raises ValueError, and leaves the model as it is, for a file that holds no word, or vectors of
    another width than the text transformer's, and for a word that is taken.
    """
    path = local(path)
    named, vectors = read_word(path)
    width = sd.config.text.width
    if vectors.shape[1] != width:
        raise ValueError(
            f"{path.name} has vectors {vectors.shape[1]} wide, and {sd.config.name} expects "
            f"{width}: it is made for another model."
        )
    return Word(sd, word or named, vectors)


def read_word(path: Path) -> tuple[str, Tensor]:
    """The word of a file and its vectors, n width. ValueError: there is none, or several."""
    tensors = read(path)
    refuse_other_kinds(path.name, tensors, "textual inversion")
    tensors = {key: tensor for key, tensor in tensors.items() if tensor.is_floating_point()}
    nameless = [key for key in tensors if key.startswith(NAMELESS)]
    named = nameless or list(tensors)
    key = named[0] if len(named) == 1 else ""
    vectors = tensors.get(key, torch.empty(0))
    if vectors.ndim not in (1, 2) or not vectors.numel():
        raise ValueError(f"{path.name} holds no word of textual inversion: check the path.")
    if not vectors.isfinite().all():
        raise ValueError(f"{path.name} holds NaN or infinity: get another copy.")
    word = path.stem if nameless else key
    return word, vectors if vectors.ndim == 2 else rearrange(vectors, "width -> 1 width")


def standing_for(embedding: nn.Embedding, ids: list[int], vectors: Tensor) -> list:
    """Hooks that put a vector wherever its id is looked up; the table has no row for it.

    vectors: n width, for the n ids
    """
    looked_up: list[Tensor] = []  # the tokens, from before the lookup to after it

    def before(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (tokens,) = inputs
        looked_up[:] = [tokens]
        own = torch.isin(tokens, torch.tensor(ids, device=tokens.device))
        return (tokens.masked_fill(own, 0),)

    def after(module: nn.Module, inputs: tuple[Tensor], embedded: Tensor) -> Tensor:
        for index, vector in zip(ids, vectors, strict=True):
            here = rearrange(looked_up[0] == index, "b n -> b n 1")
            embedded = torch.where(here, vector.to(embedded), embedded)
        return embedded

    return [embedding.register_forward_pre_hook(before), embedding.register_forward_hook(after)]
