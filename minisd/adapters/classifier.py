"""Classifier guidance: a classifier leads sampling to a thing that it knows, such as "cat".

Guidance follows the gradient of log p(thing | x) while x is still half noise. A classifier of clean
pictures was never trained on a noisy x. So this classifier was trained at every noise level, and
its second input is t, the noise level of x (Dhariwal & Nichol 2021, section 4).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from minisd.adapters.handle import Handle, ListEntry
from minisd.checkpoints.cover import without_numbers
from minisd.checkpoints.file_kinds import refuse_other_kinds
from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.load import fill_whole
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.registry import local_path
from minisd.checkpoints.validate import check_levels, refuse_uneven
from minisd.checkpoints.write import write_tensors
from minisd.config import MINI
from minisd.files.json_files import build_dataclass, parse_json
from minisd.files.whole_files import written_whole
from minisd.guidance import x0_from_eps
from minisd.pipeline import StableDiffusion
from minisd.schedule import Denoiser, Level, Prediction
from minisd.unet import ResBlock, TimeEmbedding

# log_prob(x, t) returns log p(class | x): b.    x: b c h w, at the noise level t    t: b
LogProb = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ClassifierConfig:
    """The things that a classifier knows, and its sizes. The default sizes fit 8x8 latents."""

    things: tuple[str, ...]
    channels: tuple[int, ...] = (64, 96, 128)  # one for each level; h and w halve between levels
    norm_groups: int = 16


class LatentClassifier(nn.Module):
    """Says which thing a noisy latent shows.

    The network is like the encoder of the U-Net, but without attention. It computes logits at every
    place of the latent. The output is the mean of these logits.

    x: b 4 h w, a scaled latent of any size
    t: b, integer or float
    returns: logits, b things
    """

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        channels, groups, time_dim = config.channels, config.norm_groups, 4 * config.channels[0]
        self.config = config
        self.time = TimeEmbedding(channels[0])
        self.conv_in = nn.Conv2d(4, channels[0], 3, padding=1)
        widths = pairwise([channels[0], *channels])  # what each level receives and returns
        self.res = nn.ModuleList(ResBlock(a, b, time_dim, groups) for a, b in widths)
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
        logits = self.conv_out(F.silu(self.norm_out(x)))
        return reduce(logits, "b things h w -> b things", "mean")

    def log_prob(self, x: Tensor, t: Tensor, thing: str | Sequence[str]) -> Tensor:
        """Compute log p(thing | x) for each sample.

        The gradient of the result with respect to x says how to change x, so that x looks more
        like the thing.

        x: b 4 h w, at the noise level t    t: b    returns: b
        thing: one thing for all samples, or a list with one thing for each sample

        Raises ValueError if the classifier does not know a thing.
        """
        things = [thing] * len(x) if isinstance(thing, str) else thing
        self.check_things(*things)
        classes = torch.tensor([self.config.things.index(one) for one in things], device=x.device)
        log_probs = F.log_softmax(self(x, t), dim=1)
        return log_probs[torch.arange(len(x), device=x.device), classes]

    def check_things(self, *things: str) -> None:
        """Raise ValueError if the classifier does not know one of the things."""
        for thing in things:
            if thing not in self.config.things:
                known = ", ".join(self.config.things)
                raise ValueError(f'The classifier knows no "{thing}": choose one of {known}.')


class ClassifierGuidance(Handle):
    """Guides all drawing towards a thing that a classifier knows. remove() ends the guidance.

    thing: one thing for all samples, or a list with one thing for each sample
    scale: the strength of the guidance. 0 changes nothing

    Raises ValueError if the classifier does not know the thing, or if the model's latents are not
    like those of the mini. The latents of two models may have the same shape, but different
    meanings.
    """

    def __init__(
        self,
        sd: StableDiffusion,
        classifier: LatentClassifier,
        thing: str | Sequence[str],
        scale: float,
    ):
        classifier.check_things(*([thing] if isinstance(thing, str) else thing))
        if sd.config.vae.channels != MINI.vae.channels:
            raise ValueError(
                f"the classifier knows the mini's latents, but {sd.config.name} has others: "
                "use the classifier with the mini."
            )
        classifier = classifier.to(sd.device)

        def log_prob(x: Tensor, t: Tensor) -> Tensor:
            return classifier.log_prob(x.float(), t, thing)

        def guide(denoise: Denoiser) -> Denoiser:
            return classifier_guided(denoise, log_prob, scale)

        super().__init__([ListEntry(sd.guides, guide)])


def save_classifier(path: Path, classifier: LatentClassifier, notes: Mapping[str, object]) -> None:
    """Write a classifier in half precision. The header of the file holds the config and the notes.

    notes: facts about the training: name -> a value that JSON can store
    """
    header = {"classifier": json.dumps(asdict(classifier.config)), "notes": json.dumps(notes)}
    with written_whole(path) as unfinished:
        write_tensors(unfinished, classifier.state_dict(), header, torch.float16)


def load_classifier(path: str | Path) -> LatentClassifier:
    """Read a file that save_classifier() wrote. Raises ValueError for any other file."""
    path = local_path(path)
    header = read_metadata(path)
    if "classifier" not in header:
        refuse_other_kinds(path.name, read_tensors(path), "classifier of latents")
        raise ValueError(
            f"{path} holds no classifier of latents: give a file that `minisd train classifier` "
            "made."
        )
    try:
        config = build_dataclass(ClassifierConfig, parse_json(header["classifier"]))
        check_levels(config.channels)
        refuse_uneven((width, config.norm_groups) for width in config.channels)
        refuse_uneven([(config.channels[0], 2)])  # sines and cosines of t
        with without_numbers():
            classifier = LatentClassifier(config)
        fill_whole(classifier, read_tensors(path), "it")
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{path} is a damaged classifier ({reason}): get it again.") from error
    return classifier.eval().requires_grad_(False)


def classifier_guided(denoise: Denoiser, log_prob: LogProb, scale: float) -> Denoiser:
    """Change a denoiser, so that x looks more like a class. Returns the new denoiser.

    The new eps is eps - scale * noise_rate * gradient of log p(class | x) (Dhariwal & Nichol 2021,
    algorithm 2).

    log_prob: a function that computes log p(class | x), with a classifier for noisy x
    scale: the strength of the guidance. 0 changes nothing
    """
    if scale == 0:
        return denoise

    def denoise_towards(x: Tensor, level: Level) -> Prediction:
        prediction = denoise(x, level)
        if level.signal_rate == 0:  # x is pure noise, and shows nothing to a classifier
            return prediction
        t = torch.full((len(x),), level.t, dtype=torch.float32, device=x.device)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(log_prob(leaf, t).sum(), leaf)
        eps = prediction.eps - scale * level.noise_rate * gradient
        return prediction._replace(x0=x0_from_eps(x, eps, level), eps=eps)

    return denoise_towards
