"""Writing a model: our own file, the official single file, a diffusers folder. All or nothing.

What is written appears under its name only when it is whole.
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
from minisd.checkpoints.folder_settings import folder_json_files
from minisd.checkpoints.folder_tokenizer import write_tokenizer
from minisd.checkpoints.header import config_to_metadata, sort_settings
from minisd.checkpoints.load import (
    NOT_FINITE,
    build_networks,
    check_dtype,
    is_finite,
    locate,
    open_checkpoint,
    own_vae_config,
)
from minisd.checkpoints.names import flat_rows, model_rows, prefixes, to_official, vae_rows
from minisd.checkpoints.vae_file import open_vae
from minisd.files.whole_files import written_whole
from minisd.vae import VAE

FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # nobody calls a folder so
LAYOUTS = ("original", "diffusers", "ours")


def save(
    path: str | Path,
    parts: Parts,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, str] | None = None,
):
    """Write a model as our own file, which load() reads back. An older one there is replaced.

    dtype: None keeps the weights'    notes: more for the header, e.g. how the model was trained

    Raises ValueError, before the work, where the file may not be written, and for weights that are
    no finite numbers, or none in dtype; and when the disk is full: the older file stays then.
    """
    if dtype is not None:
        check_dtype(dtype)
    states = {part: getattr(parts, part).state_dict() for part in OUR_PREFIXES}
    tensors = {OUR_PREFIXES[p] + key: t for p, state in states.items() for key, t in state.items()}
    settings = config_to_metadata(parts.config, parts.tokenizer)
    with written_whole(Path(path)) as unfinished:
        write_tensors(unfinished, tensors, {**settings, **(notes or {})}, dtype)


def save_vae(path: str | Path, vae: VAE, notes: Mapping[str, str] | None = None):
    """Write an autoencoder alone, in half precision, as the published VAE files have it.

    notes: for the header. Raises ValueError as save() does.
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
    """Write a model in another layout. Its weights stay what they are, bit for bit.

    source: as for load()    destination: a name not taken yet
    layout: "original" (single file), "diffusers" (folder) or "ours" (single file); None goes by
        the destination: original if it is called .safetensors, else a folder
    keep_unused: copy what the model does not use as well, from one original file to another
    dtype: None keeps the stored ones    prediction, vae, ema: as for load()

    Raises ValueError, before the work, where that cannot be written, and as load() does; also for
    weights that dtype is too narrow for.
    """
    if dtype is not None:
        check_dtype(dtype)
    destination, path = Path(destination), locate(source)
    layout = layout or ("original" if destination.suffix in FILE_ENDINGS else "diffusers")
    if layout not in LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}: the layouts are {', '.join(LAYOUTS)}.")
    if layout != "diffusers" and destination.suffix != ".safetensors":
        raise ValueError(f"{destination.name} must end in .safetensors: nothing else is written.")
    if destination.exists():
        raise ValueError(f"{destination} exists already: give another name, or remove it first.")
    with written_whole(destination, folder=layout == "diffusers") as unfinished:
        other = None if vae is None else open_vae(vae, own_vae_config(path))
        checkpoint = open_checkpoint(path, prediction, ema, other)
        if keep_unused and (checkpoint.layout, layout) != ("original", "original"):
            raise ValueError("keep_unused works from one original file to another: leave it out.")
        if checkpoint.known_by is None:  # tried, which needs the network
            checkpoint = replace(checkpoint, config=build_networks(checkpoint, path.name).config)
        if layout == "diffusers":
            write_folder(unfinished, checkpoint, dtype)
        else:
            write_file(unfinished, checkpoint, layout, keep_unused, dtype)


def write_file(
    path: Path, checkpoint: Checkpoint, layout: str, keep_unused: bool, dtype: torch.dtype | None
):
    """All parts in one file; the settings stand in its header, which other programs pass over."""
    prefix = prefixes(checkpoint.config) if layout == "original" else OUR_PREFIXES
    tensors = dict(checkpoint.not_needed) if keep_unused else {}
    for part, state in tensors_by_layout(checkpoint, layout).items():
        tensors |= {prefix[part] + key: tensor for key, tensor in state.items()}
    settings, unused = (
        config_to_metadata(checkpoint.config, checkpoint.tokenizer),
        set(checkpoint.not_needed),
    )
    write_tensors(path, tensors, settings, dtype, unused)


def write_folder(path: Path, checkpoint: Checkpoint, dtype: torch.dtype | None):
    """Each part in a folder of its own, beside its settings."""
    for name, settings in folder_json_files(checkpoint.config, checkpoint.tokenizer).items():
        file = path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    write_tokenizer(path / "tokenizer", checkpoint.tokenizer)
    for part, state in tensors_by_layout(checkpoint, "diffusers").items():
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        write_tensors(path / part / f"{name}.safetensors", state, {"format": "pt"}, dtype)


def tensors_by_layout(checkpoint: Checkpoint, layout: str) -> dict[str, dict[str, Tensor]]:
    """Each part's tensors under the names of a layout, without prefix."""
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
    """One .safetensors file. dtype is for floating-point numbers: positions stay integers.

    unused: names of tensors that may hold infinity, as v2's causal mask does
    Raises ValueError for any other that holds NaN or infinity, maybe only as dtype.
    """
    ready, memory = {}, set()
    for key, tensor in tensors.items():
        changes = dtype is not None and tensor.is_floating_point()
        stored = (tensor.to(dtype) if changes else tensor).contiguous()
        if key not in unused and not is_finite(stored):
            narrow = f"holds numbers too large for {dtype}: keep the dtype that it is stored in."
            raise ValueError(f"{key} {narrow if is_finite(tensor) else NOT_FINITE}")
        address = stored.untyped_storage().data_ptr()
        ready[key] = stored.clone() if address in memory else stored  # the format shares nothing
        memory.add(address)
    save_file(ready, path, dict(settings))
    sort_settings(path)
