"""How many channels each skip connection has."""

from minisd.config import SD15, UNetConfig
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, as_namespace


def skip_channels(config):
    """The number of channels of each skip connection, in the order in which they are made.

    config: has channels (one number for each resolution) and res_blocks    returns: a list
    """
    widths = [config.channels[0]]
    for level, channels in enumerate(config.channels):
        widths += [channels] * config.res_blocks
        if level < len(config.channels) - 1:
            widths += [channels]
    return widths


def without_input(config):
    return skip_channels(config)[1:]


def without_downsampling(config):
    blocks = [channels for channels in config.channels for _ in range(config.res_blocks)]
    return [config.channels[0], *blocks]


def downsamples_at_the_end(config):
    return [*skip_channels(config), config.channels[-1]]


def downsampling_widens(config):
    widths, last = [config.channels[0]], len(config.channels) - 1
    for level, channels in enumerate(config.channels):
        widths += [channels] * config.res_blocks
        widths += [config.channels[level + 1]] if level < last else []
    return widths


def one_block_too_many(config):
    widths, last = [config.channels[0]], len(config.channels) - 1
    for level, channels in enumerate(config.channels):
        widths += [channels] * (config.res_blocks + 1 + (level < last))
    return widths


def in_the_order_of_use(config):
    return skip_channels(config)[::-1]


def draw_inputs(**settings):
    return lambda g: [as_namespace(UNetConfig(**settings))]


EXERCISE = Exercise(
    name="skip_channels",
    lesson="08",
    place=6,
    title="The list of skip connections",
    question=(
        "To build the decoder, we must know how many channels each skip connection has. The "
        "encoder makes a skip connection (a skip) after conv_in (with channels[0] channels), "
        "after each of the `config.res_blocks` blocks of a resolution, and after each change of "
        "size. The change of size is the last layer of a resolution and keeps its channels; the "
        "last resolution has none. Write `skip_channels(config)`, which returns the channels of "
        "all skips in this order."
    ),
    solution=skip_channels,
    stages=(
        Stage("one resolution", 1, draw_inputs(channels=(5,), res_blocks=1)),
        Stage("three resolutions", 1, draw_inputs(channels=(5, 7, 9), res_blocks=2)),
        Stage("Stable Diffusion", 1, lambda g: [as_namespace(SD15.unet)]),
    ),
    hints=(
        "Begin the list with conv_in's skip. Then go through config.channels.",
        "A resolution adds res_blocks entries, and one more if it is not the last resolution.",
        "for level, channels in enumerate(config.channels): add [channels] * config.res_blocks, "
        "and [channels] once more if level < len(config.channels) - 1.",
    ),
    mistakes={
        "The skip of conv_in is missing.": without_input,
        "The skips after the changes of size are missing.": without_downsampling,
        "The last resolution has no change of size, so it makes no skip there.": (
            downsamples_at_the_end
        ),
        "A change of size should keep the channels. The next resolution's first block changes "
        "them.": (downsampling_widens),
        "The encoder has res_blocks blocks at each resolution. Only the decoder has one more.": (
            one_block_too_many
        ),
        "This is the order in which the decoder reads them. Return the order of the encoder.": (
            in_the_order_of_use
        ),
    },
    passing="The U-Net builds its decoder from this list. It reads the list from the end.",
    difficulty=2,
    minutes=10,
    replaces={"minisd.unet.skip_channels": lambda answer: answer},
    draw=draw_cat,
)
