"""U-Nets that read a mask or a depth: they are trained, written as a difference, and read."""

import numpy as np
import pytest
import torch

import minisd
from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.write import save
from minisd.depth.small import DEPTH_PREFIX, SmallDepthEstimator, load_estimator
from minisd.mini.datasets import (
    adapter_dataset,
    estimated_depth,
    masks_and_surroundings,
    random_mask,
)
from minisd.mini.partial_files import save_wider
from minisd.mini.scenes import batch
from minisd.pipeline import StableDiffusion
from minisd.tasks.depth2img import depth2img_steps, depth_channel
from minisd.tasks.inpaint import inpaint_steps, latent_mask
from minisd.training.depth import DOME, RIM, SHADING, relief, train_estimator
from minisd.training.loop import Hyperparameters
from minisd.training.wider_unet import FROZEN, train_wider, widen
from tests.helpers.tiny_models import SMALL

RECIPE = Hyperparameters(steps=4, rate=0.05, warmup=1, ema=0.5, save_every=100, log_every=1)


pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def sd(small_sd):
    return small_sd


def lesson_for(sd, emoji, kind):
    if kind == "inpaint":
        return adapter_dataset(sd, emoji, 50, conditions=masks_and_surroundings(sd, 0))
    return adapter_dataset(sd, emoji, 50, conditions=estimated_depth(sd, SmallDepthEstimator()))


def latents(sd, kind, image, beside):
    """The latents after two steps, where only the seed decides the noise."""
    task, name = (inpaint_steps, "mask") if kind == "inpaint" else (depth2img_steps, "depth")
    more = {name: beside, "strength": 1.0, "steps": 2, "seed": 3, "cfg_scale": 2}
    return [step.x for step in task(sd, "a cat", image, **more)][-1]


@pytest.mark.parametrize(("kind", "count"), [("inpaint", 9), ("depth", 5)])
def test_it_learns_and_what_is_written_is_what_is_read(sd, emoji, tmp_path, kind, count):
    torch.manual_seed(1)
    lesson, unet = lesson_for(sd, emoji, kind), widen(sd.unet, count)
    x, extra = torch.randn(2, 4, 4, 4), torch.randn(2, count - 4, 4, 4)
    t, context = torch.tensor([10, 500]), torch.randn(2, 77, SMALL.unet.context_dim)
    both = torch.cat([x, extra], dim=1)
    assert torch.allclose(unet(both, t, context), sd.unet(x, t, context), atol=1e-5)  # silent
    trained = train_wider(sd, unet, lesson, tmp_path / "run", RECIPE, batch_size=4)
    assert not torch.allclose(trained(both, t, context), unet(-both, t, context), atol=1e-3)
    for name, tensor in trained.state_dict().items():
        if name.startswith(FROZEN):
            assert torch.equal(tensor, sd.unet.state_dict()[name]), name
    parts = Parts(sd.config, sd.tokenizer, sd.text_encoder, sd.unet, sd.vae)
    save(tmp_path / "mini.safetensors", parts)
    save_wider(tmp_path / "own.safetensors", sd, trained, "own", {"command": "a test"}, {})
    read = minisd.load(tmp_path / "own.safetensors")
    assert read.config.name == "own" and read.config.unet.in_channels == count
    own = StableDiffusion(read.config, sd.tokenizer, sd.text_encoder, trained, sd.vae)
    image = batch(emoji, SMALL.size, 1, seed=5, step=0).images
    beside = torch.rand(1, 1, SMALL.size, SMALL.size)
    assert torch.allclose(
        latents(own, kind, image, beside), latents(read, kind, image, beside), atol=0.02
    )
    other = latents(read, kind, image, 1 - beside)
    assert not torch.allclose(latents(read, kind, image, beside), other, atol=1e-3)


def test_a_file_without_its_base_says_which_it_needs(sd, tmp_path):
    save_wider(tmp_path / "own.safetensors", sd, widen(sd.unet, 5), "own", {}, {})
    with pytest.raises(ValueError, match=r"differ from mini\.safetensors: put mini\.saf"):
        minisd.load(tmp_path / "own.safetensors")


def test_the_lesson_shows_what_is_kept_and_hides_the_rest(sd, emoji):
    lesson = lesson_for(sd, emoji, "inpaint")
    made = batch(emoji, SMALL.size, 50, 0, 0)
    rng = np.random.default_rng([0, 0])
    masks = torch.stack([random_mask(SMALL.size, rng) for _ in range(50)])
    assert torch.equal(
        lesson.conditions[:, :1],
        torch.cat([latent_mask(m[None], m[None, :, ::8, ::8]) for m in masks]),
    )
    hidden = (made.images * (masks < 0.5)).masked_select(masks.expand(-1, 3, -1, -1) > 0.5)
    assert hidden.eq(0).all() and hidden.numel() > 1000
    generator = torch.Generator().manual_seed(0)
    around = sd.encode(made.images * (1 - masks), generator)
    assert torch.allclose(lesson.conditions[:, 1:], around, atol=1e-5)


def test_masks_hide_something_and_mostly_not_all():
    rng = np.random.default_rng(0)
    masks = torch.stack([random_mask(64, rng) for _ in range(400)])
    assert masks.shape == (400, 1, 64, 64) and set(masks.unique().tolist()) == {0, 1}
    covered = masks.mean(dim=(1, 2, 3))
    assert covered.min() > 0
    assert abs((covered == 1).float().mean() - 0.1) < 0.04
    assert covered.median() > 0.15 and covered.median() < 0.6


def test_a_thing_bulges_out_of_its_ground():
    images, masks = torch.zeros(2, 3, 21, 21), torch.zeros(2, 1, 21, 21)
    masks[0, :, 5:16, 5:16] = 1  # 11 wide: its middle is 6 pixels deep
    found = relief(images, masks)
    assert found[0, 0, 0, 0] == 0 and not found[1].any()
    assert found[0, 0, 10, 10] == pytest.approx(RIM + DOME + SHADING / 2)
    assert found[0, 0, 5, 10] == pytest.approx(RIM + DOME * (1 / 6) ** 0.5 + SHADING / 2)
    brighter = relief(images + 0.5, masks)
    assert (brighter - found)[0, 0, 10, 10] == pytest.approx(SHADING / 4)


def test_the_estimator_sees_things_of_any_colour(emoji, tmp_path):
    recipe = Hyperparameters(steps=120, rate=0.05, warmup=5, ema=0.9, save_every=100, log_every=60)

    def draw_pictures(count, number):
        made = batch(emoji, 32, count, 0, number)
        return made.images, made.masks

    network = train_estimator(draw_pictures, tmp_path, recipe, batch_size=16).eval()
    made = batch(emoji, 32, 64, seed=9, step=0, split="heldout")
    guess, truth = network(made.images), relief(made.images, made.masks)
    both = torch.stack([guess.flatten(), truth.flatten()])
    assert both.corrcoef()[0, 1] > 0.8


def test_the_estimator_is_found_in_a_depth_models_file(sd, tmp_path):
    torch.manual_seed(0)
    network = SmallDepthEstimator()
    others = {DEPTH_PREFIX + name: tensor for name, tensor in network.state_dict().items()}
    path = tmp_path / "own.safetensors"
    save_wider(path, sd, widen(sd.unet, 5), "own", {}, others)
    image = torch.rand(2, 3, 43, 29) * 2 - 1
    found = load_estimator(path)(image)
    assert found.shape == (2, 1, 43, 29)
    assert torch.allclose(found, network(image), atol=1e-3)
    assert depth_channel(found, (4, 4)).shape == (2, 1, 4, 4)
    save_wider(path, sd, widen(sd.unet, 5), "own", {}, {})
    with pytest.raises(ValueError, match="small depth estimator"):
        SmallDepthEstimator.load(path)
