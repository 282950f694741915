"""A model as a file or folder holds it: its config, and its tensors under our names, as stored."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from minisd.checkpoints.cover import OUR_PREFIXES
from minisd.checkpoints.names import PREFIXES_V1, flat_rows, to_official, vae_rows
from minisd.clip import TextTransformer
from minisd.config import ModelConfig, VAEConfig
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE


@dataclass(frozen=True)
class Checkpoint:
    """What a model's file or folder holds.

    parts: text_encoder, unet and vae, each by our names
    not_needed: what else there is, by the file's names
    known_by: where it is said whether the U-Net predicts eps or v; None if nowhere
    """

    layout: str  # "ours", "original" or "diffusers"
    config: ModelConfig
    tokenizer: Tokenizer
    parts: dict[str, dict[str, Tensor]]
    not_needed: dict[str, Tensor]
    known_by: str | None


@dataclass(frozen=True)
class OtherVAE:
    """An autoencoder of another file, its tensors by our names."""

    config: VAEConfig
    state: dict[str, Tensor]


def with_other_vae(tensors: Mapping[str, Tensor], vae: OtherVAE, layout: str) -> dict[str, Tensor]:
    """The tensors of a model with those of another autoencoder in place of its own, if any."""
    start = (PREFIXES_V1 if layout == "original" else OUR_PREFIXES)["vae"]
    official = to_official(vae.state, flat_rows(vae_rows(vae.config)), layout)
    others = {key: tensor for key, tensor in tensors.items() if not key.startswith(start)}
    return others | {start + key: tensor for key, tensor in official.items()}


def check_parts(name: str, config: ModelConfig) -> None:
    """Raises ValueError for parts that each are whole, but cannot work together."""
    unet, latent = config.unet, config.vae.latent_channels
    if unet.context_dim != config.text.width:
        what = f"reads contexts {unet.context_dim} wide, and its text transformer writes"
        raise ValueError(f"{name}: its U-Net {what} {config.text.width}: get another copy.")
    inputs = (latent, latent + 1, 2 * latent + 1)  # alone, with depth, with a mask and a picture
    if unet.in_channels not in inputs or unet.out_channels != latent:
        what = f"reads {unet.in_channels} and writes {unet.out_channels} channels"
        raise ValueError(f"{name}: its U-Net {what}, of latents with {latent}: get another copy.")


def check_vocabulary(name: str, rows: int, tokenizer: Tokenizer) -> None:
    """Raises ValueError for ids without a vector. Warns where a vector has no id.

    rows: of the table of vectors
    """
    ids = len(tokenizer.vocabulary)
    if ids > rows:
        without = [repr(word.word) for word in tokenizer.words if word.ids[0] >= rows]
        words = f": the words {', '.join(without)} have none" if without else ""
        raise ValueError(f"{name} has vectors for {rows} tokens, but a tokenizer of {ids}{words}.")
    if ids < rows:
        unused = f"a tokenizer of {ids}: no word reaches the last {rows - ids}"
        lost = "If words were added to it, the file that names them is missing."
        warnings.warn(f"{name} has vectors for {rows} tokens and {unused}. {lost}", stacklevel=4)


@dataclass(frozen=True)
class Parts:
    """A model ready to run: what a pipeline is made of."""

    config: ModelConfig
    tokenizer: Tokenizer
    text_encoder: TextTransformer
    unet: UNet
    vae: VAE
