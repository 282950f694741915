"""A ControlNet's settings, in config.json, in a .yaml or in our header, and difference files.

The reference is diffusers' ControlNetModel and its pipeline, on the same random weights. What the
original does with its .yaml (cldm/cldm.py) is the same computation under other names.
"""

import copy
import inspect
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from safetensors.torch import save_file

from minisd.adapters.controlnet import ControlNet, control
from minisd.checkpoints import names
from minisd.checkpoints.controlnet_file import controlnet_rows
from minisd.checkpoints.controlnet_settings import (
    CONTROLNET_JSON,
    CONTROLNET_YAML,
    DEFAULT_HINT,
    STAGE_YAML,
    HintSettings,
)
from minisd.tasks.depth2img import depth2img_steps
from minisd.tasks.img2img import img2img_steps
from minisd.tasks.inpaint import inpaint_steps
from tests.helpers.pipeline_pairs import NO_FILTER, eighth_pair, last, of_seeds
from tests.helpers.reference_networks import ddim_scheduler, ours, randomise
from tests.helpers.side_by_side import relative_error

SAME, END_TO_END = 1e-5, 1e-4  # float32, largest error over the reference's spread
SHUFFLE = "control_v11e_sd15_shuffle"
PROMPTS = ["a photograph of an astronaut", "two cats"]


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    return eighth_pair("v1", tmp_path_factory.mktemp("pair"))


def reference(theirs, **settings):
    """diffusers' ControlNet of the same sizes as its U-Net, every weight random."""
    usual = ControlNetModel.from_unet(theirs.unet).config
    network = ControlNetModel(**{k: v for k, v in usual.items() if k[0] != "_"} | settings)
    assert settings.items() <= dict(network.config).items()
    randomise(network, gain=0.5, seed=7)
    return network.eval()


def original_state(network, config):
    table = controlnet_rows(config)
    state = names.from_official(network.state_dict(), table, "diffusers")
    official = names.to_official(state, table, "original")
    return {f"control_model.{key}": tensor.contiguous() for key, tensor in official.items()}


def same_network(sd, theirs, settings=DEFAULT_HINT):
    own, table = ControlNet(sd.config.unet, settings), controlnet_rows(sd.config.unet, settings)
    own.load_state_dict(names.from_official(theirs.state_dict(), table, "diffusers"))
    return own.eval().requires_grad_(False)


def inputs(config):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 12, generator=generator)
    context = torch.randn(2, 77, config.unet.context_dim, generator=generator)
    return x, torch.tensor([500, 20]), context, torch.rand(2, 3, 64, 96, generator=generator)


@torch.no_grad()
def error(network, theirs, config):
    x, t, context, hint = inputs(config)
    found = network(x, t, context, hint)
    down, mid = theirs(x, t, context, controlnet_cond=hint, return_dict=False)
    assert [one.shape for one in found] == [one.shape for one in (*down, mid)]
    return max(relative_error(a, b) for a, b in zip(found, (*down, mid), strict=True))


def controlled_pipeline(sd, theirs, network):
    pipeline = StableDiffusionControlNetPipeline(
        vae=theirs.vae,
        text_encoder=theirs.text_encoder,
        tokenizer=theirs.tokenizer,
        unet=theirs.unet,
        scheduler=ddim_scheduler(sd.config),
        controlnet=network,
        **NO_FILTER,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ---- config.json -----------------------------------------------------------------------------

OBEYED = {
    "plain": {},
    "pools": {"global_pool_conditions": True},
    "bgr": {"controlnet_conditioning_channel_order": "bgr"},
    "widths": {"conditioning_embedding_out_channels": (8, 24, 16, 40)},
    "heads": {"attention_head_dim": 2},
    "all": {
        "global_pool_conditions": True,
        "controlnet_conditioning_channel_order": "bgr",
        "conditioning_embedding_out_channels": (8, 16, 16, 8),
    },
}


@pytest.mark.parametrize("settings", OBEYED.values(), ids=OBEYED)
def test_a_diffusers_folder_is_what_diffusers_makes_of_it(eighth, tmp_path, settings):
    sd, theirs = eighth
    network = reference(theirs, **settings)
    network.save_pretrained(tmp_path)
    loaded = ControlNet.load(tmp_path)
    assert error(loaded, network, sd.config) < SAME
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    if "attention_head_dim" in settings:
        with pytest.raises(ValueError, match=r"does not fit the U-Net: .* heads"):
            ControlNet.load(file, sd.config.unet)
        return
    assert error(ControlNet.load(file, sd.config.unet), network, sd.config) < SAME
    loaded.save(tmp_path / "own.safetensors")
    again = ControlNet.load(tmp_path / "own.safetensors")
    assert again.settings == loaded.settings and again.config == loaded.config
    assert error(again, network, sd.config) < 1e-2  # it was saved in half precision


def test_folders_of_pickles_of_half_precision_and_of_shards(v1, tmp_path):
    sd, theirs = v1
    network = reference(theirs, global_pool_conditions=True)
    for name, how in {
        "bin": {"safe_serialization": False},
        "variant": {"variant": "fp16"},
        "shards": {"max_shard_size": "200KB"},
    }.items():
        network.save_pretrained(tmp_path / name, **how)
        assert error(ControlNet.load(tmp_path / name), network, sd.config) < SAME


def test_no_parameter_of_diffusers_is_missed_and_absent_ones_have_its_defaults(v1, tmp_path):
    parameters = dict(inspect.signature(ControlNetModel.__init__).parameters)
    parameters.pop("self")
    known = {**CONTROLNET_JSON.obeyed, **CONTROLNET_JSON.fixed, **CONTROLNET_JSON.ignored}
    assert parameters.keys() == known.keys() - {"_class_name"}
    defaults = {name: one.default for name, one in parameters.items()}
    plain = json.loads(json.dumps(defaults))
    for name, value in CONTROLNET_JSON.obeyed.items():
        assert value == plain[name], name
    for name, (allowed, absent) in CONTROLNET_JSON.fixed.items():
        assert absent in allowed
        assert name == "_class_name" or absent == plain[name], name
    sd, theirs = v1
    network = reference(theirs)
    network.save_pretrained(tmp_path)
    for name in ("attention_head_dim", "norm_num_groups", "layers_per_block"):
        (tmp_path / "config.json").unlink()
        stored = {k: v for k, v in dict(network.config).items() if k != name}
        (tmp_path / "config.json").write_text(json.dumps(stored), encoding="utf-8")
        if name == "layers_per_block":  # diffusers' default is 2, which these tensors do not have
            with pytest.raises(ValueError, match="does not hold exactly the tensors"):
                ControlNet.load(tmp_path)
            continue
        known = {k: v for k, v in stored.items() if k[0] != "_"}
        with_default = ControlNetModel(**known)
        with_default.load_state_dict(network.state_dict())
        assert error(ControlNet.load(tmp_path), with_default.eval(), sd.config) < SAME


REFUSED = {
    "_class_name": "UNet2DConditionModel",
    "conditioning_channels": 1,
    "controlnet_conditioning_channel_order": "grb",
    "global_pool_conditions": "yes",
    "conditioning_embedding_out_channels": [],
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "mid_block_type": "UNetMidBlock2D",
    "only_cross_attention": True,
    "downsample_padding": 0,
    "mid_block_scale_factor": 2,
    "act_fn": "gelu",
    "norm_eps": 1e-6,
    "transformer_layers_per_block": 2,
    "encoder_hid_dim": 8,
    "encoder_hid_dim_type": "text_proj",
    "class_embed_type": "timestep",
    "num_class_embeds": 10,
    "addition_embed_type": "text_time",
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ["DownBlock3D", "DownBlock2D"],
    "a_setting_of_the_future": 1,
}


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_a_setting_that_means_another_network_is_refused_by_name(v1, tmp_path, name, value):
    sd, theirs = v1
    reference(theirs).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(stored | {name: value}), encoding="utf-8")
    said = {
        "controlnet_conditioning_channel_order": "channel_order = 'grb'",
        "global_pool_conditions": "global_pool_conditions = 'yes'",
        "down_block_types": "DownBlock3D",
    }
    for config in (None, sd.config.unet):
        with pytest.raises(ValueError, match=said.get(name, name)) as told:
            ControlNet.load(tmp_path, config)
        assert "\n" not in str(told.value)


ALIKE = {
    "act_fn": "swish",
    "transformer_layers_per_block": [1, 1],
    "only_cross_attention": [False, False],
    "upcast_attention": True,
    "_a_note": 1,
    "a_setting_of_the_future": None,
}


@pytest.mark.parametrize(("name", "value"), ALIKE.items())
def test_a_setting_that_means_the_same_is_taken(v1, tmp_path, name, value):
    sd, theirs = v1
    network = reference(theirs)
    network.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(stored | {name: value}), encoding="utf-8")
    assert error(ControlNet.load(tmp_path), network, sd.config) < SAME


def test_config_json_describes_diffusers_files_alone(v1, tmp_path):
    """An original file in the same folder has its settings in its own .yaml."""
    sd, theirs = v1
    network = reference(theirs)
    torch.save(original_state(network, sd.config.unet), tmp_path / "canny.pth")
    (tmp_path / "config.json").write_text('{"global_pool_conditions": true}', encoding="utf-8")
    assert error(ControlNet.load(tmp_path / "canny.pth", sd.config.unet), network, sd.config) < SAME


# ---- the original's .yaml --------------------------------------------------------------------


def yaml_of(config, **more):
    """As ControlNet v1.1's repository writes it next to a file."""
    unet = config.unet
    stage = {
        "image_size": 32,
        "in_channels": 4,
        "hint_channels": 3,
        "model_channels": unet.channels[0],
        "attention_resolutions": [1],
        "num_res_blocks": unet.res_blocks,
        "channel_mult": [width // unet.channels[0] for width in unet.channels],
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": unet.context_dim,
        "use_checkpoint": True,
        "legacy": False,
    }
    if unet.head_width:
        stage |= {"num_head_channels": unet.head_width, "use_linear_in_transformer": True}
    else:
        stage |= {"num_heads": unet.heads}
    params = {
        **{"linear_start": 0.00085, "linear_end": 0.0120, "timesteps": 1000, "channels": 4},
        **{"num_timesteps_cond": 1, "log_every_t": 200, "first_stage_key": "jpg"},
        **{"cond_stage_key": "txt", "control_key": "hint", "image_size": 64},
        **{"cond_stage_trainable": False, "conditioning_key": "crossattn", "use_ema": False},
        **{"monitor": "val/loss_simple_ema", "scale_factor": 0.18215, "only_mid_control": False},
        "control_stage_config": {"target": "cldm.cldm.ControlNet", "params": stage},
        "unet_config": {"target": "cldm.cldm.ControlledUnetModel", "params": {}},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {}},
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }
    for key, value in more.items():
        (stage if key in known_in_stage() else params)[key] = value
    return {"model": {"target": "cldm.cldm.ControlLDM", "params": params}}


def known_in_stage():
    return {**STAGE_YAML.obeyed, **STAGE_YAML.fixed, **STAGE_YAML.ignored}.keys() - {"image_size"}


@pytest.mark.parametrize("pools", [None, False, True])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_the_yaml_next_to_an_original_file(eighth, tmp_path, pools, ending):
    sd, theirs = eighth
    network = reference(theirs, global_pool_conditions=bool(pools))
    state = original_state(network, sd.config.unet)
    path = tmp_path / f"control{ending}"
    torch.save(state, path) if ending == ".pth" else save_file(state, path)
    more = {} if pools is None else {"global_average_pooling": pools}
    for suffix in (".yaml", ".yml"):
        path.with_suffix(suffix).write_text(
            yaml.safe_dump(yaml_of(sd.config, **more)), encoding="utf-8"
        )
        for config in (None, sd.config.unet):
            assert error(ControlNet.load(path, config), network, sd.config) < SAME
        path.with_suffix(suffix).unlink()


def test_a_comment_in_a_yaml_says_nothing(v1, tmp_path):
    sd, theirs = v1
    save_file(original_state(reference(theirs), sd.config.unet), tmp_path / "c.safetensors")
    text = yaml.safe_dump(yaml_of(sd.config))
    (tmp_path / "c.yaml").write_text(text + "\n# global_average_pooling: True\n", encoding="utf-8")
    loaded = ControlNet.load(tmp_path / "c.safetensors")
    assert loaded.settings == DEFAULT_HINT
    assert loaded.config == sd.config.unet


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"only_mid_control": True}, "only_mid_control = True"),
        ({"hint_channels": 4}, "hint_channels = 4"),
        ({"hint_channels": None}, "hint_channels = None"),
        ({"transformer_depth": 2}, "transformer_depth = 2"),
        ({"use_scale_shift_norm": True}, "use_scale_shift_norm = True"),
        ({"resblock_updown": True}, "resblock_updown"),
        ({"conv_resample": False}, "conv_resample"),
        ({"dims": 3}, "dims = 3"),
        ({"n_embed": 8}, "n_embed"),
        ({"use_spatial_transformer": False}, "use_spatial_transformer"),
        ({"disable_middle_self_attn": True}, "disable_middle_self_attn"),
        ({"num_heads": -1, "num_head_channels": -1}, "heads = -1 in the unet settings"),
        ({"num_heads": 2}, "does not fit the U-Net"),
        ({"model_channels": "wide"}, "model_channels = 'wide' in its"),
        ({"channel_mult": 2}, "a setting of the wrong type"),
        ({"global_average_pooling": "perhaps"}, "global_average_pooling = 'perhaps'"),
        ({"a_setting_of_the_future": 1}, "a_setting_of_the_future = 1"),
    ],
)
def test_a_yaml_of_another_network_is_refused_by_name(v1, tmp_path, more, sentence):
    sd, theirs = v1
    save_file(original_state(reference(theirs), sd.config.unet), tmp_path / "c.safetensors")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(yaml_of(sd.config, **more)), encoding="utf-8")
    with pytest.raises(ValueError, match=sentence) as told:
        ControlNet.load(tmp_path / "c.safetensors", sd.config.unet)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "model: 1", "model: {params: {a: 1}}", "\0"])
def test_a_damaged_yaml_is_refused(v1, tmp_path, text):
    sd, theirs = v1
    save_file(original_state(reference(theirs), sd.config.unet), tmp_path / "c.safetensors")
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"c\.safetensors (has|lacks|lies)") as told:
        ControlNet.load(tmp_path / "c.safetensors", sd.config.unet)
    assert "\n" not in str(told.value)


def test_settings_in_two_places_must_agree(v1, tmp_path):
    sd, theirs = v1
    reference(theirs, global_pool_conditions=True).save_pretrained(tmp_path)
    beside = tmp_path / "diffusion_pytorch_model.yaml"
    beside.write_text(
        yaml.safe_dump(yaml_of(sd.config, global_average_pooling=True)), encoding="utf-8"
    )
    assert ControlNet.load(tmp_path).settings.pools
    beside.write_text(yaml.safe_dump(yaml_of(sd.config)), encoding="utf-8")
    with pytest.raises(ValueError, match="has different settings in two places"):
        ControlNet.load(tmp_path)


def test_every_table_says_why():
    for table in (CONTROLNET_JSON, CONTROLNET_YAML, STAGE_YAML):
        assert all(len(reason) > 10 for reason in table.ignored.values())


# ---- the published network that pools --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pools"),
    [
        (f"{SHUFFLE}.safetensors", True),
        (f"{SHUFFLE}_fp16.safetensors", True),
        (f"{SHUFFLE}/diffusion_pytorch_model.safetensors", True),
        ("My-Shuffle.safetensors", True),
        ("control_v11p_sd15_canny.safetensors", False),
        ("unshuffled.safetensors", False),
        (f"{SHUFFLE}/canny.safetensors", False),
    ],
)
def test_without_settings_the_published_name_counts(v1, tmp_path, name, pools):
    sd, theirs = v1
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    save_file(original_state(reference(theirs), sd.config.unet), path)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loaded = ControlNet.load(path, sd.config.unet)
    assert loaded.settings.pools == pools
    assert [str(one.message).count("global_average_pooling") for one in seen] == [1] * pools
    path.with_suffix(".yaml").write_text(yaml.safe_dump(yaml_of(sd.config)), encoding="utf-8")
    assert not ControlNet.load(path, sd.config.unet).settings.pools


# ---- drawing with pooled corrections ---------------------------------------------------------


def drawn(sd, prompts=PROMPTS, **more):
    settings = {"steps": 3, "cfg_scale": 5.0, "seed": 3, "height": 64, "width": 96} | more
    return last(sd.txt2img_steps(prompts, **settings))


@pytest.mark.parametrize(
    ("scale", "cfg_scale", "count"), [(1.0, 5.0, 2), (0.5, 5.0, 1), (1.0, 1.0, 2)]
)
def test_pooled_corrections_lead_the_conditional_half(eighth, picture, scale, cfg_scale, count):
    sd, theirs = eighth
    network = reference(theirs, global_pool_conditions=True)
    pipeline = controlled_pipeline(sd, theirs, network)
    expected = pipeline(
        PROMPTS[:count],
        image=[picture] * count,
        num_inference_steps=3,
        guidance_scale=cfg_scale,
        controlnet_conditioning_scale=scale,
        generator=of_seeds(*range(3, 3 + count)),
        output_type="latent",
    ).images
    own = same_network(sd, network, HintSettings(pools=True))
    plain = drawn(sd, PROMPTS[:count], cfg_scale=cfg_scale)
    with control(sd, own, picture, scale):
        found = drawn(sd, PROMPTS[:count], cfg_scale=cfg_scale)
    assert relative_error(found, expected) < END_TO_END
    assert relative_error(found, plain) > 100 * END_TO_END
    assert torch.equal(drawn(sd, PROMPTS[:count], cfg_scale=cfg_scale), plain)


def pooled(sd):
    own = ControlNet(sd.config.unet, HintSettings(pools=True))
    randomise(own, gain=0.5, seed=7)
    return own.eval()


def test_without_a_conditional_half_pooled_corrections_do_nothing(v1, picture):
    sd, _ = v1
    with control(sd, pooled(sd), picture):
        led = drawn(sd, cfg_scale=0.0)
    assert torch.equal(led, drawn(sd, cfg_scale=0.0))


def test_two_controlnets_one_of_them_pooled(v1, picture):
    """Each treats the halves in its own way, in either order."""
    sd, _ = v1
    other = ControlNet(sd.config.unet)
    randomise(other, gain=0.5, seed=8)
    found = []
    for order in ((pooled(sd), other), (other, pooled(sd))):
        handles = [control(sd, network, picture) for network in order]
        found.append(drawn(sd))
        for handle in handles:
            handle.remove()
    assert relative_error(*found) < END_TO_END


def with_channels(sd, channels):
    """The model with a U-Net that sees more than the latent."""
    config = replace(sd.config, unet=replace(sd.config.unet, in_channels=channels))
    network = ours("unet", config)
    randomise(network, gain=1.0, seed=0)
    return type(sd)(config, sd.tokenizer, sd.text_encoder, network, sd.vae)


@pytest.mark.parametrize("task", ["txt2img", "img2img", "inpaint", "depth2img"])
def test_every_task_tells_the_halves_apart(v1, picture, task):
    sd, _ = v1
    sd = {"inpaint": with_channels(sd, 9), "depth2img": with_channels(sd, 5)}.get(task, sd)
    settings = {"steps": 2, "cfg_scale": 5.0, "seed": 3}
    walks = {
        "txt2img": lambda: sd.txt2img_steps(PROMPTS, **settings, height=64, width=96),
        "img2img": lambda: img2img_steps(sd, PROMPTS, picture, **settings),
        "inpaint": lambda: inpaint_steps(sd, PROMPTS, picture, picture.convert("L"), **settings),
        "depth2img": lambda: depth2img_steps(
            sd, PROMPTS, picture, depth=picture.convert("L"), **settings
        ),
    }
    own = ControlNet(replace(sd.config.unet, in_channels=4), HintSettings(pools=True))
    randomise(own, gain=0.5, seed=7)
    plain = next(iter(walks[task]())).prediction
    with control(sd, own.eval(), picture):
        led = next(iter(walks[task]())).prediction
    assert relative_error(led.eps_uncond, plain.eps_uncond) < SAME
    assert relative_error(led.eps_cond, plain.eps_cond) > 100 * SAME


# ---- difference files ------------------------------------------------------------------------


def difference_state(full, unet_state):
    """As kohya's script writes it: what the U-Net has as well is subtracted, the rest as it is."""
    difference = {}
    for key, tensor in full.items():
        name = key.removeprefix("control_model.")
        difference[key] = tensor - unet_state[name] if name in unet_state else tensor
    return difference | {"difference": torch.tensor(1.0)}


@pytest.fixture(params=["v1", "v2"])
def difference(request, tmp_path_factory, tmp_path):
    sd, theirs = eighth_pair(request.param, tmp_path_factory.mktemp("pair"))
    full = original_state(reference(theirs), sd.config.unet)
    unet = names.to_official(
        sd.unet.state_dict(), names.flat_rows(names.unet_rows(sd.config.unet)), "original"
    )
    save_file(full, tmp_path / "full.safetensors")
    save_file(difference_state(full, unet), tmp_path / "diff.safetensors")
    torch.save({"state_dict": difference_state(full, unet)}, tmp_path / "diff.pth")
    return sd, tmp_path


def test_a_difference_file_is_the_full_one_after_adding_the_unet(difference, picture):
    sd, folder = difference
    plain, before = drawn(sd), copy.deepcopy(sd.unet.state_dict())
    with control(sd, ControlNet.load(folder / "full.safetensors", sd.config.unet), picture):
        expected = drawn(sd)
    for name in ("diff.safetensors", "diff.pth"):
        network = ControlNet.load(folder / name, sd.config.unet)
        kept = copy.deepcopy(network.state_dict())
        first, second = (control(sd, network, picture, share) for share in (0.25, 0.75))
        assert relative_error(drawn(sd), expected) < SAME
        first.remove()
        second.remove()
        second.remove()
        assert torch.equal(drawn(sd), plain)
        assert all(torch.equal(kept[key], value) for key, value in network.state_dict().items())
        with control(sd, network, picture):
            assert relative_error(drawn(sd), expected) < SAME
    assert relative_error(expected, plain) > 100 * SAME
    assert all(torch.equal(before[key], value) for key, value in sd.unet.state_dict().items())


def test_a_difference_alone_cannot_be_called_and_survives_saving(difference, picture):
    sd, folder = difference
    network = ControlNet.load(folder / "diff.safetensors", sd.config.unet)
    with pytest.raises(ValueError, match=r"holds only the difference .* give it to control\(\)"):
        network(*inputs(sd.config))
    network.save(folder / "again.safetensors")
    again = ControlNet.load(folder / "again.safetensors")
    assert (
        again.is_difference
        and not ControlNet.load(folder / "full.safetensors", sd.config.unet).is_difference
    )
    with control(sd, network, picture):
        expected = drawn(sd)
    with control(sd, again, picture):
        assert relative_error(drawn(sd), expected) < 1e-1  # half precision


def test_a_difference_needs_a_unet_of_as_many_channels(difference, picture):
    sd, folder = difference
    network = ControlNet.load(folder / "diff.safetensors", sd.config.unet)
    for channels in (5, 9):
        with pytest.raises(
            ValueError, match=rf"difference from a U-Net with 4 .* not {channels}: use a"
        ):
            control(with_channels(sd, channels), network, picture)


# ---- what stands around ----------------------------------------------------------------------

AROUND = {
    "model.diffusion_model.out.2.bias": torch.ones(4),
    "first_stage_model.decoder.conv_in.weight": torch.ones(1),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.ones(1),
    "betas": torch.ones(9),
    "alphas_cumprod_prev": torch.ones(9),
    "posterior_variance": torch.ones(9),
    "logvar": torch.ones(9),
    "model_ema.decay": torch.ones(1),
}


def test_a_whole_model_may_stand_around_and_nothing_else(v1, tmp_path):
    sd, theirs = v1
    network = reference(theirs)
    state = original_state(network, sd.config.unet)
    save_file(state | AROUND, tmp_path / "whole.safetensors")
    loaded = ControlNet.load(tmp_path / "whole.safetensors", sd.config.unet)
    assert error(loaded, network, sd.config) < SAME
    bare = {key.removeprefix("control_model."): tensor.clone() for key, tensor in state.items()}
    save_file(bare, tmp_path / "bare.safetensors")
    assert (
        error(ControlNet.load(tmp_path / "bare.safetensors", sd.config.unet), network, sd.config)
        < SAME
    )
    one = "input_hint_block.0.weight"
    for more in ({"stranger.weight": torch.ones(1)}, {one: bare[one]}):
        save_file(state | more, tmp_path / "more.safetensors")
        with pytest.raises(ValueError, match=rf"ControlNet and also the tensor {next(iter(more))}"):
            ControlNet.load(tmp_path / "more.safetensors", sd.config.unet)
        save_file(bare | {"stranger.weight": torch.ones(1)}, tmp_path / "more.safetensors")
        with pytest.raises(ValueError, match=r"1 unknown \(stranger\.weight\)"):
            ControlNet.load(tmp_path / "more.safetensors", sd.config.unet)


# ---- hints -----------------------------------------------------------------------------------


def make_inpaint_condition(image, mask):
    """As diffusers' documentation of control_v11p_sd15_inpaint writes it."""
    image = np.array(image.convert("RGB")).astype(np.float32) / 255.0
    mask = np.array(mask.convert("L")).astype(np.float32) / 255.0
    image[mask > 0.5] = -1.0
    return torch.from_numpy(np.expand_dims(image, 0).transpose(0, 3, 1, 2))


def test_the_inpainting_hint_is_minus_one_where_masked(v1, picture):
    sd, theirs = v1
    hint = make_inpaint_condition(picture, picture.convert("L").point(lambda v: 255 * (v > 128)))
    assert hint.min() == -1 and (hint > 0).any()
    network = reference(theirs)
    pipeline = controlled_pipeline(sd, theirs, network)
    expected = pipeline(
        PROMPTS,
        image=hint,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=of_seeds(3, 4),
        output_type="latent",
    ).images
    own = same_network(sd, network)
    with control(sd, own, hint):
        assert relative_error(drawn(sd), expected) < END_TO_END
    control(sd, own, hint.half()).remove()


BAD_HINTS = {
    "one channel is -1": lambda hint: hint[0, 0, 0, 0].fill_(-1),
    "two channels are -1": lambda hint: hint[0, :2, 0, 0].fill_(-1),
    "another negative": lambda hint: hint[0, :, 0, 0].fill_(-0.5),
    "below -1": lambda hint: hint[0, :, 0, 0].fill_(-2),
    "above 1": lambda hint: hint[0, 0, 0, 0].fill_(1.5),
    "NaN": lambda hint: hint[0, 0, 0, 0].fill_(math.nan),
    "infinity": lambda hint: hint[0, 0, 0, 0].fill_(math.inf),
}


@pytest.mark.parametrize("change", BAD_HINTS.values(), ids=BAD_HINTS)
def test_other_values_of_a_hint_are_refused(v1, change):
    sd, _ = v1
    hint = torch.full((1, 3, 64, 96), 0.5)
    change(hint)
    with pytest.raises(ValueError, match=r"give a tensor 1 3 h w in \[0, 1\]"):
        control(sd, pooled(sd), hint)


def test_an_empty_hint_is_refused(v1):
    sd, _ = v1
    with pytest.raises(ValueError, match=r"give a tensor 1 3 h w in \[0, 1\]"):
        control(sd, pooled(sd), torch.zeros(0, 3, 64, 96))


def test_a_hint_network_of_another_factor_is_refused(v1, picture):
    sd, _ = v1
    smaller = ControlNet(sd.config.unet, HintSettings(widths=(16, 32)))
    with pytest.raises(ValueError, match=r"makes its hint 2 times smaller, but .* 8 times"):
        control(sd, smaller, picture)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_must_be_finite(v1, picture, scale):
    sd, _ = v1
    with pytest.raises(ValueError, match=r"scale is .*: give a finite number"):
        control(sd, pooled(sd), picture, scale)


@pytest.mark.parametrize(("width", "height"), [(104, 72), (40, 120), (8, 8)])
def test_sizes_that_are_multiples_of_8_alone(v1, picture, width, height):
    """Odd levels: the network halves them as the U-Net does."""
    sd, theirs = v1
    network = reference(theirs)
    own = same_network(sd, network)
    hint = picture.resize((width, height))
    expected = controlled_pipeline(sd, theirs, network)(
        PROMPTS,
        image=[hint] * 2,
        num_inference_steps=2,
        guidance_scale=5.0,
        height=height,
        width=width,
        generator=of_seeds(3, 4),
        output_type="latent",
    ).images
    with control(sd, own, hint):
        found = drawn(sd, width=width, height=height, steps=2)
    assert relative_error(found, expected) < END_TO_END
