"""The options of `minisd train`, and the files that all trainings in one run folder share."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.write import save
from minisd.config import MINI, ModelConfig
from minisd.files.whole_files import make_folder
from minisd.mini.emoji import Emoji
from minisd.mini.minutes import check_minutes, fit_to_minutes
from minisd.mini.scenes import batch, captions
from minisd.tokenizer import Tokenizer
from minisd.training.diffusion import TextAndUNet
from minisd.training.distributed import barrier, rank_and_world_size
from minisd.training.loop import Hyperparameters, Model
from minisd.training.run_folder import fill_network, last_state, log_records
from minisd.training.vae import measure_scale, psnr
from minisd.vae import VAE

PICTURES = 60_000  # composed and encoded once, before the training on latents
PICTURES_PER_MINUTE = 1500  # in a short run, so that encoding takes only a small part of the time
TRAINING_SEEDS = 2**40  # larger seeds would exceed 64 bits in generator_at()


@dataclass(frozen=True)
class Job:
    """The options of `minisd train`.

    folder: the run folder
    output: the file to write
    steps, minutes: the length of the training. If both are None, the recipe sets the length
    """

    folder: Path = Path("runs/mini")
    output: Path | None = None
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"Cannot train for {self.steps} steps. Give 1 or more.")
        if self.minutes is not None:
            check_minutes(self.minutes)
        if not 0 <= self.seed < TRAINING_SEEDS:
            raise ValueError(
                f"Cannot train with seed {self.seed}. Give a seed from 0 to {TRAINING_SEEDS - 1}."
            )

    def fit(
        self, settings: Hyperparameters, name: str, train_in: Callable, work: float = 1.0
    ) -> Hyperparameters:
        """A copy of the settings with the number of steps that the user wants.

        If the user gives minutes, a short trial measures how many steps fit into this time.

        name: the name of the recipe
        train_in: a function (settings, folder) that trains. The trial calls this function
        work: the steps of all parts of the training, divided by settings.steps. For example, 1.2 if
            a second part has a fifth as many steps as the first
        """
        if self.minutes is not None:
            return fit_to_minutes(settings, self.minutes / work, self.folder / name, train_in)
        return settings if self.steps is None else replace(settings, steps=self.steps)

    @property
    def pictures(self) -> int:
        """The number of pictures to encode before a training on latents, a multiple of 100."""
        few = PICTURES if self.minutes is None else int(self.minutes * PICTURES_PER_MINUTE)
        return min(PICTURES, max(100, few // 100 * 100))


def train_vocabulary(emoji: Emoji) -> Tokenizer:
    """Train the mini's tokenizer on captions. This takes a few seconds."""
    return Tokenizer.train(captions(emoji, 20_000), MINI.text.vocab_size)


def mini_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer from the folder. If the folder has no tokenizer yet, train one first.

    Raises ValueError if the tokenizer's file is damaged.
    """
    path = folder / "tokenizer.json"
    barrier()
    if rank_and_world_size()[0] == 0 and not path.exists():
        make_folder(folder)
        train_vocabulary(Emoji.load()).save(path)
    barrier()
    try:
        return Tokenizer.load(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged. Delete it, and run the command again.") from error


def unseen_pictures(emoji: Emoji) -> Tensor:
    """Compose pictures with (thing, background) pairs that training never shows.

    returns: 256 3 64 64
    """
    return batch(emoji, MINI.size, 256, seed=1, step=0, split="heldout").images


def trained_vae(folder: Path, emoji: Emoji) -> tuple[VAE, ModelConfig]:
    """Load the VAE that was trained in the run folder. Returns the VAE, and the mini's config.

    The config contains the scale of this VAE's latents. If the diffusion training has begun, the
    scale is read from the checkpoint of that training. Otherwise the scale is measured.

    Raises ValueError if the VAE has not been trained yet.
    """
    vae = ema_network(VAE(MINI.vae), folder / "vae")
    earlier_run = (last_state(folder / "diffusion") or {}).get("run", {})
    images = batch(emoji, MINI.size, 256, seed=1, step=0).images
    scale = earlier_run.get("vae.scale") or round(measure_scale(vae, images), 5)
    vae.config = replace(MINI.vae, scale=scale)
    return vae, replace(MINI, vae=vae.config)


def ema_network(network: Model, folder: Path) -> Model:
    """Fill the network with the EMA weights of the folder's last checkpoint. Returns the network.

    Raises ValueError if the folder has no checkpoint.
    """
    state = last_state(folder)
    if state is None:
        raise ValueError(f"{folder} has no checkpoint. Run `minisd train {folder.name}` first.")
    fill_network(network, state["ema"], folder / "state.pt")
    return network.eval().requires_grad_(False)


def training_notes(name: str, folder: Path) -> dict:
    """Notes on a training: command, commit, seed, threads, and the last line of the log.

    The notes do not contain the time that the training took. So the notes
    are the same, whether the training was interrupted or not.
    """
    run = (last_state(folder / name) or {}).get("run", {})
    command = f"minisd train {name} --steps {run.get('hyperparameters.steps', 'unknown')}"
    notes = {"command": f"{command} --seed {run.get('seed', 0)}", "seed": run.get("seed", 0)}
    # the commit is that of the code when the training began
    notes |= {name: run.get(name, "unknown") for name in ("commit", "threads")}
    last = (log_records(folder / name) or [{}])[-1]
    return notes | {name: number for name, number in last.items() if name != "seconds"}


def export(job: Job) -> Path:
    """Write all networks of the run into one file, in half precision. Returns the file's path.

    The file's header also holds notes on how the networks were trained.

    Raises ValueError if a network has not been trained yet, or if the file cannot be written.
    """
    output, emoji = job.output or job.folder / "mini.safetensors", Emoji.load()
    vae, config = trained_vae(job.folder, emoji)
    network = ema_network(TextAndUNet(config), job.folder / "diffusion")
    parts = Parts(config, mini_tokenizer(job.folder), network.text_encoder, network.unet, vae)
    notes = training_notes("vae", job.folder)
    notes["psnr of unseen pairs"] = round(psnr(vae, unseen_pictures(emoji)), 2)
    figures = {"vae": notes, "diffusion": training_notes("diffusion", job.folder)}
    commands = " && ".join(f"minisd train {name}" for name in ("vae", "diffusion", "export"))
    if rank_and_world_size()[0] == 0:
        save(output, parts, torch.float16, {"command": commands, "figures": json.dumps(figures)})
    return output
