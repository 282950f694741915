"""All kinds of adapters on one model: in any order, in half precision, and bad files of each."""

import copy
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from minisd.adapters.controlnet import ControlNet, control
from minisd.adapters.hypernetwork import hypernetwork
from minisd.adapters.lora import lora
from minisd.adapters.textual_inversion import textual_inversion
from minisd.adapters.vae_file import swap_vae
from minisd.pipeline import StableDiffusion
from tests.helpers.adapter_files import ATTENTION, controlnet_file, kohya, reference_controlnet
from tests.helpers.hypernetwork_files import small_network
from tests.helpers.pipeline_pairs import all_equal, drawn, states
from tests.helpers.reference_networks import randomise

KINDS = {"lora": lora, "word": textual_inversion, "hyper": hypernetwork, "vae": swap_vae}
WORDS = ["a <toy> and a cat"]


@pytest.fixture
def put_on(picture):
    """kind -> a function that puts a file's adapter on the model."""

    def controlled(sd, path):
        return control(sd, ControlNet.load(path, sd.config.unet), picture)

    return KINDS | {"control": controlled}


@pytest.fixture
def good_files(eighth, tmp_path):
    """kind -> a file of it that fits the model."""
    ours, theirs = eighth
    generator = torch.Generator().manual_seed(0)
    made = {
        kind: tmp_path / name
        for kind, name in (
            ("lora", "lora.safetensors"),
            ("word", "<toy>.safetensors"),
            ("hyper", "hyper.pt"),
            ("vae", "vae.safetensors"),
        )
    }
    state, _ = kohya(theirs, ATTENTION)
    save_file(state, made["lora"])
    width = ours.config.text.width
    save_file({"emb_params": torch.randn(2, width, generator=generator)}, made["word"])
    nets = {64: [small_network(64, [1, 2, 1], True, False, seed) for seed in (0, 1)]}
    torch.save(nets, made["hyper"])
    other = type(theirs.vae)(**theirs.vae.config)
    randomise(other, gain=1.0, seed=9)
    save_file({key: tensor.contiguous() for key, tensor in other.state_dict().items()}, made["vae"])
    network = reference_controlnet(theirs, ours.config)
    path = controlnet_file(network, tmp_path / "control", "diffusers", ours.config.unet)
    return made | {"control": path}


@torch.no_grad()
def picture_of(sd):
    return sd.decode(drawn(sd, WORDS))


@pytest.mark.parametrize(
    "order",
    [
        ("lora", "word", "hyper", "vae", "control"),
        ("control", "vae", "hyper", "word", "lora"),
        ("hyper", "control", "lora", "vae", "word"),
    ],
)
def test_adapters_of_all_kinds_go_in_any_order(eighth, put_on, good_files, order):
    sd, _ = eighth
    plain, before = picture_of(sd), states(sd)
    handles = {kind: put_on[kind](sd, path) for kind, path in good_files.items()}
    shown = picture_of(sd)
    for kind in order:
        handles[kind].remove()
        less = picture_of(sd)
        assert not torch.equal(less, shown), f"without {kind} nothing changes"
        shown = less
    assert torch.equal(shown, plain)
    assert all_equal(states(sd), before)


@pytest.mark.parametrize("kind", [*KINDS, "control"])
def test_a_cut_file_and_those_of_other_adapters_are_refused(eighth, put_on, good_files, kind):
    sd, _ = eighth
    plain, before, autoencoder = picture_of(sd), states(sd), sd.vae
    whole = good_files[kind]
    cut = whole.with_stem(f"{whole.stem}-cut")
    cut.write_bytes(whole.read_bytes()[:-100])
    others = [path for other, path in good_files.items() if other != kind]
    for path in (cut, *others):
        with pytest.raises(ValueError, match=re.escape(path.name)) as told:
            put_on[kind](sd, path)
        assert "\n" not in str(told.value)
    assert sd.vae is autoencoder and sd.tokenizer.added_words.ids == {}
    assert all_equal(states(sd), before)
    assert torch.equal(picture_of(sd), plain)


def test_adapters_follow_a_model_in_half_precision(sd, lora_files, picture, tmp_path):
    save_file({"emb_params": torch.randn(1, sd.config.text.width)}, tmp_path / "zib.safetensors")
    networks = [copy.deepcopy(part).bfloat16() for part in (sd.text_encoder, sd.unet, sd.vae)]
    half = StableDiffusion(sd.config, copy.deepcopy(sd.tokenizer), *networks)
    content = {64: [small_network(64, [1, 2, 1], False, False, seed) for seed in (0, 1)]}
    torch.save(content, tmp_path / "some.pt")
    plain = drawn(half, ["a zib"])
    assert plain.dtype == torch.bfloat16
    for put_on in (
        lambda: lora(half, lora_files[0]),
        lambda: textual_inversion(half, tmp_path / "zib.safetensors"),
        lambda: hypernetwork(half, tmp_path / "some.pt"),
    ):
        with put_on():
            changed = drawn(half, ["a zib"])
        assert changed.dtype == torch.bfloat16 and not torch.equal(changed, plain)


def test_a_pickle_with_code_is_refused_by_every_adapter(sd, tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"lora_unet_x.lora_down.weight": nn.Sequential(nn.Linear(1, 1))}, path)
    for adapter in (lora, textual_inversion, hypernetwork, swap_vae):
        with pytest.raises(ValueError, match="could run code"):
            adapter(sd, path)
    with pytest.raises(ValueError, match="could run code"):
        ControlNet.load(path)
