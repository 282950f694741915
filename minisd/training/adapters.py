"""Teach a model one thing more, while all its own weights stay as they are.

A style as a LoRA or as a hypernetwork, a thing as a word, edges as a ControlNet: each is a few
weights beside the network. They learn as the U-Net did, by predicting noise, from pictures of what
is new.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from einops import repeat
from torch import Tensor, nn
from tqdm import tqdm

from minisd.adapters import hypernetwork, lora
from minisd.adapters.controlnet import ControlNet
from minisd.adapters.handle import Handle
from minisd.adapters.hypernetwork import HypernetworkMLP, attentions
from minisd.adapters.lora import LowRankUpdate
from minisd.adapters.textual_inversion import Word
from minisd.checkpoints.names import model_rows
from minisd.checkpoints.read import read
from minisd.checkpoints.write import write_tensors, written_whole
from minisd.config import UNetConfig
from minisd.mini.captions import Scene
from minisd.mini.emoji import Emoji, batch
from minisd.pipeline import StableDiffusion
from minisd.tasks.canny import brightness, canny
from minisd.training.diffusion import noise_loss
from minisd.training.loop import Recipe, generator_at, train
from minisd.training.parallel import share

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
NEW = ("hint.", "zero.", "zero_mid.")  # the parts of a ControlNet that no U-Net has
LAYOUT_SNR = 1.0  # what is shown beside tells of the layout, which much noise has left open
BROWN, CREAM = (-0.7, -0.85, -0.95), (0.95, 0.85, 0.6)  # of the style sepia


@dataclass(frozen=True)
class Lesson:
    """What there is to learn from.

    latents: n 4 h w, scaled    captions: n, in words, as a word may be new
    beside: n c h' w', what is shown with each noisy latent: edges, a mask; None: nothing
    """

    latents: Tensor
    captions: list[str]
    beside: Tensor | None


@torch.no_grad()
def make_lesson(
    sd: StableDiffusion,
    emoji: Emoji,
    count: int,
    seed: int = 0,
    change: Callable[[Tensor], Tensor] | None = None,
    only: Callable[[Scene], bool] | None = None,
    caption: Callable[[str], str] | None = None,
    beside: Callable[[Tensor, int], Tensor] | None = None,
) -> Lesson:
    """Compose pictures until there are `count`, and encode them.

    change: what the new style does to pictures, b 3 h w    only: which scenes to take
    caption: from a scene's caption to the lesson's
    beside: from the pictures of a step, and its number, to what is shown beside them
    """
    latents, captions, shown, step = [], [], [], 0
    with tqdm(total=count, desc="encoding pictures", mininterval=5) as bar:
        while len(captions) < count:
            made = batch(emoji, sd.config.size, 50, seed, step)
            taken = [i for i, scene in enumerate(made.scenes) if not only or only(scene)]
            taken = taken[: count - len(captions)]
            if taken:
                images = change(made.images[taken]) if change else made.images[taken]
                words = [made.captions[i] for i in taken]
                latents.append(sd.encode(images))
                captions += [caption(one) for one in words] if caption else words
                shown += [beside(images, step)] if beside else []
                bar.update(len(taken))
            step += 1
    return Lesson(torch.cat(latents), captions, torch.cat(shown) if beside else None)


def edges_of(images: Tensor, step: int) -> Tensor:
    """What a ControlNet is shown, as bytes: b 1 h w, 0 or 1."""
    return canny(images)[:, :1].byte()


def edge_lesson(sd: StableDiffusion, emoji: Emoji, count: int, seed: int = 0) -> Lesson:
    """Pictures and their edges. Every second caption is empty, so that the edges have to tell what
    there is (Zhang et al. 2023, section 3.3)."""
    lesson = make_lesson(sd, emoji, count, seed, beside=edges_of)
    captions = ["" if i % 2 else words for i, words in enumerate(lesson.captions)]
    return replace(lesson, captions=captions)


# ---- styles that no emoji set has -------------------------------------------------------------


def blueprint(images: Tensor) -> Tensor:
    """White lines on blue paper. b 3 h w in [-1, 1]"""
    lines = canny(images, low=0.05, high=0.1)
    paper = torch.tensor([-0.75, -0.25, 0.45]).view(1, 3, 1, 1)
    return torch.maximum(paper, 2 * lines - 1)


def sepia(images: Tensor) -> Tensor:
    """An old photograph: dark brown to cream, by brightness alone. b 3 h w in [-1, 1]"""
    dark, light = (torch.tensor(shade).view(1, 3, 1, 1) for shade in (BROWN, CREAM))
    return dark + (light - dark) * brightness(images)


# ---- what learns ------------------------------------------------------------------------------


class ThinLayers(nn.Module):
    """A LoRA for every attention of the U-Net. up begins at zero: at first it changes nothing."""

    def __init__(self, sd: StableDiffusion, rank: int = 4):
        super().__init__()
        self.layers = [f"{name}.{part}" for name in attentions(sd.unet) for part in PROJECTIONS]
        official = {row.ours: row.diffusers for row in model_rows(sd.config)["unet"]}
        self.official = [official[name] for name in self.layers]
        weights = [sd.unet.get_submodule(name).weight for name in self.layers]
        self.down = nn.ParameterList(
            torch.randn(rank, weight.shape[1]) / math.sqrt(weight.shape[1]) for weight in weights
        )
        self.up = nn.ParameterList(torch.zeros(weight.shape[0], rank) for weight in weights)
        self.rank = rank

    def attach(self, sd: StableDiffusion) -> Handle:
        changes = [LowRankUpdate(down, up, self.rank) for down, up in zip(self.down, self.up)]
        layers = [sd.unet.get_submodule(name) for name in self.layers]
        return lora.apply_updates(dict(zip(layers, changes)), 1.0)

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """As PEFT and diffusers name it."""
        tensors = {}
        for name, down, up in zip(self.official, self.down, self.up):
            tensors[f"unet.{name}.lora_A.weight"] = down.detach()
            tensors[f"unet.{name}.lora_B.weight"] = up.detach()
        write(path, tensors, notes)


class NewWord(nn.Module):
    """One or more vectors for a word, beginning between the words that it is `like`.

    As long as vectors of words are: the mean itself is short, and would take long to get away from.
    """

    def __init__(self, sd: StableDiffusion, word: str, like: Sequence[str], count: int = 1):
        super().__init__()
        table = sd.text_encoder.token_embedding.weight
        mean = torch.stack([table[sd.tokenizer.encode(one)].mean(dim=0) for one in like]).mean(0)
        start = mean / mean.norm() * table.norm(dim=1).median()
        self.vectors = nn.Parameter(repeat(start, "c -> n c", n=count).clone())
        self.word = word

    def attach(self, sd: StableDiffusion) -> Handle:
        return Word(sd, self.word, self.vectors)

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """As diffusers does: the word is the tensor's name."""
        write(path, {self.word: self.vectors.detach()}, notes)


class Rewriters(nn.Module):
    """A hypernetwork: for each width of context one network for keys and one for values."""

    def __init__(self, sd: StableDiffusion, expand: int = 2):
        super().__init__()
        self.widths = sorted({one.to_k.in_features for one in attentions(sd.unet).values()})
        self.widen = nn.ModuleList(
            nn.Linear(width, expand * width) for width in self.widths for _ in range(2)
        )
        self.narrow = nn.ModuleList(
            nn.Linear(expand * width, width) for width in self.widths for _ in range(2)
        )
        for layer in self.narrow:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def network(self, width: int, which: int) -> list[nn.Linear]:
        """which: 0 for keys, 1 for values"""
        index = 2 * self.widths.index(width) + which
        return [self.widen[index], self.narrow[index]]

    def attach(self, sd: StableDiffusion) -> Handle:
        nets = {width: [self.rewriter(width, which) for which in (0, 1)] for width in self.widths}
        return hypernetwork.apply_networks(sd.unet, nets, 1.0)

    def rewriter(self, width: int, which: int) -> HypernetworkMLP:
        pair = self.network(width, which)
        return HypernetworkMLP([(each.weight, each.bias) for each in pair], "relu", False)

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """As the AUTOMATIC1111 web UI does: a pickle of tensors and plain values."""
        content: dict = {
            width: [self.numbered(self.network(width, which)) for which in (0, 1)]
            for width in self.widths
        }
        content |= {"layer_structure": [1, 2, 1], "activation_func": "relu"}
        content |= {"is_layer_norm": False, "activate_output": False, "use_dropout": False}
        whole = io.BytesIO()  # torch.save does not say why it could not write to a disk
        torch.save({**content, **notes}, whole)
        with written_whole(path) as unfinished:
            unfinished.write_bytes(whole.getbuffer())

    @staticmethod
    def numbered(layers: list[nn.Linear]) -> dict[str, Tensor]:
        """Activations count as layers, so the second linear layer is number 2."""
        return {
            f"linear.{2 * i}.{leaf}": getattr(layer, leaf).detach().half()
            for i, layer in enumerate(layers)
            for leaf in ("weight", "bias")
        }


def copied_controlnet(sd: StableDiffusion) -> ControlNet:
    """A ControlNet that begins as the U-Net's own way down, and says nothing yet."""
    network = ControlNet(sd.config.unet)
    theirs = sd.unet.state_dict()
    own = network.state_dict()
    network.load_state_dict({name: theirs.get(name, value) for name, value in own.items()})
    for layer in (*network.zero, network.zero_mid, network.hint.conv_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return network


def only_new_learns(controlnet: ControlNet) -> ControlNet:
    """Let the hint's convolutions and the zero ones learn, while the copied way down waits."""
    for name, parameter in controlnet.named_parameters():
        parameter.requires_grad_(name.startswith(NEW))
    return controlnet


def save_new(path: Path, controlnet: ControlNet, notes: dict[str, str]) -> None:
    """Write what is not copied from the U-Net."""
    state = controlnet.state_dict()
    write(path, {name: state[name] for name in state if name.startswith(NEW)}, notes)


def begun_controlnet(sd: StableDiffusion, path: Path) -> ControlNet:
    """A copied ControlNet with the new parts of a file that save_new wrote."""
    network = copied_controlnet(sd)
    network.load_state_dict(network.state_dict() | read(path))
    return network


def write(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """A small file in half precision."""
    with written_whole(path) as unfinished:
        write_tensors(unfinished, tensors, {"format": "pt", **notes}, torch.float16)


# ---- learning ---------------------------------------------------------------------------------


def train_on(
    sd: StableDiffusion,
    model: nn.Module,
    predict: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    lesson: Lesson,
    folder: Path,
    recipe: Recipe,
    batch_size: int,
    seed: int,
    unet: UNetConfig,
) -> nn.Module:
    """Returns the averaged model. Resumes from the folder, where it also keeps its log.

    predict(x, t, context, beside) -> eps, by the model that learns    unet: the sizes it works on
    """
    all_tokens = sd.tokenizer(lesson.captions)

    def loss_at(step: int) -> dict[str, Tensor]:
        generator = generator_at(seed, step)
        picks = torch.randint(len(lesson.latents), (batch_size,), generator=generator)
        beside = None if lesson.beside is None else share(lesson.beside[picks])

        def network(x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
            times = len(x) // len(tokens)
            context = repeat(sd.text_encoder(tokens), "b m c -> (r b) m c", r=times)
            shown = None if beside is None else repeat(beside, "b c h w -> (r b) c h w", r=times)
            return predict(x, t, context, shown)

        x0, tokens = lesson.latents[picks], all_tokens[picks]
        max_snr = math.inf if beside is None else LAYOUT_SNR
        return {"noise": noise_loss(network, sd.schedule, x0, tokens, generator, max_snr)}

    about = {"unet": asdict(unet), "pictures": len(lesson.latents)}
    about |= {"batch_size": batch_size, "seed": seed}
    return train(model, loss_at, recipe, folder, about)


def train_adapter(
    sd: StableDiffusion,
    adapter: ThinLayers | NewWord | Rewriters,
    lesson: Lesson,
    folder: Path,
    recipe: Recipe,
    batch_size: int = 16,
    seed: int = 0,
) -> nn.Module:
    """The adapter learns while it is on the model; see train_on."""

    def predict(x: Tensor, t: Tensor, context: Tensor, nothing: None) -> Tensor:
        return sd.unet(x, t, context)

    with adapter.attach(sd):
        sizes = sd.config.unet
        return train_on(sd, adapter, predict, lesson, folder, recipe, batch_size, seed, sizes)


def train_controlnet(
    sd: StableDiffusion,
    controlnet: ControlNet,
    lesson: Lesson,
    folder: Path,
    recipe: Recipe,
    batch_size: int = 16,
    seed: int = 0,
) -> ControlNet:
    """The same with the edges beside every picture."""

    def predict(x: Tensor, t: Tensor, context: Tensor, edges: Tensor) -> Tensor:
        hint = repeat(edges.float(), "b 1 h w -> b c h w", c=3)
        return sd.unet(x, t, context, controlnet(x, t, context, hint))

    sizes = sd.config.unet
    return train_on(sd, controlnet, predict, lesson, folder, recipe, batch_size, seed, sizes)
