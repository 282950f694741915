"""OpenCLIP stores q, k and v in one matrix."""

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def split_qkv(state):
    """The tensors of one attention, under our names.

    state: a dictionary with in_proj_weight (3c c), in_proj_bias (3c), out_proj.weight (c c) and
        out_proj.bias (c)
    returns: a dictionary with the weight and the bias of to_q, to_k, to_v and to_out
    """
    ours = {}
    for leaf in ("weight", "bias"):
        q, k, v = state[f"in_proj_{leaf}"].chunk(3)
        ours |= {f"to_q.{leaf}": q, f"to_k.{leaf}": k, f"to_v.{leaf}": v}
        ours[f"to_out.{leaf}"] = state[f"out_proj.{leaf}"]
    return ours


def rename(state, parts):
    """Our names for three parts of each tensor. parts: tensor -> the tensors of q, k and v."""
    ours = {f"to_out.{leaf}": state[f"out_proj.{leaf}"] for leaf in ("weight", "bias")}
    for leaf in ("weight", "bias"):
        three = zip("qkv", parts(state[f"in_proj_{leaf}"]), strict=True)
        ours |= {f"to_{letter}.{leaf}": part for letter, part in three}
    return ours


def every_third(state):
    return rename(state, lambda one: [one[start::3] for start in range(3)])


def keys_first(state):
    return rename(state, lambda one: [one.chunk(3)[i] for i in (1, 0, 2)])


def values_first(state):
    return rename(state, lambda one: [one.chunk(3)[i] for i in (2, 0, 1)])


def backwards(state):
    return rename(state, lambda one: one.chunk(3)[::-1])


def transpose(state):
    return rename(state, lambda one: [part.T if part.ndim == 2 else part for part in one.chunk(3)])


def transpose_out(state):
    ours = split_qkv(state)
    return ours | {"to_out.weight": ours["to_out.weight"].T}


def along_columns(state):
    return rename(state, lambda one: one.chunk(3, dim=-1))


def first_part_only(state):
    return rename(state, lambda one: [one.chunk(3)[0]] * 3)


def without_bias(state):
    return {name: one for name, one in split_qkv(state).items() if name.endswith("weight")}


def without_out(state):
    return {name: one for name, one in split_qkv(state).items() if "out" not in name}


def keep_old_names(state):
    return {**state, **split_qkv(state)}


def old_out_name(state):
    ours = split_qkv(state)
    return {name.replace("to_out", "out_proj"): one for name, one in ours.items()}


def inputs(c):
    def draw(g):
        return [
            {
                "in_proj_weight": normal(g, 3 * c, c),
                "in_proj_bias": normal(g, 3 * c),
                "out_proj.weight": normal(g, c, c),
                "out_proj.bias": normal(g, c),
            }
        ]

    return draw


def split_to_draw(state):
    """What the picture calls. check() puts the answer here."""
    return split_qkv(state)


def draw_from_fused(sd):
    """A cat. The text transformer's attention was stored as in OpenCLIP, and read again."""
    for layer in sd.text_encoder.layers:
        attn, fused = layer.attn, {}
        for leaf in ("weight", "bias"):
            parts = [getattr(one, leaf) for one in (attn.to_q, attn.to_k, attn.to_v)]
            fused[f"in_proj_{leaf}"] = torch.cat(parts)
            fused[f"out_proj.{leaf}"] = getattr(attn.to_out, leaf)
        attn.load_state_dict(split_to_draw(fused))
    return draw_cat(sd)


EXERCISE = Exercise(
    name="split_qkv",
    lesson="17",
    place=1,
    title="Three matrices in one",
    question=(
        "OpenCLIP, the text transformer of v2, stores the projections of q, k and v in one matrix, "
        "in_proj_weight. It has 3 c rows, for tokens of c numbers. The first c rows belong to q, "
        "the next c rows to k, and the last c rows to v. in_proj_bias is stored in the same way. "
        "out_proj is the projection after attention, and gets the new name to_out. Write "
        "`split_qkv(state)`. It returns a dictionary with eight tensors: .weight and .bias of "
        "to_q, to_k, to_v and to_out. No other names should be in it."
    ),
    solution=split_qkv,
    stages=(
        Stage("2 channels", 1, inputs(2)),
        Stage("6 channels", 2, inputs(6)),
    ),
    hints=(
        "A linear layer from c to d channels has a weight d c: rows are outputs.",
        "tensor.chunk(3) cuts the first axis into three equal parts. It works for the weight and "
        "for the bias.",
        'q, k, v = state["in_proj_weight"].chunk(3), and the same for "in_proj_bias". Then put '
        "all eight tensors into a new dictionary.",
    ),
    mistakes={
        "You took every third row. The first c rows belong to q.": every_third,
        "q and k are swapped. The first c rows belong to q.": keys_first,
        "You took the order v, q, k. It is q, k, v.": values_first,
        "You took the order v, k, q. It is q, k, v.": backwards,
        "You transposed the weights of q, k and v. Take the rows as they are.": transpose,
        "You transposed the weight of to_out. Take it as it is.": transpose_out,
        "You cut the columns. Cut the rows, the first axis.": along_columns,
        "All three got the first c rows. Each has its own.": first_part_only,
        "The biases are missing. in_proj_bias has three parts, too.": without_bias,
        "to_out is missing. It is out_proj under another name.": without_out,
        "The old names are still in the result. Return the new names only.": keep_old_names,
        "out_proj still has its old name. Call it to_out.": old_out_name,
    },
    passing=(
        "minisd has one attention class for both versions. Only the code that reads the files "
        "differs."
    ),
    difficulty=1,
    minutes=10,
    in_picture={"minisd.exercises.specs.split_qkv.split_to_draw": lambda answer: answer},
    draw=draw_from_fused,
    in_lesson=True,
)
