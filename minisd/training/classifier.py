"""A classifier that names the thing in a noisy latent: what classifier guidance is guided by.

Guidance follows the gradient of log p(thing | x) while x is still half noise, which a classifier of
clean pictures has never seen. This one learns at every noise level, and is told which it is
(Dhariwal & Nichol 2021, section 4).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn
from tqdm import tqdm

from minisd.adapters.handle import Handle, ListEntry
from minisd.checkpoints.kinds import refuse_other_kinds
from minisd.checkpoints.load import fill_whole
from minisd.checkpoints.read import metadata, read
from minisd.checkpoints.registry import local
from minisd.checkpoints.settings import check_levels, refuse_uneven
from minisd.checkpoints.write import write_tensors, written_whole
from minisd.config import MINI, ModelConfig
from minisd.files.json_files import build, parse_json
from minisd.guidance import Denoiser, classifier_guided
from minisd.mini.emoji import Emoji, batch
from minisd.pipeline import StableDiffusion
from minisd.schedule import Schedule
from minisd.training.loop import Recipe, fast_precision, generator_at, train
from minisd.training.parallel import share
from minisd.unet import ResBlock, TimeEmbedding
from minisd.vae import VAE

# 0.085 s of one core a step of 128, so some 4 minutes. In 300 steps 0.01 learnt as well, 0.05 less.
RECIPE = Recipe(steps=3000, rate=0.02, ema=0.99)


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of the classifier, and the names of its answers. The defaults fit 8x8 latents."""

    things: tuple[str, ...]
    channels: tuple[int, ...] = (64, 96, 128)  # one level each, the resolution halves between
    norm_groups: int = 16


class LatentClassifier(nn.Module):
    """Says which thing a noisy latent shows: the U-Net's way down, then a vote of all places.

    x: b 4 h w, scaled, of any size    t: b, integer or float    returns: logits, b things
    """

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        channels, groups, time_dim = config.channels, config.norm_groups, 4 * config.channels[0]
        self.config = config
        self.time = TimeEmbedding(channels[0])
        self.conv_in = nn.Conv2d(4, channels[0], 3, padding=1)
        c_in = [channels[0], *channels]  # what each level receives
        self.res = nn.ModuleList(ResBlock(a, b, time_dim, groups) for a, b in zip(c_in, channels))
        self.downsample = nn.ModuleList(
            nn.Conv2d(c, c, 3, stride=2, padding=1) for c in channels[:-1]
        )
        self.norm_out = nn.GroupNorm(groups, channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], len(config.things), 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time(t)
        x = self.conv_in(x)
        x = self.res[0](x, time)
        for downsample, res in zip(self.downsample, self.res[1:], strict=True):
            x = downsample(x)
            x = res(x, time)
        votes = self.conv_out(F.silu(self.norm_out(x)))
        return reduce(votes, "b things h w -> b things", "mean")

    def log_prob(self, x: Tensor, t: Tensor, thing: str | Sequence[str]) -> Tensor:
        """log p(thing | x), b. Its gradient with respect to x is the way to more of the thing.

        x: b 4 h w, noisy as at t    t: b    thing: one for all, or b of them
        Raises ValueError for a thing that the classifier does not know.
        """
        things = [thing] * len(x) if isinstance(thing, str) else thing
        self.check_known(*things)
        classes = torch.tensor([self.config.things.index(one) for one in things], device=x.device)
        log_probs = F.log_softmax(self(x, t), dim=1)
        return log_probs[torch.arange(len(x), device=x.device), classes]

    def check_known(self, *things: str) -> None:
        """Raise ValueError for a thing that is none of its answers."""
        for thing in things:
            if thing not in self.config.things:
                known = ", ".join(self.config.things)
                raise ValueError(f'The classifier knows no "{thing}": choose one of {known}.')


class ClassifierGuidance(Handle):
    """Whatever the model draws leans to what a classifier calls by a name, until remove().

    thing: one for every sample, or a list with one for each    scale: 0 changes nothing

    Raises ValueError for a thing that the classifier does not know, or a model whose latents are of
    another kind than the classifier's: those have nothing in common but their shape.
    """

    def __init__(
        self,
        sd: StableDiffusion,
        classifier: LatentClassifier,
        thing: str | Sequence[str],
        scale: float,
    ):
        classifier.check_known(*([thing] if isinstance(thing, str) else thing))
        if sd.config.vae.channels != MINI.vae.channels:
            raise ValueError(
                f"the classifier knows the mini's latents, and {sd.config.name} has others: "
                "guide the mini with it."
            )
        classifier = classifier.to(sd.device)

        def log_prob(x: Tensor, t: Tensor) -> Tensor:
            return classifier.log_prob(x.float(), t, thing)

        def guide(denoise: Denoiser) -> Denoiser:
            return classifier_guided(denoise, log_prob, scale)

        super().__init__([ListEntry(sd.guides, guide)])


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


def save(path: Path, classifier: LatentClassifier, notes: Mapping[str, object]) -> None:
    """Write it in half precision. The header tells its config and the notes: how it was trained."""
    header = {"classifier": json.dumps(asdict(classifier.config)), "notes": json.dumps(notes)}
    with written_whole(path) as unfinished:
        write_tensors(unfinished, classifier.state_dict(), header, torch.float16)


def load(path: str | Path) -> LatentClassifier:
    """Read what save() wrote, ready to guide. Raises ValueError for any other file."""
    path = local(path)
    header = metadata(path)
    if "classifier" not in header:
        refuse_other_kinds(path.name, read(path), "classifier of latents")
        raise ValueError(
            f"{path} holds no classifier of latents: give a file that `minisd train classifier` "
            "made."
        )
    try:
        config = build(ClassifierConfig, parse_json(header["classifier"]))
        check_levels(config.channels)
        refuse_uneven((width, config.norm_groups) for width in config.channels)
        refuse_uneven([(config.channels[0], 2)])  # sines and cosines of t
        with torch.device("meta"):
            classifier = LatentClassifier(config)
        fill_whole(classifier, read(path), "it")
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{path} is a damaged classifier ({reason}): get it again.") from error
    return classifier.eval().requires_grad_(False)
