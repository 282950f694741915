"""Write and read files that hold only new weights. The other weights are in the mini's file."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minisd.adapters.controlnet import ControlNet
from minisd.checkpoints.header import config_to_metadata
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.write import write_tensors
from minisd.config import WEIGHTS
from minisd.files.sha256 import file_sha256
from minisd.files.whole_files import written_whole
from minisd.pipeline import StableDiffusion
from minisd.training.adapters import copied_controlnet, write_half
from minisd.training.wider_unet import FROZEN
from minisd.unet import UNet

NEW_PARTS = ("hint.", "zero.", "zero_mid.")  # the parts of a ControlNet that no U-Net has


def copy_mini_next_to(output: Path) -> None:
    """Copy the shipped mini into the folder of `output`, if the mini is not there yet.

    The file `output` will hold only the weights that differ from the mini. To load the model,
    load() needs both files in the same folder.

    Raises ValueError if the folder holds another model with the name mini.safetensors.
    """
    shipped, base = WEIGHTS / "mini.safetensors", output.with_name("mini.safetensors")
    if base.exists() and file_sha256(base) != file_sha256(shipped):
        raise ValueError(
            f"{output} needs the shipped mini in the same folder, but {base} is another model. "
            "Choose another folder with -o."
        )
    if not base.exists():
        with written_whole(base) as unfinished:
            shutil.copyfile(shipped, unfinished)
        text = f"The mini was copied to {base}, because {output.name} needs it in the same folder."
        warnings.warn(text, stacklevel=2)


def save_wider(
    path: Path, sd: StableDiffusion, unet: UNet, name: str, notes: dict, others: dict[str, Tensor]
) -> None:
    """Write the trained weights of a wider U-Net, in half precision.

    A wider U-Net is a U-Net with more input channels. The file does not hold the weights that were
    not trained. load() reads these weights from mini.safetensors in the same folder.

    name: the name of the new model. The file's config contains this name
    notes: facts about the training
    others: name -> tensor, more tensors for the file, such as the weights of a depth estimator

    Raises ValueError if the file cannot be written.
    """
    trained = {key: t for key, t in unet.state_dict().items() if not key.startswith(FROZEN)}
    trained = {f"unet.{key}": tensor for key, tensor in trained.items()} | others
    settings = config_to_metadata(replace(sd.config, name=name, unet=unet.config), sd.tokenizer)
    header = {**settings, "base": "mini.safetensors", "notes": json.dumps(notes)}
    with written_whole(path) as unfinished:
        write_tensors(unfinished, trained, header, torch.float16)


def freeze_copied_parts(controlnet: ControlNet) -> ControlNet:
    """Freeze the encoder that was copied from the U-Net. Returns the ControlNet.

    Then the training changes only the new parts: the convolutions that read the hint (the extra
    picture, such as edges), and the zero convolutions.
    """
    for name, parameter in controlnet.named_parameters():
        parameter.requires_grad_(name.startswith(NEW_PARTS))
    return controlnet


def save_new_parts(path: Path, controlnet: ControlNet, notes: dict[str, str]) -> None:
    """Write only the new parts of a ControlNet, without its copy of the U-Net's encoder.

    Raises ValueError if the file cannot be written.
    """
    state = controlnet.state_dict()
    write_half(path, {name: state[name] for name in state if name.startswith(NEW_PARTS)}, notes)


def half_trained_controlnet(sd: StableDiffusion, path: Path) -> ControlNet:
    """Read a ControlNet from a file that save_new_parts() wrote.

    The file has no encoder, so the encoder is copied from the model's U-Net.
    """
    network = copied_controlnet(sd)
    network.load_state_dict(network.state_dict() | read_tensors(path))
    return network
