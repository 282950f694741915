"""Right answers are saved, and the model that consists of them draws what ours draws."""

import copy
import linecache
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd import fast
from minisd.exercises import check
from minisd.exercises.exercise import all_exercises, find_exercise
from minisd.exercises.mine import describe_model, save_answer, use_own_parts, yours
from tests.helpers.commands import run
from tests.helpers.core_calls import core_calls

PARTS = [one for one in all_exercises() if one.replaces]
PROMPT = "a blue cat on a red background"

WORK = """
import math, torch
import torch.nn.functional as F
from torch import nn
from einops import (
    einsum, rearrange)

x = torch.ones(3)
POWER = 0.5
SOFTMAX = {"softmax": F.softmax}


def scale(d):  # of the scores
    return math.pow(d, POWER)


class Heads(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def split(self, x):
        return rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)


@torch.no_grad()
def my_attend(q, k, v, mask=None):
    x = einsum(q, k, "b heads n d, b heads m d -> b heads n m") / scale(q.shape[-1])
    x = x if mask is None else x + mask
    return einsum(SOFTMAX["softmax"](x, dim=-1), v, "b heads n m, b heads m d -> b heads n d")


class Attention(Heads):
    def __init__(self, width, context_dim, heads):
        super().__init__(heads)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_dim, width, bias=False)
        self.to_v = nn.Linear(context_dim, width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.register_buffer("nothing", torch.zeros(1), persistent=False)

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        answer = my_attend(self.split(q), self.split(k), self.split(v))
        return self.to_out(rearrange(answer, "b heads n d -> b n (heads d)")) + self.nothing
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The student's folder. It does not exist yet."""
    monkeypatch.setenv("MINISD_MINE", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


@pytest.fixture
def work(folder, monkeypatch):
    """What a student's cells define."""
    return run_cells(monkeypatch, WORK)


def run_cells(monkeypatch, *cells):
    """Run cells as a notebook does: their source is in linecache. Returns the globals."""
    module = ModuleType("a_notebook")
    monkeypatch.setitem(sys.modules, "a_notebook", module)
    for cell in cells:
        name = f"/tmp/ipykernel_1/{hash(cell)}.py"
        lines = cell.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, name, (len(cell), None, lines, name))
        exec(compile(cell, name, "exec"), vars(module))
    return vars(module)


def save(name, answer):
    return save_answer(find_exercise(name), answer)


# ---- saving ----------------------------------------------------------------------------------


def test_a_saved_answer_holds_what_it_uses_and_nothing_else(folder, work):
    sentence = save("attend", work["my_attend"])
    assert sentence.startswith(f"Saved to {folder / 'attend.py'}: 1 of ")
    text = (folder / "attend.py").read_text()
    for used in (
        "import math, torch",
        "from einops import (",
        "POWER = 0.5",
        "def scale(d):  # of",
    ):
        assert used in text
    for other in ("x = torch.ones", "Heads", "nn"):
        assert other not in text.replace("torch.nn.functional", "")
    assert text.rstrip().endswith("attend = my_attend")
    save("attention", work["Attention"])
    assert "class Heads(nn.Module)" in (folder / "attention.py").read_text()


def test_the_cell_that_ran_last_counts(folder, monkeypatch):
    right = "def helper(x):\n    return x.softmax(dim=-1)\n"
    wrong = "def helper(x):\n    return x\n"
    answer = (
        "from einops import einsum\n"
        "def attend(q, k, v, mask=None):\n"
        "    scores = einsum(q, k, 'b i n d, b i m d -> b i n m') / q.shape[-1] ** 0.5\n"
        "    scores = scores if mask is None else scores + mask\n"
        "    return einsum(helper(scores), v, 'b i n m, b i m d -> b i n d')\n"
    )
    space = run_cells(monkeypatch, right, wrong, right, answer)
    assert save("attend", space["attend"]).startswith("Saved")
    assert "softmax" in (folder / "attend.py").read_text()


def test_check_saves_only_what_is_right_and_a_newer_answer_replaces_an_older_one(
    folder, work, capsys
):
    check("attend", lambda q, k, v, mask=None: v)
    assert not (folder / "attend.py").exists()
    check("attend", find_exercise("attend").solution)
    old = (folder / "attend.py").read_text()
    check("attend", work["my_attend"])
    assert "Saved to" in capsys.readouterr().out
    assert (folder / "attend.py").read_text() != old


def test_what_cannot_be_saved_is_named(folder, work, monkeypatch):
    sentence = save("attend", lambda q, k, v, mask=None: work["my_attend"](q, k, v, mask))
    assert sentence.startswith("The answer passes, but it cannot be saved: the source of attend")
    cell = "def attend(q, k, v, mask=None):\n    return other(q, k, v, mask)\n"
    space = run_cells(monkeypatch, cell)
    space["other"] = work["my_attend"].__wrapped__
    assert "the source of other is not known" in save("attend", space["attend"])
    cell = "calls = []\ndef attend(q, k, v, mask=None):\n    return calls[0](q, k, v, mask)\n"
    space = run_cells(monkeypatch, cell)
    space["calls"].append(work["my_attend"])
    assert "its copy gives another result" in save("attend", space["attend"])
    assert not (folder / "attend.py").exists()


def test_later_lessons_run_the_students_own_answer(folder, capsys):
    exercise = find_exercise("train_network")
    layer, batch = torch.nn.Linear(2, 1), torch.eye(2)
    given = [lambda: batch, lambda network, x: network(x).square().mean(), 3, 0.1]
    with torch.no_grad():  # as in a lesson
        ours = yours("train_network")(copy.deepcopy(layer), *given)
        assert "runs our `train_network`. Pass the exercise in lesson 02" in capsys.readouterr().out
        check("train_network", exercise.solution)
        assert "Later lessons use it." in capsys.readouterr().out
        own = yours("train_network")
        assert "This lesson runs your `train_network`, from" in capsys.readouterr().out
        assert own.__wrapped__.__code__.co_filename == str(folder / "train_network.py")
        assert torch.equal(own(layer, *given).weight, ours.weight)
    assert describe_model()[-1].startswith("0 of ")  # it is no part of the model


# ---- the model -------------------------------------------------------------------------------


def test_a_folder_with_another_file_is_refused(folder):
    with pytest.raises(ValueError, match="holds no answer"), use_own_parts():
        pass
    folder.mkdir()
    (folder / "foo.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=r"foo\.py belongs to no part of the model"):
        describe_model()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("self.to_out(", "self.to_no(", r"attention\.py, line \d+, stopped with AttributeError"),
        ("class", "klass", r"attention\.py, line \d+, stopped with SyntaxError"),
        ("Attention", "Attend", r"attention\.py has no Attention"),
        (
            "to_k = nn.Linear(context_dim",
            "to_k = nn.Linear(width",
            r"to_k\.weight of your Attention",
        ),
        ("to_k", "key", r"your Attention differ\. These are missing: to_k\.weight\."),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(folder, work, old, new, message):
    save("attention", work["Attention"])
    text = (folder / "attention.py").read_text()
    (folder / "attention.py").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message), use_own_parts():
        minisd.load("mini").txt2img(PROMPT, steps=1)


def test_a_picture_says_that_it_was_drawn_with_own_parts(folder, work, capsys):
    save("attend", work["my_attend"])
    save("attention", work["Attention"])
    assert run("generate", PROMPT, "--steps", 2, "--mine", "-o", "own.png") == 0
    capsys.readouterr()
    assert run("info", "own.png") == 0
    about = capsys.readouterr().out
    assert "own_parts        attend, attention" in about
    assert "minisd generate --mine --like own.png" in about
    assert run("generate", "--mine", "--like", "own.png", "-o", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("own.png").read_bytes()
    assert run("generate", "--like", "own.png", "-o", "other.png") == 0
    assert "was drawn with own parts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mine", "a cat"], "there is no folder 'a cat'. Write the prompt before --mine."),
        (["a cat", "--mine=nowhere"], "there is no folder 'nowhere'. Check the path."),
        (["a cat", "--mine", "--vae", "mini"], "--mine draws without adapters"),
        (["a cat", "--mine"], "holds no answer"),
    ],
)
def test_generate_refuses_what_own_parts_cannot_do(folder, capsys, words, message):
    assert run("generate", *words) == 2
    assert message in capsys.readouterr().err


# ---- all solutions ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """A folder with the solutions of all parts."""
    folder = tmp_path_factory.mktemp("solved") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINISD_MINE", str(folder))
        for exercise in PARTS:
            sentence = save_answer(exercise, exercise.solution)
            assert sentence.startswith("Saved to"), sentence
    return folder


@pytest.fixture(scope="module")
def sd():
    return minisd.load("mini")


@pytest.fixture(scope="module")
def ours(sd):
    return draw_latent(sd)


def draw_latent(sd, steps=2):
    """The decoded latent: a picture before it is rounded to 256 shades."""
    *_, last = sd.txt2img_steps(PROMPT, steps=steps)
    return sd.decode(last.x)


RUN_BY_LOADING = ("alpha_bar_table", "skip_channels")  # these functions build a model


@pytest.mark.parametrize("exercise", PARTS, ids=lambda one: one.name)
def test_the_picture_with_one_own_part_equals_ours(exercise, solved, sd, ours, tmp_path):
    (tmp_path / f"{exercise.name}.py").write_bytes((solved / f"{exercise.name}.py").read_bytes())
    with use_own_parts(tmp_path):
        builds = isinstance(exercise.solution, type) or exercise.name in RUN_BY_LOADING
        sd = minisd.load("mini") if builds else sd
        assert (draw_latent(sd) - ours).abs().max() < 1e-4


def test_the_model_is_the_students_if_all_parts_are(solved, sd):
    """No function of the core runs but the pipeline, which is the glue, and the config."""
    with use_own_parts(solved):
        own = minisd.load("mini")
        calls = core_calls(lambda: own.txt2img(PROMPT, steps=2))
        drawn = draw_latent(own, steps=10)
    assert (drawn - draw_latent(sd, steps=10)).abs().max() < 1e-4
    glue = ("pipeline", "config", "fast")  # fast.py finds nothing that it could make faster
    assert {call for call in calls if call.split(".")[0] not in glue} == set()
    tricks = {f"fast.{trick.__name__}" for trick in fast.TRICKS.values()}
    assert not tricks & calls
    *parts, total = describe_model(solved)
    assert not [line for line in parts if " ours " in line]
    number = len(parts) - 2  # without the heading, and the parts of other drawings
    assert total == f"{number} of {number} parts, 100% of the multiplications"


def test_generate_draws_the_same_picture_if_all_parts_are_the_students(solved, folder):
    for name, more in {"own": [f"--mine={solved}"], "ours": []}.items():
        assert run("generate", PROMPT, "--steps", 10, "-o", f"{name}.png", *more) == 0
    own, ours = (np.array(Image.open(f"{name}.png"), int) for name in ("own", "ours"))
    assert abs(own - ours).max() <= 1
