"""The names of the depth estimator's tensors: in MiDaS files, in transformers' DPT, and here."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minisd.checkpoints.contents import refuse_misfits
from minisd.checkpoints.kinds import refuse_other_kinds

INSIDE = "depth_model.model."  # of an official depth checkpoint

# What the published files hold and no depth depends on: what classifies, what the coarsest level of
# the pyramid would do with a finer map.
NOT_NEEDED = re.compile(
    r"pretrained\.model\.(norm|head)\..*|scratch\.refinenet4\.resConfUnit1\..*"
    r"|dpt\.layernorm\..*|dpt\.pooler\..*|neck\.fusion_stage\.layers\.0\.residual_layer1\..*"
)


def to_ours(tensors: Mapping[str, Tensor], network: nn.Module, name: str) -> dict[str, Tensor]:
    """A file's tensors under our names. name: what to call the file in an error

    Raises ValueError, in one sentence, unless they are exactly what the network needs.
    """
    if any(key.startswith(INSIDE) for key in tensors):
        tensors = {
            key.removeprefix(INSIDE): t for key, t in tensors.items() if key.startswith(INSIDE)
        }
    else:
        refuse_other_kinds(name, tensors, "depth estimator")
    tensors = {key: t for key, t in tensors.items() if not NOT_NEEDED.fullmatch(key)}
    needed = network.state_dict()
    translate = from_transformers if any(key.startswith("dpt.") for key in tensors) else from_midas
    if not any(key.startswith(("dpt.", "pretrained.")) for key in tensors):
        raise ValueError(f"{name} holds no depth estimator: give a depth model, or a DPT-hybrid.")
    ours = translate(tensors)
    unknown = [key for key in ours if key not in needed]
    refuse_misfits(name, ours, needed, unknown, "It is no DPT-hybrid: get another file.")
    return ours


def renamed(tensors: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Each name after the first rule, a pattern and what takes its place, that fits it whole."""
    found = {}
    for key, tensor in tensors.items():
        for pattern, replacement in rules:
            if re.fullmatch(pattern, key):
                key = re.sub(pattern, replacement, key)
                break
        found[key] = tensor
    return found


VIT = r"pretrained\.model\."
BLOCK = VIT + r"patch_embed\.backbone\.stages\.(\d)\.blocks\.(\d)\."
MIDAS = [
    (VIT + r"cls_token", "class_token"),
    (VIT + r"pos_embed", "position_embedding"),
    (VIT + r"patch_embed\.proj\.(.*)", r"patch.\1"),
    (VIT + r"patch_embed\.backbone\.stem\.conv\.(.*)", r"resnet.stem.\1"),
    (VIT + r"patch_embed\.backbone\.stem\.norm\.(.*)", r"resnet.norm.\1"),
    (BLOCK + r"downsample\.conv\.(.*)", r"resnet.stages.\1.\2.shortcut.\3"),
    (BLOCK + r"downsample\.norm\.(.*)", r"resnet.stages.\1.\2.norm_shortcut.\3"),
    (BLOCK + r"(.*)", r"resnet.stages.\1.\2.\3"),
    (VIT + r"blocks\.(\d+)\.(norm[12])\.(.*)", r"layers.\1.\2.\3"),
    (VIT + r"blocks\.(\d+)\.attn\.qkv\.(.*)", r"layers.\1.to_qkv.\2"),
    (VIT + r"blocks\.(\d+)\.attn\.proj\.(.*)", r"layers.\1.to_out.\2"),
    (VIT + r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"layers.\1.widen.\2"),
    (VIT + r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"layers.\1.narrow.\2"),
    (r"pretrained\.act_postprocess3\.0\.project\.0\.(.*)", r"readout.0.project.\1"),
    (r"pretrained\.act_postprocess4\.0\.project\.0\.(.*)", r"readout.1.project.\1"),
    (r"pretrained\.act_postprocess3\.3\.(.*)", r"readout.0.conv.\1"),
    (r"pretrained\.act_postprocess4\.3\.(.*)", r"readout.1.conv.\1"),
    (r"pretrained\.act_postprocess4\.4\.(.*)", r"shrink.\1"),
    (r"scratch\.output_conv\.0\.(.*)", r"head1.\1"),
    (r"scratch\.output_conv\.2\.(.*)", r"head2.\1"),
    (r"scratch\.output_conv\.4\.(.*)", r"head3.\1"),
]


def from_midas(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's names, which count the pyramid's levels from 1."""
    levels = []
    for i in range(4):
        levels += [
            (rf"scratch\.layer{i + 1}_rn\.(.*)", rf"narrow.{i}.\1"),
            (rf"scratch\.refinenet{i + 1}\.out_conv\.(.*)", rf"fusion.{i}.conv_out.\1"),
            (rf"scratch\.refinenet{i + 1}\.resConfUnit1\.(.*)", rf"fusion.{i}.finer.\1"),
            (rf"scratch\.refinenet{i + 1}\.resConfUnit2\.(.*)", rf"fusion.{i}.unit.\1"),
        ]
    return renamed(tensors, [*MIDAS, *levels])


BIT = r"dpt\.embeddings\.backbone\.bit\."
LAYER = BIT + r"encoder\.stages\.(\d)\.layers\.(\d)\."
TRANSFORMERS = [
    (r"dpt\.embeddings\.cls_token", "class_token"),
    (r"dpt\.embeddings\.position_embeddings", "position_embedding"),
    (r"dpt\.embeddings\.projection\.(.*)", r"patch.\1"),
    (BIT + r"embedder\.convolution\.(.*)", r"resnet.stem.\1"),
    (BIT + r"embedder\.norm\.(.*)", r"resnet.norm.\1"),
    (LAYER + r"downsample\.conv\.(.*)", r"resnet.stages.\1.\2.shortcut.\3"),
    (LAYER + r"downsample\.norm\.(.*)", r"resnet.stages.\1.\2.norm_shortcut.\3"),
    (LAYER + r"(.*)", r"resnet.stages.\1.\2.\3"),
    (r"dpt\.encoder\.layer\.(\d+)\.layernorm_before\.(.*)", r"layers.\1.norm1.\2"),
    (r"dpt\.encoder\.layer\.(\d+)\.layernorm_after\.(.*)", r"layers.\1.norm2.\2"),
    (r"dpt\.encoder\.layer\.(\d+)\.attention\.attention\.qkv\.(.*)", r"layers.\1.to_qkv.\2"),
    (r"dpt\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(.*)", r"layers.\1.to_out.\2"),
    (r"dpt\.encoder\.layer\.(\d+)\.intermediate\.dense\.(.*)", r"layers.\1.widen.\2"),
    (r"dpt\.encoder\.layer\.(\d+)\.output\.dense\.(.*)", r"layers.\1.narrow.\2"),
    (r"neck\.reassemble_stage\.readout_projects\.2\.0\.(.*)", r"readout.0.project.\1"),
    (r"neck\.reassemble_stage\.readout_projects\.3\.0\.(.*)", r"readout.1.project.\1"),
    (r"neck\.reassemble_stage\.layers\.2\.projection\.(.*)", r"readout.0.conv.\1"),
    (r"neck\.reassemble_stage\.layers\.3\.projection\.(.*)", r"readout.1.conv.\1"),
    (r"neck\.reassemble_stage\.layers\.3\.resize\.(.*)", r"shrink.\1"),
    (r"neck\.convs\.(\d)\.(.*)", r"narrow.\1.\2"),
    (r"head\.head\.0\.(.*)", r"head1.\1"),
    (r"head\.head\.2\.(.*)", r"head2.\1"),
    (r"head\.head\.4\.(.*)", r"head3.\1"),
]


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names, which keep q, k and v apart and count the pyramid from its top."""
    joined = dict(tensors)
    for key in tensors:
        if ".attention.attention.query." in key:
            three = [key.replace(".query.", f".{one}.") for one in ("query", "key", "value")]
            if all(one in joined for one in three):
                matrix = torch.cat([joined.pop(one) for one in three])
                joined[key.replace(".query.", ".qkv.")] = matrix
    levels = []
    for i in range(4):
        stage = rf"neck\.fusion_stage\.layers\.{3 - i}\."
        levels += [
            (rf"{stage}projection\.(.*)", rf"fusion.{i}.conv_out.\1"),
            (rf"{stage}residual_layer1\.convolution([12])\.(.*)", rf"fusion.{i}.finer.conv\1.\2"),
            (rf"{stage}residual_layer2\.convolution([12])\.(.*)", rf"fusion.{i}.unit.conv\1.\2"),
        ]
    return renamed(joined, [*TRANSFORMERS, *levels])
