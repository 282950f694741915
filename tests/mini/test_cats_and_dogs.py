"""The model of cats and dogs: its pictures, its training at a tiny size, its file."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import minisd
from minisd.config import ScheduleConfig, UNetConfig
from minisd.guidance import guided_denoiser
from minisd.mini import cats_and_dogs
from minisd.mini.job import Job
from minisd.mini.judge import load_judge
from minisd.mini.recipes import train_recipe
from minisd.schedule import Schedule
from minisd.training.loop import Hyperparameters
from minisd.training.run_folder import log_records

SCHEDULE = Schedule(ScheduleConfig())
TINY = UNetConfig(
    channels=(8, 16), attention=(False, True), res_blocks=1, context_dim=8, heads=2, norm_groups=4
)
STEPS = Hyperparameters(steps=60, rate=0.02, ema=0.9, warmup=5, save_every=30, log_every=1)


def two_latents():
    """Two plain colours, each the other's opposite."""
    colour = torch.tensor([1.0, -1.0, 1.0, -1.0])
    return torch.stack([colour, -colour])[:, :, None, None].expand(-1, -1, 8, 8)


def test_portraits_are_cats_and_dogs_that_look_like_their_drawings(emoji):
    images, labels = cats_and_dogs.portraits(emoji, 64, 40)
    again, _ = cats_and_dogs.portraits(emoji, 64, 40)
    other, _ = cats_and_dogs.portraits(emoji, 64, 40, step=1)
    assert images.shape == (40, 3, 64, 64)
    assert images.abs().max() <= 1
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    assert 10 < labels.sum() < 30
    judge = load_judge()  # trained apart, on other crops and grounds
    things = judge(images)[0].argmax(dim=1)
    named = [judge.things[thing] for thing in things]
    right = sum(
        name == cats_and_dogs.PETS[label] for name, label in zip(named, labels, strict=True)
    )
    assert right >= 38


def test_a_million_parameters_and_no_prompt():
    network = cats_and_dogs.Unprompted()
    count = sum(p.numel() for p in network.parameters())
    assert 0.9e6 < count < 1.2e6
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([5, 700])
    with torch.no_grad():
        assert torch.equal(network(x, t), network(x, t, torch.randn(2, 77, 128)))


def test_training_makes_guesses_of_what_was_shown(tmp_path):
    """After 60 steps the guess from half noise is nearer to its own picture than to the other."""
    latents = two_latents()
    network = cats_and_dogs.train_unprompted(latents, SCHEDULE, tmp_path, STEPS, TINY)
    losses = [record["noise"] for record in log_records(tmp_path)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    x, level = SCHEDULE.add_noise(latents, noise, 400), SCHEDULE.at(400)
    with torch.no_grad():
        guess = guided_denoiser(network, "eps", torch.zeros(1, 0, 0))(x, level).x0
    apart = torch.cdist(guess.flatten(1), latents.flatten(1))
    assert apart.argmin(dim=1).tolist() == [0, 1]
    assert apart.diag().max() < 0.7 * torch.dist(latents[0], latents[1])


def test_training_goes_on_where_it_stopped(tmp_path):
    """A training in two pieces, as in the lesson, goes on with what the first one learnt."""
    latents = two_latents()
    for steps in (30, 60):
        recipe = replace(STEPS, steps=steps)
        cats_and_dogs.train_unprompted(latents, SCHEDULE, tmp_path, recipe, TINY)
    records = log_records(tmp_path)
    assert [record["step"] for record in records] == list(range(60))
    assert records[31]["noise"] < 0.9 * records[0]["noise"]


def test_a_file_gives_back_the_network(tmp_path):
    torch.manual_seed(0)
    network = cats_and_dogs.Unprompted(TINY)
    cats_and_dogs.save_unprompted(tmp_path / "pets.safetensors", network, {"steps": 3})
    loaded = cats_and_dogs.load_unprompted(tmp_path / "pets.safetensors")
    assert loaded.unet.config == TINY
    assert not any(p.requires_grad for p in loaded.parameters())
    for (name, ours), theirs in zip(network.named_parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours.detach().half().float(), msg=name)


def test_another_file_is_refused_in_words(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not a file of the cats-and-dogs model"):
        cats_and_dogs.load_unprompted(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "damaged.safetensors", {"unprompted": "{}"})
    with pytest.raises(ValueError, match="damaged"):
        cats_and_dogs.load_unprompted(tmp_path / "damaged.safetensors")


def test_the_stage_writes_a_small_file_that_says_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(cats_and_dogs, "PORTRAITS", 100)
    output = tmp_path / "pets.safetensors"
    train_recipe("cats-and-dogs", Job(folder=tmp_path, output=output, steps=2))
    assert output.stat().st_size < 2.5e6
    notes = minisd.checkpoints.header.read_metadata(output)["notes"]
    assert "minisd train cats-and-dogs" in notes
    assert cats_and_dogs.load_unprompted(output).unet.config == cats_and_dogs.UNPROMPTED_CONFIG
