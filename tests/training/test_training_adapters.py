"""Adapters are trained, written, and read again like the files of others."""

from dataclasses import replace

import pytest
import torch

from minisd.adapters.controlnet import ControlNet, control
from minisd.adapters.hypernetwork import hypernetwork
from minisd.adapters.lora import lora
from minisd.adapters.textual_inversion import textual_inversion
from minisd.checkpoints.names import model_rows
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.registry import OFFICIAL
from minisd.config import SD15, ScheduleConfig
from minisd.guidance import guided_denoiser
from minisd.mini.datasets import adapter_dataset, edge_dataset, edges_of
from minisd.mini.partial_files import (
    freeze_copied_parts,
    half_trained_controlnet,
    save_new_parts,
)
from minisd.mini.scenes import batch
from minisd.mini.styles import BROWN, CREAM, blueprint, sepia
from minisd.samplers import ddim, lcm
from minisd.schedule import CLEAN, Schedule
from minisd.tasks.canny import brightness
from minisd.tasks.img2img import add_noise
from minisd.trace import trace
from minisd.training.adapters import (
    TrainableHypernetwork,
    TrainableLoRA,
    TrainableWord,
    copied_controlnet,
    train_adapter,
    train_controlnet,
)
from minisd.training.consistency import (
    CHANGED_LAYERS,
    consistency_lora,
    consistency_loss,
    save_kohya,
    train_consistency,
)
from minisd.training.loop import Hyperparameters
from minisd.unet import UNet
from tests.helpers.sampler_references import Network

RECIPE = Hyperparameters(steps=6, rate=0.05, warmup=1, ema=0.5, save_every=100, log_every=1)


pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def sd(small_sd):
    return small_sd


@pytest.fixture(scope="module")
def lesson(sd, emoji):
    lesson = {"style": blueprint, "caption": lambda words: f"<thing> {words}"}
    return adapter_dataset(sd, emoji, 12, **lesson, conditions=edges_of)


def drawn(sd):
    settings = {"steps": 2, "seed": 1, "cfg_scale": 2}
    with trace(sd, "unet.conv_in"):  # then the plain networks draw, with equal bits
        *_, step = sd.txt2img_steps(["a <thing> cat", "a dog"], **settings)
    return step.x


READ = {
    "lora": (TrainableLoRA, "own.safetensors", lora),
    "word": (
        lambda sd: TrainableWord(sd, "<thing>", ["cat", "dog"], 2),
        "own.safetensors",
        textual_inversion,
    ),
    "hypernetwork": (TrainableHypernetwork, "own.pt", hypernetwork),
}


@pytest.mark.parametrize("kind", READ)
def test_what_was_learnt_is_what_is_read_again(sd, lesson, tmp_path, kind):
    make, name, read = READ[kind]
    torch.manual_seed(0)
    adapter, plain = make(sd), drawn(sd)
    before = {key: tensor.clone() for key, tensor in sd.unet.state_dict().items()}
    if kind != "word":
        with adapter.attach(sd):
            assert torch.equal(drawn(sd), plain)  # it begins by changing nothing
    trained = train_adapter(sd, adapter, lesson, tmp_path / "run", RECIPE, batch_size=4)
    with trained.attach(sd), torch.no_grad():
        changed = drawn(sd)
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert torch.equal(drawn(sd), plain)
    assert all(torch.equal(before[key], tensor) for key, tensor in sd.unet.state_dict().items())
    trained.save(tmp_path / name, {"command": "a test"})
    with read(sd, tmp_path / name):
        assert (drawn(sd) - changed).abs().max() < 0.02 * (changed - plain).abs().max()  # float16


def test_a_word_learns_from_its_pictures(sd, lesson, tmp_path):
    learnt = []
    for name, sign in (("these", 1), ("others", -1)):
        torch.manual_seed(0)
        word = TrainableWord(sd, "<thing>", ["cat", "dog"], 2)
        pictures = replace(lesson, latents=sign * lesson.latents)
        learnt.append(train_adapter(sd, word, pictures, tmp_path / name, RECIPE, batch_size=4))
    assert not torch.allclose(learnt[0].vectors, learnt[1].vectors, atol=1e-3)


def test_an_lcm_lora_learns_and_is_read_again(sd, lesson, tmp_path):
    """It is written with the names of the published LCM-LoRAs, convolutions included."""
    torch.manual_seed(0)
    adapter, plain = consistency_lora(sd), drawn(sd)
    with adapter.attach(sd):
        assert torch.equal(drawn(sd), plain)  # it begins by changing nothing
    trained = train_consistency(sd, adapter, lesson, tmp_path / "run", RECIPE, batch_size=4)
    with trained.attach(sd), torch.no_grad():
        changed = drawn(sd)
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert torch.equal(drawn(sd), plain)
    save_kohya(tmp_path / "own.safetensors", trained, {"command": "a test"})
    keys = read_tensors(tmp_path / "own.safetensors").keys()
    for layer in ("resnets_0_conv1", "resnets_0_time_emb_proj", "downsamplers_0_conv"):
        for leaf in ("lora_down.weight", "lora_up.weight", "alpha"):
            assert f"lora_unet_down_blocks_0_{layer}.{leaf}" in keys
    with lora(sd, tmp_path / "own.safetensors"):
        assert (drawn(sd) - changed).abs().max() < 0.02 * (changed - plain).abs().max()  # float16


def test_the_layers_are_those_of_the_published_lcm_lora():
    """Its size allows no other: 278 layers of rank 64 in float16, and a header for 834 tensors."""
    with torch.device("meta"):
        unet = UNet(SD15.unet)
    rows = [row for row in model_rows(SD15)["unet"] if row.diffusers.endswith(CHANGED_LAYERS)]
    weights = [unet.get_parameter(f"{row.ours}.weight") for row in rows]
    numbers = sum(64 * (weight[0].numel() + len(weight)) + 1 for weight in weights)
    assert (len(weights), numbers) == (278, 67_252_502)
    assert OFFICIAL["lcm-lora-sd15"].size - 2 * numbers == 8 + 116_544


def test_the_consistency_loss_is_its_definition():
    """One sample at a time: a guided DDIM step by the sampler, and the guess of the sampler lcm."""
    schedule, x0 = Schedule(ScheduleConfig()), torch.randn(50, 4, 3, 5)
    network = Network(torch.float32)

    def student(x, t):
        return 0.9 * network(x, t, x.new_zeros(len(x), 1, 1))

    def teacher(x, t):
        return network(x, t, x.new_ones(len(x), 1, 1))

    loss = consistency_loss(student, teacher, schedule, x0, torch.Generator().manual_seed(0))

    def denoiser(eps):
        return guided_denoiser(lambda x, t, context: eps(x, t), "eps", torch.zeros(1, 1, 1))

    generator, errors = torch.Generator().manual_seed(0), []
    torch.rand(50, generator=generator)  # a batch of 50 has each t once
    noise = torch.randn(x0.shape, generator=generator)
    for index in range(50):
        level, earlier = schedule.at(20 * index + 19), schedule.at(max(20 * index - 81, 0))
        x = add_noise(x0[index, None], noise[index, None], level)
        (step,) = ddim(denoiser(teacher), x, [level, earlier])
        (guess,) = lcm(denoiser(student), x, [level, CLEAN], None)
        (target,) = lcm(denoiser(student), step.x, [earlier, CLEAN], None)
        errors.append(((guess.x - target.x).square() + 0.001**2).sqrt().mean() - 0.001)
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)


def test_a_perfect_student_has_no_loss():
    """Of one picture: every path ends in it, so a network that knows it is consistent."""
    schedule, x0 = Schedule(ScheduleConfig()), torch.randn(1, 4, 3, 5).expand(50, -1, -1, -1)

    def perfect(x, t):
        sigma = schedule.sigma(t)[:, None, None, None].float()
        return (x * (1 + sigma**2).sqrt() - x0) / sigma

    generator = torch.Generator().manual_seed(0)
    # the x of t = 0, which still has a little noise, counts as the picture: 5 of 50 targets
    assert consistency_loss(perfect, perfect, schedule, x0, generator) < 0.003
    wrong = consistency_loss(lambda x, t: 0 * x, perfect, schedule, x0, generator)
    assert wrong > 0.01


def test_a_controlnet_begins_silent_and_learns(sd, lesson, tmp_path):
    torch.manual_seed(0)
    network, plain = copied_controlnet(sd), drawn(sd)
    hint = lesson.conditions[:1].float().expand(-1, 3, -1, -1)
    with control(sd, network, hint), torch.no_grad():
        assert torch.equal(drawn(sd), plain)
    trained = train_controlnet(sd, network, lesson, tmp_path / "run", RECIPE, batch_size=4)
    with control(sd, trained, hint), torch.no_grad():
        changed = drawn(sd)
    assert not torch.allclose(changed, plain, atol=1e-3)
    trained.save(tmp_path / "own.safetensors")
    with control(sd, ControlNet.load(tmp_path / "own.safetensors"), hint):
        assert (drawn(sd) - changed).abs().max() < 0.02 * (changed - plain).abs().max()


def test_a_begun_controlnet_keeps_its_copy_and_comes_back(sd, lesson, tmp_path):
    torch.manual_seed(0)
    network = freeze_copied_parts(copied_controlnet(sd))
    begun = train_controlnet(sd, network, lesson, tmp_path / "run", RECIPE, batch_size=4)
    theirs, own = sd.unet.state_dict(), begun.state_dict()
    moved = {name for name in own if name not in theirs or not torch.equal(own[name], theirs[name])}
    assert moved == {name for name in own if name.startswith(("hint.", "zero"))}
    save_new_parts(tmp_path / "new.safetensors", begun, {})
    again = half_trained_controlnet(sd, tmp_path / "new.safetensors").state_dict()
    for name, tensor in own.items():
        stored = tensor.half().float() if name in moved else tensor
        assert torch.equal(again[name], stored), name


def test_a_lesson_has_the_pictures_that_were_asked_for(sd, emoji):
    lesson = adapter_dataset(
        sd, emoji, 7, only=lambda scene: scene.background == "red", conditions=edges_of
    )
    assert lesson.latents.shape == (7, 4, 4, 4)
    assert len(lesson.captions) == 7
    assert lesson.conditions.shape == (7, 1, 32, 32)
    assert set(lesson.conditions.unique().tolist()) == {0, 1}


def test_every_second_caption_beside_edges_is_empty(sd, emoji):
    lesson = edge_dataset(sd, emoji, 5)
    plain = adapter_dataset(sd, emoji, 5, conditions=edges_of)
    assert lesson.captions[1::2] == ["", ""]
    assert lesson.captions[::2] == plain.captions[::2]
    assert torch.equal(lesson.latents, plain.latents)


def test_the_new_styles_are_what_they_are_called(emoji):
    images = batch(emoji, 64, 4, seed=0, step=0).images
    lines = blueprint(images)
    assert lines.shape == images.shape
    white = (lines == 1).all(dim=1)
    assert 0.01 < white.float().mean() < 0.4
    assert lines.permute(0, 2, 3, 1)[~white].unique(dim=0).shape == (1, 3)
    old = sepia(images)
    assert old.shape == images.shape and old.min() >= -1 and old.max() <= 1
    assert (old[:, 0] > old[:, 2]).all()  # brown: more red than blue
    order = brightness(images)[:, 0].flatten().argsort()
    assert (old[:, 1].flatten()[order].diff() > -1e-5).all()  # as bright as before, in order
    black, white = (torch.full((1, 3, 1, 1), shade) for shade in (-1.0, 1.0))
    assert torch.allclose(sepia(black).flatten(), torch.tensor(BROWN))
    assert torch.allclose(sepia(white).flatten(), torch.tensor(CREAM))
