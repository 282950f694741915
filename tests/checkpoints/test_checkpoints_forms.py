"""Files as people really have them: two spellings, odd headers, leftovers, 8 bits, other VAEs."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

import minisd
from minisd.checkpoints.info import inspect_source
from minisd.checkpoints.load import load, load_vae, open_checkpoint
from minisd.checkpoints.vae_file import open_vae
from minisd.checkpoints.write import convert
from minisd.config import VAEConfig
from minisd.tokenizer import Tokenizer
from tests.helpers.checkpoint_files import V1, V2, filled, original, single_file
from tests.helpers.reference_networks import diffusers_vae
from tests.helpers.side_by_side import relative_error

FLOAT32 = 1e-4  # largest error over the reference's spread
HEADER = {"modelspec.predict_key": "epsilon"}
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."


@pytest.fixture(autouse=True, scope="module")
def one_vocabulary():
    """CLIP's, read once: it takes longer than the rest."""
    clip = cache(Tokenizer.clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokenizer, "clip", clip)
        yield


@pytest.fixture(scope="module")
def tensors() -> dict[str, dict[str, Tensor]]:
    named = {config.name: single_file(original(config)) for config in (V1, V2)}
    return {
        family: {key: t.contiguous() for key, t in found.items() if key != "alphas_cumprod"}
        for family, found in named.items()
    }


def write(path: Path, content: dict[str, Tensor], header: dict | None = HEADER) -> Path:
    if path.suffix == ".ckpt":
        torch.save(content, path)
    else:
        save_file(
            {key: tensor.contiguous().clone() for key, tensor in content.items()}, path, header
        )
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(ValueError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def assert_same(path: Path, other: Path, **options) -> None:
    ours, theirs = open_checkpoint(path, **options), open_checkpoint(other)
    assert replace(ours.config, name="") == replace(theirs.config, name="")
    for part, state in theirs.parts.items():
        assert ours.parts[part].keys() == state.keys()
        for key in state:
            assert torch.equal(ours.parts[part][key].float(), state[key].float()), key


@pytest.fixture(scope="module")
def v1(tensors, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("files") / "v1.safetensors", tensors["v1"])


# ---- one tensor under two names --------------------------------------------------------------


def without_text_model(key: str) -> str:
    return key.replace(f"{TEXT}text_model.", TEXT)


def diffusers_attention(key: str) -> str:
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    return spelt(key, names)


def old_attention(key: str) -> str:
    names = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"}
    return spelt(key, names)


def spelt(key: str, names: dict[str, str]) -> str:
    if ".attn_1." not in key:
        return key
    start, _, end = key.partition(".attn_1.")
    name, _, leaf = end.rpartition(".")
    return f"{start}.attn_1.{names.get(name, name)}.{leaf}"


SPELLINGS = [without_text_model, diffusers_attention, old_attention]


@pytest.mark.parametrize(
    ("spell", "suffix"), zip(SPELLINGS, (".safetensors", ".ckpt", ".safetensors"), strict=True)
)
def test_both_spellings_of_a_tensor_with_different_values_are_named(
    tensors, tmp_path, v1, spell, suffix
):
    whole = tensors["v1"]
    key = next(key for key in whole if spell(key) != key)
    other = {spell(key): whole[key] + 1}
    for content in (whole | other, other | whole):
        message = refusal(write(tmp_path / f"a{suffix}", content))
        assert f"holds {key} twice with different values" in message
        assert f"as {key}" in message
        assert f"as {spell(key)}" in message
    same = whole | {spell(key): whole[key].clone() for key in whole}
    assert_same(write(tmp_path / f"b{suffix}", same), v1, prediction="eps")


def test_a_name_twice_in_a_pickle_is_named(tensors, tmp_path):
    key = "model.diffusion_model.out.2.bias"
    outer, _, inner = key.rpartition(".")
    content = tensors["v1"] | {outer: {inner: tensors["v1"][key] + 1}}
    assert f"holds {key} twice" in refusal(write(tmp_path / "a.ckpt", content))


def test_two_text_transformers_are_named(tensors, tmp_path):
    v2 = {k: t for k, t in tensors["v2"].items() if k.startswith("cond_stage_model.model.")}
    message = refusal(write(tmp_path / "a.safetensors", tensors["v1"] | v2))
    assert "holds two text transformers" in message
    assert TEXT in message
    assert "cond_stage_model.model." in message


def test_shards_that_hold_one_name_with_different_values_are_named(v1, tmp_path):
    convert(v1, tmp_path / "folder")
    path = tmp_path / "folder" / "vae" / "diffusion_pytorch_model.safetensors"
    content = load_file(path)
    first = sorted(content)[0]
    files = {"a.safetensors": content, "b.safetensors": {first: content[first] + 1}}
    for name, shard in files.items():
        save_file(shard, path.with_name(name))
    weights = {"weight_map": dict.fromkeys(content, "a.safetensors") | {first: "b.safetensors"}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(weights), encoding="utf-8")
    path.unlink()
    message = refusal(tmp_path / "folder")
    assert f"holds vae.{first} twice" in message
    save_file({first: content[first]}, path.with_name("b.safetensors"))
    open_checkpoint(tmp_path / "folder")


# ---- headers ---------------------------------------------------------------------------------


def with_metadata(source: Path, path: Path, value: object) -> Path:
    content = source.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": value}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return path


def test_a_header_with_null_loads(v1, tmp_path):
    path = with_metadata(v1, tmp_path / "null.safetensors", None)
    assert_same(path, v1, prediction="eps")
    assert "SD v1" in str(inspect_source(path))


@pytest.mark.parametrize("value", [[], [1], "text", 3, {"a": 1}, {"a": None}, {"a": {"b": "c"}}])
def test_an_odd_header_is_a_sentence(v1, tmp_path, value):
    path = with_metadata(v1, tmp_path / "odd.safetensors", value)
    assert "has a header whose __metadata__ is not a list of names and texts" in refusal(path)
    with pytest.raises(ValueError, match="has a header whose __metadata__"):
        inspect_source(path)


def test_a_header_with_odd_entries_is_a_sentence(tmp_path):
    path = tmp_path / "a.safetensors"
    for text in (b'{"a":[]}', b'{"a": 3}', b'{"a": {}'):
        path.write_bytes(struct.pack("<Q", 8) + text + bytes(8))
        assert "has a damaged header" in refusal(path)


# ---- spellings and leftovers -----------------------------------------------------------------


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("flat", [True, False])
def test_other_spellings_are_the_same_model(tensors, tmp_path, v1, spell, flat):
    content = {
        spell(k): t.flatten(1) if flat and ".attn_1." in k and t.ndim == 4 else t
        for k, t in tensors["v1"].items()
    }
    assert content.keys() != tensors["v1"].keys()
    assert_same(write(tmp_path / "a.safetensors", content), v1)
    vae = {k.removeprefix(VAE): t for k, t in content.items() if k.startswith(VAE)}
    ours = load_vae(write(tmp_path / "vae.safetensors", vae), V1.vae).state_dict()
    whole = open_checkpoint(v1).parts["vae"]
    assert all(torch.equal(ours[key], whole[key]) for key in whole)


def test_projections_are_the_same_as_matrices_and_as_convolutions(tensors, tmp_path, v1):
    convert(v1, tmp_path / "folder")
    path = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    content = load_file(path)
    assert any("proj_in.weight" in key and t.ndim == 4 for key, t in content.items())
    save_file(
        {k: t.flatten(1) if "proj_" in k and t.ndim == 4 else t for k, t in content.items()}, path
    )
    assert_same(tmp_path / "folder", v1)


LEFTOVERS = [
    "embedding_manager.embedder.transformer.text_model.final_layer_norm.bias",
    "embedding_manager.initial_embeddings.sks",
    "ddim_sigmas",
    "ddim_alphas_prev",
    "ddim_sqrt_one_minus_alphas",
    "cond_stage_model.transformer.vision_model.post_layernorm.bias",
    "cond_stage_model.transformer.visual_projection.weight",
    "safety_checker.concept_embeds",
    "first_stage_model.loss.logvar",
    "log_sigmas",
    "global_step",
]


def test_leftovers_are_named_as_not_needed(tensors, tmp_path, v1):
    path = write(
        tmp_path / "a.safetensors", tensors["v1"] | dict.fromkeys(LEFTOVERS, torch.ones(2))
    )
    assert_same(path, v1)
    assert set(LEFTOVERS) <= set(open_checkpoint(path).not_needed)
    assert "None" not in inspect_source(path).not_needed


# ---- 8 bits ----------------------------------------------------------------------------------

FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2]
UNET = "model.diffusion_model."


@pytest.mark.parametrize("family", ["v1", "v2"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_plain_8_bit_weights_load(tensors, tmp_path, family, dtype):
    eight = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors[family].items()}
    whole = {k: t.float() if t.dtype == dtype else t for k, t in eight.items()}
    ours = write(tmp_path / "a.safetensors", eight)
    assert_same(ours, write(tmp_path / "b.safetensors", whole))
    convert(ours, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.safetensors")
    assert_same(tmp_path / "back.safetensors", ours)


@pytest.mark.parametrize(
    ("ending", "rows", "dtype"),
    [
        ("scale_weight", False, torch.float8_e4m3fn),
        ("weight_scale", True, torch.float8_e4m3fn),
        ("scale_weight", True, torch.float8_e5m2),
    ],
)
def test_scaled_8_bit_weights_are_multiplied_by_their_scale(
    tensors, tmp_path, v1, ending, rows, dtype
):
    scaled, expected = {f"{UNET}scaled_fp8": torch.zeros(0, dtype=dtype)}, {}
    for key, tensor in tensors["v1"].items():
        scaled[key] = expected[key] = tensor
        if key.startswith(UNET) and key.endswith("to_q.weight"):
            scale = tensor.abs().amax(dim=1) if rows else tensor.abs().max()
            eight = (tensor / scale.reshape(-1, 1)).to(dtype)
            layer = key.removesuffix("weight")
            scaled |= {key: eight, layer + ending: scale, f"{layer}scale_input": torch.ones(())}
            expected[key] = eight.float() * scale.reshape(-1, 1)  # as ComfyUI computes it
    assert len(scaled) > len(expected)
    assert_same(
        write(tmp_path / "a.safetensors", scaled), write(tmp_path / "b.safetensors", expected)
    )


def test_other_packings_are_named(tensors, tmp_path):
    key = f"{UNET}middle_block.1.proj_in."
    more = {f"{key}comfy_quant": torch.zeros(3, dtype=torch.uint8)}
    assert "quantised for ComfyUI" in refusal(
        write(tmp_path / "a.safetensors", tensors["v1"] | more)
    )
    more = {f"{key}weight_scale": torch.ones(3)}
    assert "has a wrong number of scales for" in refusal(
        write(tmp_path / "a.safetensors", tensors["v1"] | more)
    )


# ---- averaged weights alone ------------------------------------------------------------------


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_averaged_weights_alone_load_with_ema(tensors, tmp_path, family):
    both = write(tmp_path / "both.safetensors", tensors[family])
    alone = {key: t for key, t in tensors[family].items() if not key.startswith(UNET)}
    path = write(tmp_path / "alone.safetensors", alone)
    assert "holds only the averaged weights" in refusal(path)
    assert "ema=True" in refusal(path)
    assert inspect_source(path).layout == "original"
    ours, theirs = (open_checkpoint(each, ema=True) for each in (path, both))
    assert ours.parts["unet"].keys() == theirs.parts["unet"].keys()
    assert all(torch.equal(t, theirs.parts["unet"][k]) for k, t in ours.parts["unet"].items())
    odd = alone | {"model_ema.diffusion_modelinput_blocks10nonsense": torch.ones(1)}
    assert "SD's U-Net does not have" in refusal(write(tmp_path / "odd.safetensors", odd), ema=True)


# ---- without a VAE, with another -------------------------------------------------------------


def bare(tensors: dict[str, Tensor], path: Path) -> Path:
    return write(path, {k: t for k, t in tensors.items() if not k.startswith(VAE)})


def vae_folder(folder: Path, **settings: object) -> AutoencoderKL:
    vae = filled(diffusers_vae(V1.vae), 7)
    vae.register_to_config(**settings)
    vae.save_pretrained(folder)
    return vae


def as_original(folder: Path, path: Path) -> Path:
    """The same VAE as the original names it."""
    from minisd.checkpoints.names import flat_rows, to_official
    from minisd.checkpoints.names import vae_rows as rows

    state = open_vae(folder).state
    return write(path, to_official(state, flat_rows(rows(V1.vae)), "original"), None)


def test_a_model_without_vae_says_so_and_takes_one(tensors, tmp_path):
    path = bare(tensors["v1"], tmp_path / "bare.safetensors")
    message = refusal(path)
    assert "holds no vae (first_stage_model.…): give an autoencoder" in message
    assert "vae=FILE or --vae FILE" in message
    theirs = vae_folder(tmp_path / "repo" / "vae", scaling_factor=0.3)
    file = as_original(tmp_path / "repo" / "vae", tmp_path / "vae.safetensors")
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    inside = tmp_path / "repo" / "vae" / "diffusion_pytorch_model.safetensors"
    for vae, scale in {
        tmp_path / "repo": 0.3,
        tmp_path / "repo" / "vae": 0.3,
        inside: 0.3,
        file: VAEConfig.scale,
    }.items():
        sd = minisd.load(path, vae=vae)
        assert sd.config.vae.scale == sd.vae.config.scale == scale
        with torch.no_grad():
            assert relative_error(sd.decode(z), theirs.decode(z / scale).sample) < FLOAT32
            assert (
                relative_error(sd.encode(image), theirs.encode(image).latent_dist.mean * scale)
                < FLOAT32
            )


def test_another_vae_takes_the_place_of_the_models_own_in_every_layout(v1, tmp_path):
    vae_folder(tmp_path / "vae")
    expected = open_vae(tmp_path / "vae").state
    convert(v1, tmp_path / "folder")
    convert(v1, tmp_path / "ours.safetensors", "ours")
    for path in (v1, tmp_path / "folder", tmp_path / "ours.safetensors"):
        ours = load(path, vae=tmp_path / "vae").vae.state_dict()
        assert all(torch.equal(ours[key], expected[key]) for key in expected)
    (tmp_path / "folder" / "vae").rename(tmp_path / "folder" / "other")
    message = refusal(tmp_path / "folder")
    assert "it has no vae" in message
    assert "vae=FILE or --vae FILE" in message
    load(tmp_path / "folder", vae=tmp_path / "vae")
    convert(tmp_path / "folder", tmp_path / "whole", vae=tmp_path / "vae")
    assert open_checkpoint(tmp_path / "whole").parts["vae"].keys() == expected.keys()


def test_the_settings_next_to_a_vae_are_obeyed_or_refused(v1, tmp_path):
    folder = tmp_path / "vae"
    vae_folder(folder, scaling_factor=0.5)
    file, settings = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    stored = json.loads(settings.read_text(encoding="utf-8"))

    def with_settings(**changes: object) -> None:
        content = {k: v for k, v in (stored | changes).items() if v is not ...}
        settings.write_text(json.dumps(content), encoding="utf-8")

    for source in (file, folder):
        assert load_vae(source, V1.vae).config.scale == 0.5
    with_settings(scaling_factor=...)
    assert load_vae(file, replace(V1.vae, scale=0.9)).config.scale == VAEConfig.scale
    for changes, says in (
        ({"shift_factor": 0.1}, "shift_factor = 0.1"),
        ({"latents_mean": [0.1]}, "latents_mean = [0.1]"),
        ({"shape_of_water": 3}, "shape_of_water = 3"),
        ({"scaling_factor": 0}, "has scale = 0"),
        ({"scaling_factor": "much"}, "has scaling_factor = 'much'"),
        ({"norm_num_groups": 16}, "has norm_groups = 16 in its config.json"),
        ({"latent_channels": 8}, "has latent_channels = 8 in its config.json"),
    ):
        with_settings(**changes)
        for source in (file, folder):
            with pytest.raises(ValueError) as caught:
                load_vae(source, V1.vae)
            assert says in str(caught.value)
            assert source.name in str(caught.value)
    with_settings(_class_name="UNet2DConditionModel")  # another network's: of no concern
    assert load_vae(file, replace(V1.vae, scale=0.9)).config.scale == 0.9
    settings.unlink()
    assert load_vae(file, replace(V1.vae, scale=0.9)).config.scale == 0.9


def test_half_a_vae_is_named(tensors, tmp_path):
    half = {k: t for k, t in tensors["v1"].items() if not k.startswith(f"{VAE}encoder.")}
    message = refusal(write(tmp_path / "half.safetensors", half))
    assert "holds the decoder of a VAE, but not the encoder" in message
    vae = {k.removeprefix(VAE): t for k, t in half.items() if k.startswith(VAE)}
    path = write(tmp_path / "vae.safetensors", vae)
    for call in (open_vae, lambda path: load_vae(path, V1.vae)):
        with pytest.raises(ValueError, match=r"vae.safetensors is a VAE's decoder alone"):
            call(path)


@pytest.mark.parametrize("call", [open_vae, lambda path: load_vae(path, V1.vae)])
def test_what_is_no_vae_is_named(v1, tmp_path, call: Callable):
    with pytest.raises(ValueError, match=r"v1.safetensors is a Stable Diffusion model"):
        call(v1)
