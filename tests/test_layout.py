"""The shape of the package: who imports whom, and how large files and functions may grow."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "minisd"
FILES = sorted(PACKAGE.rglob("*.py"))
NETWORKS = ["attention", "clip", "unet", "vae"]
CORE = [*NETWORKS, "config", "tokenizer", "prompt", "schedule", "guidance"]
CORE += ["samplers", "sampling", "pipeline", "trace"]
UNDER_PIPELINE = [name for name in CORE if name != "pipeline"] + ["text", "checkpoints"]
STEERING = [*CORE, "text", "checkpoints", "tasks", "depth", "adapters"]
REFERENCES = {"diffusers", "transformers", "open_clip", "clip", "ldm", "k_diffusion", "torchvision"}

EVERYWHERE = ["config", "files"]

# part of the package -> the parts it may import, besides those allowed everywhere
MAY_IMPORT = {
    "config": [],
    "files": ["files"],  # bytes from strangers: JSON, pictures, files written whole
    "text": ["text"],  # what the tokenizer needs for text from strangers
    "tokenizer": ["text"],
    "prompt": ["tokenizer", "text"],
    "attention": [],
    "trace": [],
    "schedule": [],
    "clip": ["attention"],
    "unet": ["attention"],
    "vae": ["attention"],
    "samplers": ["schedule"],
    "sampling": ["schedule", "samplers", "checkpoints"],
    "guidance": ["schedule"],
    "checkpoints": [*NETWORKS, "tokenizer", "schedule", "samplers", "checkpoints"],
    "pipeline": UNDER_PIPELINE,
    "compare": ["trace", "checkpoints"],
    "tasks": [*CORE, "checkpoints", "tasks", "depth"],
    "depth": [*CORE, "checkpoints", "depth"],
    "adapters": [*CORE, "text", "checkpoints", "adapters"],
    "training": [*STEERING, "training", "mini"],
    "mini": [*STEERING, "training", "mini"],
    "teaching": [*STEERING, "training", "mini", "compare", "teaching"],
    "cli": [*STEERING, "training", "mini", "compare", "teaching", "cli"],
    "__init__": ["checkpoints", "pipeline"],
    "__main__": ["cli"],
}


def part_of(path: Path) -> str:
    """The top-level part that a file belongs to: "unet", "checkpoints" …"""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The dotted names of every module that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively: write minisd.…"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {node.module} | (inside if node.module == "minisd" else set())
    return names


def code_lines(source: str) -> set[int]:
    """The numbers of the lines that are not blank, comment or docstring."""
    docstring_lines = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstring_lines |= set(range(node.lineno, node.end_lineno + 1))
    numbered = enumerate(source.splitlines(), start=1)
    code = [n for n, line in numbered if line.strip() and not line.strip().startswith("#")]
    return set(code) - docstring_lines


def code_in(*parts: str) -> int:
    files = [path for path in FILES if part_of(path) in parts]
    return sum(len(code_lines(path.read_text(encoding="utf-8"))) for path in files)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_rule(path):
    part = part_of(path)
    allowed = {*MAY_IMPORT[part], *EVERYWHERE}
    for name in imported(path):
        if name.startswith("minisd.") and name != "minisd.__version__":
            assert name.split(".")[1] in allowed, f"{part} must not import {name}"


def test_nothing_evades_the_rule_by_importing_late():
    for path in FILES:
        assert "import_module(" not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_reference_library_in_the_package(path):
    if part_of(path) != "compare":
        roots = {name.split(".")[0] for name in imported(path)}
        # the doctor only looks whether torchvision breaks transformers
        known = {"torchvision"} if path.name == "doctor.py" else set()
        assert not (roots & REFERENCES) - known


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_fit_on_a_screen(path):
    source = path.read_text(encoding="utf-8")
    code = code_lines(source)
    assert len(code) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = set(range(node.body[0].lineno, node.end_lineno + 1))
            assert len(code & body) <= 30, f"{path.name}: {node.name} is too long"


def test_the_networks_fit_in_800_lines():
    assert code_in(*NETWORKS) <= 800


def test_the_package_fits_in_4500_lines():
    """Without what is around it: lessons, what made and measured the mini, the command line."""
    around = ("teaching", "training", "mini", "cli")
    counted = [path for path in FILES if part_of(path) not in around]
    lines = [len(code_lines(path.read_text(encoding="utf-8"))) for path in counted]
    # until the package is cut into folders by subject; 1,000 of them guard against strangers' files
    assert sum(lines) <= 6700


def test_weights_are_read_strictly_and_safely():
    for path in FILES:
        source = path.read_text(encoding="utf-8").replace(" ", "")
        assert "strict=False" not in source, path.name
        assert "weights_only=False" not in source, path.name


def test_the_readme_counts_the_core_and_lists_every_file_of_it():
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    lines, files = re.search(
        r"The core is about ([\d,]+) lines of code in (\d+) files", readme
    ).groups()
    flat = [path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]
    assert int(files) == len(flat)
    assert int(lines.replace(",", "")) == round(code_in(*flat), -2), f"it has {code_in(*flat)}"
    listed = re.findall(r"^\| \[(\w+)\.py\]\(minisd/\1\.py\)", readme, flags=re.MULTILINE)
    assert sorted(listed) == sorted(flat)
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert set(re.findall(r"\]\(minisd/(\w+)\)", readme)) == folders
