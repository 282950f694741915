"""How many numbers a picture has, and how many its latent."""

from minisd.exercises.exercise import Exercise, Stage


def compression(height, width):
    """The numbers of a picture, the numbers of its latent, and their ratio.

    height, width: of the picture, in pixels    returns: a tuple of three numbers
    """
    picture = 3 * height * width
    latent = 4 * (height // 8) * (width // 8)
    return picture, latent, picture / latent


def with_latent(count):
    """The answer for another number of numbers in the latent."""

    def answer(height, width):
        latent = count(height, width)
        return 3 * height * width, latent, 3 * height * width / latent

    return answer


def upside_down(height, width):
    picture, latent, ratio = compression(height, width)
    return picture, latent, 1 / ratio


def latent_first(height, width):
    picture, latent, ratio = compression(height, width)
    return latent, picture, ratio


def without_colours(height, width):
    latent = 4 * (height // 8) * (width // 8)
    return height * width, latent, height * width / latent


EXERCISE = Exercise(
    name="compression",
    lesson="00",
    place=1,
    title="A picture and its latent, counted",
    question=(
        "A picture has 3 channels: red, green and blue. Its latent has 4 channels, and it is 8 "
        "times smaller in height and 8 times smaller in width. Write `compression(height, width)` "
        "for a picture of this height and width. Return three numbers: how many numbers the "
        "picture has, how many the latent has, and how many times fewer the latent has."
    ),
    solution=compression,
    stages=(
        Stage("a picture of the mini, 64 x 64", 1, lambda g: [64, 64]),
        Stage("a wide picture, 512 x 768", 1, lambda g: [512, 768]),
    ),
    hints=(
        "The picture is a block of numbers: channels times height times width.",
        "The latent has height // 8 lines and width // 8 columns, in 4 channels.",
        "Return a tuple: picture, latent, picture / latent.",
    ),
    mistakes={
        "Divide both height and width by 8. You divided only one of them.": (
            with_latent(lambda height, width: 4 * height * width // 8)
        ),
        "The latent has 4 channels, not 3.": (
            with_latent(lambda height, width: 3 * (height // 8) * (width // 8))
        ),
        "You counted only the places of the latent. Each place has 4 numbers.": (
            with_latent(lambda height, width: (height // 8) * (width // 8))
        ),
        "Each side is 8 times smaller, not 64 times.": (
            with_latent(lambda height, width: 4 * (height // 64) * (width // 64))
        ),
        "The last number is upside down. Divide the larger count by the smaller one.": upside_down,
        "Return the count of the picture first, then the count of the latent.": latent_first,
        "You counted only the pixels of the picture. Each pixel has 3 numbers.": without_colours,
        "The ratio compares places. Compare how many numbers there are.": (
            lambda height, width: (*compression(height, width)[:2], 64)
        ),
    },
    passing=(
        "The loop works on 48 times fewer numbers than the picture has. This saves memory and "
        "work. Lesson 03 counts the work."
    ),
    difficulty=1,
    minutes=5,
    in_lesson=True,
)
