"""Either side of compare may be a model, a diffusers folder, a function or a trace."""

import sys

import pytest
from safetensors.torch import load_file, save_file

from minisd.checkpoints.header import read_metadata
from minisd.cli import main
from tests.helpers.checkpoint_files import pipeline
from tests.helpers.tiny_models import V1

PORT = """
import minisd
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

def run_vae(vae, image, z):
    made = [] if image is None else [vae.encode(image).latent_dist.parameters]
    return made + ([] if z is None else [vae.decode(z).sample])

def run_unet(unet, x, t, context):
    return unet(timestep=t, sample=x, encoder_hidden_states=context)

def whole():
    kinds = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
    parts = {part: kind.from_pretrained("v1", subfolder=part) for part, kind in kinds.items()}
    return parts | {"unet": (parts["unet"], run_unet), "vae": (parts["vae"], run_vae)}

def wrong():
    parts = whole()
    parts["unet"][0].mid_block.attentions[0].norm.eps = 1e-2
    return parts

def elsewhere():
    return minisd.load("mini").unet.to("meta")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in the layout of diffusers, two traces of it, and a file with functions."""
    place = tmp_path_factory.mktemp("sides")
    pipeline(V1, place / "tokenizer").save_pretrained(place / "v1")
    (place / "port.py").write_text(PORT)
    for seed in ("1", "2"):
        trace = ["trace", "a cat", "--model", str(place / "v1"), "--inputs", "--seed", seed]
        assert main([*trace, "-o", str(place / f"{seed}.safetensors")]) == 0
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


SIDES = ["v1", "diffusers:v1", "port.py:whole", "1.safetensors"]


@pytest.mark.parametrize("port", SIDES)
@pytest.mark.parametrize("reference", SIDES)
def test_every_kind_of_side_can_be_compared_with_every_other(reference, port, here, capsys):
    if reference == port == "port.py:whole":
        assert main(["compare", reference, port]) == 2
        assert "is a whole model, so there are no inputs" in capsys.readouterr().err
        return
    assert main(["compare", reference, port]) == 0
    printed = capsys.readouterr().out
    assert "no module differs" in printed
    assert {"unet.mid.attn", "unet.mid_block.attentions.0"} & {*printed.split()}


@pytest.mark.parametrize("reference", ["v1", "diffusers:v1", "1.safetensors"])
def test_a_wrong_port_is_found_from_each_reference(reference, here, capsys):
    assert main(["compare", reference, "port.py:wrong"]) == 1
    printed = capsys.readouterr().out
    name = "mid_block.attentions.0" if reference != "v1" else "mid.attn"
    assert f"The first module that differs is unet.{name}" in printed


def test_a_wrong_trace_is_found_from_each_reference(here, tmp_path, capsys):
    tensors = load_file("1.safetensors")
    key = next(key for key in tensors if key.endswith("unet.mid.attn.cross/out0"))
    tensors[key] = tensors[key] * 1.5
    wrong = str(tmp_path / "wrong.safetensors")
    save_file(tensors, wrong, read_metadata(here / "1.safetensors"))
    for reference in SIDES:
        assert main(["compare", reference, wrong]) == 1
        printed = capsys.readouterr().out
        assert "(unet.mid.attn.cross in wrong.safetensors)" in printed


REFUSED = {
    ("1.safetensors", "2.safetensors"): "have different inputs (",
    ("v1", "mini"): "shares no weights with the reference",
    ("mini", "1.safetensors"): "Compare the trace with the model that it came from.",
    ("mini", "port.py:elsewhere"): "port.py:elsewhere is on meta, and the reference on cpu.",
    ("v1", "diffusers:absent"): "diffusers cannot open absent",
}


@pytest.mark.parametrize("sides", REFUSED)
def test_what_cannot_be_compared_is_one_sentence(sides, here, capsys):
    assert main(["compare", *sides]) == 2
    said = capsys.readouterr().err
    assert REFUSED[sides] in said
    assert len(said.splitlines()) == 1


def test_a_missing_library_is_named(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["compare", "v1", "diffusers:v1"]) == 2
    assert "pip install diffusers transformers" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["--rtol", "--atol"])
def test_a_larger_error_can_be_accepted(limit, here, capsys):
    assert main(["compare", "v1", "port.py:wrong", limit, "100"]) == 0
    assert main(["compare", "v1", "port.py:wrong", limit, "1e-9"]) == 1
