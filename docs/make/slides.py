"""Make slides for the sessions that docs/teaching.md plans, from the lessons' own figures.

    python -m docs.make.slides runs/slides    # one HTML file for each session

A session is a heading of docs/teaching.md with a table whose last column names cells, such as
`07 maps`. Each cell becomes a slide: its figure, its question or its text. The files need nothing
else: they open in a browser, the arrow keys go from slide to slide, and the browser prints them.
"""

import argparse
import re
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path

from latex2mathml.converter import convert as as_mathml
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from nbformat import NotebookNode

from docs.make.notebooks import read, select_paths
from minisd.files.whole_files import make_folder, write_text
from minisd.teaching.questions import ASKED, OPTION

PAGE = Path(__file__).parents[1] / "teaching.md"
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CELL = re.compile(r"`(\d+b?|0b) ([a-z0-9-]+)`")
LONGEST = 20  # lines of text on a slide

STYLE = """
:root { color: #222; background: #fff; font: 28px/1.4 system-ui, sans-serif; }
body { margin: 0; }
section { box-sizing: border-box; height: 100vh; padding: 3vh 5vw; display: flex; overflow: auto;
  flex-direction: column; justify-content: safe center; gap: 2vh; scroll-snap-align: start; }
section > * { flex: none; }
html { scroll-snap-type: y mandatory; }
h1, h2 { margin: 0; line-height: 1.2; }
p { margin: 0; }
/* a figure gets the height that the text leaves */
section > img { flex: 0 1 72vh; min-height: 30vh; width: 100%; object-fit: contain;
  object-position: left; }
table { border-collapse: collapse; font-size: 22px; }
th, td { padding: 1px 18px; border-bottom: 1px solid #bbb; text-align: left; }
pre { font-size: 18px; white-space: pre-wrap; margin: 0; }
footer { color: #595959; font-size: 16px; }
@media print {
  section { min-height: 0; height: 100vh; break-inside: avoid; break-after: page; }
}
"""
SCRIPT = """
addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1,
    PageUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const slides = [...document.querySelectorAll("section")];
  const here = slides.findIndex((slide) => slide.getBoundingClientRect().bottom > 10);
  slides[Math.min(Math.max(here + step, 0), slides.length - 1)].scrollIntoView();
});
"""
HTML = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>
<body>
{slides}
<script>{script}</script>
</body>
</html>
"""


@dataclass(frozen=True)
class Session:
    """A session of a plan: its title, and the cells that it shows, as (lesson, tag)."""

    title: str
    cells: list[tuple[str, str]]


def sessions(page: str) -> list[Session]:
    """The sessions that docs/teaching.md plans, in its order. page: its text"""
    parts = re.split(r"^#{2,3} ", page, flags=re.MULTILINE)[1:]
    found = []
    for part in parts:
        title, _, text = part.partition("\n")
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        cells = [cell for row in rows for cell in CELL.findall(row.rsplit("|", 2)[1])]
        if cells:
            found.append(Session(title, list(dict.fromkeys(cells))))
    return found


def find_cells(notebook: NotebookNode) -> dict[str, tuple[str, NotebookNode]]:
    """Each tagged cell of a lesson with the heading above it: tag -> (heading, cell)."""
    heading, found = "", {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = [heading, *HEADING.findall(cell.source)][-1]
        found |= {tag: (heading, cell) for tag in cell.metadata.get("tags", [])}
    return found


def slides_of(lesson: str, tag: str, heading: str, cell: NotebookNode) -> list[str]:
    """The slides of one cell, as HTML sections: one for each figure, or one for all else."""
    if cell.cell_type == "markdown":
        contents = [text_html(HEADING.sub("", cell.source))]
    elif "exercise" in cell.metadata.get("tags", []):  # its output only says that code is missing
        contents = [f"<pre>{escape(shorten(cell.source))}</pre>"]
    else:
        contents = by_figure([html for output in cell.outputs if (html := output_html(output))])
        contents = contents or [f"<pre>{escape(shorten(cell.source))}</pre>"]
    made = []
    for number, content in enumerate(contents, start=1):
        which = f" ({number} of {len(contents)})" if len(contents) > 1 else ""
        footer = f"<footer>lesson {lesson} · {tag}{which}</footer>"
        title = f"<h2>{line_html(heading)}{which}</h2>"
        made.append(f"<section>\n{title}\n{content}\n{footer}\n</section>")
    return made


def by_figure(parts: list[str]) -> list[str]:
    """Divide the outputs of a cell, so that each part has at most one figure."""
    contents: list[str] = []
    for part in parts:
        if contents and not ("<img" in part and "<img" in contents[-1]):
            contents[-1] += "\n" + part
        else:
            contents.append(part)
    return contents


def output_html(output: NotebookNode) -> str:
    """What a cell has shown: a figure, a question, or text."""
    if output.output_type == "stream":
        return f"<pre>{escape(shorten(output.text))}</pre>"
    data = output.get("data", {})
    if "image/png" in data:
        alt = escape(data.get("text/plain", ""))
        return f'<img alt="{alt}" src="data:image/png;base64,{data["image/png"]}">'
    text = data.get("text/markdown", "")
    if ASKED.match(text):
        options = [f"{letter}) {words}" for letter, words in OPTION.findall(text)]
        return text_html("\n\n".join([f"**{ASKED.findall(text)[0]}**", *options]))
    return text_html(text)


def text_html(text: str) -> str:
    """Markdown as HTML. Formulas become MathML, which browsers draw without a script."""
    html = markdown2html_mistune(text)
    return re.sub(r"\$([^$]+)\$", lambda found: as_mathml(unescape(found[1])), html).strip()


def line_html(text: str) -> str:
    """Markdown of one line as HTML, without the paragraph around it."""
    return text_html(text).removeprefix("<p>").removesuffix("</p>")


def shorten(text: str) -> str:
    """The first lines of a long text."""
    lines = text.rstrip().splitlines()
    return "\n".join(lines if len(lines) <= LONGEST else [*lines[: LONGEST - 1], "…"])


def session_page(session: Session, lessons: dict[str, dict]) -> str:
    """The slides of a session as one HTML page.

    lessons: the number of a lesson -> its cells, from find_cells()

    Raises ValueError if a lesson has no such cell.
    """
    made = [f"<section>\n<h1>{line_html(session.title)}</h1>\n<p>minisd</p>\n</section>"]
    for lesson, tag in session.cells:
        if tag not in lessons.get(lesson, {}):
            raise ValueError(f"docs/teaching.md names the cell `{lesson} {tag}`, which is missing.")
        heading, cell = lessons[lesson][tag]
        made += slides_of(lesson, tag, heading, cell)
    return HTML.format(
        title=escape(session.title), style=STYLE, slides="\n".join(made), script=SCRIPT
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.make.slides")
    parser.add_argument("folder", type=Path, help="where to write the files")
    given = parser.parse_args(arguments)
    lessons = {path.name.split("_")[0]: find_cells(read(path)) for path in select_paths([])}
    make_folder(given.folder)
    for number, session in enumerate(sessions(PAGE.read_text(encoding="utf-8")), start=1):
        words = "-".join(re.findall(r"[a-z0-9]+", session.title.lower()))
        path = given.folder / f"{number:02d}-{words}.html"
        write_text(path, session_page(session, lessons))
        print(path)


if __name__ == "__main__":
    main()
