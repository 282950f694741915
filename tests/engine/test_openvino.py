"""The engine: OpenVINO computes what PyTorch computes, or says that it cannot."""

import os
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd.adapters.classifier import ClassifierGuidance, load_classifier
from minisd.adapters.controlnet import ControlNet, control
from minisd.adapters.handle import Handle
from minisd.adapters.hypernetwork import hypernetwork
from minisd.adapters.lora import lora
from minisd.adapters.textual_inversion import textual_inversion
from minisd.adapters.vae_file import swap_vae
from minisd.checkpoints.controlnet_settings import DEFAULT_HINT
from minisd.clip import TextTransformer
from minisd.config import WEIGHTS
from minisd.engine import openvino_engine
from minisd.engine.openvino_engine import OpenVINO, delete_oldest, small_example
from minisd.pipeline import StableDiffusion
from minisd.tasks.depth2img import depth2img
from minisd.tasks.img2img import img2img
from minisd.tasks.inpaint import inpaint
from minisd.trace import trace
from minisd.unet import UNet
from minisd.vae import VAE
from tests.helpers.engines import needs_openvino
from tests.helpers.tiny_models import SMALL

PROMPTS = ["a cat on a blue background", "a <blorp>", ""]
TOLERANCE = 1e-4  # of the spread of the result. Measured: at most 1.4e-5


@pytest.fixture(scope="module")
def pair():
    """The mini in PyTorch and with the engine."""
    return minisd.load("mini"), minisd.load("mini", engine="openvino")


@pytest.fixture
def small(small_sd):
    """A tiny model with the engine."""
    small_sd.engine = OpenVINO(small_sd.dtype, "cpu")
    yield small_sd
    small_sd.engine = None


def error(result, expected):
    """The largest difference, as a share of the spread."""
    assert result.dtype == expected.dtype and result.shape == expected.shape
    return ((result.float() - expected.float()).abs().max() / expected.float().std()).item()


def levels_apart(picture, other):
    return np.abs(np.asarray(picture, int) - np.asarray(other, int)).max()


def unet_inputs(sd, b, h, w):
    made = torch.Generator().manual_seed(b)
    x = torch.randn(b, sd.config.unet.in_channels, h, w, generator=made)
    return x, torch.full((b,), 412.0), sd.embed(PROMPTS[:b])


# ---- the networks ----------------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize("size", [(2, 8, 8), (3, 9, 14)], ids=str)
def test_every_network_equals_pytorch(pair, size):
    sd, engine = pair
    inputs = unet_inputs(sd, *size)
    assert error(engine.runner(engine.unet)(*inputs), sd.unet(*inputs)) < TOLERANCE
    z, image = 4 * inputs[0], torch.rand(size[0], 3, 8 * size[1], 8 * size[2]) * 2 - 1
    assert error(engine.decode(z), sd.decode(z)) < TOLERANCE
    assert error(engine.encode(image), sd.encode(image)) < TOLERANCE


@needs_openvino
@pytest.mark.parametrize("clip_skip", [0, 1])
def test_the_context_equals_pytorchs(pair, clip_skip):
    contexts = [sd.embed(PROMPTS, clip_skip) for sd in pair]
    assert error(*reversed(contexts)) < TOLERANCE
    long = "a (cat:1.3) " * 40
    contexts = [sd.embed([long], clip_skip, extended=True) for sd in pair]
    assert error(*reversed(contexts)) < TOLERANCE


def hint(b=1):
    return torch.rand(b, 3, 64, 64, generator=torch.Generator().manual_seed(0)).round()


ADAPTERS = {
    "LoRA": lambda sd: lora(sd, "mini-blueprint", 0.7),
    "hypernetwork": lambda sd: hypernetwork(sd, "mini-sepia"),
    "ControlNet and LoRA": lambda sd: Handle(
        [control(sd, ControlNet.load("mini-edges"), hint()), lora(sd, "mini-blueprint", -0.3)]
    ),
}


@needs_openvino
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_work(pair, name):
    sd, engine = pair
    inputs = unet_inputs(sd, 2, 8, 8)
    plain = sd.unet(*inputs)
    with ADAPTERS[name](sd), ADAPTERS[name](engine):
        expected = sd.unet(*inputs)
        assert error(engine.runner(engine.unet)(*inputs), expected) < TOLERANCE
    assert error(expected, plain) > 0.1
    assert error(engine.runner(engine.unet)(*inputs), plain) < TOLERANCE


@needs_openvino
def test_a_new_word_works(pair):
    pair[1].embed(PROMPTS)  # compiled without the word
    with textual_inversion(pair[0], "mini-blorp"), textual_inversion(pair[1], "mini-blorp"):
        expected, result = (sd.embed(PROMPTS) for sd in pair)
        assert error(result, expected) < TOLERANCE
    assert error(expected[1:2], pair[1].embed(PROMPTS)[1:2]) > 0.1


@needs_openvino
def test_a_controlnet_whose_corrections_are_means(small):
    """Its corrections are b c 1 1, and only the samples with a prompt follow it."""
    torch.manual_seed(1)
    widths = (8, 8, 8, 8)
    network = ControlNet(small.config.unet, replace(DEFAULT_HINT, widths=widths, pools=True))
    x = torch.randn(1, 4, 8, 8)
    denoise = small.denoiser(["a cat"], cfg_scale=3)
    with torch.no_grad(), control(small, network, hint()):
        result = denoise(x, small.schedule.at(500)).eps
        small.engine = None
        assert error(result, denoise(x, small.schedule.at(500)).eps) < TOLERANCE


@needs_openvino
def test_a_network_is_compiled_again_if_its_weights_change(small):
    inputs = unet_inputs(small, 1, 8, 8)
    before = small.runner(small.unet)(*inputs)
    weight = small.unet.conv_out.weight
    weight.mul_(2)
    try:
        result = small.runner(small.unet)(*inputs)
        assert error(result, small.unet(*inputs)) < TOLERANCE < error(result, before)
    finally:
        weight.div_(2)


# ---- pictures --------------------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_the_picture_is_pytorchs(pair, sampler):
    pictures = [sd.txt2img(PROMPTS[0], seed=3, steps=10, sampler=sampler) for sd in pair]
    assert levels_apart(*pictures) <= 1


@needs_openvino
def test_classifier_guidance_and_another_autoencoder(pair):
    pictures = []
    for sd in pair:
        guide = ClassifierGuidance(sd, load_classifier("mini-classifier"), "cat", 100)
        with guide, swap_vae(sd, WEIGHTS / "mini-decoder.safetensors"):
            pictures.append(sd.txt2img("a drawing", seed=3, steps=5))
    assert levels_apart(*pictures) <= 1


def small_model(channels, vocabulary):
    """A tiny model with random weights, whose U-Net reads this many channels."""
    torch.manual_seed(0)
    config = replace(SMALL, unet=replace(SMALL.unet, in_channels=channels))
    networks = TextTransformer(config.text), UNet(config.unet), VAE(config.vae)
    return StableDiffusion(config, vocabulary, *networks)


@needs_openvino
def test_every_task_draws_pytorchs_picture(small_sd):
    """img2img, both ways of inpainting, and depth-to-image. PyTorch runs no network."""
    shades = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(shades.byte().numpy())
    mask = Image.new("L", picture.size)
    mask.paste(255, (8, 8, 24, 24))
    soft, few = torch.linspace(0, 1, 32).expand(1, 1, 32, 32), {"steps": 3, "seed": 3}
    ways = [
        (4, lambda sd: img2img(sd, "a dog", picture, strength=0.7, **few)),
        (4, lambda sd: inpaint(sd, "a dog", picture, mask, **few)),
        (9, lambda sd: inpaint(sd, "a dog", picture, mask, **few)),
        (5, lambda sd: depth2img(sd, "a dog", picture, depth=soft, **few)),
    ]
    for channels, draw in ways:
        sd = small_model(channels, small_sd.tokenizer)
        expected = draw(sd)
        sd.engine = OpenVINO(sd.dtype, "cpu")
        draw(sd)  # this compiles the networks
        with pytest.MonkeyPatch.context() as patch:
            for network in (sd.unet, sd.vae.encoder, sd.vae.decoder, sd.text_encoder):
                patch.setattr(network, "forward", None)
            drawn = draw(sd)
        assert levels_apart(drawn, expected) <= 1, channels


@needs_openvino
def test_bf16_draws_nearly_the_picture(pair):
    half = minisd.load("mini", dtype=torch.bfloat16, engine="openvino")
    inputs = unet_inputs(pair[0], 2, 8, 8)
    x, t, context = inputs
    result = half.runner(half.unet)(x.bfloat16(), t, context.bfloat16())
    expected = pair[0].unet(*inputs)
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).std() < 0.03 * expected.std()
    draw = {"seed": 3, "steps": 10, "cfg_scale": 1}
    pictures = [np.asarray(sd.txt2img(PROMPTS[0], **draw), float) for sd in (half, pair[0])]
    assert np.abs(pictures[0] - pictures[1]).mean() < 6


@needs_openvino
def test_threads_that_draw_together_get_what_each_gets_alone(small):
    expected = [np.asarray(small.txt2img("a cat", seed=seed, steps=3)) for seed in range(4)]
    drawn = {}

    def draw(seed):
        drawn[seed] = np.asarray(small.txt2img("a cat", seed=seed, steps=3))

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(drawn[seed], expected[seed]) for seed in range(4))


# ---- stepping aside --------------------------------------------------------------------------


@needs_openvino
def test_a_trace_reads_every_tensor(small):
    plain = small.txt2img("a cat", steps=1)
    says = r"^OpenVINO steps aside: a trace .* PyTorch runs\.$"
    names = ("unet.mid*", "text_encoder*", "vae.decoder*")
    with pytest.warns(UserWarning, match=says), trace(small, *names) as seen:
        traced = small.txt2img("a cat", steps=1)
    assert {"unet.mid", "text_encoder.norm_out", "vae.decoder.conv_in"} <= seen.keys()
    assert levels_apart(plain, traced) <= 1


@needs_openvino
def test_a_trace_can_replace_a_tensor(small):
    inputs = unet_inputs(small, 1, 8, 8)
    replace_mid = {"unet.mid": lambda mid: 0 * mid}
    with pytest.warns(UserWarning, match="steps aside"), trace(small, replace=replace_mid):
        changed = small.runner(small.unet)(*inputs)
    assert error(changed, small.runner(small.unet)(*inputs)) > 0.01


@needs_openvino
def test_a_gradient_flows_through_pytorch(small):
    x, t, context = unet_inputs(small, 1, 8, 8)
    x.requires_grad_(True)
    with pytest.warns(UserWarning, match="steps aside: a gradient is needed"):
        small.runner(small.unet)(x, t, context).sum().backward()
    assert x.grad.abs().sum() > 0
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        small.runner(small.unet)(x, t, context)


# ---- what is kept on disk --------------------------------------------------------------------


@needs_openvino
def test_a_compiled_network_is_kept_and_a_damaged_file_does_no_harm(small, tmp_path, monkeypatch):
    inputs = unet_inputs(small, 1, 8, 8)
    monkeypatch.setattr(openvino_engine, "FOLDER", tmp_path / "new")
    expected = small.unet(*inputs)
    for damage in (None, None, lambda data: data[: len(data) // 2], lambda data: b"", "missing"):
        small.engine = OpenVINO(small.dtype, "cpu")
        assert error(small.runner(small.unet)(*inputs), expected) < TOLERANCE
        (file,) = (tmp_path / "new" / "f32").glob("*.blob")
        data = file.read_bytes()
        file.chmod(0o600)
        if damage == "missing":
            file.unlink()
        elif damage is not None:
            file.write_bytes(damage(data))


@needs_openvino
def test_without_a_folder_nothing_is_kept(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(openvino_engine, "FOLDER", tmp_path / "file" / "inside")
    inputs = unet_inputs(small, 1, 8, 8)
    assert error(small.runner(small.unet)(*inputs), small.unet(*inputs)) < TOLERANCE


def test_the_oldest_compiled_networks_are_deleted(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        file = tmp_path / f"{name}.blob"
        file.write_bytes(bytes(10))
        os.utime(file, (1000 - age, 1000 - age))
    (tmp_path / "lock").write_bytes(bytes(100))
    delete_oldest(tmp_path, 25)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lock", "middle.blob", "new.blob"]


@needs_openvino
def test_nothing_is_reported_to_intel():
    code = (
        "import sys, minisd; minisd.load('mini', engine='openvino'); "
        "print(sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


@pytest.mark.parametrize(
    "shapes, small",
    [
        ([(2, 4, 64, 64), (2,), (2, 77, 768)], [(1, 4, 2, 2), (1,), (1, 77, 768)]),
        ([(1, 4, 72, 40)], [(1, 4, 9, 5)]),
        ([(1, 4, 9, 11)], [(1, 4, 9, 11)]),
        (
            [(2, 4, 64, 64), (2, 320, 64, 64), (2, 9, 8, 8)],
            [(1, 4, 16, 16), (1, 320, 16, 16), (1, 9, 2, 2)],
        ),
        ([(3, 3, 512, 512)], [(1, 3, 32, 32)]),
        ([(2, 4, 64, 64), (1, 3, 512, 512)], [(1, 4, 4, 4), (1, 3, 32, 32)]),
        ([(2, 4, 64, 64), (2, 320, 1, 1)], [(1, 4, 64, 64), (1, 320, 1, 1)]),
    ],
)
def test_the_example_for_the_recording_is_small(shapes, small):
    example = small_example([torch.zeros(shape) for shape in shapes])
    assert [tuple(one.shape) for one in example] == small


# ---- refusals --------------------------------------------------------------------------------


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="There is no engine 'tensorrt'"):
        minisd.load("nowhere", engine="tensorrt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_dtype_that_openvino_does_not_use_is_refused(dtype):
    with pytest.raises(ValueError, match=r"computes with float32 or bfloat16, not float\d\d\."):
        minisd.load("nowhere", dtype=dtype, engine="openvino")


def test_another_device_is_refused():
    with pytest.raises(ValueError, match="runs on the CPU, not on cuda"):
        OpenVINO(torch.float32, "cuda")


def test_without_openvino_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        ValueError, match=r"^openvino is not installed\. Run `pip install openvino`"
    ):
        minisd.load("nowhere", engine="openvino")
