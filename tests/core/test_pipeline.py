"""A prompt becomes a picture: the same picture that a diffusers pipeline draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

from minisd.config import SD15, SD20_INPAINT
from minisd.files.pictures import from_pil, to_pil
from minisd.pipeline import StableDiffusion
from tests.helpers.pipeline_pairs import NO_FILTER, both_pipelines
from tests.helpers.side_by_side import relative_error
from tests.helpers.tiny_models import V1, V2, V2_V

END_TO_END = 1e-4  # float32, largest error over the reference's spread
BATCH = 1e-4  # kernels differ with the batch size


PROMPT = {
    "prompt": ["a photograph of an astronaut riding a horse", "ein Café, 2 (two) cats"],
    "negative": "blurry",
}


@pytest.mark.parametrize("config", [V1, V2, V2_V], ids=["v1", "v2", "v2-v"])
@pytest.mark.parametrize("cfg_scale", [1.0, 7.5])
def test_txt2img_is_the_picture_of_diffusers(config, cfg_scale, tmp_path):
    ours, theirs = both_pipelines(config, StableDiffusionPipeline, tmp_path, **NO_FILTER)
    noise = torch.randn(2, 4, 10, 16, generator=torch.Generator().manual_seed(0))
    settings = {"num_inference_steps": 4, "guidance_scale": cfg_scale, "latents": noise}
    common = {"prompt": PROMPT["prompt"], "negative_prompt": [PROMPT["negative"]] * 2}
    expected = theirs(**common, **settings, output_type="latent", height=80, width=128).images
    *_, last = ours.txt2img_steps(
        PROMPT["prompt"], PROMPT["negative"], steps=4, cfg_scale=cfg_scale, latent=noise
    )
    assert relative_error(last.x, expected) < END_TO_END
    image = theirs.vae.decode(expected / 0.18215).sample
    assert relative_error(ours.decode(last.x), image) < END_TO_END


def test_txt2img_with_a_sigma_sampler_is_the_picture_of_diffusers(tmp_path):
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",  # whole t, where all agree on sigma
        steps_offset=1,
    )
    ours, theirs = both_pipelines(V1, StableDiffusionPipeline, tmp_path, scheduler, **NO_FILTER)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = theirs(
        "a cat", num_inference_steps=4, latents=noise, output_type="latent", height=64, width=64
    ).images
    settings = {"steps": 4, "sampler": "euler", "spacing": "trailing", "latent": noise}
    *_, last = ours.txt2img_steps("a cat", **settings)
    assert relative_error(last.x, expected) < END_TO_END


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return both_pipelines(V1, StableDiffusionPipeline, folder, **NO_FILTER)[0]


def test_a_member_of_a_batch_is_its_lone_picture(sd):
    prompts = ["a cat", "a dog", "a tree"]
    for sampler in ("ddim", "euler_ancestral"):
        *_, together = sd.txt2img_steps(prompts, steps=3, seed=5, sampler=sampler)
        *_, alone = sd.txt2img_steps("a tree", steps=3, seed=7, sampler=sampler)
        assert relative_error(together.x[2:], alone.x) < BATCH


def test_a_list_of_seeds_gives_each_sample_its_own(sd):
    *_, listed = sd.txt2img_steps(["a cat", "a cat"], steps=2, seed=[9, 4])
    *_, alone = sd.txt2img_steps("a cat", steps=2, seed=4)
    assert relative_error(listed.x[1:], alone.x) < BATCH
    with pytest.raises(ValueError, match="2 prompts need 2 seeds, got 3"):
        sd.txt2img_steps(["a cat", "a dog"], seed=[1, 2, 3])


def test_prompts_and_seeds_may_be_of_any_ordinary_kind(sd):
    *_, expected = sd.txt2img_steps(["a cat", "a dog"], steps=1, seed=3)
    *_, same = sd.txt2img_steps(("a cat", "a dog"), steps=1, seed=np.int64(3))
    assert torch.equal(same.x, expected.x)
    with pytest.raises(ValueError, match="there is no prompt"):
        sd.txt2img_steps([])
    with pytest.raises(ValueError, match="there is no text"):
        sd.embed([])


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_half_precision_draws_nearly_the_same_picture(sampler, tmp_path):
    """bfloat16 keeps 8 bits: each of many roundings may cost 0.4 %."""
    sd = both_pipelines(V1, StableDiffusionPipeline, tmp_path, **NO_FILTER)[0]
    *_, exact = sd.txt2img_steps("a cat", steps=2, sampler=sampler)
    for part in (sd.text_encoder, sd.unet, sd.vae):
        part.to(torch.bfloat16)
    *_, rounded = sd.txt2img_steps("a cat", steps=2, sampler=sampler)
    assert rounded.x.dtype == torch.bfloat16
    assert ((rounded.x - exact.x).std() / exact.x.std()).item() < 0.05
    assert to_pil(sd.decode(rounded.x))[0].size == (64, 64)


def test_txt2img_returns_a_picture_or_a_list(sd):
    picture = sd.txt2img("a cat", steps=1, width=80, height=64)
    assert picture.size == (80, 64)
    pictures = sd.txt2img(["a cat"], steps=1)
    assert [p.size for p in pictures] == [(64, 64)]


def test_the_negative_prompt_pushes_away(sd):
    *_, plain = sd.txt2img_steps("a cat", steps=2)
    *_, pushed = sd.txt2img_steps("a cat", "a dog", steps=2)
    assert relative_error(pushed.x, plain.x) > 1e-2


def test_embed_leaves_out_layers_for_clip_skip(sd):
    tokens = sd.tokenizer(["a cat"])
    x = sd.text_encoder.token_embedding(tokens) + sd.text_encoder.position_embedding
    after_one = sd.text_encoder.norm_out(sd.text_encoder.layers[0](x))
    assert torch.equal(sd.embed("a cat", clip_skip=1), after_one)
    assert not torch.allclose(sd.embed("a cat"), after_one)


def test_extended_prompts_are_chunks_laid_end_to_end(sd):
    words = " ".join(["cat"] * 100)
    context = sd.embed(["a cat", words], extended=True)
    assert context.shape == (2, 2 * 77, 64)
    assert torch.allclose(context[:1, :77], sd.embed("a cat"), atol=1e-5)
    assert torch.allclose(context[:1, 77:], sd.embed(""), atol=1e-5)
    *_, last = sd.txt2img_steps(words, steps=1, extended=True)
    assert last.x.isfinite().all()


def test_a_weight_scales_its_words_and_keeps_the_mean(sd):
    plain, heavy = sd.embed("a red cat"), sd.embed("a (red:1.5) cat", extended=True)
    assert torch.allclose(heavy.mean(), plain.mean(), atol=1e-5)
    louder = (heavy / plain)[0, :, 0]
    assert torch.allclose(louder[2] / louder[1], torch.tensor(1.5), atol=1e-3)


def test_encode_scales_what_decode_unscales(sd):
    image = torch.rand(1, 3, 40, 64) * 2 - 1
    latent = sd.encode(image)
    close = {"rtol": 0, "atol": 1e-5}  # the pipeline computes with the tricks of fast.py
    torch.testing.assert_close(latent, sd.vae.encode(image).mean * 0.18215, **close)
    torch.testing.assert_close(sd.decode(latent), sd.vae.decode(latent / 0.18215), **close)
    drawn = sd.encode(image, torch.Generator().manual_seed(0))
    assert not torch.equal(drawn, latent)


def test_pictures_are_rounded_not_cut_off():
    shades = torch.arange(256).float().reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    picture = to_pil(shades / 127.5 - 1 + 0.4 / 127.5)[0]
    assert torch.equal(from_pil(picture), shades / 127.5 - 1)


def test_a_size_that_does_not_halve_evenly_is_refused(sd):
    with pytest.raises(ValueError, match="width and height must be multiples of 8"):
        sd.txt2img_steps("a cat", width=100)
    full_size = replace(V1, unet=SD15.unet, vae=SD15.vae)
    assert full_size.size_multiple == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be 1 to 1000, got 0"),
        ({"sampler": "dpm3"}, "ddpm, ddim, plms, lcm, lms, euler, euler_ancestral, heun, dpmpp_2m"),
        ({"spacing": "odd"}, "leading, linspace, trailing, uniform, karras"),
        ({"width": 0}, "multiples of 8"),
        ({"cfg_scale": float("nan")}, "cfg_scale must be a finite number, got nan"),
        ({"latent": torch.zeros(1, 4, 7, 8)}, "multiples of 8"),
        ({"latent": torch.zeros(1, 4, 8, 8), "width": 64}, "the latent is for 32 x 32 pixels"),
        ({"latent": torch.zeros(1, 3, 8, 8)}, r"latent .* 1 4 h w"),
        ({"clip_skip": 3}, "clip_skip must be 0 to 2"),
    ],
)
def test_bad_settings_are_told_before_any_work(sd, settings, message):
    with pytest.raises(ValueError, match=message):
        sd.txt2img_steps("a cat", **settings)


def test_an_inpainting_model_does_not_draw_from_text_alone(sd):
    config = replace(V1, unet=replace(V1.unet, in_channels=SD20_INPAINT.unet.in_channels))
    inpainter = StableDiffusion(config, sd.tokenizer, sd.text_encoder, sd.unet, sd.vae)
    with pytest.raises(ValueError, match="reads 9 channels, 5 more than a latent has"):
        inpainter.txt2img_steps("a cat")


def test_a_picture_that_overflowed_is_told():
    with pytest.raises(ValueError, match="NaN or infinity"):
        to_pil(torch.full((1, 3, 8, 8), float("nan")))
