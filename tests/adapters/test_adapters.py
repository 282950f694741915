"""LoRA, textual inversion, hypernetworks, ControlNet, VAE files: as diffusers reads and runs them.

Hypernetworks, which diffusers does not know, are held against their formula, written here anew.
"""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from minisd.adapters.controlnet import ControlNet, control, controlnet_rows
from minisd.adapters.hypernetwork import hypernetwork
from minisd.adapters.lora import lora, parse_key
from minisd.adapters.textual_inversion import textual_inversion
from minisd.adapters.vae_file import swap_vae
from minisd.attention import Attention
from minisd.checkpoints import names
from minisd.checkpoints.load import load_vae
from minisd.checkpoints.write import save_vae
from minisd.files.pictures import from_pil
from minisd.pipeline import StableDiffusion
from tests.helpers.hypernetwork_files import small_network
from tests.helpers.pipeline_pairs import NO_FILTER, both_pipelines, drawn, drawn_by_diffusers
from tests.helpers.reference_networks import ddim_scheduler, randomise
from tests.helpers.side_by_side import relative_error
from tests.helpers.tiny_models import V1, V2

END_TO_END = 1e-4  # float32, largest error over the reference's spread


@pytest.fixture(scope="module", params=["v1", "v2"])
def pair_of(request, tmp_path_factory):
    config = {"v1": V1, "v2": V2}[request.param]
    return both_pipelines(
        config, StableDiffusionPipeline, tmp_path_factory.mktemp("pair"), **NO_FILTER
    )


@pytest.fixture(scope="module")
def sd(pair_of):
    return pair_of[0]


def states(sd):
    """Copies of all weights of the model."""
    parts = ("unet", "text_encoder", "vae")
    return {
        f"{part}.{name}": tensor.clone()
        for part in parts
        for name, tensor in getattr(sd, part).state_dict().items()
    }


def all_equal(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


# ---- LoRA ------------------------------------------------------------------------------------

RANK, ALPHA = 3, 2.0
LORA_A_AND_B = ("lora_A", "lora_B")


def some_lora(network, patterns, seed=0):
    """Random thin matrices for the layers of a diffusers network whose names match."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, layer in network.named_modules():
        if not any(re.search(pattern, name) for pattern in patterns):
            continue
        weight = layer.weight
        down = (RANK, *weight.shape[1:])
        up = (weight.shape[0], RANK, *[1] * (weight.ndim - 2))
        made[name] = (
            0.1 * torch.randn(down, generator=generator),
            0.1 * torch.randn(up, generator=generator),
        )
    return made


ATTENTION = [r"attn\d\.to_[qkv]$", r"attn\d\.to_out\.0$"]
FEED_FORWARD = [r"ff\.net\.0\.proj$", r"ff\.net\.2$", r"proj_in$", r"proj_out$"]
CONVOLUTIONS = [r"resnets\.\d\.conv[12]$", r"downsamplers\.0\.conv$", r"conv_shortcut$"]
TEXT = [r"self_attn\.(q|v|out)_proj$", r"mlp\.fc[12]$"]


def kohya(theirs, patterns, with_alpha=True):
    state = {}
    for part, network, which in (
        ("unet", theirs.unet, patterns),
        ("te", theirs.text_encoder, TEXT),
    ):
        for name, (down, up) in some_lora(network, which).items():
            name = f"text_model.{name}" if part == "te" and "text_model" not in name else name
            stem = f"lora_{part}_{name.replace('.', '_')}"
            state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            if with_alpha:
                state[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return state, {}


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


@pytest.fixture
def lora_files(pair_of, tmp_path):
    _, theirs = pair_of
    paths = []
    for seed in (0, 1):
        state = {}
        for name, (down, up) in some_lora(theirs.unet, ATTENTION, seed).items():
            stem = f"lora_unet_{name.replace('.', '_')}"
            state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(state, paths[-1])
    return paths


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
        (lambda s: {k: t for k, t in s.items() if "lora_up" not in k}, "without both matrices"),
        (lambda s: {k: t[:, :8] for k, t in s.items()}, "changes 8 channels .* another model"),
        (lambda s: s | {"a.hada_w1_a": torch.ones(1)}, "is LoHa, which minisd cannot use here"),
        (lambda s: s | {"a.lokr_w1": torch.ones(1)}, "is LoKr"),
        (lambda s: s | {"a.dora_scale": torch.ones(1)}, "is DoRA"),
        (lambda s: {"one": torch.ones(1)}, "is no whole LoRA"),
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


# ---- textual inversion -----------------------------------------------------------------------


def word_files(vectors, folder):
    """The same vectors as the three kinds of file: path -> the word it has."""
    vectors = vectors.clone()
    torch.save({"<toy>": vectors[0] if len(vectors) == 1 else vectors}, folder / "learned.bin")
    about = {"string_to_token": {"*": torch.tensor(265)}, "name": "toy", "step": 5}
    torch.save({**about, "string_to_param": {"*": vectors}}, folder / "<toy>.pt")
    save_file({"emb_params": vectors}, folder / "<toy>.safetensors")
    return [folder / name for name in ("learned.bin", "<toy>.pt", "<toy>.safetensors")]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["diffusers", "web-ui", "emb_params"])
@pytest.mark.parametrize("count", [1, 3])
def test_textual_inversion_is_that_of_diffusers(pair_of, tmp_path, kind, count):
    ours, theirs = pair_of
    vectors = torch.randn(count, ours.config.text.width, generator=torch.Generator().manual_seed(0))
    path = word_files(vectors, tmp_path)[kind]
    prompts = ["a photo of <toy> on a beach", "<toy>, <toy> and a cat"]
    plain, ids = drawn(ours, prompts), ours.tokenizer.encode("a <toy> cat")
    if count == 1:
        theirs.load_textual_inversion(str(path), token="<toy>")
        expected = drawn_by_diffusers(theirs, prompts)
    else:  # diffusers no longer splits a word of several vectors: give it as many words instead
        words = [f"<toy{i}>" for i in range(count)]
        for word, vector in zip(words, vectors, strict=True):
            theirs.load_textual_inversion({word: vector}, token=word)
        spelt = [prompt.replace("<toy>", " ".join(words)) for prompt in prompts]
        expected = drawn_by_diffusers(theirs, spelt)
    theirs.unload_textual_inversion()
    with textual_inversion(ours, path):
        assert relative_error(drawn(ours, prompts), expected) < END_TO_END
        row = ours.tokenizer.encode("<toy>")
        assert torch.equal(ours.text_encoder.token_embedding(torch.tensor([row]))[0], vectors)
        assert len(ours.tokenizer.encode("a <toy> cat")) == 2 + count
        assert ours.tokenizer.decode(ours.tokenizer.encode("a <TOY> cat")) == "a <toy> cat"
        assert relative_error(drawn(ours, prompts), plain) > 100 * END_TO_END
    assert torch.equal(drawn(ours, prompts), plain)
    assert ours.tokenizer.encode("a <toy> cat") == ids


def test_several_words_go_in_any_order(sd, tmp_path):
    width = sd.config.text.width
    for name in ("blorp", "zib"):
        save_file({"emb_params": torch.randn(2, width)}, tmp_path / f"{name}.safetensors")
    plain = drawn(sd, ["blorp and zib"])
    first = textual_inversion(sd, tmp_path / "blorp.safetensors")
    second = textual_inversion(sd, tmp_path / "zib.safetensors")
    assert sd.tokenizer.encode("blorps") != sd.tokenizer.encode("blorp")
    assert len(sd.tokenizer.encode("blorp, zib")) == 5
    with textual_inversion(sd, tmp_path / "blorp.safetensors", word="<b>") as marked:
        assert sd.tokenizer.added_words.ids["<b>"] == sd.tokenizer.encode("x<b>s")[1:3]
        assert marked.word == "<b>"
    with pytest.raises(ValueError, match="'zib' is taken"):
        textual_inversion(sd, tmp_path / "zib.safetensors")
    both_words = drawn(sd, ["blorp and zib"])
    first.remove()
    assert not torch.equal(drawn(sd, ["blorp and zib"]), both_words)
    second.remove()
    second.remove()
    assert torch.equal(drawn(sd, ["blorp and zib"]), plain)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"emb_params": torch.ones(1, 7)}, "vectors 7 wide, .* expects 64"),
        ({"emb_params": torch.full((1, 64), torch.nan)}, "NaN or infinity"),
        ({"a": torch.ones(64), "<b>": torch.ones(64)}, "'a' is in the vocabulary already"),
        ({"emb_params": torch.ones(1, 2, 3)}, "holds no word"),
    ],
)
def test_a_file_without_a_word_of_this_model_is_refused(sd, tmp_path, content, sentence):
    save_file(content, tmp_path / "word.safetensors")
    with pytest.raises(ValueError, match=sentence):
        textual_inversion(sd, tmp_path / "word.safetensors")
    assert sd.tokenizer.added_words.ids == {}


# ---- hypernetworks ---------------------------------------------------------------------------


NORM_ALONE = {"linear.0.weight": torch.ones(64), "linear.0.bias": torch.zeros(64)}


def cut_network(lacks, seed):
    """A network of three layers as wide as its input, without one tensor."""
    state = small_network(64, [1, 1, 1], False, False, seed)
    del state[lacks]
    return state


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize(("function", "name"), [(F.relu, "relu"), (F.hardswish, "swish")])
def test_a_hypernetwork_rewrites_keys_and_values(sd, tmp_path, norm, function, name):
    structure, strength = [1, 2, 1], 0.7
    widths = (64, 128)
    content = {
        width: [small_network(width, structure, norm, True, seed) for seed in (0, 1)]
        for width in widths
    }
    about = {"layer_structure": structure, "activation_func": name, "is_layer_norm": norm}
    about |= {"activate_output": False, "step": 10, "name": "some", "use_dropout": True}
    torch.save(content | about, tmp_path / "some.pt")

    def formula(c, state):
        numbers = sorted({int(key.split(".")[1]) for key in state})
        x, linears = c, 0
        for n in numbers:
            weight, bias = state[f"linear.{n}.weight"], state[f"linear.{n}.bias"]
            if weight.ndim == 1:
                mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
                x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
            else:
                x = x @ weight.T + bias
                linears += 1
                x = function(x) if linears < len(structure) - 1 else x
        return c + strength * x

    def by_hand(layer):
        def forward(x, context):
            net = content.get(context.shape[-1])
            to_key, to_value = (formula(context, one) for one in net)
            q, k, v = layer.to_q(x), layer.to_k(to_key), layer.to_v(to_value)
            q, k, v = (one.unflatten(2, (layer.heads, -1)).transpose(1, 2) for one in (q, k, v))
            weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
            return layer.to_out((weights @ v).transpose(1, 2).flatten(2))

        return forward

    before, plain = states(sd), drawn(sd)
    with hypernetwork(sd, tmp_path / "some.pt", strength):
        found = drawn(sd)
    with pytest.MonkeyPatch.context() as patch:
        for layer in sd.unet.modules():
            if isinstance(layer, Attention):
                patch.setattr(layer, "forward", by_hand(layer))
        expected = drawn(sd)
    assert relative_error(found, expected) < END_TO_END
    assert relative_error(found, plain) > 100 * END_TO_END
    assert all_equal(states(sd), before)
    with hypernetwork(sd, tmp_path / "some.pt", 0.0):
        assert torch.equal(drawn(sd), plain)


def test_widths_that_only_other_models_have_are_left_alone(sd, tmp_path):
    """The web UI trains for several models at once, if asked: 768 and 1024 in one file."""
    content = {w: [small_network(w, [1, 1], False, False, i) for i in (0, 1)] for w in (64, 96)}
    torch.save(content, tmp_path / "both.pt")
    torch.save({64: content[64]}, tmp_path / "one.pt")
    found = []
    for name in ("both", "one"):
        with hypernetwork(sd, tmp_path / f"{name}.pt"):
            found.append(drawn(sd, ["a cat"]))
    assert torch.equal(*found)


def test_old_hypernetworks_have_other_names_and_activate_nothing(sd, tmp_path):
    new = {64: [small_network(64, [1, 2, 1], False, False, seed) for seed in (0, 1)]}
    new = {64: [{k.replace("linear.2", "linear.1"): t for k, t in net.items()} for net in new[64]]}
    spell = {"linear.0": "linear1", "linear.1": "linear2"}
    old = {64: [{spell[k[:8]] + k[8:]: tensor for k, tensor in net.items()} for net in new[64]]}
    found = []
    for name, content in (("new", new), ("old", old)):
        torch.save(content, tmp_path / f"{name}.pt")
        with hypernetwork(sd, tmp_path / f"{name}.pt"):
            found.append(drawn(sd, ["a cat"]))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({32: [small_network(32, [1, 1], False, False, i) for i in (0, 1)]}, "contexts 32 wide"),
        ({64: [small_network(64, [1, 2], False, False, i) for i in (0, 1)]}, "no whole hyper"),
        ({64: [small_network(64, [1, 1], False, False, 0)]}, "no whole hypernetwork"),
        ({"activation_func": "snake"} | {64: [{}, {}]}, "activation 'snake', which is unknown"),
        (
            {w: [small_network(w, [1, 1], False, False, i) for i in (0, 1)] for w in (96, 128)},
            "contexts 96, 128 wide, and the model's are 64, 128",
        ),
        ({64: [cut_network("linear.2.bias", i) for i in (0, 1)]}, "no whole hypernetwork"),
        ({64: [cut_network("linear.0.weight", i) for i in (0, 1)]}, "no whole hypernetwork"),
        ({64: [NORM_ALONE, NORM_ALONE]}, "no whole hypernetwork"),
        (
            {64: [small_network(64, [1, 1], False, False, i) for i in (0, 1)]}
            | {"layer_structure": [1, 1, 1]},
            "no whole hypernetwork",
        ),
        ({"step": 1}, "no whole hypernetwork"),
    ],
)
def test_a_file_that_is_no_hypernetwork_of_this_model_is_refused(sd, tmp_path, content, sentence):
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=sentence):
        hypernetwork(sd, tmp_path / "bad.pt")


# ---- ControlNet ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["v1", "v2"])
def eighth(request, tmp_path_factory):
    """A pair whose latents are eight times smaller than pictures, as every ControlNet expects."""
    config = {"v1": V1, "v2": V2}[request.param]
    config = replace(config, vae=replace(config.vae, channels=(32, 32, 64, 64)))
    return both_pipelines(
        config, StableDiffusionPipeline, tmp_path_factory.mktemp("eighth"), **NO_FILTER
    )


def reference_controlnet(theirs, config):
    """diffusers' ControlNet of the same sizes as its U-Net, every weight random."""
    network = ControlNetModel.from_unet(theirs.unet)
    randomise(network, gain=0.5, seed=7)
    return network.eval()


@pytest.fixture(scope="module")
def picture():
    shades = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    return Image.fromarray(shades).resize((96, 64), Image.Resampling.BICUBIC)


def controlnet_file(network, path, layout, config):
    """The reference's weights as a file of either layout."""
    state = network.state_dict()
    if layout == "original":
        ours = names.from_official(state, controlnet_rows(config), "diffusers")
        official = names.to_official(ours, controlnet_rows(config), "original")
        state = {f"control_model.{key}": tensor for key, tensor in official.items()}
        around = {"betas": torch.ones(9), "model.diffusion_model.out.2.bias": torch.ones(4)}
        torch.save({"state_dict": state | around}, path.with_suffix(".pth"))
        return path.with_suffix(".pth")
    save_file({k: t.contiguous() for k, t in state.items()}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize(("scale", "hints"), [(1.0, 1), (0.5, 1), (1.0, 2)])
def test_controlnet_is_that_of_diffusers(eighth, picture, tmp_path, layout, scale, hints):
    ours, theirs = eighth
    reference = reference_controlnet(theirs, ours.config)
    path = controlnet_file(reference, tmp_path / "control", layout, ours.config.unet)
    pipeline = StableDiffusionControlNetPipeline(
        vae=theirs.vae,
        text_encoder=theirs.text_encoder,
        tokenizer=theirs.tokenizer,
        unet=theirs.unet,
        scheduler=ddim_scheduler(ours.config),
        controlnet=reference,
        **NO_FILTER,
    )
    pipeline.set_progress_bar_config(disable=True)
    pictures = [picture, picture.transpose(Image.Transpose.ROTATE_180) if hints == 2 else picture]
    expected = drawn_by_diffusers(pipeline, image=pictures, controlnet_conditioning_scale=scale)
    before, plain = states(ours), drawn(ours)
    hint = picture if hints == 1 else torch.cat([(from_pil(one) + 1) / 2 for one in pictures])
    with control(ours, ControlNet.load(path, ours.config.unet), hint, scale):
        found = drawn(ours)
    assert relative_error(found, expected) < END_TO_END
    assert relative_error(found, plain) > 100 * END_TO_END
    assert all_equal(states(ours), before)
    assert torch.equal(drawn(ours), plain)


def test_several_controlnets_add_up(eighth, picture, tmp_path):
    ours, theirs = eighth
    reference = reference_controlnet(theirs, ours.config)
    path = controlnet_file(reference, tmp_path / "control", "diffusers", ours.config.unet)
    network, plain = ControlNet.load(path, ours.config.unet), drawn(ours)
    with control(ours, network, picture):
        once = drawn(ours)
    first = control(ours, network, picture, 0.25)
    second = control(ours, network, picture, 0.75)
    assert relative_error(drawn(ours), once) < END_TO_END
    first.remove()
    second.remove()
    assert torch.equal(drawn(ours), plain)
    with control(ours, network, picture, 0.0):
        assert torch.equal(drawn(ours), plain)


def test_our_own_controlnet_file_says_its_sizes(eighth, picture, tmp_path):
    ours, _ = eighth
    torch.manual_seed(0)
    network = ControlNet(ours.config.unet)
    network.save(tmp_path / "own.safetensors")
    again = ControlNet.load(tmp_path / "own.safetensors")
    assert again.config == ours.config.unet
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name].half().float())


def test_a_hint_of_another_size_is_told(eighth, picture, tmp_path):
    ours, _ = eighth
    torch.manual_seed(0)
    with (
        control(ours, ControlNet(ours.config.unet).eval(), picture),
        pytest.raises(ValueError, match="give a hint of the picture's size"),
    ):
        ours.txt2img("a cat", steps=1, width=64, height=64)
    hints = torch.zeros(3, 3, 64, 96)
    with (
        control(ours, ControlNet(ours.config.unet).eval(), hints),
        pytest.raises(ValueError, match="there are 3 hints: give 1, or one for each sample"),
    ):
        drawn(ours)


def test_a_controlnet_of_another_model_is_refused(sd, picture, tmp_path):
    torch.manual_seed(0)
    wider = replace(sd.config.unet, context_dim=96)
    with pytest.raises(ValueError, match=r"contexts 96 wide, .* contexts 64 wide"):
        control(sd, ControlNet(wider), picture)
    for hint in (torch.zeros(1, 4, 64, 96), torch.full((1, 3, 64, 96), 255.0)):
        with pytest.raises(ValueError, match=r"give 1 3 h w in \[0, 1\]"):
            control(sd, ControlNet(sd.config.unet), hint)
    other = replace(sd.config.unet, channels=(64, 64))
    with pytest.raises(ValueError, match="made for another model"):
        control(sd, ControlNet(other), picture)
    ControlNet(other).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        ControlNet.load(tmp_path / "other.safetensors", sd.config.unet)
    save_file({"a": torch.ones(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is not a ControlNet"):
        ControlNet.load(tmp_path / "none.safetensors")


# ---- VAE files -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["original", "prefixed", "diffusers"])
def test_a_vae_file_replaces_the_autoencoder(pair_of, tmp_path, layout):
    ours, theirs = pair_of
    other = type(theirs.vae)(**theirs.vae.config)
    randomise(other, gain=1.0, seed=9)
    path = tmp_path / "vae.safetensors"
    state = other.state_dict()
    if layout != "diffusers":
        table = names.flat_rows(names.vae_rows(ours.config.vae))
        state = names.to_official(names.from_official(state, table, "diffusers"), table, "original")
        state |= {"loss.logvar": torch.ones(1)}
    if layout == "prefixed":
        state = {f"first_stage_model.{key}": tensor for key, tensor in state.items()}
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    z = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    before = ours.vae
    with swap_vae(ours, path), torch.no_grad():
        expected = other.decode(z / 0.18215).sample
        assert relative_error(ours.decode(z), expected) < END_TO_END
    assert ours.vae is before


def test_swapped_autoencoders_go_in_any_order(sd, tmp_path):
    original = sd.vae
    save_vae(tmp_path / "vae.safetensors", original)
    first = swap_vae(sd, tmp_path / "vae.safetensors")
    second = swap_vae(sd, tmp_path / "vae.safetensors")
    top = sd.vae
    first.remove()
    assert sd.vae is top
    second.remove()
    assert sd.vae is original


def test_an_autoencoder_of_another_size_is_refused(sd, tmp_path):
    save_vae(tmp_path / "vae.safetensors", sd.vae)
    smaller = replace(sd.config.vae, channels=(32, 32, 64))
    with pytest.raises(ValueError, match=r"of another shape .*made for another model"):
        load_vae(tmp_path / "vae.safetensors", smaller)
    save_file({"a": torch.ones(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is not a VAE file"):
        swap_vae(sd, tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "vae.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="the download was cut off"):
        swap_vae(sd, tmp_path / "cut.safetensors")


# ---- all of them -----------------------------------------------------------------------------

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
