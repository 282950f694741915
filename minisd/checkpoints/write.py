"""Write a model as minisd's own file, as an original single file, or as a diffusers folder.

A file or folder gets its name only when it is complete.
"""

import json
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minisd.checkpoints.checkpoint import Checkpoint, Parts
from minisd.checkpoints.cover import OUR_PREFIXES
from minisd.checkpoints.finite import NOT_FINITE, is_finite
from minisd.checkpoints.folder_settings import folder_json_files
from minisd.checkpoints.folder_tokenizer import write_tokenizer
from minisd.checkpoints.header import config_to_metadata, sort_settings
from minisd.checkpoints.load import (
    build_networks,
    check_dtype,
    locate,
    open_checkpoint,
    own_vae_config,
)
from minisd.checkpoints.names import flat_rows, model_rows, prefixes, to_official, vae_rows
from minisd.checkpoints.vae_file import open_vae
from minisd.files.whole_files import written_whole
from minisd.vae import VAE

FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # endings of single files
LAYOUTS = ("original", "diffusers", "ours")


def save(
    path: str | Path,
    parts: Parts,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, str] | None = None,
):
    """Write a model as minisd's own file, which load() can read. Replaces an existing file.

    dtype: the dtype of the written weights. None: the weights keep their dtypes
    notes: more entries for the header, for example how the model was trained

    Raises ValueError if the file cannot be written, if the disk is full, or if a weight is NaN or
    infinite, or becomes infinite in the new dtype. After an error, an existing file is unchanged.
    """
    if dtype is not None:
        check_dtype(dtype)
    states = {part: getattr(parts, part).state_dict() for part in OUR_PREFIXES}
    tensors = {OUR_PREFIXES[p] + key: t for p, state in states.items() for key, t in state.items()}
    settings = config_to_metadata(parts.config, parts.tokenizer)
    with written_whole(Path(path)) as unfinished:
        write_tensors(unfinished, tensors, {**settings, **(notes or {})}, dtype)


def save_vae(path: str | Path, vae: VAE, notes: Mapping[str, str] | None = None):
    """Write an autoencoder in half precision, as a file in the layout of published VAE files.

    notes: entries for the header

    Raises what save() raises.
    """
    state = to_official(vae.state_dict(), flat_rows(vae_rows(vae.config)), "original")
    with written_whole(Path(path)) as unfinished:
        write_tensors(unfinished, state, {"format": "pt", **(notes or {})}, torch.float16)


def convert(
    source: str | Path,
    destination: str | Path,
    layout: str | None = None,
    keep_unused: bool = False,
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    vae: str | Path | None = None,
    ema: bool = False,
):
    """Write a model in another layout. The weights stay exactly the same, unless dtype is given.

    source, prediction, vae, ema: see load()
    destination: a path where nothing exists yet
    layout: "original" (single file), "diffusers" (folder) or "ours" (single file). None: "original"
        if the destination ends in .safetensors, otherwise "diffusers"
    keep_unused: whether to also copy the tensors that minisd does not use. This is possible only
        if the source and the destination are original single files
    dtype: the dtype of the written weights. None: the weights keep the stored dtypes

    Raises ValueError if the destination cannot be written, or if a weight is too large for dtype.
    Also raises what load() raises.
    """
    if dtype is not None:
        check_dtype(dtype)
    destination, path = Path(destination), locate(source)
    layout = layout or ("original" if destination.suffix in FILE_ENDINGS else "diffusers")
    if layout not in LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}: the layouts are {', '.join(LAYOUTS)}.")
    if layout != "diffusers" and destination.suffix != ".safetensors":
        raise ValueError(f"{destination.name} must end in .safetensors: give such a name.")
    if destination.exists():
        raise ValueError(f"{destination} already exists: give another name, or remove it first.")
    with written_whole(destination, folder=layout == "diffusers") as unfinished:
        other = None if vae is None else open_vae(vae, own_vae_config(path))
        checkpoint = open_checkpoint(path, prediction, ema, other)
        if keep_unused and (checkpoint.layout, layout) != ("original", "original"):
            raise ValueError("keep_unused needs two original files: leave keep_unused out.")
        if checkpoint.known_by is None:  # then the network shows eps or v
            checkpoint = replace(checkpoint, config=build_networks(checkpoint, path.name).config)
        if layout == "diffusers":
            write_folder(unfinished, checkpoint, dtype)
        else:
            write_file(unfinished, checkpoint, layout, keep_unused, dtype)


def write_file(
    path: Path, checkpoint: Checkpoint, layout: str, keep_unused: bool, dtype: torch.dtype | None
):
    """Write all parts into one file.

    The header of the file holds the settings. Other programs ignore these settings.
    """
    prefix = prefixes(checkpoint.config) if layout == "original" else OUR_PREFIXES
    tensors = dict(checkpoint.not_needed) if keep_unused else {}
    for part, state in tensors_by_layout(checkpoint, layout).items():
        tensors |= {prefix[part] + key: tensor for key, tensor in state.items()}
    settings = config_to_metadata(checkpoint.config, checkpoint.tokenizer)
    write_tensors(path, tensors, settings, dtype, set(checkpoint.not_needed))


def write_folder(path: Path, checkpoint: Checkpoint, dtype: torch.dtype | None):
    """Write each part of the model into its own folder, next to the settings of the part."""
    for name, settings in folder_json_files(checkpoint.config, checkpoint.tokenizer).items():
        file = path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    write_tokenizer(path / "tokenizer", checkpoint.tokenizer)
    for part, state in tensors_by_layout(checkpoint, "diffusers").items():
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        write_tensors(path / part / f"{name}.safetensors", state, {"format": "pt"}, dtype)


def tensors_by_layout(checkpoint: Checkpoint, layout: str) -> dict[str, dict[str, Tensor]]:
    """Rename the tensors for a layout. Returns a dictionary: part -> tensors of the part.

    The names have no prefix.
    """
    rows = model_rows(checkpoint.config)
    return {
        part: to_official(state, rows[part], layout) for part, state in checkpoint.parts.items()
    }


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, str],
    dtype: torch.dtype | None,
    unused: Set[str] = frozenset(),
):
    """Write one .safetensors file.

    settings: the entries of the header
    dtype: the dtype of all written floating-point tensors. Other tensors, such as positions, do not
        change. None: no tensor changes
    unused: names of tensors that minisd does not use. Only these may contain NaN or infinity. For
        example, v2's causal mask contains infinity

    Raises ValueError if any other tensor contains NaN or infinity, or numbers that are too large
    for dtype.
    """
    ready, memory = {}, set()
    for key, tensor in tensors.items():
        changes = dtype is not None and tensor.is_floating_point()
        stored = (tensor.to(dtype) if changes else tensor).contiguous()
        if key not in unused and not is_finite(stored):
            narrow = f"holds numbers that are too large for {dtype}: keep the stored dtype."
            raise ValueError(f"{key} {narrow if is_finite(tensor) else NOT_FINITE}")
        address = stored.untyped_storage().data_ptr()
        ready[key] = stored.clone() if address in memory else stored  # no shared memory in the file
        memory.add(address)
    save_file(ready, path, dict(settings))
    sort_settings(path)
