"""Paste pictures side by side onto one sheet, for figures in lessons and for picture files."""

from collections.abc import Sequence

from PIL import Image


def paste_grid(
    pictures: Sequence[Image.Image],
    columns: int | None = None,
    gap: int = 0,
    above: int = 0,
    below: int = 0,
) -> tuple[Image.Image, list[tuple[int, int]]]:
    """Paste pictures onto a white sheet, row by row from the left.

    columns: the number of pictures in a row. None: all pictures are in one row
    gap: the width of the empty space to the right of every picture and below it, in pixels
    above, below: the height of additional space above and below every picture for words, in pixels
    returns: the sheet, and the place (x, y) of each picture's upper left corner on the sheet
    """
    columns = columns or len(pictures)
    width = max(picture.width for picture in pictures) + gap
    places, top = [], 0
    for first in range(0, len(pictures), columns):
        row = pictures[first : first + columns]
        places += [(column * width, top + above) for column in range(len(row))]
        top += above + max(picture.height for picture in row) + below + gap
    sheet = Image.new("RGB", (columns * width, top), "white")
    for picture, place in zip(pictures, places, strict=True):
        sheet.paste(picture, place)
    return sheet, places
