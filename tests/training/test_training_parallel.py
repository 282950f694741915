"""Two processes that share every batch learn what one process learns from it whole."""

import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from minisd.training.parallel import average_gradients, from_first, meet, share

from minisd.config import MINI
from minisd.mini.emoji import Emoji
from minisd.mini.scenes import vae_batch
from minisd.schedule import Schedule
from minisd.training import diffusion, loop, parallel, vae
from minisd.training import run_folder as folder
from minisd.training.diffusion import EncodedPictures, TextAndUNet, noise_loss, train_diffusion
from minisd.training.loop import Hyperparameters, generator_at
from minisd.training.vae import train_vae, vae_loss
from minisd.vae import VAE

# Two channels to a group at least: a norm takes away the bias before it where it has but one.
SMALL = replace(
    MINI,
    text=replace(MINI.text, width=32, layers=1, heads=2),
    unet=replace(MINI.unet, channels=(32, 32), context_dim=32, head_width=16),
    vae=replace(MINI.vae, channels=(8, 8, 16, 16), norm_groups=4),
    size=32,
)
STAGES = ["vae", "diffusion"]
RECIPE = Hyperparameters(steps=3, warmup=2, save_every=2, log_every=1)


def a_bank() -> EncodedPictures:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(20, 4, 4, 4, generator=generator)
    tokens = torch.randint(SMALL.text.vocab_size, (20, 77), generator=generator)
    return EncodedPictures(latents, tokens)


def gradients(emoji: Emoji, bank: EncodedPictures) -> dict[str, dict]:
    """Those of one batch of four, for both stages."""
    torch.manual_seed(0)
    autoencoder, network = VAE(SMALL.vae), TextAndUNet(SMALL)
    pictures = vae_batch(emoji, SMALL.size, 4, seed=0, step=0).images
    sum(vae_loss(autoencoder, pictures, generator_at(0, 0)).values()).backward()
    x0, tokens = bank.draw(4, generator_at(0, 0))
    noise_loss(network, Schedule(SMALL.schedule), x0, tokens, generator_at(0, 1)).backward()
    found = {}
    for stage, model in zip(STAGES, (autoencoder, network), strict=True):
        average_gradients(model)
        found[stage] = {name: parameter.grad for name, parameter in model.named_parameters()}
    return found


def work(where: Path, die: bool) -> None:
    """What each process does: the gradients of a batch, then three steps of either training.

    die: the diffusion training breaks off after its checkpoint at step 2, and is resumed.
    """
    torch.set_num_threads(1)
    emoji, bank = Emoji.load(), a_bank()
    with pytest.MonkeyPatch.context() as patch:
        for module in (vae, diffusion, loop):  # half precision would round away what is compared
            patch.setattr(module, "fast_precision", nullcontext)
        patch.setattr(loop, "plot_losses", lambda folder: None)
        meet()
        results = {
            "gradients": gradients(emoji, bank),
            "first": from_first(7.0 + rank_and_world_size()[0]),
        }
        results["vae"] = train_vae(emoji, where / "vae", RECIPE, 4, config=SMALL).state_dict()
        if die:
            with pytest.MonkeyPatch.context() as deadly:
                deadly.setattr(diffusion, "generator_at", alive_for_two_steps)
                with pytest.raises(TimeoutError):
                    train_diffusion(bank, SMALL, where / "diffusion", RECIPE, 4)
        network = train_diffusion(bank, SMALL, where / "diffusion", RECIPE, 4)
        results["diffusion"] = network.state_dict()
        torch.save(results, where / f"rank{rank_and_world_size()[0]}.pt")


def alive_for_two_steps(seed: int, step: int) -> torch.Generator:
    if step == 2:
        raise TimeoutError
    return generator_at(seed, step)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    """A folder with the work of one process."""
    where = tmp_path_factory.mktemp("one")
    work(where, die=False)
    return where


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """A folder with the work of two processes, started as torchrun starts them."""
    where = tmp_path_factory.mktemp("two")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, __file__, where],
            env=os.environ | address | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    (where / "said by the second").write_text(said[1], encoding="utf-8")
    return where


def results(where: Path, rank: int = 0) -> dict:
    return torch.load(where / f"rank{rank}.pt", weights_only=True)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_have_the_gradients_of_one(by_one, by_two, stage):
    expected = results(by_one)["gradients"][stage]
    for rank in range(2):
        found = results(by_two, rank)["gradients"][stage]
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_learn_what_one_does(by_one, by_two, stage):
    """Weights after three steps; those of the diffusion by way of a checkpoint.

    A bias of keys shifts all scores alike: its gradient is nothing but rounding, which Adam
    blows up to a full step.
    """
    one, two = (torch.load(at / stage / "state.pt", weights_only=True) for at in (by_one, by_two))
    for part in ("model", "average"):
        for name, tensor in one[part].items():
            if not name.endswith("to_k.bias"):
                torch.testing.assert_close(two[part][name], tensor, rtol=0, atol=1e-5, msg=name)
    assert two["run"] == one["run"]
    for rank in range(2):
        for name, tensor in results(by_two, rank)[stage].items():
            assert torch.equal(tensor, two["ema"][name]), name


@pytest.mark.parametrize("stage", STAGES)
def test_the_log_tells_of_the_whole_batch_once(by_one, by_two, stage):
    one, two = (folder.log_records(at / stage) for at in (by_one, by_two))
    lines = (by_two / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert {**a, "seconds": 0} == pytest.approx({**b, "seconds": 0}, rel=1e-4, abs=2e-5)


def test_only_the_first_shows_progress(by_two):
    assert (by_two / "said by the second").read_text(encoding="utf-8") == ""


def test_the_first_process_decides(by_two):
    assert [results(by_two, rank)["first"] for rank in range(2)] == [7, 7]


def test_shares_are_a_batch_together(monkeypatch):
    whole = torch.arange(12).reshape(6, 2)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "place", lambda rank=rank: (rank, 3))
        shares.append(share(whole))
    assert [len(part) for part in shares] == [2, 2, 2]
    assert sorted(torch.cat(shares).flatten().tolist()) == list(range(12))


def test_one_process_takes_everything():
    assert torch.equal(share(torch.arange(5)), torch.arange(5))


def test_a_batch_that_cannot_be_shared_evenly_is_refused(monkeypatch):
    monkeypatch.setattr(parallel, "place", lambda: (0, 2))
    with pytest.raises(ValueError, match=r"a batch of 5 .* by 2 processes: choose a multiple of 2"):
        share(torch.zeros(5, 3))


def test_the_autoencoders_noise_is_what_its_gaussian_draws():
    """Drawn for the whole batch at once, it equals what is drawn picture by picture."""
    torch.manual_seed(0)
    autoencoder, pictures = VAE(SMALL.vae), torch.rand(4, 3, 32, 32) * 2 - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "fast_precision", nullcontext)
        found = vae_loss(autoencoder, pictures, generator_at(0, 5))["pixels"]
    drawn = autoencoder.decode(autoencoder.encode(pictures).sample(generator_at(0, 5)))
    assert found.item() == pytest.approx(2 * (drawn - pictures).square().mean().item(), rel=1e-6)


if __name__ == "__main__":
    work(Path(sys.argv[1]), die=True)
