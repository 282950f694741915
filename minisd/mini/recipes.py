"""How the mini and its adapters are trained: one recipe for each file. Every run can be resumed.

These commands make the mini, in this order:

minisd train tokenizer
minisd train vae
minisd train diffusion
minisd train export -o weights/mini.safetensors

Each of these commands makes one more file, with the VAE of the same run:

minisd train decoder -o weights/mini-decoder.safetensors
minisd train classifier -o weights/mini-classifier.safetensors
minisd train judge -o weights/judge.safetensors

Each of these commands starts from the shipped mini:

minisd train lora -o weights/mini-blueprint.safetensors
minisd train lcm -o weights/mini-lcm.safetensors
minisd train word -o weights/mini-blorp.safetensors
minisd train hypernetwork -o weights/mini-sepia.pt
minisd train controlnet -o weights/mini-edges.safetensors
minisd train controlnet-half -o weights/mini-edges-half.safetensors
minisd train inpaint -o weights/mini-inpaint.safetensors
minisd train depth -o weights/mini-depth.safetensors
minisd train cats-and-dogs -o weights/cats-and-dogs.safetensors
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import minisd
from minisd.adapters.classifier import ClassifierConfig, LatentClassifier, save_classifier
from minisd.checkpoints.write import save_vae
from minisd.config import MINI
from minisd.depth.small import DEPTH_PREFIX
from minisd.mini import cats_and_dogs, datasets, judge, partial_files, train_judge
from minisd.mini.emoji import FINE_THINGS, Emoji
from minisd.mini.evaluate import accuracy_per_t
from minisd.mini.job import Job, mini_tokenizer, trained_vae, training_notes, unseen_pictures
from minisd.mini.scenes import batch, vae_batch
from minisd.mini.styles import blueprint, sepia
from minisd.pipeline import StableDiffusion
from minisd.schedule import Schedule
from minisd.tasks.depth2img import DEPTH_CHANNELS
from minisd.tasks.inpaint import INPAINTING_CHANNELS
from minisd.training import adapters, consistency, wider_unet
from minisd.training.classifier import train_classifier
from minisd.training.depth import train_estimator
from minisd.training.diffusion import train_diffusion
from minisd.training.loop import Hyperparameters
from minisd.training.vae import psnr, train_decoder, train_vae

Train = Callable[..., nn.Module]  # called with folder=… and settings=…
Save = Callable[[Path, Any, dict], None]  # (path, network, notes)

NEW_WORD, WORD_MEANING = "<blorp>", "fox"  # captions say <blorp> instead of fox
LIKE = ("cat", "dog", "bear", "lion")  # the new vector starts at the mean of their vectors
# Numbers of pictures: FEW for a style or a word, MANY for a network that reads an extra input, such
# as edges.
FEW, MANY = 500, 8000
DECODED = 6000  # pictures that the autoencoder encodes and decodes for the judge


@dataclass(frozen=True)
class Recipe:
    """How one file is trained.

    settings: the settings of the training. The user can choose another number of steps
    prepare: a function that takes the job and makes the datasets. It returns two functions: the
        first function trains the network, and the second function saves the network
    work: the steps of all parts of the training, divided by settings.steps. For example, 1.2 if a
        second part has a fifth as many steps as the first
    """

    settings: Hyperparameters
    prepare: Callable[[Job], tuple[Train, Save]]
    work: float = 1.0


def train_recipe(name: str, job: Job) -> nn.Module:
    """Train the network of a recipe, or resume the training. Returns the network.

    If job.output is given, the network is also saved in this file.

    name: a key of RECIPES

    Raises the same errors as train(): ValueError and Interrupted.
    """
    recipe = RECIPES[name]
    train, save = recipe.prepare(job)

    def train_in(settings: Hyperparameters, folder: Path) -> nn.Module:
        return train(folder=folder, settings=settings)

    settings = job.fit(recipe.settings, name, train_in, recipe.work)
    network = train_in(settings, job.folder / name).eval().requires_grad_(False)
    if job.output:
        save(job.output, network, training_notes(name, job.folder))
    return network


def save_nothing(path: Path, network: nn.Module, notes: dict) -> None:
    """Write no file. `minisd train export` or `minisd train depth` writes this network later."""


# ---- the mini itself -----------------------------------------------------------------------------


def prepare_vae(job: Job) -> tuple[Train, Save]:
    emoji = Emoji.load()

    def draw_pictures(count: int, number: int) -> Tensor:
        return vae_batch(emoji, MINI.size, count, job.seed, number).images

    return partial(train_vae, draw_pictures, MINI.vae, seed=job.seed), save_nothing


def prepare_diffusion(job: Job) -> tuple[Train, Save]:
    emoji = Emoji.load()
    vae, config = trained_vae(job.folder, emoji)
    given = emoji, vae, mini_tokenizer(job.folder), config
    pictures = datasets.encode_pictures(*given, job.pictures, job.seed)
    return partial(train_diffusion, pictures, config, seed=job.seed), save_nothing


def prepare_decoder(job: Job) -> tuple[Train, Save]:
    """Prepare the training of the decoder.

    Every second picture shows one of FINE_THINGS, so that the decoder learns to draw thin lines,
    such as whiskers. The training of vae-ft-mse was similar: every second picture showed people, so
    that the decoder learnt to draw faces.
    """
    emoji = Emoji.load()
    fine_things = emoji.only(FINE_THINGS)
    vae, _ = trained_vae(job.folder, emoji)

    def draw_pictures(count: int, number: int) -> Tensor:
        # if the count is odd, every second batch has one fine thing more
        fine = (count + number % 2) // 2
        counts = (emoji, count - fine), (fine_things, fine)
        made = [vae_batch(kind, MINI.size, n, job.seed, number) for kind, n in counts if n]
        return torch.cat([each.images for each in made])

    def save(path: Path, network: Any, notes: dict) -> None:
        notes["psnr of unseen pairs"] = round(psnr(network, unseen_pictures(emoji)), 2)
        save_vae(path, network, {"notes": json.dumps(notes)})

    return partial(train_decoder, vae, draw_pictures, seed=job.seed), save


def prepare_classifier(job: Job) -> tuple[Train, Save]:
    emoji = Emoji.load()
    vae, config = trained_vae(job.folder, emoji)
    schedule, sizes = Schedule(config.schedule), ClassifierConfig(emoji.things)
    labelled = datasets.labelled_latents(emoji, vae, config, job.pictures, job.seed)
    given, encoded_by = (*labelled, sizes, schedule), datasets.fingerprint(vae)

    def save(path: Path, network: LatentClassifier, notes: dict) -> None:
        unseen = datasets.labelled_latents(emoji, vae, config, 1000, seed=1, split="heldout")
        accuracy = accuracy_per_t(network, *unseen, schedule, range(0, 1000, 100))
        save_classifier(path, network, notes | {"accuracy": accuracy})

    return partial(train_classifier, *given, seed=job.seed, encoded_by=encoded_by), save


def prepare_judge(job: Job) -> tuple[Train, Save]:
    """Prepare the training of the judge.

    The trained VAE encodes and decodes half of the judge's training pictures.
    """
    emoji = Emoji.load()
    vae, _ = trained_vae(job.folder, emoji)
    count = min(DECODED, job.pictures)  # a short run has no time for DECODED pictures
    decoded = train_judge.decoded_crops(vae, emoji, count, job.seed)
    given = {"seed": job.seed, "encoded_by": datasets.fingerprint(vae)}

    def save(path: Path, network: judge.Judge, notes: dict) -> None:
        judge.save_judge(path, network, notes | {"accuracy": judge.accuracy(network, emoji)})

    return partial(train_judge.train_judge, emoji, decoded, **given), save


# ---- what starts from the shipped mini -----------------------------------------------------------


def save_with_notes(path: Path, network: Any, notes: dict) -> None:
    network.save(path, {"notes": json.dumps(notes)})


def create_trainer(
    job: Job, sd: StableDiffusion, start: Callable, train: Train, dataset: adapters.AdapterDataset
) -> Train:
    """Create the function that creates a network and trains it on the dataset.

    start: a function that takes the model and creates the network
    train: a function that trains the network, such as train_adapter()
    """

    def train_new(folder: Path, settings: Hyperparameters) -> nn.Module:
        torch.manual_seed(job.seed)
        return train(sd, start(sd), dataset, folder, settings, seed=job.seed)

    return train_new


def prepare_adapter(start: Callable, job: Job, **which: Any) -> tuple[Train, Save]:
    """Prepare the training of an adapter on a few pictures.

    start: a function that takes the model and creates the adapter
    which: the options for adapter_dataset(), for example style=sepia
    """
    sd = minisd.load("mini")
    dataset = datasets.adapter_dataset(sd, Emoji.load(), FEW, job.seed, **which)
    return create_trainer(job, sd, start, adapters.train_adapter, dataset), save_with_notes


def prepare_lora(job: Job) -> tuple[Train, Save]:
    return prepare_adapter(adapters.TrainableLoRA, job, style=blueprint)


def prepare_lcm(job: Job) -> tuple[Train, Save]:
    sd = minisd.load("mini")
    dataset = datasets.adapter_dataset(sd, Emoji.load(), MANY, job.seed)

    def save(path: Path, network: Any, notes: dict) -> None:
        consistency.save_kohya(path, network, {"notes": json.dumps(notes)})

    start, train = consistency.consistency_lora, consistency.train_consistency
    return create_trainer(job, sd, start, train, dataset), save


def prepare_hypernetwork(job: Job) -> tuple[Train, Save]:
    return prepare_adapter(adapters.TrainableHypernetwork, job, style=sepia)


def prepare_word(job: Job) -> tuple[Train, Save]:
    return prepare_adapter(
        lambda sd: adapters.TrainableWord(sd, NEW_WORD, LIKE),
        job,
        only=lambda scene: scene.things == (WORD_MEANING,),
        caption=lambda words: words.replace(WORD_MEANING, NEW_WORD),
    )


def prepare_on_edges(start: Callable, job: Job, count: int) -> Train:
    """Prepare the training of a ControlNet on pictures and their edges.

    start: a function that takes the model and creates the ControlNet
    count: number of pictures
    """
    sd = minisd.load("mini")
    dataset = datasets.edge_dataset(sd, Emoji.load(), count, job.seed)
    return create_trainer(job, sd, start, adapters.train_controlnet, dataset)


def prepare_controlnet(job: Job) -> tuple[Train, Save]:
    return prepare_on_edges(adapters.copied_controlnet, job, MANY), save_with_notes


def prepare_half_controlnet(job: Job) -> tuple[Train, Save]:
    """Prepare a short training of a ControlNet's new parts. The copied encoder is not trained.

    The training ends so early that the ControlNet has not yet learnt to follow the edges.
    """

    def start(sd: StableDiffusion) -> nn.Module:
        return partial_files.freeze_copied_parts(adapters.copied_controlnet(sd))

    def save(path: Path, network: Any, notes: dict) -> None:
        partial_files.save_new_parts(path, network, {"notes": json.dumps(notes)})

    return prepare_on_edges(start, job, FEW), save


def prepare_wider(
    job: Job, channels: int, name: str, conditions: Callable, others: dict
) -> tuple[Train, Save]:
    """Prepare the training of a U-Net that reads an extra input, such as a mask or a depth map.

    channels: number of the U-Net's input channels, including the channels of the extra input
    name: the name of the new model, for its config
    conditions: a function that takes the model. It returns the function that makes the extra input
    others: name -> tensor, more tensors for the file of the U-Net
    """
    if job.output:
        partial_files.copy_mini_next_to(job.output)
    sd = minisd.load("mini")
    dataset = datasets.adapter_dataset(sd, Emoji.load(), MANY, job.seed, conditions=conditions(sd))

    def start(sd: StableDiffusion) -> nn.Module:
        return wider_unet.widen(sd.unet, channels)

    def save(path: Path, network: Any, notes: dict) -> None:
        partial_files.save_wider(path, sd, network, name, notes, others)

    return create_trainer(job, sd, start, wider_unet.train_wider, dataset), save


def prepare_inpaint(job: Job) -> tuple[Train, Save]:
    conditions = partial(datasets.masks_and_surroundings, seed=job.seed)
    return prepare_wider(job, INPAINTING_CHANNELS, "mini-inpaint", conditions, {})


def prepare_estimator(job: Job) -> tuple[Train, Save]:
    emoji = Emoji.load()

    def draw_pictures(count: int, number: int) -> tuple[Tensor, Tensor]:
        made = batch(emoji, MINI.size, count, job.seed, number)
        return made.images, made.masks

    return partial(train_estimator, draw_pictures, seed=job.seed), save_nothing


def prepare_depth(job: Job) -> tuple[Train, Save]:
    """Train the depth estimator. Then prepare the training of a U-Net that reads depth maps."""
    estimator = train_recipe("estimator", replace(job, output=None))
    others = {DEPTH_PREFIX + name: tensor for name, tensor in estimator.state_dict().items()}
    conditions = partial(datasets.estimated_depth, estimator=estimator)
    train, save_unet = prepare_wider(job, DEPTH_CHANNELS, "mini-depth", conditions, others)

    def save(path: Path, network: Any, notes: dict) -> None:
        save_unet(path, network, notes | {"estimator": training_notes("estimator", job.folder)})

    return train, save


def prepare_cats_and_dogs(job: Job) -> tuple[Train, Save]:
    """Prepare the training of a small model without prompts, on latents of the shipped mini."""
    sd = minisd.load("mini")
    count = cats_and_dogs.PORTRAITS
    latents, _ = cats_and_dogs.latent_portraits(sd, Emoji.load(), count, job.seed)
    train = partial(cats_and_dogs.train_unprompted, latents, sd.schedule, seed=job.seed)
    return train, cats_and_dogs.save_unprompted


BRIEF = {"ema": 0.98, "warmup": 20, "save_every": 10, "log_every": 10}
RECIPES = {
    "vae": Recipe(Hyperparameters(steps=12_500), prepare_vae),
    "diffusion": Recipe(Hyperparameters(steps=12_500, rate=0.02), prepare_diffusion),
    # 83 minutes on two cores: 0.46 s a step, and a fifth as many steps for the second part
    "decoder": Recipe(
        Hyperparameters(steps=9_000, rate=0.02, adam_rate=1e-3), prepare_decoder, work=1.2
    ),
    # 4 minutes on one core: 0.085 s for a step of 128 latents. In 300 steps, a rate of 0.01
    # was as good, and 0.05 was worse
    "classifier": Recipe(Hyperparameters(steps=3000, rate=0.02, ema=0.99), prepare_classifier),
    # 16 minutes on one core: 0.16 s for a step of 64 crops, after 2 minutes of decoding
    "judge": Recipe(Hyperparameters(steps=6000, rate=0.02, ema=0.99), prepare_judge),
    "lora": Recipe(Hyperparameters(steps=300, rate=0.01, **BRIEF), prepare_lora),
    "lcm": Recipe(Hyperparameters(steps=300, rate=0.005, **BRIEF), prepare_lcm),
    "word": Recipe(Hyperparameters(steps=150, adam_rate=0.05, **BRIEF), prepare_word),
    "hypernetwork": Recipe(Hyperparameters(steps=300, rate=0.02, **BRIEF), prepare_hypernetwork),
    "controlnet": Recipe(Hyperparameters(steps=1500, rate=0.02, ema=0.99), prepare_controlnet),
    "controlnet-half": Recipe(
        Hyperparameters(steps=80, rate=0.02, warmup=10, final=1, ema=0.9), prepare_half_controlnet
    ),
    "inpaint": Recipe(Hyperparameters(steps=2500, rate=0.02, ema=0.99), prepare_inpaint),
    "estimator": Recipe(Hyperparameters(steps=1000, ema=0.99), prepare_estimator),
    "depth": Recipe(Hyperparameters(steps=1000, rate=0.02, ema=0.99), prepare_depth),
    "cats-and-dogs": Recipe(cats_and_dogs.PORTRAIT_SETTINGS, prepare_cats_and_dogs),
}
