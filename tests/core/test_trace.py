"""Looking inside a model while it runs, and changing what is there."""

from dataclasses import replace

import pytest
import torch

from minisd.clip import TextTransformer
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer
from minisd.trace import named_modules, trace
from minisd.unet import UNet
from minisd.vae import VAE
from tests.helpers.tiny_models import V1

CROSS = "unet.down.0.attn.0.cross.weights"
FUSED = 1e-5  # the fused kernel and the explicit softmax, float32


@pytest.fixture(scope="module")
def sd():
    torch.manual_seed(0)
    text = replace(V1.text, layers=1)
    networks = TextTransformer(text), UNet(V1.unet), VAE(V1.vae)
    return StableDiffusion(replace(V1, text=text), Tokenizer.clip(), *networks)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 12, generator=generator)
    context = torch.randn(2, 5, 64, generator=generator)
    return x, torch.tensor([3.0, 700.5]), context


def test_a_map_has_a_row_of_weights_for_every_place(sd, inputs):
    with trace(sd) as t:
        sd.unet(*inputs)
    assert t[CROSS].shape == (2, 4, 8 * 12, 5)
    assert torch.allclose(t[CROSS].sum(dim=-1), torch.ones(2, 4, 96), atol=1e-5)


def test_every_block_is_named(sd, inputs):
    with trace(sd, "*") as t:
        sd.txt2img("a cat", steps=1, cfg_scale=1.0)
        sd.encode(torch.zeros(1, 3, 32, 32))
    missing = set(named_modules(sd)) - set(t)
    containers = {name for name in missing if name.endswith((".res", ".attn", ".down", ".up"))}
    lists = {"text_encoder.layers"} | {name for name in missing if name.endswith(".skip")}
    # the shortcut of equal widths is an Identity that runs; the VAE itself is called by its halves
    assert missing - containers - lists == {"vae"}
    assert t["unet"].shape == (1, 4, 16, 16)
    assert t["unet.up.0.skip.0"].shape == (1, 128, 8, 8)


def test_watching_changes_nothing(sd, inputs):
    plain = sd.unet(*inputs)
    with trace(sd, "*") as t:
        watched = sd.unet(*inputs)
    assert torch.allclose(watched, plain, atol=FUSED)
    assert t["unet.down.0.attn.0.self_attention.weights"].shape == (2, 4, 96, 96)
    assert torch.equal(sd.unet(*inputs), plain)  # and nothing is left behind


def test_a_module_that_runs_often_gives_a_list(sd, inputs):
    with trace(sd, "unet.mid") as t:
        for _ in range(3):
            sd.unet(*inputs)
    assert list(t) == ["unet.mid"]
    assert len(t["unet.mid"]) == 3


def test_a_network_alone_is_traced_without_its_name(sd, inputs):
    with trace(sd.unet, "down.0.attn.0.cross.weights", "mid") as t:
        sd.unet(*inputs)
    assert set(t) == {"down.0.attn.0.cross.weights", "mid"}


def test_a_replaced_map_reaches_the_output(sd, inputs):
    plain = sd.unet(*inputs)

    def only_the_first_word(weights):
        return torch.zeros_like(weights).index_fill(-1, torch.tensor([0]), 1.0)

    with trace(sd, CROSS, replace={CROSS: only_the_first_word}) as t:
        changed = sd.unet(*inputs)
    assert torch.equal(t[CROSS][..., 0], torch.ones(2, 4, 96))
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert torch.equal(sd.unet(*inputs), plain)


def test_a_tensor_put_in_place_is_what_the_next_module_reads(sd, inputs):
    plain = sd.unet(*inputs)
    with trace(sd, "unet.mid") as t:
        sd.unet(*inputs)
    with trace(sd, replace={"unet.mid": t["unet.mid"]}):
        assert torch.allclose(sd.unet(*inputs), plain, atol=FUSED)
    with trace(sd, replace={"unet.mid": torch.zeros_like(t["unet.mid"])}):
        assert not torch.allclose(sd.unet(*inputs), plain, atol=1e-3)


def test_the_hooks_go_even_when_the_run_fails(sd, inputs):
    with pytest.raises(RuntimeError, match="stop"), trace(sd, "*"):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in sd.unet.modules())


def test_unknown_names_are_told_with_the_nearest(sd, inputs):
    with (
        pytest.raises(ValueError, match=r"nothing matches 'unet.mid.atn'.*unet\.mid\.attn"),
        trace(sd, "unet.mid.atn"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="nothing is called 'unet\\.middle'"),
        trace(sd, replace={"unet.middle": torch.zeros(1)}),
    ):
        pass


def test_a_replacement_of_another_shape_is_refused(sd, inputs):
    with (
        pytest.raises(ValueError, match=r"shape \(1,\). Give it the shape of the original"),
        trace(sd, replace={"unet.mid": torch.zeros(1)}),
    ):
        sd.unet(*inputs)
    with (
        pytest.raises(ValueError, match="returns several tensors"),
        trace(sd, replace={"unet.down.0": torch.zeros(1)}),
    ):
        sd.unet(*inputs)
