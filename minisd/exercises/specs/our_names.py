"""From the original names of the U-Net's encoder to ours."""

import re

from minisd.exercises.exercise import Exercise, Stage, normal

RES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "shortcut",
}


def our_names(state, res_blocks):
    """Tensors of the encoder, under our names and in our shapes.

    state: a dictionary, original name -> tensor. The names begin with input_blocks
    res_blocks: the number of residual blocks at each level
    returns: a dictionary, our name -> tensor
    """
    ours = {}
    for name, tensor in state.items():
        _, number, place, *inner, leaf = name.split(".")
        inside = ".".join(inner)
        level, j = divmod(int(number) - 1, res_blocks + 1)
        if number == "0":
            path = "conv_in"
        elif inside == "op":
            path = f"down.{level}.downsample"
        elif place == "0":
            path = f"down.{level}.res.{j}.{RES[inside]}"
        else:
            path = f"down.{level}.attn.{j}.{inside}"
        if inside in ("proj_in", "proj_out") and leaf == "weight":
            tensor = tensor[:, :, 0, 0]
        ours[f"{path}.{leaf}"] = tensor
    return ours


def renumber(rule):
    """The right names, but with other numbers. rule: N, res_blocks -> level, j."""

    def rename(state, res_blocks):
        ours = {}
        for name, tensor in state.items():
            number = int(name.split(".")[1])
            ((right, tensor),) = our_names({name: tensor}, res_blocks).items()
            level, j = rule(number, res_blocks)
            right = re.sub(r"down\.\d+\.", f"down.{level}.", right)
            ours[re.sub(r"(res|attn)\.\d+\.", rf"\g<1>.{j}.", right)] = tensor
        return ours

    return rename


def without_one(number, res_blocks):
    return divmod(number, res_blocks + 1)


def without_downsample(number, res_blocks):
    return divmod(number - 1, res_blocks)


def not_from_zero(number, res_blocks):
    return (number - 1) // (res_blocks + 1), number - 1


def block_as_level(number, res_blocks):
    return number, 0


def from_one(number, res_blocks):
    level, j = divmod(number - 1, res_blocks + 1)
    return level, j + 1


def levels_from_one(number, res_blocks):
    level, j = divmod(number - 1, res_blocks + 1)
    return level + 1, j


def keep_windows(state, res_blocks):
    ours = our_names(state, res_blocks)
    weights = {
        name: tensor[:, :, None, None]
        for name, tensor in ours.items()
        if ".proj_" in name and tensor.ndim == 2
    }
    return ours | weights


def squeeze_shortcut(state, res_blocks):
    ours = our_names(state, res_blocks)
    return {
        name: tensor[:, :, 0, 0] if tensor.shape[2:] == (1, 1) else tensor
        for name, tensor in ours.items()
    }


def transpose(state, res_blocks):
    ours = our_names(state, res_blocks)
    return {
        name: tensor.T if ".proj_" in name and tensor.ndim == 2 else tensor
        for name, tensor in ours.items()
    }


def replace_in(old, new):
    """The right names, with one text replaced by another."""

    def rename(state, res_blocks):
        ours = our_names(state, res_blocks)
        return {name.replace(old, new): tensor for name, tensor in ours.items()}

    return rename


def without_leaf(state, res_blocks):
    ours = our_names(state, res_blocks)
    return {name.rpartition(".")[0]: tensor for name, tensor in ours.items()}


def draw_state(g, shapes):
    return {name: normal(g, *shape) for name, shape in shapes.items()}


def inputs(res_blocks, *numbers, attends=True):
    """The tensors of some entries of input_blocks."""

    def draw(g):
        shapes = {}
        for number in numbers:
            start = f"input_blocks.{number}"
            if number == 0:
                shapes |= {f"{start}.0.weight": (3, 4, 3, 3), f"{start}.0.bias": (3,)}
            elif number % (res_blocks + 1) == 0:
                shapes |= {f"{start}.0.op.weight": (3, 3, 3, 3), f"{start}.0.op.bias": (3,)}
            else:
                for inside in ("in_layers.0", "out_layers.0"):
                    shapes[f"{start}.0.{inside}.weight"] = (3,)
                for inside in ("in_layers.2", "out_layers.3"):
                    shapes[f"{start}.0.{inside}.bias"] = (3,)
                shapes[f"{start}.0.emb_layers.1.weight"] = (3, 5)
                shapes[f"{start}.0.skip_connection.weight"] = (3, 2, 1, 1)
                if attends:
                    shapes[f"{start}.1.norm.weight"] = (3,)
                    shapes[f"{start}.1.proj_in.weight"] = (3, 3, 1, 1)
                    shapes[f"{start}.1.proj_out.bias"] = (3,)
        return [draw_state(g, shapes), res_blocks]

    return draw


EXERCISE = Exercise(
    name="our_names",
    lesson="17",
    place=2,
    title="Names and shapes of the encoder",
    question=(
        "The original code has one list for the encoder, input_blocks. Entry 0 is conv_in: "
        "input_blocks.0.0.weight becomes conv_in.weight. From number 1 on, each level has "
        "`res_blocks` entries with a residual block, and then one entry that halves the size "
        "(the last level has none). Residual block j of a level (both counted from 0) becomes "
        "down.LEVEL.res.j, from input_blocks.N.0. RES has the names of its layers: "
        "input_blocks.1.0.in_layers.2.weight becomes down.0.res.0.conv1.weight. The transformer "
        "in the same entry, input_blocks.N.1, becomes down.LEVEL.attn.j, and the names inside it "
        "stay: norm, proj_in, proj_out. input_blocks.N.0.op becomes down.LEVEL.downsample. In v1 "
        "files, the weights of proj_in and proj_out are 1x1 convolutions. We use matrices, so "
        "remove the two axes of length 1. All other tensors stay as they are. Write "
        "`our_names(state, res_blocks)`."
    ),
    solution=our_names,
    stages=(
        Stage("conv_in", 1, inputs(2, 0)),
        Stage("the first residual block", 1, inputs(2, 1, attends=False)),
        Stage("the first level, with transformers", 2, inputs(2, 1, 2, 3)),
        Stage("three levels", 2, inputs(2, 0, 1, 2, 3, 4, 5, 6, 7, 8)),
        Stage("another number of blocks", 1, inputs(3, 1, 3, 4, 5, 7, 8, 9)),
    ),
    hints=(
        "Take each name apart: _, number, place, *inner, leaf = name.split('.'). inner is a list, "
        "and it is empty for conv_in.",
        "A level has res_blocks + 1 entries, and conv_in is number 0. So divmod(N - 1, "
        "res_blocks + 1) gives the level and j.",
        'Check in this order: N is 0, then "op", then place 0 (a residual block), then place 1 (a '
        "transformer). tensor[:, :, 0, 0] removes the two axes, only for proj_in and proj_out.",
    ),
    mistakes={
        "You counted from number 0. It is conv_in, so the first level begins at 1: use N - 1.": (
            renumber(without_one)
        ),
        "You counted res_blocks entries for a level. One more halves the size.": (
            renumber(without_downsample)
        ),
        "Your j goes on from level to level. It begins at 0 in each.": renumber(not_from_zero),
        "You took N as the level. Each level has several entries.": renumber(block_as_level),
        "You counted the blocks of a level from 1. Count from 0.": renumber(from_one),
        "You counted the levels from 1. Count from 0.": renumber(levels_from_one),
        "The weights of proj_in and proj_out still have four axes. Remove the last two.": (
            keep_windows
        ),
        "You also removed axes of the shortcut. Only proj_in and proj_out change.": (
            squeeze_shortcut
        ),
        "You transposed the weights of proj_in and proj_out. Only remove two axes.": transpose,
        "You kept op in the name. The path is down.LEVEL.downsample.": replace_in(
            "downsample", "downsample.op"
        ),
        "You gave downsample a number. The path is down.LEVEL.downsample.": replace_in(
            "downsample", "downsample.0"
        ),
        "You named the transformer res. It is attn.": replace_in(".attn.", ".res."),
        "You kept a number after conv_in. The name is conv_in.weight or conv_in.bias.": replace_in(
            "conv_in", "conv_in.0"
        ),
        "Your names lack their end. Keep weight or bias.": without_leaf,
    },
    passing="minisd/checkpoints/names.py makes the table of all names with the same arithmetic.",
    difficulty=3,
    minutes=30,
    given=(
        "RES = {\n" + "".join(f'    "{theirs}": "{ours}",\n' for theirs, ours in RES.items()) + "}"
    ),
)
