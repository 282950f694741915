"""Sizes that do not halve evenly: what diffusers draws at odd levels, and which are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from minisd.adapters.controlnet import ControlNet, control
from minisd.checkpoints import names
from minisd.checkpoints.controlnet_file import controlnet_rows
from minisd.config import MINI, SD15
from minisd.files.pictures import check_size
from minisd.tasks.depth2img import depth2img_steps
from minisd.tasks.img2img import img2img_steps
from minisd.tasks.inpaint import inpaint_steps
from minisd.trace import trace
from minisd.unet import UNet, Upsample
from tests.helpers.pipeline_pairs import NO_FILTER, PROMPTS, both_pipelines, last, of_seeds
from tests.helpers.reference_networks import pair, randomise
from tests.helpers.side_by_side import relative_error
from tests.helpers.tiny_models import V1, V2, with_channels

END_TO_END = 1e-4  # float32, largest error over the reference's spread
FLOAT64 = 1e-12


def four_levels(config):
    """As deep as the official models: a side is halved three times, and the picture's before."""
    unet = replace(config.unet, channels=(64, 64, 128, 128), attention=(True, True, True, False))
    return replace(config, unet=unet, vae=replace(config.vae, channels=(32, 32, 64, 64)))


CONFIGS = {"v1": four_levels(V1), "v2": four_levels(V2)}
SIZES = [(104, 72), (80, 152), (8, 40), (48, 32)]  # width, height in pixels


# ---- the U-Net alone -------------------------------------------------------------------------


# h w of latents; 13 and 9 are odd at every level, 1 stays 1, 16 and 8 halve evenly
@pytest.mark.parametrize(
    "size", [(13, 9), (7, 8), (10, 15), (24, 17), (3, 1), (1, 1), (2, 12), (16, 8)]
)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_unet_is_that_of_diffusers_at_odd_levels(config, size):
    networks = pair("unet", config, "diffusers", "unit", torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *size, generator=generator, dtype=torch.float64)
    context = torch.randn(2, 77, 64, generator=generator, dtype=torch.float64)
    t = torch.tensor([981, 3])
    expected = networks.theirs(x, t, context).sample
    assert (networks.ours(x, t, context) - expected).abs().max() < FLOAT64


def test_each_level_of_an_odd_size_is_rounded_up_and_comes_back():
    config = CONFIGS["v1"].unet
    torch.manual_seed(0)
    unet = UNet(config).requires_grad_(False)
    with trace(unet, "down.*.downsample", "up.*.upsample") as seen:
        unet(torch.randn(1, 4, 13, 9), torch.tensor([5]), torch.randn(1, 7, 64))
    sizes = [tuple(tensor.shape[2:]) for (tensor,) in seen.values()]
    assert sizes == [(7, 5), (4, 3), (2, 2), (4, 3), (7, 5), (13, 9)]


def test_an_even_size_gives_the_same_bits_as_doubling_does():
    torch.manual_seed(0)
    upsample = Upsample(8)
    x = torch.randn(2, 8, 5, 7)
    doubled = upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.equal(upsample(x, [torch.empty(2, 8, 10, 14)]), doubled)
    assert torch.equal(upsample(x, []), doubled)


# ---- whole pictures --------------------------------------------------------------------------


def picture_of(size):
    shades = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    return Image.fromarray(shades).resize(size, Image.Resampling.BICUBIC)


def mask_of(size):
    covered = np.zeros(size[::-1], np.uint8)
    covered[size[1] // 3 :, size[0] // 4 : size[0] // 2 + 3] = 255
    return Image.fromarray(covered)


def diffusers_settings(steps=3):
    return {
        "num_inference_steps": steps,
        "guidance_scale": 5.0,
        "generator": of_seeds(3, 4),
        "output_type": "latent",
    }


OURS = {"steps": 3, "cfg_scale": 5.0, "seed": 3}


@pytest.fixture(scope="module", params=CONFIGS)
def plain(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return both_pipelines(CONFIGS[request.param], StableDiffusionPipeline, folder, **NO_FILTER)


def pipeline_of(kind, theirs, **more):
    """Another of diffusers' pipelines with the same networks."""
    shared = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    pipeline = kind(**{name: getattr(theirs, name) for name in shared}, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("size", SIZES)
def test_txt2img_at_any_multiple_of_8_is_that_of_diffusers(plain, size):
    ours, theirs = plain
    sides = {"width": size[0], "height": size[1]}
    expected = theirs(PROMPTS, **sides, **diffusers_settings()).images
    found = last(ours.txt2img_steps(PROMPTS, **sides, **OURS))
    assert found.shape[2:] == (size[1] // 8, size[0] // 8)
    assert relative_error(found, expected) < END_TO_END


@pytest.mark.parametrize("size", SIZES)
def test_img2img_at_any_multiple_of_8_is_that_of_diffusers(plain, size):
    ours, theirs = plain
    pipeline = pipeline_of(StableDiffusionImg2ImgPipeline, theirs, **NO_FILTER)
    image = picture_of(size)
    expected = pipeline(PROMPTS, image=image, strength=0.7, **diffusers_settings(4)).images
    found = last(img2img_steps(ours, PROMPTS, image, 0.7, **OURS | {"steps": 4}))
    assert relative_error(found, expected) < END_TO_END


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize(("version", "channels"), [("v1", 4), ("v1", 9), ("v2", 9)])
def test_inpainting_at_any_multiple_of_8_is_that_of_diffusers(version, channels, size, tmp_path):
    config = with_channels(CONFIGS[version], channels)
    ours, theirs = both_pipelines(config, StableDiffusionInpaintPipeline, tmp_path, **NO_FILTER)
    image, mask = picture_of(size), mask_of(size)
    sides = {"width": size[0], "height": size[1]}
    images = {"image": [image] * 2, "mask_image": [mask] * 2, "strength": 1.0}
    expected = theirs(PROMPTS, **images, **sides, **diffusers_settings()).images
    found = last(inpaint_steps(ours, PROMPTS, image, mask, **OURS))
    assert relative_error(found, expected) < END_TO_END


@pytest.mark.parametrize("size", SIZES[:2])
def test_depth2img_at_any_multiple_of_8_is_that_of_diffusers(size, tmp_path, monkeypatch):
    none = {"depth_estimator": None, "feature_extractor": None}
    config = with_channels(CONFIGS["v2"], 5)
    ours, theirs = both_pipelines(config, StableDiffusionDepth2ImgPipeline, tmp_path, **none)
    image = picture_of(size)
    depth = torch.rand(1, 1, 37, 61, generator=torch.Generator().manual_seed(0))
    given = {"image": image, "depth_map": depth[:, 0], "strength": 0.7}
    expected = theirs(PROMPTS, **given, **diffusers_settings(4)).images
    monkeypatch.setattr("minisd.tasks.depth2img.FLAT", 0.0)  # diffusers has none
    found = last(depth2img_steps(ours, PROMPTS, image, depth, strength=0.7, **OURS | {"steps": 4}))
    assert relative_error(found, expected) < END_TO_END


@pytest.mark.parametrize("size", SIZES[:2])
def test_controlnet_at_any_multiple_of_8_is_that_of_diffusers(plain, size):
    ours, theirs = plain
    reference = ControlNetModel.from_unet(theirs.unet)
    randomise(reference, gain=0.5, seed=7)
    network = ControlNet(ours.config.unet)
    state = names.from_official(
        reference.state_dict(), controlnet_rows(ours.config.unet), "diffusers"
    )
    network.load_state_dict(state)
    pipeline = pipeline_of(
        StableDiffusionControlNetPipeline, theirs, controlnet=reference.eval(), **NO_FILTER
    )
    sides, hint = {"width": size[0], "height": size[1]}, picture_of(size)
    expected = pipeline(PROMPTS, image=[hint] * 2, **sides, **diffusers_settings()).images
    with control(ours, network, hint):
        found = last(ours.txt2img_steps(PROMPTS, **sides, **OURS))
    assert relative_error(found, expected) < END_TO_END


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (
            (601, 400),
            r"601 x 400 pixels .* multiples of 8\. The nearest that fit: width 600 or 608\.$",
        ),
        ((600, 397), r"that fit: height 392 or 400\.$"),
        ((601, 3), r"that fit: width 600 or 608, height 8\.$"),
        ((-8, 64), r"that fit: width 8\.$"),
        ((0, 64), r"that fit: width 8\.$"),
        ((600.5, 64), r"that fit: width 600 or 608\.$"),
        ((64, 600.0), r"that fit: height 600 or 608\.$"),
    ],
)
def test_another_size_is_refused_with_the_two_nearest(size, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_size(*size, SD15)


def test_what_a_refusal_names_does_fit():
    for side in range(8, 80, 8):
        check_size(side, 8, SD15)
        check_size(8, np.int64(side), MINI)


def test_tasks_refuse_other_sizes_by_the_same_sentence(plain):
    ours, _ = plain
    for size in ((101, 64), (64, 101)):
        image = Image.new("RGB", size)
        with pytest.raises(ValueError, match=r"that fit: (width|height) 96 or 104\."):
            img2img_steps(ours, "a cat", image)
        with pytest.raises(ValueError, match=r"that fit: (width|height) 96 or 104\."):
            inpaint_steps(ours, "a cat", image, Image.new("L", size, 255))
