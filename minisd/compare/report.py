"""The result of a comparison, as plain data, as a table of text, as JSON and as a web page.

The web page is made from report.html, which is a template for jinja2. The web page is readable on a
phone and on a wide screen.
"""

import inspect
import json
from bisect import bisect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.compare.align import Alignment
from minisd.compare.hunt import ROUNDING_ONLY, Comparison, ErrorLimits

SHOWN = 12  # the most names in one list of the text report
WHOLE = "the whole network"  # shown instead of an empty name
TABLE_HEAD = "module", "in the port", "shape", "rms error", "largest", "cosine", "own", "inherited"
ERROR_LEVELS = 1, 30, 1000, 30000, 1000000  # a new colour begins at this multiple of the tolerance
TEMPLATE = Path(__file__).with_suffix(".html")


@dataclass
class Report:
    """The result of a comparison.

    rows: one for each compared output, in running order
    first: the row of the first module that makes an error of its own. None: there is no such module
    cause: the mistake that their module in `first` makes, in words. None: unknown
    left: the difference between the two outputs that remains if our module makes the same mistake
    values: our parameter's name -> largest difference. Only parameters that differ are listed
    only_reference, only_port: the names of parameters that have no partner
    matched: the number of parameters that have a partner
    sources: our module's name -> the file and line of our module, and of their module if known
    nan: the name of the first module of theirs that returns NaN. None: there is no such module
    worst: the values around the largest difference in the output of `first`, from neighbourhood()
    histogram: how many values in the output of `first` differ by how much, from powers_of_ten()
    labels: the names of the reference and of the port in the report
    limits: which errors were accepted
    """

    rows: list[Comparison] = field(default_factory=list)
    first: Comparison | None = None
    cause: str | None = None
    left: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    only_reference: list[str] = field(default_factory=list)
    only_port: list[str] = field(default_factory=list)
    matched: int = 0
    sources: dict[str, list[str]] = field(default_factory=dict)
    nan: str | None = None
    worst: dict = field(default_factory=dict)
    histogram: list[tuple[int, int]] = field(default_factory=list)
    labels: tuple[str, str] = ("reference", "port")
    limits: ErrorLimits = ROUNDING_ONLY

    @property
    def is_equal(self) -> bool:
        return bool(self.rows) and self.first is None and not self.values and self.nan is None

    @property
    def first_divergence(self) -> str | None:
        """The name of the first module or parameter that is wrong. None if nothing is wrong."""
        return self.first.name if self.first else next(iter(self.values), self.nan)

    def is_first(self, row: Comparison) -> bool:
        """Whether a row belongs to the first module that differs."""
        return self.first is not None and self.first == replace(row, name=self.first.name)

    def add(self, part: str, alignment: Alignment, rows: list[Comparison]) -> None:
        """Add the results of one network. `part` is put in front of the names of its modules."""
        self.rows += rows
        self.matched += len(alignment.parameters)
        self.values |= {join_names(part, name): gap for name, gap in alignment.other_values.items()}
        self.only_reference += [join_names(part, name) for name in alignment.only_ours]
        self.only_port += [join_names(part, name) for name in alignment.only_theirs]

    def verdict(self) -> list[str]:
        """The results as sentences. The most important result comes first."""
        _, port = self.labels
        lines = [f"{self.nan} is the first module of {port} that returns NaN."] if self.nan else []
        for name, gap in [*self.values.items()][:3]:
            lines.append(f"{name} has other values in {port}. The largest difference is {gap:.1e}.")
        row = self.first
        if row is None:
            same = "no module differs" if self.rows else "no module could be compared"
            return [*lines, f"{len(self.rows)} outputs compared: {same}."]
        error = f"error is {row.error:.1e}" if row.own is None else f"own error is {row.own:.1e}"
        name, theirs = row.name or WHOLE, row.theirs or WHOLE
        lines.append(f"The first module that differs is {name} ({theirs} in {port}).")
        lines.append(f"Its {error}, relative to the spread of its output.")
        if self.cause:
            lines.append(f"Likely cause: {port} computes {self.cause}.")
            lines.append(f"If minisd does the same, the outputs differ by only {self.left:.0e}.")
        else:
            lines.append("No known mistake explains the error. Compare the code of both modules.")
        return lines + [f"  {place}" for place in self.sources.get(row.name, ())]

    def table(self) -> str:
        """The table as text. It has one line for each output, in running order."""
        lines: list[tuple[str, ...]] = [(*TABLE_HEAD, "")]
        for row in self.rows:
            mark = "<- first" if self.is_first(row) else "differs" if row.differs else ""
            lines.append((*row_texts(row), mark))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        form = "  ".join(f"{{:<{width}}}" for width in widths)
        return "\n".join(form.format(*line).rstrip() for line in lines)

    def list_unaligned(self) -> list[str]:
        """One sentence for each side that has parameters without a partner."""
        lines = []
        for label, names in zip(self.labels, (self.only_reference, self.only_port), strict=True):
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            sentence = f"These parameters are only in {label}: {', '.join(names[:SHOWN])}{more}."
            lines += [sentence] if names else []
        return lines

    def __str__(self) -> str:
        return "\n".join([self.table(), "", *self.verdict(), *self.list_unaligned()])

    def to_json(self) -> str:
        """The whole report as JSON, for other programs."""
        summary = {"equal": self.is_equal, "first_divergence": self.first_divergence}
        text = json.dumps(asdict(self) | summary)
        # standard JSON knows neither NaN nor Infinity: they become null
        return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1)

    def to_html(self) -> str:
        """The whole report as one self-contained HTML page."""
        from jinja2 import Template  # only here, because only a page needs it

        page = Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
        return page.render(report=self, head=TABLE_HEAD, texts=row_texts, level=error_level)


def join_names(part: str, name: str) -> str:
    return ".".join(filter(None, (part, name)))


def row_texts(row: Comparison) -> tuple[str, ...]:
    """The texts of one row, in the order of TABLE_HEAD.

    If the row is not about the first call of the module, its number follows the module's name.
    """
    label = f"{row.name} #{row.number}" if row.number else row.name or WHOLE
    numbers = [f"{row.error:.1e}", f"{row.largest:.1e}", f"{row.cosine:.6f}"]
    parts = ["?" if x is None else f"{x:.1e}" for x in (row.own, row.inherited_error)]
    return (label, row.theirs or WHOLE, " ".join(map(str, row.shape)), *numbers, *parts)


def error_level(row: Comparison) -> int:
    """The level of an error: 0 for errors within the tolerance, 5 for huge errors and for NaN."""
    return bisect(ERROR_LEVELS, row.error / row.tolerance)


def place_of(modules: Mapping[str, nn.Module], name: str) -> str | None:
    """The file and the line where a module computes its output. None if there is no source file.

    modules: name -> module

    If the module is one of torch's own, such as nn.Linear, the text describes this module. It then
    states the file and the line of the module that contains it.
    """
    module = modules[name]
    while name and type(modules[name]).__module__.startswith("torch."):
        name = name.rpartition(".")[0]
    inside = "" if modules[name] is module or [*module.children()] else f"{module} in "
    with suppress(AttributeError):  # a function that is not written in Python
        code = inspect.unwrap(type(modules[name]).forward).__code__
        return f"{inside}{type(modules[name]).__name__}, {code.co_filename}:{code.co_firstlineno}"


def neighbourhood(theirs: Tensor, ours: Tensor) -> dict:
    """The 3 x 5 values around the largest difference, in our tensor and in theirs.

    Returns a dictionary: "place" -> the index of the largest difference in the tensor, "centre" ->
    its row and its column among the 3 x 5 values, "ours" and "theirs" -> the 3 x 5 values.
    """
    ours, theirs = (each.float().reshape(-1, *(1, *each.shape)[-2:]) for each in (ours, theirs))
    gap = (ours - theirs).abs().nan_to_num(float("inf"))
    plane, row, column = (int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
    top, left = max(row - 1, 0), max(column - 2, 0)
    window = (plane, slice(top, row + 2), slice(left, column + 3))
    values = {"ours": ours[window].tolist(), "theirs": theirs[window].tolist()}
    return {"place": [plane, row, column], "centre": [row - top, column - left]} | values


def powers_of_ten(theirs: Tensor, ours: Tensor) -> list[tuple[int, int]]:
    """Count how many values differ by about 1e-9, how many by about 1e-8, and so on.

    Returns pairs: power of ten, count.
    """
    gap = (theirs.double() - ours.double()).abs().nan_to_num(0).clamp(1e-12, 1e12)
    powers = gap.log10().round().long()
    return [(n, int((powers == n).sum())) for n in range(int(powers.min()), int(powers.max()) + 1)]
