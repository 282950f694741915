"""Pictures in a grid on one sheet: for the figures of the lessons, and for sheets to save."""

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

    columns: how many pictures a row has; None: all of them in one row
    gap: free pixels at the right of every picture and below it
    above, below: more free pixels above and below every picture, for words
    returns: the sheet, and the left and top of each picture on it in pixels
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
