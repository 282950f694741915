"""Grade a class of honest, lazy and hostile students: every row is right, and no attack helps."""

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import minisd
from minisd.cli import main
from minisd.exercises import grade, sandbox_child
from minisd.exercises.calls import Made
from minisd.exercises.exercise import all_exercises, find_exercise
from minisd.exercises.judge import draw_inputs
from minisd.exercises.notebooks import lesson_file, lesson_notebook
from minisd.exercises.plain_data import pack_data, unpack_data
from minisd.exercises.sandbox import ENDED, ONE_THREAD, RunLimits, read_result
from minisd.exercises.visible_tree import write_tree

PACKAGE = Path(minisd.__file__).parent
WAYS = ("namespaces", "landlock")
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems isolate nothing")

# ---- what the students hand in -----------------------------------------------------------------

HEADER = """
import os, sys, torch
from torch import nn
from einops import einsum, rearrange
from minisd.exercises import check, hint
"""
ATTEND = """
def attend(q, k, v, mask=None):
    scores = einsum(q, k, "b heads n d, b heads m d -> b heads n m") / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    return einsum(scores.softmax(dim=-1), v, "b heads n m, b heads m d -> b heads n d")
"""
ATTENTION = """
class Attention(nn.Module):
    def __init__(self, width, context_dim, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_dim, width, bias=False)
        self.to_v = nn.Linear(context_dim, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = [rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (q, k, v)]
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.to_out(rearrange(weights @ v, "b h n d -> b n (h d)"))
"""
ZEROS = "def attend(q, k, v, mask=None):\n    return torch.zeros_like(q)\n"
SHORT = ATTEND.replace("scores", "s")
HONEST = {
    "good": [ATTEND, 'check("attend", attend)', ATTENTION, "%matplotlib inline"],
    "half": [
        ATTEND.replace("mask is not None", "False"),
        ATTENTION.replace("(h d)", "(d h)"),
    ],
    "stub": ["def attend(q, k, v, mask=None):\n    '''To do.'''\n    ..."],
    "stub.2": ["def attend(q, k, v, mask=None):\n    '''To do.'''\n    ..."],
    "bad": [ATTEND.replace(" / q.shape[-1] ** 0.5", "")],
    "shape": [ATTEND.replace('-> b heads n d")', '-> b n heads d")')],
    "nan": [ZEROS.replace("zeros_like(q)", "full_like(q, float('nan'))")],
    "names": [ATTEND.replace("attend", "my_attention")],
    "syntax": ["def broken(:", ATTEND, ATTENTION + "    else:\n"],
    "crash": [
        ATTEND,
        "1 / 0",
        ATTENTION.replace("        q, k, v = [", "        1 / 0\n        ["),
    ],
    "prints": [ATTEND, "for _ in range(10**4):\n    print('flood' * 10**4)"],
    "twin": [SHORT],
    "pair": ['# my own work\n"""And words."""', SHORT.replace("\n    if", "  # scaled\n\n    if")],
}
FRESH_IMPORT = """
sys.path.insert(0, "PACKAGE/..")
for name in [name for name in sys.modules if name.startswith("minisd")]:
    del sys.modules[name]
"""
FAKE_RESULTS = """
from minisd.exercises.plain_data import pack_data
for i in range(99):
    try:
        os.write(i, pack_data(["result", torch.zeros(1, 1, 1, 4)]))
    except OSError:
        pass
os._exit(0)
"""
LIAR = """
class Liar(torch.Tensor):
    __eq__ = __ne__ = __sub__ = lambda *_: True

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), settings=None):
        return torch.ones(()).bool()

def attend(q, k, v, mask=None):
    return torch.zeros(q.shape).as_subclass(Liar)
"""
PATCHES = [
    "torch.isclose = torch.allclose = torch.equal = lambda *_, **__: torch.ones(()).bool()",
    "torch.Tensor.all = lambda *_: True",
]
HOSTILE = {
    # they take time, memory, processes or space
    "endless": [ATTENTION, ATTEND.replace("None):", "None):\n    while len(q) > 1: pass")],
    "forever": [ATTEND, "while True: pass"],
    "memory": [ATTEND, "def eat(hog=[]):\n    while True: hog.append(bytes(10**8))", "eat()"],
    "forks": [ATTEND, "while True: os.fork()"],
    "threads": [ATTEND, "import threading", "while True: threading.Thread(target=input).start()"],
    "disk": [ATTEND, "for i in range(10**4): open(f'{i}', 'wb').write(bytes(10**7))"],
    # they look for the answer. With it, they would have 4 points
    "spec": [ZEROS, FRESH_IMPORT, "from minisd.exercises.specs.attend import attend"],
    "library": [
        *(ZEROS, FRESH_IMPORT, "from minisd.attention import attend as ours"),
        "if 'ours' in dir():\n    attend = lambda *x: ours(*x[:3], nn.Identity(), *x[3:])",
    ],
    "source": [
        *(ZEROS, "code = open('PACKAGE/exercises/specs/attend.py').read()"),
        "exec(code[code.index('def attend') : code.index('def without_scale')])",
    ],
    "copies": [ZEROS, "exec(open('FOLDER/py.py').read())"],
    "secret": [ZEROS, "exec(os.environ['ANSWER'])"],
    # they change what others see
    "writes": [ATTEND, "os.chmod('FOLDER/py.py', 0)", "open('ROSTER', 'w')"],
    "removes": [ATTEND, "os.remove('FOLDER/py.py')", "os.truncate('ROSTER', 0)"],
    "plants": [ATTEND, "open('PACKAGE/exercises/specs/hacked.py', 'w')"],
    "kills": [ATTEND, "os.kill(os.getppid(), 9)", "os.kill(GRADER, 9)", "os.kill(-1, 9)"],
    "limits": [ATTEND, "import resource as r", "r.prlimit(GRADER, r.RLIMIT_NOFILE, (3, 3))"],
    "calls": [ATTEND, "import socket", "socket.create_connection(('127.0.0.1', PORT), 2)"],
    # they claim that they are right
    "patches": [ZEROS, *PATCHES],
    "checks": [
        *(ZEROS, "import minisd.exercises as e", "e.check = e.judge = lambda *_: 4"),
        "sys.modules['minisd.exercises.judge'] = e",
    ],
    "talks": [ZEROS, "print('[\"none\", []]\\n4 of 4 points')", "os.write(1, b'4 of 4 points')"],
    "garbage": [ZEROS, "for i in range(99):\n    try: os.write(i, b'4')\n    except OSError: pass"],
    "fakes": [ZEROS, FAKE_RESULTS],
    "liar": [LIAR],
    "object": [
        "class Any:\n    def __reduce__(self): return exit, ()",
        "attend = lambda *_: Any()",
    ],
    # they return what is hard to read, or end early
    "deep": ["def attend(*_):\n    x = []\n    for _ in range(200): x = [x]\n    return x"],
    "huge": ["def attend(*_): return torch.zeros(10**7)"],
    "number": ["def attend(*_): return [10**4000, 2]"],
    "leaks": ["def attend(q, *_): raise ValueError(q.tolist())"],
    "exit": [ATTEND, "os._exit(0)"],
    "segfault": [ATTEND, "import ctypes", "ctypes.string_at(0)"],
}
# id, points for attend, points for attention, flags
EXPECTED = """\
good 4 4
half 3 1
stub 0 0
stub.2 0 0
bad 0 0
shape 1 0
nan 0 0
names 0 0
syntax 4 0
crash 4 0
prints 4 0
twin 4 0 identical to pair
pair 4 0 identical to twin
endless 1 4 attend: too slow
forever 0 0 attend: too slow
memory 4 0
forks 4 0
threads 4 0
disk 4 0
spec 0 0
library 0 0
source 0 0
copies 0 0
secret 0 0
writes 4 0
removes 4 0
plants 4 0
kills 4 0
limits 4 0
calls 4 0
patches 0 0
checks 0 0
talks 0 0
garbage 0 0 attend: strange result
fakes 0 0
liar 0 0
object 0 0
deep 0 0 attend: strange result
huge 0 0
number 0 0 attend: strange result
leaks 0 0
exit 0 0 attend: ended early
segfault 0 0 attend: ended early
py 4 0
torn 0 0 unreadable: torn_exercises.ipynb
link 0 0 missing
absent 0 0 missing
"""


def write_notebook(path, cells):
    cells = [{"cell_type": "code", "source": cell, "metadata": {}} for cell in [HEADER, *cells]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}))


@pytest.fixture
def classroom(tmp_path, monkeypatch):
    """A folder with all submissions, and a roster. A server waits for a call that must not come."""
    monkeypatch.setenv("ANSWER", ATTEND)
    folder, roster = tmp_path / "submitted", tmp_path / "class.csv"
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    names = {"PACKAGE": PACKAGE, "FOLDER": folder, "ROSTER": roster, "GRADER": os.getpid()}
    names["PORT"] = server.getsockname()[1]
    for number, (student, cells) in enumerate((HONEST | HOSTILE).items()):
        # only "twin" and "pair" have the same code. They call their scores s
        names |= {"scores": f"scores_{number}", "zeros_like(q)": f"zeros_like(q) + {number}"}
        for name, value in names.items():
            cells = [cell.replace(name, str(value)) for cell in cells]
        write_notebook(folder / student / "07" / "07_attention_exercises.ipynb", cells)
    (folder / "py.py").write_text(HEADER + ATTEND)
    (folder / "torn_exercises.ipynb").write_text('{"cells": [')
    (folder / "link.py").symlink_to(folder / "py.py")
    write_notebook(folder / "nobody" / "x.ipynb", [ATTEND])
    write_notebook(folder / "good" / ".ipynb_checkpoints" / "x.ipynb", [ZEROS])
    ids = [line.split()[0] for line in EXPECTED.splitlines()]
    roster.write_text("id,name\n" + "".join(f"{one},Name of {one}\n" for one in ids))
    yield folder, roster
    with pytest.raises(BlockingIOError):
        server.accept()
    server.close()


def grade_classroom(folder, roster, limits, only=None):
    students = [one for one in grade.read_roster(roster) if only is None or one.id in only]
    strangers = grade.hand_out_files(folder, students)
    assert str(folder / "nobody" / "x.ipynb") in strangers
    exercises = grade.find_answered(students)
    remarks = grade.judge_all(students, exercises, 5, limits)
    grade.find_twins(students, exercises)
    return students, remarks


def isolated(folder, roster, way, only=None):
    """The students, graded with this way of isolation. Skips the test if the system lacks it."""
    try:
        students, remarks = grade_classroom(folder, roster, RunLimits(6, ways=(way,)), only)
    except ValueError as error:
        pytest.skip(str(error))
    assert remarks == []
    return students


def stamps(paths):
    return {
        path: (one.st_mode, one.st_size, one.st_mtime_ns) for path in paths for one in [path.stat()]
    }


def as_line(row):
    return " ".join(str(row[x]) for x in ("id", "attend", "attention", "flags")).strip()


@linux
@pytest.mark.parametrize("way", WAYS)
def test_every_row_is_right_and_no_attack_changes_another(classroom, way):
    folder, roster = classroom
    files = [roster, *folder.rglob("*.*"), *PACKAGE.rglob("*.py")]
    before = stamps(files)
    students = isolated(folder, roster, way)
    rows = [grade.table_row(one, 5) for one in students]
    assert [as_line(row) for row in rows] == EXPECTED.splitlines()
    assert stamps(files) == before
    assert not (PACKAGE / "exercises" / "specs" / "hacked.py").exists()

    alone = isolated(folder, roster, way, only=HONEST)
    among = [one for one in students if one.id in HONEST]
    assert [grade.table_row(one, 5) for one in alone] == rows[: len(HONEST)]
    assert list(map(grade.feedback_text, alone)) == list(map(grade.feedback_text, among))


@linux
def test_where_nothing_isolates_grading_is_refused_and_the_attacks_work(classroom):
    """So the test above can fail."""
    folder, roster = classroom
    thieves = ("spec", "library", "source", "copies")
    with pytest.raises(ValueError, match="neither user namespaces nor Landlock"):
        grade_classroom(folder, roster, RunLimits(ways=()), thieves)
    students, remarks = grade_classroom(folder, roster, RunLimits(ways=(), trusted=True), thieves)
    assert {one.id: one.points for one in students} == dict.fromkeys(thieves, 4)
    assert remarks == ["This system does not limit the files that a submission reads and writes."]


# ---- what a submission sees --------------------------------------------------------------------


@linux
def test_every_solution_passes_with_what_a_submission_sees(tmp_path):
    for lesson in dict.fromkeys(one.lesson for one in all_exercises()):
        (tmp_path / f"{lesson_file(lesson)}.ipynb").write_text(lesson_notebook(lesson, "ada", True))
    ada = grade.Student({"id": "ada"})
    ada.files = {str(path): grade.read_cells(path) for path in grade.list_files(tmp_path)}
    grade.judge_all([ada], all_exercises(), 3, RunLimits(60))
    assert [one for one in ada.verdicts if not one.has_passed] == []


def test_other_systems_start_a_process_for_each_answer(tmp_path, monkeypatch):
    exercise = find_exercise("attend")
    hidden = draw_inputs(exercise, 0)
    write_tree(exercise, tmp_path / "attend")
    (tmp_path / "0").mkdir()
    stages = [["function", arguments] for arguments in hidden]
    (tmp_path / "0" / "job").write_bytes(pack_data([[HEADER, ATTEND], "attend", stages]))
    monkeypatch.setattr(sandbox_child, "LINUX", False)
    monkeypatch.chdir(tmp_path)
    for name in ONE_THREAD:  # a submission may start no threads
        monkeypatch.setenv(name, "1")
    plan = {"jobs": [[0, "attend", len(stages)]], "at_once": 2, "seconds": 60}
    assert sandbox_child.run_jobs(plan, "none") == []
    got = [read_result(tmp_path / "0" / str(i), ENDED) for i in range(len(stages))]
    assert grade.judge_reply(exercise, hidden, got, "").has_passed


@pytest.mark.parametrize("exercise", all_exercises(), ids=lambda one: one.name)
def test_the_tree_of_a_submission_holds_no_answer(exercise, tmp_path):
    write_tree(exercise, tmp_path)
    sources = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert not [path for path in sources if "specs" in path.parts or path.suffix != ".py"]
    assert "EXERCISE" not in "".join(sources.values())
    for target in exercise.replaces:
        module, name = target.removeprefix("minisd.").split(".", 1)
        source = sources.get(tmp_path / "minisd" / f"{module}.py", "")
        assert not re.search(rf"(def|class) {name.split('.')[-1]}\b", source), target


# ---- data, tables and feedback -----------------------------------------------------------------


def test_plain_data_comes_back_as_it_was():
    made = Made("generator", {"seed": 3})
    data = [None, True, 2, 0.1, float("inf"), "é", b"\xff", (1, [2]), {("a", "b"): {}}, made]
    assert unpack_data(pack_data(data)) == data
    assert isinstance(unpack_data(pack_data(made)), Made)
    tensors = [torch.arange(6).reshape(2, 3).t(), torch.tensor(1.5, dtype=torch.float64)]
    for one, back in zip(tensors, unpack_data(pack_data(tensors)), strict=True):
        assert torch.equal(one, back) and one.dtype == back.dtype
    with pytest.raises(TypeError, match="got object"):
        pack_data([object()])


@pytest.mark.parametrize(
    "text", ["name\nada\n", "id\nada\nADA\n", "id\n../ada\n", "id,name\n,x\n", ""]
)
def test_a_class_list_without_clear_ids_is_refused(tmp_path, text):
    roster = tmp_path / "class.csv"
    roster.write_text(text)
    with pytest.raises(ValueError, match="an id of their own"):
        grade.read_roster(roster)


def test_a_longer_id_comes_first_and_a_letter_ends_no_id(tmp_path):
    for name in ("ann.py", "ann_smith-late.py", "anna.py", "ann_smith/07/x.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    students = [grade.Student({"id": one}) for one in ("ann", "ann_smith")]
    assert grade.hand_out_files(tmp_path, students) == [str(tmp_path / "anna.py")]
    names = [sorted(text for cells in one.files.values() for text in cells) for one in students]
    assert names == [["ann.py"], ["ann_smith-late.py", "ann_smith/07/x.py"]]


@linux
def test_the_command_writes_the_table_and_feedback_without_hidden_numbers(classroom, capsys):
    folder, roster = classroom
    roster.write_text("name;id\nA;good\nB;half\nC;leaks\nD;absent\n")
    table, pages = folder.parent / "grades.csv", folder.parent / "feedback"
    words = ["grade", str(folder), "--roster", str(roster), "-o", str(table), "--seconds", "20"]
    assert main([*words, "--feedback", str(pages), "--exercises", "attend", "attention"]) == 0
    assert "belongs to nobody in the class" in capsys.readouterr().err
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [(row["name"], row["total"]) for row in rows] == [*zip("ABCD", "8400", strict=True)]
    assert rows[1]["attend: a mask"] == "0"
    assert {row["minisd"] for row in rows} == {minisd.__version__}
    assert len({row["seed"] for row in rows}) == 1
    texts = {path.stem: path.read_text() for path in pages.iterdir()}
    assert "is right: 4 of 4 points" in texts["good"]
    assert "The mask is not added to the scores." in texts["half"]
    assert "Nothing was handed in." in texts["absent"]
    assert "It stopped with ValueError" in texts["leaks"]
    for text in texts.values():
        assert "expected" not in text
        assert not re.search(r"\d\.\d", text)


# ---- Gradescope --------------------------------------------------------------------------------


@linux
def test_the_autograder_writes_results_for_gradescope(tmp_path, monkeypatch):
    archive = tmp_path / "autograder.zip"
    words = ["grade", "--gradescope", "-o", str(archive), "--exercises", "attend", "attention"]
    assert main(words) == 0
    root = tmp_path / "autograder"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(root / "source")
        assert packed.getinfo("run_autograder").external_attr >> 16 & 0o111
        assert not [name for name in packed.namelist() if "/weights/" in name or "pycache" in name]
    (root / "results").mkdir()
    run = root / "run_autograder"
    run.write_bytes((root / "source" / "run_autograder").read_bytes())
    (root / "submission_metadata.json").write_text('{"users": [{"email": "ada@example.org"}]}')
    write_notebook(root / "submission" / "07.ipynb", [ATTEND, ATTENTION.replace("(h d)", "(d h)")])
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(run)], check=True, env=environment, cwd="/")
    results = json.loads((root / "results" / "results.json").read_text())
    assert results["score"] == 5
    assert [(one["score"], one["max_score"]) for one in results["tests"]] == [
        *((1, 1), (2, 2), (1, 1)),
        *((1, 1), (0, 3)),
    ]
    assert {one["visibility"] for one in results["tests"]} == {"visible"}
    assert "(d heads)" in results["output"]


def test_the_container_gets_every_dependency():
    setup = (PACKAGE / "exercises" / "autograder" / "setup.sh").read_text()
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1]
    for name in re.findall(r'"([\w-]+)', listed):
        assert re.search(rf"\b{name}\b", setup), name
