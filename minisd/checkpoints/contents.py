"""A model's file or folder laid open: its config, and its tensors under our names, as stored.

The cover is exact: every weight that the networks need is there once and in the right shape, and
whatever else the file holds is of a kind known not to be needed.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import translate
from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.checkpoints import names, variants
from minisd.checkpoints.detect import config_from_tensors
from minisd.checkpoints.folder_settings import absent_sizes, from_folder
from minisd.checkpoints.kinds import MODEL_KIND, refuse_other_kinds
from minisd.checkpoints.prediction import ARGUMENT, warn_of_argument, with_stated_settings
from minisd.checkpoints.prediction import PUBLISHED as PUBLISHED
from minisd.checkpoints.prediction import sha256 as sha256
from minisd.checkpoints.read import metadata, read, read_json, rename
from minisd.checkpoints.settings import from_metadata, naming, validate_config
from minisd.checkpoints.tokenizer_folder import read_tokenizer
from minisd.clip import TextTransformer
from minisd.config import ModelConfig, VAEConfig
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE

ENDINGS = (".safetensors", ".ckpt")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # what folders call weights
SHOWN = 3  # names per list in an error

OUR_PREFIXES = {part: f"{part}." for part in ("text_encoder", "unet", "vae")}  # a folder's as well

# What published files hold beside the weights we use, whole names, in contents.json: * stands for
# anything, LAST for the number of text layers. Anything else is an error.
NOT_NEEDED = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


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
    checkpoint = open_folder(path, vae) if path.is_dir() else open_file(path, prediction, ema, vae)
    check_vocabulary(path.name, checkpoint.config.text.vocab_size, checkpoint.tokenizer)
    check_parts(path.name, checkpoint.config)
    return checkpoint if prediction is None else predicting(checkpoint, prediction, path.name)


def predicting(checkpoint: Checkpoint, prediction: str, name: str) -> Checkpoint:
    """With what the argument says in place of what the file says, and a warning where they differ.

    Raises ValueError where the noise levels do not allow it.
    """
    schedule = checkpoint.config.schedule
    if checkpoint.known_by not in (None, ARGUMENT):
        warn_of_argument(name, prediction, schedule.prediction, checkpoint.known_by)
    config = replace(checkpoint.config, schedule=replace(schedule, prediction=prediction))
    with naming(name):
        return replace(checkpoint, config=validate_config(config), known_by=ARGUMENT)


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


def empty_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """The three networks without weights, which costs neither time nor memory."""
    with torch.device("meta"):
        return {
            "text_encoder": TextTransformer(config.text),
            "unet": UNet(config.unet),
            "vae": VAE(config.vae),
        }


# ---- single files ----------------------------------------------------------------------------


def open_file(path: Path, prediction: str | None, ema: bool, vae: OtherVAE | None) -> Checkpoint:
    """An original single file, or one of our own."""
    stored, tensors = metadata(path), read(path)
    if "base" in stored:
        tensors = read_base(path, stored["base"]) | tensors
    refuse_other_kinds(path.name, tensors, MODEL_KIND)
    with naming(path.name):
        theirs = any(key.startswith("model.") for key in tensors)
        layout = "original" if theirs or "unet.conv_in.weight" not in tensors else "ours"
        tensors = usual_form(tensors, ema)
        if vae:
            tensors = with_other_vae(tensors, vae, layout)
        if "minisd" in stored:
            config, tokenizer = from_metadata(stored)
            known_by = "the settings in its header"
        else:
            config = config_from_tensors(tensors, path.stem)
            tokenizer = Tokenizer.clip(config.text.pad_token)
            config, known_by = with_stated_settings(config, path, stored, tensors, prediction)
        config = validate_config(replace(config, vae=vae.config) if vae else config)
    parts, rest = cover(tensors, config, layout, path.name)
    return Checkpoint(layout, config, tokenizer, parts, rest, known_by)


def usual_form(tensors: dict[str, Tensor], ema: bool) -> dict[str, Tensor]:
    """A file's tensors under the usual names, whatever form it has. Raises ValueError."""
    if variants.holds_only_averaged(tensors) and not ema:
        alone = "holds only the averaged weights of its U-Net (model_ema.…)"
        raise ValueError(f"{alone}: load it with ema=True")
    tensors = variants.with_scales_applied(rename(tensors.items(), names.usual_single_file_name))
    return variants.with_averaged_unet(tensors) if ema else tensors


def with_other_vae(tensors: Mapping[str, Tensor], vae: OtherVAE, layout: str) -> dict[str, Tensor]:
    """The tensors of a model with those of another autoencoder in place of its own, if any."""
    start = (names.PREFIXES_V1 if layout == "original" else OUR_PREFIXES)["vae"]
    official = names.to_official(vae.state, names.flat_rows(names.vae_rows(vae.config)), layout)
    others = {key: tensor for key, tensor in tensors.items() if not key.startswith(start)}
    return others | {start + key: tensor for key, tensor in official.items()}


def read_base(path: Path, name: str) -> dict[str, Tensor]:
    """The model that one of our own files was fine-tuned from: it holds only what differs."""
    if not is_file_name(name):
        raise ValueError(f"{path.name} names no file as its base: get another copy.")
    base = path.with_name(name)
    if not base.exists():
        differs = f"{path.name} holds only what differs from {base.name}"
        raise ValueError(f"{differs}: put that file beside it.")
    return read(base)


# ---- diffusers folders -----------------------------------------------------------------------


def open_folder(path: Path, vae: OtherVAE | None) -> Checkpoint:
    """A diffusers folder. The safety checker and what else it may hold is not looked at."""
    needed = [part for part in OUR_PREFIXES if not (vae and part == "vae")]
    refuse_other_folders(path, [*needed, "tokenizer"])
    config = from_folder(path, vae.config if vae else None)
    tokenizer = read_tokenizer(path / "tokenizer")
    tensors = {key: tensor for part in needed for key, tensor in read_part(path, part).items()}
    if vae:
        tensors = with_other_vae(tensors, vae, "diffusers")
    try:
        parts, rest = cover(tensors, config, "diffusers", path.name)
    except ValueError as error:
        raise ValueError(f"{error}{absent_sizes(path)}") from error
    pad = None if tokenizer.pad_token == tokenizer.end else tokenizer.pad_token
    config = replace(config, text=replace(config.text, pad_token=pad))
    return Checkpoint("diffusers", config, tokenizer, parts, rest, "its scheduler's settings")


def refuse_other_folders(path: Path, needed: list[str]) -> None:
    """Raises ValueError for a folder that is no diffusers model of SD v1 or v2."""
    absent = [part for part in needed if not (path / part).is_dir()]
    if absent:
        files = [file.name for file in sorted(path.glob("*.*")) if file.suffix in ENDINGS]
        hint = f"did you mean the file {files[0]} in it?" if files else "check the path."
        if absent == ["vae"]:
            hint = "give an autoencoder with vae=FILE or --vae FILE."
        lacks = f"is no diffusers model (it has no {', '.join(absent)})"
        raise ValueError(f"The folder {path} {lacks}: {hint}")
    if (path / "text_encoder_2").is_dir():
        raise ValueError(f"{path} is an SDXL model: minisd loads Stable Diffusion v1 and v2.")


def read_part(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of a folder's part under our prefix. ValueError: a shard holds another's key."""
    shards = [pair for file in weight_files(folder / part) for pair in read(file).items()]
    with naming(folder.name):
        return rename(shards, lambda key: OUR_PREFIXES[part] + names.usual_name(key, part))


def weight_files(folder: Path) -> list[Path]:
    """The file or the shards with a part's weights: full precision first, .safetensors first."""
    for variant, ending, stem in product(("", ".fp16"), (".safetensors", ".bin"), STEMS):
        whole = folder / f"{stem}{variant}{ending}"
        index = folder / f"{stem}{ending}.index{variant}.json"
        if whole.exists():
            return [whole]
        if index.exists():
            return shards(index)
    raise ValueError(f"{folder} holds no weights (such as {STEMS[0]}.safetensors): get them.")


def shards(index: Path) -> list[Path]:
    """The files that an index lists. Raises ValueError if it lists none, or any elsewhere."""
    found = read_json(index).get("weight_map")
    found = list(found.values()) if isinstance(found, dict) else []
    if not found or not all(isinstance(name, str) and is_file_name(name) for name in found):
        raise ValueError(f"{index} lists no files of weights: fetch it again.")
    return [index.parent / name for name in sorted(set(found))]


def is_file_name(name: str) -> bool:
    """Whether a name leads to no other folder, on any system: no "..", no "/", no "C:"."""
    return name not in ("", ".", "..") and not re.search(r"[/\\:\0-\x1f]", name)


# ---- the exact cover -------------------------------------------------------------------------


def cover(
    tensors: Mapping[str, Tensor], config: ModelConfig, layout: str, name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Each part's tensors under our names, and all that is not needed under the file's.

    Raises one ValueError that lists what is missing, what is too much and what has another shape.
    """
    rows = names.model_rows(config)
    starts = names.prefixes(config) if layout == "original" else OUR_PREFIXES
    needed = {}
    for part, network in empty_networks(config).items():
        official = names.to_official(network.state_dict(), rows[part], layout)
        needed |= {starts[part] + key: tensor for key, tensor in official.items()}
    rest = {key: tensor for key, tensor in tensors.items() if key not in needed}
    unknown = [key for key in rest if why_unneeded(key, config) is None]
    mend = "It is not whole, or a variant of SD v1 or v2 that is unknown here."
    tensors = as_needed(tensors, needed)
    check_cover(name, tensors, needed, unknown, mend)
    parts = {}
    for part, start in starts.items():
        within = {key.removeprefix(start): tensors[key] for key in needed if key.startswith(start)}
        parts[part] = names.from_official(within, rows[part], layout)
    return parts, rest


def cover_part(
    tensors: Mapping[str, Tensor], network: nn.Module, rows: list[names.Row], layout: str, name: str
) -> dict[str, Tensor]:
    """The tensors of a file that holds one network alone, under our names.

    rows: its table, flat    layout: "original" or "diffusers"
    Raises ValueError as cover() does.
    """
    needed = names.to_official(network.state_dict(), rows, layout)
    unknown = [key for key in tensors if key not in needed]
    mend = "It is not whole, or made for another model: get one of the model's sizes."
    tensors = as_needed(tensors, needed)
    check_cover(name, tensors, needed, unknown, mend)
    return names.from_official(tensors, rows, layout)


def as_needed(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with matrices as 1x1 convolutions and the reverse: both are the same map."""
    fitting = dict(tensors)
    for key in tensors.keys() & needed.keys():
        old, new = tensors[key].shape, needed[key].shape
        if {len(old), len(new)} == {2, 4} and (*old, 1, 1)[:4] == (*new, 1, 1)[:4]:
            fitting[key] = tensors[key].reshape(new)
    return fitting


def why_unneeded(key: str, config: ModelConfig) -> str | None:
    """What a tensor is for that we do not need; None if it is none of the known."""
    patterns = not_needed_patterns(config.text.layers)
    return next((what for what, pattern in patterns.items() if pattern.match(key)), None)


@lru_cache(maxsize=8)
def not_needed_patterns(layers: int) -> dict[str, re.Pattern]:
    """One pattern for all the names of a purpose. layers: of the text transformer"""
    return {
        what: re.compile("|".join(translate(name.replace("LAST", str(layers))) for name in keys))
        for what, keys in NOT_NEEDED.items()
    }


def check_cover(
    name: str,
    tensors: Mapping[str, Tensor],
    needed: Mapping[str, Tensor],
    unknown: list[str],
    mend: str,
) -> None:
    """Raise one ValueError that lists what is missing, too much or of another kind, if anything.

    It says for every kind of fault how many there are, and names the first few.
    """
    misshapen = [
        f"{key} {list(tensors[key].shape)}, expected {list(tensor.shape)}"
        for key, tensor in needed.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    missing = [key for key in needed if key not in tensors]
    held = [(key, tensors[key]) for key in needed if key in tensors]
    integers = [f"{key} {t.dtype}" for key, t in held if not t.is_floating_point()]
    faults = {"missing": missing, "unknown": unknown, "of another shape": misshapen}
    faults["not of real numbers"] = integers
    lists = [
        f"{len(keys)} {fault} ({', '.join(keys[:SHOWN])}{', …' if len(keys) > SHOWN else ''})"
        for fault, keys in faults.items()
        if keys
    ]
    if lists:
        what = "does not fit the networks that its tensors or settings describe"
        raise ValueError(f"{name} {what}: {'; '.join(lists)}. {mend}")
