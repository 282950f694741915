"""Loading reads no weight, and a loaded model stays right when its file is replaced."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import minisd
from minisd.checkpoints.write import convert


@pytest.fixture(scope="module")
def float32_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mapped") / "mini.safetensors"
    convert("mini", path, dtype=torch.float32)
    return path


def forms(path, folder):
    """The same model as a .safetensors file, as a .ckpt file and as a diffusers folder."""
    safe, pickled, tree = folder / "m.safetensors", folder / "m.ckpt", folder / "tree"
    convert(path, safe, dtype=torch.float32)
    torch.save({"state_dict": load_file(safe)}, pickled)
    convert(path, tree, dtype=torch.float32)
    return {"safetensors": safe, "ckpt": pickled, "folder": tree}


def weight_files(source):
    return sorted(source.rglob("*.safetensors")) if source.is_dir() else [source]


def zeros_beside(path):
    """A file of the same size that holds zeros, next to the file."""
    other = path.with_name("zeros")
    other.write_bytes(bytes(path.stat().st_size))
    return other


def weights(sd):
    networks = (sd.text_encoder, sd.unet, sd.vae)
    return [weight.clone() for network in networks for weight in network.parameters()]


@pytest.mark.parametrize("form", ["safetensors", "folder"])
def test_a_loaded_model_outlives_the_replacement_of_its_file(float32_file, tmp_path, form):
    source = forms(float32_file, tmp_path)[form]
    expected = weights(minisd.load(source, mmap=False))
    sd = minisd.load(source)
    for file in weight_files(source):
        os.replace(zeros_beside(file), file)
    assert all(map(torch.equal, weights(sd), expected))


@pytest.mark.parametrize("mmap", [True, False])
def test_only_a_copy_outlives_new_numbers_in_the_same_file(float32_file, tmp_path, mmap):
    source = forms(float32_file, tmp_path)["safetensors"]
    expected = weights(minisd.load(source))
    sd = minisd.load(source, mmap=mmap)
    with open(source, "r+b") as file:
        file.write(bytes(source.stat().st_size))
    same = [torch.equal(a, b) for a, b in zip(weights(sd), expected, strict=True)]
    assert all(same) is not mmap


def test_loading_imports_no_compiler():
    """torch would import its compiler, which takes a second, to draw numbers on the meta device."""
    code = "import sys, minisd; minisd.load('mini'); print('torch._dynamo' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False"]


def test_importing_minisd_does_not_import_torch():
    code = "import sys, minisd; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False"]
