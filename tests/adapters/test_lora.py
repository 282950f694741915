"""LoRA: files of all three spellings, as diffusers reads and runs them."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from minisd.adapters.lora import lora, parse_key
from tests.helpers.adapter_files import (
    ALPHA,
    ATTENTION,
    CONVOLUTIONS,
    FEED_FORWARD,
    PUBLISHED_LCM,
    RANK,
    TEXT,
    kohya,
    some_lora,
)
from tests.helpers.pipeline_pairs import all_equal, drawn, drawn_by_diffusers, states
from tests.helpers.side_by_side import relative_error

END_TO_END = 1e-4  # float32, largest error over the reference's spread
LORA_A_AND_B = ("lora_A", "lora_B")


def peft(theirs, patterns, with_alpha=True):
    state = {}
    for part, network, which in (
        ("unet", theirs.unet, patterns),
        ("text_encoder", theirs.text_encoder, TEXT),
    ):
        for name, (down, up) in some_lora(network, which).items():
            stem = f"{part}.{name}"
            state |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    stated = {}
    if with_alpha:
        for part in ("unet", "text_encoder"):
            stated |= {f"{part}.r": RANK, f"{part}.lora_alpha": ALPHA}
            keys = [key for key in state if key.startswith(f"{part}.") and "lora_A" in key]
            targets = [key.removeprefix(f"{part}.").removesuffix(".lora_A.weight") for key in keys]
            stated[f"{part}.target_modules"] = targets
    return state, {"lora_adapter_metadata": json.dumps(stated)} if with_alpha else {}


def first_diffusers(theirs, patterns, with_alpha=False):
    state = {}
    for name, (down, up) in some_lora(theirs.unet, ATTENTION).items():
        block, _, layer = name.removesuffix(".0").rpartition(".")
        stem = f"unet.{block}.processor.{layer}_lora"
        state |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return state, {}


@pytest.mark.parametrize(
    ("layout", "patterns", "with_alpha"),
    [
        (kohya, [*ATTENTION, *FEED_FORWARD], True),
        (kohya, [*ATTENTION, *CONVOLUTIONS], True),
        (kohya, ATTENTION, False),
        (peft, [*ATTENTION, *FEED_FORWARD], True),
        (peft, [*ATTENTION, *CONVOLUTIONS], False),
        (first_diffusers, ATTENTION, False),
    ],
    ids=["kohya", "kohya-conv", "kohya-no-alpha", "peft", "peft-no-alpha", "first"],
)
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_lora_is_that_of_diffusers(pair_of, tmp_path, layout, patterns, with_alpha, scale):
    ours, theirs = pair_of
    state, header = layout(theirs, patterns, with_alpha)
    path = tmp_path / "some.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, header)
    before, plain = states(ours), drawn(ours)
    theirs.load_lora_weights(tmp_path, weight_name=path.name, adapter_name="some")
    theirs.set_adapters(["some"], [scale])
    expected = drawn_by_diffusers(theirs)
    theirs.unload_lora_weights()
    with lora(ours, path, scale):
        found = drawn(ours)
    assert relative_error(found, expected) < END_TO_END
    assert relative_error(found, plain) > 100 * END_TO_END
    assert all_equal(states(ours), before)
    assert torch.equal(drawn(ours), plain)


def test_the_layout_of_the_published_lcm_loras_is_read_as_diffusers_does(pair_of, tmp_path):
    """latent-consistency/lcm-lora-sdv1-5: kohya's names, an alpha per layer, convolutions.

    Only the U-Net is changed. The layers are those that diffusers' script for LCM-LoRAs changes
    (examples/consistency_distillation/train_lcm_distill_lora_sd_wds.py), and conv_in. All layers
    have one alpha, because diffusers ignores an attention layer's alpha that differs.
    """
    ours, theirs = pair_of
    state = {}
    for name, (down, up) in some_lora(theirs.unet, PUBLISHED_LCM).items():
        stem = f"lora_unet_{name.replace('.', '_')}"
        state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        state[f"{stem}.alpha"] = torch.tensor(ALPHA)
    for layer in ("proj_in", "transformer_blocks_0_attn2_to_k"):
        assert f"lora_unet_down_blocks_0_attentions_0_{layer}.lora_down.weight" in state
    for layer in ("resnets_0_time_emb_proj", "resnets_0_conv1", "downsamplers_0_conv"):
        assert state[f"lora_unet_down_blocks_0_{layer}.lora_down.weight"].shape[0] == RANK
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors", {"format": "pt"})
    theirs.load_lora_weights(tmp_path, adapter_name="lcm")
    expected = drawn_by_diffusers(theirs)
    theirs.unload_lora_weights()
    plain = drawn(ours)
    with lora(ours, tmp_path / "pytorch_lora_weights.safetensors"):
        found = drawn(ours)
    assert relative_error(found, expected) < END_TO_END
    assert relative_error(found, plain) > 100 * END_TO_END


def test_several_loras_add_up_and_go_in_any_order(sd, lora_files):
    one, other = lora_files
    plain = drawn(sd)
    with lora(sd, one):
        only_one = drawn(sd)
    first = lora(sd, one)
    second = lora(sd, other)
    assert relative_error(drawn(sd), only_one) > 100 * END_TO_END
    with lora(sd, other, -1.0):
        assert relative_error(drawn(sd), only_one) < END_TO_END
    first.remove()
    second.remove()
    second.remove()
    assert torch.equal(drawn(sd), plain)
    with lora(sd, one, scale=0.0):
        assert torch.equal(drawn(sd), plain)


def test_a_lora_of_rank_1_takes_the_blocks_original_names(sd, tmp_path):
    """kohya's trainer names blocks as diffusers or as the original: both are one layer."""
    layer = sd.unet.down[0].attn[0].cross.to_q
    width = layer.weight.shape[0]
    down, up = torch.randn(1, width, 1, 1), torch.randn(width, 1, 1, 1)  # as of a 1x1 convolution
    found = []
    for block in ("input_blocks_1_1", "down_blocks_0_attentions_0"):
        stem = f"lora_unet_{block}_transformer_blocks_0_attn2_to_q"
        state = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        save_file(state | {f"{stem}.alpha": torch.tensor(0.5)}, tmp_path / f"{block}.safetensors")
        with lora(sd, tmp_path / f"{block}.safetensors", 2.0):
            x = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(0))
            found.append(layer(x))
    expected = F.linear(x, layer.weight + 2 * 0.5 * up.flatten(1) @ down.flatten(1), layer.bias)
    assert torch.allclose(found[0], expected, atol=1e-4)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: {"x.lora_down.weight": torch.ones(1)}, "names that fit no layer"),
        (
            lambda s: {f"unet.b.9.attn2.to_k.{m}.weight": torch.ones(4, 96) for m in LORA_A_AND_B},
            "names that fit no layer .* contexts are 96 wide, not 64",
        ),
        (lambda s: {k: t for k, t in s.items() if "lora_up" not in k}, "layers that lack a matrix"),
        (lambda s: {k: t[:, :8] for k, t in s.items()}, "changes 8 channels .* another model"),
        (lambda s: s | {"a.hada_w1_a": torch.ones(1)}, "is LoHa, which minisd cannot use"),
        (lambda s: s | {"a.lokr_w1": torch.ones(1)}, "is LoKr"),
        (lambda s: s | {"a.dora_scale": torch.ones(1)}, "is DoRA"),
        (lambda s: {"one": torch.ones(1)}, "is no LoRA for"),
        (lambda s: {k: t * torch.nan for k, t in s.items()}, "matrices of finite numbers"),
        (lambda s: {k: t.flatten() for k, t in s.items()}, "matrices of finite numbers"),
    ],
)
def test_a_file_that_is_no_lora_of_this_model_is_refused(
    sd, lora_files, tmp_path, change, sentence
):
    from minisd.checkpoints.read import read_tensors

    plain, path = drawn(sd, ["a cat"]), tmp_path / "bad.safetensors"
    changed = change(read_tensors(lora_files[0]))
    save_file({key: tensor.contiguous() for key, tensor in changed.items()}, path)
    with pytest.raises(ValueError, match=sentence):
        lora(sd, path)
    assert torch.equal(drawn(sd, ["a cat"]), plain)


def test_the_names_of_the_three_spellings():
    expected = ("unet", "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0", "up")
    block = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    joined = block.replace(".", "_")
    for key in (
        f"lora_unet_{joined}_to_out_0.lora_up.weight",
        f"unet.{block}.to_out.0.lora_B.weight",
        f"unet.{block}.to_out.0.lora.up.weight",
        f"{block}.processor.to_out_lora.up.weight",
    ):
        assert parse_key(key) == expected
    first = "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight"
    layer = "text_model_encoder_layers_0_self_attn_out_proj"
    assert parse_key(first) == ("text_encoder", layer, "down")
    own = "base_model.model.text_model.encoder.layers.0.self_attn.out_proj.lora_A.weight"
    assert parse_key(own) == ("text_encoder", layer, "down")
    assert parse_key(f"base_model.model.{block}.to_out.0.lora_B.weight") == expected
    text = "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.down.weight"
    assert parse_key(text) == ("text_encoder", "text_model_encoder_layers_1_mlp_fc1", "down")


def test_the_first_spelling_of_the_text_encoder_changes_the_same_layers(pair_of, tmp_path):
    """diffusers itself no longer reads it: held against the spelling that it does read."""
    ours, theirs = pair_of
    today, first = {}, {}
    attention = [r"self_attn\.(q|k|v|out)_proj$"]
    for name, matrices in some_lora(theirs.text_encoder, attention).items():
        stem = f"text_encoder.{name}" if "text_model" in name else f"text_encoder.text_model.{name}"
        old = re.sub(r"(q|k|v|out)_proj$", r"to_\1_lora", stem)
        for (new, was), matrix in zip((("A", "down"), ("B", "up")), matrices, strict=True):
            today[f"{stem}.lora_{new}.weight"] = first[f"{old}.{was}.weight"] = matrix
    found, plain = [], drawn(ours)
    for spelling, state in (("today", today), ("first", first)):
        save_file({k: t.clone() for k, t in state.items()}, tmp_path / f"{spelling}.safetensors")
        with lora(ours, tmp_path / f"{spelling}.safetensors"):
            found.append(drawn(ours))
    assert torch.equal(*found)
    assert relative_error(found[0], plain) > 100 * END_TO_END
