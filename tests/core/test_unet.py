"""Facts about the U-Net that parity alone would not name."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from ldm.modules.diffusionmodules.util import timestep_embedding as original_embedding
from torch import Tensor

from minisd.config import SD15, SD20_BASE, SD20_DEPTH, SD20_INPAINT, ModelConfig, UNetConfig
from minisd.unet import UNet, skip_channels, timestep_embedding
from tests.helpers.reference_networks import ours, pair, randomise

FLOAT64 = 1e-12  # the same sums in another order
BATCH = 1e-4  # kernels differ by batch size; architecture.md promises no more
TINY = replace(
    SD15,
    unet=UNetConfig(
        channels=(32, 64), attention=(True, False), res_blocks=1, context_dim=8, heads=2
    ),
)


def tiny(dtype: torch.dtype = torch.float32) -> UNet:
    unet = ours("unet", TINY)
    randomise(unet, 1.0, seed=0)
    return unet.to(dtype)


def given(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 4, 6, generator=generator)
    context = torch.randn(2, 7, 8, generator=generator)
    return x.to(dtype), torch.tensor([3.0, 700.25]), context.to(dtype)


# ---- time -----------------------------------------------------------------------------------


def test_time_embedding_puts_cosine_first():
    wave = timestep_embedding(torch.tensor([0]), 8)
    assert wave.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]


def test_time_embeddings_slowest_wave_is_not_quite_1_in_10000():
    """The exponents are i / half, not i / (half - 1), which would end at 1 / 10000."""
    t, half = 100.0, 4
    slowest = timestep_embedding(torch.tensor([t]), 2 * half)[0, -1]
    assert slowest.item() == pytest.approx(torch.tensor(t * 10000 ** (-3 / 4)).sin().item())


@pytest.mark.parametrize("t", [[0, 1, 500, 999], [0.5, 3.25, 500.1, 998.7]])
def test_time_embedding_equals_both_references_at_whole_and_fractional_times(t: list[float]):
    times = torch.tensor(t)
    wave = timestep_embedding(times, 320)
    theirs = get_timestep_embedding(times, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.equal(wave, theirs)
    assert torch.equal(wave, original_embedding(times, 320))


def test_time_embedding_is_float32_whatever_the_time():
    for dtype in (torch.int64, torch.float32, torch.float64):
        assert timestep_embedding(torch.tensor([7], dtype=dtype), 8).dtype == torch.float32


def test_integer_and_float_times_agree():
    unet, (x, _, context) = tiny(), given()
    assert torch.equal(
        unet(x, torch.tensor([7, 9]), context), unet(x, torch.tensor([7.0, 9.0]), context)
    )


# ---- shape ----------------------------------------------------------------------------------


def test_unet_downsample_pads_all_four_sides():
    downsample = tiny().down[0].downsample
    downsample.weight.data = torch.ones_like(downsample.weight)
    downsample.bias.data = torch.zeros_like(downsample.bias)
    counted = downsample(torch.ones(1, 32, 4, 4))[0, 0] / 32  # ones within each 3x3 window
    assert counted.tolist() == [[4, 6], [6, 9]]  # the windows stand out at the top and left


def test_v1_has_8_heads_everywhere_and_v2_has_64_channels_a_head():
    def heads(config: ModelConfig) -> list[int]:
        unet = ours("unet", config)
        return [down.attn[0].cross.heads for down in unet.down[:3]] + [unet.mid.attn.cross.heads]

    assert heads(SD15) == [8, 8, 8, 8]
    assert heads(SD20_BASE) == [5, 10, 20, 20]


def test_inpainting_reads_9_channels_and_depth_5_and_both_write_4():
    for config, channels in [(SD15, 4), (SD20_DEPTH, 5), (SD20_INPAINT, 9)]:
        unet = ours("unet", config)
        assert (unet.conv_in.in_channels, unet.conv_out.out_channels) == (channels, 4)


@pytest.mark.parametrize(
    "config, parameters", [(SD15, 859_520_964), (SD20_BASE, 865_910_724)], ids=["v1", "v2"]
)
def test_unet_has_as_many_numbers_as_published(config: ModelConfig, parameters: int):
    assert sum(p.numel() for p in ours("unet", config).parameters()) == parameters


# ---- halves and control ---------------------------------------------------------------------


def test_skip_channels_are_those_that_encode_returns():
    unet, (x, t, context) = tiny(), given()
    _, skips = unet.encode(unet.conv_in(x), unet.time(t), context)
    assert [skip.shape[1] for skip in skips] == skip_channels(TINY.unet)


def test_the_two_halves_make_the_whole():
    unet, (x, t, context) = tiny(), given()
    time = unet.time(t)
    middle, skips = unet.encode(unet.conv_in(x), time, context)
    assert torch.equal(unet.decode(middle, skips, time, context), unet(x, t, context))


def test_decode_leaves_the_callers_skips_alone():
    unet, (x, t, context) = tiny(), given()
    time = unet.time(t)
    middle, skips = unet.encode(unet.conv_in(x), time, context)
    count = len(skips)
    unet.decode(middle, skips, time, context)
    assert len(skips) == count


def test_control_is_added_to_each_skip_and_then_to_the_middle():
    both = pair("unet", TINY, "diffusers", "unit", torch.float64)
    x, t, context = given(torch.float64)
    _, skips = both.ours.encode(both.ours.conv_in(x), both.ours.time(t), context)
    middle = both.ours.encode(both.ours.conv_in(x), both.ours.time(t), context)[0]
    generator = torch.Generator().manual_seed(2)
    control = [
        torch.randn(each.shape, generator=generator, dtype=torch.float64)
        for each in (*skips, middle)
    ]
    theirs = both.theirs(
        x,
        t,
        context,
        down_block_additional_residuals=tuple(control[:-1]),
        mid_block_additional_residual=control[-1],
    ).sample
    controlled = both.ours(x, t, context, control=control)
    assert (controlled - theirs).abs().max() < FLOAT64
    assert (controlled - both.ours(x, t, context)).abs().max() > 0.1


def test_a_call_leaves_nothing_behind():
    unet, (x, t, context) = tiny(), given()
    first = unet(x, t, context)
    unet(x + 1, t + 5, context - 1)
    assert torch.equal(unet(x, t, context), first)


def test_a_member_of_a_batch_gets_what_it_gets_alone():
    unet, (x, t, context) = tiny(), given()
    together = unet(x, t, context)
    for i in range(2):
        alone = unet(x[i : i + 1], t[i : i + 1], context[i : i + 1])
        assert (together[i] - alone[0]).abs().max() < BATCH
