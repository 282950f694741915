"""The form of the committed lessons. On request, every lesson runs again.

pytest -m lessons                                  runs every lesson with fewer steps
pytest -m slow tests/teaching/test_notebooks.py    runs them in full and compares the numbers
"""

import ast
import base64
import builtins
import io
import re
import symtable
from collections import Counter
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from docs.make import notebooks
from minisd.exercises.answer_source import global_names
from minisd.teaching.plot import canvas

PATHS = notebooks.select_paths([])
COVERAGE = Path(__file__).parents[2] / "docs" / "maintaining" / "lessons-coverage.md"
LARGEST = 1_500_000  # bytes of a notebook
FREE = {"timing", "trained"}  # tags of cells whose numbers differ from run to run
SHARED = FREE | {"predict", "exercise", "must-run"}  # tags that many cells of a notebook may carry
LONGEST = 40  # lines of a code cell
SECTIONS = ["The same on Stable Diffusion", "Try it", "Read on"]
REFERENCES = {"diffusers", "transformers", "open_clip"}
# The tolerance of a number when a lesson runs again on another processor
RELATIVE, ABSOLUTE = 0.01, 0.002

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags_of(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def prose(notebook: NotebookNode) -> str:
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def number_of(path: Path) -> str:
    """ "03" of 03_samplers.ipynb"""
    return path.stem.split("_")[0]


# ---- form -------------------------------------------------------------------------------------


@every_notebook
def test_it_is_in_the_normal_form(path):
    assert notebooks.blemishes(notebooks.read(path)) == []
    content = path.read_bytes()
    assert b"\r" not in content and content.endswith(b"}\n")


@every_notebook
def test_it_is_small_enough(path):
    assert path.stat().st_size <= LARGEST


@every_notebook
def test_every_picture_is_narrow_and_has_words(path):
    for cell in code_cells(notebooks.read(path)):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                assert picture.width <= canvas.WIDTH
                words = output.data["text/plain"]
                assert len(words) > 20 and not words.startswith("<"), cell.source


@every_notebook
def test_its_cells_are_tagged(path):
    notebook = notebooks.read(path)
    counted = Counter(tag for cell in notebook.cells for tag in tags_of(cell))
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", tag) for tag in counted)
    repeated = [tag for tag, times in counted.items() if times > 1 and tag not in SHARED]
    assert [tag for tag in repeated if not tag.startswith("write-")] == []
    for cell in code_cells(notebook):
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert not pictures or tags_of(cell), f"a figure without a tag: {cell.source[:100]}"


@every_notebook
def test_it_has_the_parts_of_a_lesson(path):
    notebook = notebooks.read(path)
    text = prose(notebook)
    first = notebook.cells[0].source
    assert first.startswith(f"# {number_of(path)} · ") and "?" in first
    assert re.search(r"(?i)you need", first) and re.search(r"(?i)minutes", first)
    assert re.search(r"(?i)new words", first)
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS
    tries = re.split("## (?:Write it yourself|Read on)", text.split("## Try it")[1])[0]
    tries = re.split("<details>", tries)[0]
    assert re.findall(r"^(\d)\. ", tries, flags=re.MULTILINE) == ["1", "2"]
    asked = [c for c in notebook.cells if re.search(r"= predict\(", c.source)]
    assert 2 <= len(asked) <= 4
    assert sum(".reveal(" in cell.source for cell in notebook.cells) == len(asked)


@every_notebook
def test_answers_stand_below_a_heading(path):
    """Where outputs are not folded, a reader sees the question, a heading, and then the answer."""
    cells = notebooks.read(path).cells
    for number, cell in enumerate(cells):
        if cell.cell_type == "code" and re.search(r"= predict\(", cell.source):
            rest = [one for one in cells[number + 1 :] if one.source.strip()]
            assert rest[0].cell_type == "markdown" and rest[0].source.startswith("#"), cell.source


@every_notebook
def test_students_write_code_where_its_idea_is(path):
    cells = notebooks.read(path).cells
    end = next(n for n, cell in enumerate(cells) if cell.source.startswith("## Try it"))
    assert any("exercise" in tags_of(cell) for cell in cells[:end])


@every_notebook
def test_its_cells_are_short(path):
    for cell in code_cells(notebooks.read(path)):
        assert len(cell.source.splitlines()) <= LONGEST, cell.source


@every_notebook
def test_it_says_what_to_run_and_what_to_do_in_class(path):
    cells = notebooks.read(path).cells
    must = [cell for cell in cells if "must-run" in tags_of(cell)]
    assert must == [cell for cell in cells if cell.source.startswith("# must run\n")]
    assert 3 <= len(must) <= 8
    for tag, words in {"board-question": "**Board question.**", "hand-in": "**Hand in.**"}.items():
        assert [cell.source[: len(words)] for cell in cells if tag in tags_of(cell)] == [words]
    text = prose(notebooks.read(path))
    answers = text.split("## Try it")[1].split("<details>")[1].split("</details>")[0]
    assert re.findall(r"^(\d)\. ", answers, flags=re.MULTILINE) == ["1", "2"]


@every_notebook
def test_the_cells_that_must_run_need_no_others(path):
    known = set(dir(builtins))
    for cell in notebooks.read(path).cells:
        if "must-run" in tags_of(cell):
            table = symtable.symtable(cell.source, "cell", "exec")
            known |= {one.get_name() for one in table.get_symbols() if one.is_assigned()}
            known |= {one.get_name() for one in table.get_symbols() if one.is_imported()}
            assert global_names(table) - known == set(), cell.source


@every_notebook
def test_its_pictures_have_all_colours_and_alt_texts(path):
    for cell in code_cells(notebooks.read(path)):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                assert picture.mode == "RGB", cell.source
                assert output.metadata["image/png"]["alt"] == output.data["text/plain"]


def imports(cell: NotebookNode) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.split(".")[0])
    return roots


@every_notebook
def test_its_code_is_about_this_package_alone(path):
    """A lesson defines no model, has no path, and imports no reference. (17 compares with one.)

    Only the student defines a part of a model, in the stub of an exercise.
    """
    for cell in code_cells(notebooks.read(path)):
        tree = ast.parse(cell.source)  # plain Python: no magics
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and "exercise" not in tags_of(cell):
                assert "Module" not in ast.unparse(node), cell.source
        if number_of(path) != "17":
            assert not imports(cell) & REFERENCES
        for pattern in ("a path of one machine", "a path of one Windows machine"):
            assert not re.search(notebooks.BLEMISHES[pattern], cell.source), cell.source


@every_notebook
def test_its_links_lead_to_lessons(path):
    text = prose(notebooks.read(path))
    linked = set(re.findall(r"\]\((?:\./)?([\w.]+\.ipynb)\)", text))
    there = {notebook.name for notebook in PATHS}
    assert linked - there == set()


# ---- coverage ---------------------------------------------------------------------------------


def coverage() -> list[tuple[str, list[str]]]:
    """Each line of lessons-coverage.md, and the cells that it names: "03 one-seed" …"""
    rows = []
    for line in COVERAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and line != "| what | shown by |":
            _, clause, named, _ = re.split(r"(?<!\\)\|", line)
            cells = [cell.strip(" `") for cell in named.split(",")]
            rows.append((clause.strip(), [cell for cell in cells if cell]))
    return rows


def test_each_heading_of_the_article_is_mapped_to_cells():
    """The course grew from an article. Three of its headings are "Reverse diffusion"."""
    headings = """What can Stable Diffusion do? | Diffusion model | Forward diffusion
    | Reverse diffusion | How training is done | Reverse diffusion (with the noise predictor)
    | Stable Diffusion model | Latent diffusion model | Variational Autoencoder
    | Why is latent space possible? | Reverse diffusion in latent space | What is a VAE file?
    | Conditioning | Text conditioning (text-to-image) | Tokenizer | Embedding
    | Feeding embeddings to noise predictor | Cross-attention | Other conditionings
    | Stable Diffusion step-by-step | Text-to-image | Image-to-image | Inpainting | Depth-to-image
    | What is CFG value? | Classifier guidance | Classifier-free guidance | CFG value
    | Stable Diffusion v1 vs v2 | Model difference | Training data difference | Outcome difference
    | Some interesting reads"""
    mapped = {clause for clause, cells in coverage() if cells}
    assert [one for one in re.split(r"\s*\|\s*", headings) if one not in mapped] == []


def test_every_clause_of_the_course_is_shown_by_a_cell():
    present = {
        f"{number_of(path)} {tag}"
        for path in PATHS
        for cell in notebooks.read(path).cells
        for tag in tags_of(cell)
    }
    rows = coverage()
    text = COVERAGE.read_text(encoding="utf-8")
    assert [path.stem for path in PATHS if f"### {number_of(path)} · " not in text] == []
    assert [clause for clause, cells in rows if not cells] == []
    named = {cell: clause for clause, cells in rows for cell in cells}
    assert {cell: clause for cell, clause in named.items() if cell not in present} == {}


# ---- running ----------------------------------------------------------------------------------


@pytest.mark.lessons
@every_notebook
def test_it_runs_with_fewer_steps(path, monkeypatch):
    monkeypatch.setenv("MINISD_QUICK", "1")
    done = notebooks.normalize(notebooks.execute(notebooks.read(path)))
    # the output of a quick run is not committed, but it must be as clean, and its answers as right
    assert notebooks.blemishes(done) == []
    assert answers(done) == answers(notebooks.read(path))


def answers(notebook: NotebookNode) -> list[str]:
    """The letters of the right answers to the lesson's questions."""
    shown = [text for cell, text in notebooks.texts(notebook) if ".reveal(" in cell.source]
    return re.findall(r"The answer is \*\*(\w)\)", "\n".join(shown))


@pytest.mark.slow
@every_notebook
def test_a_run_in_full_prints_the_same_again(path, monkeypatch):
    monkeypatch.delenv("MINISD_QUICK", raising=False)
    before = notebooks.read(path)
    assert differences(before, notebooks.execute(before)) == []


def differences(before: NotebookNode, after: NotebookNode) -> list[str]:
    """The places where two runs differ: in words, or in numbers by more than the tolerance."""
    found = []
    for old, new in zip(
        code_cells(notebooks.normalize(before)), code_cells(notebooks.normalize(after)), strict=True
    ):
        if FREE & set(tags_of(old)):
            continue
        old_text, new_text = (
            "\n".join(text for _, text in notebooks.texts(new_notebook(cells=[cell])))
            for cell in (old, new)
        )
        if NUMBER.sub("#", old_text) != NUMBER.sub("#", new_text):
            found.append(f"{tags_of(old)}: other words: {old_text!r} and {new_text!r}")
            continue
        for one, other in zip(NUMBER.findall(old_text), NUMBER.findall(new_text), strict=True):
            if float(one) != pytest.approx(float(other), rel=RELATIVE, abs=ABSOLUTE):
                found.append(f"{tags_of(old)}: {one} and {other}")
    return found


def printed(text: str, *tags: str) -> NotebookNode:
    cell = new_code_cell("1", outputs=[new_output("stream", name="stdout", text=text)])
    cell.metadata["tags"] = list(tags)
    return new_notebook(cells=[cell])


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("loss 0.1234", "loss 0.1236", True),
        ("loss 0.1234", "loss 0.1334", False),
        ("1234.5 of 7", "1235.5 of 7", True),
        ("14 of 20", "15 of 20", False),
        ("a cat", "a dog", False),
        ("t = -1", "t = 1", False),
        ("2 96 8 8", "2 96 8 8", True),
        ("2 96 8 8", "2 96 4 8", False),
    ],
)
def test_sameness_is_about_words_and_numbers(one, other, same):
    assert (differences(printed(one), printed(other)) == []) == same
    assert differences(printed(one, "trained"), printed(other, "trained")) == []
