"""Kill the program at random moments, give the same command again, and look at what lies there.

python -m tests.crash.kills --kills 120 --seed 7

Each kill strikes a forked process that trains, converts, draws, downloads or copies the lessons:
after a random time, or at a random line of the code that writes files, which is where a kill could
hurt. Most are SIGKILL. Then three things are counted:

half written  a file under its final name is not, byte for byte, what an unbroken run writes
not resumed   the same command does not come to the same result as an unbroken run
left behind   the same command leaves a file that an unbroken run does not leave
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import einops  # noqa: F401 imported here, so that each forked process has it
import pytest
import torch
import torch._dynamo
from huggingface_hub import file_download

import minisd
from minisd import cli
from minisd.checkpoints import registry as official
from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.write import save
from minisd.cli import prompt_list
from minisd.files import whole_files
from minisd.training import run_folder
from tests.helpers.hub_server import CONTENT, Hub
from tests.helpers.training_runs import shrink, train_command

WRITERS = {whole_files.__file__, run_folder.__file__, official.__file__, cli.lessons.__file__}
WRITERS |= {prompt_list.__file__}
NOT_YET = r"\.minisd-unfinished-|\.part$|\.mark$|state\.pt\.new$|in_use\.|\.lock$"  # no final names
SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
COLUMNS = ("kills", "SIGTERM or SIGINT", "half written", "not resumed", "left behind")
SECONDS = 120  # after which a process that hangs is ended


# ---- what is done, each in an empty folder -----------------------------------------------------


def commands(where: Path) -> dict[str, Callable[[Path], int]]:
    """The actions by name. where: a folder for what they start from"""
    shrink(pytest.MonkeyPatch(), minisd.load("mini").tokenizer)
    sd, model = minisd.load("mini"), where / "model.safetensors"
    minisd.load = lambda name, **settings: sd
    save(model, Parts(sd.config, sd.tokenizer, sd.text_encoder, sd.unet, sd.vae))
    address = serve()

    def convert(name: str, folder: Path) -> int:
        shutil.rmtree(folder / name, ignore_errors=True)  # convert writes over nothing
        (folder / name).unlink(missing_ok=True)
        return cli.main(["convert", str(model), str(folder / name)])

    def generate(folder: Path) -> int:
        words = ["generate", "a cat", "--model", "mini", "--steps", "2", "--force"]
        return cli.main([*words, "-n", "3", "-o", str(folder / "cat.png")])

    def generate_list(folder: Path) -> int:
        (folder / "list.txt").write_text("a cat\na dog\na tiger\n", encoding="utf-8")
        words = ["generate", "--prompts", str(folder / "list.txt"), "--steps", "2"]
        return cli.main([*words, "-o", str(folder / "list")])

    def download(folder: Path) -> int:
        os.environ["MINISD_WEIGHTS"] = str(folder)
        official.download("some", address)
        return 0

    return {
        "train word": lambda folder: cli.main([*train_command("word", folder), "--steps", "25"]),
        "train lora": lambda folder: cli.main([*train_command("lora", folder), "--steps", "12"]),
        "convert to a file": partial(convert, "a.safetensors"),
        "convert to a folder": partial(convert, "a"),
        "generate": generate,
        "generate a list": generate_list,
        "download": download,
        "lessons": lambda folder: cli.main(["lessons", str(folder), "--no-open"]),
    }


def serve() -> str:
    """The address of a small hub in a process of its own, which ends with this one."""
    file = official.Official(("second/here",), "some.ckpt", "MIT", 10 * len(CONTENT), None)
    digest = hashlib.sha256(10 * CONTENT).hexdigest()
    official.OFFICIAL["some"] = replace(file, sha256=digest)
    file_download.constants.DOWNLOAD_CHUNK_SIZE = 4096
    Hub.files = {"/second/here/resolve/main/some.ckpt": 10 * CONTENT}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    parent = os.getpid()
    if not os.fork():
        server.timeout = 1
        while os.getppid() == parent:
            server.handle_request()
        os._exit(0)
    server.socket.close()
    return f"http://127.0.0.1:{server.server_port}"


# ---- one process, and its end ------------------------------------------------------------------


def start(action: Callable, folder: Path, said: Path, at_line: tuple | None = None) -> int:
    """A process that does the action in the folder; what it says goes into the file `said`.

    at_line: (how many lines of the writers to run, the signal that it then sends to itself)
    """
    said.touch()
    if process := os.fork():
        return process
    signal.alarm(SECONDS)
    code = 70
    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = open(out, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
        if at_line:
            strike_at_line(*at_line)
        code = action(folder)
    except KeyboardInterrupt:  # before main() or after it
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.settrace(None)
        os._exit(code)


def strike_at_line(number: int, with_signal: int) -> None:
    """Count the lines that run in the writers' files; at the one of this number, strike."""
    left = [number]

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in WRITERS:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), with_signal)
        return trace

    sys.settrace(trace)


def end_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def lines_of(action: Callable, folder: Path, said: Path) -> int:
    """How many lines of the writers an unbroken run goes through."""

    def counted(folder: Path) -> int:
        count = [0]

        def trace(frame, event, argument):
            if frame.f_code.co_filename in WRITERS:
                count[0] += event == "line"
                return trace

        sys.settrace(trace)
        code = action(folder)
        sys.settrace(None)
        said.with_suffix(".lines").write_text(str(count[0]), encoding="utf-8")
        return code

    assert end_of(start(counted, folder, said)) == 0, said.read_text(encoding="utf-8")
    return int(said.with_suffix(".lines").read_text(encoding="utf-8"))


# ---- what lies there afterwards ----------------------------------------------------------------


def content_of(path: Path) -> object:
    """What a file must hold: its bytes, but of what tells times only the rest."""
    if path.name == "state.pt":
        state = run_folder.last_state(path.parent)
        return [state["step"], [(k, t.tolist()) for k, t in sorted(state["ema"].items())]]
    if path.name == "log.jsonl":
        return [{**record, "seconds": 0} for record in run_folder.log_records(path.parent)]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_in(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, object]:
    return {name: content_of(path) for name, path in files_in(folder).items()}


def half_written(folder: Path, whole: dict[str, object]) -> list[str]:
    """The files under a final name that are not what they have to be."""
    wrong = []
    for name, path in files_in(folder).items():
        if re.search(NOT_YET, name):
            continue
        try:
            found = content_of(path)
        except ValueError as error:
            found = str(error)
        on_its_way = path.name in ("state.pt", "log.jsonl") and not isinstance(found, str)
        if name not in whole or (found != whole[name] and not on_its_way):
            wrong.append(name)
    return wrong


# ---- all kills ---------------------------------------------------------------------------------


def strike(action: Callable, folder: Path, said: Path, chance: random.Random, usual: tuple) -> int:
    """One kill at a random moment. Returns its signal.

    usual: (seconds, lines) of an unbroken run
    """
    number, (seconds, lines) = chance.choice(SIGNALS), usual
    if chance.random() < 0.5:
        end_of(start(action, folder, said, (chance.randint(1, lines), number)))
    else:
        process = start(action, folder, said)
        time.sleep(chance.uniform(0, seconds))
        os.kill(process, number)
        end_of(process)
    return number


def report(kills: int, seed: int, only: list[str] | None = None) -> dict[str, Counter]:
    """Kill each action in turn. Returns what was counted, by action; what is wrong is printed."""
    chance, rows = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        actions = commands(where)
        actions = {name: actions[name] for name in only or actions}
        unbroken = {name: measure(action, where / name) for name, action in actions.items()}
        for i in range(kills):
            name = list(actions)[i % len(actions)]
            row, folder = rows.setdefault(name, Counter()), where / f"kill {i}"
            folder.mkdir()
            whole, *usual = unbroken[name]
            complaints = kill_once(actions[name], folder, chance, usual, whole, row)
            for kind, what in complaints.items():
                row[kind] += bool(what)
                if what:
                    print(f"kill {i} of {name}, {kind}: {what}", flush=True)
            shutil.rmtree(folder)
    return rows


def measure(action: Callable, folder: Path) -> tuple[dict[str, object], float, int]:
    """What an unbroken run writes, its seconds, and its lines in the writers' code."""
    said = folder.with_suffix(".said")
    for again in ("a", "b"):
        (folder / again).mkdir(parents=True)
    lines = lines_of(action, folder / "a", said)
    begun = time.monotonic()
    assert end_of(start(action, folder / "b", said)) == 0, said.read_text(encoding="utf-8")
    return contents(folder / "b"), time.monotonic() - begun, lines


def kill_once(
    action: Callable,
    folder: Path,
    chance: random.Random,
    usual: tuple,
    whole: dict[str, object],
    row: Counter,
) -> dict[str, object]:
    """Kill the action in a folder, then do it again. Returns what is wrong, by kind."""
    said = folder.with_suffix(".said")
    number = strike(action, folder, said, chance, usual)
    row["kills"] += 1
    row["SIGTERM or SIGINT"] += number != signal.SIGKILL
    wrong = {"half written": half_written(folder, whole)}
    if "Traceback" in said.read_text(encoding="utf-8"):
        wrong["half written"].append(said.read_text(encoding="utf-8")[-900:])
    status = end_of(start(action, folder, said))
    found = contents(folder) if status == 0 else {}
    differs = status != 0 or any(found.get(name) != content for name, content in whole.items())
    wrong["not resumed"] = differs and (status, said.read_text(encoding="utf-8")[-900:])
    wrong["left behind"] = sorted(
        path.name for path in folder.rglob("*") if is_left(path, folder, whole)
    )
    return wrong


def is_left(path: Path, folder: Path, whole: dict[str, object]) -> bool:
    """Whether an unbroken run would not have left this file, or this folder."""
    name = str(path.relative_to(folder))
    return name not in whole and not any(known.startswith(f"{name}{os.sep}") for known in whole)


def table(rows: dict[str, Counter]) -> str:
    total = sum(rows.values(), Counter())
    lines = [["", *COLUMNS]]
    lines += [
        [name, *(str(row[c]) for c in COLUMNS)] for name, row in {**rows, "all": total}.items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the program at random moments.")
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of actions (all)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    rows = report(given.kills, given.seed, given.only)
    print(table(rows))
    print(f"seed {given.seed}, {time.monotonic() - begun:.0f} s")
    bad = sum(row[kind] for row in rows.values() for kind in COLUMNS[2:])
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
