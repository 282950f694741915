"""Two processes share every batch, and DistributedDataParallel averages their gradients."""

import ast
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import minisd
from minisd.config import MINI
from minisd.mini.emoji import Emoji
from minisd.mini.scenes import vae_batch
from minisd.schedule import Schedule
from minisd.training import diffusion, distributed, loop, run_folder
from minisd.training.diffusion import EncodedPictures, TextAndUNet, noise_loss, train_diffusion
from minisd.training.distributed import (
    barrier,
    broadcast,
    mean_over_processes,
    rank_and_world_size,
    shard_size,
)
from minisd.training.loop import Draw, Hyperparameters, LossModule, generator_at, train
from minisd.training.vae import vae_loss
from minisd.vae import VAE
from tests.helpers.training_runs import free_port

# Two channels to a group at least: a norm takes away the bias before it where it has but one.
SMALL = replace(
    MINI,
    text=replace(MINI.text, width=32, layers=1, heads=2),
    unet=replace(MINI.unet, channels=(32, 32), context_dim=32, head_width=16),
    vae=replace(MINI.vae, channels=(8, 8, 16, 16), norm_groups=4),
    size=32,
)
STAGES = ["vae", "diffusion"]
SETTINGS = Hyperparameters(steps=20, warmup=2, save_every=2, log_every=1)


# ---- what each process does ----------------------------------------------------------------------


def work(where: Path) -> None:
    """The gradients of one given batch, then twenty steps of either training."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fast_precision", nullcontext)  # its rounding would hide differences
        patch.setattr(run_folder, "plot_losses", lambda folder: None)
        barrier()
        rank, _ = rank_and_world_size()
        emoji, pictures = Emoji.load(), encoded_pictures()
        results = {"first": broadcast(7.0 + rank)}
        for stage, make in {"vae": given_vae_loss, "diffusion": given_noise_loss}.items():
            results[stage] = terms_and_gradients(*make(emoji, pictures))
        results["trained vae"] = train_frozen_vae(emoji, where / "vae")
        results["draws"] = train_noted(patch, pictures, where / "diffusion")
        results["trained diffusion"] = train_and_die(pictures, where / "killed")
    torch.save(results, where / f"rank{rank}.pt")


def encoded_pictures() -> EncodedPictures:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(20, 4, 4, 4, generator=generator)
    tokens = torch.randint(SMALL.text.vocab_size, (20, 77), generator=generator)
    return EncodedPictures(latents, tokens)


def own_part(whole: Tensor) -> Tensor:
    """This process's part of the first axis."""
    rank, processes = rank_and_world_size()
    return whole.chunk(processes)[rank]


def given_vae_loss(emoji: Emoji, pictures: EncodedPictures) -> tuple:
    """A model and its loss on four given pictures, with given noise."""
    torch.manual_seed(0)
    autoencoder = VAE(SMALL.vae)
    images = own_part(vae_batch(emoji, SMALL.size, 4, seed=0, step=0).images)
    noise = own_part(torch.randn(4, 4, 4, 4, generator=generator_at(0, 1)))

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", lambda shape, generator: noise.reshape(shape))
            return vae_loss(autoencoder, images, draw.generator)

    return autoencoder, loss_at


def given_noise_loss(emoji: Emoji, pictures: EncodedPictures) -> tuple:
    """A model and its loss on four given latents and texts, with given noise and timesteps."""
    torch.manual_seed(0)
    network, schedule = TextAndUNet(SMALL), Schedule(SMALL.schedule)
    x0, tokens = (own_part(whole) for whole in pictures.draw(4, generator_at(0, 0)))
    noise = own_part(torch.randn(4, 4, 4, 4, 4, generator=generator_at(0, 1)))
    t = own_part(torch.randint(1000, (4, 4), generator=generator_at(0, 2)))

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            timesteps = lambda *given: rearrange(t, "b r -> (r b)")  # noqa: E731
            patch.setattr(diffusion, "stratified_timesteps", timesteps)
            mixed = rearrange(noise, "b r ... -> (r b) ...")
            patch.setattr(torch, "randn", lambda shape, generator: mixed.reshape(shape))
            return {"noise": noise_loss(network, schedule, x0, tokens, draw.generator)}

    return network, loss_at


def terms_and_gradients(model: torch.nn.Module, loss_at) -> dict[str, dict[str, Tensor]]:
    loss = LossModule(model, loss_at)
    loss = DistributedDataParallel(loss) if rank_and_world_size()[1] > 1 else loss
    terms = loss(Draw(0, shard_size(4), generator_at(0, 0)))
    sum(terms.values()).backward()
    return {
        "terms": {name: mean_over_processes(term.detach()) for name, term in terms.items()},
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
    }


def train_frozen_vae(emoji: Emoji, folder: Path) -> dict[str, Tensor]:
    """Train an autoencoder with a frozen part. Returns the weights themselves, not their EMA."""
    rank, _ = rank_and_world_size()
    torch.manual_seed(rank)  # they begin alike all the same: DistributedDataParallel sees to that
    autoencoder = VAE(SMALL.vae)
    autoencoder.encoder.conv_in.requires_grad_(False)

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        images = vae_batch(emoji, SMALL.size, draw.batch_size, 0, draw.number).images
        return vae_loss(autoencoder, images, draw.generator)

    train(autoencoder, loss_at, SETTINGS, folder, batch_size=2, seed=0, about={})
    return autoencoder.state_dict()


def train_noted(patch, pictures: EncodedPictures, folder: Path) -> list[list[int]]:
    """Train a U-Net without a break. Returns the number and the batch size of each draw."""
    seen = []

    def noted(number: int, batch_size: int, generator: torch.Generator) -> Draw:
        seen.append([number, batch_size])
        return Draw(number, batch_size, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Draw", noted)
        train_diffusion(pictures, SMALL, folder, SETTINGS, 4)
    return seen


def train_and_die(pictures: EncodedPictures, folder: Path) -> dict[str, Tensor]:
    """Train the same, break off after the checkpoint at step 4, and resume."""

    def alive_for_four_steps(seed: int, number: int) -> torch.Generator:
        if number // rank_and_world_size()[1] == 4:
            raise TimeoutError
        return generator_at(seed, number)

    with pytest.MonkeyPatch.context() as deadly, pytest.raises(TimeoutError):
        deadly.setattr(loop, "generator_at", alive_for_four_steps)
        train_diffusion(pictures, SMALL, folder, SETTINGS, 4)
    return train_diffusion(pictures, SMALL, folder, SETTINGS, 4).state_dict()


# ---- the processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_one(tmp_path_factory, emoji):
    """The terms and gradients of one process, by stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fast_precision", nullcontext)
        made = {"vae": given_vae_loss, "diffusion": given_noise_loss}
        pictures = encoded_pictures()
        return {stage: terms_and_gradients(*make(emoji, pictures)) for stage, make in made.items()}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """A folder with the work of two processes, started as torchrun starts them."""
    where = tmp_path_factory.mktemp("two")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    root = str(Path(__file__).parents[2])
    path = {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    both = [
        subprocess.Popen(
            [sys.executable, __file__, where],
            env=os.environ | address | path | {"RANK": str(rank)},
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
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_have_the_gradients_of_one(by_one, by_two, stage, rank):
    """Each process gets one half of the batch, with the same noise and t."""
    found, expected = results(by_two, rank)[stage], by_one[stage]
    assert found["gradients"].keys() == expected["gradients"].keys()
    for part in ("terms", "gradients"):
        for name, value in expected[part].items():
            close = {"rtol": 1e-4, "atol": 1e-6, "msg": f"{part} {name}"}
            torch.testing.assert_close(found[part][name], value, **close)


@pytest.mark.parametrize("stage", STAGES)
def test_after_twenty_steps_both_ranks_hold_equal_weights(by_two, stage):
    first, second = (results(by_two, rank)[f"trained {stage}"] for rank in range(2))
    state = torch.load(by_two / stage / "state.pt", weights_only=True)
    assert state["step"] == 20 and state["processes"] == 2
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name
    saved = state["model" if stage == "vae" else "ema"]
    for name, tensor in first.items():
        assert torch.equal(saved[name], tensor), name


def test_a_frozen_part_stays_as_it_was(by_two):
    torch.manual_seed(0)
    before = VAE(SMALL.vae).state_dict()
    after = results(by_two)["trained vae"]
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert same == ["encoder.conv_in.weight", "encoder.conv_in.bias"]


def test_a_run_that_broke_off_gives_what_an_unbroken_one_gives(by_two):
    """The resumed run has as many processes. The logs are equal too, apart from the seconds."""
    whole, killed = (
        torch.load(by_two / name / "state.pt", weights_only=True)
        for name in ("diffusion", "killed")
    )
    for part in ("model", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(killed[part][name], tensor), name
    logs = [run_folder.log_records(by_two / name) for name in ("diffusion", "killed")]
    assert [record["noise"] for record in logs[0]] == [record["noise"] for record in logs[1]]
    assert len(logs[0]) == 20


def test_every_process_and_step_has_its_own_draw(by_two):
    draws = [results(by_two, rank)["draws"] for rank in range(2)]
    assert draws[0] == [[2 * step, 2] for step in range(20)]
    assert draws[1] == [[2 * step + 1, 2] for step in range(20)]


def test_the_log_has_one_line_for_each_step(by_two):
    lines = (by_two / "diffusion" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 20


def test_only_the_first_shows_progress(by_two):
    assert (by_two / "said by the second").read_text(encoding="utf-8") == ""


def test_the_first_process_decides(by_two):
    assert [results(by_two, rank)["first"] for rank in range(2)] == [7, 7]


# ---- without processes ---------------------------------------------------------------------------


def test_one_process_draws_the_whole_batch():
    assert shard_size(5) == 5


def test_a_batch_that_cannot_be_shared_evenly_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "rank_and_world_size", lambda: (0, 2))
    assert shard_size(6) == 3
    said = r"2 processes cannot share a batch of 5 evenly\. Choose a batch size that is a multiple"
    with pytest.raises(ValueError, match=said):
        shard_size(5)
    with pytest.raises(ValueError, match=said):
        train_diffusion(encoded_pictures(), SMALL, tmp_path / "run", SETTINGS, 5)
    assert not (tmp_path / "run" / "state.pt").exists()


def test_no_loss_knows_of_processes():
    """What computes a loss imports nothing distributed, neither torch's nor ours."""
    package = Path(minisd.__file__).parent
    losses = ["vae", "diffusion", "adapters", "wider_unet", "classifier", "depth"]
    files = [package / "training" / f"{name}.py" for name in losses]
    files += [package / "mini" / f"{name}.py" for name in ("train_judge", "cats_and_dogs")]
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        assert len(imported) > 3
        assert not [name for name in imported if "distributed" in name], file.name


def test_the_autoencoders_noise_is_what_its_gaussian_draws():
    """Drawn for the whole batch at once, it equals what is drawn picture by picture."""
    torch.manual_seed(0)
    autoencoder, pictures = VAE(SMALL.vae), torch.rand(4, 3, 32, 32) * 2 - 1
    found = vae_loss(autoencoder, pictures, generator_at(0, 5))["pixels"]
    drawn = autoencoder.decode(autoencoder.encode(pictures).sample(generator_at(0, 5)))
    assert found.item() == pytest.approx(2 * (drawn - pictures).square().mean().item(), rel=1e-6)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
