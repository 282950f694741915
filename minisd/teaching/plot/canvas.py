"""What all figures of the lessons have in common: colours, size, and how they are shown.

Each figure is a matplotlib Figure made without pyplot, so there is no global state and no backend
to choose. show() puts a figure into the notebook, with a description for readers who cannot see the
figure.
"""

import base64
import inspect
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from minisd.teaching import is_headless

# People with any kind of colour blindness can tell these colours apart (Okabe & Ito 2008). Yellow
# is the last one, because it is hard to see on white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442"]
INK, PALE = "#222222", "#DDDDDD"

# In Markdown: code, which stays, then bold words without spaces at their ends, then a heading.
# Two stars that are a power, as in x**2 or x ** 2, are neither.
BOLD_OR_HEADING = (
    r"(`[^`]*`)|(?<![\w)\]*])\*\*(?=\S)((?:`[^`]*`|[^*`]|\*(?!\*))+?)(?<=\S)\*\*(?!\w)|^#+ "
)

DPI, WIDTH = 80, 512  # pixels per inch, pixels. Readable at a width of 480, and on a projector
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 2,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "mathtext.default": "regular",
}


def with_style(function):
    """Wrap a function that draws a figure, so that the figure has the lessons' style.

    After each call, matplotlib has its earlier settings again.
    """
    return matplotlib.rc_context(STYLE)(function)


@with_style
def blank_figure(height: int, width: int = WIDTH) -> Figure:
    """An empty figure. height, width: the size in pixels"""
    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI)


@with_style
def panels(count: int = 1, height: int = 260, **sharing: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `count` empty axes side by side. Returns the figure and its axes.

    height: the figure's height in pixels
    sharing: sharex and sharey, as in matplotlib's subplots()
    """
    figure = blank_figure(height)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    axes = figure.subplots(1, count, squeeze=False, **sharing)
    return figure, list(axes[0])


def projector(times: int = 2) -> None:
    """Show all following figures larger, for a projector. projector(1) returns to the usual size.

    times: how many times larger
    """
    SIZE.times = times


class SIZE:
    """How many times larger than usual the figures are. projector() sets it."""

    times = 1


def png(figure: Figure) -> bytes:
    """The figure as a PNG file. It holds all colours, so pictures are shown as they are."""
    small = io.BytesIO()
    as_image(figure).save(small, format="png", optimize=True)
    return small.getvalue()


@with_style
def as_image(figure: Figure) -> Image.Image:
    """Draw the figure as a PIL image."""
    plain = io.BytesIO()
    figure.savefig(plain, format="png", facecolor="white", dpi=DPI * SIZE.times)
    return Image.open(plain).convert("RGB")


class Shown:
    """A picture (the bytes of a PNG file) and its description, for readers who cannot see it.

    Jupyter shows a PNG without its description. So a person who runs a lesson gets an HTML element.
    Programs that turn committed notebooks into HTML look for the description in the metadata.
    """

    def __init__(self, content: bytes, alt: str):
        self.content, self.alt = content, alt

    def base64(self) -> str:
        return base64.b64encode(self.content).decode()

    def as_html(self) -> str:
        """The picture as an HTML element, in its own size."""
        return f'<img alt="{escape(self.alt)}" src="data:image/png;base64,{self.base64()}">'

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple:
        live = {} if is_headless() else {"text/html": self.as_html()}
        bundle = {"image/png": self.base64(), "text/plain": self.alt, **live}
        return bundle, {"image/png": {"alt": self.alt}}


def show(figure: Figure, alt: str) -> None:
    """Show the figure below the cell. Outside a notebook, print its description instead.

    alt: one sentence that describes the figure, for readers who cannot see it
    """
    if not alt.strip():
        raise ValueError("`alt` is empty. Describe the figure for readers who cannot see it.")
    if in_notebook():
        display(Shown(png(figure), alt))
    else:
        print(alt)


def say(text: str) -> None:
    """Show a text with Markdown and $maths$ below the cell. Outside a notebook, print it."""
    if in_notebook():
        from IPython.display import Markdown

        display(Markdown(text))
    else:
        print(plain_text(text))


def plain_text(text: str, width: int = 79) -> str:
    """Markdown for a terminal: no marks of headings and of bold type, and no long lines.

    Code blocks and tables stay as they are.
    """
    lines, in_code = [], False
    for line in text.split("\n"):
        in_code ^= line.startswith("```")
        if not in_code and not line.startswith(("```", "|", "    ")):
            line = re.sub(BOLD_OR_HEADING, lambda found: found[1] or found[2] or "", line)
            indent = re.match(r"(?:[-*] |\d+\. )?", line)
            hanging = " " * len(indent[0] if indent else "")
            line = textwrap.fill(
                line,
                width,
                subsequent_indent=hanging,
                break_long_words=False,
                break_on_hyphens=False,
            )
        lines.append(line)
    return "\n".join(lines)


def listing(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Show a table below the cell. The entries may be of any type: str() turns them into text.

    columns: the heading of each column
    rows: the entries of each row
    """
    lines = [list(columns), ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    say("\n".join(f"| {' | '.join(line)} |" for line in cells))


def source(thing: Any) -> None:
    """Show the code of a function, class or method, with the name of its file."""
    code = textwrap.dedent(inspect.getsource(thing)).rstrip()
    path = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "")
    package = Path(__file__).parents[2]
    where = path.relative_to(package.parent).as_posix() if path.is_relative_to(package) else ""
    say(f"```python\n# {where or path.name}\n{code}\n```")


def in_notebook() -> bool:
    """Whether this code runs in the kernel of a notebook."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def find_widgets() -> Any:
    """The module ipywidgets. None: it is not installed, or no person is using the notebook."""
    if is_headless() or not in_notebook():
        return None
    try:
        import ipywidgets
    except ImportError:
        return None
    return ipywidgets


def display(thing: object) -> None:
    """Show an object below the cell of a notebook."""
    from IPython.display import display as ipython_display

    ipython_display(thing)
