"""Make the mini's datasets: compose pictures from emoji, and encode them before the training."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor, nn
from tqdm import tqdm

from minisd.config import ModelConfig
from minisd.mini.captions import Scene, pick
from minisd.mini.emoji import Emoji
from minisd.mini.scenes import Batch, batch
from minisd.pipeline import StableDiffusion
from minisd.tasks.canny import canny
from minisd.tasks.depth2img import depth_channel
from minisd.tasks.inpaint import latent_mask, picture_with_hole
from minisd.tokenizer import Tokenizer
from minisd.training.adapters import AdapterDataset
from minisd.training.diffusion import EncodedPictures
from minisd.training.loop import fast_precision, generator_at
from minisd.vae import VAE

ENCODED_AT_ONCE = 100
WHOLE_MASKS = 0.1  # the share of masks that hide the whole picture
# (images, number of the batch) -> an extra input of the network for each image, b c h' w'
Conditions = Callable[[Tensor, int], Tensor]


def composed_batches(
    emoji: Emoji, size: int, count: int, seed: int, split: str = "train"
) -> Iterator[tuple[int, Batch]]:
    """Compose batches of 100 pictures, and show a progress bar.

    count: number of pictures in all batches together, a multiple of 100
    yields: the number of the batch (0, 100, 200 …), and the batch
    """
    for number in tqdm(range(0, count, ENCODED_AT_ONCE), desc="encoding pictures", mininterval=5):
        yield number, batch(emoji, size, ENCODED_AT_ONCE, seed, number, split)


def fingerprint(network: nn.Module) -> str:
    """Eight hexadecimal digits, from a hash of the parameters. They identify a trained network."""
    digest = hashlib.sha256()
    for parameter in network.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


@torch.no_grad()
def encode_pictures(
    emoji: Emoji,
    vae: VAE,
    tokenizer: Tokenizer,
    config: ModelConfig,
    count: int,
    seed: int,
    split: str = "train",
) -> EncodedPictures:
    """Compose and encode `count` pictures, as a dataset for the U-Net.

    The latents and tokens of 100,000 pictures need 80 MB of memory. The latents are in half
    precision.
    """
    latents, tokens = [], []
    for _, made in composed_batches(emoji, config.size, count, seed, split):
        with fast_precision():
            z = vae.encode(made.images).mode()
        latents.append((z.float() * config.vae.scale).half())
        tokens.append(tokenizer(made.captions).int())
    vocabulary = hashlib.sha256(repr(tokenizer.merges).encode()).hexdigest()[:8]
    encoded_by = f"{fingerprint(vae)} {vocabulary}"
    return EncodedPictures(torch.cat(latents), torch.cat(tokens), encoded_by)


@torch.no_grad()
def labelled_latents(
    emoji: Emoji, vae: VAE, config: ModelConfig, count: int, seed: int, split: str = "train"
) -> tuple[Tensor, Tensor]:
    """Compose `count` pictures, and encode the pictures that show one thing.

    The classifier is trained on these pictures. A picture of two things would have two right
    answers, but a softmax expects one right answer.

    returns: latents, n 4 h w, multiplied by the VAE's scale, in half precision; labels, n: indices
        of things in emoji.things
    """
    latents, labels = [], []
    for number, made in composed_batches(emoji, config.size, count, seed, split):
        alone = [i for i, scene in enumerate(made.scenes) if len(scene.things) == 1]
        with fast_precision():
            latent = vae.encode(made.images[alone])
        z = latent.sample(generator_at(seed, number))
        latents.append((z.float() * config.vae.scale).half())
        labels += [emoji.things.index(made.scenes[i].things[0]) for i in alone]
    return torch.cat(latents), torch.tensor(labels)


@torch.no_grad()
def adapter_dataset(
    sd: StableDiffusion,
    emoji: Emoji,
    count: int,
    seed: int = 0,
    style: Callable[[Tensor], Tensor] | None = None,
    only: Callable[[Scene], bool] | None = None,
    caption: Callable[[str], str] | None = None,
    conditions: Conditions | None = None,
) -> AdapterDataset:
    """Compose and encode `count` pictures, as a dataset for an adapter or a wider U-Net.

    A wider U-Net is a U-Net with more input channels (training/wider_unet.py).

    style: a function that changes the style of pictures, b 3 h w; None: the style does not change
    only: a function that takes a scene, and returns whether to use it; None: all scenes are used
    caption: a function that changes a caption; None: the captions do not change
    conditions: a function that makes an extra input of the network for each picture, for example
        the edges of the picture; None: the network has no extra input
    """
    latents, captions, shown, number = [], [], [], 0
    with tqdm(total=count, desc="encoding pictures", mininterval=5) as bar:
        while len(captions) < count:
            made = batch(emoji, sd.config.size, 50, seed, number)
            used = [i for i, scene in enumerate(made.scenes) if not only or only(scene)]
            used = used[: count - len(captions)]
            if used:
                images = style(made.images[used]) if style else made.images[used]
                words = [made.captions[i] for i in used]
                latents.append(sd.encode(images))
                captions += [caption(one) for one in words] if caption else words
                shown += [conditions(images, number)] if conditions else []
                bar.update(len(used))
            number += 1
    return AdapterDataset(torch.cat(latents), captions, torch.cat(shown) if shown else None)


def edges_of(images: Tensor, number: int) -> Tensor:
    """Find the edges of pictures. The edges are the extra input of a ControlNet.

    images: b 3 h w
    number: the number of the batch. It is not used
    returns: b 1 h w, bytes: 1 where there is an edge, 0 elsewhere
    """
    return canny(images)[:, :1].byte()


def edge_dataset(sd: StableDiffusion, emoji: Emoji, count: int, seed: int = 0) -> AdapterDataset:
    """Compose and encode pictures, and find their edges, as a dataset for a ControlNet.

    Every second caption is empty. So the network must learn to recognize in the edges what the
    picture shows (Zhang et al. 2023, section 3.3).
    """
    dataset = adapter_dataset(sd, emoji, count, seed, conditions=edges_of)
    captions = ["" if i % 2 else words for i, words in enumerate(dataset.captions)]
    return replace(dataset, captions=captions)


def masks_and_surroundings(sd: StableDiffusion, seed: int) -> Conditions:
    """Create the function that makes the extra input of an inpainting model.

    The extra input has two parts. The first part is a random mask. The second part is the latent of
    the picture with a hole. The hole is where the mask is 1.

    seed: the seed of the random masks
    """

    def conditions(images: Tensor, number: int) -> Tensor:
        rng = np.random.default_rng([seed, number])
        masks = torch.stack([random_mask(sd.config.size, rng) for _ in images])
        # with a generator, encode() returns samples, as in tasks/inpaint.py
        generator = torch.Generator().manual_seed(number)
        around = sd.encode(picture_with_hole(images, masks), generator)
        small = torch.cat([latent_mask(one[None], around[:1]) for one in masks])
        return torch.cat([small, around], dim=1)

    return conditions


def estimated_depth(sd: StableDiffusion, estimator: Callable[[Tensor], Tensor]) -> Conditions:
    """Create the function that makes the extra input of a depth model.

    The extra input is the depth map that the estimator finds for a picture. The depth map has the
    height and width of the latent.
    """
    side = sd.config.size // sd.config.vae.factor
    return lambda images, number: depth_channel(estimator(images), (side, side))


def random_mask(size: int, rng: np.random.Generator) -> Tensor:
    """A random mask: 1 in a box, in an ellipse or on one side of the picture, and 0 elsewhere.

    One mask in ten is 1 everywhere.

    returns: 1 size size
    """
    mask = Image.new("1", (size, size), int(rng.random() < WHOLE_MASKS))
    pen = ImageDraw.Draw(mask)
    kind = pick(("box", "ellipse", "side"), rng)
    if kind == "side":
        cut = int(rng.integers(size // 4, size * 3 // 4))
        sides = ((0, 0, cut, size), (cut, 0, size, size), (0, 0, size, cut), (0, cut, size, size))
        box = pick(sides, rng)
    else:
        left, top = (int(edge) for edge in rng.integers(-size // 8, size * 5 // 8, 2))
        width, height = (int(length) for length in rng.integers(size // 4, size * 7 // 8, 2))
        box = (left, top, left + width, top + height)
    draw = pen.ellipse if kind == "ellipse" else pen.rectangle
    draw(box, fill=1)
    return rearrange(torch.from_numpy(np.array(mask, np.float32)), "h w -> 1 h w")
