"""Facts about the autoencoder that parity alone would not name."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from minisd.config import MINI, SD15, ModelConfig, VAEConfig
from minisd.vae import VAE, DiagonalGaussian, Downsample
from tests.helpers.reference_networks import ours, randomise

ROUNDING = 1e-6  # float32, a few operations
BATCH = 1e-4  # kernels differ by batch size; architecture.md promises no more
TINY = replace(SD15, vae=VAEConfig(channels=(32, 32, 64), res_blocks=1))


def tiny() -> VAE:
    vae = ours("vae", TINY)
    randomise(vae, 1.0, seed=0)
    return vae


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_vae_pads_right_and_bottom():
    downsample = Downsample(1)
    downsample.conv.weight.data = torch.ones(1, 1, 3, 3)
    downsample.conv.bias.data = torch.zeros(1)
    counted = downsample(torch.ones(1, 1, 4, 4))[0, 0]  # ones within each 3x3 window
    assert counted.tolist() == [[9, 6], [6, 4]]  # the windows stand out at the right and bottom


@pytest.mark.parametrize("config", [SD15, MINI], ids=lambda config: config.name)
def test_every_vae_norm_has_epsilon_1e_6(config: ModelConfig):
    norms = [m for m in ours("vae", config).modules() if isinstance(m, nn.GroupNorm)]
    assert {norm.eps for norm in norms} == {1e-6}


def test_the_latent_is_smaller_by_the_factor_on_each_side():
    vae = tiny()
    assert (TINY.vae.factor, SD15.vae.factor, MINI.vae.factor) == (4, 8, 8)
    latent = vae.encode(noise(1, 3, 32, 48)).mean
    assert latent.shape == (1, 4, 8, 12)
    assert vae.decode(latent).shape == (1, 3, 32, 48)


def test_one_by_one_convolutions_stand_after_the_encoder_and_before_the_decoder():
    vae, seen = tiny(), []
    vae.decoder.post_quant.register_forward_hook(lambda module, given, made: seen.append(made))
    vae.decoder.conv_in.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    vae.decode(noise(1, 4, 8, 12))
    assert torch.equal(*seen)
    vae.encoder.conv_out.register_forward_hook(lambda module, given, made: seen.append(made))
    image = noise(1, 3, 32, 48)
    moments = torch.cat([vae.encode(image).mean, vae.encode(image).logvar], dim=1)
    assert (moments - vae.encoder.quant(seen[2])).abs().max() < ROUNDING


def test_vae_has_as_many_numbers_as_published():
    assert sum(p.numel() for p in ours("vae", SD15).parameters()) == 83_653_863


def test_a_member_of_a_batch_gets_what_it_gets_alone():
    vae, image = tiny(), noise(3, 3, 32, 48)
    latents = vae.encode(image).mean
    pictures = vae.decode(latents)
    for i in range(3):
        latent = vae.encode(image[i : i + 1]).mean
        assert (latents[i] - latent[0]).abs().max() < BATCH
        assert (pictures[i] - vae.decode(latents[i : i + 1])[0]).abs().max() < BATCH


# ---- the Gaussian ---------------------------------------------------------------------------


def test_the_gaussian_is_the_references():
    moments = noise(1, 8, 4, 6)
    mine, theirs = DiagonalGaussian(moments), DiagonalGaussianDistribution(moments)
    assert torch.equal(mine.mean, theirs.mean)
    assert torch.equal(mine.logvar, theirs.logvar)
    assert torch.equal(mine.std, theirs.std)
    assert torch.equal(mine.mode(), theirs.mode())
    assert torch.allclose(mine.kl(), theirs.kl(), rtol=ROUNDING)
    drawn = [one.sample(torch.Generator().manual_seed(5)) for one in (mine, theirs)]
    assert torch.equal(*drawn)


def test_log_variance_is_held_between_minus_30_and_20():
    moments = torch.tensor([0.0, -99.0, 0.0, 99.0]).reshape(2, 2, 1, 1)
    assert DiagonalGaussian(moments).logvar.flatten().tolist() == [-30, 20]


def test_each_sample_of_a_batch_has_its_own_generator():
    moments = noise(3, 8, 2, 2)
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]
    together = DiagonalGaussian(moments).sample(generators)
    for i, seed in enumerate((7, 8, 9)):
        alone = DiagonalGaussian(moments[i : i + 1]).sample(torch.Generator().manual_seed(seed))
        assert torch.equal(together[i], alone[0])


def test_one_generator_serves_a_batch_in_turn():
    gaussian = DiagonalGaussian(noise(3, 8, 2, 2))
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randn(1, 4, 2, 2, generator=generator) for _ in range(3)]
    expected = gaussian.mean + gaussian.std * torch.cat(drawn)
    assert torch.equal(gaussian.sample(torch.Generator().manual_seed(7)), expected)


def test_a_batch_wants_a_generator_for_each_or_one_for_all():
    gaussian = DiagonalGaussian(torch.zeros(3, 8, 4, 4))
    with pytest.raises(ValueError, match="3 samples need 3 generators"):
        gaussian.sample([torch.Generator()])
