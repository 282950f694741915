"""Load a model from a file or folder. A missing or unknown weight is an error."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from minisd.checkpoints.checkpoint import Checkpoint, OtherVAE, Parts, check_parts, check_vocabulary
from minisd.checkpoints.cover import check_cover, empty_networks, without_numbers
from minisd.checkpoints.finite import refuse_damage
from minisd.checkpoints.folder import open_folder
from minisd.checkpoints.folder_settings import vae_config
from minisd.checkpoints.guess_prediction import try_prediction
from minisd.checkpoints.header import config_from_metadata, read_metadata
from minisd.checkpoints.registry import SHIPPED, local_path
from minisd.checkpoints.single_file import open_single_file
from minisd.checkpoints.single_file_settings import BY_ARGUMENT, warn_of_argument
from minisd.checkpoints.vae_file import open_vae
from minisd.checkpoints.validate import validate_config
from minisd.config import WEIGHTS, VAEConfig
from minisd.files.json_files import read_json
from minisd.files.one_line import name_errors
from minisd.process.memory import mapped_files, release_pages
from minisd.vae import VAE

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load(
    source: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction: str | None = None,
    ema: bool = False,
    vae: str | Path | None = None,
    mmap: bool = True,
) -> Parts:
    """Load a whole model: "mini", a .safetensors or .ckpt file, or a diffusers folder.

    "mini" is a small model that comes with minisd. "mini-inpaint" and "mini-depth" are its variants
    for inpainting and for depth maps. Their U-Nets read more channels: 9 in "mini-inpaint" and 5 in
    "mini-depth".

    dtype: one of DTYPES. With float16, the autoencoder still uses float32. The largest number of
        float16 is 65,504, but the features in the mini's autoencoder reach 190,000
    prediction: what the U-Net predicts, "eps" or "v". None: minisd reads this from the file. If the
        file does not state it, minisd runs the U-Net to find out
    ema: whether to load the averaged weights of the U-Net. Checkpoints of a training often hold
        the averaged weights as well as the last weights
    vae: a VAE file, a folder that holds a VAE, or a published name. This VAE is used instead of the
        model's own VAE. Some files have no VAE of their own. None: the model's own VAE is used
    mmap: whether weights may stay mapped to the file (see fill())

    Raises ValueError if the source is not a complete and undamaged model of SD v1 or v2.
    """
    check_dtype(dtype)
    path = locate(source)
    other = None if vae is None else open_vae(vae, own_vae_config(path))
    with without_collector():
        checkpoint = open_checkpoint(path, prediction, ema, other)
        return build_networks(checkpoint, path.name, device, dtype, mmap)


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause Python's collector of unused objects.

    The 100,000 texts of a vocabulary make it run several times, and each time it visits all objects
    of torch. This would be a sixth of the time that a model takes to load.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def check_dtype(dtype: object) -> None:
    """Raise ValueError if a model cannot use this dtype. The message lists the possible dtypes."""
    if not any(dtype is known for known in DTYPES):
        given, known = repr(dtype).splitlines()[0][:60], ", ".join(map(str, DTYPES))
        raise ValueError(f"dtype {given} cannot be used for a model: give one of {known}.")


def own_vae_config(path: Path) -> VAEConfig | None:
    """Read the sizes of a model's VAE from the model's folder or file.

    Returns None if the folder or file does not state the sizes. Only diffusers folders, and files
    that minisd wrote, state them.
    """
    stated = path / "vae" / "config.json"
    stored = read_json(stated) if stated.exists() else None
    header = read_metadata(path) if path.is_file() else {}
    with name_errors(path.name):
        if stored is not None:
            return vae_config(stored)
        return config_from_metadata(header)[0].vae if "minisd" in header else None


def open_checkpoint(
    path: Path, prediction: str | None = None, ema: bool = False, vae: OtherVAE | None = None
) -> Checkpoint:
    """Read a model without building its networks.

    prediction, ema: as in load()
    vae: the VAE that replaces the model's own VAE. The file may then lack its own VAE. None: the
        model's own VAE is used

    Raises ValueError in the same cases as load().
    """
    if prediction not in (None, "eps", "v"):
        raise ValueError(f'prediction is {prediction!r}: give "eps" or "v".')
    if ema and path.is_dir():
        raise ValueError(f"{path} is a folder, which holds only one set of weights: leave out ema.")
    checkpoint = (
        open_folder(path, vae) if path.is_dir() else open_single_file(path, prediction, ema, vae)
    )
    check_vocabulary(path.name, checkpoint.config.text.vocab_size, checkpoint.tokenizer)
    check_parts(path.name, checkpoint.config)
    return (
        checkpoint if prediction is None else override_prediction(checkpoint, prediction, path.name)
    )


def override_prediction(checkpoint: Checkpoint, prediction: str, name: str) -> Checkpoint:
    """Return the checkpoint with the prediction that the user chose.

    Warns if the file states a different prediction.

    prediction: "eps" or "v"
    name: the name of the file or folder, for messages

    Raises ValueError if the noise levels do not allow this prediction.
    """
    schedule = checkpoint.config.schedule
    if checkpoint.known_by not in (None, BY_ARGUMENT):
        warn_of_argument(name, prediction, schedule.prediction, checkpoint.known_by)
    config = replace(checkpoint.config, schedule=replace(schedule, prediction=prediction))
    with name_errors(name):
        return replace(checkpoint, config=validate_config(config), known_by=BY_ARGUMENT)


def build_networks(
    checkpoint: Checkpoint,
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    mmap: bool = True,
) -> Parts:
    """Build the networks of a checkpoint, and fill them with the weights of the checkpoint.

    name: the name of the file or folder, for error messages
    mmap: whether weights may stay mapped to the file (see fill())
    """
    networks = empty_networks(checkpoint.config)
    for part, network in networks.items():
        needs_range = part == "vae" and dtype is torch.float16
        own = torch.float32 if needs_range else dtype
        fill(network, checkpoint.parts[part], device, own, f"{name}: {part}", mmap)
    parts = Parts(checkpoint.config, checkpoint.tokenizer, **cast(dict[str, Any], networks))
    return parts if checkpoint.known_by else try_prediction(parts, name)


def load_vae(
    path: str | Path,
    config: VAEConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VAE:
    """Load the autoencoder of a VAE file or folder.

    The tensors may have the names of the original code or the names of diffusers.

    config: the sizes that the autoencoder must have. If there is a config.json in the folder or
        next to the file, the scale of the latents (vae.config.scale) comes from this file.
        Otherwise, the scale comes from `config`

    Raises ValueError if the file or folder does not hold an autoencoder of these sizes.
    """
    check_dtype(dtype)
    opened = open_vae(path, config)
    with without_numbers():
        vae = VAE(opened.config)
    fill(vae, opened.state, device, dtype, Path(path).name)
    refuse_damage(vae, Path(path).name)
    return vae.eval().requires_grad_(False)


def locate(source: str | Path) -> Path:
    """Find the path of a model's weights. Raises ValueError if there is no such file or folder."""
    path = WEIGHTS / SHIPPED[str(source)] if source in SHIPPED else local_path(source)
    if not path.exists():
        known = 'a .safetensors or .ckpt file, a diffusers folder, "mini", or a published name'
        raise ValueError(f"There is no file or folder {path}: give {known}.")
    return path


def fill_whole(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Fill a network with the tensors of a file that minisd wrote. The weights become float32.

    network: a network on the meta device
    tensors: all tensors of the file
    name: the file's name, for error messages

    Raises ValueError if a tensor is missing or unknown, has the wrong shape, or is not finite.
    """
    needed = network.state_dict()
    unknown = [key for key in tensors if key not in needed]
    check_cover(name, tensors, needed, unknown, "Get another copy.")
    fill(network, tensors, "cpu", torch.float32, name)
    refuse_damage(network, name)


def fill(
    network: nn.Module,
    state: Mapping[str, Tensor],
    device: str | torch.device,
    dtype: torch.dtype,
    name: str,
    mmap: bool = True,
):
    """Put the weights into a network. The numbers of the weights are not read yet if possible.

    If a weight already has this dtype and device, the weight is not copied. Then it stays mapped to
    the file: the system reads its numbers from the file when they are used for the first time. The
    file may be replaced by a new file of the same name (a rename). But nobody may shorten it or
    write into it while the network is in use.

    state: name of a weight -> weight
    name: the network's name, for error messages
    mmap: False: every weight is copied into memory, and the file is not needed any more

    Raises ValueError if a weight is not floating-point. NaN and infinity are not looked for here,
    because this would read the whole file. damaged_weight() looks for them.
    """
    needed = network.state_dict()
    for key in needed:
        if not state[key].is_floating_point():
            what = f"{name}.{key} is {state[key].dtype}, but weights must be floating-point"
            raise ValueError(f"{what}: get another copy.")
    converted, files = {}, mapped_files()
    for key in needed:
        converted[key] = state[key].to(device, dtype, copy=not mmap)
        if converted[key] is not state[key]:  # so the numbers in the file are not needed any more
            release_pages(state[key], files)
    network.load_state_dict(converted, assign=True)
