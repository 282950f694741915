"""What must hold on other people's machines, and in the pages and settings of the project."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from minisd import __version__
from tests.tools.check_links import find_dead_links

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "minisd").rglob("*.py"), *(ROOT / "tests").glob("*.py")])
TEXT_CALLS = {"open": 1, "read_text": 0, "write_text": 1}  # where the mode or encoding may stand
OTHERS = ("Image", "tarfile", "archive", "copy", "subprocess", "os")  # whose open() has no text


def unnamed_encodings(tree: ast.AST) -> list[int]:
    """The lines of calls that read or write text without naming its encoding."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if name not in TEXT_CALLS or owner in OTHERS:
            continue
        if isinstance(node.func, ast.Name) and name == "write_text":  # of minisd.files.whole_files
            continue
        constants = [a.value for a in node.args if isinstance(a, ast.Constant)]
        constants += [k.value.value for k in node.keywords if k.arg == "mode"]
        binary = any(isinstance(c, str) and re.fullmatch("[rwax+]*b[rwax+]*", c) for c in constants)
        if not binary and not any(k.arg == "encoding" for k in node.keywords):
            lines.append(node.lineno)
    return lines


def test_a_call_without_encoding_is_noticed():
    code = "open(p)\nopen(p, 'rb')\np.read_text()\np.write_text(x, encoding='utf-8')\np.open('wb')"
    assert unnamed_encodings(ast.parse(code)) == [1, 3]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_text_file_is_opened_as_utf8(path):
    assert unnamed_encodings(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["download"], ["info", "mini"], ["info", "nowhere"]],
    ids=" ".join,
)
def test_nothing_crashes_where_the_terminal_knows_few_letters(arguments, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    run = subprocess.run(
        [sys.executable, "-m", "minisd", *arguments],
        capture_output=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert run.returncode in (0, 2)
    assert b"Traceback" not in run.stderr, run.stderr.decode("cp1252")


def test_the_setup_page_has_a_row_for_every_system():
    page = (ROOT / "docs" / "setup.md").read_text(encoding="utf-8")
    for system in ("Windows", "Apple silicon", "Linux", "Intel Mac", "Colab", "Codespaces"):
        row = re.search(rf"^\| {system}.*$", page, re.MULTILINE)
        numbers = [cell.strip() for cell in row[0].strip("|").split("|")[-2:]]
        assert numbers == ["-", "-"] or all(number.isdigit() for number in numbers), system


PAGES = [
    *(ROOT / name for name in ("README.md", "weights/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def missing_paths(page: str, folder: Path) -> list[str]:
    """The links, and the files and modules of minisd in backticks, that do not exist."""
    links = re.findall(r"\]\((?![a-z]+:)([^)#\s]+)", page)
    files = re.findall(r"`((?:minisd|tests|docs|weights|notebooks)/(?!_site)[\w/.-]+)`", page)
    modules = re.findall(r"(?:`|automodule:: |-m )((?:minisd|docs)(?:\.[a-z_]\w*)+)\b", page)
    found = [link for link in links if not (folder / link).exists()]
    found += [file for file in files if not (ROOT / file).exists()]
    return found + [module for module in modules if not is_module_or_attribute(module)]


def is_module_or_attribute(name: str) -> bool:
    """Whether this is a module, or something that the module before the last dot defines."""
    path = ROOT / name.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    if name.endswith((".safetensors", ".json")):
        return True  # a file's name
    module, _, attribute = name.rpartition(".")
    parent = ROOT / module.replace(".", "/")
    source = parent / "__init__.py" if parent.is_dir() else parent.with_suffix(".py")
    return source.exists() and attribute in source.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_names_only_files_and_modules_that_exist(page):
    text = page.read_text(encoding="utf-8")
    assert missing_paths(text, page.parent) == []


def test_a_missing_file_or_module_of_a_page_is_noticed():
    page = "[a](gone.md#x) [b](https://x.org) `minisd/gone.py` `minisd.gone.f` `minisd.trace.trace`"
    assert missing_paths(page, ROOT) == ["gone.md", "minisd/gone.py", "minisd.gone.f"]


def test_a_dead_link_of_the_site_is_noticed(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.html").write_text('<p id="here">', encoding="utf-8")
    links = ("b/two.html", "b/two.html#here", "b/two.html#gone", "gone.html", "#gone")
    page = "".join(f'<a href="{link}"></a>' for link in (*links, "https://elsewhere.org/"))
    (tmp_path / "one.html").write_text(page, encoding="utf-8")
    expected = ["one.html: b/two.html#gone", "one.html: gone.html", "one.html: #gone"]
    assert find_dead_links(tmp_path) == (expected, len(links))


def hooks() -> dict[str, dict]:
    settings = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    return {hook["id"]: hook for hook in yaml.safe_load(settings)["repos"][0]["hooks"]}


def test_ruff_has_one_version_everywhere():
    extra = re.findall(r"ruff==[\d.]+", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    used = [hooks()[name]["additional_dependencies"] for name in ("ruff-check", "ruff-format")]
    assert len(extra) == 1 and used == [extra, extra]


@pytest.mark.parametrize(
    "message, refused", [("x" * 72, False), ("x" * 73, True), ("x\n\n" + "x" * 99, False)]
)
def test_a_commit_with_a_long_subject_is_refused(message, refused):
    hook = hooks()["short-subject"]
    assert hook["args"] == ["--multiline"]  # the pattern sees the whole message
    flags = re.MULTILINE | re.DOTALL
    assert bool(re.search(hook["entry"], message, flags)) is refused


def test_the_version_is_the_same_everywhere():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'\nversion = "{__version__}"\n' in settings
    assert citation["version"] == __version__


def test_the_workflow_calls_the_one_script():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(workflow)["jobs"]["everything"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
