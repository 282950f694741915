"""The names of DPT-hybrid's tensors in minisd, in MiDaS files and in transformers' DPT files.

This table of names has a `Row` for each module, like the tables in checkpoints/names.py. The
"original" name in a row is the name in MiDaS files. The "diffusers" name in a row is the name in
transformers' files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minisd.checkpoints.cover import check_cover
from minisd.checkpoints.file_kinds import refuse_other_kinds
from minisd.checkpoints.names import LEAVES, Row, flat_rows
from minisd.checkpoints.read import rename_tensors

if TYPE_CHECKING:
    from minisd.depth.dpt import DepthConfig, DepthEstimator

INSIDE_DEPTH_MODEL = "depth_model.model."  # before the estimator's keys in an official depth model
# These tensors of the published files do not change the depth. Some belong to a classifier. The
# others are in the coarsest level of the pyramid. They would read a finer map, but this level has
# none.
UNUSED_DPT_KEYS = (
    *("pretrained.model.norm.", "pretrained.model.head.", "scratch.refinenet4.resConfUnit1."),
    *("dpt.layernorm.", "dpt.pooler.", "neck.fusion_stage.layers.0.residual_layer1."),
)

BOTTLENECK = (
    *[Row(each, each, each) for i in (1, 2, 3) for each in (f"conv{i}", f"norm{i}")],
    Row("shortcut", "downsample.conv", "downsample.conv"),
    Row("norm_shortcut", "downsample.norm", "downsample.norm"),
)
DPT_LAYER = (
    Row("norm1", "norm1", "layernorm_before"),
    Row("norm2", "norm2", "layernorm_after"),
    Row("to_qkv", "attn.qkv", "attention.attention.qkv"),
    Row("to_out", "attn.proj", "attention.output.dense"),
    Row("widen", "mlp.fc1", "intermediate.dense"),
    Row("narrow", "mlp.fc2", "output.dense"),
)
RESIDUAL_UNIT = tuple(Row(f"conv{i}", f"conv{i}", f"convolution{i}") for i in (1, 2))
FUSION = (
    Row("finer", "resConfUnit1", "residual_layer1", RESIDUAL_UNIT),
    Row("unit", "resConfUnit2", "residual_layer2", RESIDUAL_UNIT),
    Row("conv_out", "out_conv", "projection"),
)


def dpt_rows(config: DepthConfig) -> list[Row]:
    """The table of names for a whole estimator: one row for each module."""
    model, embeddings = "pretrained.model", "dpt.embeddings"
    layers = [
        Row(f"layers.{i}", f"{model}.blocks.{i}", f"dpt.encoder.layer.{i}", DPT_LAYER)
        for i in range(config.layers)
    ]
    return flat_rows(
        [
            Row("class_token", f"{model}.cls_token", f"{embeddings}.cls_token"),
            Row("position_embedding", f"{model}.pos_embed", f"{embeddings}.position_embeddings"),
            Row("patch", f"{model}.patch_embed.proj", f"{embeddings}.projection"),
            *resnet_rows(config),
            *layers,
            *pyramid_rows(),
            *[
                Row(f"head{i + 1}", f"scratch.output_conv.{2 * i}", f"head.head.{2 * i}")
                for i in range(3)
            ],
        ]
    )


def resnet_rows(config: DepthConfig) -> Iterator[Row]:
    midas, bit = "pretrained.model.patch_embed.backbone", "dpt.embeddings.backbone.bit"
    yield Row("resnet.stem", f"{midas}.stem.conv", f"{bit}.embedder.convolution")
    yield Row("resnet.norm", f"{midas}.stem.norm", f"{bit}.embedder.norm")
    for i, count in enumerate(config.blocks):
        for j in range(count):
            official = f"{midas}.stages.{i}.blocks.{j}", f"{bit}.encoder.stages.{i}.layers.{j}"
            yield Row(f"resnet.stages.{i}.{j}", *official, BOTTLENECK)


def pyramid_rows() -> Iterator[Row]:
    """The rows of the table for the pyramid.

    minisd and MiDaS number the levels from the finest to the coarsest. transformers numbers the
    fusion levels from the coarsest to the finest.
    """
    stage = "neck.reassemble_stage"
    for i in range(2):
        midas = f"pretrained.act_postprocess{i + 3}"
        official = f"{midas}.project.0", f"{stage}.readout_projects.{i + 2}.0"
        yield Row(f"readout.{i}.project", *official)
        yield Row(f"readout.{i}.conv", f"{midas}.3", f"{stage}.layers.{i + 2}.projection")
    yield Row("shrink", "pretrained.act_postprocess4.4", f"{stage}.layers.3.resize")
    for i in range(4):
        yield Row(f"narrow.{i}", f"scratch.layer{i + 1}_rn", f"neck.convs.{i}")
        official = f"scratch.refinenet{i + 1}", f"neck.fusion_stage.layers.{3 - i}"
        yield Row(f"fusion.{i}", *official, FUSION)


def to_ours(tensors: Mapping[str, Tensor], network: DepthEstimator, name: str) -> dict[str, Tensor]:
    """Rename the tensors of a file. Returns a dictionary: minisd's name -> tensor.

    name: the file's name, for error messages

    Raises ValueError if a tensor of the network is missing in the file, or if the file has an
    unknown tensor.
    """
    own = {
        key.removeprefix(INSIDE_DEPTH_MODEL): tensor
        for key, tensor in tensors.items()
        if key.startswith(INSIDE_DEPTH_MODEL)
    }
    if not own:
        refuse_other_kinds(name, tensors, "depth estimator")
    tensors = with_joined_attention(own or tensors)
    if not any(key.startswith(("dpt.", "pretrained.")) for key in tensors):
        raise ValueError(f"{name} holds no depth estimator. Give a depth model or DPT-hybrid.")
    used = [item for item in tensors.items() if not item[0].startswith(UNUSED_DPT_KEYS)]
    our_names = {
        row.key(layout, leaf): row.key("ours", leaf)
        for row in dpt_rows(network.config)
        for layout in ("original", "diffusers")
        for leaf in LEAVES
    }
    try:
        ours = rename_tensors(used, lambda key: our_names.get(key, key))
    except ValueError as error:
        raise ValueError(f"{name} {error}.") from error
    needed = network.state_dict()
    unknown = [key for key in ours if key not in needed]
    check_cover(name, ours, needed, unknown, "It is not DPT-hybrid. Get another file.")
    return ours


def with_joined_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the three matrices of q, k and v in transformers' files into one matrix, as in MiDaS."""
    joined = dict(tensors)
    for key in tensors:
        three = [key.replace(".query.", f".{one}.") for one in ("query", "key", "value")]
        if ".attention.attention.query." in key and all(one in joined for one in three):
            matrix = torch.cat([joined.pop(one) for one in three])
            joined[key.replace(".query.", ".qkv.")] = matrix
    return joined
