"""LoRA's settings, next to the weights or in the header: what PEFT makes of them.

The reference is PEFT itself: it writes the folder, reads it again and merges it into the weights
of diffusers' U-Net or transformers' text encoder. Ours must then compute the same.
"""

import copy
import dataclasses
import json
import math

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from minisd.adapters.lora import lora, read_lora
from minisd.checkpoints.lora_settings import ADAPTER_CONFIG, LORA_CONFIG
from tests.helpers.pipeline_pairs import NO_FILTER, both_pipelines
from tests.helpers.side_by_side import relative_error
from tests.helpers.tiny_models import V1, V2

SAME = 1e-5  # float32, largest error over the reference's spread
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = LAYER.replace("attn1", "attn2")


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    return both_pipelines(V1, StableDiffusionPipeline, tmp_path_factory.mktemp("v1"), **NO_FILTER)


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    return both_pipelines(V2, StableDiffusionPipeline, tmp_path_factory.mktemp("v2"), **NO_FILTER)


def fill_with_noise(model):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.3 * noise / parameter[0].numel() ** 0.5


def written_by_peft(network, folder, safe=True, **settings):
    """A folder that PEFT wrote, and the network with what PEFT reads there merged into it."""
    model = peft.get_peft_model(copy.deepcopy(network), peft.LoraConfig(**settings))
    fill_with_noise(model)
    model.save_pretrained(folder, safe_serialization=safe)
    return merged(network, folder)


def merged(network, folder):
    return peft.PeftModel.from_pretrained(copy.deepcopy(network), folder).merge_and_unload()


def inputs(config):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 77, config.unet.context_dim, generator=generator)
    return x, torch.tensor([500, 20]), context


@torch.no_grad()
def unet_error(sd, theirs, path, scale=1.0):
    """How far our U-Net with the LoRA is from theirs, and from ours without it."""
    given = inputs(sd.config)
    plain = sd.unet(*given)
    with lora(sd, path, scale):
        found = sd.unet(*given)
    assert torch.equal(sd.unet(*given), plain)
    return relative_error(found, theirs(*given).sample), relative_error(found, plain)


SETTINGS = {
    "alpha": {"r": 4, "lora_alpha": 16},
    "alpha-is-rank": {"r": 4, "lora_alpha": 4},
    "the-defaults": {},
    "rslora": {"r": 4, "lora_alpha": 16, "use_rslora": True},
    "alpha-pattern": {"r": 4, "alpha_pattern": {"attn2.to_q": 32, "attn1.*": 2.5}},
    "the-first-pattern-counts": {"r": 4, "alpha_pattern": {"to_q": 2, "attn2.to_q": 32}},
    "a-whole-name": {"r": 4, "alpha_pattern": {f"^{LAYER}": 32, "tn1.to_k": 99, OTHER: 64}},
    "rank-pattern": {"r": 4, "lora_alpha": 6, "rank_pattern": {"attn2.to_q": 7, "attn1.to_.": 3}},
    "both-patterns-rslora": {
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {"to_q": 3},
        "alpha_pattern": {"attn1.to_q": 12, "to_v": 0},
    },
    "convolutions": {"r": 4, "lora_alpha": 6, "target_modules": ["conv1", "to_q", "proj_in"]},
    "regex-of-targets": {"r": 4, "target_modules": r".*attn\d\.to_[qk]"},
    "excluded": {"r": 4, "exclude_modules": ["attn2.to_q"], "lora_alpha": 1},
    "one-level": {"r": 4, "layers_to_transform": [0], "layers_pattern": "down_blocks"},
    "gaussian": {"r": 4, "init_lora_weights": "gaussian", "lora_dropout": 0.5},
    "fan-in": {"r": 4, "fan_in_fan_out": True, "lora_alpha": 2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_peft_folder_is_what_peft_makes_of_it(v1, tmp_path, settings):
    check_folder(v1, tmp_path, settings)


@pytest.mark.parametrize("name", ["alpha", "both-patterns-rslora", "convolutions"])
def test_a_peft_folder_for_v2(v2, tmp_path, name):
    check_folder(v2, tmp_path, SETTINGS[name])


def check_folder(pair_of, tmp_path, settings):
    ours, theirs = pair_of
    settings = {"target_modules": ATTENTION} | settings
    expected = written_by_peft(theirs.unet, tmp_path, **settings)
    error, change = unet_error(ours, expected, tmp_path)
    assert error < SAME
    assert change > 100 * SAME
    assert unet_error(ours, expected, tmp_path / "adapter_model.safetensors")[0] < SAME


@pytest.mark.parametrize(("safe", "scale"), [(True, 0.5), (False, -1.0)])
def test_a_folder_of_pickles_and_other_scales(v1, tmp_path, safe, scale):
    ours, theirs = v1
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ATTENTION}
    written_by_peft(theirs.unet, tmp_path, safe, **settings)
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    again = tmp_path / "again"
    again.mkdir()
    (again / ADAPTER_CONFIG).write_text(
        json.dumps(config | {"lora_alpha": 16 * scale}), encoding="utf-8"
    )
    for file in tmp_path.glob("adapter_model.*"):
        (again / file.name).write_bytes(file.read_bytes())
    assert unet_error(ours, merged(theirs.unet, again), tmp_path, scale)[0] < SAME


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_a_text_encoders_folder(request, tmp_path, family):
    ours, theirs = request.getfixturevalue(family)
    settings = {"r": 3, "lora_alpha": 9, "use_rslora": True, "target_modules": ["q_proj", "fc1"]}
    settings |= {"alpha_pattern": {"layers.0.self_attn.q_proj": 5, r"encoder.layers.1.mlp.fc1": 7}}
    expected = written_by_peft(theirs.text_encoder, tmp_path, **settings)
    tokens = ours.tokenizer(["a cat"])
    plain = ours.text_encoder(tokens)
    with lora(ours, tmp_path):
        found = ours.text_encoder(tokens)
    assert relative_error(found, expected(tokens).last_hidden_state) < SAME
    assert relative_error(found, plain) > 100 * SAME


def test_the_same_settings_in_the_header(v1, tmp_path):
    """diffusers writes them there, each with its part in front, or bare for the U-Net alone."""
    ours, theirs = v1
    settings = {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ATTENTION}
    settings |= {"rank_pattern": {"attn2.to_q": 2}, "alpha_pattern": {"attn1.to_.": 3}}
    expected = written_by_peft(theirs.unet, tmp_path / "peft", **settings)
    stored = json.loads((tmp_path / "peft" / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    state = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    bare = {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}
    for prefix in ("unet.", ""):
        header = {"lora_adapter_metadata": json.dumps({prefix + k: v for k, v in stored.items()})}
        path = tmp_path / f"{prefix}safetensors"
        save_file({prefix + key: tensor for key, tensor in bare.items()}, path, header)
        assert unet_error(ours, expected, path)[0] < SAME
        folder = tmp_path / f"both-{prefix}"
        folder.mkdir()
        named = folder / "pytorch_lora_weights.safetensors"
        named.write_bytes(path.read_bytes())
        (folder / ADAPTER_CONFIG).write_text(json.dumps(stored), encoding="utf-8")
        assert unet_error(ours, expected, folder)[0] < SAME
        (folder / ADAPTER_CONFIG).write_text(
            json.dumps(stored | {"lora_alpha": 7}), encoding="utf-8"
        )
        with pytest.raises(ValueError, match="has two alphas, 12 and 14: keep the right one"):
            lora(ours, folder)


# ---- what is refused -------------------------------------------------------------------------


def thin(rank=4, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, width, generator=generator) / width**0.5
    return down, 0.3 * torch.randn(width, rank, generator=generator)


def peft_file(folder, settings, name="adapter_model.safetensors", layer=LAYER, more=()):
    folder.mkdir(exist_ok=True)
    down, up = thin()
    state = {f"base_model.model.{layer}.lora_A.weight": down}
    state |= {f"base_model.model.{layer}.lora_B.weight": up}
    save_file(state | dict(more), folder / name)
    if settings is not None:
        (folder / ADAPTER_CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    return folder / name


GOOD = {"peft_type": "LORA", "r": 4, "lora_alpha": 6}
BAD = {
    "peft_type": "LOHA",
    "bias": "all",
    "lora_bias": True,
    "use_dora": True,
    "use_qalora": True,
    "modules_to_save": ["conv_in"],
    "target_parameters": ["x"],
    "trainable_token_indices": [1],
    "layer_replication": [[0, 1]],
    "alora_invocation_tokens": [1],
    "megatron_config": {"a": 1},
    "monteclora_config": {"num_samples": 8},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1},
    "use_bdlora": {"a": 1},
    "a_setting_of_the_future": 1,
    "r": 5,
    "lora_alpha": "16",
    "use_rslora": "yes",
    "rank_pattern": {"to_q": 0},
    "alpha_pattern": {"to_q(": 1},
    "target_modules": ["to_k"],
    "exclude_modules": r".*to_q",
}
SENSELESS = [
    ("init_lora_weights", odd)
    for odd in ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "another")
]
SENSELESS += [("r", 0), ("r", 4.0), ("r", True), ("lora_alpha", math.inf), ("lora_alpha", None)]
SENSELESS += [("alpha_pattern", [1]), ("rank_pattern", {"to_q": 9}), ("target_modules", [1])]
SENSELESS += [("target_modules", r".*to_k"), ("bias", "lora_only"), ("peft_type", "IA3")]


@pytest.mark.parametrize(("name", "value"), [*BAD.items(), *SENSELESS])
def test_a_setting_that_changes_more_is_refused_by_name(v1, tmp_path, name, value):
    ours, _ = v1
    lora(ours, peft_file(tmp_path / "good", GOOD)).remove()
    path = peft_file(tmp_path / "bad", GOOD | {name: value})
    said = {"r": "rank|has r", "rank_pattern": "rank"}.get(name, name)
    with pytest.raises(ValueError, match=rf"adapter_model\.safetensors.*({said})") as told:
        lora(ours, path)
    assert "\n" not in str(told.value)
    header = {
        "lora_adapter_metadata": json.dumps(
            {f"unet.{k}": v for k, v in (GOOD | {name: value}).items()}
        )
    }
    save_file(load_file(path), tmp_path / "header.safetensors", header)
    with pytest.raises(ValueError, match=rf"header\.safetensors.*({said})"):
        lora(ours, tmp_path / "header.safetensors")


IGNORED = {
    "layers_to_transform": [0],
    "layers_pattern": "down_blocks",
    "fan_in_fan_out": True,
    "lora_dropout": 0.7,
    "base_model_name_or_path": "somewhere",
    "_a_note": 1,
    "a_setting_of_the_future": None,
}


@pytest.mark.parametrize(("name", "value"), IGNORED.items())
def test_a_setting_that_cannot_matter_is_ignored(v1, tmp_path, name, value):
    ours, _ = v1
    found = read_lora(peft_file(tmp_path, GOOD | {name: value}), ours.config)
    assert [change.alpha for change in found.values()] == [6.0]


def test_no_field_of_peft_is_missed_and_absent_ones_have_pefts_defaults():
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    known = {**LORA_CONFIG.obeyed, **LORA_CONFIG.fixed, **LORA_CONFIG.ignored}
    assert fields <= known.keys()
    defaults = peft.LoraConfig().to_dict()
    for name, value in LORA_CONFIG.obeyed.items():
        assert value == defaults[name], name
    for name, (allowed, absent) in LORA_CONFIG.fixed.items():
        assert absent == defaults[name] and absent in allowed, name
    LORA_CONFIG.read(json.loads(json.dumps(defaults)))


def test_absent_settings_have_pefts_defaults_in_a_file(v1, tmp_path):
    ours, theirs = v1
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["to_q"]}
    written_by_peft(theirs.unet, tmp_path, **settings)
    (tmp_path / ADAPTER_CONFIG).write_text(
        json.dumps({"peft_type": "LORA", "r": 4}), encoding="utf-8"
    )
    found = read_lora(tmp_path, ours.config)
    assert {change.alpha for change in found.values()} == {8.0}  # LoraConfig.lora_alpha
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
    with pytest.raises(ValueError, match="has rank 4, but its settings say 8"):
        lora(ours, tmp_path)


def test_bias_tensors_are_refused_by_the_settings_name(v1, tmp_path):
    ours, theirs = v1
    written_by_peft(theirs.unet, tmp_path, r=4, bias="all", target_modules=["to_q"])
    assert any(key.endswith(".bias") for key in load_file(tmp_path / "adapter_model.safetensors"))
    with pytest.raises(ValueError, match="bias"):
        lora(ours, tmp_path)


def test_whose_settings_they_are(v1, tmp_path):
    ours, _ = v1
    strange = peft_file(tmp_path, GOOD, "cat.safetensors")
    with pytest.raises(ValueError, match=r"lies next to an adapter_config\.json that may desc"):
        lora(ours, strange)
    down, up = thin()
    stem = f"lora_unet_{LAYER.replace('.', '_')}"
    kohya = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    save_file(kohya | {f"{stem}.alpha": torch.tensor(2.0)}, tmp_path / "kohya.safetensors")
    (change,) = read_lora(tmp_path / "kohya.safetensors", ours.config).values()
    assert change.alpha == 2.0
    alone = peft_file(tmp_path / "alone", None)
    (change,) = read_lora(alone, ours.config).values()
    assert change.alpha == 4.0
    with pytest.raises(ValueError, match="must hold one file named adapter_model or pytorch_lora"):
        lora(ours, tmp_path)
    peft_file(tmp_path / "two", GOOD)
    peft_file(tmp_path / "two", GOOD, "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="must hold one file named adapter_model or pytorch_lora"):
        lora(ours, tmp_path / "two")


@pytest.mark.parametrize("text", ["{", "[]", '"a"', json.dumps({"text_encoder_2.r": 4})])
def test_damaged_settings_are_refused(v1, tmp_path, text):
    ours, _ = v1
    path = peft_file(tmp_path, GOOD)
    save_file(load_file(path), tmp_path / "header.safetensors", {"lora_adapter_metadata": text})
    (tmp_path / ADAPTER_CONFIG).unlink()
    with pytest.raises(ValueError, match=r"header\.safetensors has .*(damaged|text_encoder_2)"):
        lora(ours, tmp_path / "header.safetensors")
    if "_2" not in text:
        (tmp_path / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"adapter_config\.json"):
            lora(ours, path)


# ---- kohya's formula -------------------------------------------------------------------------


def kohya_state(layer=LAYER, alpha=None, rank=4, seed=0):
    stem = f"lora_unet_{layer.replace('.', '_')}"
    down, up = thin(rank, seed=seed)
    state = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    return state if alpha is None else state | {f"{stem}.alpha": alpha}


ALPHAS = {
    "none": (None, 4.0),
    "scalar": (torch.tensor(2.0), 2.0),
    "one": (torch.tensor([2.0]), 2.0),
    "matrix": (torch.tensor([[2.0]]), 2.0),
    "half": (torch.tensor(0.1).half(), torch.tensor(0.1).half().item()),
    "bfloat16": (torch.tensor(0.1).bfloat16(), torch.tensor(0.1).bfloat16().item()),
    "integer": (torch.tensor(2), 2.0),
    "negative": (torch.tensor(-2.0), -2.0),
    "zero": (torch.tensor(0.0), 4.0),  # kohya's networks/lora.py: None or 0 is the rank
    "zero-half": (torch.tensor(0.0).half(), 4.0),
}


@pytest.mark.parametrize(("alpha", "expected"), ALPHAS.values(), ids=ALPHAS)
def test_kohyas_alpha(v1, tmp_path, alpha, expected):
    """W + alpha / rank * up @ down, merged here by hand."""
    ours, theirs = v1
    save_file(kohya_state(alpha=alpha), tmp_path / "k.safetensors")
    down, up = thin()
    network = copy.deepcopy(theirs.unet)
    network.get_submodule(LAYER).weight.data += expected / 4 * up @ down
    error, change = unet_error(ours, network, tmp_path / "k.safetensors")
    assert error < SAME and change > 100 * SAME


def test_zero_in_pefts_settings_is_zero(v1, tmp_path):
    ours, theirs = v1
    path = peft_file(tmp_path, GOOD | {"lora_alpha": 0, "target_modules": ["to_q"]})
    error, change = unet_error(ours, theirs.unet, path)
    assert error < SAME and change == 0


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (kohya_state(alpha=torch.tensor(math.nan)), "alpha that is not one finite number"),
        (kohya_state(alpha=torch.tensor(math.inf)), "alpha that is not one finite number"),
        (kohya_state(alpha=torch.ones(2)), "alpha that is not one finite number"),
        (kohya_state(alpha=torch.ones(0)), "alpha that is not one finite number"),
        (kohya_state(rank=0), "has rank 0, so its matrices are empty"),
        ({k: t.to(torch.int8) for k, t in kohya_state().items()}, "matrices of finite numbers"),
        (kohya_state() | {"a_stranger": torch.ones(1)}, "names that fit no layer"),
        (
            kohya_state(alpha=torch.tensor(1.0)) | {f"unet.{LAYER}.alpha": torch.tensor(2.0)},
            "changes a layer twice, as .*alpha and as .*alpha",
        ),
    ],
)
def test_a_damaged_lora_is_refused_in_one_sentence(v1, tmp_path, state, sentence):
    ours, _ = v1
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=sentence) as told:
        lora(ours, tmp_path / "bad.safetensors")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_must_be_finite(v1, tmp_path, scale):
    ours, _ = v1
    save_file(kohya_state(), tmp_path / "k.safetensors")
    with pytest.raises(ValueError, match=r"scale is .*: give a finite number"):
        lora(ours, tmp_path / "k.safetensors", scale)


BLOCK = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def named(stems, seed=1):
    down, up = thin(seed=seed)
    return {f"{stems}.lora_A.weight": down, f"{stems}.lora_B.weight": up}


@pytest.mark.parametrize(
    "more",
    [
        kohya_state(BLOCK, seed=1),
        named(f"unet.{LAYER}"),
        named(LAYER),
        named(f"base_model.model.{LAYER}"),
        named(f"unet.{BLOCK}"),
        {f"{LAYER.removesuffix('.to_q')}.processor.to_q_lora.down.weight": thin()[0]},
    ],
)
def test_one_layer_under_two_names_is_refused(v1, tmp_path, more):
    """A sum would be as likely as a copy for other programs: nobody can say which is meant."""
    ours, _ = v1
    for first, second in ((kohya_state(), more), (more, kohya_state())):
        save_file(first | second, tmp_path / "twice.safetensors")
        with pytest.raises(ValueError, match=r"changes a layer twice, as .* and as .*: keep one"):
            lora(ours, tmp_path / "twice.safetensors")


def test_one_text_layer_under_two_names_is_refused(v1, tmp_path):
    ours, _ = v1
    width = ours.config.text.width
    down, up = thin(width=width)
    stem = f"lora_te_{TEXT.replace('.', '_')}"
    first = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    for other in (f"text_encoder.{TEXT}", f"base_model.model.{TEXT.removeprefix('text_model.')}"):
        second = {f"{other}.lora_A.weight": down.clone(), f"{other}.lora_B.weight": up.clone()}
        save_file(second, tmp_path / "once.safetensors")
        lora(ours, tmp_path / "once.safetensors").remove()
        save_file(first | second, tmp_path / "twice.safetensors")
        with pytest.raises(ValueError, match="changes a layer twice"):
            lora(ours, tmp_path / "twice.safetensors")
