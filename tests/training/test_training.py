"""The training loop: losses fall, and a run that was killed goes on as if it had not been."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from minisd.mini import recipes
from minisd.mini.datasets import encode_pictures
from minisd.mini.emoji import FINE_THINGS, Emoji
from minisd.mini.job import Job, export, train_vocabulary
from minisd.mini.minutes import fit_to_minutes
from minisd.mini.scenes import batch, captions, vae_batch
from minisd.schedule import Schedule
from minisd.tokenizer import Tokenizer
from minisd.training import loop, run_folder
from minisd.training import vae as training_vae
from minisd.training.diffusion import (
    EncodedPictures,
    min_snr_noise_loss,
    noise_loss,
    train_diffusion,
)
from minisd.training.loop import Hyperparameters, update_ema
from minisd.training.run_folder import plot_losses  # before a fixture replaces it
from minisd.training.vae import (
    THIN_WEIGHT,
    decoder_loss,
    measure_scale,
    psnr,
    thinness,
    train_decoder,
    train_vae,
)
from minisd.vae import VAE
from tests.helpers.tiny_models import SMALL
from tests.helpers.training_runs import REPOSITORY, Killed, state_in

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def bank(emoji):
    torch.manual_seed(0)
    return encode_pictures(emoji, VAE(SMALL.vae), train_vocabulary(emoji), SMALL, count=200, seed=0)


@pytest.fixture(scope="module")
def trainings(emoji, bank):
    """Two functions, each of which runs one training in a folder."""

    def vae(folder, recipe, batch_size=2, seed=0, config=SMALL):
        def draw_pictures(count, number):
            return vae_batch(emoji, config.size, count, seed, number).images

        return train_vae(draw_pictures, config.vae, folder, recipe, batch_size, seed)

    def diffusion(folder, recipe, batch_size=2, seed=0, config=SMALL):
        return train_diffusion(bank, config, folder, recipe, batch_size, seed)

    return {"vae": vae, "diffusion": diffusion}


@pytest.fixture(scope="module", params=["vae", "diffusion"])
def train_in(trainings, request):
    return trainings[request.param]


@pytest.fixture
def train_a_vae(trainings):
    return trainings["vae"]


@pytest.fixture(scope="module")
def unbroken(train_in, tmp_path_factory):
    """Eight steps without a break: the network, and its exact losses by step."""
    with pytest.MonkeyPatch.context() as patch:
        seen = exact_losses(patch)
        return train_in(tmp_path_factory.mktemp("unbroken"), recipe(8)), seen


def recipe(steps):
    return Hyperparameters(steps=steps, warmup=2, save_every=3, log_every=1)


def same(one, other):
    """Whether two networks have the same weights to the last bit."""
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def exact_losses(patch, die_before=None):
    """Note the terms of the loss by step, unrounded. die_before: end the run at this step."""
    seen, check_finite = {}, loop.check_finite

    def watched(terms, norm, step):
        if step == die_before:
            raise Killed
        check_finite(terms, norm, step)
        seen[step] = [term.item() for term in terms.values()]

    patch.setattr(loop, "check_finite", watched)
    return seen


@pytest.mark.parametrize("kill", [1, 3, 5, 7])  # it is saved after 3 steps, 6 and 8
def test_a_resumed_run_computes_what_an_unbroken_one_does(unbroken, train_in, tmp_path, kill):
    whole, expected = unbroken
    with pytest.MonkeyPatch.context() as patch:
        before = exact_losses(patch, die_before=kill)
        with pytest.raises(Killed):
            train_in(tmp_path, recipe(8))
    with pytest.MonkeyPatch.context() as patch:
        after = exact_losses(patch)
        resumed = train_in(tmp_path, recipe(8))
    assert list(before) == list(range(kill))
    assert list(after) == list(range(kill // 3 * 3, 8))
    assert before | after == expected == after | before
    assert same(resumed, whole)


def test_a_run_killed_while_it_saves_goes_on_from_the_save_before(train_a_vae, tmp_path):
    """The process is killed when the second state is written, but not yet in its place."""
    command = [sys.executable, "-m", "tests.training.test_training", tmp_path / "killed"]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    left = [path.name for path in (tmp_path / "killed").iterdir()]
    assert any(name.startswith(".minisd") for name in left), left
    assert state_in(tmp_path / "killed")["step"] == 3
    resumed = train_a_vae(tmp_path / "killed", recipe(6))
    assert same(resumed, train_a_vae(tmp_path / "whole", recipe(6)))
    left = [path.name for path in (tmp_path / "killed").iterdir()]
    assert not any(name.startswith(".minisd") for name in left), left


def be_killed_while_saving(folder):
    """Train until the second save, and no further."""
    torch.set_num_threads(1)
    syncs = []

    def sync_once(file):
        syncs.append(file)
        if len(syncs) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = sync_once
    emoji = Emoji.load()

    def draw_pictures(count, number):
        return vae_batch(emoji, SMALL.size, count, 0, number).images

    train_vae(draw_pictures, SMALL.vae, folder, recipe(6), 2)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(train_a_vae, tmp_path):
    resource = pytest.importorskip("resource")  # a limit on the size of files stands for the disk
    train_a_vae(tmp_path, recipe(3))
    good = (tmp_path / "state.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, limits[1]))
    try:
        with pytest.raises(ValueError) as caught:
            train_a_vae(tmp_path, recipe(6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'state.pt'} cannot be written (File too large)" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "state.pt"]
    assert (tmp_path / "state.pt").read_bytes() == good
    train_a_vae(tmp_path, recipe(6))
    assert state_in(tmp_path)["step"] == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_disk_without_any_room_is_told(train_a_vae, tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"Cannot write into .* \(No space left on device\)"):
        train_a_vae(tmp_path, recipe(3))
    assert not (tmp_path / "state.pt").exists()


DAMAGE = {
    "empty": lambda whole: b"",
    "one byte": lambda whole: whole[:1],
    "half": lambda whole: whole[: len(whole) // 2],
    "all but one byte": lambda whole: whole[:-1],
    "a hole": lambda whole: whole[: len(whole) // 2] + bytes(99) + whole[len(whole) // 2 + 99 :],
    "no state": lambda whole: b"hello, this is no state at all",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_one_sentence(train_a_vae, tmp_path, kind):
    train_a_vae(tmp_path, recipe(1))
    path = tmp_path / "state.pt"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.raises(ValueError, match=r"is damaged\. Delete it") as caught:
        train_a_vae(tmp_path, recipe(2))
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_no_checkpoint(train_a_vae, tmp_path):
    torch.save({"model": {}}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt is damaged"):
        train_a_vae(tmp_path, recipe(2))


NARROW = replace(SMALL, vae=replace(SMALL.vae, channels=(8, 8, 8, 8)))
OTHERWISE = {
    "seed was 0 and is now 1": ({}, {"seed": 1}),
    "batch_size was 2 and is now 4": ({}, {"batch_size": 4}),
    "hyperparameters.clip was 1.0 and is now 0.5": ({"clip": 0.5}, {}),
    "hyperparameters.steps was 3 and is now 2": ({"steps": 2}, {}),
    "vae.channels was (8, 8, 16, 16) and is now (8, 8, 8, 8)": ({}, {"config": NARROW}),
    "hyperparameters.ema was 0.999 and is now 0.9; seed was 0 and is now 1": (
        {"ema": 0.9, "steps": 5},
        {"seed": 1},
    ),
}


@pytest.mark.parametrize("said", OTHERWISE)
def test_a_run_with_other_settings_is_not_continued(train_a_vae, tmp_path, said):
    train_a_vae(tmp_path, recipe(3))
    good = (tmp_path / "state.pt").read_bytes()
    in_recipe, others = OTHERWISE[said]
    with pytest.raises(ValueError, match="Train in another folder, or give") as caught:
        train_a_vae(tmp_path, replace(recipe(3), **in_recipe), **others)
    assert f"The run in {tmp_path} has other settings: {said}. Train" in str(caught.value)
    assert (tmp_path / "state.pt").read_bytes() == good


def test_another_size_of_the_bank_is_another_run(bank, tmp_path):
    train_diffusion(bank, SMALL, tmp_path, recipe(1), 2)
    half = EncodedPictures(bank.latents[:100], bank.tokens[:100])
    with pytest.raises(ValueError, match="pictures was 200 and is now 100"):
        train_diffusion(half, SMALL, tmp_path, recipe(1), 2)


def test_latents_of_another_autoencoder_or_vocabulary_are_another_run(emoji, bank, tmp_path):
    train_diffusion(bank, SMALL, tmp_path, recipe(1), 2)
    torch.manual_seed(5)
    other_vae, words = VAE(SMALL.vae), train_vocabulary(emoji)
    fewer = Tokenizer.train(captions(emoji, 3000), words.vocab_size)
    torch.manual_seed(0)
    same_vae = VAE(SMALL.vae)
    for vae, tokenizer in ((other_vae, words), (same_vae, fewer)):
        others = encode_pictures(emoji, vae, tokenizer, SMALL, count=200, seed=0)
        with pytest.raises(ValueError, match=r"encoded_by was .* and is now .*"):
            train_diffusion(others, SMALL, tmp_path, recipe(1), 2)


def test_more_steps_and_other_habits_of_saving_go_on(train_a_vae, tmp_path):
    train_a_vae(tmp_path, recipe(3))
    train_a_vae(tmp_path, replace(recipe(5), save_every=1, log_every=2))
    assert state_in(tmp_path)["step"] == 5
    assert [record["step"] for record in run_folder.log_records(tmp_path)] == [0, 1, 2, 4]


def test_a_folder_of_another_model_is_refused(train_a_vae, tmp_path):
    """The code of the networks has changed, but not the description of the run."""
    train_a_vae(tmp_path, recipe(1))
    state = state_in(tmp_path)
    state["model"]["encoder.conv_in.weight"] = torch.zeros(4, 3, 3, 3)
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="have other shapes than those of this model"):
        train_a_vae(tmp_path, recipe(2))


def test_the_seed_alone_decides(unbroken, train_in, tmp_path):
    """Global random numbers before and during the training change nothing; another seed does."""
    whole, losses = unbroken
    rate_factor = Hyperparameters.rate_factor

    def shuffle(recipe, step):
        torch.manual_seed(1000 + step)
        np.random.seed(1000 + step)
        random.seed(1000 + step)
        return rate_factor(recipe, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hyperparameters, "rate_factor", shuffle)
        shuffle(recipe(8), 0)
        assert same(train_in(tmp_path / "same", recipe(8)), whole)
    with pytest.MonkeyPatch.context() as patch:
        others = exact_losses(patch)
        train_in(tmp_path / "other", recipe(1), seed=1)
    assert abs(others[0][0] / losses[0][0] - 1) > 1e-3


def test_as_many_steps_as_the_minutes_have_room_for(tmp_path):
    """Half a second a step, after two that take ten: 240 in two minutes."""

    def train(recipe, folder):
        at = [10.0, 20.0] + [20.5 + 0.5 * step for step in range(recipe.steps - 2)]
        for step, seconds in enumerate(at):
            run_folder.log(folder, {"step": step, "loss": 1.0, "seconds": seconds})

    found = fit_to_minutes(Hyperparameters(steps=10_000, clip=3.0), 2, tmp_path, train)
    assert found == Hyperparameters(240, clip=3.0, warmup=24, save_every=61, log_every=5)
    long = fit_to_minutes(Hyperparameters(steps=10_000), 1000, tmp_path, train)
    assert long == Hyperparameters(120_000)
    assert fit_to_minutes(Hyperparameters(steps=10_000), 1e-9, tmp_path, train).steps == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan")])
def test_no_minutes_is_no_training(tmp_path, minutes):
    with pytest.raises(ValueError, match=f"Cannot train for {minutes} minutes. Give"):
        fit_to_minutes(recipe(5), minutes, tmp_path, None)


def test_a_run_of_some_seconds_is_one_that_resumes(train_a_vae, tmp_path):
    long = Hyperparameters(steps=10_000)
    found = fit_to_minutes(long, 0.01, tmp_path, lambda recipe, there: train_a_vae(there, recipe))
    assert not list(tmp_path.iterdir())
    assert 1 <= found.steps < 1000
    with pytest.MonkeyPatch.context() as patch:
        exact_losses(patch, die_before=found.steps - 1)
        with pytest.raises(Killed):
            train_a_vae(tmp_path, found)
    if found.steps > found.save_every:
        assert fit_to_minutes(long, 0.01, tmp_path, train_in=None) == found  # no trial
    train_a_vae(tmp_path, found)
    assert state_in(tmp_path)["step"] == found.steps


def test_the_noise_loss_falls(bank, tmp_path):
    train_diffusion(bank, SMALL, tmp_path, replace(recipe(60), warmup=5), batch_size=16)
    found = [record["noise"] for record in run_folder.log_records(tmp_path)]
    assert sum(found[-10:]) < 0.85 * sum(found[:10])


def test_the_vae_learns_to_copy(train_a_vae, tmp_path):
    before = VAE(SMALL.vae)
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    vae = train_a_vae(tmp_path, replace(recipe(40), warmup=5), batch_size=8)
    assert psnr(vae, images) > psnr(before, images)
    scaled = vae.encode(images).mean * measure_scale(vae, images)
    assert scaled.std().item() == pytest.approx(1, abs=1e-3)


def draw_with_fine_things(emoji, patch, vae):
    """The pictures that the recipe of the decoder draws, at the small size."""
    given = []
    patch.setattr(recipes, "MINI", SMALL)
    patch.setattr(recipes, "trained_vae", lambda folder, emoji: (vae, SMALL))
    patch.setattr(recipes, "train_decoder", lambda vae, draw, *rest, **more: given.append(draw))
    train_in, _ = recipes.prepare_decoder(Job())
    train_in(None, None)
    return given[0]


def test_a_decoder_goes_on_by_itself(emoji, tmp_path, monkeypatch):
    """The encoder does not change by a bit, nor does the autoencoder that was passed in."""
    torch.manual_seed(0)
    vae = VAE(SMALL.vae)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    lr = replace(recipe(30), rate=0.02, ema=0.5)
    draw_pictures = draw_with_fine_things(emoji, monkeypatch, vae)
    tuned = train_decoder(vae, draw_pictures, tmp_path, lr, batch_size=4)
    images = batch(emoji, SMALL.size, 16, seed=1, step=0).images
    assert psnr(tuned, images) > psnr(vae, images) + 1
    assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())
    changed = [n for n, tensor in tuned.state_dict().items() if not torch.equal(before[n], tensor)]
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_what_is_thin():
    """A bright line and a dark dot are thin; a square and an edge are not."""
    image = torch.zeros(1, 3, 16, 16)
    image[:, 0, 2, 2:14] = 0.5  # a bright line
    image[:, 1, 5:7, 5:7] = -0.75  # a dark dot of two pixels
    image[:, :, 9:13, 9:13] = 1  # wide enough to stay
    expected = torch.zeros(1, 1, 16, 16)
    expected[..., 2, 2:14], expected[..., 5:7, 5:7] = 0.5, 0.75
    assert torch.equal(thinness(image), expected)
    half = torch.zeros(1, 3, 16, 16)
    half[..., 8:] = 1
    assert thinness(half).max() == 0


def test_an_error_in_a_thin_line_counts_more(emoji):
    torch.manual_seed(0)
    vae = VAE(SMALL.vae)
    image = batch(emoji, SMALL.size, 4, seed=1, step=0).images
    with torch.no_grad(), loop.fast_precision():
        drawn = vae.decode(vae.encode(image).mode()).float()
        found = decoder_loss(vae, image, thin_weight=3)["pixels"]
    plain = 2 * (drawn - image).square()
    extra = (3 * thinness(image) * plain).mean()
    torch.testing.assert_close(found - plain.mean(), extra)
    assert extra > 0


def test_a_decoder_learns_thin_lines_first(emoji, tmp_path, monkeypatch):
    """Every second picture shows fine things. In the last sixth of the steps all count equally."""
    seen = []

    def noted(vae, image, thin_weight):
        seen.append((image, thin_weight))
        return decoder_loss(vae, image, thin_weight)

    monkeypatch.setattr(training_vae, "decoder_loss", noted)
    vae = VAE(SMALL.vae)
    draw_pictures = draw_with_fine_things(emoji, monkeypatch, vae)
    train_decoder(vae, draw_pictures, tmp_path, recipe(5), batch_size=4)
    assert [thin_weight for _, thin_weight in seen] == [THIN_WEIGHT] * 5 + [0]
    fine = emoji.only(FINE_THINGS)
    assert fine.things == FINE_THINGS and fine.tiles.shape[0] == len(FINE_THINGS)
    cat = emoji.things.index("cat"), fine.things.index("cat")
    np.testing.assert_array_equal(emoji.tiles[cat[0]], fine.tiles[cat[1]])
    for half, shown in zip(seen[1][0].split(2), (emoji, fine), strict=True):
        torch.testing.assert_close(half, vae_batch(shown, SMALL.size, 2, seed=0, step=1).images)


def test_a_process_with_one_picture_of_a_batch_draws_both_kinds_in_turn(emoji, monkeypatch):
    draw_pictures = draw_with_fine_things(emoji, monkeypatch, VAE(SMALL.vae))
    for number, kind in enumerate((emoji, emoji.only(FINE_THINGS))):
        expected = vae_batch(kind, SMALL.size, 1, seed=0, step=number).images
        assert torch.equal(draw_pictures(1, number), expected)
    assert len(draw_pictures(3, 0)) == 3


def test_the_loss_is_drawn(train_a_vae, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "plot_losses", plot_losses)
    drawn = []
    note = lambda figure, path, dpi: drawn.append((figure, path))  # noqa: E731
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", note)
    train_a_vae(tmp_path, recipe(4))
    ((figure, path),) = drawn
    (axes,) = figure.axes
    assert path.name == "loss.png" and axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["pixels", "edges", "kl"]
    records = [
        json.loads(line)
        for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    raw = axes.get_lines()[::2]
    for line, name in zip(raw, ["pixels", "edges", "kl"], strict=True):
        assert list(line.get_xdata()) == [0, 1, 2, 3]
        assert list(line.get_ydata()) == [record[name] for record in records]
    monkeypatch.undo()
    run_folder.plot_losses(tmp_path)
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_the_smooth_line_is_the_mean_of_neighbours():
    values = np.random.default_rng(0).random(100)
    found = run_folder.moving_average(values)
    assert found[50] == pytest.approx(values[47:53].mean(), rel=0.2)
    assert found.std() < 0.6 * values.std()
    assert run_folder.moving_average(np.full(100, 3.0)) == pytest.approx(np.full(100, 3.0))
    assert list(run_folder.moving_average(values[:5])) == list(values[:5])


def test_a_step_done_again_counts_as_done_last(tmp_path):
    for step, loss in [(0, 1.0), (1, 0.9), (2, 0.8), (1, 0.7), (2, 0.6)]:
        run_folder.log(tmp_path, {"step": step, "noise": loss})
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 3, "noi')  # a full disk
    assert [record["noise"] for record in run_folder.log_records(tmp_path)] == [1.0, 0.7, 0.6]


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
    assert isinstance(bank, EncodedPictures)


def test_the_loss_is_that_of_the_noise_alone(bank):
    """A network that knows the noise has no loss. The loss of one that says 0 is the variance."""
    generator = torch.Generator().manual_seed(0)
    x0, tokens = torch.zeros(512, 4, 4, 4), torch.zeros(512, 77, dtype=torch.long)
    schedule = Schedule(SMALL.schedule)

    def solver(x, t, tokens):
        return x / (1 - schedule.alpha_bar[t]).sqrt().float().reshape(-1, 1, 1, 1)

    assert noise_loss(solver, schedule, x0, tokens, generator).item() < 1e-6
    silent = noise_loss(lambda x, t, tokens: x * 0, schedule, x0, tokens, generator)
    assert silent.item() == pytest.approx(1, abs=0.02)
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    for max_snr in (0.1, 1.0, 5.0):
        weighed = min_snr_noise_loss(
            lambda x, t, _: x * 0, schedule, x0, tokens, generator, max_snr
        )
        expected = (snr.clamp(max=max_snr) / snr).mean().item()
        assert weighed.item() == pytest.approx(expected, abs=0.02)


def test_the_rates_rise_evenly_then_fall_as_half_a_cosine():
    recipe = Hyperparameters(steps=1100, warmup=100, final=0.02)
    shares = [recipe.rate_factor(step) for step in range(1100)]
    assert shares[:100] == pytest.approx(np.arange(1, 101) / 100)
    assert shares[600] == pytest.approx((1 + 0.02) / 2)
    assert shares[350] == pytest.approx(0.02 + 0.98 * (1 + 0.5**0.5) / 2)
    assert shares[-1] == pytest.approx(0.02, abs=1e-4)
    assert all(later < earlier for earlier, later in pairwise(shares[101:]))


def test_each_optimizer_steps_at_its_own_rate(train_a_vae, tmp_path):
    chosen = replace(recipe(3), rate=0.03, adam_rate=0.001, weight_decay=0.04)
    train_a_vae(tmp_path, chosen)
    muon, adam = (state["param_groups"][0] for state in state_in(tmp_path)["optimizers"])
    share = chosen.rate_factor(2)
    assert (muon["lr"], adam["lr"]) == pytest.approx((0.03 * share, 0.001 * share))
    assert muon["weight_decay"] == adam["weight_decay"] == 0.04


def test_the_average_keeps_its_share():
    average, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    expected = 0.9 * average.weight + 0.1 * model.weight
    update_ema(average, model, keep=0.9)
    assert torch.allclose(average.weight, expected)


def test_a_stage_that_was_not_trained_is_told(tmp_path):
    with pytest.raises(ValueError, match="Run `minisd train vae` first"):
        export(Job(tmp_path, tmp_path / "mini.safetensors"))


if __name__ == "__main__":
    be_killed_while_saving(Path(sys.argv[1]))
