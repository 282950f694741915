"""Files of weights as they are found: whole, cut off, old, hostile, or something else."""

import argparse
import datetime
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minisd.checkpoints.first_bytes import size_in_words
from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.pickles import unpickle
from minisd.checkpoints.read import read_tensors

WEIGHTS = {
    "conv.weight": torch.randn(4, 3, 3, 3),
    "conv.bias": torch.randn(4).half(),
    "steps": torch.arange(5),
    "scale": torch.tensor(0.5, dtype=torch.bfloat16),
}


def save_zip(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def save_old(content: object, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


SAVES = pytest.mark.parametrize("save", [save_zip, save_old])


def refusal(path: Path) -> str:
    """The error that read() raises: one line that names the file."""
    with pytest.raises(ValueError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def assert_same(ours: dict, theirs: dict) -> None:
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype
        assert torch.equal(ours[key], tensor)


# ---- what is read ----------------------------------------------------------------------------


def test_safetensors_are_read_as_stored(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(WEIGHTS, path, {"said": "by whom"})
    assert_same(dict(sorted(read_tensors(path).items())), dict(sorted(WEIGHTS.items())))
    assert read_metadata(path) == {"said": "by whom"}


@SAVES
@pytest.mark.parametrize("outer", [False, True])
def test_pickles_are_read_with_and_without_an_outer_state_dict(tmp_path, save, outer):
    content = {"state_dict": WEIGHTS, "optimizer_states": [WEIGHTS]} if outer else WEIGHTS
    assert_same(read_tensors(save(content, tmp_path / "a.ckpt")), WEIGHTS)
    assert read_metadata(tmp_path / "a.ckpt") == {}


def test_the_first_bytes_count_and_not_the_name(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.ckpt")
    assert set(read_tensors(tmp_path / "a.ckpt")) == set(WEIGHTS)


def test_nested_tensors_are_named_by_their_path(tmp_path):
    vector = torch.randn(2, 8)
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(vector)})
    word = save_zip({"string_to_param": parameters, "name": "cat-toy"}, tmp_path / "word.pt")
    assert_same(read_tensors(word), {"string_to_param.*": vector})
    layers = ({"linear.0.weight": vector}, {"linear.0.weight": vector + 1})
    network = save_zip({768: layers, "step": 100}, tmp_path / "hypernetwork.pt")
    named = {"768.0.linear.0.weight": vector, "768.1.linear.0.weight": vector + 1}
    assert_same(read_tensors(network), named)


def test_sizes_in_words():
    assert [size_in_words(size) for size in (12, 1500, 334_641_190)] == [
        "12 bytes",
        "1.5 kB",
        "335 MB",
    ]


# ---- what training frameworks leave behind ---------------------------------------------------


@pytest.fixture
def lightning(monkeypatch):
    """Classes that pickle under the names of pytorch_lightning and omegaconf."""

    def make(name: str, base: type) -> type:
        module, _, short = name.rpartition(".")
        for end in range(1, len(module.split(".")) + 1):
            above = ".".join(module.split(".")[:end])
            monkeypatch.setitem(sys.modules, above, sys.modules.get(above, ModuleType(above)))
        made = type(short, (base,), {"__module__": module})
        setattr(sys.modules[module], short, made)
        return made

    return {
        "callback": make("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", object),
        "settings": make("omegaconf.dictconfig.DictConfig", object),
        "attributes": make("pytorch_lightning.utilities.parsing.AttributeDict", dict),
    }


@SAVES
def test_leftovers_of_training_frameworks_are_passed_over(tmp_path, save, lightning, monkeypatch):
    settings = lightning["settings"]()
    settings._content = {"width": 320}
    left = {
        "callbacks": {lightning["callback"]: {"best_model_score": np.float64(0.5)}},
        "hyper_parameters": settings,
        "attributes": lightning["attributes"](a=1),
        "losses": defaultdict(list, {"val": [1.0]}),
        "arguments": argparse.Namespace(path=Path("logs"), began=datetime.datetime(2022, 8, 1)),
        "array": np.arange(3),
    }
    path = save({"state_dict": OrderedDict(WEIGHTS), **left}, tmp_path / "a.ckpt")
    for module in ("pytorch_lightning.callbacks.model_checkpoint", "omegaconf.dictconfig"):
        monkeypatch.delitem(sys.modules, module)
    assert_same(read_tensors(path), WEIGHTS)
    assert unpickle(path)["attributes"] == {"a": 1}
    assert unpickle(path)["losses"] == {"val": [1.0]}


# ---- hostile files ---------------------------------------------------------------------------


class Runs:
    """Pickles to a call of `function` with these arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def os_system(path):
    return Runs(os.system, f"touch {path}")


def builtins_exec(path):
    return Runs(exec, f"open({str(path)!r}, 'w')")


def numpy_save(path):
    return Runs(np.save, str(path), 0)


HOSTILE = {"posix.system": os_system, "builtins.exec": builtins_exec}


@SAVES
@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path, save, name):
    content = {"state_dict": WEIGHTS, "extra": HOSTILE[name](tmp_path / "ran")}
    assert f"asks for {name}, which could run code" in refusal(save(content, tmp_path / "a.ckpt"))
    assert not list(tmp_path.glob("ran*"))


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_that_would_run_code_is_refused(tmp_path, protocol):
    path = tmp_path / "a.ckpt"
    path.write_bytes(pickle.dumps(os_system(tmp_path / "ran"), protocol=protocol))
    message = refusal(path)
    assert "posix.system" in message if protocol >= 2 else "not a file of weights" in message
    assert not list(tmp_path.glob("ran*"))


@SAVES
def test_a_stand_in_runs_nothing_whatever_it_is_called(tmp_path, save):
    path = save({"state_dict": WEIGHTS, "x": numpy_save(tmp_path / "ran")}, tmp_path / "a.ckpt")
    assert_same(read_tensors(path), WEIGHTS)
    assert not list(tmp_path.glob("ran*"))


def test_an_unknown_class_of_torch_is_refused_by_name(tmp_path):
    path = save_zip({"w": Runs(torch.hub.set_dir, "/")}, tmp_path / "a.pt")
    assert "asks for torch.hub.set_dir, which could run code" in refusal(path)


def test_a_whole_pickled_network_is_refused_by_name(tmp_path):
    path = save_zip(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(path)


# ---- damaged files ---------------------------------------------------------------------------


def shortened(whole: Path, keep: int) -> Path:
    path = whole.with_name(f"cut-{keep}-{whole.name}")
    path.write_bytes(whole.read_bytes()[:keep])
    return path


def test_a_safetensors_file_cut_off_says_how_much_is_there(tmp_path):
    whole = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(300_000)}, whole)
    assert "ends after 0.5 of 1.2 MB: the download was cut off." in refusal(
        shortened(whole, 500_000)
    )


@pytest.mark.parametrize("keep", [1, 7, 8, 9, 40, -1000, -1])
def test_a_safetensors_file_cut_off_anywhere_is_refused(tmp_path, keep):
    whole = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(1000)}, whole)
    size = whole.stat().st_size
    assert "the download was cut off." in refusal(shortened(whole, keep % size))


def test_a_damaged_safetensors_header_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((16).to_bytes(8, "little") + b'{"w": {"dtype": ' + bytes(100))
    assert "damaged header" in refusal(path)
    path.write_bytes((8).to_bytes(8, "little") + b'{"w": 3}' + bytes(100))
    assert "damaged header" in refusal(path)
    entry = b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[]}}'
    path.write_bytes(len(entry).to_bytes(8, "little") + entry + bytes(8))
    assert "damaged header" in refusal(path)
    entry = b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}'
    path.write_bytes(len(entry).to_bytes(8, "little") + entry + bytes(8))
    assert "is damaged" in refusal(path)


def entry(dtype: str = "F32", shape: str = "[2]", places: str = "[0,8]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{places}}}'


HEADERS = {
    "a name twice": (f'{{"w":{entry()},"w":{entry()}}}', "'w' twice"),
    "too large": ('{"__metadata__":{"x":"' + "x" * 20_000_000 + '"}}', "more than 20,000,000"),
    "too deep": ('{"w":' + "[" * 100_000, "damaged header"),
    "places over one another": (f'{{"a":{entry()},"b":{entry()}}}', "is damaged"),
    "a hole": (f'{{"a":{entry(places="[0,4]", shape="[1]")}}}', "is damaged"),
    "places backwards": (f'{{"w":{entry(places="[8,0]")}}}', "is damaged"),
    "places that are no integers": (f'{{"w":{entry(places="[0.0,8.0]")}}}', "is damaged"),
    "places that are texts": (f'{{"w":{entry(places=[0, "8"])}}}', "damaged header"),
    "negative places": (f'{{"w":{entry(places="[-8,8]")}}}', "is damaged"),
    "another shape": (f'{{"w":{entry(shape="[3]")}}}', "is damaged"),
    "a negative shape": (f'{{"w":{entry(shape="[-1,-2]")}}}', "is damaged"),
    "a shape beyond 64 bits": (f'{{"w":{entry(shape="[4294967296,4294967296]")}}}', "is damaged"),
    "more than the file": (f'{{"w":{entry(places="[0,99999]")}}}', "was cut off"),
    "complex numbers": (f'{{"w":{entry("C64", "[1]")}}}', "the tensor w in C64"),
    "numbers of 6 bits": (f'{{"w":{entry("F6_E2M3", "[8]", "[0,6]")}}}', "the tensor w in F6_E2M3"),
    "two numbers in a byte": (f'{{"w":{entry("F4", "[16]")}}}', "the tensor w in F4"),
    "unknown numbers": (f'{{"w":{entry("Z9")}}}', "the tensor w in Z9"),
    "no end": ('{"w":', "damaged header"),
    "a list": ('{"w":[]}', "damaged header"),
    "infinity": (f'{{"w":{entry(shape="[Infinity]")}}}', "damaged"),
}


@pytest.mark.parametrize("text, says", HEADERS.values(), ids=HEADERS)
def test_a_hostile_safetensors_header_ends_in_one_sentence(tmp_path, text, says):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(8))
    assert says in refusal(path)
    with pytest.raises(ValueError, match=re.escape(says)):
        read_metadata(path)


@SAVES
def test_a_pickle_cut_off_anywhere_is_refused(tmp_path, save):
    whole = save({"state_dict": WEIGHTS | {"big": torch.zeros(1000)}}, tmp_path / "a.ckpt")
    size = whole.stat().st_size
    for keep in [*range(2, size, size // 40), size - 1]:
        assert "etch it again." in refusal(shortened(whole, keep))


# ---- what is no file of weights --------------------------------------------------------------

OTHERS = {
    b"a photograph of an astronaut": "is a text file, not a file of weights",
    b"": "is empty",
    b"<!DOCTYPE html><html>": "is a web page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0": "is a Git LFS pointer",
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR": "is a picture, not a file of weights",
}


@pytest.mark.parametrize("content", OTHERS)
def test_what_is_no_file_of_weights_is_said(tmp_path, content):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    assert OTHERS[content] in refusal(path)


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    assert "There is no file" in refusal(tmp_path / "nothing.ckpt")
    assert "is a folder" in refusal(tmp_path)


def test_a_zip_of_something_else_is_said(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model.ckpt", "weights")
    assert "unpack it first" in refusal(tmp_path / "a.zip")
