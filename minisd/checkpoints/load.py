"""From a file or folder to a model's networks: every weight in its place, or an error."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.checkpoints.checkpoint import Checkpoint, OtherVAE, Parts, check_parts, check_vocabulary
from minisd.checkpoints.cover import check_cover, empty_networks
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
from minisd.vae import VAE

NOT_FINITE = "holds NaN or infinity: the file is damaged or its training failed. Get another copy."
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load(
    source: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction: str | None = None,
    ema: bool = False,
    vae: str | Path | None = None,
) -> Parts:
    """Read a whole model: "mini", a .safetensors or .ckpt file, or a diffusers folder.

    Of the mini there are "mini-inpaint" (9 channels) and "mini-depth" (5 channels) as well.

    dtype: one of DTYPES. With float16 the autoencoder is in float32 all the same: its feature maps
        may leave float16's range of 65,504, as the mini's do, which reach 190,000
    prediction: "eps" or "v", where the file does not say it or says it wrongly
    ema: the U-Net's averaged weights, which training checkpoints keep beside the last ones
    vae: a VAE file, a folder with one or a published name, in place of the model's own VAE, which
        some files lack

    Raises ValueError, in one sentence, for anything but a whole and healthy SD v1 or v2 model.
    """
    check_dtype(dtype)
    path = locate(source)
    other = None if vae is None else open_vae(vae, own_vae_config(path))
    return build_networks(open_checkpoint(path, prediction, ema, other), path.name, device, dtype)


def check_dtype(dtype: object) -> None:
    """Raise ValueError, with those that can, unless weights of this dtype can draw."""
    if not any(dtype is known for known in DTYPES):
        said, known = repr(dtype).splitlines()[0][:60], ", ".join(map(str, DTYPES))
        raise ValueError(f"dtype {said} cannot be used for a model: give one of {known}.")


def own_vae_config(path: Path) -> VAEConfig | None:
    """The sizes of its VAE that a file of our own, or a folder, states; None where none does."""
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
    """Read a model without building it. Raises ValueError as load() does.

    vae: in place of the model's own, which then may be absent
    """
    if prediction not in (None, "eps", "v"):
        raise ValueError(f'prediction is {prediction!r}: only "eps" and "v" are known.')
    if ema and path.is_dir():
        raise ValueError(f"{path} is a folder, which holds one kind of weights: leave ema out.")
    checkpoint = (
        open_folder(path, vae) if path.is_dir() else open_single_file(path, prediction, ema, vae)
    )
    check_vocabulary(path.name, checkpoint.config.text.vocab_size, checkpoint.tokenizer)
    check_parts(path.name, checkpoint.config)
    return (
        checkpoint if prediction is None else override_prediction(checkpoint, prediction, path.name)
    )


def override_prediction(checkpoint: Checkpoint, prediction: str, name: str) -> Checkpoint:
    """With what the argument says in place of what the file says, and a warning where they differ.

    Raises ValueError where the noise levels do not allow it.
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
) -> Parts:
    """The networks of a checkpoint that was laid open. name: what to call it in an error."""
    networks = empty_networks(checkpoint.config)
    for part, network in networks.items():
        wide = part == "vae" and dtype is torch.float16
        own = torch.float32 if wide else dtype
        fill(network, checkpoint.parts[part], device, own, f"{name}: {part}")
    parts = Parts(checkpoint.config, checkpoint.tokenizer, **networks)
    return parts if checkpoint.known_by else try_prediction(parts, name)


def load_vae(
    path: str | Path,
    config: VAEConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VAE:
    """The autoencoder of a VAE file or folder, named as in the original or in diffusers.

    config: the sizes it must have. The scale of its latents (vae.config.scale) is that of the
        config.json in the folder or next to the file, else the config's
    Raises ValueError for any other file.
    """
    check_dtype(dtype)
    opened = open_vae(path, config)
    with torch.device("meta"):
        vae = VAE(opened.config)
    fill(vae, opened.state, device, dtype, Path(path).name)
    return vae.eval().requires_grad_(False)


def locate(source: str | Path) -> Path:
    """Where the weights lie. Raises ValueError if there is nothing."""
    path = WEIGHTS / SHIPPED[str(source)] if source in SHIPPED else local_path(source)
    if not path.exists():
        wanted = 'a .safetensors or .ckpt file, a diffusers folder, "mini", or a published name'
        raise ValueError(f"There is no file or folder {path}: give {wanted}.")
    return path


def fill_whole(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Give a network on the meta device all that a file of ours holds, in single precision.

    name: what to call the file in an error
    Raises ValueError for tensors that are missing, too much, of another shape or not finite.
    """
    needed = network.state_dict()
    unknown = [key for key in tensors if key not in needed]
    check_cover(name, tensors, needed, unknown, "Get another copy.")
    fill(network, tensors, "cpu", torch.float32, name)


def fill(
    network: nn.Module,
    state: Mapping[str, Tensor],
    device: str | torch.device,
    dtype: torch.dtype,
    name: str,
):
    """Give the network its tensors. Those of the right dtype and device stay mapped to the file.

    name: what to call the network in an error
    Raises ValueError naming the first module with a weight that is no finite number.
    """
    for key in network.state_dict():
        if not state[key].is_floating_point():
            what = f"{name}.{key} is {state[key].dtype}, which weights are not"
            raise ValueError(f"{what}: get another copy.")
    converted = {key: state[key].to(device, dtype) for key in network.state_dict()}
    for key, tensor in converted.items():
        if not is_finite(tensor):
            raise ValueError(f"{name}.{key} {NOT_FINITE}")
    network.load_state_dict(converted, assign=True)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinity."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    tensor = tensor.float() if tensor.itemsize == 1 else tensor  # 8 bits have no extrema in torch
    lowest, highest = tensor.aminmax()  # one pass without a copy; NaN comes out at both ends
    return bool(lowest.isfinite() and highest.isfinite())
