"""Read a VAE file or folder. The tensors may have the original names or the names of diffusers."""

from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from minisd.checkpoints.checkpoint import OtherVAE
from minisd.checkpoints.cover import cover_network, without_numbers
from minisd.checkpoints.file_kinds import refuse_other_kinds
from minisd.checkpoints.folder import weight_files
from minisd.checkpoints.folder_settings import vae_config
from minisd.checkpoints.names import flat_rows, usual_name, vae_rows
from minisd.checkpoints.read import read_tensors, rename_tensors
from minisd.checkpoints.registry import local_path
from minisd.checkpoints.single_file_variants import apply_scales
from minisd.checkpoints.sizes_from_tensors import vae_sizes
from minisd.checkpoints.validate import validate_config
from minisd.config import ModelConfig, VAEConfig
from minisd.files.json_files import read_json
from minisd.files.one_line import name_errors
from minisd.vae import VAE

VAE_PREFIX = "first_stage_model."  # in whole models, and in some VAE files
ONLY_TRAINING = ("loss.", "model_ema.", "logvar")  # prefixes of tensors that only training uses


def open_vae(source: str | Path, expected: VAEConfig | None = None) -> OtherVAE:
    """Read the autoencoder in a VAE file or folder. The returned tensors have minisd's names.

    source: the file or folder, or the name of a published VAE
    expected: the config of the VAE that is replaced. The new VAE must have the same sizes. If no
        config.json states the scale of the new VAE's latents, the scale in `expected` is used.
        None: any sizes are allowed

    Raises ValueError if the source is not an autoencoder of the expected sizes, or if its
    config.json has settings that do not fit minisd's VAE.
    """
    path = local_path(source)
    path = path / "vae" if (path / "vae" / "config.json").exists() else path
    settings = path / "config.json" if path.is_dir() else path.with_name("config.json")
    tensors = vae_tensors(path.name, weight_files(path) if path.is_dir() else [path])
    layout = "diffusers" if any(".down_blocks." in key for key in tensors) else "original"
    with name_errors(path.name):
        stated = read_stated_config(settings, path.is_dir(), layout)
        config = expected or stated or vae_sizes(tensors, "", layout)
        if stated and expected:
            config = agree_on_config(stated, expected)
        validate_config(ModelConfig(vae=config))
    with without_numbers():
        network = VAE(config)
    return OtherVAE(
        config, cover_network(tensors, network, flat_rows(vae_rows(config)), layout, path.name)
    )


def vae_tensors(name: str, files: list[Path]) -> dict[str, Tensor]:
    """Read the tensors of a VAE. The tensors get their usual names, without prefix.

    name: the name of the file or folder, for error messages
    files: the files that together hold the VAE

    Raises ValueError if the files do not hold a VAE.
    """
    shards = [pair for file in files for pair in read_tensors(file).items()]
    refuse_other_kinds(name, dict(shards), "VAE")
    with name_errors(name):
        tensors = rename_tensors(
            shards, lambda key: usual_name(key.removeprefix(VAE_PREFIX), "vae")
        )
        tensors = apply_scales(tensors)
    return {key: t for key, t in tensors.items() if not key.startswith(ONLY_TRAINING)}


def read_stated_config(path: Path, required: bool, layout: str) -> VAEConfig | None:
    """Read the config.json of a VAE.

    Returns None if there is no config.json, or if the config.json belongs to another network.

    path: the path of the config.json
    required: whether a missing config.json is an error
    layout: the layout of the VAE file. A config.json without _class_name is used only if the layout
        is "diffusers", or if the config.json is required
    """
    stored = read_json(path) if required or path.exists() else {}
    unnamed = "Autoencoder" if layout == "diffusers" and stored else ""
    belongs = required or "Autoencoder" in str(stored.get("_class_name", unnamed))
    return vae_config(stored) if belongs else None


def agree_on_config(stated: VAEConfig, expected: VAEConfig) -> VAEConfig:
    """Check that a VAE has the same sizes as the VAE that it replaces. Returns `stated`.

    stated: the config of the new VAE, from its config.json
    expected: the config of the VAE that is replaced

    Raises ValueError if the sizes differ. The scales of the latents may differ.
    """
    for name, needed in asdict(expected).items():
        own = getattr(stated, name)
        if own != needed and name != "scale":
            sizes = f"{name} = {own} in its config.json, but the model's own VAE has {needed}"
            raise ValueError(f"has {sizes}: give a VAE with the same sizes")
    return stated
