"""The recipe of the shipped mini model, stage by stage. Each resumes from the run's folder.

minisd train tokenizer
minisd train vae
minisd train diffusion
minisd train export -o weights/mini.safetensors
minisd train decoder -o weights/mini-decoder.safetensors
minisd train classifier -o weights/mini-classifier.safetensors
minisd train judge -o weights/judge.safetensors
minisd train evaluate

What is taught to the mini afterwards: afterwards.py.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.adapters.classifier import ClassifierConfig, LatentClassifier, save_classifier
from minisd.config import MINI, WEIGHTS, ModelConfig
from minisd.files.whole_files import make_folder
from minisd.mini import judge
from minisd.mini import train_judge as judge_training
from minisd.mini.emoji import Emoji, batch, captions
from minisd.schedule import Schedule
from minisd.tokenizer import Tokenizer
from minisd.training import classifier
from minisd.training.diffusion import Conditioned, encode_bank, train_diffusion
from minisd.training.loop import Recipe, check_minutes, for_minutes
from minisd.training.parallel import meet, place
from minisd.training.run_folder import fingerprint, last_state, logged
from minisd.training.vae import ALIKE, measure_scale, psnr, train_decoder, train_vae
from minisd.vae import VAE

VAE_RECIPE = Recipe(steps=12_500)
DIFFUSION_RECIPE = Recipe(steps=12_500, rate=0.02)
# 0.46 s of two cores a step, and a fifth as many for the last part: 83 minutes.
DECODER_RECIPE = Recipe(steps=9_000, rate=0.02, adam_rate=1e-3)
PICTURES = 60_000  # composed and encoded once, before the training on latents
SEEDS = 2**40  # as many as generator_at() keeps apart within 64 bits
PICTURES_A_MINUTE = 1500  # of a short run, so that most of its time is training


@dataclass(frozen=True)
class Order:
    """What the command line asks for. steps and minutes: None for the recipe's own length."""

    folder: Path = Path("runs/mini")
    output: Path | None = None
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"cannot train for {self.steps} steps: give 1 or more.")
        if self.minutes is not None:
            check_minutes(self.minutes)
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"the seed of a training is 0 to {SEEDS - 1}, got {self.seed}.")

    def fitted(self, recipe: Recipe, stage: str, train_in: Callable) -> Recipe:
        """The recipe, made as long as asked. train_in(recipe, folder) trains, for a trial."""
        if self.minutes is not None:
            return for_minutes(recipe, self.minutes, self.folder / stage, train_in)
        return recipe if self.steps is None else replace(recipe, steps=self.steps)

    @property
    def pictures(self) -> int:
        """How many to encode before training on latents, a multiple of 100."""
        few = PICTURES if self.minutes is None else int(self.minutes * PICTURES_A_MINUTE)
        return min(PICTURES, max(100, few // 100 * 100))


def tokenizer_stage(order: Order) -> Tokenizer:
    """Learn the vocabulary from captions, or read the one that the folder holds."""
    path = order.folder / "tokenizer.json"
    meet()
    if place()[0] == 0 and not path.exists():  # of several processes one writes
        make_folder(order.folder)
        vocabulary(Emoji.load()).save(path)
    meet()
    try:
        return Tokenizer.load(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: delete it, and it is learnt anew.") from error


def vae_stage(order: Order) -> VAE:
    """Train (or finish training) the autoencoder."""
    emoji = Emoji.load()

    def train_in(recipe: Recipe, folder: Path) -> VAE:
        return train_vae(emoji, folder, recipe, seed=order.seed)

    return train_in(order.fitted(VAE_RECIPE, "vae", train_in), order.folder / "vae")


def diffusion_stage(order: Order) -> Conditioned:
    """Train (or finish training) text transformer and U-Net on the latents of the trained VAE."""
    emoji = Emoji.load()
    vae, config = trained_vae(order.folder, emoji)
    bank = encode_bank(emoji, vae, tokenizer_stage(order), config, order.pictures, order.seed)

    def train_in(recipe: Recipe, folder: Path) -> Conditioned:
        return train_diffusion(bank, config, folder, recipe, seed=order.seed)

    return train_in(
        order.fitted(DIFFUSION_RECIPE, "diffusion", train_in), order.folder / "diffusion"
    )


def decoder_stage(order: Order) -> VAE:
    """Go on with the trained VAE's decoder alone, and write it as a VAE file if asked."""
    from minisd.checkpoints.write import save_vae

    emoji = Emoji.load()
    vae, _ = trained_vae(order.folder, emoji)

    def train_in(recipe: Recipe, folder: Path) -> VAE:
        return train_decoder(vae, emoji, folder, recipe, seed=order.seed)

    first = replace(order, minutes=order.minutes and order.minutes / (1 + ALIKE))
    recipe = first.fitted(DECODER_RECIPE, "decoder", train_in)
    tuned = train_in(recipe, order.folder / "decoder").eval()
    if order.output:
        faithful = {"psnr of unseen pairs": round(psnr(tuned, unseen_pictures(emoji)), 2)}
        notes = made_by("decoder", order.folder) | faithful
        save_vae(order.output, tuned, {"notes": json.dumps(notes)})
    return tuned


def classifier_stage(order: Order) -> LatentClassifier:
    """Train the noise-aware classifier on latents of the trained VAE, and write it if asked."""
    emoji = Emoji.load()
    vae, config = trained_vae(order.folder, emoji)
    schedule, sizes = Schedule(config.schedule), ClassifierConfig(emoji.things)
    known = classifier.labelled_latents(emoji, vae, config, order.pictures, order.seed)

    def train_in(recipe: Recipe, folder: Path) -> LatentClassifier:
        more = {"seed": order.seed, "encoded_by": fingerprint(vae)}
        return classifier.train_classifier(*known, sizes, schedule, folder, recipe, **more)

    recipe = order.fitted(classifier.RECIPE, "classifier", train_in)
    trained = train_in(recipe, order.folder / "classifier")
    unseen = classifier.labelled_latents(emoji, vae, config, 1000, seed=1, split="heldout")
    ts = range(0, 1000, 100)
    accuracy = classifier.accuracy_per_t(trained.eval(), *unseen, schedule, ts)
    if order.output:
        notes = made_by("classifier", order.folder) | {"accuracy": accuracy}
        save_classifier(order.output, trained, notes)
    return trained


def judge_stage(order: Order) -> judge.Judge:
    """Train the judge of pictures, half on what the trained VAE returns; write it if asked."""
    emoji = Emoji.load()
    vae, _ = trained_vae(order.folder, emoji)
    count = min(judge_training.DECODED, order.pictures)  # a short run has no time for all
    decoded = judge_training.decoded_crops(vae, emoji, count, order.seed)

    def train_in(recipe: Recipe, folder: Path) -> judge.Judge:
        more = {"seed": order.seed, "encoded_by": fingerprint(vae)}
        return judge_training.train_judge(emoji, decoded, folder, recipe, **more)

    recipe = order.fitted(judge_training.RECIPE, "judge", train_in)
    trained = train_in(recipe, order.folder / "judge")
    if order.output:
        accuracy = judge.accuracy(trained.eval(), emoji)
        judge.save(trained, order.output, made_by("judge", order.folder) | {"accuracy": accuracy})
    return trained


def evaluate_stage(order: Order) -> dict:
    """Measure the shipped model and renew docs/mini.md with its pictures."""
    import minisd
    from docs.make.mini_report import write
    from minisd.checkpoints.load import load_vae

    docs, sd = order.output or WEIGHTS.parent / "docs", minisd.load("mini")
    decoder = WEIGHTS / "mini-decoder.safetensors"
    fine_tuned = load_vae(decoder, sd.config.vae) if decoder.exists() else None
    return write(docs, sd, judge.load(), Emoji.load(), fine_tuned=fine_tuned)


def export(order: Order) -> Path:
    """Write the averaged networks as one model file, in half precision, with how they were made.

    Of several processes the first writes it.
    """
    from minisd.checkpoints.load import Parts
    from minisd.checkpoints.write import save

    output, emoji = order.output or order.folder / "mini.safetensors", Emoji.load()
    vae, config = trained_vae(order.folder, emoji)
    network = averaged(Conditioned(config), order.folder / "diffusion")
    parts = Parts(config, tokenizer_stage(order), network.text_encoder, network.unet, vae)
    faithful = {"psnr of unseen pairs": round(psnr(vae, unseen_pictures(emoji)), 2)}
    notes = made_by("vae", order.folder) | faithful
    figures = {"vae": notes, "diffusion": made_by("diffusion", order.folder)}
    commands = " && ".join(f"minisd train {stage}" for stage in ("vae", "diffusion", "export"))
    if place()[0] == 0:
        save(output, parts, torch.float16, {"command": commands, "figures": json.dumps(figures)})
    return output


STAGES = {
    "tokenizer": tokenizer_stage,
    "vae": vae_stage,
    "diffusion": diffusion_stage,
    "export": export,
    "decoder": decoder_stage,
    "classifier": classifier_stage,
    "judge": judge_stage,
    "evaluate": evaluate_stage,
}


def made_by(stage: str, folder: Path) -> dict:
    """How a stage was trained: command, commit, seed, threads, and what its log says last.

    Not how long it took: a run that was interrupted gives the same file as one that was not.
    """
    run = (last_state(folder / stage) or {}).get("run", {})
    command = f"minisd train {stage} --steps {run.get('recipe.steps', 'unknown')}"
    about = {"command": f"{command} --seed {run.get('seed', 0)}", "seed": run.get("seed", 0)}
    about["commit"] = run.get("commit", "unknown")  # of the code that began the training
    about["threads"] = run.get("threads", "unknown")
    last = (logged(folder / stage) or [{}])[-1]
    return about | {name: number for name, number in last.items() if name != "seconds"}


def vocabulary(emoji: Emoji) -> Tokenizer:
    """The mini's tokenizer, learnt from its captions in seconds."""
    return Tokenizer.train(captions(emoji, 20_000), MINI.text.vocab_size)


def unseen_pictures(emoji: Emoji) -> Tensor:
    """Held-out pairs, 256 3 64 64."""
    return batch(emoji, MINI.size, 256, seed=1, step=0, split="heldout").images


def trained_vae(folder: Path, emoji: Emoji) -> tuple[VAE, ModelConfig]:
    """The averaged VAE of the run, and the config with the latent scale that it needs.

    A diffusion run goes on with the scale that it began with.
    """
    vae = averaged(VAE(MINI.vae), folder / "vae")
    begun = (last_state(folder / "diffusion") or {}).get("run", {})
    images = batch(emoji, MINI.size, 256, seed=1, step=0).images
    scale = begun.get("vae.scale") or round(measure_scale(vae, images), 5)
    vae.config = replace(MINI.vae, scale=scale)
    return vae, replace(MINI, vae=vae.config)


def averaged(network: nn.Module, folder: Path) -> nn.Module:
    """The network with the averaged weights of the folder's last checkpoint.

    ValueError: that stage has not been trained yet.
    """
    state = last_state(folder)
    if state is None:
        raise ValueError(f"{folder} holds nothing: run `minisd train {folder.name}` first.")
    network.load_state_dict(state["average"])
    return network.eval().requires_grad_(False)
