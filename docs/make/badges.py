"""Write the badges that open a lesson in Colab or Binder, and the repository's address.

    python -m docs.make.badges

The address stands in one place: under [project.urls] in pyproject.toml, as Repository. After a
change there, run this command. It changes docs/setup.md and the lessons: the badges in the first
cell, and a cell that installs minisd on Colab. No cell is run.
"""

import re
from pathlib import Path
from urllib.parse import quote, urlsplit

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from docs.make.notebooks import normalize, read, select_paths, write
from minisd.files.whole_files import write_text

ROOT = Path(__file__).parents[2]
PROJECT, SETUP = ROOT / "pyproject.toml", ROOT / "docs" / "setup.md"
ADDRESS = re.compile(r'^Repository = "(https?://[^"]+)"$', re.MULTILINE)
CLONE = re.compile(r"git clone (--depth 1 )?(?:<[^>]+>|https?://\S+) minisd")
BADGES = re.compile(r"\n\n\[Open in Colab\].*")
TAG = "install"
INSTALL = """\
# On Colab, this cell installs minisd. Elsewhere, it does nothing.
import importlib.util
import os

if importlib.util.find_spec("minisd") is None:
    os.system("git clone --depth 1 {address} minisd && pip install -q ./minisd")
    importlib.invalidate_caches()"""


def repository(project: str) -> str:
    """The address of the repository. project: the text of pyproject.toml

    Raises ValueError if the address is missing, or if it is not on GitHub, which Colab needs.
    """
    found = ADDRESS.search(project)
    if not found:
        line = '[project.urls] and below it Repository = "https://github.com/OWNER/NAME"'
        raise ValueError(f"pyproject.toml has no address of the repository. Add {line}.")
    parts = urlsplit(found[1].removesuffix(".git").rstrip("/"))
    if parts.netloc != "github.com" or parts.path.count("/") != 2:
        raise ValueError(f"{found[1]} must be https://github.com/OWNER/NAME: Colab opens no other.")
    return parts.geturl()


def badges(address: str, name: str) -> str:
    """The line with the links of one lesson. name: the notebook's file name"""
    owner_and_name = urlsplit(address).path.strip("/")
    colab = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/{name}"
    path = quote(f"notebooks/{name}", safe="")
    binder = f"https://mybinder.org/v2/gh/{owner_and_name}/HEAD?labpath={path}"
    return f"\n\n[Open in Colab]({colab}) · [Open in Binder]({binder})"


def with_badges(notebook: NotebookNode, address: str, name: str) -> NotebookNode:
    """The notebook with its badges, and with the cell that installs minisd on Colab."""
    first, *others = notebook.cells
    first.source = BADGES.sub("", first.source) + badges(address, name)
    install = new_code_cell(INSTALL.format(address=address))
    install.metadata["tags"] = [TAG]
    others = [cell for cell in others if TAG not in cell.metadata.get("tags", [])]
    notebook.cells = [first, install, *others]
    return normalize(notebook)


def with_address(text: str, address: str) -> str:
    """The text with this address in its commands that clone the repository."""
    return CLONE.sub(lambda found: f"git clone {found[1] or ''}{address} minisd", text)


def main() -> None:
    address = repository(PROJECT.read_text(encoding="utf-8"))
    for path in select_paths([]):
        write(with_badges(read(path), address, path.name), path)
    write_text(SETUP, with_address(SETUP.read_text(encoding="utf-8"), address))


if __name__ == "__main__":
    main()
