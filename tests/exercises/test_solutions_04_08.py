"""The solutions of lessons 04 and 08 equal the core's parts, and the mini draws with all of them.

They stand for the whole U-Net and the whole autoencoder: while the mini draws, no function of ours
runs in their place.
"""

import sys

import numpy as np
import pytest
import torch

import minisd
from minisd import unet, vae
from minisd.config import SD15, UNetConfig, VAEConfig
from minisd.exercises.exercise import all_exercises, draw_weights, find_exercise, normal
from minisd.exercises.install import install_parts
from minisd.pipeline import make_generators
from minisd.training.vae import decibels

SMALL = {"context_dim": 6, "heads": 2, "norm_groups": 2}
NARROW = UNetConfig(channels=(4, 8), attention=(True, False), res_blocks=1, **SMALL)
DEEP = UNetConfig(channels=(4, 8, 8), attention=(False, True, True), head_width=4, **SMALL)
CONFIGS = pytest.mark.parametrize("config", [NARROW, DEEP], ids=["narrow", "deep"])
SIZES = pytest.mark.parametrize(("h", "w"), [(4, 6), (5, 3)])


def random_numbers(*shape):
    return normal(torch.Generator().manual_seed(sum(shape)), *shape)


def assert_equal_modules(name, core, init, *inputs, adapt=lambda answer: answer):
    """Both classes have the same parameters, and give the same result with the same weights."""
    modules = [adapt(find_exercise(name).solution)(**init).double(), core(**init).double()]
    weights = draw_weights(torch.Generator().manual_seed(0), modules[1])
    results = []
    for module in modules:
        module.load_state_dict(weights)
        lists = [list(one) if isinstance(one, list) else one for one in inputs]
        with torch.no_grad():
            results.append(module(*lists))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


# ---- lesson 04 -------------------------------------------------------------------------------


def test_the_gaussian_equals_the_core():
    (adapt,) = find_exercise("diagonal_gaussian").replaces.values()
    moments = 20 * random_numbers(2, 6, 3, 5)
    theirs = adapt(find_exercise("diagonal_gaussian").solution)(moments)
    ours = vae.DiagonalGaussian(moments)
    for generators in (lambda: torch.Generator().manual_seed(1), lambda: make_generators(1, 2)):
        torch.testing.assert_close(theirs.sample(generators()), ours.sample(generators()))
    for name in ("mean", "std", "logvar"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=0, atol=0)
    torch.testing.assert_close(theirs.mode(), ours.mode())
    torch.testing.assert_close(theirs.kl(), ours.kl(), rtol=1e-12, atol=0)


def test_decibels_equal_those_of_training():
    drawn, real = random_numbers(2, 3, 4, 5).tanh(), random_numbers(2, 3, 4, 6)[..., 1:].tanh()
    mean = find_exercise("decibels").solution(drawn, real).mean().item()
    assert mean == pytest.approx(decibels(drawn, real), rel=1e-12)


@SIZES
@pytest.mark.parametrize(("c_in", "c_out"), [(4, 4), (4, 6), (6, 4)])
def test_the_blocks_of_the_autoencoder_equal_the_core(c_in, c_out, h, w):
    x = random_numbers(2, c_in, h, w)
    init = {"c_in": c_in, "c_out": c_out, "norm_groups": 2}
    assert_equal_modules("vae_res_block", vae.ResBlock, init, x)
    for resize in (None, torch.nn.Upsample(scale_factor=2)):
        init = {"c_in": c_in, "c_out": c_out, "blocks": 2, "groups": 2, "resize": resize}
        assert_equal_modules("vae_resolution", vae.Resolution, init, x)
    for name, core in {"vae_attention": vae.SpatialAttention, "vae_mid": vae.Mid}.items():
        assert_equal_modules(name, core, {"channels": c_in, "norm_groups": 2}, x)
    for name, core in {"vae_downsample": vae.Downsample, "vae_upsample": vae.Upsample}.items():
        assert_equal_modules(name, core, {"channels": c_in}, x)


@SIZES
@pytest.mark.parametrize("channels", [(4,), (4, 8), (4, 6, 8)])
def test_encoder_and_decoder_equal_the_core(channels, h, w):
    config = VAEConfig(channels=channels, latent_channels=3, norm_groups=2)
    image, z = random_numbers(2, 3, 4 * h, 4 * w), random_numbers(2, 3, h, w)
    assert_equal_modules("vae_encoder", vae.Encoder, {"config": config}, image)
    assert_equal_modules("vae_decoder", vae.Decoder, {"config": config}, z)


# ---- lesson 08 -------------------------------------------------------------------------------


def test_the_timestep_embedding_equals_the_core():
    t = torch.tensor([0.0, 0.5, 37.0, 999.0], dtype=torch.float64)
    for width in (2, 10, 320):
        wanted = unet.timestep_embedding(t, width)
        batch = find_exercise("timestep_embedding").solution(t, width)
        assert batch.dtype == torch.float32
        torch.testing.assert_close(batch, wanted, rtol=0, atol=2e-4)
        rows = [find_exercise("embed_number").solution(one, width) for one in t.tolist()]
        torch.testing.assert_close(torch.tensor(rows), wanted, rtol=0, atol=2e-4)


def test_the_time_vector_equals_the_core():
    t = torch.tensor([0.5, 999.0], dtype=torch.float64)
    assert_equal_modules("time_embedding", unet.TimeEmbedding, {"channels": 6}, t)


@SIZES
@pytest.mark.parametrize(("c_in", "c_out"), [(4, 4), (4, 6), (6, 4)])
def test_the_residual_block_equals_the_core(c_in, c_out, h, w):
    init = {"c_in": c_in, "c_out": c_out, "time_dim": 10, "norm_groups": 2}
    x, time = random_numbers(2, c_in, h, w), random_numbers(2, 10)
    assert_equal_modules("unet_res_block", unet.ResBlock, init, x, time)


@SIZES
@pytest.mark.parametrize("sizes", [[], [(7, 9)], [(2, 3), (9, 11)]])
def test_upsample_equals_the_core(sizes, h, w):
    skips = [random_numbers(2, 3, *size) for size in sizes]
    x = random_numbers(2, 3, h, w)
    assert_equal_modules("unet_upsample", unet.Upsample, {"channels": 3}, x, skips)


@CONFIGS
@SIZES
@pytest.mark.parametrize(("attends", "last"), [(True, False), (False, True)])
def test_a_resolution_equals_the_core(config, attends, last, h, w):
    time, context = random_numbers(2, 16), random_numbers(2, 5, 6)
    rest = {"config": config, "attends": attends, "last": last}
    init = {"c_in": 4, "c_out": 8, **rest}
    assert_equal_modules("unet_down", unet.Down, init, random_numbers(2, 4, h, w), time, context)
    skips = [random_numbers(2, c, h, w) for c in (4, 6, 4)[-config.res_blocks - 1 :]]
    c_skips = [skip.shape[1] for skip in reversed(skips)]
    skips = [random_numbers(2, 3, 2 * h - 1, 2 * w), *skips]
    init = {"c_in": 8, "c_out": 4, "c_skips": c_skips, **rest}
    assert_equal_modules("unet_up", unet.Up, init, random_numbers(2, 8, h, w), skips, time, context)
    init = {"channels": 8, "config": config}
    assert_equal_modules("unet_mid", unet.Mid, init, random_numbers(2, 8, h, w), time, context)


@CONFIGS
@SIZES
def test_the_unet_equals_the_core(config, h, w):
    x, context = random_numbers(2, 4, h, w), random_numbers(2, 5, 6)
    t = torch.tensor([3.0, 700.5])
    assert_equal_modules("unet", unet.UNet, {"config": config}, x, t, context)


def test_the_unet_reads_a_controlnet():
    """`control` is not part of the question. The student's U-Net must take it all the same."""
    (adapt,) = find_exercise("unet").replaces.values()
    x, t, context = random_numbers(2, 4, 4, 6), torch.tensor([3.0, 700.5]), random_numbers(2, 5, 6)
    with torch.no_grad():
        bottom, skips = unet.UNet(NARROW).double().encode(x, random_numbers(2, 16), context)
    control = [skip + 1 for skip in skips] + [bottom]
    init = {"config": NARROW}
    assert_equal_modules("unet", unet.UNet, init, x, t, context, control, adapt=adapt)


def test_the_list_of_skips_equals_the_core():
    solution = find_exercise("skip_channels").solution
    for config in (NARROW, DEEP, SD15.unet):
        assert solution(config) == unet.skip_channels(config)


# ---- lesson 08b ------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [[(3, 1), (3, 1)], [(3, 2), (5, 1), (1, 3), (3, 2), (3, 1)]])
def test_the_receptive_field_is_where_the_gradient_is_not_zero(layers):
    x = torch.ones(1, 1, 301, requires_grad=True)
    y = x
    for kernel, stride in layers:
        y = torch.nn.functional.conv1d(y, torch.ones(1, 1, kernel), stride=stride)
    (slope,) = torch.autograd.grad(y[0, 0, y.shape[2] // 2], x)
    assert (slope != 0).sum() == find_exercise("receptive_field").solution(layers)


def test_cut_attention_equals_attention_inside_each_strip():
    scores = random_numbers(2, 3, 24, 24)
    places = torch.arange(24).reshape(4, 6)  # 4 rows of 6 places, cut into 3 strips
    weights = find_exercise("cut_attention").solution(scores.softmax(-1), 6, strips=3)
    for strip in places.split(2, dim=1):
        inside = strip.flatten()
        own = scores[..., inside[:, None], inside].softmax(-1)
        torch.testing.assert_close(weights[..., inside[:, None], inside], own)
        assert weights[..., inside, :].sum() == pytest.approx(own.sum())


# ---- the mini, with all of them --------------------------------------------------------------


def draw_small(sd):
    return np.asarray(sd.txt2img("a blue cat on a red background", steps=3, seed=1, width=72))


def files_that_run(call):
    """The files of the package in which a function ran during the call, and the function names."""
    ran = set()

    def watch(frame, event, _):
        if event == "call":
            ran.add((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return ran


def copy_small(sd):
    """A latent of a picture, drawn at random, and the picture that the decoder makes of it."""
    latent = sd.encode(random_numbers(2, 3, 64, 72).tanh().float(), make_generators(1, 2))
    return latent, sd.decode(latent)


def test_the_mini_draws_with_all_parts_together():
    sd = minisd.load("mini")
    ours, copies = draw_small(sd), copy_small(sd)
    parts = {}
    for one in [*all_exercises("04"), *all_exercises("08")]:
        parts |= {name: adapt(one.solution) for name, adapt in one.replaces.items()}
    with install_parts(parts):
        sd = minisd.load("mini")
        ran = files_that_run(lambda: draw_small(sd))
        theirs = draw_small(sd)
        torch.testing.assert_close(copy_small(sd), copies, rtol=1e-4, atol=1e-4)
    assert np.abs(theirs.astype(int) - ours.astype(int)).max() <= 1
    assert [name for file, name in ran if file in (unet.__file__, vae.__file__)] == []
