"""state.pt: any damage gives one sentence, and the state of an earlier version is refused."""

import copy

import pytest
import torch
from torch import nn

from minisd.training import loop, run_folder
from minisd.training.loop import Hyperparameters, train
from minisd.training.threads import threads_of

SETTINGS = Hyperparameters(steps=2, warmup=1, log_every=1)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(run_folder, "plot_losses", lambda folder: None)


def learn(folder, steps=2):
    """Train two layers, which have a matrix for Muon and biases for AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def loss_at(draw):
        x = torch.randn(draw.batch_size, 4, generator=draw.generator)
        return {"square": (model(x) - 2 * x).square().mean()}

    settings = Hyperparameters(steps=steps, warmup=1, log_every=1)
    return train(model, loss_at, settings, folder, batch_size=8, seed=0, about={"width": 4})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The state after two steps."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "plot_losses", lambda folder: None)
        learn(folder)
    return torch.load(folder / "state.pt", weights_only=True)


def without(*path):
    """Remove one entry."""

    def edit(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return edit


def put(value, *path):
    """Replace one entry."""

    def edit(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return edit


DAMAGE = {
    "no step": without("step"),
    "no seconds": without("seconds"),
    "no run": without("run"),
    "no processes": without("processes"),
    "no model": without("model"),
    "no EMA": without("ema"),
    "no optimizers": without("optimizers"),
    "no steps in run": without("run", "hyperparameters.steps"),
    "no threads in run": without("run", "threads"),
    "no commit in run": without("run", "commit"),
    "no format": without("format"),
    "a format that is text": put("two", "format"),
    "a step that is text": put("2", "step"),
    "a negative step": put(-1, "step"),
    "seconds that are text": put("long", "seconds"),
    "seconds that are NaN": put(float("nan"), "seconds"),
    "seconds that are infinite": put(float("inf"), "seconds"),
    "a run that is a list": put([], "run"),
    "a tensor in run": put(torch.zeros(3), "run", "width"),
    "steps that are text": put("many", "run", "hyperparameters.steps"),
    "no threads": put(0, "run", "threads"),
    "too many threads": put(10**9, "run", "threads"),
    "threads that are text": put("two", "run", "threads"),
    "a model that is a list": put([], "model"),
    "a model without a weight": without("model", "0.weight"),
    "a model with another weight": put(torch.zeros(4), "model", "2.weight"),
    "a weight that is a number": put(3.0, "model", "0.bias"),
    "an EMA without a weight": without("ema", "1.bias"),
    "an EMA that is text": put("averaged", "ema"),
    "one optimizer": without("optimizers", 1),
    "optimizers that are numbers": put([1, 2], "optimizers"),
    "no param_groups": without("optimizers", 0, "param_groups"),
    "no state of an optimizer": without("optimizers", 1, "state"),
    "param_groups that are text": put("all", "optimizers", 1, "param_groups"),
    "a group without params": without("optimizers", 0, "param_groups", 0, "params"),
    "fewer parameters": put([0], "optimizers", 0, "param_groups", 0, "params"),
    "no momentum": put({}, "optimizers", 0, "state", 0),
    "a momentum of another shape": put(torch.zeros(3), "optimizers", 0, "state", 0, "momentum"),
    "a momentum that is a number": put(1.0, "optimizers", 0, "state", 0, "momentum"),
    "no second moment": without("optimizers", 1, "state", 0, "exp_avg_sq"),
    "a moment of no parameter": put({"momentum": torch.zeros(4)}, "optimizers", 0, "state", 9),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_whatever_is_wrong_in_a_state_is_one_sentence(good, tmp_path, kind):
    state = copy.deepcopy(good)
    DAMAGE[kind](state)
    torch.save(state, tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ValueError, match=r"state\.pt is damaged\. Delete it") as caught:
        learn(tmp_path, steps=4)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_what_is_no_dictionary_is_damaged(tmp_path):
    torch.save([1, 2, 3], tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt is damaged\. Delete it"):
        learn(tmp_path)


def test_an_undamaged_state_is_resumed(good, tmp_path):
    """Without an edit the training continues."""
    torch.save(copy.deepcopy(good), tmp_path / "state.pt")
    learn(tmp_path, steps=4)
    after = torch.load(tmp_path / "state.pt", weights_only=True)
    assert after["step"] == 4
    assert [record["step"] for record in run_folder.log_records(tmp_path)] == [2, 3]


def test_the_settings_of_optimizers_come_from_the_recipe(good, tmp_path):
    """A stranger's file cannot set momentum or weight decay, which no description shows."""
    state = copy.deepcopy(good)
    state["optimizers"][0]["param_groups"][0]["momentum"] = 0.1
    state["run"]["hyperparameters.steps"] = 2
    torch.save(state, tmp_path / "state.pt")
    learn(tmp_path, steps=3)
    after = torch.load(tmp_path / "state.pt", weights_only=True)
    assert after["optimizers"][0]["param_groups"][0]["momentum"] == 0.95


# ---- a run of an earlier version ---------------------------------------------------------------


def earlier_state(good):
    """The state as the version before format numbers wrote it."""
    run = {name.replace("hyperparameters.", "recipe."): v for name, v in good["run"].items()}
    kept = {name: good[name] for name in ("step", "seconds", "processes", "model", "optimizers")}
    return {**copy.deepcopy(kept), "run": run, "average": copy.deepcopy(good["ema"])}


def without_run(state):
    del state["run"]
    return state


@pytest.mark.parametrize(
    "make",
    [
        earlier_state,
        lambda good: without_run(earlier_state(good)),  # still earlier, runs were not described
        lambda good: {**good, "format": 1},
    ],
)
def test_a_run_of_an_earlier_version_is_refused(good, tmp_path, make):
    torch.save(make(good), tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ValueError) as caught:
        learn(tmp_path, steps=4)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'state.pt'} was written by an earlier version of minisd")
    assert "Train in another folder, or delete" in said and "\n" not in said
    assert (tmp_path / "state.pt").read_bytes() == before
    with pytest.raises(ValueError, match="earlier version"), threads_of(tmp_path):
        pass


def test_a_state_of_a_later_version_is_refused_too(good, tmp_path):
    torch.save({**good, "format": run_folder.FORMAT + 1}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"written by a later version of minisd"):
        learn(tmp_path)


def test_what_a_run_writes_has_the_number_of_its_format(good):
    assert good["format"] == run_folder.FORMAT == 2
    assert set(good) == set(run_folder.STATE)
    assert loop.description(SETTINGS, {})["hyperparameters.steps"] == 2
