"""Settings of diffusers folders: each obeyed, ignored or refused by name, as diffusers means it."""

import json
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import minisd
from minisd.checkpoints import folder_settings
from minisd.checkpoints.folder_settings import text_config, unet_config, vae_config
from minisd.checkpoints.folder_tokenizer import write_tokenizer
from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.known_settings import KnownSettings
from minisd.checkpoints.load import load, open_checkpoint
from minisd.checkpoints.write import convert
from minisd.tokenizer import Tokenizer
from tests.helpers.checkpoint_files import V1, V2, pipeline
from tests.helpers.reference_networks import randomise
from tests.helpers.side_by_side import relative_error

FLOAT32 = 1e-4  # largest error over the reference's spread
CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextConfig}
READERS = {"unet": unet_config, "vae": vae_config, "text_encoder": text_config}
TABLES = folder_settings.PART_TABLES
OTHERS = (folder_settings.INDEX_TABLE, folder_settings.OUR_TABLE)


# ---- the tables ------------------------------------------------------------------------------


def parameters(part: str) -> dict[str, Parameter]:
    every = signature(CLASSES[part].__init__).parameters
    return {name: each for name, each in every.items() if name != "self"}


@pytest.mark.parametrize("part", TABLES)
def test_the_tables_know_every_setting_of_the_reference(part):
    table = TABLES[part]
    known = {*table.obeyed, *table.fixed, *table.ignored}
    assert set(parameters(part)) <= known
    assert len(known) == len(table.obeyed) + len(table.fixed) + len(table.ignored)


@pytest.mark.parametrize("part", TABLES)
def test_an_absent_setting_has_the_references_default(part):
    table, theirs = TABLES[part], parameters(part)
    ours = table.obeyed | {name: absent for name, (_, absent) in table.fixed.items()}
    for name in ours.keys() & theirs.keys():
        expected = theirs[name].default
        expected = list(expected) if isinstance(expected, tuple) else expected
        assert ours[name] == expected, name


def test_settings_that_are_all_absent_give_the_references_networks():
    theirs = UNet2DConditionModel(cross_attention_dim=64, block_out_channels=[32] * 4)
    ours = unet_config({"cross_attention_dim": 64, "block_out_channels": [32] * 4})
    assert (ours.in_channels, ours.out_channels) == (4, 4)
    assert ours.attention == (True, True, True, False)
    assert ours.res_blocks == theirs.config.layers_per_block
    assert ours.heads == theirs.down_blocks[0].attentions[0].num_attention_heads
    assert ours.linear_projection == theirs.down_blocks[0].attentions[0].use_linear_projection
    assert vae_config({}).channels == AutoencoderKL().config.block_out_channels
    assert vae_config({}).scale == AutoencoderKL().config.scaling_factor
    text = CLIPTextConfig()
    assert text_config({}).mlp_width == (None if text.intermediate_size == 4 * 512 else 0)
    assert text_config({}).activation == text.hidden_act
    assert text_config({}).heads == text.num_attention_heads


@pytest.mark.parametrize("table", [*TABLES.values(), *OTHERS])
def test_an_unknown_setting_is_refused_by_name(table: KnownSettings):
    with pytest.raises(ValueError, match=r"the unknown setting shape_of_water = 3 in"):
        table.read({"shape_of_water": 3})
    table.read({"shape_of_water": None, "_note": 3})


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part in TABLES for name in TABLES[part].fixed]
)
def test_another_value_of_what_is_fixed_is_refused_by_name(part, name):
    where = f"in the config.json of the {part}"
    with pytest.raises(ValueError, match=rf"has {name} = 'odd' {where}: minisd knows only "):
        READERS[part]({name: "odd"})


ALIKE = {
    "unet": [
        {"transformer_layers_per_block": [1, 1]},
        {"transformer_layers_per_block": [[1, 1], [1, 1]]},
        {"layers_per_block": [2, 2]},
        {"cross_attention_dim": [64, 64]},
        {"attention_head_dim": [8, 8]},
        {"only_cross_attention": [False, False]},
        {"act_fn": "swish"},
        {"upcast_attention": True},
        {"sample_size": [64, 64]},
        {"dropout": 0.0},
        {"norm_eps": 0.00001, "mid_block_scale_factor": 1.0},
    ],
    "vae": [
        {"act_fn": "swish"},
        {"shift_factor": 0},
        {"shift_factor": 0.0},
        {"force_upcast": False},
        {"sample_size": 17},
        {"layers_per_block": [1, 1]},
    ],
    "text_encoder": [
        {"projection_dim": 17, "eos_token_id": 2, "pad_token_id": 1, "torch_dtype": "float16"},
        {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip"},
    ],
}
BASE = {
    "unet": {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [32, 64],
        "cross_attention_dim": 64,
    },
    "vae": {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [32, 64],
    },
    "text_encoder": {},
}


@pytest.mark.parametrize(
    ("part", "n"), [(part, n) for part in ALIKE for n in range(len(ALIKE[part]))]
)
def test_settings_that_mean_the_same_otherwise_are_taken(part, n):
    base, read = BASE[part], READERS[part]
    assert read(base | ALIKE[part][n]) == read(base)


@pytest.mark.parametrize(
    ("part", "settings", "says"),
    [
        ("unet", {"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block = [1, 2]"),
        ("unet", {"cross_attention_dim": [64, 32]}, "cross_attention_dim = [64, 32]"),
        ("unet", {"layers_per_block": [2, 1]}, "layers_per_block = [2, 1]"),
        ("unet", {"attention_head_dim": [8, 8, 8]}, "[8, 8, 8] heads for levels of width (32, 64)"),
        ("unet", {"down_block_types": ["CrossAttnX", "DownBlock2D"]}, "the block 'CrossAttnX'"),
        ("unet", {"up_block_types": ["UpBlock2D"] * 2}, "up_block_types = ['UpBlock2D', 'Up"),
        ("unet", {"mid_block_type": None}, "mid_block_type = None in the config.json of the unet"),
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim = 256"),
        ("unet", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
        ("unet", {"_class_name": "UNet3DConditionModel"}, "_class_name = 'UNet3DConditionModel'"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "_class_name = 'AutoencoderTiny' in the co"),
        ("vae", {"shift_factor": 0.0609}, "shift_factor = 0.0609"),
        ("vae", {"down_block_types": ["DownEncoderBlock2D"]}, "down_block_types = ['DownEncoder"),
        ("vae", {"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "['AttnUpDecoderBlock2D', "),
        ("text_encoder", {"model_type": "t5"}, "model_type = 't5'"),
    ],
)
def test_what_no_network_here_has_is_refused_by_name(part, settings, says):
    with pytest.raises(ValueError) as caught:
        READERS[part](BASE[part] | settings)
    assert says in str(caught.value)


def test_a_whole_clips_config_is_read_for_its_text_half():
    text = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 37}
    assert text_config({"model_type": "clip", "text_config": text, "vision_config": {}}).width == 64


# ---- folders ---------------------------------------------------------------------------------


def change(folder: Path, file: str, **settings: object) -> Path:
    """Settings that are ... are taken away."""
    path = folder / file
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored = {name: value for name, value in (stored | settings).items() if value is not ...}
    path.write_text(json.dumps(stored), encoding="utf-8")
    return folder


@pytest.fixture
def v1(tmp_path) -> Path:
    pipeline(V1, tmp_path / "tokenizer").save_pretrained(tmp_path / "v1")
    return tmp_path / "v1"


def test_absent_sizes_are_the_references_and_said_where_they_do_not_fit(v1):
    change(v1, "unet/config.json", in_channels=..., out_channels=..., layers_per_block=...)
    change(v1, "vae/config.json", latent_channels=..., layers_per_block=..., norm_num_groups=...)
    change(v1, "text_encoder/config.json", vocab_size=..., max_position_embeddings=...)
    assert replace(open_checkpoint(v1).config, name="v1") == V1
    change(v1, "text_encoder/config.json", hidden_size=...)
    with pytest.raises(
        ValueError, match=r"settings are missing, .* default.*: .*hidden_size in text_encoder/"
    ):
        open_checkpoint(v1)


@pytest.mark.parametrize(
    ("version", "side", "size"),
    [("0.8.1", 4, 128), ("0.9.0", 4, 8), (..., 4, 8), ("0.6.0", 96, 192)],
)
def test_the_size_of_folders_before_diffusers_0_9_is_what_diffusers_makes_of_it(
    v1, version, side, size
):
    change(v1, "unet/config.json", _diffusers_version=version, sample_size=side)
    assert open_checkpoint(v1).config.size == size
    theirs = StableDiffusionPipeline.from_pretrained(v1, safety_checker=None)
    if version is not ...:
        assert theirs.unet.config.sample_size * theirs.vae_scale_factor == size


@pytest.mark.parametrize(
    ("file", "settings", "says"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPip"),
        ("model_index.json", {"_class_name": "LatentConsistencyModelPipeline"}, "LatentConsist"),
        ("model_index.json", {"controlnet": ["diffusers", "ControlNetModel"]}, " controlnet ="),
        ("minisd.json", {"cfg_scale": 3.0, "sampling": "best"}, "sampling = 'best'"),
        ("minisd.json", {"cfg_scale": "high"}, "cfg_scale = 'high'"),
        ("unet/config.json", {"sample_size": [64, 96]}, "sample_size = [64, 96]"),
        (
            "unet/config.json",
            {"down_block_types": 5},
            "down_block_types = 5 in the config.json of the unet",
        ),
    ],
)
def test_a_folder_of_something_else_is_refused_by_name(v1, file, settings, says):
    with pytest.raises(ValueError) as caught:
        open_checkpoint(change(v1, file, **settings))
    assert says in str(caught.value)
    assert "v1" in str(caught.value)


def test_absent_parts_of_the_index_are_no_matter(v1):
    change(v1, "model_index.json", image_encoder=[None, None], whatever=[None, None])
    open_checkpoint(v1)
    (v1 / "model_index.json").unlink()
    open_checkpoint(v1)


# ---- the tiny pipelines that diffusers' and transformers' own tests are made of -----------------

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "vocab_size": 1000,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def tiny_pipeline(folder: Path, **text: object) -> StableDiffusionPipeline:
    """By the settings of get_dummy_components (diffusers tests/pipelines/stable_diffusion)."""
    write_tokenizer(folder / "tokenizer", Tokenizer.train(["a cat", "a dog", "two cats"], 520))
    down = ("DownBlock2D", "CrossAttnDownBlock2D")
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=2,
        sample_size=32,
        down_block_types=down,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
    )
    vae = AutoencoderKL(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    networks = {
        "unet": unet,
        "vae": vae,
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TINY_TEXT | text)),
    }
    for seed, network in enumerate(networks.values()):
        randomise(network, gain=1.0, seed=seed)
    pipe = StableDiffusionPipeline(
        **networks,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=DDIMScheduler(**SD, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / "tiny")
    return pipe


def drawn(pipe: StableDiffusionPipeline, latent: Tensor) -> Tensor:
    return pipe(
        "a cat", num_inference_steps=3, guidance_scale=3.0, latents=latent, output_type="latent"
    ).images


def latent_of(source: Path, latent: Tensor) -> Tensor:
    sd = minisd.load(source)
    side = latent.shape[2] * sd.config.vae.factor
    options = {"steps": 3, "cfg_scale": 3.0, "latent": latent, "width": side, "height": side}
    *_, last = sd.txt2img_steps("a cat", **options)
    return last.x


@pytest.mark.parametrize("mlp", [37, 128, 200])
def test_diffusers_tiny_pipelines_draw_their_latent_in_every_layout(tmp_path, mlp):
    pipe = tiny_pipeline(tmp_path, intermediate_size=mlp)
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    theirs = drawn(pipe, latent)
    assert relative_error(latent_of(tmp_path / "tiny", latent), theirs) < FLOAT32
    convert(tmp_path / "tiny", tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "ours")
    convert(tmp_path / "b.safetensors", tmp_path / "again")
    for name in ("a.safetensors", "b.safetensors", "again"):
        assert torch.equal(latent_of(tmp_path / name, latent), latent_of(tmp_path / "tiny", latent))
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "again", safety_checker=None)
    again.set_progress_bar_config(disable=True)
    assert relative_error(drawn(again, latent), theirs) < FLOAT32


@pytest.mark.parametrize("family", [V1, V2], ids=["v1", "v2"])
def test_the_text_mlps_width_is_read_off_a_single_file(tmp_path, family):
    config = replace(family, text=replace(family.text, mlp_width=37))
    pipe = pipeline(family, tmp_path / "tokenizer")
    text = pipe.text_encoder.config
    text.intermediate_size = 37
    pipe.text_encoder = CLIPTextModel(text)
    randomise(pipe.text_encoder, gain=1.0, seed=2)
    pipe.save_pretrained(tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "a.safetensors")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "a.safetensors"), bare)
    opened = open_checkpoint(bare, prediction="eps")
    assert replace(opened.config, name=family.name) == config
    parts, tokens = load(bare, prediction="eps"), torch.randint(0, 49408, (2, 77))
    with torch.no_grad():
        theirs = pipe.text_encoder(tokens).last_hidden_state
        assert relative_error(parts.text_encoder(tokens), theirs) < FLOAT32


# ---- the family ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "text"),
    [(V1, "cond_stage_model.transformer.text_model."), (V2, "cond_stage_model.model.")],
    ids=["v1", "v2"],
)
@pytest.mark.parametrize("linear", [True, False])
def test_the_text_transformer_decides_the_family_and_no_flag_of_the_unet(
    tmp_path, family, text, linear
):
    unet = replace(family.unet, channels=(64, 128), linear_projection=linear)
    config = replace(family, unet=unet)
    pipe = pipeline(config, tmp_path / "tokenizer")
    pipe.save_pretrained(tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "a.safetensors")
    content = load_file(tmp_path / "a.safetensors")
    texts = [key for key in content if key.startswith("cond_stage_model.")]
    assert texts
    assert all(key.startswith(text) for key in texts)
    assert ("cond_stage_model.model.ln_final.weight" in content) == (family is V2)
    projection = content["model.diffusion_model.middle_block.1.proj_in.weight"]
    assert projection.ndim == (2 if linear else 4)
    convert(tmp_path / "a.safetensors", tmp_path / "back")
    whole, again = open_checkpoint(tmp_path / "folder"), open_checkpoint(tmp_path / "back")
    assert replace(again.config, name="folder") == whole.config
    for part, tensors in whole.parts.items():
        assert all(torch.equal(tensors[key], again.parts[part][key]) for key in tensors)
    save_file(content, tmp_path / "bare.safetensors")  # by another program, without our header
    bare = open_checkpoint(tmp_path / "bare.safetensors", prediction="eps")
    assert bare.config.text == whole.config.text
    assert bare.config.open_clip_text == whole.config.open_clip_text


# ---- our own models in a folder ----------------------------------------------------------------


def test_the_mini_drawn_from_a_converted_folder_is_the_mini(tmp_path):
    convert("mini", tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "a.safetensors")
    assert "minisd" in read_metadata(tmp_path / "a.safetensors")
    mini = minisd.load("mini")
    for path in (tmp_path / "folder", tmp_path / "a.safetensors"):
        again = minisd.load(path)
        for name in ("cfg_scale", "sampler", "size"):
            assert getattr(again.config, name) == getattr(mini.config, name)
        ours, theirs = (each.txt2img("a cat", steps=3, seed=1) for each in (again, mini))
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "plms"])
def test_a_models_own_sampler_survives_a_folder(tmp_path, sampler):
    from minisd.checkpoints.write import save

    parts = load("mini")
    parts = replace(parts, config=replace(parts.config, sampler=sampler))
    save(tmp_path / "a.safetensors", parts)
    convert(tmp_path / "a.safetensors", tmp_path / "folder")
    assert open_checkpoint(tmp_path / "folder").config.sampler == sampler
    assert open_checkpoint(tmp_path / "folder").config.cfg_scale == parts.config.cfg_scale


def test_an_official_models_folder_holds_diffusers_files_alone(v1, tmp_path):
    convert(v1, tmp_path / "again")
    assert not (tmp_path / "again" / "minisd.json").exists()
