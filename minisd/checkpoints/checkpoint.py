"""The content of a model's file or folder, and checks whether the parts of a model fit together."""

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
    """The content of a model's file or folder.

    layout: the naming scheme of the file: "ours", "original" or "diffusers"
    parts: a dictionary: "text_encoder", "unet" or "vae" -> the tensors of this part. The tensors
        have minisd's names
    not_needed: the tensors that minisd does not need. They have the names that the file gives them
    known_by: where the file states whether the U-Net predicts eps or v, for example "the settings
        in its header". None: the file does not state it
    """

    layout: str  # "ours", "original" or "diffusers"
    config: ModelConfig
    tokenizer: Tokenizer
    parts: dict[str, dict[str, Tensor]]
    not_needed: dict[str, Tensor]
    known_by: str | None


@dataclass(frozen=True)
class OtherVAE:
    """An autoencoder (VAE) that does not come from the model's own file.

    config: the sizes of the autoencoder
    state: its tensors. They have minisd's names
    """

    config: VAEConfig
    state: dict[str, Tensor]


def with_other_vae(tensors: Mapping[str, Tensor], vae: OtherVAE, layout: str) -> dict[str, Tensor]:
    """Replace the autoencoder of a model. Returns all tensors of the new model.

    If the model has no autoencoder, the new autoencoder is added.

    tensors: the tensors of the model
    vae: the new autoencoder
    layout: the naming scheme of `tensors`: "ours", "original" or "diffusers"
    """
    start = (PREFIXES_V1 if layout == "original" else OUR_PREFIXES)["vae"]
    official = to_official(vae.state, flat_rows(vae_rows(vae.config)), layout)
    others = {key: tensor for key, tensor in tensors.items() if not key.startswith(start)}
    return others | {start + key: tensor for key, tensor in official.items()}


def check_parts(name: str, config: ModelConfig) -> None:
    """Raise ValueError if the networks of a model cannot work together.

    For example, the U-Net may need wider contexts than the text transformer computes.

    name: the name of the file or folder, for error messages
    """
    unet, latent = config.unet, config.vae.latent_channels
    if unet.context_dim != config.text.width:
        what = f"needs contexts of width {unet.context_dim}, but its text transformer has width"
        raise ValueError(f"{name}: its U-Net {what} {config.text.width}. Get another copy.")
    # A U-Net reads a latent; or a latent and a depth map; or a latent, a mask and a second latent.
    inputs = (latent, latent + 1, 2 * latent + 1)
    if unet.in_channels not in inputs or unet.out_channels != latent:
        what = f"reads {unet.in_channels} channels and writes {unet.out_channels} channels"
        latents = f"but the model's latents have {latent} channels"
        raise ValueError(f"{name}: its U-Net {what}, {latents}. Get another copy.")


def check_vocabulary(name: str, rows: int, tokenizer: Tokenizer) -> None:
    """Raise ValueError if a token has no vector. Warn if a vector has no token.

    name: the name of the file or folder, for error messages
    rows: the number of vectors in the text transformer's table. Each vector belongs to one token
    """
    ids = len(tokenizer.vocabulary)
    if ids > rows:
        without = [repr(word.word) for word in tokenizer.words if word.ids[0] >= rows]
        words = f": the words {', '.join(without)} have no vector" if without else ""
        what = f"has vectors for {rows} tokens, but its tokenizer has {ids} tokens{words}"
        raise ValueError(f"{name} {what}. Get another copy.")
    if ids < rows:
        unused = f"its tokenizer has only {ids} tokens: no word uses the last {rows - ids} vectors"
        lost = "If someone added words to this model, the file with these words is missing."
        warnings.warn(f"{name} has vectors for {rows} tokens, but {unused}. {lost}", stacklevel=4)


@dataclass(frozen=True)
class Parts:
    """All parts of a model that is ready to run: config, tokenizer and networks."""

    config: ModelConfig
    tokenizer: Tokenizer
    text_encoder: TextTransformer
    unet: UNet
    vae: VAE
