"""Whatever stands in place of any one setting of a file: it is read, or refused in one sentence.

`python -m tests.checkpoints.test_odd_settings` tries all that the tests try a part of, and counts.
"""

import copy
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from minisd.adapters import classifier, hypernetwork
from minisd.checkpoints import (
    controlnet_settings,
    folder_settings,
    lora_settings,
    single_file_settings,
    vae_file,
)
from minisd.checkpoints.cover import empty_networks
from minisd.checkpoints.folder import shard_files
from minisd.checkpoints.folder_tokenizer import read_tokenizer, write_tokenizer
from minisd.checkpoints.header import config_from_metadata
from minisd.checkpoints.validate import validate_config
from minisd.config import MINI, SD15, ModelConfig
from minisd.files.json_files import read_json
from minisd.files.one_line import name_errors
from minisd.mini import cats_and_dogs, judge
from minisd.tokenizer import AddedWord, Tokenizer
from minisd.training import run_folder as folder
from tests.helpers.checkpoint_files import V1

DIGITS = "nine, 5000 times, as a number"  # which Python writes and reads no more
SAMPLE = 25  # odd values of each reader
SECONDS = 1.0  # of a core
ODD = [
    *(None, True, False, -1, 0, 1, 3, 10**30, 1.5, -0.001, float("nan"), float("inf")),
    *("", "x", "1", "9" * 5000, "\0", [], {}, [[]], [[1, [2]]], [None], ["x", 1], [True, False]),
    *({"x": {}}, {"content": []}, [8] * 50, [1] * 10**5, "x" * 10**5, DIGITS),
]


# ---- every reader, from the JSON value that a good file holds ----------------------------------


@cache
def words() -> Tokenizer:
    trained = Tokenizer.train(["a cat", "a dog", "two cats"], 520)
    added = [AddedWord("<toy>", (520,)), AddedWord("fox", (521,), special=True)]
    return Tokenizer(trained.merges, 0, added)


def written(stored: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(stored), encoding="utf-8")
    return path


def text_of(stored: object) -> str:
    return json.dumps(stored).replace(f'"{DIGITS}"', "9" * 5000)


def read_header(stored: object, path: Path) -> None:
    with name_errors("a.safetensors"):
        config, _ = config_from_metadata(
            {"minisd": text_of(stored), "tokenizer": words().to_json()}
        )
        empty_networks(validate_config(config))


def read_header_words(stored: object, path: Path) -> None:
    with name_errors("a.safetensors"):
        config_from_metadata({"minisd": json.dumps(asdict(MINI)), "tokenizer": text_of(stored)})
    Tokenizer.load(written(stored, path / "tokenizer.json"))


@cache
def model_folder() -> dict[str, object]:
    config = replace(V1, text=replace(V1.text, vocab_size=522))
    files = folder_settings.folder_json_files(config, words())
    files["model_index.json"] |= {"_note": "x"}
    files["minisd.json"] = {"cfg_scale": 3.0}
    return json.loads(json.dumps(files))


def read_folder(stored: dict[str, object], path: Path) -> None:
    for name, settings in stored.items():
        written(settings, path / name)
    empty_networks(folder_settings.config_from_folder(path))
    folder_settings.absent_sizes(path)


@cache
def tokenizer_folder() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as path:
        write_tokenizer(Path(path), words())
        files = {
            one.name: json.loads(one.read_text(encoding="utf-8"))
            for one in Path(path).glob("*.json")
        }
        merges = (Path(path) / "merges.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {word: files["vocab.json"][word] for word in files["vocab.json"]}
    fast = {"type": "BPE", "vocab": vocabulary, "merges": [one.split() for one in merges[1:-1]]}
    toy = files["tokenizer_config.json"]["added_tokens_decoder"]["520"]
    files["tokenizer.json"] = {"version": "1.0", "model": fast, "added_tokens": [toy | {"id": 520}]}
    files["special_tokens_map.json"] = {"pad_token": {"content": "!"}, "unk_token": "<|endoftext|>"}
    return files


def read_words(stored: dict[str, object], path: Path) -> None:
    for name, settings in stored.items():
        written(settings, path / name)
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in words().merges), ""])
    (path / "merges.txt").write_text(merges, encoding="utf-8")
    read_tokenizer(path)


def read_vae(stored: object, path: Path) -> None:
    file = written(stored, path / "config.json")
    with name_errors("vae"):
        config = vae_file.read_stated_config(file, required=True, layout="diffusers")
        empty_networks(validate_config(ModelConfig(vae=config)))


def read_yaml(stored: object, path: Path) -> None:
    (path / "a.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    with name_errors("a.ckpt"):
        said = single_file_settings.yaml_settings(path / "a.yaml", SD15)
        config = single_file_settings.with_yaml_unet(
            single_file_settings.with_yaml_numbers(SD15, said), said
        )
        single_file_settings.statements_in(said, "a.yaml")
        empty_networks(validate_config(config))


def read_control_yaml(stored: object, path: Path) -> None:
    (path / "a.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    with name_errors("a.pth"):
        config, _ = controlnet_settings.settings_from_yaml(path / "a.yaml")
        empty_networks(validate_config(ModelConfig(unet=config)))


def read_control_json(stored: object, path: Path) -> None:
    stored = read_json(written(stored, path / "config.json"))
    with name_errors("a.safetensors"):
        config, _ = controlnet_settings.settings_from_json(stored, None)
        empty_networks(validate_config(ModelConfig(unet=config)))


def read_control_header(stored: dict[str, object], path: Path) -> None:
    header = {name: text_of(settings) for name, settings in stored.items()}
    with name_errors("a.safetensors"):
        controlnet_settings.settings_from_header(header)


def read_peft(stored: object, path: Path) -> None:
    written(stored, path / lora_settings.ADAPTER_CONFIG)
    header = {"lora_adapter_metadata": text_of(stored)}
    save_file({"a": torch.zeros(1)}, path / "adapter_model.safetensors", header)
    for _, settings in lora_settings.read_lora_settings(path / "adapter_model.safetensors", ["a"]):
        with name_errors("adapter_model.safetensors"):
            settings.alpha_of("unet.down_blocks.0.attn1.to_q", 4)


def read_hypernetwork(stored: object, path: Path) -> None:
    with name_errors("a.pt"):
        hypernetwork.parse_settings(json.loads(json.dumps(stored)))


def read_log(stored: list, path: Path) -> None:
    lines = [text_of(record) for record in stored]
    (path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    folder.log_records(path)


def read_index(stored: object, path: Path) -> None:
    shard_files(written(stored, path / "model.safetensors.index.json"))


def read_network(load: Callable, name: str, stored: dict, path: Path) -> None:
    """A file of our own with tensors of the good settings' shapes."""
    header = {name: text_of(settings) for name, settings in stored.items()}
    save_file(tensors_of(name), path / "a.safetensors", header)
    load(path / "a.safetensors")


@cache
def tensors_of(name: str) -> dict[str, torch.Tensor]:
    network = {
        "classifier": lambda: classifier.LatentClassifier(SORTS),
        "judge": lambda: judge.Judge(("cat", "dog"), ("flat",), ("red", "blue")),
        "unprompted": lambda: cats_and_dogs.Unprompted(V1.unet),
    }[name]()
    return {key: tensor.half() for key, tensor in network.state_dict().items()}


def read_classifier(stored: dict, path: Path) -> None:
    read_network(classifier.load_classifier, "classifier", {"classifier": stored}, path)


def read_cats_and_dogs(stored: dict, path: Path) -> None:
    read_network(cats_and_dogs.load_unprompted, "unprompted", {"unprompted": stored}, path)


def read_judge(stored: dict, path: Path) -> None:
    header = {name: text_of(settings) for name, settings in stored.items()}
    save_file(tensors_of("judge"), path / "a.safetensors", header)
    judge.load_judge(path / "a.safetensors")


SORTS = classifier.ClassifierConfig(("cat", "dog"), (16, 32))
STAGE = {
    **{"in_channels": 4, "hint_channels": 3, "model_channels": 32, "channel_mult": [1, 2]},
    **{"attention_resolutions": [2, 1], "num_res_blocks": 2, "num_heads": 4},
    **{"context_dim": 64, "use_spatial_transformer": True, "transformer_depth": 1},
}
PARAMS = {"linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "scale_factor": 0.18}
PARAMS |= {"parameterization": "v", "unet_config": {"params": {"num_heads": 8}}}
PARAMS |= {"cond_stage_config": {"params": {"layer": "last"}}, "beta_schedule": "linear"}
PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "rank_pattern": {"to_q": 4}}
PEFT |= {"alpha_pattern": {"to_k": 3}, "target_modules": ["to_q", "to_k"], "use_rslora": True}
SHARDS = {"metadata": {"total_size": 9}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
GOOD = {
    "header": (json.loads(json.dumps(asdict(V1))), read_header),
    "header's tokenizer": (json.loads(words().to_json()), read_header_words),
    "folder": (model_folder(), read_folder),
    "tokenizer folder": (tokenizer_folder(), read_words),
    "vae": (model_folder()["vae/config.json"], read_vae),
    "yaml": ({"model": {"params": PARAMS}}, read_yaml),
    "ControlNet's yaml": (
        {"model": {"params": {"control_stage_config": {"params": STAGE}}}},
        read_control_yaml,
    ),
    "ControlNet's json": (
        {
            **{"_class_name": "ControlNetModel", "block_out_channels": [32, 64]},
            **{"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]},
            **{"attention_head_dim": 4, "conditioning_embedding_out_channels": [16, 32]},
            **{"controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": True},
        },
        read_control_json,
    ),
    "ControlNet's header": (
        {
            "controlnet": json.loads(json.dumps(asdict(V1.unet))),
            "controlnet_hint": json.loads(json.dumps(asdict(controlnet_settings.DEFAULT_HINT))),
        },
        read_control_header,
    ),
    "PEFT": (PEFT, read_peft),
    "hypernetwork": (
        {"layer_structure": [1, 2, 1], "activation_func": "relu", "is_layer_norm": False},
        read_hypernetwork,
    ),
    "log": ([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}], read_log),
    "shards": (SHARDS, read_index),
    "classifier": (json.loads(json.dumps(asdict(SORTS))), read_classifier),
    "cats and dogs": (json.loads(json.dumps(asdict(V1.unet))), read_cats_and_dogs),
    "judge": (
        {"things": ["cat", "dog"], "styles": ["flat"], "colours": ["red", "blue"]},
        read_judge,
    ),
}


# ---- what is done to them ----------------------------------------------------------------------


def places(stored: object, at: tuple = ()) -> Iterator[tuple]:
    """The path of every value, and of the first few in a long list or dictionary."""
    yield at
    if isinstance(stored, dict | list):
        keys = list(stored) if isinstance(stored, dict) else range(len(stored))
        for key in dict.fromkeys([*keys[:12], *keys[-2:]]):
            yield from places(stored[key], (*at, key))


def changed(stored: object, at: tuple, odd: object) -> object:
    """A copy with another value in one place, "remove" for none, or with one more next to it."""
    if not at:
        return odd
    changed_one = copy.deepcopy(stored)
    holder = changed_one
    for key in at[:-1]:
        holder = holder[key]
    if odd == "remove":
        del holder[at[-1]]
    elif odd == "add" and isinstance(holder, dict):
        holder["shape_of_water"] = [1]
    else:
        holder[at[-1]] = odd
    return changed_one


IN_NO_JSON = ("folder", "tokenizer folder", "ControlNet's header", "judge", "log", "hypernetwork")


def failure(name: str, at: tuple, odd: object, path: Path) -> str:
    """What is wrong with how the reader takes it; "" if nothing is."""
    good, read = GOOD[name]
    stored = changed(good, at, odd)
    if not at and name in IN_NO_JSON:
        return ""  # these settings are not one JSON value
    if name in ("yaml", "ControlNet's yaml") and len(str(odd)) > 9999:
        return ""  # larger than a .yaml may be, and PyYAML takes long to write it
    before, told = time.process_time(), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(stored, path)
    except ValueError as error:
        told = str(error)
        if type(error) is not ValueError or "\n" in told or len(told) > 3000:
            return f"{type(error).__name__} {told[:300]}"
        if any(word in told for word in FOREIGN):
            return f"in a library's words: {told[:300]}"
    except Exception as error:
        return f"{type(error).__name__} {str(error)[:300]}"
    took = time.process_time() - before
    return f"took {took:.1f} s" if took > SECONDS else ""


FOREIGN = ("invalid literal", "object is not", "could not convert", "Error(s) in", "Exceeds the")
FOREIGN += ("a setting of the wrong type: get",)  # naming() says it of what no check foresaw


def every_change(name: str) -> list[tuple[tuple, object]]:
    good, _ = GOOD[name]
    return [
        (at, odd) for at in places(good) for odd in [*ODD, "remove", "add"] if at or odd != "add"
    ]


@pytest.mark.parametrize("name", GOOD)
def test_the_good_file_is_read(name, tmp_path):
    good, read = GOOD[name]
    read(good, tmp_path)


@pytest.mark.parametrize("name", GOOD)
def test_any_odd_value_is_read_or_refused_in_one_sentence(name, tmp_path):
    for at, odd in random.Random(name).sample(every_change(name), SAMPLE):
        failed = failure(name, at, odd, tmp_path)
        assert not failed, f"{'.'.join(map(str, at))} = {str(odd)[:60]}: {failed}"


def main() -> None:
    for name in sys.argv[1:] or GOOD:
        changes, failed = every_change(name), {}
        for at, odd in changes:
            with tempfile.TemporaryDirectory() as path:
                if told := failure(name, at, odd, Path(path)):
                    failed[f"{'.'.join(map(str, at))} = {str(odd)[:60]}"] = told
        print(f"{name}: {len(changes)} tried, {len(failed)} failed", flush=True)
        for place, told in list(failed.items())[:12]:
            print(f"    {place}: {told}")


if __name__ == "__main__":
    main()
