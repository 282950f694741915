"""Train the classifier of noisy latents (minisd/adapters/classifier.py)."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minisd.adapters.classifier import ClassifierConfig, LatentClassifier
from minisd.config import ModelConfig
from minisd.mini.emoji import Emoji, batch
from minisd.schedule import Schedule
from minisd.training.loop import Recipe, fast_precision, generator_at, train
from minisd.training.parallel import share
from minisd.vae import VAE

# 0.085 s of one core a step of 128, so some 4 minutes. In 300 steps 0.01 learnt as well, 0.05 less.
RECIPE = Recipe(steps=3000, rate=0.02, ema=0.99)


@torch.no_grad()
def labelled_latents(
    emoji: Emoji, vae: VAE, config: ModelConfig, count: int, seed: int, split: str = "train"
) -> tuple[Tensor, Tensor]:
    """Compose `count` pictures, a multiple of 100, and encode those that show one thing.

    Two things would be two right answers, and a softmax has room for one: they are left out.

    returns: latents n 4 h w, scaled, in half precision; labels n, numbers in emoji.things
    """
    latents, labels = [], []
    for step in tqdm(range(0, count, 100), desc="encoding pictures", mininterval=5):
        pictures = batch(emoji, config.size, 100, seed, step, split)
        lone = [i for i, scene in enumerate(pictures.scenes) if len(scene.things) == 1]
        with fast_precision():
            latent = vae.encode(pictures.images[lone])
        z = latent.sample(generator_at(seed, step))
        latents.append((z.float() * config.vae.scale).half())
        labels += [emoji.things.index(pictures.scenes[i].things[0]) for i in lone]
    return torch.cat(latents), torch.tensor(labels)


def thing_loss(
    classifier: LatentClassifier,
    schedule: Schedule,
    x0: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Cross-entropy of the thing's name, t uniform: as much noise as the U-Net learns on.

    x0: b 4 h w    labels: b. Of several processes each sees its share of what is drawn for all.
    """
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(schedule.config.timesteps, (len(x0),), generator=generator)
    x, t = share(schedule.add_noise(x0, noise, t)), share(t)
    with fast_precision():
        logits = classifier(x, t)
    return F.cross_entropy(logits.float(), share(labels))


def train_classifier(
    latents: Tensor,
    labels: Tensor,
    config: ClassifierConfig,
    schedule: Schedule,
    folder: Path,
    recipe: Recipe = RECIPE,
    batch_size: int = 128,
    seed: int = 0,
    encoded_by: str = "",
) -> LatentClassifier:
    """Returns the averaged classifier. Resumes from the folder, where it also keeps its log.

    latents: n 4 h w, clean and scaled    labels: n, numbers in config.things
    encoded_by: which VAE made the latents, so that no run goes on with another's
    """
    torch.manual_seed(seed)
    classifier = LatentClassifier(config)

    def loss_at(step: int) -> dict[str, Tensor]:
        generator = generator_at(seed, step)
        picks = torch.randint(len(latents), (batch_size,), generator=generator)
        x0, named = latents[picks].float(), labels[picks]
        return {"thing": thing_loss(classifier, schedule, x0, named, generator)}

    about = {"classifier": asdict(config), "schedule": asdict(schedule.config)}
    about |= {"pictures": len(latents), "batch_size": batch_size, "seed": seed}
    about |= {"encoded_by": encoded_by}
    return train(classifier, loss_at, recipe, folder, about)


@torch.no_grad()
def accuracy_per_t(
    classifier: LatentClassifier,
    latents: Tensor,
    labels: Tensor,
    schedule: Schedule,
    ts: Sequence[int],
) -> dict[int, float]:
    """At each t, the share of latents whose thing is named rightly. Every t sees the same noise.

    latents: n 4 h w, clean and scaled, a few thousand at most: they are one batch    labels: n
    """
    x0 = latents.float()
    noise = torch.randn(x0.shape, generator=generator_at(0, 0))
    shares = {}
    for t in ts:
        x = schedule.add_noise(x0, noise, t)
        logits = classifier(x, torch.full((len(x),), t))
        shares[t] = (logits.argmax(dim=1) == labels).float().mean().item()
    return shares
