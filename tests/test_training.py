"""The training loop: losses fall, and a run that was killed goes on as if it had not been."""

import json
from dataclasses import replace

import pytest
import torch

from minisd.config import MINI
from minisd.schedule import Schedule
from minisd.training import mini
from minisd.training.data import Emoji
from minisd.training.diffusion import LatentBank, encode_bank, noise_loss, train_diffusion
from minisd.training.loop import Recipe, generator_at, update_average
from minisd.training.vae import measure_scale, psnr, train_vae
from minisd.vae import VAE

SMALL = replace(
    MINI,
    text=replace(MINI.text, width=32, layers=1, heads=2),
    unet=replace(MINI.unet, channels=(32, 32), context_dim=32, head_width=16),
    vae=replace(MINI.vae, channels=(8, 8, 16, 16)),
    size=32,
)


@pytest.fixture(scope="module")
def emoji():
    return Emoji.load()


@pytest.fixture(scope="module")
def bank(emoji):
    torch.manual_seed(0)
    return encode_bank(emoji, VAE(SMALL.vae), mini.vocabulary(emoji), SMALL, count=200, seed=0)


def losses(folder):
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["noise"] for line in lines]


def recipe(steps):
    return Recipe(steps=steps, warmup=2, save_every=3, log_every=1)


def test_a_resumed_run_computes_what_an_unbroken_one_does(bank, tmp_path):
    whole = train_diffusion(bank, SMALL, tmp_path / "whole", recipe(8), batch_size=4)

    class Killed(Exception):
        pass

    def die_at_step_five(step):
        if step == 5:
            raise Killed
        return generator_at(0, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisd.training.diffusion.generator_at", lambda _, s: die_at_step_five(s))
        with pytest.raises(Killed):
            train_diffusion(bank, SMALL, tmp_path / "broken", recipe(8), batch_size=4)
    resumed = train_diffusion(bank, SMALL, tmp_path / "broken", recipe(8), batch_size=4)

    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    # steps 3 and 4 ran twice: before the kill, and again from the checkpoint after step 3
    broken = losses(tmp_path / "broken")
    assert broken[:3] + broken[5:] == losses(tmp_path / "whole")
    assert broken[3:5] == broken[5:7]


def test_a_folder_of_another_model_is_refused(bank, tmp_path):
    train_diffusion(bank, SMALL, tmp_path, recipe(1), batch_size=2)
    wider = replace(SMALL, unet=replace(SMALL.unet, channels=(64, 64)))
    with pytest.raises(ValueError, match="saved by a model of another shape"):
        train_diffusion(bank, wider, tmp_path, recipe(2), batch_size=2)


def test_the_noise_loss_falls(bank, tmp_path):
    train_diffusion(bank, SMALL, tmp_path, replace(recipe(60), warmup=5), batch_size=16)
    found = losses(tmp_path)
    assert sum(found[-10:]) < 0.85 * sum(found[:10])


def test_the_vae_learns_to_copy(emoji, tmp_path):
    before = VAE(SMALL.vae)
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    vae = train_vae(emoji, tmp_path, replace(recipe(40), warmup=5), batch_size=8, config=SMALL)
    assert psnr(vae, images) > psnr(before, images)
    scaled = vae.encode(images).mean * measure_scale(vae, images)
    assert scaled.std().item() == pytest.approx(1, abs=1e-3)


def test_psnr_counts_from_a_range_of_two():
    class Off(torch.nn.Module):
        """Every pixel comes back 0.2 too bright: one tenth of the range, 20 dB."""

        def encode(self, image):
            return self

        def mode(self):
            return torch.zeros(1, 3, 4, 4)

        def decode(self, z):
            return z + 0.2

    assert psnr(Off(), torch.zeros(1, 3, 4, 4)) == pytest.approx(20, abs=1e-4)


def test_the_bank_holds_unit_latents_of_captioned_pictures(bank):
    x0, tokens = bank.draw(64, torch.Generator().manual_seed(0))
    assert x0.shape == (64, 4, 4, 4)
    assert tokens.shape == (64, 77)
    assert isinstance(bank, LatentBank)


def test_the_loss_is_that_of_the_noise_alone(bank):
    """A network that knows the noise has no loss; a silent one has the variance of the noise."""
    generator = torch.Generator().manual_seed(0)
    x0, tokens = torch.zeros(512, 4, 4, 4), torch.zeros(512, 77, dtype=torch.long)
    schedule = Schedule(SMALL.schedule)

    def solver(x, t, tokens):
        return x / (1 - schedule.alpha_bar[t]).sqrt().float().reshape(-1, 1, 1, 1)

    assert noise_loss(solver, schedule, x0, tokens, generator).item() < 1e-6
    silent = noise_loss(lambda x, t, tokens: x * 0, schedule, x0, tokens, generator)
    assert silent.item() == pytest.approx(1, abs=0.02)


def test_the_rate_rises_then_falls():
    rates = [Recipe(steps=1000, warmup=100).rate_at(step) for step in range(1000)]
    assert rates.index(max(rates)) in (99, 100)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < 2e-5


def test_the_average_keeps_its_share():
    average, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    expected = 0.9 * average.weight + 0.1 * model.weight
    update_average(average, model, keep=0.9)
    assert torch.allclose(average.weight, expected)


def test_a_stage_that_was_not_trained_is_told(tmp_path):
    with pytest.raises(ValueError, match="run `minisd train vae` first"):
        mini.export(tmp_path, tmp_path / "mini.safetensors")
