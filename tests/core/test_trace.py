"""Looking inside a model while it runs, and changing what is there."""

import pickle
import re
from dataclasses import replace

import pytest
import torch

from minisd.clip import TextTransformer
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer
from minisd.trace import MissingTensor, named_modules, trace
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
    (weights,) = t[CROSS]
    assert weights.shape == (2, 4, 8 * 12, 5)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 4, 96), atol=1e-5)


def test_every_block_is_named(sd, inputs):
    with trace(sd, "*") as t:
        sd.txt2img("a cat", steps=1, cfg_scale=1.0)
        sd.encode(torch.zeros(1, 3, 32, 32))
    missing = set(named_modules(sd)) - set(t)
    containers = {name for name in missing if name.endswith((".res", ".attn", ".down", ".up"))}
    lists = {"text_encoder.layers"} | {name for name in missing if name.endswith(".skip")}
    # the shortcut of equal widths is an Identity that runs; the VAE itself is called by its halves
    assert missing - containers - lists == {"vae"}
    assert t["unet"][0].shape == (1, 4, 16, 16)
    assert t["unet.up.0.skip.0"][0].shape == (1, 128, 8, 8)


def test_watching_changes_nothing(sd, inputs):
    plain = sd.unet(*inputs)
    with trace(sd, "*") as t:
        watched = sd.unet(*inputs)
    assert torch.allclose(watched, plain, atol=FUSED)
    assert t["unet.down.0.attn.0.self_attention.weights"][0].shape == (2, 4, 96, 96)
    assert torch.equal(sd.unet(*inputs), plain)  # and nothing is left behind


@pytest.mark.parametrize("runs", [1, 3])
def test_a_value_is_a_list_with_one_entry_per_call_in_order(sd, inputs, runs):
    x, t, context = inputs
    with trace(sd, "unet.conv_out") as seen:
        outputs = [sd.unet(x + i, t, context) for i in range(runs)]
    assert list(seen) == ["unet.conv_out"]
    recorded = seen["unet.conv_out"]
    assert type(recorded) is list and len(recorded) == runs
    assert all(torch.equal(one, output) for one, output in zip(recorded, outputs, strict=True))


def test_several_tensors_are_a_tuple_of_all_of_them(sd, inputs):
    with trace(sd, "unet.down.0", "unet.down.0.attn.*", "unet.down.0.downsample", "unet.mid") as t:
        sd.unet(*inputs)
    (entry,) = t["unet.down.0"]  # Down returns x and a list of skips
    assert type(entry) is tuple and all(type(one) is torch.Tensor for one in entry)
    attn = [t[f"unet.down.0.attn.{i}"][0] for i in range(len(sd.unet.down[0].attn))]
    downsample = t["unet.down.0.downsample"][0]
    expected = [downsample, *attn, downsample]
    assert all(torch.equal(one, other) for one, other in zip(entry, expected, strict=True))


def test_what_is_recorded_holds_no_graph(sd, inputs):
    x, *others = inputs
    with trace(sd, "unet.mid", "unet.down.0", inputs=True) as t:
        assert sd.unet(x.requires_grad_(True), *others).requires_grad
    entries = [entry for calls in t.values() for entry in calls]
    tensors = [one for entry in entries for one in (entry if type(entry) is tuple else [entry])]
    assert len(tensors) > 4 and not any(tensor.requires_grad for tensor in tensors)


def test_inputs_are_recorded_on_request(sd, inputs):
    x, _, context = inputs
    names = "unet.conv_in", "unet.down.0.attn.0.norm_cross", "unet.down.0.attn.0.cross"
    with trace(sd, *names, inputs=True) as t:
        sd.unet(*inputs)
        sd.unet(2 * x, *inputs[1:])
    assert set(t) == {*names, *(f"{name}.inputs" for name in names)}
    assert torch.equal(t["unet.conv_in.inputs"][0], x)
    assert torch.equal(t["unet.conv_in.inputs"][1], 2 * x)
    tokens, read = t["unet.down.0.attn.0.cross.inputs"][0]
    assert torch.equal(tokens, t["unet.down.0.attn.0.norm_cross"][0])
    assert torch.equal(read, context)


def test_inputs_given_by_keyword_are_recorded_too(sd, inputs):
    name = "unet.down.0.attn.0.self_attention"  # is called as (tokens, context=tokens)
    with trace(sd, name, inputs=True) as t:
        sd.unet(*inputs)
    tokens, context = t[f"{name}.inputs"][0]
    assert torch.equal(tokens, context)


def test_nothing_large_is_recorded_unless_requested(sd, inputs):
    with trace(sd, inputs=True) as t:
        sd.unet(*inputs)
    assert "unet.mid.inputs" in t and "unet.down.0.attn.0.self_attention" in t
    assert not [
        name for name in t if "self_attention.weights" in name or "mid.attn.weights" in name
    ]
    with trace(sd) as t:
        sd.unet(*inputs)
    assert not [name for name in t if name.endswith(".inputs")]


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
    assert torch.equal(t[CROSS][0][..., 0], torch.ones(2, 4, 96))
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert torch.equal(sd.unet(*inputs), plain)


def test_a_tensor_put_in_place_is_what_the_next_module_reads(sd, inputs):
    plain = sd.unet(*inputs)
    with trace(sd, "unet.mid") as t:
        sd.unet(*inputs)
    (mid,) = t["unet.mid"]
    with trace(sd, replace={"unet.mid": mid}):
        assert torch.allclose(sd.unet(*inputs), plain, atol=FUSED)
    with trace(sd, replace={"unet.mid": torch.zeros_like(mid)}):
        assert not torch.allclose(sd.unet(*inputs), plain, atol=1e-3)


def test_a_pattern_replaces_every_tensor_that_it_matches(sd, inputs):
    names = [name for name in named_modules(sd) if name.endswith(".cross.weights")]
    with trace(sd, *names, replace={"unet.*.cross.weights": torch.zeros_like}) as t:
        sd.unet(*inputs)
    assert len(names) > 1
    assert all(torch.equal(t[name][0], torch.zeros_like(t[name][0])) for name in names)


def test_the_hooks_go_even_when_the_run_fails(sd, inputs):
    with pytest.raises(RuntimeError, match="stop"), trace(sd, "*"):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in sd.unet.modules())


def why_missing(t, name):
    """The message of the error when this name is read from a trace."""
    with pytest.raises(KeyError) as error:
        t[name]
    assert isinstance(error.value, MissingTensor)
    return str(error.value)


def test_an_unknown_name_suggests_similar_names(sd, inputs):
    with trace(sd, "unet.*") as t:
        sd.unet(*inputs)
    similar = r"^nothing is called 'unet.down.0.atn.0'. Did you mean (.+)\?$"
    said = re.match(similar, why_missing(t, "unet.down.0.atn.0"))
    assert "unet.down.0.attn.0" in said[1].split(", ")
    said = why_missing(t, "unet.down.0.atn.0.inputs")
    assert said.startswith("nothing is called 'unet.down.0.atn.0.inputs'. Did you mean unet.down.0")
    said = why_missing(t, "?")
    assert said == "nothing is called '?'. named_modules() lists the names."


def test_a_name_that_no_pattern_matched_says_how_to_record_it(sd, inputs):
    with trace(sd, "unet.mid") as t:
        sd.unet(*inputs)
    said = "'unet.conv_in' was not recorded. Ask for it: trace(model, 'unet.conv_in')."
    assert why_missing(t, "unet.conv_in") == said


def test_a_map_on_request_says_how_to_record_it(sd, inputs):
    name = "unet.down.0.attn.0.self_attention.weights"
    with trace(sd) as t:
        sd.unet(*inputs)
    assert why_missing(t, name) == f"'{name}' was not recorded. Ask for it: trace(model, '{name}')."


@pytest.mark.parametrize("name", ["unet.mid", "unet.conv_in"])
def test_inputs_that_were_not_requested_say_how_to_record_them(sd, inputs, name):
    with trace(sd, "unet.mid") as t:
        sd.unet(*inputs)
    said = f"'{name}.inputs' was not recorded. Ask for it: trace(model, '{name}', inputs=True)."
    assert why_missing(t, f"{name}.inputs") == said


def test_a_name_that_did_not_run_yet_says_what_to_do(sd, inputs):
    with trace(sd, inputs=True) as t:
        said = "'unet.mid' never ran. Run it in the `with` block, or read its parts."
        assert why_missing(t, "unet.mid") == said
        assert why_missing(t, "unet.mid.inputs") == said
        sd.unet(*inputs)
        assert t["unet.mid"] and t["unet.mid.inputs"]
    assert "read its parts" in why_missing(t, "unet.down")  # a list of modules is never called


def test_a_missing_name_is_not_added_by_reading_it(sd, inputs):
    with trace(sd, "unet.mid") as t:
        why_missing(t, "unet.mid")
        assert "unet.mid" not in t and t.get("unet.mid") is None and not t


def test_a_trace_is_small_when_it_is_saved(sd, inputs):
    with trace(sd, "unet.conv_out") as t:
        sd.unet(*inputs)
    again = pickle.loads(pickle.dumps(t))
    assert torch.equal(again["unet.conv_out"][0], t["unet.conv_out"][0])
    assert why_missing(again, "unet.conv_in") == why_missing(t, "unet.conv_in")
    assert len(pickle.dumps(t)) < 100_000  # the names of the model's modules, not their weights


def test_unknown_names_are_told_with_the_nearest(sd, inputs):
    with (
        pytest.raises(ValueError, match=r"nothing matches 'unet.mid.atn'.*unet\.mid\.attn"),
        trace(sd, "unet.mid.atn"),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"nothing matches 'unet\.middle'.*unet\.mid"),
        trace(sd, replace={"unet.middle": torch.zeros(1)}),
    ):
        pass


def test_a_replacement_of_another_shape_is_refused(sd, inputs):
    with (
        pytest.raises(
            ValueError, match=r"unet\.mid has shape \(1,\)\. Give it the old shape, \(2, "
        ),
        trace(sd, replace={"unet.mid": torch.zeros(1)}),
    ):
        sd.unet(*inputs)
    with (
        pytest.raises(ValueError, match="returns several tensors"),
        trace(sd, replace={"unet.down.0": torch.zeros(1)}),
    ):
        sd.unet(*inputs)
