"""The figures of the lessons. Most functions return a figure, and `show` shows it.

    plot.show(plot.pictures(images, titles), alt="Four cats, sharper from left to right.")

show(figure, alt)                shows a figure, with a description for readers who cannot see it
say(text)                        shows text
source(thing)                    shows the code of a function or class
listing(columns, rows)           shows a table of words and numbers
slider                           shows a figure with a slider for one setting
pictures, table                  pictures in rows; a table of pictures with named rows
channels                         the channels of a latent, each as a map
attention                        the places of the picture at which each word acts
lines, bars, heat                curves, bars, a matrix
embedding_map, vectors           words in a plane; arrows with their lengths and angles
boxes, bricks                    a diagram of boxes; texts cut into pieces
unet                             the U-Net with its modules and shapes
"""

from minisd.teaching.plot.canvas import COLOURS, listing, say, show, source
from minisd.teaching.plot.charts import bars, embedding_map, heat, lines, vectors
from minisd.teaching.plot.diagram import Box, boxes, bricks, unet
from minisd.teaching.plot.picture_figures import attention, channels, pictures, slider, table

__all__ = ["COLOURS", "Box", "attention", "bars", "boxes", "bricks", "channels", "embedding_map"]
__all__ += ["heat", "lines", "listing", "pictures", "say", "show", "slider", "source", "table"]
__all__ += ["unet", "vectors"]
