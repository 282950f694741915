"""The figures of the lessons. Most functions return a figure. show() then shows this figure.

    plot.show(plot.pictures(images, titles), alt="Four cats, sharper from left to right.")

show(figure, alt)                shows a figure, with a description for readers who cannot see it
say(text)                        shows text
source(thing)                    shows the code of a function or class
listing(columns, rows)           shows a table of words and numbers
slider                           shows a figure with a slider for one setting
projector()                      makes all figures twice as large
pictures                         pictures in rows
table                            a table of pictures, with names for its rows and columns
channels                         the channels of a latent, each as a picture
attention                        the places of a picture that pay attention to each word
lines, bars, scatter             curves, bars, points
heat                             a matrix as colours
embedding_map                    words as points in a plane
vectors                          arrows with their lengths and angles
boxes                            a diagram of boxes and arrows
bricks                           texts cut into pieces
unet                             the U-Net with its modules and shapes
"""

from minisd.teaching.plot.canvas import COLOURS, listing, projector, say, show, source
from minisd.teaching.plot.charts import bars, embedding_map, heat, lines, scatter, vectors
from minisd.teaching.plot.diagram import Box, boxes, bricks, unet
from minisd.teaching.plot.picture_figures import attention, channels, pictures, slider, table

__all__ = ["COLOURS", "Box", "attention", "bars", "boxes", "bricks", "channels", "embedding_map"]
__all__ += [
    "heat",
    "lines",
    "listing",
    "pictures",
    "projector",
    "say",
    "scatter",
    "show",
    "slider",
    "source",
    "table",
]
__all__ += ["unet", "vectors"]
