"""The counted multiplications are those that torch counts."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minisd.config import MINI, SD15
from minisd.teaching.work import LAYER_KINDS, count_multiplications, unet_multiplications
from minisd.unet import UNet
from minisd.vae import VAE


def counted_by_torch(network, *inputs):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() // 2  # a multiplication and an addition


def test_a_unet_and_a_decoder_take_the_work_that_torch_counts():
    with torch.device("meta"):
        unet, decoder = UNet(MINI.unet), VAE(MINI.vae).decoder
        x, latent = torch.empty(1, 4, 8, 8), torch.empty(1, 4, 8, 8)
        inputs = x, torch.empty(1), torch.empty(1, 77, MINI.unet.context_dim)
        assert sum(unet_multiplications(MINI.unet, 4, 8).values()) == counted_by_torch(
            unet, *inputs
        )
        assert sum(count_multiplications(decoder, latent).values()) == counted_by_torch(
            decoder, latent
        )


def test_pixels_take_64_times_the_convolutions_and_4096_times_the_self_attention():
    latents, pixels = (
        unet_multiplications(SD15.unet, 4, 64),
        unet_multiplications(SD15.unet, 3, 512),
    )
    assert latents.keys() == set(LAYER_KINDS)
    assert round(pixels["convolution"] / latents["convolution"]) == 64
    assert pixels["self-attention"] == 4096 * latents["self-attention"]
