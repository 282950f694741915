"""The primer's puzzle 1: an index removes an axis."""

from minisd.exercises.exercise import Exercise, Stage, normal


def red_channel(image):
    """The red channel of every picture.

    image: b 3 h w    returns: b h w
    """
    return image[:, 0]


EXERCISE = Exercise(
    name="red_channel",
    lesson="0b",
    place=1,
    title="The red channel",
    question=(
        "Write `red_channel(image)`. image is a batch of pictures. The channels are red, green and "
        "blue, in this order. Return the red channel of every picture, without an axis for the "
        "channels."
    ),
    solution=red_channel,
    stages=(Stage("two pictures", 1, lambda g: [normal(g, 2, 3, 4, 5)]),),
    hints=(
        "The axes are: picture, channel, line, column. You need one place of the second axis.",
        "image[0] takes place 0 of the first axis. A colon stands for all places of an axis.",
        "image[:, 0] takes place 0 of the second axis. It removes this axis.",
    ),
    mistakes={
        "You kept the channel axis: index it with 0, not with 0:1.": lambda image: image[:, 0:1],
        "This is the first picture of the batch. The channels are the second axis.": (
            lambda image: image[0]
        ),
        "This is the green channel. Counting starts at 0, so red is 0.": lambda image: image[:, 1],
        "This is the blue channel. The order is red, green, blue.": lambda image: image[:, 2],
        "This is the top line of every channel. The channels are the second axis.": (
            lambda image: image[:, :, 0]
        ),
        "This is the left column of every channel. The channels are the second axis.": (
            lambda image: image[..., 0]
        ),
        "This is the mean of the three channels, a grey picture. Take the first channel only.": (
            lambda image: image.mean(dim=1)
        ),
        "This is the red channel of the first picture only. Take all pictures of the batch.": (
            lambda image: image[0, 0]
        ),
    },
    passing="An index removes its axis. `image[:, 0:1]` would keep this axis, with length 1.",
    difficulty=1,
    minutes=3,
)
