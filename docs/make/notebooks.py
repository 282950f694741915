"""Run the lessons and write them in one normal form, so that git shows only real changes.

    python -m docs.make.notebooks          # all of notebooks/, each in a fresh kernel
    python -m docs.make.notebooks 03 07    # only these

The normal form: every cell run once, from the top, in a fresh kernel; execution counts 1, 2, 3 …;
neighbouring prints in one stream; no state of widgets, no metadata but the tags; ids that are
computed from the cell's own text; LF and one newline at the end.
"""

import argparse
import copy
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from minisd import config
from minisd.files.whole_files import write_text

FOLDER = config.NOTEBOOKS
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SHOWN = ("text/markdown", "text/html", "text/latex", "image/png", "image/svg+xml", "text/plain")
WIDGET = "application/vnd.jupyter.widget-view+json"

# What differs between two runs, or between two machines
BLEMISHES = {
    "an address in memory": r"\b0x[0-9a-f]{6,}",
    "a path of one machine": r"(?<![\w.:/])/(?:home|Users|root|tmp|work|usr|opt|var|mnt)/\w",
    "a path of one Windows machine": r"\b[A-Z]:\\",
    "a time": r"\b\d+(?:\.\d+)? ?(?:ms|µs|seconds?|sec)\b",
    "a figure without words": r"<Figure size",
}
LONG_FLOAT = r"(?<![\w.])\d+\.\d{5,}"  # printed floats have four decimals


def execute(notebook: NotebookNode, timeout: int = 600) -> NotebookNode:
    """The same notebook, run from the top in a fresh kernel that shows no widgets.

    timeout: seconds per cell
    Raises nbclient's CellExecutionError, with the cell and the traceback, if a cell fails.
    """
    fresh = copy.deepcopy(notebook)
    where = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(fresh, timeout=timeout, kernel_name="python3", resources=where)
    environment = os.environ | {"MINISD_HEADLESS": "1", "PYTHONHASHSEED": "0"}
    with TemporaryDirectory() as mine:  # check() writes a student's points
        return client.execute(env=environment | {"MINISD_MINE": mine})


def normalize(notebook: NotebookNode) -> NotebookNode:
    """The same notebook in the normal form (see above). It is not run."""
    cells, seen, count = [], {}, 0
    for cell in notebook.cells:
        tags = list(cell.metadata.get("tags", []))
        source = cell.source.strip("\n")
        name = hashlib.sha256(f"{cell.cell_type}\n{source}".encode()).hexdigest()[:8]
        seen[name] = seen.get(name, 0) + 1
        made = {
            "cell_type": cell.cell_type,
            "id": name if seen[name] == 1 else f"{name}-{seen[name]}",
            "metadata": {"tags": tags} if tags else {},
            "source": source,
        }
        if cell.cell_type == "code":
            count += 1
            made |= {"execution_count": count, "outputs": normalize_outputs(cell.outputs, count)}
        cells.append(made)
    whole = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    made = nbformat.from_dict(whole)
    assert isinstance(made, NotebookNode)
    return made


def normalize_outputs(outputs: list[NotebookNode], count: int) -> list[dict]:
    """Join neighbouring prints. Keep the formats of pictures and tables that all viewers show."""
    made: list[dict] = []
    for output in outputs:
        if output.output_type == "stream":
            last = made[-1] if made else {}
            if last.get("name") == output.name:
                last["text"] += output.text
            else:
                made.append({"output_type": "stream", "name": output.name, "text": output.text})
        elif output.output_type == "error":
            made.append(dict(output))
        elif WIDGET not in output.data:
            kind = output.output_type
            data = {
                mime: join_lines(mime, output.data[mime]) for mime in SHOWN if mime in output.data
            }
            numbered = {"execution_count": count} if kind == "execute_result" else {}
            if "image/png" in data:
                data.pop("text/html", None)  # the same picture, for Jupyter
            alt = {key: output.metadata[key] for key in ("image/png",) if key in output.metadata}
            made.append({"output_type": kind, "data": data, "metadata": alt, **numbered})
    return made


def join_lines(mime: str, content: str) -> str:
    """Remove line ends from base64: some versions write them, others do not."""
    return content.replace("\n", "") if mime == "image/png" else content


def texts(notebook: NotebookNode) -> Iterator[tuple[NotebookNode, str]]:
    """Each cell's printed output, and the words of its pictures and tables, one by one."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield cell, output.text
            elif "data" in output:
                for mime, content in output.data.items():
                    if mime.startswith("text/"):
                        yield cell, content


def blemishes(notebook: NotebookNode) -> list[str]:
    """What is wrong with the notebook, in words. Empty: it is in the normal form."""
    found = []
    if nbformat.writes(normalize(notebook)) != nbformat.writes(notebook):
        found.append("it is not in the normal form: python -m docs.make.notebooks makes it")
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {number} ends in an error or a warning: {str(output)[:200]}")
    for cell, text in texts(notebook):
        line = cell.source.splitlines()[0] if cell.source else ""
        for what, pattern in BLEMISHES.items():
            match = re.search(pattern, text)
            if match:
                found.append(f"{what} in the output of {line!r}: {match[0]!r}")
        if "```" not in text:  # code in an output may contain any number
            for number in set(re.findall(LONG_FLOAT, text)) - constants():
                found.append(f"more than four decimals in the output of {line!r}: {number}")
    return found


def constants() -> set[str]:
    """The numbers that need all their digits: 0.18215, 0.00085 …"""
    parts = [vars(part) for part in vars(config.SD15).values() if dataclasses.is_dataclass(part)]
    return {str(value) for part in parts for value in part.values() if isinstance(value, float)}


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write the notebook, with LF on every system."""
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    write_text(path, text)


def select_paths(names: list[str], folder: Path = FOLDER) -> list[Path]:
    """The notebooks whose names begin with one of `names`, in reading order. No names: all of them.

    Raises ValueError if no notebook begins with a name.
    """
    paths = sorted(folder.glob("*.ipynb"), key=lambda path: path.name.replace("0b_", "00b_"))
    for name in names:
        if not any(path.name.startswith(name) for path in paths):
            raise ValueError(f"No notebook in {folder} begins with {name!r}. Try one such as 03.")
    return [p for p in paths if not names or p.name.startswith(tuple(names))]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.make.notebooks")
    parser.add_argument("names", nargs="*", help="such as 03; none means all")
    for path in select_paths(parser.parse_args(arguments).names):
        print(path.name, flush=True)
        write(normalize(execute(read(path))), path)


if __name__ == "__main__":
    main()
