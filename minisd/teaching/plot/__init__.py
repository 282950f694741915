"""Every figure of the lessons, few and general. Each function returns a figure; `show` shows it.

    plot.show(plot.pictures(images, titles), alt="Four cats, sharper from left to right.")

source(thing)                    the code of the package itself, never typed again
listing(columns, rows)           a table of words and numbers
show(figure, alt)                a figure and, for who cannot see it, its words
pictures, table                  a row or strip, a table of rows (samplers, scales, prompts)
channels                         a latent, channel by channel
attention                        where each word acts, over the picture
slider                           one setting to play with; a few of its values where nobody plays
lines, bars, heat                curves, bars, a matrix
embedding_map, vectors           words on a plane; arrows true to length and angle
boxes, bricks                    a diagram of boxes; texts cut into pieces
unet                             the U-Net from its modules and shapes
"""

from minisd.teaching.plot.canvas import COLOURS, listing, say, show, source
from minisd.teaching.plot.charts import bars, embedding_map, heat, lines, vectors
from minisd.teaching.plot.diagram import Box, boxes, bricks, unet
from minisd.teaching.plot.picture_figures import attention, channels, pictures, slider, table

__all__ = [
    "COLOURS",
    "Box",
    "attention",
    "bars",
    "boxes",
    "bricks",
    "channels",
    "embedding_map",
    "heat",
    "lines",
    "listing",
    "pictures",
    "say",
    "show",
    "slider",
    "source",
    "table",
    "unet",
    "vectors",
]
