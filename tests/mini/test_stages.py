"""Every stage of `minisd train`, for three steps: its result loads, and its run resumes."""

import shutil
from functools import partial
from pathlib import Path

import pytest

import minisd
from minisd import cli, load
from minisd.adapters.classifier import load_classifier
from minisd.adapters.controlnet import ControlNet
from minisd.adapters.hypernetwork import hypernetwork
from minisd.adapters.lora import lora
from minisd.adapters.textual_inversion import textual_inversion
from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.load import load_vae
from minisd.checkpoints.write import save
from minisd.depth.small import load_estimator
from minisd.mini import job, judge, partial_files, recipes, train_judge
from minisd.mini.cats_and_dogs import load_unprompted
from minisd.mini.job import ema_network
from minisd.mini.stages import STARTS_WITH, default_output
from minisd.tokenizer import Tokenizer
from minisd.training.diffusion import TextAndUNet
from minisd.vae import VAE
from tests.helpers.tiny_models import SMALL
from tests.helpers.training_runs import shrink, state_in, train_command

FIRST = ("tokenizer", "vae", "diffusion")  # the others start from these, or from the shipped mini


def run(stage: str, folder: Path, steps: int = 3) -> None:
    assert cli.main(train_command(stage, folder, "--steps", steps)) == 0


@pytest.fixture(scope="module")
def first_runs(emoji, tmp_path_factory):
    """The folder of a run whose first stages are trained. Everything is as small as it can be."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for module in (recipes, job, judge, train_judge):
            patch.setattr(module, "MINI", SMALL)
        patch.setattr(job, "PICTURES", 100)
        patch.setattr(judge, "accuracy", partial(judge.accuracy, count=100))
        run("tokenizer", folder)
        shrink(patch, Tokenizer.load(folder / "tokenizer.json"))
        run("vae", folder)
        run("diffusion", folder)
        yield folder


@pytest.fixture
def runs(first_runs, tmp_path, monkeypatch):
    """A copy of that folder. The shipped mini is a tiny model, which lies next to the copy."""
    sd, shipped = minisd.load("mini"), tmp_path / "shipped"
    shipped.mkdir()
    parts = Parts(sd.config, sd.tokenizer, sd.text_encoder, sd.unet, sd.vae)
    save(shipped / "mini.safetensors", parts)
    monkeypatch.setattr(partial_files, "WEIGHTS", shipped)
    return shutil.copytree(first_runs, tmp_path / "runs")


def draws(path: Path) -> bool:
    return load(path).txt2img("a cat", steps=1).size == (SMALL.size, SMALL.size)


def fits_the_mini(attach, path: Path) -> bool:
    with attach(minisd.load("mini"), path):
        return True


def reads_more(path: Path, name: str, channels: int) -> bool:
    config = load(path).config
    return (config.name, config.unet.in_channels) == (name, channels)


# stage -> whether its result is what it should be, read by the function that users call
LOADS = {
    "tokenizer": lambda path: Tokenizer.load(path).encode("a cat"),
    "vae": lambda path: ema_network(VAE(SMALL.vae), path),
    "diffusion": lambda path: ema_network(TextAndUNet(SMALL), path),
    "export": draws,
    "decoder": lambda path: load_vae(path, SMALL.vae),
    "classifier": lambda path: load_classifier(path).config.things,
    "judge": lambda path: judge.load_judge(path).things,
    "lora": lambda path: fits_the_mini(lora, path),
    "lcm": lambda path: fits_the_mini(lora, path),
    "word": lambda path: fits_the_mini(textual_inversion, path),
    "hypernetwork": lambda path: fits_the_mini(hypernetwork, path),
    "controlnet": ControlNet.load,
    "controlnet-half": lambda path: partial_files.half_trained_controlnet(
        minisd.load("mini"), path
    ),
    "inpaint": lambda path: reads_more(path, "mini-inpaint", 9),
    "depth": lambda path: reads_more(path, "mini-depth", 5) and load_estimator(path),
    "cats-and-dogs": load_unprompted,
}


def result_of(stage: str, folder: Path) -> Path:
    """The file that the stage writes, or what it leaves in the folder instead."""
    if stage in cli.FOLDER_ONLY:
        return folder / cli.FOLDER_ONLY[stage]
    return default_output(stage, folder)


def test_every_stage_is_tried():
    assert tuple(LOADS) == cli.STAGES


@pytest.mark.parametrize("stage", LOADS)
def test_the_result_of_a_stage_loads_and_its_run_resumes(runs, stage):
    if stage not in FIRST:
        run(stage, runs)
    assert LOADS[stage](result_of(stage, runs))
    if stage in ("tokenizer", "export"):  # no training with steps
        return
    folders = {runs / stage, runs / STARTS_WITH.get(stage, stage)}
    assert [state_in(folder)["step"] for folder in folders] == [3] * len(folders)
    run(stage, runs, steps=4)
    assert [state_in(folder)["step"] for folder in folders] == [4] * len(folders)
    for folder in folders:  # a training that starts over would log its step 0 a second time
        assert len((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    assert LOADS[stage](result_of(stage, runs))
