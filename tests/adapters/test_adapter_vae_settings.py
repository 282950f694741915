"""A VAE's settings next to its weights: its scale holds until it is taken off again.

The reference is diffusers: AutoencoderKL with the scaling_factor of its config.json.
"""

import json

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file

from minisd.adapters.vae_file import swap_vae
from minisd.checkpoints import names
from minisd.files.pictures import from_pil
from minisd.tasks.img2img import img2img
from tests.helpers.pipeline_pairs import NO_FILTER, both_pipelines, of_seeds
from tests.helpers.reference_networks import randomise
from tests.helpers.side_by_side import relative_error
from tests.helpers.tiny_models import V1

SAME, END_TO_END = 1e-5, 1e-4  # float32, largest error over the reference's spread


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
    return both_pipelines(V1, StableDiffusionPipeline, tmp_path_factory.mktemp("pair"), **NO_FILTER)


def other_vae(theirs, **settings):
    usual = {key: value for key, value in theirs.vae.config.items() if key[0] != "_"}
    network = AutoencoderKL(**usual | settings)
    randomise(network, gain=1.0, seed=9)
    return network.eval()


def latent_and_image():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, 8, 12, generator=generator), torch.rand(
        1, 3, 32, 48, generator=generator
    )


@pytest.mark.parametrize("scale", [0.18215, 0.5])
@torch.no_grad()
def test_a_folders_scale_holds_both_ways_until_removal(pair_of, tmp_path, scale):
    sd, theirs = pair_of
    other = other_vae(theirs, scaling_factor=scale)
    other.save_pretrained(tmp_path)
    latent, image = latent_and_image()
    plain = sd.decode(latent), sd.encode(image)
    for path in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        with swap_vae(sd, path):
            assert sd.vae.config.scale == scale
            assert relative_error(sd.decode(latent), other.decode(latent / scale).sample) < SAME
            mode = other.encode(image).latent_dist.mode()
            assert relative_error(sd.encode(image), mode * scale) < SAME
    assert sd.vae.config.scale == 0.18215
    assert torch.equal(sd.decode(latent), plain[0]) and torch.equal(sd.encode(image), plain[1])


@torch.no_grad()
def test_pictures_are_those_of_diffusers_with_that_vae(pair_of, tmp_path):
    sd, theirs = pair_of
    other = other_vae(theirs, scaling_factor=0.5)
    other.save_pretrained(tmp_path)
    pipeline = StableDiffusionPipeline(
        **{**theirs.components, "vae": other}, **{"requires_safety_checker": False}
    )
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 48}
    expected = pipeline("a cat", **settings, generator=of_seeds(3), output_type="pt").images
    with swap_vae(sd, tmp_path):
        drawn = sd.txt2img("a cat", steps=2, cfg_scale=3.0, seed=3, height=32, width=48)
        again = img2img(sd, "a cat", drawn, strength=0.5, steps=2)
    assert (from_pil(drawn) / 2 + 0.5 - expected).abs().max() < 1 / 255  # a rounded picture
    assert again.size == drawn.size


def test_several_scales_go_in_any_order(pair_of, tmp_path):
    sd, theirs = pair_of
    for name, scale in (("a", 0.5), ("b", 0.25)):
        other_vae(theirs, scaling_factor=scale).save_pretrained(tmp_path / name)
    first, second = swap_vae(sd, tmp_path / "a"), swap_vae(sd, tmp_path / "b")
    assert sd.vae.config.scale == 0.25
    first.remove()
    assert sd.vae.config.scale == 0.25
    second.remove()
    assert sd.vae.config.scale == 0.18215


def stored(theirs, folder, **more):
    """A folder whose config.json says more, or other things, than the weights need."""
    other_vae(theirs).save_pretrained(folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | more
    path.write_text(
        json.dumps({key: value for key, value in settings.items() if value != "absent"}),
        encoding="utf-8",
    )
    return folder


REFUSED = {
    "shift_factor": 0.1159,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
    "act_fn": "relu",
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "in_channels": 4,
    "out_channels": 4,
    "_class_name": "AutoencoderTiny",
    "a_setting_of_the_future": 1,
    "scaling_factor": "0.18215",
}


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
@pytest.mark.parametrize("file", ["", "diffusion_pytorch_model.safetensors"])
def test_a_setting_that_means_another_vae_is_refused(pair_of, tmp_path, name, value, file):
    sd, theirs = pair_of
    before = sd.vae
    folder = stored(theirs, tmp_path / "vae", **{name: value})
    said = {"_class_name": "AutoencoderTiny"}.get(name, name)
    with pytest.raises(ValueError, match=said) as told:
        swap_vae(sd, folder / file)
    assert "\n" not in str(told.value)
    assert sd.vae is before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shift_factor", 0),
        ("shift_factor", None),
        ("shift_factor", "absent"),
        ("force_upcast", False),
        ("sample_size", 7),
        ("act_fn", "swish"),
        ("_a_note", 1),
        ("_class_name", "absent"),
    ],
)
def test_a_setting_that_means_the_same_is_taken(pair_of, tmp_path, name, value):
    sd, theirs = pair_of
    folder = stored(theirs, tmp_path, scaling_factor=0.5, **{name: value})
    for path in (folder, folder / "diffusion_pytorch_model.safetensors"):
        with swap_vae(sd, path):
            assert sd.vae.config.scale == 0.5


def test_an_absent_scale_is_diffusers_default(pair_of, tmp_path):
    sd, theirs = pair_of
    with swap_vae(sd, stored(theirs, tmp_path, scaling_factor="absent")):
        assert sd.vae.config.scale == 0.18215


def test_an_original_file_without_settings_keeps_the_models_scale(pair_of, tmp_path):
    sd, theirs = pair_of
    table = names.flat_rows(names.vae_rows(sd.config.vae))
    ours = names.from_official(other_vae(theirs).state_dict(), table, "diffusers")
    save_file(names.to_official(ours, table, "original"), tmp_path / "vae.safetensors")
    with swap_vae(sd, tmp_path / "vae.safetensors"):
        assert sd.vae.config.scale == sd.config.vae.scale
