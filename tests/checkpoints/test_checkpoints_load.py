"""From published layouts to our networks: the numbers of those who made them, or an error."""

import hashlib
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import minisd
from minisd.checkpoints import single_file_settings, sizes_from_tensors
from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.cover import empty_networks
from minisd.checkpoints.file_kinds import UNKNOWN_KIND
from minisd.checkpoints.info import inspect_source
from minisd.checkpoints.load import load
from minisd.checkpoints.names import model_rows, prefixes, to_official
from minisd.checkpoints.write import save
from minisd.config import MINI, ModelConfig
from minisd.tokenizer import Tokenizer
from tests.helpers.checkpoint_files import (
    TEXT_V1,
    V1,
    V2,
    original,
    pipeline,
    single_file,
    with_inputs,
)
from tests.helpers.reference_networks import (
    THEIRS,
    run_our_text,
    run_our_vae,
    run_unet,
)
from tests.helpers.side_by_side import relative_error

FLOAT32 = 1e-4  # end to end in float32, largest error over the reference's spread
PEAK = 1.3  # private memory while loading, over the larger of file and model

V1_INPAINT = replace(with_inputs(V1, 9), name="v1-inpaint")
V2_DEPTH = replace(with_inputs(V2, 5), name="v2-depth")
V2_V = replace(V2, name="v2-v", size=768, schedule=replace(V2.schedule, prediction="v"))


def write(path: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


@pytest.fixture(scope="module")
def networks() -> dict[str, dict[str, nn.Module]]:
    """The original classes with random weights, by family."""
    return {config.name: original(config) for config in (V1, V2)}


@pytest.fixture(scope="module")
def tensors(networks) -> dict[str, dict[str, Tensor]]:
    return {name: single_file(originals) for name, originals in networks.items()}


@pytest.fixture(scope="module")
def v1(tensors, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("files") / "v1.safetensors", tensors["v1"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Folders that diffusers wrote."""
    folder = tmp_path_factory.mktemp("folders")
    for config in (V1, V2_V):
        pipeline(config, folder / "tokenizer").save_pretrained(folder / config.name)
    return {config.name: folder / config.name for config in (V1, V2_V)}


@torch.no_grad()
def assert_computes_the_same(parts: Parts, theirs: dict[str, nn.Module], layout: str) -> None:
    """Both on the same inputs, part by part."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, parts.config.unet.in_channels, 8, 8, generator=generator)
    context = torch.randn(2, 77, 64, generator=generator)
    inputs = {
        "unet": (x, torch.tensor([3.0, 700.25]), context),
        "vae": (torch.randn(1, 3, 16, 16, generator=generator), x[:, :4]),
        "text_encoder": (parts.tokenizer(["a cat", "two dogs on a hill"]),),
    }
    ours = {"unet": run_unet, "vae": run_our_vae, "text_encoder": run_our_text}
    for part, given in inputs.items():
        run = THEIRS[part, layout][1]
        if part == "text_encoder" and not hasattr(theirs[part], "ln_final"):
            run = THEIRS[part, "diffusers"][1]  # the text transformer of v1's original files
        for mine, reference in zip(
            ours[part](getattr(parts, part), *given), run(theirs[part], *given), strict=True
        ):
            assert relative_error(mine, reference) < FLOAT32, part


def state(parts: Parts) -> dict[str, Tensor]:
    modules = {"text_encoder": parts.text_encoder, "unet": parts.unet, "vae": parts.vae}
    return {
        f"{part}.{key}": tensor
        for part, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def assert_same_weights(ours: Parts, theirs: Parts) -> None:
    mine, reference = state(ours), state(theirs)
    assert mine.keys() == reference.keys()
    assert all(torch.equal(mine[key], reference[key]) for key in mine)


# ---- single files ----------------------------------------------------------------------------


@pytest.mark.parametrize("config", [V1, V2, V1_INPAINT, V2_DEPTH], ids=lambda config: config.name)
def test_a_single_file_computes_what_the_original_does(tmp_path, config):
    theirs = original(config)
    path = write(tmp_path / f"{config.name}.safetensors", single_file(theirs))
    parts = load(path, prediction="eps" if config is V2 else None)
    assert parts.config == config
    assert_computes_the_same(parts, theirs, "original")


def test_v1_pads_with_the_end_mark_and_v2_with_0(tensors, tmp_path, v1):
    assert load(v1).tokenizer("a")[0, -1] == 49407
    path = write(tmp_path / "v2.safetensors", tensors["v2"])
    assert load(path, prediction="eps").tokenizer("a")[0, -1] == 0


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("outer", [True, False])
def test_a_ckpt_gives_the_same_weights(tensors, tmp_path, v1, zipped, outer):
    content = {"state_dict": tensors["v1"], "epoch": 3} if outer else tensors["v1"]
    torch.save(content, tmp_path / "v1.ckpt", _use_new_zipfile_serialization=zipped)
    assert_same_weights(load(tmp_path / "v1.ckpt"), load(v1))


def test_names_without_text_model_are_understood(tensors, tmp_path, v1):
    short = {key.replace("text_model.", ""): tensor for key, tensor in tensors["v1"].items()}
    assert f"{TEXT_V1}embeddings.token_embedding.weight" in short
    assert_same_weights(load(write(tmp_path / "v1.safetensors", short)), load(v1))


def test_v2_without_the_last_text_layer_is_the_same_model(tensors, tmp_path):
    whole = tensors["v2"]
    left_out = ("resblocks.2.", "text_projection", "logit_scale")
    pruned = {k: v for k, v in whole.items() if not any(part in k for part in left_out)}
    assert len(pruned) == len(whole) - 14
    paths = [
        write(tmp_path / f"{n}.safetensors", content) for n, content in enumerate((whole, pruned))
    ]
    assert_same_weights(*[load(path, prediction="eps") for path in paths])


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_into_float32(tensors, tmp_path, stored):
    half = {k: v.to(stored) if v.is_floating_point() else v for k, v in tensors["v1"].items()}
    parts = load(write(tmp_path / "half.safetensors", half))
    ours = state(parts)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    key = "model.diffusion_model.time_embed.0.weight"
    assert torch.equal(ours["unet.time.linear1.weight"], half[key].float())


def test_dtype_is_that_of_the_weights_in_memory(v1):
    assert {tensor.dtype for tensor in state(load(v1, dtype=torch.float64)).values()} == {
        torch.float64
    }


def test_ema_takes_the_averaged_unet_and_the_other_parts_as_they_are(tensors, tmp_path, v1):
    last, averaged = state(load(v1)), state(load(v1, ema=True))
    for key in last:
        factor = 0.5 if key.startswith("unet.") else 1.0
        assert torch.equal(averaged[key], factor * last[key]), key
    without = {k: v for k, v in tensors["v1"].items() if not k.startswith("model_ema.")}
    with pytest.raises(ValueError, match=r"lacks averaged weights .*: load it without ema=True"):
        load(write(tmp_path / "a.safetensors", without), ema=True)
    with pytest.raises(ValueError, match="leave out ema"):
        load(tmp_path, ema=True)


# ---- diffusers folders -----------------------------------------------------------------------


@pytest.mark.parametrize("config", [V1, V2_V], ids=lambda config: config.name)
def test_a_folder_computes_what_diffusers_does(tmp_path, config):
    pipe = pipeline(config, tmp_path / "tokenizer")
    pipe.save_pretrained(tmp_path / config.name)
    parts = load(tmp_path / config.name)
    assert parts.config == config
    assert_computes_the_same(parts, pipe.components, "diffusers")


def copied(source: Path, destination: Path, change: Callable[[Path], None]) -> Path:
    """The folder again, with each file of weights replaced by what `change` makes of it."""
    for file in source.rglob("*.*"):
        path = destination / file.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.read_bytes())
        if path.suffix == ".safetensors":
            change(path)
    return destination


def into_bin(path: Path) -> None:
    name = "pytorch_model" if path.stem == "model" else path.stem
    torch.save(load_file(path), path.with_name(f"{name}.bin"))
    path.unlink()


def into_fp16_variant(path: Path) -> None:
    path.rename(path.with_suffix(".fp16.safetensors"))


def into_shards(path: Path) -> None:
    """As diffusers and transformers write them: an index, and files with the number in the name."""
    content, names = load_file(path), {}
    for n in (1, 2):
        keys = sorted(content)[n - 1 :: 2]
        names |= dict.fromkeys(keys, f"{path.stem}-0000{n}-of-00002.safetensors")
        write(path.with_name(names[keys[0]]), {key: content[key] for key in keys})
    path.with_name(f"{path.name}.index.json").write_text(
        json.dumps({"weight_map": names}), encoding="utf-8"
    )
    path.unlink()


def into_old_vae_names(path: Path) -> None:
    """VAE attention as diffusers first wrote it, and as the published folders still have it."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    content = {}
    for key, tensor in load_file(path).items():
        if path.parent.name == "vae" and ".attentions." in key:
            for new, name in old.items():
                key = key.replace(new, name)
        content[key] = tensor
    write(path, content)


@pytest.mark.parametrize("change", [into_bin, into_fp16_variant, into_shards, into_old_vae_names])
def test_the_other_ways_to_store_a_folder_give_the_same_weights(folders, tmp_path, change):
    changed = copied(folders["v1"], tmp_path / "v1", change)
    assert_same_weights(load(changed), load(folders["v1"]))


def test_diffusers_own_shards_and_variants_are_found(tmp_path):
    pipe = pipeline(V1, tmp_path / "tokenizer")
    pipe.save_pretrained(tmp_path / "v1", variant="fp16", max_shard_size="2MB")
    assert list(tmp_path.glob("v1/unet/*fp16-00001-of-*.safetensors"))
    assert_computes_the_same(load(tmp_path / "v1"), pipe.components, "diffusers")


def test_full_precision_comes_before_the_fp16_variant(folders, tmp_path):
    def halve(path: Path) -> None:
        half = {key: tensor.half() for key, tensor in load_file(path).items()}
        write(path.with_suffix(".fp16.safetensors"), half)

    both = copied(folders["v1"], tmp_path / "v1", halve)
    assert_same_weights(load(both), load(folders["v1"]))


# ---- eps or v --------------------------------------------------------------------------------


def test_the_argument_comes_first(tensors, tmp_path, v1):
    assert load(v1, prediction="v").config.schedule.prediction == "v"
    v2 = write(tmp_path / "v2.safetensors", tensors["v2"])
    assert load(v2, prediction="v").config == replace(V2_V, name="v2")
    with pytest.raises(ValueError, match='give "eps" or "v"'):
        load(v1, prediction="x0")


def test_a_sibling_yaml_tells(tensors, tmp_path):
    path = write(tmp_path / "v2.safetensors", tensors["v2"])
    yaml = path.with_suffix(".yaml")
    yaml.write_text(
        'model:\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n',
        encoding="utf-8",
    )
    assert load(path).config == replace(V2_V, name="v2")
    yaml.write_text("model:\n  params:\n    linear_start: 0.00085\n", encoding="utf-8")
    assert load(path).config == V2


@pytest.mark.parametrize(("said", "config"), [("epsilon", V2), ("v", replace(V2_V, name="v2"))])
def test_the_header_of_trained_files_tells(tensors, tmp_path, said, config):
    stored = {"modelspec.prediction_type": said}
    assert load(write(tmp_path / "v2.safetensors", tensors["v2"], stored)).config == config


@pytest.mark.parametrize(("said", "config"), [("eps", V2), ("v", replace(V2_V, name="v2"))])
def test_a_published_file_is_known_by_its_sha256(tensors, tmp_path, monkeypatch, said, config):
    path = write(tmp_path / "v2.safetensors", tensors["v2"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(single_file_settings.PUBLISHED_PREDICTIONS, digest, said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fact, so nothing is tried and nothing reported
        assert load(path).config == config


def returns_its_input(unet: nn.Module) -> None:
    """Set the weights so that the output is the input, up to its scale: a perfect eps network.

    Each input channel goes through as x and as -x, since silu(x) - silu(-x) = x.
    """
    for parameter in unet.parameters():
        parameter.data.zero_()
    width = unet.out[0].num_channels
    take_skip = unet.output_blocks[-1][0].skip_connection.weight.data
    take_skip[:, -width:, 0, 0] = torch.eye(width)
    unet.out[0].weight.data.fill_(1.0)
    for c in range(4):
        for n, sign in ((2 * c, 1.0), (2 * c + 1, -1.0)):
            unet.input_blocks[0][0].weight.data[n, c, 1, 1] = sign
            unet.out[2].weight.data[c, n, 1, 1] = sign


def returns_nothing(unet: nn.Module) -> None:
    for parameter in unet.out[2].parameters():
        parameter.data.zero_()


def stays_random(unet: nn.Module) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "prediction", "words"),
    [
        (
            returns_its_input,
            "eps",
            r"correlation of (1.00|0.99) with the noise. minisd assumes that the model predicts",
        ),
        (stays_random, "v", "with the noise. minisd assumes that the model predicts v"),
        (returns_nothing, "eps", "no clear result. minisd assumes that the model predicts eps"),
    ],
)
def test_a_v2_file_that_does_not_say_is_tried_on_noise(tmp_path, change, prediction, words):
    theirs = original(V2)
    change(theirs["unet"])
    with pytest.warns(UserWarning, match=words):
        parts = load(write(tmp_path / "v2.safetensors", single_file(theirs)))
    assert parts.config.schedule.prediction == prediction
    assert parts.config.size == (768 if prediction == "v" else 512)


# ---- our own file ----------------------------------------------------------------------------


def random_mini() -> Parts:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a cat", "a cut", "two cats"], 520, pad_token=0)
    config = replace(MINI, text=replace(MINI.text, vocab_size=520, pad_token=0), name="tiny")
    networks = {
        part: network.to_empty(device="cpu") for part, network in empty_networks(config).items()
    }
    for network in networks.values():
        for parameter in network.parameters():
            nn.init.normal_(parameter)
    return Parts(config, tokenizer, **networks)


def test_our_own_file_comes_back_whole(tmp_path):
    parts = random_mini()
    save(tmp_path / "mini.safetensors", parts, notes={"seed": "0"})
    again = load(tmp_path / "mini.safetensors")
    assert again.config == parts.config
    assert again.tokenizer.ids == parts.tokenizer.ids
    assert torch.equal(again.tokenizer("a cat"), parts.tokenizer("a cat"))
    assert_same_weights(again, parts)


def test_mini_is_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.setattr("minisd.checkpoints.load.WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match=r"There is no file or folder .*mini\.safetensors"):
        load("mini")
    save(tmp_path / "mini.safetensors", random_mini())
    assert load("mini").config.name == "tiny"


# ---- errors ----------------------------------------------------------------------------------


def refusal(path: Path, **options) -> str:
    """The error that load() raises: one line that names the file or folder."""
    with pytest.raises(ValueError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


KEY = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"


def test_a_missing_an_unknown_and_a_misshapen_tensor_are_listed_in_one_error(tensors, tmp_path):
    changed = dict(tensors["v1"])
    bias = changed.pop(KEY.replace("weight", "bias"))
    changed["model.diffusion_model.adapter.weight"] = bias
    changed[KEY] = changed[KEY][:, :, :1]
    message = refusal(write(tmp_path / "a.safetensors", changed))
    assert f"1 missing ({KEY.replace('weight', 'bias')})" in message
    assert "1 unknown (model.diffusion_model.adapter.weight)" in message
    shapes = "[32, 32, 1, 3], expected [32, 32, 3, 3]"
    assert f"1 of another shape ({KEY} {shapes})" in message


# The tensors from which the sizes are told.
TELLING = (
    "input_blocks.0.0.weight",
    "input_blocks.1.0.out_layers.3.weight",
    "middle_block.1.proj_in.weight",
    "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    "diffusion_model.out.2.weight",
    "encoder.down.0.block.0.conv2.weight",
    "decoder.conv_in.weight",
    "token_embedding.weight",
    "position_embedding.weight",
    "positional_embedding",
)


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_any_tensor_is_missed(tensors, monkeypatch, v1, family):
    whole = tensors[family]
    needed = [key for key in whole if key.startswith(("model.d", "first_stage", "cond_stage"))]
    spared = ("position_ids", "attn_mask", "logit_scale", "text_projection", "resblocks.2.")
    needed = [key for key in needed if not any(name in key for name in spared)]
    telling = [key for key in needed if key.endswith(TELLING)]
    for key in telling + needed[:: len(needed) // 8]:
        rest = {k: v for k, v in whole.items() if k != key}
        monkeypatch.setattr(
            "minisd.checkpoints.single_file.read_tensors", lambda path, rest=rest: rest
        )
        with pytest.raises(ValueError, match=re.escape(key)):
            load(v1, prediction="eps")


def test_a_long_list_is_cut(tensors, tmp_path):
    extra = {f"model.diffusion_model.extra.{n}": torch.zeros(1) for n in range(500)}
    message = refusal(write(tmp_path / "a.safetensors", tensors["v1"] | extra))
    assert "500 unknown (model.diffusion_model.extra.0, " in message
    assert len(message) < 500


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("prediction", [None, "eps"])
def test_the_first_module_with_nan_weights_is_named(tensors, tmp_path, value, prediction):
    """While it is loaded, if the U-Net is tried. Otherwise when a picture is drawn."""
    broken = dict(tensors["v1"])
    for key in (KEY, KEY.replace("blocks.1", "blocks.2")):
        broken[key] = torch.full_like(broken[key], value)
    path = write(tmp_path / "a.safetensors", broken)
    with pytest.raises(ValueError, match="holds NaN or infinity") as refused:
        minisd.load(path, prediction=prediction).txt2img("a", steps=1, width=64, height=64)
    assert "unet.down.0.res.0.conv1.weight holds NaN or infinity" in str(refused.value)


OTHER_KINDS = {
    "LoRA": ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
    "LoRA ": ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"],
    "LoRA  ": ["down_blocks.0.attentions.0.attn1.processor.to_q_lora.down.weight"],
    "ControlNet": ["control_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.bias"],
    "ControlNet ": ["controlnet_cond_embedding.conv_in.weight", "conv_in.weight"],
    "textual inversion": ["emb_params"],
    "textual inversion ": ["<cat-toy>"],
    "LoRA   ": ["text_encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight"],
    "VAE": ["encoder.conv_in.weight", "decoder.mid.block_1.norm1.weight"],
    "VAE ": ["encoder.conv_in.weight", "decoder.mid_block.resnets.0.norm1.weight"],
    "VAE  ": ["first_stage_model.decoder.mid.block_1.norm1.weight"],
    "hypernetwork": ["320.0.linear.0.weight", "320.1.linear.0.weight"],
    "SDXL model": ["conditioner.embedders.0.x.weight", "model.diffusion_model.out.2.bias"],
    "U-Net alone": ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "text encoder": ["text_model.embeddings.token_embedding.weight"],
    "file of an unknown kind": ["fc.weight"],
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_is_no_whole_model_is_called_by_its_name(tmp_path, kind):
    path = write(tmp_path / "a.safetensors", {key: torch.zeros(1) for key in OTHER_KINDS[kind]})
    message = refusal(path)
    if kind == UNKNOWN_KIND:
        assert "is not a whole Stable Diffusion model: minisd does not know its kind" in message
    else:
        assert re.search(f"is (a|an) {kind.strip()}, (not a|which minisd cannot use)", message)
    assert inspect_source(path).kind == kind.strip()


LAYERS = {"v1": "text_model.encoder.layers.", "v2": "transformer.resblocks."}


@pytest.mark.parametrize("family", ["v1", "v2"])
@pytest.mark.parametrize("lost", [r"0\.", r"\d+\."])
def test_lost_text_layers_are_missed(tensors, tmp_path, family, lost):
    layer = re.compile(".*" + re.escape(LAYERS[family]) + lost)
    rest = {key: tensor for key, tensor in tensors[family].items() if not layer.match(key)}
    message = refusal(write(tmp_path / "a.safetensors", rest), prediction="eps")
    assert LAYERS[family] in message
    assert "text layers" in message


def text_of_width(family: str, width: int, layers: int) -> tuple[dict[str, Tensor], str]:
    """The tensors, without values, that a text transformer's sizes are told from; their prefix."""
    prefix = prefixes({"v1": V1, "v2": V2}[family])["text_encoder"]
    embeddings = "text_model.embeddings." if family == "v1" else ""
    position = "position_embedding.weight" if family == "v1" else "positional_embedding"
    shapes = {
        f"{embeddings}token_embedding.weight": (49408, width),
        f"{embeddings}{position}": (77, width),
        "text_projection": (width, width),
    }
    shapes |= {f"{LAYERS[family]}{n}.bias": (1,) for n in range(layers)}
    return {prefix + key: torch.empty(s, device="meta") for key, s in shapes.items()}, prefix


def test_at_the_published_widths_only_the_published_numbers_of_text_layers_are_taken():
    assert sizes_from_tensors.text_v1_sizes(*text_of_width("v1", 768, 12)).layers == 12
    assert sizes_from_tensors.text_v2_sizes(*text_of_width("v2", 1024, 24)).layers == 23
    assert sizes_from_tensors.text_v2_sizes(*text_of_width("v2", 1024, 23)).layers == 23
    with pytest.raises(ValueError, match=r"holds 11 text layers .* needs 12, .* get another copy"):
        sizes_from_tensors.text_v1_sizes(*text_of_width("v1", 768, 11))
    with pytest.raises(ValueError, match=r"holds 22 text layers .* needs 23 or 24, "):
        sizes_from_tensors.text_v2_sizes(*text_of_width("v2", 1024, 22))


def test_a_part_that_is_absent_is_named(tensors, tmp_path):
    for part, prefix in prefixes(V1).items():
        if part != "unet":
            rest = {k: v for k, v in tensors["v1"].items() if not k.startswith(prefix)}
            assert f"holds no {part}" in refusal(write(tmp_path / f"no-{part}.safetensors", rest))


def test_a_folder_that_is_no_model_says_what_it_lacks(folders, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "it has no text_encoder, unet, vae, tokenizer" in refusal(empty)
    (empty / "sd.safetensors").touch()
    assert "did you mean the file sd.safetensors in it?" in refusal(empty)
    assert "is not a diffusers model" in refusal(folders["v1"] / "vae")
    assert "There is no file or folder" in refusal(tmp_path / "nothing")


def test_a_folder_without_weights_or_settings_says_so(folders, tmp_path):
    without = copied(folders["v1"], tmp_path / "a", Path.unlink)
    assert "holds no weights (such as diffusion_pytorch_model.safetensors)" in refusal(without)


# setting -> what the error says of it; None: the setting is taken away
SETTINGS = {
    ("unet/config.json", "act_fn", "gelu"): "'gelu' in the config.json of the unet: min",
    (
        "unet/config.json",
        "attention_head_dim",
        (4, 16),
    ): "[4, 16] heads for levels of width",
    ("unet/config.json", "attention_head_dim", 5): "[5, 5] heads for levels of width (32, 64)",
    ("unet/config.json", "down_block_types", ("DownBlock2D", "Attn")): "the block 'Attn'",
    (
        "unet/config.json",
        "attention_head_dim",
        0,
    ): "attention_head_dim = 0 in the config.json of the unet",
    (
        "unet/config.json",
        "down_block_types",
        ("DownBlock2D",),
    ): "2 U-Net levels, but a list of 1 types",
    ("unet/config.json", "norm_num_groups", 24): "cannot be divided into 24 groups",
    ("vae/config.json", "norm_num_groups", 0): "has norm_num_groups = 0",
    ("text_encoder/config.json", "hidden_act", "gelu_new"): "has the activation 'gelu_new'",
    ("text_encoder/config.json", "num_attention_heads", 3): "cannot be divided into 3 groups or",
    ("scheduler/scheduler_config.json", "beta_schedule", "laplace"): "beta_schedule = 'laplace'",
    ("scheduler/scheduler_config.json", "prediction_type", "sample"): "type = 'sample'",
    ("text_encoder/config.json", "hidden_size", None): "took their defaults: hidden_s",
    ("vae/config.json", "block_out_channels", None): "DownEncoderBlock2D'] for 1 levels of the vae",
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[1])
def test_settings_that_no_network_here_has_are_refused(folders, tmp_path, setting):
    file, key, value = setting
    folder = copied(folders["v1"], tmp_path / "a", lambda path: None)
    stored = json.loads((folder / file).read_text(encoding="utf-8"))
    stored.pop(key)
    stored |= {} if value is None else {key: value}
    (folder / file).write_text(json.dumps(stored), encoding="utf-8")
    assert SETTINGS[setting] in refusal(folder)
    for text, says in {"{": "is not valid JSON", "[]": "is not a JSON object"}.items():
        (folder / file).write_text(text, encoding="utf-8")
        assert says in refusal(folder)
    (folder / file).unlink()
    assert f"{file} cannot be read" in refusal(folder)


def test_an_index_without_files_and_a_cut_tokenizer_say_so(folders, tmp_path):
    folder = copied(folders["v1"], tmp_path / "a", into_shards)
    index = next(folder.glob("unet/*.index.json"))
    index.write_text("{}", encoding="utf-8")
    assert f"{index.name} lists no files of weights: fetch it again." in refusal(folder)
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    assert "fetch the folder again." in refusal(folder)


def change(settings: dict, key: str, value: object) -> None:
    part, _, name = key.rpartition(".")
    (settings[part] if part else settings)[name] = value


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("text.activation", "relu", "has the activation 'relu'"),
        ("text.heads", 0, "has heads = 0"),
        ("text.mlp_width", "wide", "has mlp_width = 'wide'"),
        ("text.mlp_width", 0, "has mlp_width = 0"),
        ("unet.head_width", 2.5, "has head_width = 2.5"),
        ("unet.channels", [], "has channels = ()"),
        ("schedule.prediction", "x", "predicts 'x'"),
        ("size", "64", "has size = '64'"),
        ("vae", [], "damaged, or that another version"),
    ],
)
def test_a_header_of_ours_with_impossible_settings_is_refused(tmp_path, key, value, says):
    settings = asdict(MINI)
    change(settings, key, value)
    header = {"minisd": json.dumps(settings)}
    path = write(tmp_path / "a.safetensors", {"unet.conv_in.weight": torch.zeros(1)}, header)
    assert says in refusal(path)


def test_sizes_beyond_the_published_networks_are_refused_early(tensors, tmp_path):
    narrow = dict(tensors["v2"])
    conv = "model.diffusion_model.input_blocks.1.0.out_layers.3.weight"
    narrow[conv] = narrow[conv][:48]
    message = refusal(write(tmp_path / "a.safetensors", narrow), prediction="eps")
    assert "U-Net levels of the widths (48, 128), but not all are multiples of 64" in message


# ---- memory ----------------------------------------------------------------------------------

WIDE = replace(V1, unet=replace(V1.unet, channels=(256, 512), res_blocks=1), name="wide")
MEASURE = """
import sys, threading, time, torch
from minisd.checkpoints.load import load

def private():
    lines = open("/proc/self/status", encoding="utf-8").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def watch():
    while watching:
        peaks.append(private())
        time.sleep(0.001)

first, *others = sys.argv[1:]
load(first)  # once, so that what the first call imports is not counted
before = private()
for path in others:
    peaks, watching = [], True
    watcher = threading.Thread(target=watch)
    watcher.start()
    parts = load(path)
    weights = [p for n in (parts.text_encoder, parts.unet, parts.vae) for p in n.parameters()]
    [weight.sum() for weight in weights]
    watching = False
    watcher.join()
    print(max(peaks) - before, sum(weight.nbytes for weight in weights))
    del parts, weights
"""


def write_zeros(config: ModelConfig, path: Path, dtype: torch.dtype) -> Path:
    tensors, rows = {}, model_rows(config)
    for part, network in empty_networks(config).items():
        empty = network.to(dtype).to_empty(device="cpu").state_dict()
        official = to_official(empty, rows[part], "original")
        tensors |= {prefixes(config)[part] + key: value.zero_() for key, value in official.items()}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def test_loading_takes_little_more_memory_than_the_model(tmp_path, v1):
    paths = [
        write_zeros(WIDE, tmp_path / "single.safetensors", torch.float32),
        write_zeros(WIDE, tmp_path / "half.safetensors", torch.float16),
        write_zeros(WIDE, tmp_path / "half.ckpt", torch.float16),
    ]
    command = [sys.executable, "-c", MEASURE, v1, *paths]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for path, line in zip(paths, result.stdout.splitlines(), strict=True):
        peak, model = map(int, line.split())
        larger = max(model, path.stat().st_size)
        assert larger > 200e6
        assert peak < PEAK * larger, path.name
