"""Files are written whole or not at all: full disks, kills, two writers at once, two trainings."""

import ast
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from PIL import Image

from minisd import cli
from minisd.checkpoints.write import convert, write_tensors
from minisd.cli import lessons
from minisd.config import MINI
from minisd.files import whole_files
from minisd.files.whole_files import (
    LOCK,
    UNFINISHED,
    save_picture,
    sweep,
    this_kernel,
    write_text,
    written_whole,
)
from minisd.mini import job, stages
from minisd.process.signals import Interrupted, raise_on_signals
from minisd.tokenizer import Tokenizer
from minisd.training import adapters, loop
from minisd.training import run_folder as folder
from minisd.training.run_folder import lock_folder
from tests.helpers.checkpoint_files import V1, original, single_file
from tests.helpers.training_runs import REPOSITORY

PACKAGE = Path(whole_files.__file__).parent
LARGE = torch.randn(300, 300)  # 360 kB


# ---- everything goes through it --------------------------------------------------------------

WRITES = {"save_file", "write_text", "write_bytes", "savefig", "copyfile", "copy2", "copytree"}
WRITES |= {"imsave", "tofile", "savez"}
THEIR_OWN = {
    "whole_files.py": "the place itself",
    "checkpoints/write.py": "write_tensors gets the unfinished file",
    "checkpoints/hub.py": "marks which download a part is of",
    "checkpoints/pickles.py": "unpacks into an unnamed temporary file",
    "checkpoints/official.py": "keeps what arrived of a broken download",
    "cli/file_hashes.py": "a cache",
    "teaching/canvas.py": "draws into memory",
    "training/folder.py": "state.pt moves by itself, log.jsonl grows",
}


def unguarded(node: ast.AST, inside: bool = False) -> list[int]:
    """The lines that write a file outside of `with written_whole(...)`."""
    if isinstance(node, ast.With):
        inside = inside or any("written_whole(" in ast.unparse(one) for one in node.items)
    found = []
    if isinstance(node, ast.Call) and not inside:
        whose, _, name = ast.unparse(node.func).rpartition(".")
        writes = (name in WRITES and whose not in ("", "copy")) or name == "save_file"
        to_file = ast.unparse(node.func) == "torch.save" and ast.unparse(node.args[1]) != "whole"
        opens = name == "open" and any(
            isinstance(mode, ast.Constant) and re.fullmatch(r"[wax][b+t]*", str(mode.value))
            for mode in node.args[:2]
        )
        found = [node.lineno] if writes or to_file or opens else []
    for child in ast.iter_child_nodes(node):
        found += unguarded(child, inside)
    return found


def test_everything_that_is_written_is_written_whole():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in THEIR_OWN:
            assert not unguarded(ast.parse(path.read_text(encoding="utf-8"))), name


@pytest.mark.parametrize(
    "line", ["path.write_text('a')", "torch.save(a, path)", "save_file(a, b)", "open(p, 'w')"]
)
def test_a_plain_write_would_be_seen(line):
    assert unguarded(ast.parse(line)) == [1]
    assert unguarded(ast.parse(f"with written_whole(p) as u:\n    {line}")) == []


# ---- full disks and other refusals -----------------------------------------------------------


def write_adapter(path):
    pair = torch.nn.Linear(300, 300).weight, torch.zeros(300)
    layers = SimpleNamespace(widths=[4], layers=lambda width, which: [pair])
    layers.numbered_weights = adapters.TrainableHypernetwork.numbered_weights
    adapters.TrainableHypernetwork.save(layers, path, {})


def write_folder(path):
    with written_whole(path, folder=True) as unfinished:
        write_text(unfinished / "small.json", "{}")
        write_tensors(unfinished / "large.safetensors", {"a": LARGE}, {}, None)


def write_weights(path):
    with written_whole(path) as unfinished:
        write_tensors(unfinished, {"a": LARGE}, {"b": "c"}, None)


NOISE = Image.frombytes("RGB", (300, 300), LARGE.numpy().tobytes()[: 3 * 300 * 300])
WRITERS = {
    "weights.safetensors": write_weights,
    "hypernetwork.pt": write_adapter,
    "picture.png": lambda path: save_picture(NOISE, path),
    "page.md": lambda path: write_text(path, "word\n" * 99_999),
    "tokenizer.json": lambda path: Tokenizer.clip(0).save(path),
    "folder": write_folder,
}


@contextmanager
def file_size_limit(size):
    """A limit on the size of files, which stands for a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, name):
    path = tmp_path / name
    if name != "folder":
        path.write_bytes(b"old")
    before = list(tmp_path.iterdir())
    with file_size_limit(100_000), pytest.raises(ValueError) as caught:
        WRITERS[name](path)
    said = f"{path} cannot be written (File too large): make room there, or choose another disk."
    assert str(caught.value) == said
    assert list(tmp_path.iterdir()) == before
    assert name == "folder" or path.read_bytes() == b"old"
    WRITERS[name](path)
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_what_the_disk_says_only_at_the_end_is_told(tmp_path, monkeypatch, number):
    """Network disks know of a quota only when the file is closed."""

    def refuse(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(whole_files.os, "fsync", refuse)
    with pytest.raises(ValueError) as caught:
        write_text(tmp_path / "a.txt", "a")
    assert f"a.txt cannot be written ({os.strerror(number)}): " in str(caught.value)
    assert ("make room" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("n" * 300, "give a shorter name"),
        ("a/" * 3000, "give a shorter name"),
        ("file.txt/a", "choose a folder that exists"),
        ("nowhere/a", "choose a folder that exists"),
        ("dangling", "choose a folder that exists"),
        (".", "is a folder: give the name of a file in it"),
        ("device", "is not a regular file: give another name"),
    ],
)
def test_a_name_that_cannot_be_written_is_one_sentence(tmp_path, name, said):
    (tmp_path / "file.txt").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "a")
    (tmp_path / "device").symlink_to(os.devnull)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=said):
        write_text(tmp_path / name, "a")
    assert sorted(tmp_path.iterdir()) == before


def test_as_long_a_name_as_the_disk_takes_is_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")
    write_text(path, "a")
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_that_fails_meanwhile_is_not_taken_for_the_writer(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "a"):
        (tmp_path / "source").read_bytes()
    assert not list(tmp_path.iterdir())


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.txt").symlink_to("disk/b.txt")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "disk" / "b.txt").read_text(encoding="utf-8") == "new"


def test_a_new_text_has_the_same_bytes_on_every_system(tmp_path):
    write_text(tmp_path / "a.txt", "é\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\nb\n"


# ---- what killed writers leave ---------------------------------------------------------------


def fork(action, *given):
    """A process that does the action."""
    if process := os.fork():
        return process
    try:
        os._exit(action(*given) or 0)
    finally:
        os._exit(70)


def end_of(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def die_while_writing(path):
    with written_whole(path) as unfinished:
        unfinished.write_bytes(b"half")
        (unfinished.parent / ".tmp1234").touch()  # as safetensors does
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_left_goes_with_the_next_file(tmp_path):
    for _ in range(3):
        assert end_of(fork(die_while_writing, tmp_path / "a")) == -signal.SIGKILL
        (left,) = tmp_path.iterdir()  # only the last one's
        assert left.name.startswith(UNFINISHED)
    write_text(tmp_path / "b", "whole")
    assert [one.name for one in tmp_path.iterdir()] == ["b"]


def test_a_writer_at_work_is_let_be(tmp_path):
    """Also one of the same number, as processes of two containers are: threads here."""
    with written_whole(tmp_path / "a") as unfinished:
        unfinished.write_bytes(b"first")
        other = threading.Thread(target=write_text, args=(tmp_path / "a", "second"))
        other.start()
        other.join()
        assert end_of(fork(sweep, tmp_path)) == 0
        assert unfinished.read_bytes() == b"first"
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def unfinished_folder(where, kernel, age=0.0):
    own = where / f"{UNFINISHED}{kernel}-abcdefgh"
    (own / "content").mkdir(parents=True)
    (own / LOCK).touch()
    os.utime(own / LOCK, (time.time() - age,) * 2)
    return own


def test_what_is_not_ours_stays(tmp_path):
    ours = f"{UNFINISHED}{this_kernel()}-abcdefgh"
    strangers = [
        tmp_path / f"{ours}.txt",
        tmp_path / f"{UNFINISHED}notes",
        tmp_path / ".a.unfinished-1",
    ]
    for path in strangers:
        path.touch()
    (tmp_path / ours).mkdir()
    (tmp_path / ours / "thesis.txt").touch()  # our name, but no lock
    elsewhere = unfinished_folder(tmp_path / "elsewhere", this_kernel())
    (tmp_path / f"{ours[:-1]}x").symlink_to(elsewhere)
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_another_machines_writer_is_let_be_for_a_day(tmp_path):
    """Its lock may not be seen here."""
    own = unfinished_folder(tmp_path, "00000000", age=3600)
    sweep(tmp_path)
    assert own.exists()
    unfinished = unfinished_folder(tmp_path / "old", "00000000", age=25 * 3600)
    sweep(tmp_path / "old")
    assert not unfinished.exists()


def test_a_kill_before_the_lock_or_amid_the_sweep_leaves_what_can_be_swept(tmp_path, monkeypatch):
    (tmp_path / f"{UNFINISHED}{this_kernel()}-abcdefgh").mkdir()
    own = unfinished_folder(tmp_path / "other", this_kernel())
    removed = []

    def die_later(path, **settings):
        removed.append(path.name)
        if len(removed) == 2:
            raise KeyboardInterrupt
        shutil.rmtree(path, **settings)

    monkeypatch.setattr(whole_files, "shutil", SimpleNamespace(rmtree=die_later))
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "other")
    assert (own / LOCK).exists()
    monkeypatch.undo()
    sweep(tmp_path)
    sweep(tmp_path / "other")
    assert [one.name for one in tmp_path.rglob("*")] == ["other"]


def test_where_there_are_no_locks_files_are_written_all_the_same(tmp_path, monkeypatch):
    def refuse(lock, *given, **more):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    write_text(tmp_path / "a", "whole")
    with lock_folder(tmp_path):
        write_text(tmp_path / "b", "whole")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "b"]


# ---- convert ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A .ckpt in which two names share one tensor."""
    tensors = {key: tensor.contiguous() for key, tensor in single_file(original(V1)).items()}
    first, second = sorted(key for key in tensors if key.endswith("layer_norm1.weight"))[:2]
    tensors[second] = tensors[first]
    path = tmp_path_factory.mktemp("source") / "a.ckpt"
    torch.save({"state_dict": tensors}, path)
    return path


def bytes_in(path):
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    return {
        one.name if one == path else str(one.relative_to(path)): one.read_bytes() for one in files
    }


@pytest.mark.parametrize("layout", ["original", "ours", "diffusers"])
def test_convert_gives_the_same_bytes_each_time(source, tmp_path, layout):
    name = "a" if layout == "diffusers" else "a.safetensors"
    written = []
    for turn in ("1", "2"):
        (tmp_path / turn).mkdir()
        convert(source, tmp_path / turn / name, layout, prediction="eps")
        written.append(bytes_in(tmp_path / turn / name))
    assert written[0] == written[1]
    assert len(written[0]) >= (8 if layout == "diffusers" else 1)


# ---- signals ---------------------------------------------------------------------------------


def stopped_in(action, started, number):
    """How a process ends that gets the signal as soon as `started` is there."""
    process = fork(action)
    for _ in range(3000):
        if started():
            break
        time.sleep(0.01)
    os.kill(process, number)
    return end_of(process)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal")
@pytest.mark.parametrize("command", ["convert", "lessons", "download"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_a_command_and_leaves_nothing(tmp_path, monkeypatch, command, name):
    def wait(*given, **more):
        (tmp_path / "started").touch()
        time.sleep(30)

    def act():
        sys.stderr = sys.stdout = open(tmp_path / "said", "a", encoding="utf-8")  # noqa: SIM115
        code = cli.main(words[command])
        sys.stderr.close()
        return code

    work = tmp_path / "work"
    work.mkdir()
    words = {
        "convert": ["convert", "mini", str(work / "a.safetensors")],
        "lessons": ["lessons", str(work), "--no-open"],
        "download": ["download", "sd14"],
    }
    monkeypatch.setattr("minisd.checkpoints.write.open_checkpoint", wait)
    monkeypatch.setattr(lessons, "without_outputs", wait)
    monkeypatch.setattr("minisd.checkpoints.registry.download", wait)
    number = getattr(signal, name)
    before = signal.signal(
        number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    )
    try:
        status = stopped_in(act, (tmp_path / "started").exists, number)
    finally:
        signal.signal(number, before)
    assert status == 128 + number
    assert "Traceback" not in (tmp_path / "said").read_text(encoding="utf-8")
    assert not list(work.iterdir())


def test_signals_are_handled_as_before_after_a_command():
    numbers = (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        with pytest.raises(Interrupted) as caught, raise_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        assert caught.value.number == signal.SIGTERM
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL] * 2
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does with SIGHUP
        with raise_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_while_pictures_are_encoded_says_where_the_run_stands(
    tmp_path, monkeypatch, capsys, begun
):
    def stop(*given):
        raise KeyboardInterrupt

    if begun:
        learn(tmp_path / "lora")
    monkeypatch.setattr(stages, "train_recipe", stop)
    assert cli.main(["train", "lora", "--folder", str(tmp_path)]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    kept = f"Stopped. The last checkpoint is in {tmp_path / 'lora'}. Give the same command again"
    assert (kept if begun else "Stopped before the first checkpoint. Give the same") in said


def test_a_closed_terminal_costs_no_exit_status(tmp_path, monkeypatch):
    def stop(*given):
        raise Interrupted("a sentence that nobody can read", signal.SIGTERM)

    def gone(text):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(stages, "train_recipe", stop)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=gone, flush=lambda: None))
    assert cli.main(["train", "lora", "--folder", str(tmp_path)]) == 143


# ---- one training a folder -------------------------------------------------------------------


def hold(where, held):
    with lock_folder(where):
        held.touch()
        time.sleep(30)


@pytest.fixture
def other_training(tmp_path):
    """A process that trains in tmp_path / "run" / "vae"."""
    process = fork(hold, tmp_path / "run" / "vae", tmp_path / "held")
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    yield process
    os.kill(process, signal.SIGKILL)
    end_of(process)


def learn(where):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    loss = lambda draw: {"square": model(torch.ones(1, 2)).square().mean()}  # noqa: E731
    return loop.train(model, loss, loop.Hyperparameters(steps=2, log_every=1), where, 1, 0, {})


def test_a_second_training_in_one_folder_is_refused(other_training, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run" / "vae"
    monkeypatch.setattr(stages, "train_recipe", None)  # before pictures are encoded
    assert cli.main(["train", "vae", "--folder", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"Another training (process {other_training} on " in said
    assert f"uses {run}. Wait until it ends, or train in another folder." in said
    with pytest.raises(ValueError, match="Another training"):
        learn(run)
    assert not (run / "state.pt").exists()


def test_a_killed_training_holds_no_folder(tmp_path):
    where, held = tmp_path / "run", tmp_path / "held"
    process = fork(hold, where, held)
    while not held.exists():
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    end_of(process)
    assert list(where.iterdir())
    learn(where)
    assert sorted(one.name for one in where.iterdir()) == ["log.jsonl", "loss.png", "state.pt"]


def test_a_folder_is_locked_once_by_one_process(tmp_path):
    """minisd train locks it before pictures are encoded, the training locks it again."""
    with lock_folder(tmp_path / "run"):
        learn(tmp_path / "run")
        assert (tmp_path / "run" / "in_use.txt").exists()
    assert not (tmp_path / "run" / "in_use.txt").exists()
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path / "fresh"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "fresh").exists()


def test_only_the_first_process_locks_the_folder_and_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "rank_and_world_size", lambda: (1, 2))
    monkeypatch.setattr(folder, "broadcast", lambda number: 1.0)
    with lock_folder(tmp_path):
        assert not list(tmp_path.iterdir())
    written = []
    monkeypatch.setattr(job, "rank_and_world_size", lambda: (1, 2))
    monkeypatch.setattr("minisd.mini.job.save", lambda *given: written.append(given))
    monkeypatch.setattr(job, "trained_vae", lambda *given: (None, MINI))
    for name in ("mini_tokenizer", "unseen_pictures", "training_notes"):
        monkeypatch.setattr(job, name, lambda *given: {})
    network = SimpleNamespace(text_encoder=None, unet=None)
    monkeypatch.setattr(job, "ema_network", lambda *given: network)
    monkeypatch.setattr(job, "psnr", lambda *given: 1.0)
    job.export(job.Job(tmp_path))
    assert not written
    monkeypatch.setattr(job, "rank_and_world_size", lambda: (0, 2))
    job.export(job.Job(tmp_path))
    assert len(written) == 1


# ---- logs and lessons ------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [b'{"step": 1, "lo', b"\x00\x00\xff", b"17", b"{}", b'["step"]'])
def test_a_line_that_was_cut_off_costs_no_other(tmp_path, cut):
    folder.log(tmp_path, {"step": 0})
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(cut)
    folder.log(tmp_path, {"step": 1})
    assert folder.log_records(tmp_path) == [{"step": 0}, {"step": 1}]


def test_half_a_copied_lesson_is_copied_again(tmp_path):
    source, own = tmp_path / "source", tmp_path / "own"
    source.mkdir()
    for name in ("01.ipynb", "02.ipynb"):
        cells = [{"cell_type": "markdown", "source": name}] * 999
        (source / name).write_text(json.dumps({"cells": cells}), encoding="utf-8")

    write_bytes = Path.write_bytes

    def copy_and_die():
        def die_halfway(path, content):
            if b"01.ipynb" in content:
                return write_bytes(path, content)
            write_bytes(path, content[:500])
            os.kill(os.getpid(), signal.SIGKILL)

        Path.write_bytes = die_halfway
        lessons.copy_notebooks(source, own, with_outputs=True)

    assert end_of(fork(copy_and_die)) == -signal.SIGKILL
    assert len(list(own.glob("*.ipynb"))) == 1
    assert lessons.copy_notebooks(source, own, with_outputs=True) == [str(own / "02.ipynb")]
    assert bytes_in(own) == bytes_in(source)
    assert end_of(fork(die_while_writing, own / "03.ipynb")) == -signal.SIGKILL
    assert "already" in lessons.copy_notebooks(source, own)[0]
    assert bytes_in(own) == bytes_in(source)


# ---- kills at random moments -----------------------------------------------------------------


def test_kills_at_random_moments_cost_nothing(tmp_path):
    """A few of tests/crash/kills.py, which has the long run."""
    command = [sys.executable, "-m", "tests.crash.kills", "--kills", "6", "--seed", "5"]
    command += ["--only", "convert to a folder", "lessons"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^all +6 ", done.stdout, flags=re.MULTILINE)
