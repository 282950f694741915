"""Run every command of the README and of some pages of docs/, as a reader copies it.

Each page gets an empty folder, and its commands run there in the page's order. A block of Python
that begins with the name of a file is saved as this file. A block of diff changes this file. The
commands run in a new environment that contains only the wheel of minisd; the other packages come
from the environment of this program. Commands that need the network, another system or a person do
not run: they are on a list with the reason. The program also checks that the wheel contains the
weights, and that `pip install -e` does not copy them.

    python -m tests.tools.run_docs_commands
"""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/setup.md", "docs/steering.md", "docs/compare.md")
PROGRAMS = "minisd|pip|python3?|py|pytest|git|conda|sphinx-build|cd|Set-ExecutionPolicy"

INSTALLS = "the wheel is already installed, with all that it needs"
CLONE = "works only in a clone: .ci/run and the tests run it"
# Commands that do not run: a pattern for the whole command, and the reason.
LISTED = {
    r"pip install (-e|-q) .*": INSTALLS,
    r"pip install --no-deps -r tests/requirements.txt": INSTALLS,
    r"(python3|py) -m venv \.venv": "the environment already exists",
    r"\. \.venv/bin/activate|\.venv\\Scripts\\activate": "the environment already exists",
    r"!?git clone .*|cd minisd": "needs the network, and the reader's address of the repository",
    r"conda .*": "another program, and it needs the network",
    r"Set-ExecutionPolicy .*": "is for Windows",
    r"pytest( -m slow)?|python -m tests\..*|sphinx-build .*": CLONE,
    r"minisd download sd15": "needs the network, 4 GB",
    r"minisd download lcm-lora-sd15": "needs the network",
    r"minisd lessons( --.*)?": "opens a browser and waits: tests/teaching/test_lessons.py",
    r"minisd (info|convert|compare|grade)": "only the name of a command",
    r"minisd generate .* --mine": "needs a student's right answers: tests/exercises/test_mine.py",
    r"minisd img2img \| inpaint \| depth \| control": "only the names of commands",
}
# Python code that does not run: a part of the code, and the reason.
LISTED_PYTHON = {'lora(sd, "style.safetensors"': "it uses the reader's own files and pictures"}

# Run all commands of minisd in one process, so that torch starts once, not 40 times.
RUNNER = """
import json, shlex, sys
from minisd import cli
for line in json.loads(sys.argv[1]):
    try:
        status = cli.main(shlex.split(line)[1:])
    except SystemExit as ended:
        status = ended.code
    if status not in ((0, 1) if line.startswith("minisd compare ") else (0, None)):
        sys.exit(f"FAILED: {line}")
"""


def commands(page: str) -> list[str]:
    """The commands in the text of a page, in its order: those in blocks and those in sentences.

    A block of Python or of diff is one command. It begins with "python\\n" or "diff\\n".
    """
    found = []
    fence = r"^```(\w+)\n(.*?)^```$|^((?:    [^\n]+\n)+)|`([^`]+)`"
    for kind, block, indented, span in re.findall(fence, page, flags=re.DOTALL | re.MULTILINE):
        if kind in ("python", "diff"):
            found.append(f"{kind}\n{block}")
            continue
        words = " ".join(span.split())
        lines = [words] if span else (block or indented).splitlines()
        pieces = [piece.strip() for line in lines for piece in re.split("&&|;", line)]
        start = rf"!?({PROGRAMS})( |$)|\. \.venv|\.venv"
        found += [piece for piece in pieces if re.match(start, piece)]
    return found


def why_not(command: str) -> str | None:
    """The reason why a command does not run; None if it runs."""
    if command.startswith("python\n"):
        return next((why for words, why in LISTED_PYTHON.items() if words in command), None)
    return next((why for fits, why in LISTED.items() if re.fullmatch(fits, command)), None)


def check(command: list, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, check=False)
    if done.returncode:
        sys.exit(f"this failed, with exit status {done.returncode}: {command}")


def new_environment(folder: Path) -> Path:
    """Create an environment that uses the packages of the running one. Returns its Python."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    there = subprocess.check_output(
        [python, "-c", "import sysconfig as s; print(s.get_path('purelib'))"]
    )
    outside = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    Path(there.decode().strip(), "outside.pth").write_text("\n".join(outside), encoding="utf-8")
    return python


def install(python: Path, *what: object) -> list[str]:
    """Install with pip. Returns the list of files that pip has installed."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "-q", "--no-deps", *map(str, what)], check=True)
    listed = subprocess.check_output([*pip, "show", "-f", "minisd"], text=True)
    return listed.partition("Files:\n")[2].split()


def check_what_is_installed(work: Path) -> Path:
    """Install the wheel, and with -e. Returns the Python of the environment with the wheel."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", work, ROOT], check=True)
    python = new_environment(work / "wheel")
    inside = install(python, *work.glob("minisd-*.whl"))
    lacking = [
        f"minisd/{path.relative_to(ROOT).as_posix()}"
        for folder in ("weights", "notebooks")
        for path in sorted((ROOT / folder).glob("*.*"))
        if f"minisd/{path.relative_to(ROOT).as_posix()}" not in {Path(f).as_posix() for f in inside}
    ]
    copied = install(new_environment(work / "editable"), "-e", ROOT)
    copied = [file for file in copied if file.endswith((".safetensors", ".pt", ".ipynb"))]
    if lacking or copied:
        sys.exit(f"the wheel lacks {lacking}; pip install -e copied {copied}")
    return python


def apply_diff(block: str, path: Path) -> None:
    """Replace the lines of a file that the block marks with "-" by those that it marks with "+"."""
    old, new = ("".join(re.findall(rf"^\{sign}(.*\n)", block, re.MULTILINE)) for sign in "-+")
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        sys.exit(f"this should stand once in {path.name}: {old}")
    path.write_text(text.replace(old, new), encoding="utf-8")


def run_page(name: str, folder: Path, python: Path, environment: dict[str, str]) -> int:
    """Run the commands of one page. Returns how many ran."""
    folder.mkdir()
    wanted = [
        one for one in commands((ROOT / name).read_text(encoding="utf-8")) if not why_not(one)
    ]
    waiting: list[str] = []
    for command in [*wanted, None]:
        if command and command.startswith("minisd "):
            waiting.append(command)
            continue
        if waiting:
            script = python.with_name("minisd")
            first, *rest = waiting
            line = shlex.quote(str(script)) + first.removeprefix("minisd")
            done = subprocess.run(line, shell=True, cwd=folder, env=environment, check=False)
            if done.returncode > first.startswith("minisd compare "):  # 1: it found a difference
                sys.exit(f"this failed, with exit status {done.returncode}: {first}")
            check([python, "-c", RUNNER, json.dumps(rest)], folder, environment)
            waiting = []
        kind, _, block = (command or "").partition("\n")
        if kind == "diff":
            (changed,) = folder.glob("*.py")
            apply_diff(block, changed)
        elif named := re.match(r"# (\w+\.py)\n", block):
            (folder / named[1]).write_text(block, encoding="utf-8")
        elif kind == "python":
            check([python, "-c", block], folder, environment)
    return len(wanted)


def main() -> None:
    began = time.perf_counter()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONWARNINGS"] = "default"
    with tempfile.TemporaryDirectory() as work:
        python = check_what_is_installed(Path(work))
        folders = [Path(work, Path(name).stem) for name in PAGES]
        with ThreadPoolExecutor() as pool:  # each page in order, the pages at the same time
            run = partial(run_page, python=python, environment=environment)
            counts = list(pool.map(run, PAGES, folders))
    print(f"commands that ran: {dict(zip(PAGES, counts, strict=True))}")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
