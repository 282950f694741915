"""minisd generate --prompts: lists of prompts, killed and started again, and shared out."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

import minisd
from minisd.cli import build_parser, draw, prompt_file, prompt_list
from minisd.cli.drawing_options import fill_in_options
from tests.helpers.commands import run

ROOT = Path(__file__).parents[2]
FEW = ["--steps", 2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, where the commands run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def sd(model):
    return minisd.load(model)


@pytest.fixture
def loaded(sd, monkeypatch):
    """All commands of the test use the same model, which is loaded only once."""
    monkeypatch.setattr(draw, "load_model", lambda options: sd)


def write(text, name="list.txt"):
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def draw_list(name, *more):
    return run("generate", "--prompts", name, *FEW, *more)


def names(folder="list"):
    return sorted(path.name for path in Path(folder).iterdir())


def state_of(folder):
    """What changes whenever a picture is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


# ---- pictures --------------------------------------------------------------------------------


def test_each_file_has_the_bytes_of_the_picture_drawn_alone(model, here, loaded, capsys):
    write("a cat\n\n  a (red) dog \n日本\n")
    own = ["--model", model, "--negative", "bad", "--scale", "3"]
    assert draw_list("list.txt", *own, "--seed", 5) == 0
    out, err = capsys.readouterr()
    assert names() == ["000001-a-cat.png", "000002-a-red-dog.png", "000003.png"]
    assert out.split() == [f"list/{name}".replace("/", os.sep) for name in names()]
    assert err == "minisd: 3 drawn, 0 already there.\n"
    for index, prompt in enumerate(("a cat", "a (red) dog", "日本")):
        run("generate", prompt, *FEW, *own, "--seed", 5 + index, "-o", f"{index}.png")
        assert Path(f"{index}.png").read_bytes() == Path("list", names()[index]).read_bytes()
    assert run("generate", "--like", f"list/{names()[1]}", "-o", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("list", names()[1]).read_bytes()


def test_a_csv_file_sets_each_line(model, here, loaded):
    header = "seed,prompt,negative,scale,width,height,steps,sampler\r\n"
    rows = ['7,"a cat, red",bad,2.5,80,72,3,euler\r\n', ",a dog,,,,,,\r\n"]
    write("\ufeff" + header + "".join(rows), "list.csv")
    assert draw_list("list.csv", "-o", "out", "--model", model, "--seed", 3) == 0
    first, second = names("out")
    own = ["--negative", "bad", "--scale", 2.5, "--width", 80, "--height", 72, "--steps", 3]
    own += ["--sampler", "euler", "--seed", 7, "--model", model]
    assert run("generate", "a cat, red", *own, "-o", "1.png") == 0
    assert run("generate", "a dog", *FEW, "--seed", 4, "--model", model, "-o", "2.png") == 0
    assert Path("1.png").read_bytes() == Path("out", first).read_bytes()
    assert Path("2.png").read_bytes() == Path("out", second).read_bytes()


def test_a_list_with_lcm_has_the_bytes_of_the_pictures_drawn_alone(here):
    write("a cat\na dog")
    assert run("generate", "--prompts", "list.txt", "--lcm", "--steps", 1) == 0
    run("generate", "a dog", "--lcm", "--steps", 1, "--seed", 1, "-o", "1.png")
    assert Path("1.png").read_bytes() == Path("list", names()[1]).read_bytes()


def test_the_same_command_draws_only_what_is_missing(model, here, loaded, capsys):
    write("a cat\na dog\na tiger\n")
    assert draw_list("list.txt", "--model", model) == 0
    before = state_of(here / "list")
    Path("list/000002-a-dog.png").unlink()
    capsys.readouterr()
    assert draw_list("list.txt", "--model", model) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(Path("list/000002-a-dog.png"))]
    assert err == "minisd: 1 drawn, 2 already there.\n"
    after = state_of(here / "list")
    assert before.pop("000002-a-dog.png") != after.pop("000002-a-dog.png")
    assert before == after


def test_a_longer_list_keeps_its_pictures(model, here, loaded, capsys):
    write("a cat\n")
    assert draw_list("list.txt", "--model", model) == 0
    write("a cat\na dog\n")
    assert draw_list("list.txt", "--model", model) == 0
    assert capsys.readouterr().err.endswith("1 drawn, 1 already there.\n")


# ---- several processes -----------------------------------------------------------------------


def start(command, out, **variables):
    """Start a process in a group of its own, so that a kill reaches its children, too."""
    one = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment = os.environ | one | {name: str(value) for name, value in variables.items()}
    with open(out, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def kill_when(folder, count, processes):
    """Kill all processes as soon as the folder has so many pictures, and a moment later."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.png"))) < count:
        assert time.monotonic() < deadline and any(one.poll() is None for one in processes)
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no process groups to kill")
def test_a_job_that_is_killed_twice_draws_every_picture_once(model, sd, here, capsys):
    """Two processes, then two of torchrun, then one: 40 pictures, and none is drawn twice."""
    prompts = [f"a cat, number {i}" for i in range(40)]
    folder, log = here / "list", here / "log"
    write("\n".join(prompts))
    folder.mkdir()
    words = ["generate", "--prompts", "list.txt", *FEW, "--model", model]
    ranks = [{"RANK": rank, "WORLD_SIZE": 2} for rank in range(2)]
    job = [start(["minisd", *words], log, **variables) for variables in ranks]
    kill_when(folder, random.randint(2, 12), job)
    first = state_of(folder)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m"]
    kill_when(folder, random.randint(16, 28), [start([*torchrun, "minisd", *words], log)])
    second = state_of(folder)
    assert run(*words) == 0
    drawn = capsys.readouterr().out.split()
    drawn += [line for line in log.read_text(encoding="utf-8").split() if line.endswith(".png")]
    assert len(drawn) == len(set(drawn))
    last = state_of(folder)
    for state in (first, second):
        finished = {name for name in state if name.endswith(".png") and name[0] != "."}
        assert 2 <= len(finished) < 40
        assert {name: state[name] for name in finished}.items() <= last.items()
    assert len(last) == 40 and all(name.endswith(".png") for name in last)
    for seed, (name, prompt) in enumerate(zip(sorted(last), prompts, strict=True)):
        with Image.open(folder / name) as picture:
            alone = sd.txt2img(prompt, seed=seed, steps=2)
            assert picture.tobytes() == alone.tobytes()


def test_ranks_share_the_list_and_take_large_pictures_first(model, here, loaded, monkeypatch):
    rows = [f"a {i},{size}" for i, size in enumerate((64, 80, 64, 80, 64))]
    write("\n".join(["prompt,width", *rows]), "list.csv")
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(prompt_list, "draw_missing", lambda sd, share: shares.append(share))
        with pytest.raises(TypeError):  # None pictures were drawn
            draw_list("list.csv", "--model", model)
    prompts = [[one.settings["prompt"] for one in share] for share in shares]
    assert prompts == [["a 1", "a 0", "a 4"], ["a 3", "a 2"]]


@pytest.mark.parametrize("finishes", [True, False])
def test_a_picture_that_another_process_draws_is_waited_for(
    model, here, loaded, capsys, monkeypatch, finishes
):
    """The other process has the lock. It finishes the picture, or it ends without it."""
    write("a cat\na dog\n")
    assert draw_list("list.txt", "--model", model) == 0
    cat = Path("list/000001-a-cat.png")
    content = cat.read_bytes()
    for path in Path("list").iterdir():
        path.unlink()
    begun, order = threading.Event(), []

    def other():
        with FileLock(prompt_list.lock_path(cat)):
            begun.set()
            while not Path("list/000002-a-dog.png").exists():  # this process goes on with the dog
                time.sleep(0.01)
            if finishes:
                cat.write_bytes(content)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    capsys.readouterr()
    assert draw_list("list.txt", "--model", model) == 0
    thread.join()
    order = [Path(line).name for line in capsys.readouterr().out.split()]
    assert order == ["000002-a-dog.png", "000001-a-cat.png"][: 1 if finishes else 2]
    assert cat.read_bytes() == content
    assert names() == ["000001-a-cat.png", "000002-a-dog.png"]


def test_each_process_uses_its_own_gpu(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    prompt_list.use_local_gpu("cuda")  # without torchrun
    monkeypatch.setenv("LOCAL_RANK", "1")
    for device in ("cuda", "cpu", "cuda:0"):
        prompt_list.use_local_gpu(device)
    assert chosen == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"more processes on this machine than GPUs \(2\)"):
        prompt_list.use_local_gpu("cuda")


@pytest.mark.parametrize(("rank", "world_size"), [("2", "2"), ("x", "2"), ("-1", "2"), ("0", "")])
def test_a_wrong_rank_is_refused(here, capsys, monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    assert draw_list(write("a cat")) == 2
    assert "RANK must be a number below WORLD_SIZE" in capsys.readouterr().err


# ---- what is refused -------------------------------------------------------------------------


@pytest.fixture
def refused(here, capsys, monkeypatch):
    """Run a command that must be refused before a model is loaded. Returns its message."""
    monkeypatch.setattr(draw, "load_model", lambda options: pytest.fail("the model was loaded"))

    def refuse(*arguments):
        before = sorted(here.rglob("*"))
        assert run("generate", *arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("minisd generate: ") and err.count("\n") == 1
        assert sorted(here.rglob("*")) == before
        return err.removeprefix("minisd generate: ").strip()

    return refuse


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["a cat"], "list.txt holds the prompts: leave out 'a cat'."),
        (["--like", "cat.png"], "--like does not fit --prompts: leave it out."),
        (["-n", 2], "--number does not fit --prompts: leave it out."),
        (["-n", 0], "--number does not fit --prompts"),
        (["--every-step"], "--every-step does not fit --prompts: leave it out."),
        (["--force"], "--force does not fit --prompts: leave it out."),
        (["--mine", "."], "--mine does not fit --prompts: leave it out."),
        (["--nothing"], "there is no option --nothing"),
        (["-o", "cat.png"], "name a folder with -o, not cat.png."),
        (["-o", "list.txt"], "name a folder with -o, not list.txt."),
        (["-o", "nowhere/out"], "no file can be written into the folder nowhere"),
        (["--lora", "gone.safetensors"], "There is no file or folder gone.safetensors"),
        (["--steps", 0], "list.txt, line 1: steps must be 1 to 1000, got 0."),
    ],
)
def test_an_option_that_does_not_fit_is_refused(refused, more, message):
    assert message in refused("--prompts", write("a cat"), *more)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", " \n\n", "l.txt holds no prompt: write at least one."),
        ("l.csv", "", "l.csv holds no prompt: write at least one."),
        ("l.csv", "prompt\n", "l.csv holds no prompt: write at least one."),
        ("l.json", "[]", "l.json is neither .txt (one prompt per line) nor .csv"),
        ("l.txt", b"a\nb\xff", "l.txt is not UTF-8 text (see line 2): save it as UTF-8."),
        ("l.txt", "a\nb\0", "l.txt is not UTF-8 text (see line 2): save it as UTF-8."),
        ("l.txt", "Prompt, seed\na,1", "l.txt begins like a CSV file: name it .csv"),
        ("l.csv", "prompt;seed\na;1", "l.csv has the wrong column 'prompt;seed': the columns"),
        ("l.csv", "prompt,sed\na,1", "l.csv has the wrong column 'sed': the columns are pro"),
        ("l.csv", "a cat\na dog", "l.csv has the wrong column 'a cat'"),
        ("l.csv", "seed\n1", "l.csv has no column prompt: the columns are prompt, neg"),
        ("l.csv", "prompt,prompt\na,b", "l.csv has the wrong column 'prompt': the columns are"),
        ("l.csv", "prompt,seed\na,1\nb, c,2", "has 3 cells in line 3, but 2 columns: put a"),
        ("l.csv", "prompt,seed\na", "l.csv has 1 cells in line 2, but 2 columns"),
        ("l.csv", 'prompt\n"a\nb"\n"c', "l.csv is not valid CSV in line 4"),
        ("l.csv", 'prompt\n"a" b', "l.csv is not valid CSV in line 2"),
        ("l.csv", "prompt,seed\n,1", "l.csv, line 2: there is no prompt: write one, or delete"),
        ("l.csv", 'prompt,seed\n"a\nb",1\nc,x', "line 4: the seed 'x' is not a whole number."),
        ("l.csv", "prompt,seed\na,7.0", "l.csv, line 2: the seed '7.0' is not a whole number."),
        ("l.csv", f"prompt,seed\na,{2**64}", "l.csv, line 2: seeds go from -2**63 to 2**64 - 1"),
        ("l.csv", "prompt,scale\na,much", "l.csv, line 2: the scale 'much' is not a number."),
        ("l.csv", "prompt,scale\na,nan", "line 2: --scale must be a finite number, got nan."),
        ("l.csv", "prompt,steps\na,1001", "line 2: steps must be 1 to 1000, got 1001."),
        ("l.csv", "prompt,sampler\na,dpm", "line 2: there is no sampler 'dpm': choose one of"),
        ("l.csv", "prompt,width\na,64\nb,4", "line 3: --width 4 is too small: give a larger"),
    ],
)
def test_a_bad_list_is_refused_with_its_line(refused, name, content, message):
    assert message in refused("--prompts", write(content, name))


def test_a_list_that_is_no_file_or_too_long_is_refused(refused, monkeypatch):
    assert "gone.txt cannot be read or written" in refused("--prompts", "gone.txt")
    Path("folder.txt").mkdir()
    assert "folder.txt is a folder, a pipe or a device" in refused("--prompts", "folder.txt")
    monkeypatch.setattr(prompt_file, "MOST_LINES", 2)
    message = refused("--prompts", write("a\nb\nc"))
    assert message == "list.txt has 3 prompts: split it into lists of 2."
    monkeypatch.setattr(prompt_file, "LARGEST_LIST", 4)
    assert "list.txt has more than 4 bytes: split it" in refused("--prompts", "list.txt")


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("prompt,width\na,64\nb,70", [], "line 3: a picture of 70 x 64 pixels does not fit"),
        ("prompt\na\n(b:x)", ["--extended"], "line 3: the weight at '(b:x)' cannot be read"),
        (f"prompt\n{'a' * 70_000}", [], "line 2: the text has 70,000 characters"),
        ("prompt,width\na,64\nb,72", ["--control", "HINT"], "needs pictures of one size"),
        ("prompt,sampler\na,lcm\nb,euler", ["--lcm"], "line 3: --lcm and --sampler euler exclude"),
        ("prompt,negative\na,\nb,bad", ["--lcm"], "line 3: --lcm draws without guidance"),
    ],
)
def test_what_only_the_model_knows_is_refused_before_drawing(
    model, here, loaded, capsys, content, more, message
):
    Image.new("RGB", (64, 64)).save("hint.png")
    model = "mini" if "--lcm" in more else model
    more = [one.replace("HINT", "mini-edges:hint.png") for one in more]
    assert draw_list(write(content, "list.csv"), "--model", model, *more) == 2
    assert message in capsys.readouterr().err
    assert not Path("list").exists()


def test_a_picture_of_another_list_model_or_setting_is_refused(model, here, loaded, capsys):
    write("a cat\na dog\n")
    assert draw_list("list.txt", "--model", model) == 0
    before = state_of(here / "list")
    capsys.readouterr()

    def message(*more):
        assert draw_list("list.txt", "--model", model, *more) == 2
        assert state_of(here / "list") == before
        return capsys.readouterr().err

    cat, dog = Path("list/000001-a-cat.png"), Path("list/000002-a-dog.png")
    assert f"{cat} was drawn with other settings (seed): choose another" in message("--seed", 1)
    assert "was drawn with other settings (steps): choose another folder with -o" in message(
        "--steps", 3
    )
    assert "(sha256 of a file, model)" in message("--model", "mini")
    write("a cat\na tiger\n")
    assert f"{dog} is no picture of list.txt: choose another folder with -o" in message()
    write("a cat\nA dog!\n")
    assert "other settings (prompt): " in message()
    write("a cat\n")
    assert f"{dog} is no picture of list.txt" in message()


def test_the_name_of_a_file_is_not_enough(model, here, loaded, capsys):
    """A picture without settings, a damaged one and a changed model are refused."""
    model = shutil.copy(model, "changed.safetensors")
    write("a cat\n")
    Path("list").mkdir()
    path = Path("list/000001-a-cat.png")
    Image.new("RGB", (64, 64)).save(path)
    assert draw_list("list.txt", "--model", model) == 2
    assert "was drawn with other settings" in capsys.readouterr().err
    path.unlink()
    assert draw_list("list.txt", "--model", model) == 0
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    assert draw_list("list.txt", "--model", model) == 2
    assert f"{path} cannot be read as a picture" in capsys.readouterr().err
    path.write_bytes(whole)
    Path("list/sheet.png").touch()  # a picture of the user's own, without a number
    assert draw_list("list.txt", "--model", model) == 0
    with open(model, "rb+") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\1")
    assert draw_list("list.txt", "--model", model) == 2
    assert "(sha256 of a file)" in capsys.readouterr().err


# ---- reading ---------------------------------------------------------------------------------


def read(content, name, *more):
    words = ["generate", "--prompts", write(content, name), *more]
    options, _ = build_parser().parse_known_args(words)
    fill_in_options(options, {})
    lines = prompt_file.read_list(options)
    return [(where.rpartition(" ")[2], own) for where, own in lines]


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("l.txt", "a\r\n\r\n# b\r\n", {"1": ("a", 0), "3": ("# b", 1)}),
        ("l.txt", '\ufeffa, "b" \u2028 c\rd', {"1": ('a, "b" \u2028 c', 0), "2": ("d", 1)}),
        ("l.csv", "prompt\na\n\nb\n", {"2": ("a", 0), "4": ("b", 1)}),
        ("l.csv", "\n Prompt , SEED\na,9\nb,\n,\n", {"3": ("a", 9), "4": ("b", 1)}),
        ("l.csv", 'seed,prompt\n,"a ""b"", c"\n', {"2": ('a "b", c', 0)}),
        ("l.csv", '"prompt"\r\n"a\r\nb"\r\nc\r\n', {"2": ("a\r\nb", 0), "4": ("c", 1)}),
        ("L.CSV", "prompt,seed\na,-9223372036854775808", {"2": ("a", -(2**63))}),
    ],
)
def test_the_forms_of_a_list(here, name, content, lines):
    found = {number: (own["prompt"], own["seed"]) for number, own in read(content, name)}
    assert found == lines


def test_an_empty_cell_leaves_the_option_of_the_command(here):
    content = "prompt,negative,scale,steps\na,bad,2,\nb,,,4\n"
    own = [own for _, own in read(content, "l.csv", "--seed", "6")]
    assert own == [
        {"prompt": "a", "seed": 6, "negative": "bad", "scale": 2.0},
        {"prompt": "b", "seed": 7, "steps": 4},
    ]


def test_the_columns_are_options_of_generate():
    options, _ = build_parser().parse_known_args(["generate"])
    assert prompt_file.COLUMNS.keys() <= vars(options).keys()
    assert {*prompt_list.EXCLUDED} <= vars(options).keys()
