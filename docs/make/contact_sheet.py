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

from docs.make.notebooks import chosen, read
from minisd.files.whole_files import make_folder, save_picture

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
    """The figures in columns, each below its name. The next one goes into the shortest column."""
    shrunk = [(name, narrowed(picture)) for name, picture in named]
    bottoms = [GAP] * COLUMNS
    places = []
    for _, picture in shrunk:
        column = bottoms.index(min(bottoms))
        places.append((GAP + column * (WIDTH + GAP), bottoms[column]))
        bottoms[column] += LINE + picture.height + GAP
    whole = Image.new("RGB", (GAP + COLUMNS * (WIDTH + GAP), max(bottoms)), "white")
    pen = ImageDraw.Draw(whole)
    for (name, picture), (left, top) in zip(shrunk, places, strict=True):
        pen.text((left, top), name, fill="black")
        whole.paste(picture, (left, top + LINE))
    return whole


def narrowed(picture: Image.Image) -> Image.Image:
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
    for path in chosen(given.names):
        found = figures(read(path))
        if found:
            save_picture(sheet(found), given.folder / f"{path.stem}.png")
            print(f"{path.stem}: {len(found)} figures")


if __name__ == "__main__":
    main()
