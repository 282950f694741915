"""A model's file or folder laid open: its config, and its tensors under our names, as stored.

The cover is exact: every weight that the networks need is there once and in the right shape, and
whatever else the file holds is of a kind known not to be needed.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.checkpoints.detect import config_from_tensors
from minisd.checkpoints.kinds import MODEL, refuse_other_kinds
from minisd.checkpoints.names import (
    Row,
    from_official,
    is_v2,
    model_rows,
    prefixes,
    to_official,
    usual_name,
)
from minisd.checkpoints.read import metadata, read, read_json
from minisd.checkpoints.settings import checked, from_folder, from_metadata
from minisd.checkpoints.tokenizer_folder import read_tokenizer
from minisd.clip import TextTransformer
from minisd.config import ModelConfig, ScheduleConfig
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE

ENDINGS = (".safetensors", ".ckpt")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # what folders call weights
SHOWN = 3  # names per list in an error

OUR_PREFIXES = {part: f"{part}." for part in ("text_encoder", "unet", "vae")}  # a folder's as well

# What published files hold beside the weights we use, whole names. Anything else is an error.
NOT_NEEDED = {
    "averaged U-Net weights, read with ema=True": r"model_ema\..*",
    "the noise schedule, computed anew": r"betas|\w*alphas_cumprod\w*|posterior_\w*|lvlb_weights",
    "position numbers": r".*\.position_ids",
    "the causal mask": r"cond_stage_model\.model\.attn_mask",
    "what compares text with pictures": r".*\.(logit_scale|text_projection(\.weight)?)",
    "the last text layer, which v2 does not use": r"cond_stage_model\.model\.transformer\.LAST.*",
    "what only training needs": r"(first_stage_model\.)?(loss|model_ema)\..*|logvar",
    "a depth estimator": r"depth_model\..*",
}


# The published v2 files that nothing but their sha256 tells apart.
PUBLISHED = {
    # 512-base-ema.ckpt, 768-v-ema.ckpt, v2-1_768-ema-pruned.safetensors
    "d635794c1fedfdfa261e065370bea59c651fc9bfa65dc6d67ad29e11869a1824": "eps",
    "bfcaf0755797b0c30eb00a3787e8b423eb1f5decd8de76c4d824ac2dd27e139f": "v",
    "dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac": "v",
}


@dataclass(frozen=True)
class Contents:
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


def lay_open(path: Path, prediction: str | None = None, ema: bool = False) -> Contents:
    """Read a model without building it. Raises ValueError as load() does."""
    if prediction not in (None, "eps", "v"):
        raise ValueError(f'prediction is {prediction!r}: only "eps" and "v" are known.')
    if ema and path.is_dir():
        raise ValueError(f"{path} is a folder, which holds one kind of weights: leave ema out.")
    contents = open_folder(path) if path.is_dir() else open_file(path, prediction, ema)
    check_vocabulary(path.name, contents.config.text.vocab_size, contents.tokenizer)
    if prediction is None:
        return contents
    schedule = replace(contents.config.schedule, prediction=prediction)
    config = replace(contents.config, schedule=schedule)
    return replace(contents, config=config, known_by="the argument prediction=")


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
        warnings.warn(
            f"{name} has vectors for {rows} tokens and a tokenizer of {ids}: no word reaches the "
            f"last {rows - ids}. If words were added to it, the file that names them is missing.",
            stacklevel=4,
        )


def blank(config: ModelConfig) -> dict[str, nn.Module]:
    """The three networks without weights, which costs neither time nor memory."""
    with torch.device("meta"):
        return {
            "text_encoder": TextTransformer(config.text),
            "unet": UNet(config.unet),
            "vae": VAE(config.vae),
        }


# ---- single files ----------------------------------------------------------------------------


def open_file(path: Path, prediction: str | None, ema: bool) -> Contents:
    """An original single file, or one of our own."""
    tensors, stored = read(path), metadata(path)
    if "base" in stored:
        tensors = read_base(path, stored["base"]) | tensors
    refuse_other_kinds(path.name, tensors, MODEL)
    try:
        if "minisd" in stored:
            config, tokenizer = from_metadata(stored)
            known_by = "the settings in its header"
        else:
            tensors = {usual_v1_name(key): tensor for key, tensor in tensors.items()}
            config = config_from_tensors(tensors, path.stem)
            tokenizer = Tokenizer.clip(config.text.pad_token)
            said, known_by = stated_prediction(path, stored, config, prediction)
            config = settled(config, said)
        checked(config)
        tensors = averaged(tensors) if ema else tensors
    except ValueError as error:
        raise ValueError(f"{path.name} {error}") from error
    layout = "ours" if any(key.startswith("unet.") for key in tensors) else "original"
    parts, rest = cover(tensors, config, layout, path.name)
    return Contents(layout, config, tokenizer, parts, rest, known_by)


def read_base(path: Path, name: str) -> dict[str, Tensor]:
    """The model that one of our own files was fine-tuned from: it holds only what differs."""
    base = path.with_name(Path(name).name)
    if not base.exists():
        raise ValueError(
            f"{path.name} holds only what differs from {base.name}: put that file beside it."
        )
    return read(base)


def usual_v1_name(key: str) -> str:
    """Some programs wrote v1's text names without "text_model."."""
    prefix = "cond_stage_model.transformer."
    if not key.startswith(prefix):
        return key
    return prefix + usual_name(key.removeprefix(prefix), "text_encoder")


def averaged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the averaged weights, whose names were flattened, in place of the U-Net's last ones."""
    unet = [key for key in tensors if key.startswith("model.diffusion_model.")]
    names = {key: "model_ema." + key.removeprefix("model.").replace(".", "") for key in unet}
    absent = [name for name in names.values() if name not in tensors]
    if absent or not unet:
        raise ValueError("lacks averaged weights (model_ema.…): load without ema=True")
    return dict(tensors) | {key: tensors[name] for key, name in names.items()}


# ---- eps or v --------------------------------------------------------------------------------


def stated_prediction(
    path: Path, stored: Mapping[str, str], config: ModelConfig, prediction: str | None
) -> tuple[str | None, str | None]:
    """What the U-Net of an original file predicts and who says so; (None, None) if nobody does.

    The checksum comes last, since 5 GB take it some 20 s; where it is known, it never differs.
    """
    if prediction:
        return prediction, "the argument prediction="
    header = stored.get("modelspec.prediction_type", "")  # as Kohya's trainer writes it
    if header in ("epsilon", "v"):
        return ("v" if header == "v" else "eps"), "modelspec.prediction_type in its header"
    yaml = path.with_suffix(".yaml")
    if yaml.exists():
        text = yaml.read_text(encoding="utf-8")
        is_v = re.search(r"""parameterization:\s*["']?v\b""", text)  # eps is the default
        return ("v" if is_v else "eps"), f"{yaml.name} beside it"
    if not is_v2(config):
        return "eps", "its family: all v1 models do"
    if config.unet.in_channels != 4:
        return "eps", f"its {config.unet.in_channels} input channels"
    published = PUBLISHED.get(sha256(path))
    return (published, "its sha256, a published file's") if published else (None, None)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest()


def settled(config: ModelConfig, prediction: str | None) -> ModelConfig:
    """With what no tensor tells: the published models that predict v are made for 768 pixels."""
    schedule = ScheduleConfig(prediction=prediction or "eps")
    return replace(config, schedule=schedule, size=768 if prediction == "v" else 512)


# ---- diffusers folders -----------------------------------------------------------------------


def open_folder(path: Path) -> Contents:
    """A diffusers folder. The safety checker and what else it may hold is not looked at."""
    absent = [part for part in (*OUR_PREFIXES, "tokenizer") if not (path / part).is_dir()]
    if absent:
        files = [file.name for file in sorted(path.glob("*.*")) if file.suffix in ENDINGS]
        hint = f"did you mean the file {files[0]} in it?" if files else "check the path."
        raise ValueError(
            f"The folder {path} is no diffusers model (it has no {', '.join(absent)}): {hint}"
        )
    if (path / "text_encoder_2").is_dir():
        raise ValueError(
            f"{path} is an SDXL model: minisd loads Stable Diffusion v1 and v2 models."
        )
    config = from_folder(path)
    tokenizer = read_tokenizer(path / "tokenizer")
    tensors = {}
    for part, prefix in OUR_PREFIXES.items():
        for file in weight_files(path / part):
            tensors |= {prefix + usual_name(key, part): value for key, value in read(file).items()}
    parts, rest = cover(tensors, config, "diffusers", path.name)
    pad = None if tokenizer.pad_token == tokenizer.end else tokenizer.pad_token
    config = replace(config, text=replace(config.text, pad_token=pad))
    return Contents("diffusers", config, tokenizer, parts, rest, "its scheduler's settings")


def weight_files(folder: Path) -> list[Path]:
    """The file or the shards with a part's weights: full precision first, .safetensors first."""
    for variant in ("", ".fp16"):
        for ending in (".safetensors", ".bin"):
            for stem in STEMS:
                whole = folder / f"{stem}{variant}{ending}"
                if whole.exists():
                    return [whole]
                index = folder / f"{stem}{ending}.index{variant}.json"
                if index.exists():
                    return shards(index)
    raise ValueError(
        f"{folder} holds no weights (such as {STEMS[0]}.safetensors): fetch them again."
    )


def shards(index: Path) -> list[Path]:
    """The files that an index lists. Raises ValueError if it lists none."""
    names = read_json(index).get("weight_map")
    names = list(names.values()) if isinstance(names, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{index} lists no files of weights: fetch it again.")
    return [index.parent / name for name in sorted(set(names))]


# ---- the exact cover -------------------------------------------------------------------------


def cover(
    tensors: Mapping[str, Tensor], config: ModelConfig, layout: str, name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Each part's tensors under our names, and all that is not needed under the file's.

    Raises one ValueError that lists what is missing, what is too much and what has another shape.
    """
    rows = model_rows(config)
    starts = prefixes(config) if layout == "original" else OUR_PREFIXES
    needed = {}
    for part, network in blank(config).items():
        official = to_official(network.state_dict(), rows[part], layout)
        needed |= {starts[part] + key: tensor for key, tensor in official.items()}
    rest = {key: tensor for key, tensor in tensors.items() if key not in needed}
    unknown = [key for key in rest if purpose(key, config) is None]
    mend = "It is not whole, or a variant of SD v1 or v2 that is unknown here."
    refuse_misfits(name, tensors, needed, unknown, mend)
    parts = {}
    for part, start in starts.items():
        within = {key.removeprefix(start): tensors[key] for key in needed if key.startswith(start)}
        parts[part] = from_official(within, rows[part], layout)
    return parts, rest


def cover_part(
    tensors: Mapping[str, Tensor], network: nn.Module, rows: list[Row], layout: str, name: str
) -> dict[str, Tensor]:
    """The tensors of a file that holds one network alone, under our names.

    rows: its table, flat    layout: "original" or "diffusers"
    Raises ValueError as cover() does.
    """
    needed = to_official(network.state_dict(), rows, layout)
    unknown = [key for key in tensors if key not in needed]
    mend = "It is not whole, or made for another model: get one of the model's sizes."
    refuse_misfits(name, tensors, needed, unknown, mend)
    return from_official(tensors, rows, layout)


def purpose(key: str, config: ModelConfig) -> str | None:
    """What a tensor is for that we do not need; None if it is none of the known."""
    for what, pattern in NOT_NEEDED.items():
        layers = re.escape(f"resblocks.{config.text.layers}.")
        if re.fullmatch(pattern.replace("LAST", layers), key):
            return what
    return None


def refuse_misfits(
    name: str,
    tensors: Mapping[str, Tensor],
    needed: Mapping[str, Tensor],
    unknown: list[str],
    mend: str,
) -> None:
    """Raise one ValueError that lists what is missing, too much or of another shape, if anything.

    It says for every kind of fault how many there are, and names the first few.
    """
    both = [key for key in needed if key in tensors]
    misshapen = [key for key in both if tensors[key].shape != needed[key].shape]
    faults = {
        "missing": [key for key in needed if key not in tensors],
        "unknown": unknown,
        "of another shape": [
            f"{key} {list(tensors[key].shape)}, expected {list(needed[key].shape)}"
            for key in misshapen
        ],
    }
    lists = []
    for fault, keys in faults.items():
        more = ", …" if len(keys) > SHOWN else ""
        if keys:
            lists.append(f"{len(keys)} {fault} ({', '.join(keys[:SHOWN])}{more})")
    if lists:
        what = "does not fit the networks that its tensors or settings describe"
        raise ValueError(f"{name} {what}: {'; '.join(lists)}. {mend}")
