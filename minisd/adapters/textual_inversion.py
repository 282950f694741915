"""Textual inversion: a new word with one or more vectors that were trained on pictures.

Nothing else in the model changes. The vectors are used as the embeddings of the word's tokens (Gal
et al. 2023, section 3). There are three kinds of file: diffusers' {word: vector, …},
AUTOMATIC1111's string_to_param, and files with emb_params.
"""

import re
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from minisd.adapters.handle import Handle, Removable
from minisd.checkpoints.file_kinds import refuse_other_kinds
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.registry import local_path
from minisd.pipeline import StableDiffusion

# These keys name no word, so the file's name is the word. They come from the web UI (two kinds),
# from ComfyUI, or from a file that is one bare tensor. But if a file has several keys that begin
# with string_to_param, each of these keys ends with a word.
NAMELESS = r"string_to_param\.(?P<word>.*)|emb_params|clip_l|"
MOST_WORDS_OF_FILE = 10_000  # with so many words, each prompt takes a second longer
IGNORED_KEYS = r"string_to_token\..*"  # the id of the word whose vector was the training's start


class Word(Handle):
    """Adds a word to a model. remove() removes the word again.

    word: the text to type in a prompt
    """

    def __init__(self, sd: StableDiffusion, word: str, vectors: Tensor):
        """vectors: n width"""
        self.word, self.tokenizer = word, sd.tokenizer
        embedding = sd.text_encoder.token_embedding
        ids = sd.tokenizer.add_word(word, len(vectors))
        super().__init__(embedding_hooks(embedding, ids, vectors))

    def remove(self) -> None:
        if self.hooks:
            self.tokenizer.remove_word(self.word)
        super().remove()


class Words(Handle):
    """Adds the words of a file to a model. remove() removes all these words again.

    words: a list of handles. Each handle removes one of the words
    """

    def __init__(self, sd: StableDiffusion, vectors: Mapping[str, Tensor]):
        """Add all words. If a word cannot be added, no word is added, and ValueError is raised.

        vectors: word -> its vectors, n width
        """
        super().__init__(Word(sd, word, own) for word, own in vectors.items())
        self.words = self.hooks  # a word has remove(), like a hook


def textual_inversion(
    sd: StableDiffusion, path: str | Path, word: str | None = None
) -> Word | Words:
    """Add the word of a file to the model. The word stays until the returned handle is removed.

    word: the text to type in prompts. None: the file's own word, or else the name of the file. If
        the file has several words, only `word` is added, and None adds all of them

    Raises ValueError if the file holds no word, if the vectors do not have the width of the text
    transformer, or if the model already has the word. In these cases, the model stays as it is.
    """
    path = local_path(path)
    words = read_words(path)
    if word is not None and len(words) > 1 and word not in words:
        raise ValueError(f"{path.name} holds the words {', '.join(words)}: give one of them.")
    if word is not None:
        words = {word: words.get(word, next(iter(words.values())))}
    for wide in {vectors.shape[1] for vectors in words.values()} - {sd.config.text.width}:
        what = f"vectors of width {wide}, but {sd.config.name} has width {sd.config.text.width}"
        raise ValueError(f"{path.name} has {what}: the file is made for another model.")
    try:
        return Word(sd, *words.popitem()) if len(words) == 1 else Words(sd, words)
    except ValueError as error:
        raise ValueError(f"{path.name} has a word that cannot be added: {error}") from error


def read_words(path: Path) -> dict[str, Tensor]:
    """Read the words of a file. Returns a dictionary: word -> its vectors, n width.

    Raises ValueError if the file holds no word, NaN or infinity, or also unknown tensors.
    """
    stored = read_tensors(path)
    refuse_other_kinds(path.name, stored, "textual inversion")
    tensors = {key: tensor for key, tensor in stored.items() if not re.fullmatch(IGNORED_KEYS, key)}
    nameless = {key: match for key in tensors if (match := re.fullmatch(NAMELESS, key))}
    others = [key for key in tensors if key not in nameless]
    if nameless and others:
        what = f"a word, but also unknown tensors ({', '.join(others)})"
        raise ValueError(f"{path.name} holds {what}: get another copy.")
    if nameless:
        words = [match["word"] or key for key, match in nameless.items()]
        words = [path.stem] if len(words) == 1 else words
        tensors = dict(zip(words, tensors.values(), strict=True))
    if len(tensors) > MOST_WORDS_OF_FILE:
        what = f"{len(tensors):,} words: split it into files of at most {MOST_WORDS_OF_FILE:,}"
        raise ValueError(f"{path.name} holds {what}.")
    if not tensors or not all(t.ndim in (1, 2) and t.numel() for t in tensors.values()):
        raise ValueError(f"{path.name} holds no word of textual inversion: check the path.")
    if not all(tensor.float().isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{path.name} holds NaN or infinity: get another copy.")
    return {word: torch.atleast_2d(vectors) for word, vectors in tensors.items()}


def embedding_hooks(embedding: nn.Embedding, ids: list[int], vectors: Tensor) -> list[Removable]:
    """Create hooks that let an embedding return the vectors of new ids.

    The embedding itself has no rows for the new ids.

    ids: the new ids, n consecutive numbers    vectors: n width
    """
    first, last = ids[0], ids[-1]
    lookup = threading.local()  # each thread has its own lookup.tokens, the ids that it looks up

    def before(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (lookup.tokens,) = inputs
        own = (lookup.tokens >= first) & (lookup.tokens <= last)
        return (lookup.tokens.masked_fill(own, 0),)

    def after(module: nn.Module, inputs: tuple[Tensor], embedded: Tensor) -> Tensor:
        tokens = getattr(lookup, "tokens", inputs[0])  # no such attribute if before() did not run
        own = rearrange((tokens >= first) & (tokens <= last), "b n -> b n 1")
        added = vectors.to(embedded)[(tokens - first).clamp(0, last - first)]
        return torch.where(own, added, embedded)

    return [embedding.register_forward_pre_hook(before), embedding.register_forward_hook(after)]
