"""Read a model from a diffusers folder.

In a diffusers folder, each network has its own folder with its weights and its settings.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path

from torch import Tensor

from minisd.checkpoints.checkpoint import Checkpoint, OtherVAE, with_other_vae
from minisd.checkpoints.cover import OUR_PREFIXES, cover_model
from minisd.checkpoints.first_bytes import is_file_name
from minisd.checkpoints.folder_settings import absent_sizes, config_from_folder
from minisd.checkpoints.folder_tokenizer import read_tokenizer
from minisd.checkpoints.names import usual_name
from minisd.checkpoints.read import read_tensors, rename_tensors
from minisd.files.json_files import read_json
from minisd.files.one_line import name_errors

WEIGHT_ENDINGS = (".safetensors", ".ckpt")
WEIGHT_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # names of weight files


def open_folder(path: Path, vae: OtherVAE | None) -> Checkpoint:
    """Read a model from a diffusers folder. The safety checker and other unused parts are ignored.

    vae: an autoencoder that replaces the folder's autoencoder. None: the folder's autoencoder is
        used
    """
    needed = [part for part in OUR_PREFIXES if not (vae and part == "vae")]
    refuse_other_folders(path, [*needed, "tokenizer"])
    config = config_from_folder(path, vae.config if vae else None)
    tokenizer = read_tokenizer(path / "tokenizer")
    tensors = {key: tensor for part in needed for key, tensor in read_part(path, part).items()}
    if vae:
        tensors = with_other_vae(tensors, vae, "diffusers")
    try:
        parts, rest = cover_model(tensors, config, "diffusers", path.name)
    except ValueError as error:
        raise ValueError(f"{error}{absent_sizes(path)}") from error
    pad = None if tokenizer.pad_token == tokenizer.end else tokenizer.pad_token
    config = replace(config, text=replace(config.text, pad_token=pad))
    return Checkpoint("diffusers", config, tokenizer, parts, rest, "its scheduler's settings")


def refuse_other_folders(path: Path, needed: list[str]) -> None:
    """Raise ValueError if a folder is not a diffusers model of SD v1 or v2.

    path: the folder of the model
    needed: the names of the folders that the model's folder must contain
    """
    absent = [part for part in needed if not (path / part).is_dir()]
    if absent:
        files = [file.name for file in sorted(path.glob("*.*")) if file.suffix in WEIGHT_ENDINGS]
        hint = f"did you mean the file {files[0]} in it?" if files else "check the path."
        if absent == ["vae"]:
            hint = "give an autoencoder with vae=FILE or --vae FILE."
        lacks = f"is not a diffusers model (it has no {', '.join(absent)})"
        raise ValueError(f"The folder {path} {lacks}: {hint}")
    if (path / "text_encoder_2").is_dir():
        raise ValueError(f"{path} is an SDXL model: minisd loads only Stable Diffusion v1 and v2.")


def read_part(folder: Path, part: str) -> dict[str, Tensor]:
    """Read the tensors of one part of a model, such as the U-Net.

    folder: the folder of the model
    part: the name of the part, such as "unet". This name and a dot are put before the name of each
        tensor

    Raises ValueError if two files of the part hold tensors of the same name.
    """
    shards = [pair for file in weight_files(folder / part) for pair in read_tensors(file).items()]
    with name_errors(folder.name):
        return rename_tensors(shards, lambda key: OUR_PREFIXES[part] + usual_name(key, part))


def weight_files(folder: Path) -> list[Path]:
    """Find the files with the weights of one part of a model.

    The weights are in one file, or distributed over several files (shards). The folder may hold
    several versions of the weights. A version in full precision is preferred to a version in fp16.
    If there is still a choice, .safetensors is preferred to .bin.

    folder: the folder of the part

    Raises ValueError if the folder has no weights.
    """
    for variant, ending, stem in product(("", ".fp16"), (".safetensors", ".bin"), WEIGHT_STEMS):
        whole = folder / f"{stem}{variant}{ending}"
        index = folder / f"{stem}{ending}.index{variant}.json"
        if whole.exists():
            return [whole]
        if index.exists():
            return shard_files(index)
    example = f"{WEIGHT_STEMS[0]}.safetensors"
    raise ValueError(f"{folder} holds no weights (such as {example}): fetch the weights.")


def shard_files(index: Path) -> list[Path]:
    """The files of weights that an index lists.

    index: the path of a .json file. For each tensor, it contains the name of the file that holds
        the tensor

    Raises ValueError if the index lists no files, or lists a file that is in another folder.
    """
    found = read_json(index).get("weight_map")
    found = list(found.values()) if isinstance(found, dict) else []
    if not found or not all(isinstance(name, str) and is_file_name(name) for name in found):
        raise ValueError(f"{index} lists no files of weights: fetch it again.")
    return [index.parent / name for name in sorted(set(found))]
