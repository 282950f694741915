"""The classifier of noisy latents: it learns, it is honest about noise, its gradient leads."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributions import Categorical

import minisd
from minisd.adapters.classifier import (
    ClassifierConfig,
    ClassifierGuidance,
    LatentClassifier,
    load_classifier,
    save_classifier,
)
from minisd.config import MINI, WEIGHTS, ScheduleConfig
from minisd.mini.datasets import labelled_latents
from minisd.mini.evaluate import accuracy_per_t
from minisd.mini.scenes import batch
from minisd.pipeline import StableDiffusion
from minisd.sampling import sampler_levels
from minisd.schedule import Schedule
from minisd.training.classifier import thing_loss, train_classifier
from minisd.training.loop import Hyperparameters
from minisd.vae import DiagonalGaussian

THINGS = ("cat", "dog", "tree")
TINY = ClassifierConfig(THINGS, channels=(16, 16, 16), norm_groups=4)
SCHEDULE = Schedule(ScheduleConfig())


def at(t: float, count: int) -> torch.Tensor:
    return torch.full((count,), t)


@pytest.fixture
def untrained():
    torch.manual_seed(0)
    return LatentClassifier(TINY).eval()


# --- the network ---


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (12, 20), (5, 7), (1, 1)])
def test_latents_of_any_size_get_an_answer_per_thing(untrained, size):
    logits = untrained(torch.randn(2, 4, *size), at(500, 2))
    assert logits.shape == (2, 3) and logits.isfinite().all()


def test_the_default_has_less_than_a_million_parameters(emoji):
    classifier = LatentClassifier(ClassifierConfig(emoji.things))
    assert 0.7e6 < sum(parameter.numel() for parameter in classifier.parameters()) < 0.9e6
    assert classifier(torch.randn(1, 4, 8, 8), at(0, 1)).shape == (1, len(emoji.things))


def test_the_answer_depends_on_the_time_and_keeps_its_fraction(untrained):
    x = torch.randn(1, 4, 8, 8)
    answers = [untrained(x, torch.tensor([t])) for t in (500, 500.0, 500.5, 900)]
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[1], answers[2], atol=1e-6)
    assert not torch.allclose(answers[1], answers[3], atol=1e-4)


def test_log_prob_is_that_of_a_categorical_distribution(untrained):
    x, t = torch.randn(5, 4, 8, 8), torch.arange(5) * 200
    expected = Categorical(logits=untrained(x, t))
    for index, thing in enumerate(THINGS):
        found = untrained.log_prob(x, t, thing)
        assert torch.allclose(found, expected.log_prob(torch.full((5,), index)), atol=1e-6)


def test_the_gradient_agrees_with_finite_differences(untrained):
    classifier = untrained.double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(classifier.log_prob(x, at(300, 2), "dog").sum(), x)
    for _ in range(5):
        towards = torch.randn_like(x)
        with torch.no_grad():
            ahead = classifier.log_prob(x + 1e-5 * towards, at(300, 2), "dog")
            behind = classifier.log_prob(x - 1e-5 * towards, at(300, 2), "dog")
        slope = (gradient * towards).sum(dim=(1, 2, 3))
        assert torch.allclose(slope, (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-8)


def test_an_unknown_thing_is_refused(untrained):
    with pytest.raises(ValueError, match=r'knows no "car": choose one of cat, dog, tree'):
        untrained.log_prob(torch.randn(1, 4, 8, 8), at(0, 1), "car")


# --- what it learns from ---


class Shrinking:
    """A VAE whose latents are every eighth pixel, with a spread of its own."""

    def __init__(self, logvar: float = -30.0):
        self.logvar = logvar

    def encode(self, image):
        mean = image[:, :, ::8, ::8]
        return DiagonalGaussian(torch.cat([mean, torch.full_like(mean, self.logvar)], dim=1))


TWICE = replace(MINI, size=32, vae=replace(MINI.vae, scale=2.0))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_labels_belong_to_their_latents_and_two_things_are_left_out(emoji, split):
    latents, labels = labelled_latents(emoji, Shrinking(), TWICE, 200, seed=3, split=split)
    images, names = [], []
    for step in (0, 100):
        pictures = batch(emoji, 32, 100, seed=3, step=step, split=split)
        for image, scene in zip(pictures.images, pictures.scenes, strict=True):
            if len(scene.things) == 1:
                images.append(2 * image[:, ::8, ::8])
                names.append(scene.things[0])
    assert 150 < len(names) < 200
    assert [emoji.things[label] for label in labels] == names
    assert latents.dtype == torch.float16
    assert torch.allclose(latents.float(), torch.stack(images), atol=2e-3)


def test_latents_are_sampled_and_then_scaled(emoji):
    latents, _ = labelled_latents(emoji, Shrinking(logvar=6.0), TWICE, 100, seed=3)
    assert latents.float().std().item() == pytest.approx(2 * math.exp(3), rel=0.1)


def test_the_loss_is_that_of_the_name_at_the_level_that_is_told():
    """Whoever undoes the level told reads the name off the latent; the silent one has log 3."""
    labels = torch.arange(300) % 3
    x0 = 100.0 * labels.reshape(-1, 1, 1, 1).expand(-1, 4, 8, 8)

    def reader(x, t):
        signal = SCHEDULE.alpha_bar[t].sqrt().float()
        named = (x.mean(dim=(1, 2, 3)) / signal / 100).round().long()
        return 50 * torch.nn.functional.one_hot(named.clamp(0, 2), 3)

    generator = torch.Generator().manual_seed(0)
    assert thing_loss(reader, SCHEDULE, x0, labels, generator).item() < 1e-6
    silent = thing_loss(lambda x, t: torch.zeros(300, 3), SCHEDULE, x0, labels, generator)
    assert silent.item() == pytest.approx(math.log(3))


def test_accuracy_is_counted_at_each_t_under_the_same_noise():
    latents = torch.randn(400, 4, 8, 8).half()
    seen = {}

    class RightAboutTheFirstHundred:
        def __call__(self, x, t):
            seen[t[0].item()] = x
            return torch.eye(3)[torch.tensor([1] * 100 + [2] * 300)]

    labels = torch.ones(400, dtype=torch.long)
    found = accuracy_per_t(RightAboutTheFirstHundred(), latents, labels, SCHEDULE, [0, 500, 999])
    assert found == {0: 0.25, 500: 0.25, 999: 0.25}
    assert list(seen) == [0, 500, 999]
    noises = []
    for t, x in seen.items():
        level = SCHEDULE.at(t)
        noises.append((x - level.signal_rate * latents.float()) / level.noise_rate)
    assert noises[0].std().item() == pytest.approx(1, abs=0.02)
    assert all(torch.allclose(noises[0], noise, atol=1e-4) for noise in noises)
    first = seen.pop(500)
    accuracy_per_t(RightAboutTheFirstHundred(), latents, labels, SCHEDULE, [500])
    assert torch.equal(seen[500], first), "two countings must see the same"


# --- trained, for a moment, on three latents: here the best possible answer is known ---


@pytest.fixture(scope="module")
def prototypes():
    """Three clean latents, 3 4 8 8: what each thing looks like, always."""
    patches = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(5))
    return patches.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


@pytest.fixture(scope="module")
def trained(prototypes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    recipe = Hyperparameters(steps=150, warmup=10, ema=0.9, log_every=1)
    labels = torch.arange(30) % 3
    latents = prototypes[labels].half()
    return train_classifier(latents, labels, TINY, SCHEDULE, folder, recipe, batch_size=32), folder


def best_log_probs(x, prototypes, t):
    """log p(thing | x) by Bayes' rule: at t, x is normal around signal_rate * prototype."""
    level = SCHEDULE.at(t)
    off = x[:, None] - level.signal_rate * prototypes
    return torch.log_softmax(-off.square().sum(dim=(2, 3, 4)) / (2 * level.noise_rate**2), dim=1)


def noisy(prototypes, labels, t):
    noise = torch.randn(len(labels), 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return SCHEDULE.add_noise(prototypes[labels], noise, t)


def test_another_set_of_pictures_is_another_run(trained, prototypes):
    latents, labels = prototypes.half(), torch.arange(3)
    recipe = Hyperparameters(steps=151, warmup=10, ema=0.9, log_every=1)
    with pytest.raises(ValueError, match="pictures"):
        train_classifier(latents, labels, TINY, SCHEDULE, trained[1], recipe, batch_size=32)


def test_the_loss_falls(trained):
    lines = (trained[1] / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["thing"] for line in lines]
    assert losses[0] > 0.8 * math.log(3)
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])


def test_it_is_right_on_clean_latents_and_unsure_in_noise_like_bayes_rule(trained, prototypes):
    labels = torch.arange(600) % 3
    found = accuracy_per_t(trained[0], prototypes[labels], labels, SCHEDULE, [0, 500, 999])
    assert found[0] > 0.95 and found[500] > 0.9
    best = best_log_probs(noisy(prototypes, labels, 999), prototypes, 999).argmax(dim=1)
    assert found[999] < (best == labels).float().mean() + 0.05
    with torch.no_grad():
        x = noisy(prototypes, labels, 999)
        sure = trained[0](x, at(999, 600)).softmax(dim=1).amax(dim=1).mean()
    assert sure < 0.85  # it knows that it cannot know


def test_the_gradient_points_to_the_thing(trained, prototypes):
    """Compared with Bayes' rule, which needs no network."""
    labels = torch.zeros(30, dtype=torch.long)
    x = noisy(prototypes, labels, 700).requires_grad_()
    (found,) = torch.autograd.grad(trained[0].log_prob(x, at(700, 30), "tree").sum(), x)
    (best,) = torch.autograd.grad(best_log_probs(x, prototypes, 700)[:, 2].sum(), x)
    alike = torch.cosine_similarity(found.flatten(1), best.flatten(1))
    assert (alike > 0).float().mean() > 0.8 and alike.mean() > 0.3


def test_a_few_gradient_steps_raise_the_probability(trained, prototypes):
    x = noisy(prototypes, torch.zeros(30, dtype=torch.long), 500)
    probabilities = []
    for _ in range(12):
        x = x.detach().requires_grad_()
        log_prob = trained[0].log_prob(x, at(500, 30), "tree")
        (gradient,) = torch.autograd.grad(log_prob.sum(), x)
        x = x + gradient / gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        probabilities.append(log_prob.exp().mean().item())
    assert probabilities[0] < 0.2 and probabilities[-1] > 0.8
    with torch.no_grad():  # and by Bayes' rule as well: the thing itself came nearer
        start = best_log_probs(noisy(prototypes, torch.tensor([0]), 500), prototypes, 500)[0, 2]
        assert best_log_probs(x, prototypes, 500)[:, 2].mean() > start + 20


# --- its file ---


def test_a_saved_classifier_says_the_same_and_how_it_was_made(trained, prototypes, tmp_path):
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, trained[0], {"seed": 0, "accuracy": {"0": 0.5}})
    again = load_classifier(path)
    assert again.config == trained[0].config
    x = noisy(prototypes, torch.arange(30) % 3, 400)
    assert torch.allclose(again(x, at(400, 30)), trained[0](x, at(400, 30)), atol=0.05)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with safe_open(path, framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert notes == {"seed": 0, "accuracy": {"0": 0.5}}


def rewritten(path, header=None, **tensors):
    """The file with another config or other tensors."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(state | tensors, path, metadata | ({"classifier": header} if header else {}))


SPOILT = {
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:9000]), "cut off"),
    "missing": (lambda path: path.unlink(), "There is no file"),
    "a model": (lambda path: path.write_bytes(MODEL.read_bytes()), "not a classifier of latents"),
    "no JSON": (lambda path: rewritten(path, "{"), "damaged classifier"),
    "a list": (lambda path: rewritten(path, "[]"), "damaged classifier"),
    "other words": (lambda path: rewritten(path, '{"nouns": ["cat"]}'), "damaged.*nouns"),
    "other sizes": (
        lambda path: rewritten(path, json.dumps({"things": THINGS, "channels": [16, 32]})),
        "damaged classifier",
    ),
    "fewer things": (
        lambda path: rewritten(
            path, json.dumps({"things": ["cat"], "channels": [16, 16, 16], "norm_groups": 4})
        ),
        "damaged classifier",
    ),
    "too much": (lambda path: rewritten(path, extra=torch.zeros(1)), "damaged classifier"),
}
MODEL = WEIGHTS / "mini.safetensors"


@pytest.mark.parametrize("kind", SPOILT)
def test_a_wrong_file_is_one_clear_error(untrained, tmp_path, kind):
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, untrained, {})
    spoil, sentence = SPOILT[kind]
    spoil(path)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


# --- guidance ---


@pytest.fixture(scope="module")
def mini():
    return minisd.load("mini")


@pytest.fixture(scope="module")
def shipped():
    return load_classifier(WEIGHTS / "mini-classifier.safetensors")


def two_steps(sd):
    *_, step = sd.txt2img_steps(["", "a cat"], steps=2, cfg_scale=2, seed=[4, 5])
    return step.x


def test_guidance_is_algorithm_2_until_it_is_removed(mini, shipped):
    """Dhariwal & Nichol's formula, written down once more, for one of two samples each."""
    plain, things = two_steps(mini), ["tree", "cat"]
    contexts = mini.embed(["", "", "", "a cat"])
    (first, second), expected = sampler_levels("ddim", mini.schedule, 2)[:2], []
    noise = mini.noise([torch.Generator().manual_seed(i) for i in (4, 5)], None, None)
    for i, thing in enumerate(things):
        x = noise[i : i + 1]
        for level, following in ((first, second), (second, None)):
            t = torch.tensor([float(level.t)])
            both = mini.unet(x.repeat(2, 1, 1, 1), t.repeat(2), contexts[[i, 2 + i]])
            eps = both[:1] + 2 * (both[1:] - both[:1])
            leaf = x.detach().requires_grad_(True)
            logits = shipped(leaf, t)[0].double()
            probability = logits.exp() / logits.exp().sum()
            probability[shipped.config.things.index(thing)].log().backward()
            eps = eps - 8 * level.noise_rate * leaf.grad
            x0 = (x - level.noise_rate * eps) / level.signal_rate
            if following is None:
                following = sampler_levels("ddim", mini.schedule, 2)[-1]
            x = following.signal_rate * x0 + following.noise_rate * eps
        expected.append(x.detach())
    expected = torch.cat(expected)
    guided = ClassifierGuidance(mini, shipped, things, 8)
    other = ClassifierGuidance(mini, shipped, "lemon", 3)
    assert not torch.equal(two_steps(mini), expected)
    other.remove()
    found = two_steps(mini)
    assert (found - expected).abs().max() / expected.std() < 1e-4
    assert (found - plain).abs().max() / expected.std() > 1e-2
    guided.remove()
    assert torch.equal(two_steps(mini), plain)
    with ClassifierGuidance(mini, shipped, "cat", 0):
        assert torch.equal(two_steps(mini), plain)


def test_guidance_that_cannot_be_is_refused(mini, shipped):
    plain = two_steps(mini)
    with pytest.raises(ValueError, match='knows no "gnu": choose one of cat, dog'):
        ClassifierGuidance(mini, shipped, ["cat", "gnu"], 8)
    config = replace(mini.config, vae=replace(mini.config.vae, channels=(32, 64)))
    parts = (mini.tokenizer, mini.text_encoder, mini.unet, mini.vae)
    with pytest.raises(ValueError, match="knows the mini's latents"):
        ClassifierGuidance(StableDiffusion(config, *parts), shipped, "cat", 8)
    assert torch.equal(two_steps(mini), plain)
