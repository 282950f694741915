"""The slides of a session are made from the lessons that its plan names."""

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from docs.make import slides
from docs.make.notebooks import read, select_paths
from minisd.teaching.predict import Guess

PLAN = """# Teaching

## One session: noise

| minutes | what | cells |
|---|---|---|
| 10 | pictures | `07 maps`, `07 ask` |
| 5 | numbers | `07 numbers`, `07 board-question`, `07 maps` |

## Three sessions

### Session 1: words

| minutes | what | cells |
|---|---|---|
| 5 | numbers | `07 numbers` |
"""


def cell(tag, output):
    made = new_code_cell("code()", outputs=[output])
    made.metadata["tags"] = [tag]
    return made


@pytest.fixture
def lesson():
    png = new_output("display_data", {"image/png": "iVBOR", "text/plain": 'Maps of "cat".'})
    asked = Guess("Where is `a < b`?", {"a": "here", "b": "there"}).words()
    board = new_markdown_cell(
        "**Board question.** Why?\n\n<details><summary>Answer</summary>\n\nSo.\n\n</details>"
    )
    board.metadata["tags"] = ["board-question"]
    return new_notebook(
        cells=[
            new_markdown_cell("# 07 · Attention"),
            new_markdown_cell("Words.\n\n## Maps of words"),
            cell("maps", png),
            cell("ask", new_output("display_data", {"text/markdown": asked})),
            cell("numbers", new_output("stream", text="\n".join(map(str, range(99))))),
            board,
        ]
    )


def test_a_plan_is_read_from_its_tables():
    noise, words = slides.sessions(PLAN)
    tags = ["maps", "ask", "numbers", "board-question"]
    assert noise == slides.Session("One session: noise", [("07", tag) for tag in tags])
    assert words == slides.Session("Session 1: words", [("07", "numbers")])


def test_each_cell_becomes_a_slide(lesson):
    session = slides.sessions(PLAN)[0]
    page = slides.session_page(session, {"07": slides.find_cells(lesson)})
    assert page.count("<section>") == 5
    assert '<img alt="Maps of &quot;cat&quot;." src="data:image/png;base64,iVBOR">' in page
    assert page.count("<h2>Maps of words</h2>") == 4
    assert "<strong>Where is <code>a &lt; b</code>?</strong>" in page and "<p>b) there</p>" in page
    assert "18\n…</pre>" in page  # a long output is cut
    assert "<details>" in page and "<p>So.</p>" in page
    assert "lesson 07 · maps" in page
    assert "http" not in page  # nothing is loaded


def test_two_figures_of_a_cell_become_two_slides():
    png = new_output("display_data", {"image/png": "iVBOR", "text/plain": "A figure."})
    both = cell("two", png)
    both.outputs += [new_output("stream", text="numbers"), png]
    first, second = slides.slides_of("07", "two", "Maps", both)
    assert "numbers" in first and "(1 of 2)" in first and first.count("<img") == 1
    assert "numbers" not in second and "(2 of 2)" in second and second.count("<img") == 1


def test_an_exercise_shows_its_question_and_not_that_code_is_missing():
    asked = cell("write", new_output("display_data", {"text/markdown": "waits for your code"}))
    asked.metadata["tags"] += ["exercise"]
    (made,) = slides.slides_of("07", "write", "Write it", asked)
    assert "code()" in made and "waits" not in made


def test_tables_and_formulas_are_drawn():
    table = slides.text_html("| t | mean |\n|---|---|\n| 0 | 1 |")
    assert "<td>0</td>" in table and "|" not in table
    formula = slides.text_html(r"Leave out $\sqrt{1 - \beta_t}$ and $a<b$.")
    assert "<msqrt>" in formula and "$" not in formula


def test_a_cell_that_is_missing_is_named(lesson):
    session = slides.Session("One", [("07", "other")])
    with pytest.raises(ValueError, match="names the cell `07 other`, which is missing"):
        slides.session_page(session, {"07": slides.find_cells(lesson)})


def test_the_real_plans_name_real_cells():
    lessons = {path.name.split("_")[0]: slides.find_cells(read(path)) for path in select_paths([])}
    for session in slides.sessions(slides.PAGE.read_text(encoding="utf-8")):
        assert slides.session_page(session, lessons).count("<section>") > 5
