"""Whole models: our file, the original's, diffusers' folder, the settings next to them."""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load as safetensors_load

from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.finite import damaged_weight
from minisd.checkpoints.folder_tokenizer import read_tokenizer
from minisd.checkpoints.load import load
from minisd.checkpoints.vae_file import open_vae
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer
from tests.fuzz import good
from tests.fuzz.case import Case, Reader
from tests.fuzz.edits import broken

CLIP: dict[int | None, Tokenizer] = {}
read_clip = Tokenizer.clip


def kept_clip(pad_token: int | None = None) -> Tokenizer:
    """In place of Tokenizer.clip: the shipped vocabulary is no stranger's, and takes 0.1 s to read.

    It is read again where a case has left a word in it.
    """
    kept = CLIP.get(pad_token)
    if kept is None or len(kept.vocabulary) > kept.vocab_size:
        kept = CLIP[pad_token] = read_clip(pad_token)
    return kept


def our_models() -> list[Case]:
    return [Case(good.our_model(), "model.safetensors")]


def original_models() -> list[Case]:
    cases = [
        Case({"model.safetensors": good.original_model(v2)}, "model.safetensors") for v2 in (0, 1)
    ]
    return [*cases, Case({"model.ckpt": good.original_ckpt()}, "model.ckpt")]


def model_folders() -> list[Case]:
    return [Case(good.model_folder(), "folder"), Case(good.sharded_folder(), "folder")]


@cache
def yamls() -> list[Case]:
    """Only the .yaml is broken: the model next to it stays good."""
    return [Case({"model.yaml": good.YAML}, "model.yaml")]


@cache
def folder_settings() -> list[Case]:
    """Only the .json files are broken."""
    files = {k: v for k, v in good.model_folder().items() if k.endswith((".json", ".txt"))}
    index = {k: v for k, v in good.sharded_folder().items() if k.endswith(("index.json", ".txt"))}
    return [Case(files, "folder"), Case(files | index, "folder")]


def read_model(path: Path) -> Parts:
    return load(path)


def read_next_to(path: Path) -> Parts:
    """The good model with this file next to it as its .yaml."""
    model = path.with_name("model.safetensors")
    if path.name != "model.yaml":
        path.rename(path.with_name("model.yaml"))
    model.write_bytes(good.original_model(False))
    return load(model)


def read_with_weights(path: Path) -> Parts:
    """The folder with good weights around its broken settings."""
    sharded = any(path.glob("unet/*.index.json"))
    for name, content in (good.sharded_folder() if sharded else good.model_folder()).items():
        if not name.endswith((".json", ".txt")):
            file = path.parent / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return load(path)


def hides_damage(path: Path, parts: Parts) -> str | None:
    """A weight that is not finite is found when a picture is drawn, unless it plays no part."""
    networks = (parts.text_encoder, parts.unet, parts.vae)
    if not any(map(damaged_weight, networks)):
        return None
    sd = StableDiffusion(parts.config, parts.tokenizer, *networks)
    step = sd.config.size_multiple
    try:
        image = sd.decode(torch.zeros(1, sd.config.vae.latent_channels, 4, 4))
        sd.encode(torch.zeros(1, 3, step, step))
        if sd.config.unet.in_channels == sd.config.vae.latent_channels:
            sd.txt2img("a cat", steps=1, width=step, height=step)
    except ValueError as error:
        return None if "not finite" in str(error) else f"the drawing says {error}"
    return None if image.isfinite().all() else "the picture is not finite"


def as_stored(path: Path, parts: Parts) -> str | None:
    """Every weight is the one that the file holds under our name."""
    if wrong := hides_damage(path, parts):
        return wrong
    stored = safetensors_load(path.read_bytes())
    for part in ("text_encoder", "unet", "vae"):
        for name, tensor in getattr(parts, part).state_dict().items():
            theirs = stored.get(f"{part}.{name}")
            if theirs is None or theirs.numel() != tensor.numel():
                return f"{part}.{name} is not in the file with these sizes"
            pair = theirs.float().flatten(), tensor.flatten()
            if not torch.allclose(*pair, rtol=0, atol=0, equal_nan=True):
                return f"{part}.{name} has other numbers than the file"
    return None


def vae_files() -> list[Case]:
    folder = good.part_of_folder("vae")
    return [
        Case({"v.safetensors": good.original_vae()}, "v.safetensors"),
        Case(folder, "diffusion_pytorch_model.safetensors"),
        Case({f"autoencoder/{name}": content for name, content in folder.items()}, "autoencoder"),
    ]


def read_vae(path: Path) -> object:
    return open_vae(path)


def tokenizer_files() -> list[Case]:
    small = good.small_tokenizer()
    words = Tokenizer.from_json(small.to_json())
    words.add_word("<cat>", 1)
    return [Case({"t.json": one.to_json().encode()}, "t.json") for one in (small, words)]


def tokenizer_folders() -> list[Case]:
    """vocab.json with merges.txt, and the one tokenizer.json of transformers 5."""
    import json

    slow = {f"words/{k}": v for k, v in good.part_of_folder("tokenizer").items()}
    vocabulary = json.loads(slow["words/vocab.json"])
    merges = [" ".join(pair) for pair in good.small_tokenizer().merges]
    added = [{"id": 518, "content": "<|startoftext|>", "special": True, "normalized": True}]
    fast = {"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary, "merges": merges}}
    fast["added_tokens"] = added
    lists = {"words/special_tokens_map.json": b'{"pad_token": "<|endoftext|>"}'}
    lists["words/added_tokens.json"] = b'{"<new>": 520}'
    config = {"words/tokenizer_config.json": slow["words/tokenizer_config.json"]}
    return [
        Case(slow, "words"),
        Case(slow | lists, "words"),
        Case(config | {"words/tokenizer.json": json.dumps(fast).encode()}, "words"),
    ]


def read_words(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(path)
    tokenizer("a cat <new> sat")
    tokenizer.decode(tokenizer.encode("a cat"))
    return tokenizer


MODELS = [
    Reader("our model", our_models, lambda: broken(our_models()), read_model, as_stored, 0.8),
    Reader(
        "original model",
        original_models,
        lambda: broken(original_models()),
        read_model,
        hides_damage,
        0.3,
    ),
    Reader(
        "diffusers folder",
        model_folders,
        lambda: broken(model_folders()),
        read_model,
        hides_damage,
        0.6,
    ),
    Reader(
        "folder settings",
        folder_settings,
        lambda: broken(folder_settings()),
        read_with_weights,
        hides_damage,
        0.8,
    ),
    Reader(".yaml", yamls, lambda: broken(yamls()), read_next_to, hides_damage, 0.4),
    Reader("VAE", vae_files, lambda: broken(vae_files()), read_vae),
    Reader(
        "tokenizer file", tokenizer_files, lambda: broken(tokenizer_files()), read_words, share=2
    ),
    Reader(
        "tokenizer folder",
        tokenizer_folders,
        lambda: broken(tokenizer_folders()),
        lambda path: read_tokenizer(path),
        share=2,
    ),
]
