"""Train adapters: a few new weights, while the model's own weights stay as they are.

A LoRA or a hypernetwork learns a style, a new word learns a thing, a ControlNet learns to follow
edges. Each is trained like the U-Net, by predicting noise, on pictures that show what is new.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import repeat
from torch import Tensor, nn

from minisd.adapters import hypernetwork, lora
from minisd.adapters.controlnet import ControlNet
from minisd.adapters.handle import Handle
from minisd.adapters.hypernetwork import HypernetworkMLP, attentions
from minisd.adapters.lora import LowRankUpdate
from minisd.adapters.textual_inversion import Word
from minisd.checkpoints.names import model_rows
from minisd.checkpoints.write import write_tensors
from minisd.config import UNetConfig
from minisd.files.whole_files import written_whole
from minisd.pipeline import StableDiffusion
from minisd.training.diffusion import min_snr_noise_loss, noise_loss
from minisd.training.loop import Draw, Hyperparameters, Model, train

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
# A condition describes the layout of the picture. Only a latent with much noise leaves the layout
# open, so errors count less where the signal-to-noise ratio is above this.
LAYOUT_SNR = 1.0


@dataclass(frozen=True)
class AdapterDataset:
    """What an adapter is trained on.

    latents: n 4 h w, scaled    captions: n texts; a word in them may be new
    conditions: n c h' w', what the network reads with each noisy latent (edges, a mask), or None
    """

    latents: Tensor
    captions: list[str]
    conditions: Tensor | None = None


class TrainableLoRA(nn.Module):
    """A LoRA for every attention of the U-Net. `up` starts at zero, so at first nothing changes."""

    def __init__(self, sd: StableDiffusion, rank: int = 4):
        super().__init__()
        self.layers = [f"{name}.{part}" for name in attentions(sd.unet) for part in PROJECTIONS]
        official = {row.ours: row.diffusers for row in model_rows(sd.config)["unet"]}
        self.official = [official[name] for name in self.layers]
        weights = [sd.unet.get_parameter(f"{name}.weight") for name in self.layers]
        self.down = nn.ParameterList(
            torch.randn(rank, weight.shape[1]) / math.sqrt(weight.shape[1]) for weight in weights
        )
        self.up = nn.ParameterList(torch.zeros(weight.shape[0], rank) for weight in weights)
        self.rank = rank

    def attach(self, sd: StableDiffusion) -> Handle:
        """Add the LoRA to the model, so that gradients reach its matrices."""
        pairs = zip(self.down, self.up, strict=True)
        changes = [LowRankUpdate(down, up, self.rank) for down, up in pairs]
        layers = [sd.unet.get_submodule(name) for name in self.layers]
        return lora.apply_updates(dict(zip(layers, changes, strict=True)), 1.0)

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """Write it with the names that PEFT and diffusers use."""
        tensors = {}
        for name, down, up in zip(self.official, self.down, self.up, strict=True):
            tensors[f"unet.{name}.lora_A.weight"] = down.detach()
            tensors[f"unet.{name}.lora_B.weight"] = up.detach()
        write_half(path, tensors, notes)


class TrainableWord(nn.Module):
    """One or more vectors for a new word. They start at the mean of the words in `like`.

    The mean of several vectors is short, and training would be slow from there. So it is scaled to
    the usual length of a word's vector.
    """

    def __init__(self, sd: StableDiffusion, word: str, like: Sequence[str], count: int = 1):
        super().__init__()
        table = sd.text_encoder.token_embedding.weight
        mean = torch.stack([table[sd.tokenizer.encode(one)].mean(dim=0) for one in like]).mean(0)
        start = mean / mean.norm() * table.norm(dim=1).median()
        self.vectors = nn.Parameter(repeat(start, "c -> n c", n=count).clone())
        self.word = word

    def attach(self, sd: StableDiffusion) -> Handle:
        """Add the word to the model, so that gradients reach its vectors."""
        return Word(sd, self.word, self.vectors)

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """Write it as diffusers does: the word is the tensor's name."""
        write_half(path, {self.word: self.vectors.detach()}, notes)


class TrainableHypernetwork(nn.Module):
    """Two small networks for each width of context: one for keys, one for values."""

    def __init__(self, sd: StableDiffusion, expand: int = 2):
        super().__init__()
        self.widths = sorted({one.to_k.in_features for one in attentions(sd.unet).values()})
        self.widen = nn.ModuleList(
            nn.Linear(width, expand * width) for width in self.widths for _ in range(2)
        )
        self.narrow = nn.ModuleList(
            nn.Linear(expand * width, width) for width in self.widths for _ in range(2)
        )
        for parameter in self.narrow.parameters():
            nn.init.zeros_(parameter)

    def layers(self, width: int, which: int) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer of one network. which: 0 for keys, 1 for values"""
        index = 2 * self.widths.index(width) + which
        both = self.widen[index], self.narrow[index]
        return [(layer.get_parameter("weight"), layer.get_parameter("bias")) for layer in both]

    def attach(self, sd: StableDiffusion) -> Handle:
        """Add the hypernetwork to the model, so that gradients reach its layers."""
        nets = {
            width: [HypernetworkMLP(self.layers(width, which), "relu", False) for which in (0, 1)]
            for width in self.widths
        }
        return hypernetwork.apply_networks(sd.unet, nets, 1.0)

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """Write it as the AUTOMATIC1111 web UI does: a pickle of tensors and plain values."""
        content: dict = {
            width: [self.numbered_weights(self.layers(width, which)) for which in (0, 1)]
            for width in self.widths
        }
        content |= {"layer_structure": [1, 2, 1], "activation_func": "relu"}
        content |= {"is_layer_norm": False, "activate_output": False, "use_dropout": False}
        whole = io.BytesIO()  # not the file: torch.save hides why it cannot write to a disk
        torch.save({**content, **notes}, whole)
        with written_whole(path) as unfinished:
            unfinished.write_bytes(whole.getbuffer())

    @staticmethod
    def numbered_weights(layers: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Weights by name. Activations count as layers, so the second linear layer is number 2."""
        return {
            f"linear.{2 * i}.{leaf}": tensor.detach().half()
            for i, pair in enumerate(layers)
            for leaf, tensor in zip(("weight", "bias"), pair, strict=True)
        }


def copied_controlnet(sd: StableDiffusion) -> ControlNet:
    """A ControlNet that starts as a copy of the U-Net's encoder, and changes nothing yet."""
    network = ControlNet(sd.config.unet)
    theirs = sd.unet.state_dict()
    own = network.state_dict()
    network.load_state_dict({name: theirs.get(name, value) for name, value in own.items()})
    for layer in (*network.zero, network.zero_mid, network.hint.conv_out):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return network


def write_half(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write a small file in half precision. Raises ValueError if it cannot be written."""
    with written_whole(path) as unfinished:
        write_tensors(unfinished, tensors, {"format": "pt", **notes}, torch.float16)


def train_on(
    sd: StableDiffusion,
    model: Model,
    predict: Callable[..., Tensor],
    dataset: AdapterDataset,
    folder: Path,
    settings: Hyperparameters,
    batch_size: int,
    seed: int,
    config: UNetConfig,
) -> Model:
    """Train the model on the dataset, and return its EMA.

    Resumes from the folder. Raises ValueError like train().

    predict(x, t, context, condition): the noise, predicted by the model that is trained
        condition: None if the dataset has no conditions
    config: of the U-Net that the model belongs to
    """
    all_tokens = sd.tokenizer(dataset.captions)

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        count = len(dataset.latents)
        picks = torch.randint(count, (draw.batch_size,), generator=draw.generator)
        conditions = None if dataset.conditions is None else dataset.conditions[picks]

        def network(x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
            r = len(x) // len(tokens)
            context = repeat(sd.text_encoder(tokens), "b m c -> (r b) m c", r=r)
            if conditions is None:
                return predict(x, t, context, None)
            return predict(x, t, context, repeat(conditions, "b c h w -> (r b) c h w", r=r))

        given = network, sd.schedule, dataset.latents[picks], all_tokens[picks], draw.generator
        if conditions is None:
            return {"noise": noise_loss(*given)}
        return {"noise": min_snr_noise_loss(*given, max_snr=LAYOUT_SNR)}

    about = {"unet": asdict(config), "pictures": len(dataset.latents)}
    return train(model, loss_at, settings, folder, batch_size, seed, about)


def train_adapter(
    sd: StableDiffusion,
    adapter: TrainableLoRA | TrainableWord | TrainableHypernetwork,
    dataset: AdapterDataset,
    folder: Path,
    settings: Hyperparameters,
    batch_size: int = 16,
    seed: int = 0,
) -> nn.Module:
    """Train the adapter while it is on the model. The model does not change. See train_on()."""

    def predict(x: Tensor, t: Tensor, context: Tensor, condition: None) -> Tensor:
        return sd.unet(x, t, context)

    config = sd.config.unet
    with adapter.attach(sd):
        return train_on(sd, adapter, predict, dataset, folder, settings, batch_size, seed, config)


def train_controlnet(
    sd: StableDiffusion,
    controlnet: ControlNet,
    dataset: AdapterDataset,
    folder: Path,
    settings: Hyperparameters,
    batch_size: int = 16,
    seed: int = 0,
) -> ControlNet:
    """Train the ControlNet on pictures and their edges. See train_on()."""

    def predict(x: Tensor, t: Tensor, context: Tensor, edges: Tensor) -> Tensor:
        hint = repeat(edges.float(), "b 1 h w -> b c h w", c=3)
        return sd.unet(x, t, context, controlnet(x, t, context, hint))

    config = sd.config.unet
    return train_on(sd, controlnet, predict, dataset, folder, settings, batch_size, seed, config)
