"""Open a single file. The file may have the layout of the original code, or minisd's own layout."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from minisd.checkpoints.checkpoint import Checkpoint, OtherVAE, with_other_vae
from minisd.checkpoints.cover import cover_model
from minisd.checkpoints.file_kinds import MODEL_KIND, refuse_other_kinds
from minisd.checkpoints.first_bytes import is_file_name
from minisd.checkpoints.header import config_from_metadata, read_metadata
from minisd.checkpoints.names import usual_single_file_name
from minisd.checkpoints.read import read_tensors, rename_tensors
from minisd.checkpoints.single_file_settings import with_stated_settings
from minisd.checkpoints.single_file_variants import apply_scales, holds_only_ema, with_ema_unet
from minisd.checkpoints.sizes_from_tensors import config_from_tensors, has_prefix
from minisd.checkpoints.validate import validate_config
from minisd.files.one_line import name_errors
from minisd.tokenizer import Tokenizer


def open_single_file(
    path: Path, prediction: str | None, ema: bool, vae: OtherVAE | None
) -> Checkpoint:
    """Read a model from an original single file, or from a file that minisd wrote.

    prediction, ema: see load()
    vae: an autoencoder that replaces the one in the file. None: the autoencoder in the file
    """
    stored, tensors = read_metadata(path), read_tensors(path)
    if "base" in stored:
        tensors = read_base(path, stored["base"]) | tensors
    refuse_other_kinds(path.name, tensors, MODEL_KIND)
    with name_errors(path.name):
        ours = "unet.conv_in.weight" in tensors
        layout = "ours" if ours and not has_prefix(tensors, "model.") else "original"
        tensors = to_usual_form(tensors, ema)
        if vae:
            tensors = with_other_vae(tensors, vae, layout)
        if "minisd" in stored:
            config, tokenizer = config_from_metadata(stored)
            known_by = "the settings in its header"
        else:
            config = config_from_tensors(tensors, path.stem)
            tokenizer = Tokenizer.clip(config.text.pad_token)
            config, known_by = with_stated_settings(config, path, stored, tensors, prediction)
        config = validate_config(replace(config, vae=vae.config) if vae else config)
    parts, rest = cover_model(tensors, config, layout, path.name)
    return Checkpoint(layout, config, tokenizer, parts, rest, known_by)


def to_usual_form(tensors: dict[str, Tensor], ema: bool) -> dict[str, Tensor]:
    """Give a file's tensors their usual names, and multiply 8-bit weights by their scales.

    ema: whether the U-Net gets its averaged weights. False: the U-Net gets the weights after the
        last training step

    Raises ValueError if the file does not hold the weights that `ema` asks for.
    """
    if holds_only_ema(tensors) and not ema:
        averaged = "holds only the averaged weights of its U-Net (model_ema.…)"
        raise ValueError(f"{averaged}: load it with ema=True")
    tensors = apply_scales(rename_tensors(tensors.items(), usual_single_file_name))
    return with_ema_unet(tensors) if ema else tensors


def read_base(path: Path, name: str) -> dict[str, Tensor]:
    """Read the tensors of the base model from which a fine-tuned model was made.

    The file of the fine-tuned model holds only the tensors that differ from the base model.

    path: the file of the fine-tuned model
    name: the name of the base model's file, which must be in the same folder

    Raises ValueError if the folder holds no file with this name.
    """
    if not is_file_name(name):
        raise ValueError(f"{path.name} has an impossible name for its base file: get another copy.")
    base = path.with_name(name)
    if not base.exists():
        differs = f"{path.name} holds only the tensors that differ from {base.name}"
        raise ValueError(f"{differs}: put {base.name} into the same folder.")
    return read_tensors(base)
