"""Put all figures of the lessons on sheets, 480 pixels wide as students see them, to check them.

python -m docs.make.contact_sheet runs/sheets          # one sheet for each lesson
python -m docs.make.contact_sheet runs/sheets 03 07    # only these
"""

import argparse
import base64
import io
from pathlib import Path

from nbformat import NotebookNode
from PIL import Image, ImageDraw

from docs.make.notebooks import read, select_paths
from minisd.files.whole_files import make_folder, save_picture
from minisd.teaching.picture_grid import paste_grid

WIDTH, GAP, LINE = 480, 16, 18  # px: width of a figure, gap between figures, height of a name
COLUMNS = 3


def figures(notebook: NotebookNode) -> list[tuple[str, Image.Image]]:
    """Every picture that a cell shows, in order, with the number and the first tag of the cell."""
    found = []
    for number, cell in enumerate(notebook.cells):
        tag = (cell.metadata.get("tags") or ["untagged"])[0]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                content = base64.b64decode(output.data["image/png"])
                found.append((f"{number} {tag}", Image.open(io.BytesIO(content)).convert("RGB")))
    return found


def sheet(named: list[tuple[str, Image.Image]]) -> Image.Image:
    """The figures in columns, each below its name."""
    narrow = [limit_width(picture) for _, picture in named]
    whole, places = paste_grid(narrow, COLUMNS, GAP, above=LINE)
    pen = ImageDraw.Draw(whole)
    for (name, _), (left, top) in zip(named, places, strict=True):
        pen.text((left, top - LINE), name, fill="black")
    return whole


def limit_width(picture: Image.Image) -> Image.Image:
    """The picture, at most WIDTH pixels wide, as a page shows it."""
    if picture.width <= WIDTH:
        return picture
    size = (WIDTH, round(picture.height * WIDTH / picture.width))
    return picture.resize(size, Image.Resampling.LANCZOS)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.make.contact_sheet")
    parser.add_argument("folder", type=Path, help="where to put the sheets")
    parser.add_argument("names", nargs="*", help="such as 03; none means all")
    given = parser.parse_args(arguments)
    make_folder(given.folder)
    for path in select_paths(given.names):
        found = figures(read(path))
        if found:
            save_picture(sheet(found), given.folder / f"{path.stem}.png")
            print(f"{path.stem}: {len(found)} figures")


if __name__ == "__main__":
    main()
