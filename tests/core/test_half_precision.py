"""Half precision: every model and adapter draws nearly float32's picture, or says what failed."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import minisd
from minisd.adapters.classifier import ClassifierGuidance, load_classifier
from minisd.adapters.controlnet import ControlNet, control
from minisd.adapters.hypernetwork import hypernetwork
from minisd.adapters.lora import lora
from minisd.adapters.textual_inversion import textual_inversion
from minisd.adapters.vae_file import swap_vae
from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.load import load_vae
from minisd.checkpoints.write import convert, save
from minisd.config import MINI, WEIGHTS, ScheduleConfig
from minisd.files.pictures import from_pil, to_pil
from minisd.pipeline import StableDiffusion
from minisd.tasks.depth2img import depth2img
from minisd.tasks.img2img import img2img
from minisd.tasks.inpaint import inpaint
from minisd.trace import trace
from tests.helpers.pipeline_pairs import NO_FILTER, both_pipelines
from tests.helpers.tiny_models import V1, V2, V2_V

HALVES = [torch.float16, torch.bfloat16]
DECIBELS = {torch.float16: 40, torch.bfloat16: 25}  # measured: 51 and 31


@pytest.fixture(scope="module")
def models():
    """The mini in every precision."""
    dtypes = [torch.float32, *HALVES, torch.float64]
    return {dtype: minisd.load("mini", dtype=dtype) for dtype in dtypes}


@pytest.fixture(scope="module")
def picture(models):
    return models[torch.float32].txt2img("a cat on a blue background", steps=10, seed=1)


def alike(picture, other):
    """The peak signal-to-noise ratio of two pictures or tensors in [-1, 1], in decibels."""
    x, y = ((from_pil(p) if isinstance(p, Image.Image) else p).double() for p in (picture, other))
    mse = (x.clamp(-1, 1) - y.clamp(-1, 1)).square().mean() / 4
    return (-10 * mse.clamp(min=1e-20).log10()).item()


def relative(x, expected):
    return ((x.float() - expected).std() / expected.std()).item()


# ---- the mini --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
def test_thirty_steps_draw_nearly_the_picture_of_float32(models, dtype):
    """The mini's feature maps reach 150,000 in its decoder and 190,000 in its encoder."""
    drawn = {}
    for each in (torch.float32, dtype):
        *_, step = models[each].txt2img_steps("a cat on a blue background", steps=30, cfg_scale=1)
        drawn[each] = models[each].decode(step.x)
    assert alike(drawn[dtype], drawn[torch.float32]) > DECIBELS[dtype]


def test_double_precision_draws_the_same_picture(models):
    both = (models[dtype] for dtype in (torch.float64, torch.float32))
    wide, exact = (sd.txt2img("a cat", steps=2) for sd in both)
    assert np.abs(np.asarray(wide, float) - np.asarray(exact, float)).max() <= 1


def test_the_autoencoder_of_a_float16_model_is_in_float32(models):
    sd = models[torch.float16]
    assert {tensor.dtype for tensor in sd.vae.state_dict().values()} == {torch.float32}
    for part in (sd.text_encoder, sd.unet):
        assert {tensor.dtype for tensor in part.state_dict().values()} == {torch.float16}
    assert sd.dtype == torch.float16
    exact = models[torch.float32].vae.state_dict()
    assert all(torch.equal(own, exact[name]) for name, own in sd.vae.state_dict().items())
    bfloat16 = models[torch.bfloat16].vae.state_dict().values()
    assert {tensor.dtype for tensor in bfloat16} == {torch.bfloat16}  # its range is float32's


@pytest.mark.parametrize("dtype", HALVES)
def test_every_task_draws(models, dtype, picture):
    mask = Image.new("L", picture.size)
    mask.paste(255, (16, 16, 48, 48))
    soft = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    inpainter, deep = (
        {each: minisd.load(name, dtype=each) for each in (torch.float32, dtype)}
        for name in ("mini-inpaint", "mini-depth")
    )
    few = {"steps": 2, "seed": 3, "cfg_scale": 1}
    ways = [
        (models, lambda sd: img2img(sd, "a dog", picture, strength=0.5, **few)),
        (models, lambda sd: img2img(sd, "a dog", picture, strength=0, **few)),
        (models, lambda sd: inpaint(sd, "a dog", picture, soft, strength=0.5, **few)),
        (inpainter, lambda sd: inpaint(sd, "a dog", picture, mask, paste=True, **few)),
        (deep, lambda sd: depth2img(sd, "a dog", picture, depth=soft, **few)),
    ]
    for sds, draw in ways:
        assert alike(draw(sds[dtype]), draw(sds[torch.float32])) > DECIBELS[dtype] - 5


@pytest.mark.parametrize("dtype", HALVES)
def test_every_adapter_follows(models, dtype):
    hint = torch.zeros(1, 3, 64, 64)
    hint[:, :, 20:40, 30] = 1
    network, classifier = ControlNet.load("mini-edges"), load_classifier("mini-classifier")
    adapters = {
        "LoRA": lambda sd: lora(sd, "mini-blueprint"),
        "word": lambda sd: textual_inversion(sd, "mini-blorp"),
        "hypernetwork": lambda sd: hypernetwork(sd, "mini-sepia"),
        "ControlNet": lambda sd: control(sd, network, hint),
        "VAE": lambda sd: swap_vae(sd, WEIGHTS / "mini-decoder.safetensors"),
        "classifier": lambda sd: ClassifierGuidance(sd, classifier, "cat", 1000),
    }

    def draw(sd):
        return sd.txt2img("a <blorp>", steps=1, seed=4, cfg_scale=1)

    half, exact = models[dtype], models[torch.float32]
    plain = draw(half)
    for name, put_on in adapters.items():
        with put_on(half), put_on(exact):
            drawn, expected = draw(half), draw(exact)
        assert alike(drawn, expected) > DECIBELS[dtype] - 5, name
        assert alike(drawn, plain) < alike(drawn, expected), name
    assert draw(half).tobytes() == plain.tobytes()


def test_a_swapped_autoencoder_is_as_wide_as_the_one_before(models):
    for dtype, wide in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        with swap_vae(models[dtype], WEIGHTS / "mini-decoder.safetensors"):
            assert models[dtype].vae.decoder.conv_in.weight.dtype == wide


def test_a_trace_hears_every_part(models):
    with trace(models[torch.float16]) as heard:
        models[torch.float16].txt2img("a cat", steps=1)
    entries = [entry for calls in heard.values() for entry in calls]
    tensors = [one for entry in entries for one in (entry if type(entry) is tuple else [entry])]
    assert all(tensor.isfinite().all() for tensor in tensors)


# ---- models in the official layouts ----------------------------------------------------------


@pytest.fixture(scope="module", params=[V1, V2, V2_V], ids=["v1", "v2", "v2-v"])
def official(request, tmp_path_factory):
    """A file in the original layout, with random weights."""
    folder = tmp_path_factory.mktemp("official")
    sd = both_pipelines(request.param, StableDiffusionPipeline, folder, **NO_FILTER)[0]
    parts = Parts(sd.config, sd.tokenizer, sd.text_encoder, sd.unet, sd.vae)
    save(folder / "ours.safetensors", parts)
    convert(folder / "ours.safetensors", folder / "official.safetensors")
    return folder / "official.safetensors"


@pytest.mark.parametrize("dtype", HALVES)
def test_official_models_draw(official, dtype):
    sd, exact = minisd.load(official, dtype=dtype), minisd.load(official)
    x, expected = (
        [*each.txt2img_steps("a cat", steps=1, cfg_scale=1)][-1].x for each in (sd, exact)
    )
    to_pil(sd.decode(x))
    assert relative(x, expected) < {torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]


@pytest.mark.parametrize("dtype", HALVES)
def test_pure_noise_as_first_level_does_not_swallow_the_picture(models, dtype):
    """There sigma is 4096: added to it in half precision, x0 was lost, and Euler drew noise."""
    schedule = ScheduleConfig(prediction="v", zero_terminal_snr=True)
    config = replace(MINI, schedule=schedule)
    sd, exact = (
        StableDiffusion(config, each.tokenizer, each.text_encoder, each.unet, each.vae)
        for each in (models[dtype], models[torch.float32])
    )
    for sampler in ("plms", "euler"):
        x, expected = (
            [*each.txt2img_steps("a cat", steps=3, sampler=sampler, cfg_scale=1)][-1].x
            for each in (sd, exact)
        )
        assert relative(x, expected) < {torch.float16: 0.02, torch.bfloat16: 0.15}[dtype], sampler


# ---- dtypes that cannot work -----------------------------------------------------------------

REFUSED = [
    torch.int8,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.qint8,
    "fp16",
    "float16",
    "a\nb",
    "",
    0,
    False,
    float,
    np.float16,
    np.dtype("float16"),
    torch.zeros(3, 3),
]


@pytest.mark.parametrize("dtype", REFUSED, ids=str)
def test_a_dtype_that_cannot_work_is_refused_by_name(tmp_path, dtype):
    named = re.escape(repr(dtype).splitlines()[0][:60])
    says = rf"^dtype {named} cannot be used for a model: give one of torch.float32, .*float64\.$"
    for use in (
        lambda: minisd.load("nowhere", dtype=dtype),
        lambda: load_vae("nowhere", MINI.vae, dtype=dtype),
        lambda: convert("nowhere", tmp_path / "some.safetensors", dtype=dtype),
        lambda: save(tmp_path / "some.safetensors", None, dtype=dtype),
    ):
        with pytest.raises(ValueError, match=says):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["meta", "nonsense", "cuda:99", 3.5, ""])
def test_a_device_that_cannot_work_is_refused_by_name(device):
    with pytest.raises(ValueError, match=rf"device '{device}' cannot be used"):
        minisd.load("mini", device=device)


# ---- numbers that are not finite -------------------------------------------------------------


def with_nan(sd, part):
    weights = {
        "text transformer": sd.text_encoder.norm_out.weight,
        "U-Net": sd.unet.conv_in.weight,
        "autoencoder's decoder": sd.vae.decoder.conv_out.weight,
        "autoencoder's encoder": sd.vae.encoder.conv_in.weight,
    }
    return weights[part]


@pytest.mark.parametrize(
    "part", ["text transformer", "U-Net", "autoencoder's decoder", "autoencoder's encoder"]
)
def test_the_first_part_that_went_wrong_is_named(part, picture):
    sd = minisd.load("mini")
    weight = with_nan(sd, part)
    weight.copy_(torch.full_like(weight, torch.nan))
    names = {"U-Net": "unet.conv_in.weight", "text transformer": "text_encoder.norm_out.weight"}
    coders = {f"autoencoder's {one}": f"vae.{one}.conv_" for one in ("encoder", "decoder")}
    names |= coders
    says = rf"^the {part} made numbers that are not finite, so there is no picture\. "
    says += f"The weight {names[part]}.* holds NaN"
    draw = img2img if "encoder" in part else None
    with pytest.raises(ValueError, match=says):
        img2img(sd, "a cat", picture, steps=2) if draw else sd.txt2img("a cat", steps=2)


def test_a_scale_that_drowns_the_picture_is_told(models):
    with pytest.raises(ValueError, match=r"the U-Net made numbers that are not finite.*cfg_scale"):
        models[torch.float32].txt2img("a cat", steps=2, cfg_scale=1e38)
    with pytest.raises(ValueError, match=r"the U-Net made numbers .*Load .*dtype=torch.float32"):
        models[torch.float16].txt2img("a cat", steps=2, cfg_scale=1e6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_no_picture_is_made_of_numbers_that_are_not_finite(value):
    image = torch.zeros(2, 3, 8, 8)
    image[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match="the picture holds NaN or infinity"):
        to_pil(image)
