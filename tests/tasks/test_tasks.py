"""Image-to-image, inpainting and depth-to-image: the latents of diffusers' pipelines."""

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image

from minisd.config import ScheduleConfig
from minisd.files.pictures import from_pil
from minisd.pipeline import StableDiffusion
from minisd.samplers import SAMPLERS
from minisd.sampling import sampler_levels, starting_x
from minisd.schedule import Prediction, Schedule
from minisd.tasks.depth2img import depth2img, depth2img_steps, depth_channel
from minisd.tasks.img2img import Start, img2img, img2img_steps, remaining_levels
from minisd.tasks.inpaint import blend_steps, inpaint, inpaint_steps
from minisd.tokenizer import Tokenizer
from tests.helpers.pipeline_pairs import NO_FILTER, PROMPTS, both_pipelines, last, of_seeds
from tests.helpers.reference_networks import ddim_scheduler, pair
from tests.helpers.side_by_side import relative_error
from tests.helpers.tiny_models import V1, V2, V2_V, with_channels

END_TO_END = 1e-4  # float32, largest error over the reference's spread
HEIGHT, WIDTH = 64, 96


@pytest.fixture(scope="module")
def picture():
    shades = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return Image.fromarray(shades).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def mask():
    covered = np.zeros((HEIGHT, WIDTH), np.uint8)
    covered[8:40, 24:80] = 255
    return Image.fromarray(covered)


CONFIGS = {"v1": V1, "v2": V2, "v2-v": V2_V}


@pytest.fixture(scope="module", params=CONFIGS)
def img2img_pair(request, tmp_path_factory):
    config = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp("img2img")
    return both_pipelines(config, StableDiffusionImg2ImgPipeline, folder, **NO_FILTER)


@pytest.mark.parametrize(
    ("strength", "steps", "cfg_scale"), [(0.75, 5, 7.5), (0.3, 7, 3.0), (1.0, 3, 1.0)]
)
def test_img2img_is_that_of_diffusers(img2img_pair, picture, strength, steps, cfg_scale):
    ours, theirs = img2img_pair
    expected = theirs(
        PROMPTS,
        image=picture,
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=cfg_scale,
        negative_prompt=["blurry"] * 2,
        generator=of_seeds(3, 4),
        output_type="latent",
    ).images
    settings = {"steps": steps, "cfg_scale": cfg_scale, "seed": 3}
    walk = img2img_steps(ours, PROMPTS, picture, strength, "blurry", **settings)
    assert relative_error(last(walk), expected) < END_TO_END


def test_img2img_with_a_sigma_sampler_is_that_of_diffusers(picture, tmp_path):
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        steps_offset=1,
    )
    ours, theirs = both_pipelines(
        V1, StableDiffusionImg2ImgPipeline, tmp_path, scheduler, **NO_FILTER
    )
    settings = {"num_inference_steps": 5, "strength": 0.6, "output_type": "latent"}
    expected = theirs("a cat", picture, generator=of_seeds(1), **settings).images
    settings = {"steps": 5, "sampler": "euler", "spacing": "trailing", "seed": 1}
    walk = img2img_steps(ours, "a cat", picture, 0.6, cfg_scale=7.5, **settings)
    assert relative_error(last(walk), expected) < END_TO_END


def test_strength_0_is_the_picture_as_the_autoencoder_draws_it(img2img_pair, picture):
    ours, _ = img2img_pair
    drawn = from_pil(img2img(ours, "a cat", picture, strength=0, seed=5))
    z = ours.encode(from_pil(picture), of_seeds(5))
    assert (drawn - ours.decode(z).clamp(-1, 1)).abs().max() <= 1.001 / 255
    assert list(img2img_steps(ours, "a cat", picture, strength=0)) == []


def test_strength_times_steps_are_run(img2img_pair, picture):
    ours, _ = img2img_pair
    steps = list(img2img_steps(ours, "a cat", picture, strength=0.5, steps=6, cfg_scale=1))
    whole = list(ours.txt2img_steps("a cat", steps=6, cfg_scale=1))
    assert [step.t for step in steps] == [step.t for step in whole[3:]]
    assert len(remaining_levels(list(range(21)), 0.5)) - 1 == 10


def test_strength_1_still_shows_a_little_of_the_picture(img2img_pair, picture):
    ours, _ = img2img_pair
    dark = Image.new("RGB", picture.size)
    settings = {"strength": 1, "steps": 2, "cfg_scale": 1}
    light, dark = (last(img2img_steps(ours, "a cat", one, **settings)) for one in (picture, dark))
    assert not torch.equal(light, dark)


def test_a_member_of_a_batch_is_its_lone_picture(img2img_pair, picture):
    ours, _ = img2img_pair
    together = last(img2img_steps(ours, PROMPTS, picture, steps=3, seed=5))
    alone = last(img2img_steps(ours, PROMPTS[1], picture, steps=3, seed=6))
    assert relative_error(together[1:], alone) < END_TO_END


@pytest.mark.parametrize(("strength", "steps", "cfg_scale"), [(1.0, 4, 7.5), (0.6, 5, 3.0)])
@pytest.mark.parametrize(
    ("version", "channels"), [("v1", 4), ("v1", 9), ("v2", 4), ("v2", 9), ("v2-v", 4)]
)
def test_inpainting_is_that_of_diffusers(
    version, channels, strength, steps, cfg_scale, picture, mask, tmp_path
):
    config = with_channels(CONFIGS[version], channels)
    ours, theirs = both_pipelines(config, StableDiffusionInpaintPipeline, tmp_path, **NO_FILTER)
    expected = theirs(
        PROMPTS,
        image=[picture] * 2,  # of one alone it would encode one, with the first generator
        mask_image=[mask] * 2,
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=cfg_scale,
        height=HEIGHT,
        width=WIDTH,
        generator=of_seeds(3, 4),
        output_type="latent",
    ).images
    settings = {"steps": steps, "cfg_scale": cfg_scale, "seed": 3}
    walk = inpaint_steps(ours, PROMPTS, picture, mask, strength, **settings)
    assert relative_error(last(walk), expected) < END_TO_END


@pytest.fixture(scope="module")
def sd(img2img_pair):
    return img2img_pair[0]


@pytest.mark.parametrize("sampler", ["ddim", "plms", "euler_ancestral", "heun", "dpmpp_2m"])
def test_only_what_the_mask_covers_changes(sd, picture, mask, sampler):
    """After the last step the latent outside is the picture's own, and at every step a mixture."""
    settings = {"steps": 4, "sampler": sampler, "seed": 2}
    steps = list(inpaint_steps(sd, "a cat", picture, mask, **settings))
    z = sd.encode(from_pil(picture), of_seeds(2))
    small = np.asarray(mask.resize((z.shape[3], z.shape[2]), Image.Resampling.NEAREST))
    outside = torch.from_numpy(small < 128)
    assert torch.equal(steps[-1].x[..., outside], z[..., outside])
    assert (steps[-1].x - z)[..., ~outside].abs().min() > 0
    assert all(step.x.isfinite().all() for step in steps)


def test_pasting_keeps_the_pixels_outside(sd, picture, mask):
    drawn = inpaint(sd, "a cat", picture, mask, steps=2, paste=True)
    outside = np.asarray(mask) == 0
    assert (np.asarray(drawn)[outside] == np.asarray(picture)[outside]).all()
    assert (np.asarray(drawn)[~outside] != np.asarray(picture)[~outside]).any()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_soft_mask_mixes(sampler, share):
    """Of a picture that is 1 everywhere and a model that sees only 0."""
    schedule = Schedule(ScheduleConfig())
    levels = sampler_levels(sampler, schedule, 6)
    z, noise = torch.ones(1, 4, 3, 5), torch.randn(1, 4, 3, 5)
    start = Start(z, noise, starting_x(sampler, noise, levels[0]), sampler, levels, of_seeds(0))

    def denoise(x, level):
        return Prediction(x * 0, x / level.noise_rate, None, None)

    *_, step = blend_steps(SAMPLERS[sampler], denoise, start, torch.full((1, 1, 3, 5), 1 - share))
    expected = (1 - share) * torch.ones_like(z)
    rest = levels[-1].noise_rate  # DDIM and PLMS stop at the least noisy level
    assert (step.x - expected).abs().max() <= 1e-4 + 4 * rest * share


def test_inpainting_with_a_sigma_sampler_is_that_of_diffusers(picture, mask, tmp_path):
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="linspace",  # where all agree on the loudness of the first noise
        steps_offset=1,
    )
    ours, theirs = both_pipelines(
        V1, StableDiffusionInpaintPipeline, tmp_path, scheduler, **NO_FILTER
    )
    settings = {"num_inference_steps": 4, "strength": 1.0, "output_type": "latent"}
    size = {"height": HEIGHT, "width": WIDTH}
    expected = theirs("a cat", picture, mask, generator=of_seeds(1), **settings, **size).images
    settings = {"steps": 4, "sampler": "euler", "spacing": "uniform", "seed": 1}
    walk = inpaint_steps(ours, "a cat", picture, mask, 1.0, cfg_scale=7.5, **settings)
    assert relative_error(last(walk), expected) < 1e-3  # diffusers interpolates sigma otherwise


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_with_lcm_is_that_of_diffusers(picture, mask, tmp_path, strength):
    """By blending, with fresh noise at every step."""
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ours, theirs = both_pipelines(
        V1, StableDiffusionInpaintPipeline, tmp_path, scheduler, **NO_FILTER
    )
    encode_hole = theirs.prepare_mask_latents

    def with_other_dice(*settings):
        """diffusers also encodes the picture with a hole, although this U-Net does not read it."""
        *others, _, guided = settings
        return encode_hole(*others, of_seeds(9), guided)

    theirs.prepare_mask_latents = with_other_dice
    settings = {"num_inference_steps": 5, "strength": strength, "output_type": "latent"}
    size = {"height": HEIGHT, "width": WIDTH, "guidance_scale": 1.0}
    expected = theirs("a cat", picture, mask, generator=of_seeds(1), **settings, **size).images
    settings = {"steps": 5, "sampler": "lcm", "seed": 1, "cfg_scale": 1.0}
    walk = inpaint_steps(ours, "a cat", picture, mask, strength, **settings)
    assert relative_error(last(walk), expected) < END_TO_END


@pytest.mark.parametrize("given_as", ["tensor", "picture"])
def test_depth2img_is_that_of_diffusers(picture, tmp_path, given_as, monkeypatch):
    config = with_channels(V2, 5)
    scheduler = ddim_scheduler(config)
    none = {"depth_estimator": None, "feature_extractor": None}
    ours, theirs = both_pipelines(
        config, StableDiffusionDepth2ImgPipeline, tmp_path, scheduler, **none
    )
    depth = torch.rand(1, 1, 40, 60, generator=torch.Generator().manual_seed(0))
    if given_as == "picture":
        grey = Image.fromarray((depth[0, 0] * 255).byte().numpy())
        depth = torch.from_numpy(np.asarray(grey)).float()[None, None]
    expected = theirs(
        PROMPTS,
        image=picture,
        depth_map=depth[:, 0],
        strength=0.7,
        num_inference_steps=5,
        guidance_scale=7.5,
        generator=of_seeds(3, 4),
        output_type="latent",
    ).images
    monkeypatch.setattr("minisd.tasks.depth2img.FLAT", 0.0)  # diffusers has none
    shown = depth if given_as == "tensor" else grey
    walk = depth2img_steps(ours, PROMPTS, picture, shown, strength=0.7, steps=5, seed=3)
    assert relative_error(last(walk), expected) < END_TO_END


def test_an_estimator_takes_the_place_of_the_depth(tmp_path, picture):
    config = with_channels(V2, 5)
    parts = {
        name: pair(name, config, "diffusers", "unit", torch.float32).ours
        for name in ("text_encoder", "unet", "vae")
    }
    sd = StableDiffusion(config, Tokenizer.clip(0), **parts)

    def brightness(image):
        return image.mean(dim=1, keepdim=True)

    settings = {"steps": 2, "seed": 1}
    given = depth2img(sd, "a cat", picture, brightness(from_pil(picture)), **settings)
    made = depth2img(sd, "a cat", picture, estimator=brightness, **settings)
    assert given.tobytes() == made.tobytes()
    with pytest.raises(ValueError, match=r"Give depth= .* or estimator="):
        depth2img(sd, "a cat", picture)


def test_the_depth_channel_keeps_the_originals_guard():
    flat = depth_channel(torch.ones(1, 1, 8, 8), (4, 4))
    assert flat.isfinite().all()
    ramp = torch.linspace(3, 7, 16).reshape(1, 1, 4, 4)
    stretched = depth_channel(ramp, (4, 4))
    assert stretched.min().item() == pytest.approx(-1)
    assert stretched.max().item() == pytest.approx(2 * 4 / 4.001 - 1)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"strength": 1.5}, r"strength must be 0 .* to 1 .*, got 1.5"),
        ({"image": Image.new("RGB", (50, 64))}, "50 x 64 pixels does not fit"),
        ({"image": torch.zeros(3, 3, 64, 64)}, r"shape \(3, 3, 64, 64\)\. Give a PIL image"),
        ({"prompt": []}, "there is no prompt"),
    ],
)
def test_img2img_says_what_is_wrong(sd, picture, wrong, sentence):
    settings = {"prompt": "a cat", "image": picture} | wrong
    with pytest.raises(ValueError, match=sentence):
        img2img(sd, **settings)


def test_a_mask_of_another_size_is_refused(sd, picture):
    with pytest.raises(ValueError, match="Give a mask of the picture's size"):
        inpaint(sd, "a cat", picture, Image.new("L", (32, 32)))


def test_a_model_that_reads_more_is_not_taken_for_a_plain_one(sd, picture, mask):
    depth_model = StableDiffusion(
        with_channels(sd.config, 5), sd.tokenizer, sd.text_encoder, sd.unet, sd.vae
    )
    with pytest.raises(ValueError, match="needs a picture as well as the prompt"):
        img2img(depth_model, "a cat", picture)
    with pytest.raises(ValueError, match="needs a picture as well as the prompt"):
        inpaint(depth_model, "a cat", picture, mask)
    with pytest.raises(ValueError, match="Load a depth model"):
        depth2img(sd, "a cat", picture, mask)
