"""A small diffusion model that draws only cats and dogs, without a prompt.

The model draws latents for the mini's autoencoder. The model's U-Net has a million parameters.
On two CPU cores, the model learns to draw rough shapes in 90 seconds, and faces in 20 minutes. All
training pictures show a cat or a dog. So every picture that the model draws should also show a cat
or a dog.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from minisd.checkpoints.cover import without_numbers
from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.load import fill_whole
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.validate import RANGES, validate_config
from minisd.checkpoints.write import write_tensors
from minisd.config import WEIGHTS, ModelConfig, UNetConfig
from minisd.files.json_files import build_dataclass, parse_json
from minisd.files.whole_files import written_whole
from minisd.mini.captions import Scene, pick
from minisd.mini.emoji import Emoji
from minisd.mini.scenes import compose_scene, to_tensor
from minisd.pipeline import StableDiffusion
from minisd.schedule import Schedule
from minisd.training.diffusion import noise_loss, start_at_zero
from minisd.training.loop import Draw, Hyperparameters, train
from minisd.unet import UNet

UNPROMPTED_CONFIG = UNetConfig(
    channels=(40, 64),
    attention=(False, True),
    res_blocks=1,
    context_dim=8,
    head_width=16,
    linear_projection=True,
    norm_groups=8,
)
PORTRAIT_SETTINGS = Hyperparameters(steps=6000, rate=0.02)  # 20 minutes on two cores, 0.2 s a step
# for a lesson: 90 seconds on two cores
BRIEF_SETTINGS = Hyperparameters(steps=500, rate=0.02, ema=0.98, warmup=20)
PETS = ("cat", "dog")
PORTRAIT_BACKGROUNDS = ("white", "green", "blue", "purple")
PORTRAITS = 4000


class Unprompted(nn.Module):
    """A U-Net that reads no prompt. Its cross-attention reads a vector of zeros instead of words.

    x: b 4 h w    t: b    context: ignored    returns: eps, b 4 h w
    """

    def __init__(self, config: UNetConfig = UNPROMPTED_CONFIG):
        super().__init__()
        self.unet = UNet(config)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.unet(x, t, x.new_zeros(len(x), 1, self.unet.config.context_dim))


def portraits(
    emoji: Emoji, size: int, count: int, seed: int = 0, step: int = 0
) -> tuple[Tensor, Tensor]:
    """Compose pictures. Each picture shows one cat or one dog, in a random style.

    About half of the pictures show a cat. About half of the pictures are mirrored.

    returns: images, b 3 h w; labels, b: 0 for a cat, 1 for a dog
    """
    rng = np.random.default_rng([seed, step])
    images, labels = [], rng.integers(len(PETS), size=count)
    for label in labels:
        style, background = pick(emoji.styles, rng), pick(PORTRAIT_BACKGROUNDS, rng)
        scene = Scene((PETS[label],), (None,), style, background)
        images.append(compose_scene(emoji, scene, size, rng, mirror=True)[0])
    return to_tensor(images), torch.from_numpy(labels)


@torch.no_grad()
def latent_portraits(
    sd: StableDiffusion, emoji: Emoji, count: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Compose pictures with portraits(), and encode them. Returns the latents and the labels.

    count: number of pictures, a multiple of 100
    returns: latents, n 4 h w, multiplied by the VAE's scale; labels, n
    """
    latents, labels = [], []
    for step in tqdm(range(count // 100), desc="encoding pictures", mininterval=5):
        images, shown = portraits(emoji, sd.config.size, 100, seed, step)
        latents.append(sd.encode(images))
        labels.append(shown)
    return torch.cat(latents), torch.cat(labels)


def train_unprompted(
    latents: Tensor,
    schedule: Schedule,
    folder: Path,
    settings: Hyperparameters = PORTRAIT_SETTINGS,
    config: UNetConfig = UNPROMPTED_CONFIG,
    batch_size: int = 32,
    seed: int = 0,
) -> Unprompted:
    """Train a new network. Returns the network with its EMA weights.

    If the folder holds an earlier run, the training resumes that run. Raises the same errors as
    train().

    latents: n 4 h w, without noise, multiplied by the VAE's scale
    """
    torch.manual_seed(seed)
    network = Unprompted(config)
    start_at_zero(network.unet)

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        picks = torch.randint(len(latents), (draw.batch_size,), generator=draw.generator)
        no_words = torch.zeros(draw.batch_size, 0)
        return {"noise": noise_loss(network, schedule, latents[picks], no_words, draw.generator)}

    about = {"unet": asdict(config), "schedule": asdict(schedule.config)}
    about |= {"pictures": len(latents)}
    return train(network, loss_at, settings, folder, batch_size, seed, about)


def save_unprompted(path: Path, network: Unprompted, notes: Mapping[str, object]) -> None:
    """Write the network in half precision. The file's header holds the config and the notes.

    notes: facts about the training, such as the command and the seed
    """
    config = json.dumps(asdict(network.unet.config))
    header = {"unprompted": config, "notes": json.dumps(notes)}
    with written_whole(path) as unfinished:
        write_tensors(unfinished, network.state_dict(), header, torch.float16)


def load_unprompted(path: Path = WEIGHTS / "cats-and-dogs.safetensors") -> Unprompted:
    """Read the network from a file that save_unprompted() wrote. The network is ready to draw.

    Raises ValueError if the file holds another network, or if the file is damaged.
    """
    header = read_metadata(path)
    if "unprompted" not in header:
        raise ValueError(
            f"{path} is not a file of the cats-and-dogs model. Give a file that "
            "`minisd train cats-and-dogs` wrote."
        )
    try:
        config = build_dataclass(UNetConfig, parse_json(header["unprompted"]), RANGES)
        validate_config(ModelConfig(unet=config))
        with without_numbers():
            network = Unprompted(config)
        fill_whole(network, read_tensors(path), "it")
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{path} is damaged ({reason}). Get another copy.") from error
    return network.eval().requires_grad_(False)
