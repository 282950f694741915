"""Train adapters. An adapter adds a few new weights, and the model's own weights do not change.

Here, a LoRA and a hypernetwork learn a style, the vectors of a new word learn a thing, and a
ControlNet learns to follow edges. An adapter is trained like the U-Net: the model with the adapter
predicts the noise in latents. These are latents of pictures that show the new style or thing.
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
# A condition, such as edges, describes the layout of the picture. But a latent with little noise
# already shows the layout. So errors count less if the latent's signal-to-noise ratio is above this
# number.
LAYOUT_SNR = 1.0


@dataclass(frozen=True)
class AdapterDataset:
    """The pictures on which an adapter is trained, and their captions.

    latents: n 4 h w, multiplied by the VAE's scale
    captions: n texts. They may contain a new word
    conditions: n c h' w', such as edges or masks. The network reads one condition with each noisy
        latent. None: the network reads no conditions
    """

    latents: Tensor
    captions: list[str]
    conditions: Tensor | None = None


class TrainableLoRA(nn.Module):
    """A LoRA for layers of the U-Net.

    The matrices in `up` start at zero, so at first the LoRA does not change the U-Net's output.

    layers: the names of linear layers and convolutions. None: the projections (to_q, to_k, to_v,
        to_out) of every attention layer
    """

    def __init__(self, sd: StableDiffusion, rank: int = 4, layers: list[str] | None = None):
        super().__init__()
        projections = [f"{name}.{part}" for name in attentions(sd.unet) for part in PROJECTIONS]
        self.layers = projections if layers is None else layers
        official = {row.ours: row.diffusers for row in model_rows(sd.config)["unet"]}
        self.official = [official[name] for name in self.layers]
        weights = [sd.unet.get_parameter(f"{name}.weight") for name in self.layers]
        self.down = nn.ParameterList(
            torch.randn(rank, *weight.shape[1:]) / math.sqrt(weight[0].numel())
            for weight in weights
        )
        self.up = nn.ParameterList(  # in a convolution, up is 1x1
            torch.zeros(len(weight), rank, *[1] * (weight.ndim - 2)) for weight in weights
        )
        self.rank = rank

    def attach(self, sd: StableDiffusion) -> Handle:
        """Add the LoRA to the model, so that gradients reach the matrices of the LoRA.

        Returns the handle that removes the LoRA from the model.
        """
        pairs = zip(self.down, self.up, strict=True)
        changes = [LowRankUpdate(down, up, self.rank) for down, up in pairs]
        layers = [sd.unet.get_submodule(name) for name in self.layers]
        return lora.apply_updates(dict(zip(layers, changes, strict=True)), 1.0)

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """Write the LoRA with the names that PEFT and diffusers use.

        notes: more entries for the file's header
        """
        tensors = {}
        for name, down, up in zip(self.official, self.down, self.up, strict=True):
            tensors[f"unet.{name}.lora_A.weight"] = down.detach()
            tensors[f"unet.{name}.lora_B.weight"] = up.detach()
        write_half(path, tensors, notes)


class TrainableWord(nn.Module):
    """One or more vectors for a new word. They start at the mean of the vectors of known words.

    The mean is shorter than the vectors of the known words, and a short vector would train slowly.
    So the mean is scaled to the usual length of a word's vector.

    word: the new word
    like: the known words. Their meaning should be similar to the meaning of the new word
    count: the number of vectors for the new word
    """

    def __init__(self, sd: StableDiffusion, word: str, like: Sequence[str], count: int = 1):
        super().__init__()
        table = sd.text_encoder.token_embedding.weight
        mean = torch.stack([table[sd.tokenizer.encode(one)].mean(dim=0) for one in like]).mean(0)
        start = mean / mean.norm() * table.norm(dim=1).median()
        self.vectors = nn.Parameter(repeat(start, "c -> n c", n=count).clone())
        self.word = word

    def attach(self, sd: StableDiffusion) -> Handle:
        """Add the word to the model, so that gradients reach the vectors of the word.

        Returns the handle that removes the word from the model.
        """
        return Word(sd, self.word, self.vectors)

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """Write the vectors in the format of diffusers: one tensor, whose name is the word.

        notes: more entries for the file's header
        """
        write_half(path, {self.word: self.vectors.detach()}, notes)


class TrainableHypernetwork(nn.Module):
    """A hypernetwork: two small networks for each width of the context.

    Attention makes keys and values from the context. One network changes the context for the keys,
    and the other network changes the context for the values. The last layer of each network starts
    at zero, so at first the context does not change.
    """

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
        """The weight and the bias of both layers of one small network.

        width: the width of the context
        which: 0 for the network of the keys, 1 for the network of the values
        """
        index = 2 * self.widths.index(width) + which
        both = self.widen[index], self.narrow[index]
        return [(layer.get_parameter("weight"), layer.get_parameter("bias")) for layer in both]

    def attach(self, sd: StableDiffusion) -> Handle:
        """Add the hypernetwork to the model, so that gradients reach the layers of its networks.

        Returns the handle that removes the hypernetwork from the model.
        """
        nets = {
            width: [HypernetworkMLP(self.layers(width, which), "relu", False) for which in (0, 1)]
            for width in self.widths
        }
        return hypernetwork.apply_networks(sd.unet, nets, 1.0)

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """Write the file that the AUTOMATIC1111 web UI would write: tensors and values in a pickle.

        notes: more entries for the pickle
        """
        content: dict = {
            width: [self.numbered_weights(self.layers(width, which)) for which in (0, 1)]
            for width in self.widths
        }
        content |= {"layer_structure": [1, 2, 1], "activation_func": "relu"}
        content |= {"is_layer_norm": False, "activate_output": False, "use_dropout": False}
        whole = io.BytesIO()  # when torch.save writes to a full disk, it hides the reason
        torch.save({**content, **notes}, whole)
        with written_whole(path) as unfinished:
            unfinished.write_bytes(whole.getbuffer())

    @staticmethod
    def numbered_weights(layers: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Name the weights and biases of one small network. Returns a dictionary: name -> tensor.

        A name is, for example, "linear.0.weight". The activation counts as layer 1, so the second
        linear layer has the number 2.
        """
        return {
            f"linear.{2 * i}.{leaf}": tensor.detach().half()
            for i, pair in enumerate(layers)
            for leaf, tensor in zip(("weight", "bias"), pair, strict=True)
        }


def copied_controlnet(sd: StableDiffusion) -> ControlNet:
    """Create a ControlNet. Its encoder starts as a copy of the U-Net's encoder.

    The ControlNet's outputs are zero at first, so they do not change the U-Net's output yet.
    """
    network = ControlNet(sd.config.unet)
    theirs = sd.unet.state_dict()
    own = network.state_dict()
    network.load_state_dict({name: theirs.get(name, value) for name, value in own.items()})
    for layer in (*network.zero, network.zero_mid, network.hint.conv_out):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return network


def write_half(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write tensors into a safetensors file, in half precision.

    notes: more entries for the file's header

    Raises ValueError if the file cannot be written.
    """
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
    """Train a model (an adapter or a U-Net) on a dataset. Returns the model with its EMA weights.

    If the folder holds a run, the run is resumed. Raises the same errors as train().

    model: the network or vectors that are trained
    predict: a function (x, t, context, condition) that uses `model`, and returns the predicted
        noise. `condition` is None if the dataset has no conditions
    config: the config of the U-Net. If it changes, the run cannot be resumed
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
    """Attach the adapter to the model, train the adapter, and remove it again. See train_on().

    The model's own weights do not change.
    """

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
