"""Train the classifier that names the thing in a noisy latent (adapters/classifier.py)."""

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.adapters.classifier import ClassifierConfig, LatentClassifier
from minisd.schedule import Schedule
from minisd.training.loop import Draw, Hyperparameters, train


def thing_loss(
    classifier: LatentClassifier,
    schedule: Schedule,
    x0: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The cross-entropy of the predicted thing. Each latent gets noise of a random level.

    This loss comes from Dhariwal & Nichol (2021, section 4).

    x0: b 4 h w, latents without noise
    labels: b, indices of config.things
    """
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(schedule.config.timesteps, (len(x0),), generator=generator)
    logits = classifier(schedule.add_noise(x0, noise, t), t)
    return F.cross_entropy(logits.float(), labels)


def train_classifier(
    latents: Tensor,
    labels: Tensor,
    config: ClassifierConfig,
    schedule: Schedule,
    folder: Path,
    settings: Hyperparameters,
    batch_size: int = 128,
    seed: int = 0,
    encoded_by: str = "",
) -> LatentClassifier:
    """Train a classifier. Returns the classifier with its EMA weights.

    If the folder holds a run, the run is resumed. Raises the same errors as train().

    latents: n 4 h w, without noise, multiplied by the VAE's scale
    labels: n, indices of config.things
    encoded_by: a text that identifies the VAE that made the latents. A run can only be resumed with
        the same text. So the run cannot continue with latents of another VAE
    """
    torch.manual_seed(seed)
    classifier = LatentClassifier(config)

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        picks = torch.randint(len(latents), (draw.batch_size,), generator=draw.generator)
        x0, names = latents[picks].float(), labels[picks]
        return {"thing": thing_loss(classifier, schedule, x0, names, draw.generator)}

    about = {"classifier": asdict(config), "schedule": asdict(schedule.config)}
    about |= {"pictures": len(latents), "encoded_by": encoded_by}
    return train(classifier, loss_at, settings, folder, batch_size, seed, about)
