"""Nothing trained is lost: files without -o, a kill at any step, numbers that are not finite."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from minisd import cli
from minisd.checkpoints.write import write_tensors
from minisd.config import WEIGHTS
from minisd.mini import datasets, recipes, stages
from minisd.mini.job import train_vocabulary
from minisd.mini.minutes import fit_to_minutes
from minisd.process.signals import Interrupted, stop_request
from minisd.schedule import Schedule
from minisd.teaching import toy
from minisd.tokenizer import Tokenizer
from minisd.training import adapters, distributed, loop, run_folder, threads, wider_unet
from minisd.training.loop import Hyperparameters, train
from minisd.training.run_folder import log_records
from tests.helpers.point_training import train_predictor
from tests.helpers.tiny_models import SMALL
from tests.helpers.training_runs import (
    COMMANDS,
    REPOSITORY,
    Killed,
    free_port,
    shrink,
    state_in,
    train_command,
)

KILLS = [
    ("word", 41, "SIGKILL"),
    ("word", 41, "SIGINT"),
    ("lora", 5, "SIGTERM"),
    ("hypernetwork", 11, "SIGINT"),
]
STATUS = {"SIGKILL": -signal.SIGKILL, "SIGINT": 130, "SIGTERM": 143}


@pytest.fixture(scope="module")
def vocabulary(emoji):
    return train_vocabulary(emoji)


@pytest.fixture(scope="module")
def small(vocabulary):
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, vocabulary)
        yield


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """The folder of unbroken runs."""
    folder = tmp_path_factory.mktemp("whole")
    for stage in COMMANDS:
        assert cli.main(train_command(stage, folder)) == 0
    return folder


# ---- a kill, and the same command again --------------------------------------------------------


@pytest.fixture(scope="module")
def died(vocabulary, tmp_path_factory):
    """A folder where each of KILLS has happened, and the statuses with which they ended.

    Two processes share another training there, and one of them is stopped.
    """
    folder = tmp_path_factory.mktemp("died")
    vocabulary.save(folder / "tokenizer.json")
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "tests.training.test_training_resume", folder]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | port
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def die_in(folder):
    """Fork a process for each kill, then two that work together. Prints how they ended."""
    import torch._dynamo

    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    status = [end_of(fork(folder / str(i), be_killed, tokenizer, *k)) for i, k in enumerate(KILLS)]
    pair = [fork(folder / f"rank{rank}", share_work, rank, folder) for rank in range(2)]
    print(json.dumps(status + [end_of(pid) for pid in pair]))


def fork(folder, task, *given):
    """A process that does task(folder, *given), its errors written into the folder."""
    folder.mkdir()
    if pid := os.fork():
        return pid
    signal.alarm(200)  # one that waits for another in vain ends too
    sys.stderr = open(folder / "stderr", "w", buffering=1, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stderr
    try:
        os._exit(task(folder, *given) or 0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def end_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def be_killed(folder, tokenizer, stage, at, name):
    """Train until a step at which this process signals itself."""
    set_rates = loop.set_rates

    def deadly(optimizers, settings, step):
        if step == at:
            os.kill(os.getpid(), getattr(signal, name))
        set_rates(optimizers, settings, step)

    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, tokenizer)
        patch.setattr(loop, "set_rates", deadly)
        return cli.main(train_command(stage, folder))


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: " ".join(map(str, kill)))
def test_a_run_that_was_killed_gives_the_file_of_an_unbroken_one(whole, died, kill):
    """To the last byte. SIGKILL loses the steps since the last checkpoint, ctrl-C none."""
    stage, at, name = kill
    folder = died[0] / str(KILLS.index(kill))
    said = (folder / "stderr").read_text(encoding="utf-8")
    assert died[1][KILLS.index(kill)] == STATUS[name], said
    done = at // 10 * 10 if name == "SIGKILL" else at + 1
    assert state_in(folder / stage)["step"] == done
    output = stages.default_output(stage, folder)
    assert not output.exists()
    if name != "SIGKILL":
        expected = f"Stopped after {done} of {COMMANDS[stage]} steps. The state is saved in "
        expected += f"{folder / stage}. Give the same command again to go on."
        assert said.splitlines()[-1] == f"minisd train: {expected}"
    assert cli.main(train_command(stage, folder)) == 0
    assert output.read_bytes() == stages.default_output(stage, whole).read_bytes()


def test_a_complete_run_says_so_and_keeps_its_file(whole, tmp_path, capsys, monkeypatch):
    shutil.copytree(whole / "lora", tmp_path / "lora")
    output = tmp_path / "lora" / "lora.safetensors"
    output.unlink()
    monkeypatch.setattr(loop, "set_rates", None)  # no step is taken
    for _ in range(2):
        assert cli.main(train_command("lora", tmp_path)) == 0
        out, err = capsys.readouterr()
        assert f"The training in {tmp_path / 'lora'} is complete: 12 of 12 steps" in err
        assert out.splitlines()[-1] == str(output)
        assert output.read_bytes() == (whole / "lora" / "lora.safetensors").read_bytes()


def test_equal_files_have_equal_bytes(tmp_path):
    """safetensors shuffles the settings of a header."""
    odd = "".join(map(chr, range(300))) + '\u2028"\\/<>&😀'
    settings = {name * 2: odd + name for name in "hgfedcba"}
    tensors, written = {"ä\n": torch.arange(3.0), "b": torch.zeros(2, 2)}, set()
    for i in range(5):
        write_tensors(tmp_path / f"{i}.safetensors", tensors, settings, None)
        written.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert file.metadata() == settings
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118
            name: tensor.tolist() for name, tensor in tensors.items()
        }


# ---- the loop by itself ------------------------------------------------------------------------

RECIPE = Hyperparameters(steps=8, warmup=2, save_every=100, log_every=1)


def learn(folder, recipe=RECIPE, at=None, do=None):
    """Train two layers to double a number; at one step `do` changes the terms of the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def loss_at(draw):
        x = torch.randn(draw.batch_size, 4, generator=draw.generator)
        terms = {"square": (model(x) - 2 * x).square().mean(), "size": 1e-3 * x.square().mean()}
        step = draw.number // distributed.rank_and_world_size()[1]
        return do(model, terms) if step == at else terms

    return train(model, loss_at, recipe, folder, batch_size=8, seed=0, about={"width": 4})


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(run_folder, "plot_losses", lambda folder: None)


def raise_interrupt(model, terms):
    raise KeyboardInterrupt


def signal_twice(model, terms):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    return terms


def test_an_interrupt_within_the_loss_keeps_the_steps_before(quick, tmp_path):
    with pytest.raises(Interrupted, match=r"Stopped after 5 of 8 steps.*the same command"):
        learn(tmp_path / "stopped", at=5, do=raise_interrupt)
    assert state_in(tmp_path / "stopped")["step"] == 5
    resumed, unbroken = learn(tmp_path / "stopped"), learn(tmp_path / "unbroken")
    for one, other in zip(resumed.parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_second_interrupt_breaks_off_at_once(quick, tmp_path):
    """The step may be half done by then, so nothing more is saved."""
    learn(tmp_path, replace(RECIPE, steps=3))
    with pytest.raises(KeyboardInterrupt) as caught:
        learn(tmp_path, at=5, do=signal_twice)
    assert not isinstance(caught.value, Interrupted)
    assert state_in(tmp_path)["step"] == 3


def test_signals_are_handled_as_before_when_the_training_ends(quick, tmp_path, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    learn(tmp_path)
    with pytest.raises(Interrupted):
        learn(tmp_path / "other", at=0, do=raise_interrupt)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(KeyboardInterrupt), stop_request():  # after the loop's last look
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_was_ignored_stays_ignored(quick, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        learn(tmp_path, at=5, do=lambda model, terms: (os.kill(os.getpid(), 2), terms)[1])
    finally:
        signal.signal(signal.SIGINT, before)
    assert state_in(tmp_path)["step"] == 8


def test_a_training_in_another_thread_needs_no_signals(quick, tmp_path):
    at_work = threading.Thread(target=learn, args=[tmp_path])
    at_work.start()
    at_work.join()
    assert state_in(tmp_path)["step"] == 8


def test_a_kill_loses_seconds_whatever_the_recipe_says(quick, tmp_path, monkeypatch):
    """It saves as soon as the pause is over, but never for more than 2 % of the time."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    saved, save = [], run_folder.save_state

    def slowly(folder, state):
        save(folder, state)
        saved.append(state["step"])
        now[0] += 0.31

    monkeypatch.setattr(run_folder, "save_state", slowly)

    def pass_second(model, terms):
        now[0] += 1
        return terms

    class Always:
        def __eq__(self, other):
            return True

    recipe = replace(RECIPE, steps=40)
    learn(tmp_path, recipe, at=Always(), do=pass_second)
    assert saved == [6, 22, 38, 40]  # more than 5 seconds, then more than 15


def test_a_stop_while_the_pace_is_measured_speaks_of_no_folder(quick, tmp_path):
    stopped = partial(learn, at=3, do=raise_interrupt)
    with pytest.raises(Interrupted) as caught:
        fit_to_minutes(RECIPE, 1, tmp_path, lambda recipe, folder: stopped(folder, recipe))
    assert "Nothing has been trained yet" in str(caught.value)
    assert not list(tmp_path.iterdir())


# ---- numbers that are not finite ---------------------------------------------------------------


def nan_loss(model, terms):
    return {**terms, "square": terms["square"] * float("nan")}


def infinite_constant(model, terms):
    return {**terms, "size": torch.tensor(float("inf"))}  # its gradient is none


def infinite_gradient(model, terms):
    model[0].bias.register_hook(lambda gradient: gradient * float("inf"))
    return {"square": terms["square"]}


def nan_gradient(model, terms):
    """The slope of the square root at 0: the loss is finite, and its gradient is NaN."""
    return {**terms, "size": (0 * model[1].weight).sum().sqrt() * 0}


BROKEN = {
    "the loss square is nan": nan_loss,
    "the loss size is inf": infinite_constant,
    "the norm of the gradient is ": infinite_gradient,
    "the norm of the gradient is nan": nan_gradient,
}


@pytest.mark.parametrize("said", BROKEN)
def test_what_is_not_finite_stops_before_the_last_state_is_overwritten(quick, tmp_path, said):
    often = replace(RECIPE, save_every=1)
    with pytest.raises(ValueError, match=f"failed at step 5: {said}") as caught:
        learn(tmp_path, often, at=5, do=BROKEN[said])
    assert "in another folder, with a lower rate or another seed" in str(caught.value)
    state = state_in(tmp_path)
    assert state["step"] == 5
    finite = [tensor.isfinite().all() for tensor in state["model"].values()]
    assert all(finite) and all(t.isfinite().all() for t in state["ema"].values())
    assert [record["step"] for record in log_records(tmp_path)] == list(range(5))
    resumed, unbroken = learn(tmp_path, often), learn(tmp_path / "unbroken", often)
    for one, other in zip(resumed.parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_that_are_not_finite_are_not_saved(quick, tmp_path):
    """The loss and the gradient are finite, but the step is too large."""
    learn(tmp_path, replace(RECIPE, steps=3))
    good = (tmp_path / "state.pt").read_bytes()

    def far(model, terms):
        with torch.no_grad():
            model[1].weight[0, 0] = float("inf")
        return {"size": terms["size"] + 0 * model[0].bias.sum()}

    with pytest.raises(ValueError, match=r"failed at step 7: the weight 1\.weight is NaN"):
        learn(tmp_path, at=7, do=far)
    assert (tmp_path / "state.pt").read_bytes() == good


def test_a_trial_that_breaks_off_says_so(quick, tmp_path):
    broken = partial(learn, at=3, do=nan_loss)
    with pytest.raises(ValueError, match="failed at step 3: the loss square is nan"):
        fit_to_minutes(RECIPE, 1, tmp_path, lambda recipe, folder: broken(folder, recipe))


def test_points_stop_too():
    world = toy.two_peaks()
    broken = replace(world, centres=world.centres * float("nan"))
    with pytest.raises(ValueError, match="the loss is nan at step 0"):
        train_predictor(broken, Schedule(SMALL.schedule), 3)


# ---- several processes -------------------------------------------------------------------------


def share_work(folder, rank, shared):
    """What each of two processes does. One gets SIGTERM, and later has a term that is infinite."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    run_folder.plot_losses = lambda folder: None
    distributed.barrier()
    stop = {"at": 3, "do": lambda model, terms: (os.kill(os.getpid(), 15), terms)[1]}
    calls, said = {"stopped": stop, "broken": {"at": 4, "do": infinite_constant}}, {}
    for name, deed in calls.items():
        try:
            learn(shared / name, **(deed if rank == 1 else {}))
        except (ValueError, Interrupted) as error:
            said[name] = str(error)
    learn(shared / "stopped")
    (folder / "said.json").write_text(json.dumps(said), encoding="utf-8")


def test_of_two_processes_both_stop_when_one_has_to(died):
    folder, status = died
    assert status[-2:] == [0, 0], [
        (folder / f"rank{i}" / "stderr").read_text(encoding="utf-8") for i in (0, 1)
    ]
    said = [
        json.loads((folder / f"rank{rank}" / "said.json").read_text(encoding="utf-8"))
        for rank in range(2)
    ]
    assert said[0] == said[1]
    assert "Stopped after 4 of 8 steps" in said[0]["stopped"]
    assert "failed at step 4: the loss size is inf." in said[0]["broken"]
    state = state_in(folder / "stopped")
    assert (state["step"], state["processes"], state["run"]["threads"]) == (8, 2, 1)
    assert not (folder / "broken" / "state.pt").exists()
    assert not (folder / "rank1" / "stderr").read_text(encoding="utf-8")


# ---- threads -----------------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def used(folder, recipe=RECIPE):
    """The numbers of threads with which the steps of a training run."""
    seen, rate_factor = set(), Hyperparameters.rate_factor

    def watched(recipe, step):
        seen.add(torch.get_num_threads())
        return rate_factor(recipe, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hyperparameters, "rate_factor", watched)
        learn(folder, recipe)
    return seen


def test_a_run_goes_on_with_the_threads_that_it_began_with(quick, tmp_path, two_threads):
    assert used(tmp_path, replace(RECIPE, steps=3)) == {2}
    assert state_in(tmp_path)["run"]["threads"] == 2
    torch.set_num_threads(1)
    with pytest.warns(UserWarning, match="began with threads=2, so it goes on with the same"):
        assert used(tmp_path) == {2}
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert used(tmp_path, replace(RECIPE, steps=9)) == {2}


def test_with_other_processes_the_threads_stay_as_they_are(
    quick, tmp_path, two_threads, monkeypatch
):
    """Two processes of two threads each on two cores would be many times slower."""
    learn(tmp_path, replace(RECIPE, steps=3))
    torch.set_num_threads(1)
    monkeypatch.setattr(threads, "rank_and_world_size", lambda: (0, 2))
    said = "began with processes=1, threads=2 each. It goes on with processes=2, threads=1 each"
    with pytest.warns(UserWarning, match=said):
        assert used(tmp_path) == {1}


@pytest.mark.parametrize("stage", ["lora", "depth"])
def test_pictures_too_are_encoded_with_the_recorded_threads(small, tmp_path, two_threads, stage):
    """Otherwise, the run would go on with other latents. depth begins with its estimator."""
    seen, adapter_dataset = [], datasets.adapter_dataset

    def watched(*given, **more):
        seen.append(torch.get_num_threads())
        return adapter_dataset(*given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "adapter_dataset", watched)
        patch.setattr(adapters, "train_on", raise_killed)
        patch.setattr(wider_unet, "train_on", raise_killed)
        if stage == "lora":
            learn(tmp_path / "lora", replace(RECIPE, steps=1))
        else:
            with pytest.raises(Killed):
                cli.main(train_command(stage, tmp_path))
        torch.set_num_threads(1)
        with pytest.raises(Killed):
            cli.main(train_command(stage, tmp_path))
    assert set(seen) == {2} and torch.get_num_threads() == 1


def raise_killed(*given):
    raise Killed


# ---- where files go ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage", ["word", "controlnet", "controlnet-half", "inpaint", "depth", "cats-and-dogs"]
)
def test_a_stage_writes_its_file_into_its_run_folder(small, tmp_path, capsys, stage):
    assert cli.main(train_command(stage, tmp_path, "--seed", 2, "--steps", 2)) == 0
    output = tmp_path / stage / f"{stage}.safetensors"
    assert capsys.readouterr().out.splitlines()[-1] == str(output)
    with safe_open(output, "pt") as file:
        notes = json.loads(file.metadata()["notes"])
    assert f"minisd train {stage}" in notes["command"]
    assert (notes["seed"], notes["threads"]) == (2, 1) and "seconds" not in notes
    assert (output.with_name("mini.safetensors").exists()) == (stage in ("inpaint", "depth"))


def test_every_stage_that_makes_a_file_has_a_place_of_its_own():
    assert {*cli.STAGES, "estimator"} == {*recipes.RECIPES, "tokenizer", "export"}
    writing = set(cli.STAGES) - set(cli.FOLDER_ONLY)
    folder = Path("runs/mini")
    places = {stage: stages.default_output(stage, folder) for stage in writing}
    assert len(set(places.values())) == len(writing) == 13
    assert places["export"] == folder / "mini.safetensors"
    assert places["hypernetwork"] == folder / "hypernetwork" / "hypernetwork.pt"
    assert not any(WEIGHTS in place.absolute().parents for place in places.values())


def test_what_is_trained_beside_no_file_says_its_folder(tmp_path, capsys, monkeypatch):
    for stage, name in cli.FOLDER_ONLY.items():
        monkeypatch.setattr(stages, "run_stage", lambda stage, job: None)
        assert cli.main(train_command(stage, tmp_path)) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}\n"


def test_a_difference_is_not_written_next_to_another_base(small, tmp_path, capsys):
    """The file would be read together with that base."""
    (tmp_path / "mini.safetensors").write_bytes(b"another")
    assert cli.main(train_command("inpaint", tmp_path, "-o", tmp_path / "own.safetensors")) == 2
    assert "is another model. Choose another folder" in capsys.readouterr().err
    assert not (tmp_path / "inpaint").exists()
    assert (tmp_path / "mini.safetensors").read_bytes() == b"another"


@pytest.mark.parametrize("stage", ["decoder", "tokenizer", "word", "judge"])
@pytest.mark.parametrize("minutes", [-1.0, 0.0, float("nan"), float("inf")])
def test_minutes_that_are_none_are_refused_as_they_were_given(tmp_path, capsys, stage, minutes):
    given = ["train", stage, "--folder", str(tmp_path / "runs"), "--minutes", str(minutes)]
    assert cli.main(given) == 2
    assert f"Cannot train for {minutes} minutes. Give a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("seed", [-1, 2**40, 2**64, -(2**70)])
def test_a_seed_that_cannot_be_is_refused_before_the_work(tmp_path, capsys, seed):
    assert cli.main(train_command("word", tmp_path / "runs", "--seed", seed)) == 2
    said = f"Cannot train with seed {seed}. Give a seed from 0 to {2**40 - 1}."
    assert said in capsys.readouterr().err
    assert loop.generator_at(2**40, 10**9)  # as judge's second seed at its largest
    assert not (tmp_path / "runs").exists()


if __name__ == "__main__":
    die_in(Path(sys.argv[1]))
