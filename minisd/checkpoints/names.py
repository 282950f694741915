"""A table of names: what minisd, the original single files and diffusers call the same tensor.

The functions of this file build the table from a config. Each row of the table belongs to one
module. minisd uses the table for two purposes:

- To read and write official files: the table shows the name of every tensor in the file.
- To compare minisd with a reference program: if a row names a module of minisd and a module of the
  program, these two modules must have the same output.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor

from minisd.config import ModelConfig, TextConfig, UNetConfig, VAEConfig

# In a single file, the name of each tensor begins with the prefix of its part. The text transformer
# has Hugging Face's names in v1, and open_clip's names in v2. In a diffusers folder, the names have
# no prefixes, because each part has a subfolder.
PREFIXES_V1 = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
PREFIXES_V2 = {**PREFIXES_V1, "text_encoder": "cond_stage_model.model."}

LEAVES = ("weight", "bias", "")  # "": the row names a parameter, and not a module


@dataclass(frozen=True)
class Row:
    """The three names of one module, and the rows of the modules inside this module.

    An inner row holds only the last piece of a name. For example, the row "norm" inside the row
    "mid.attn" stands for "mid.attn.norm".
    """

    ours: str
    original: str
    diffusers: str
    rows: tuple["Row", ...] = ()
    convolution: tuple[str, ...] = ()  # layouts that store this Linear as a 1x1 convolution
    third: int | None = None  # 0, 1, 2: q, k, v. The original stores all three in one matrix

    def all_rows(self) -> Iterator["Row"]:
        """Yield this row, then all rows inside it. Every yielded row has full names."""
        yield replace(self, rows=())
        for row in self.rows:
            full = replace(
                row,
                ours=f"{self.ours}.{row.ours}",
                original=f"{self.original}.{row.original}",
                diffusers=f"{self.diffusers}.{row.diffusers}",
            )
            yield from full.all_rows()

    def key(self, layout: str, leaf: str) -> str:
        """The name of one parameter of the module, such as "mid.attn.norm.weight".

        layout: "ours", "original" or "diffusers"
        leaf: the end of the name, one of LEAVES
        """
        name = getattr(self, layout)
        if layout == "original" and self.third is not None:
            return f"{name}_{leaf}"  # torch.nn.MultiheadAttention's in_proj_weight, in_proj_bias
        return f"{name}.{leaf}" if leaf else name


def model_rows(config: ModelConfig) -> dict[str, list[Row]]:
    """Build the table of a whole model. Returns a dictionary: part -> rows of the part.

    The rows have full names, but without the prefix of the part.
    """
    text = text_v2_rows(config.text) if is_v2(config) else text_v1_rows(config.text)
    parts = {"unet": unet_rows(config.unet), "vae": vae_rows(config.vae), "text_encoder": text}
    return {part: flat_rows(rows) for part, rows in parts.items()}


def prefixes(config: ModelConfig) -> dict[str, str]:
    """A dictionary: part -> the prefix of the part in a single file of this model."""
    return PREFIXES_V2 if is_v2(config) else PREFIXES_V1


def is_v2(config: ModelConfig) -> bool:
    """Whether single files of this model have SD v2's layout.

    In SD v2's layout, the text transformer has open_clip's names. config.open_clip_text states
    whether it has these names. If config.open_clip_text is None, the U-Net shows the layout: in
    published files, proj_in and proj_out are linear layers in v2, and 1x1 convolutions in v1.
    """
    linear = config.unet.linear_projection
    return linear if config.open_clip_text is None else config.open_clip_text


def flat_rows(rows: list[Row]) -> list[Row]:
    """List the rows and all rows inside them. Every row in the list has full names."""
    return [full for row in rows for full in row.all_rows()]


# ---- translating parameters -----------------------------------------------------------------


def from_official(state: Mapping[str, Tensor], rows: list[Row], layout: str) -> dict[str, Tensor]:
    """Translate official names and shapes to ours. The returned tensors share memory with `state`.

    state: official name -> tensor. If a name is not in the table, the tensor is left out
    layout: the layout of the official names, "original" or "diffusers"

    To see which official names and shapes a network needs, call `to_official` with the network's
    state dict. This state dict may be on the meta device.
    """
    ours = {}
    for row in rows:
        for leaf in LEAVES:
            official = row.key(layout, leaf)
            if official not in state:
                continue
            tensor = state[official]
            if layout == "original" and row.third is not None:
                tensor = tensor.chunk(3)[row.third]
            if layout in row.convolution and leaf == "weight":
                tensor = rearrange(tensor, "c_out c_in 1 1 -> c_out c_in")
            ours[row.key("ours", leaf)] = tensor
    return ours


def to_official(state: Mapping[str, Tensor], rows: list[Row], layout: str) -> dict[str, Tensor]:
    """Translate our names and shapes to official ones. `from_official` translates them back."""
    official = {}
    for row in rows:
        for leaf in LEAVES:
            ours = row.key("ours", leaf)
            if ours not in state:
                continue
            tensor = state[ours]
            if layout in row.convolution and leaf == "weight":
                tensor = rearrange(tensor, "c_out c_in -> c_out c_in 1 1")
            key = row.key(layout, leaf)
            if layout == "original" and row.third:
                tensor = torch.cat([official[key], tensor])  # q, k, v come in this order
            official[key] = tensor
    return official


# diffusers before 0.15 used the names on the left in the attention of the VAE. (transformers 5
# leaves out "text_model." in the names of the text transformer. usual_name() adds it again.)
OLD_VAE_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# When diffusers writes an original single file, the attention of the VAE keeps the names on the
# left. The original names are on the right.
ORIGINAL_VAE_NAMES = {
    **{"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out", "group_norm": "norm"},
}


def usual_name(key: str, part: str) -> str:
    """Replace an unusual name of a tensor by the name in our table. Other names do not change.

    key: the tensor's name in a diffusers folder or in a VAE file
    part: "unet", "vae" or "text_encoder"

    >>> usual_name("decoder.mid_block.attentions.0.proj_attn.bias", "vae")
    'decoder.mid_block.attentions.0.to_out.0.bias'
    >>> usual_name("decoder.mid.attn_1.to_out.0.bias", "vae")
    'decoder.mid.attn_1.proj_out.bias'
    >>> usual_name("final_layer_norm.bias", "text_encoder")
    'text_model.final_layer_norm.bias'
    """
    if part == "vae" and ".attentions." in key:
        return ".".join(OLD_VAE_NAMES.get(name, name) for name in key.split("."))
    if part == "vae" and ".attn_1." in key:
        start, _, inside = key.partition(".attn_1.")
        name, _, leaf = inside.rpartition(".")
        return f"{start}.attn_1.{ORIGINAL_VAE_NAMES.get(name, name)}.{leaf}"
    if part == "text_encoder" and key.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
        return f"text_model.{key}"
    return key


def usual_single_file_name(key: str) -> str:
    """Replace an unusual name, as usual_name() does. Other names do not change.

    key: the name of a tensor in an original single file, with the prefix of its part
    """
    for part in ("vae", "text_encoder"):
        prefix = PREFIXES_V1[part]
        if key.startswith(prefix):
            return prefix + usual_name(key.removeprefix(prefix), part)
    return key


# ---- U-Net ----------------------------------------------------------------------------------

SHORTCUT = Row("shortcut", "skip_connection", "conv_shortcut")
RES_BLOCK = (
    Row("norm1", "in_layers.0", "norm1"),
    Row("conv1", "in_layers.2", "conv1"),
    Row("time", "emb_layers.1", "time_emb_proj"),
    Row("norm2", "out_layers.0", "norm2"),
    Row("conv2", "out_layers.3", "conv2"),
)
ATTENTION = (
    *[Row(name, name, name) for name in ("to_q", "to_k", "to_v")],
    Row("to_out", "to_out.0", "to_out.0"),
)
GEGLU_ROWS = (Row("widen", "net.0.proj", "net.0.proj"), Row("narrow", "net.2", "net.2"))
CONV = (Row("conv", "conv", "conv"),)


def transformer(config: UNetConfig) -> tuple[Row, ...]:
    """The rows of the modules inside a SpatialTransformer.

    For these modules, the original code and diffusers use the same names.
    """
    stored = () if config.linear_projection else ("original", "diffusers")
    inside = {
        "norm_self": ("norm1", ()),
        "self_attention": ("attn1", ATTENTION),
        "norm_cross": ("norm2", ()),
        "cross": ("attn2", ATTENTION),
        "norm_ff": ("norm3", ()),
        "ff": ("ff", GEGLU_ROWS),
    }
    block = [
        Row(ours, f"transformer_blocks.0.{theirs}", f"transformer_blocks.0.{theirs}", rows)
        for ours, (theirs, rows) in inside.items()
    ]
    proj_in = Row("proj_in", "proj_in", "proj_in", convolution=stored)
    proj_out = Row("proj_out", "proj_out", "proj_out", convolution=stored)
    return (Row("norm", "norm", "norm"), proj_in, *block, proj_out)


def unet_rows(config: UNetConfig) -> list[Row]:
    """The rows of the U-Net.

    The original code has one list, input_blocks, for the first half of the U-Net (the encoder). The
    first convolution is input_blocks.0. The blocks of the levels follow: input_blocks.1 and so on.
    """
    time = (Row("linear1", "0", "linear_1"), Row("linear2", "2", "linear_2"))
    return [
        Row("time", "time_embed", "time_embedding", time),
        Row("conv_in", "input_blocks.0.0", "conv_in"),
        *unet_down(config),
        Row("mid.res.0", "middle_block.0", "mid_block.resnets.0", RES_BLOCK),
        Row("mid.attn", "middle_block.1", "mid_block.attentions.0", transformer(config)),
        Row("mid.res.1", "middle_block.2", "mid_block.resnets.1", RES_BLOCK),
        Row("mid", "middle_block", "mid_block"),
        *unet_up(config),
        Row("norm_out", "out.0", "conv_norm_out"),
        Row("conv_out", "out.2", "conv_out"),
    ]


def unet_down(config: UNetConfig) -> list[Row]:
    rows = []
    n = 1
    widths = [config.channels[0], *config.channels]
    for i, (c_in, c_out) in enumerate(pairwise(widths)):
        down = Row(f"down.{i}", f"input_blocks.{n}", f"down_blocks.{i}")
        for j in range(config.res_blocks):
            down = replace(down, original=f"input_blocks.{n}")
            rows.append(res_block_rows(down, j, shortcut=j == 0 and c_in != c_out))
            if config.attention[i]:
                rows.append(attn_block(down, j, config))
            n += 1
        if i < len(config.channels) - 1:
            down = replace(down, original=f"input_blocks.{n}")
            official = (f"{down.original}.0.op", f"{down.diffusers}.downsamplers.0.conv")
            rows.append(Row(f"{down.ours}.downsample", *official))
            n += 1
        rows.append(down)  # the output of a level is the output of its last block
    return rows


def unet_up(config: UNetConfig) -> list[Row]:
    rows = []
    n = 0
    for i, attends in enumerate(reversed(config.attention)):
        up = Row(f"up.{i}", f"output_blocks.{n}", f"up_blocks.{i}")
        for j in range(config.res_blocks + 1):
            up = replace(up, original=f"output_blocks.{n}")
            rows.append(res_block_rows(up, j, shortcut=True))  # input: x and a skip connection
            if attends:
                rows.append(attn_block(up, j, config))
            n += 1
        if i < len(config.channels) - 1:
            place = 2 if attends else 1  # in the original, the last block holds the upsampling
            official = (f"{up.original}.{place}", f"{up.diffusers}.upsamplers.0")
            rows.append(Row(f"{up.ours}.upsample", *official, CONV))
        rows.append(up)
    return rows


def res_block_rows(level: Row, j: int, shortcut: bool) -> Row:
    rows = (*RES_BLOCK, SHORTCUT) if shortcut else RES_BLOCK
    official = (f"{level.original}.0", f"{level.diffusers}.resnets.{j}")
    return Row(f"{level.ours}.res.{j}", *official, rows)


def attn_block(level: Row, j: int, config: UNetConfig) -> Row:
    official = (f"{level.original}.1", f"{level.diffusers}.attentions.{j}")
    return Row(f"{level.ours}.attn.{j}", *official, transformer(config))


# ---- VAE ------------------------------------------------------------------------------------

VAE_RES_BLOCK = tuple(Row(name, name, name) for name in ("norm1", "conv1", "norm2", "conv2"))
VAE_SHORTCUT = Row("shortcut", "nin_shortcut", "conv_shortcut")
VAE_ATTENTION = (
    Row("norm", "norm", "group_norm"),
    *[Row(f"to_{name}", name, f"to_{name}", convolution=("original",)) for name in "qkv"],
    Row("to_out", "proj_out", "to_out.0", convolution=("original",)),
)
VAE_MID = (
    Row("res.0", "block_1", "resnets.0", VAE_RES_BLOCK),
    Row("attn", "attn_1", "attentions.0", VAE_ATTENTION),
    Row("res.1", "block_2", "resnets.1", VAE_RES_BLOCK),
)


def vae_rows(config: VAEConfig) -> list[Row]:
    """The rows of the VAE. In the original code, the last level of the decoder has the number 0."""
    channels, last = config.channels, len(config.channels) - 1
    down, up = [], []
    for i, c_in in enumerate([channels[0], *channels[:-1]]):
        rows = vae_level(c_in, channels[i], config.res_blocks)
        if i < last:
            rows.append(Row("resize", "downsample", "downsamplers.0", CONV))
        official = (f"encoder.down.{i}", f"encoder.down_blocks.{i}")
        down.append(Row(f"encoder.down.{i}", *official, tuple(rows)))
    for i, c_in in enumerate([channels[-1], *channels[:0:-1]]):
        rows = vae_level(c_in, channels[last - i], config.res_blocks + 1)
        if i < last:
            rows.append(Row("resize", "upsample", "upsamplers.0", CONV))
        official = (f"decoder.up.{last - i}", f"decoder.up_blocks.{i}")
        up.append(Row(f"decoder.up.{i}", *official, tuple(rows)))
    return [
        Row("encoder.conv_in", "encoder.conv_in", "encoder.conv_in"),
        *down,
        Row("encoder.mid", "encoder.mid", "encoder.mid_block", VAE_MID),
        Row("encoder.norm_out", "encoder.norm_out", "encoder.conv_norm_out"),
        Row("encoder.conv_out", "encoder.conv_out", "encoder.conv_out"),
        Row("encoder.quant", "quant_conv", "quant_conv"),
        Row("decoder.post_quant", "post_quant_conv", "post_quant_conv"),
        Row("decoder.conv_in", "decoder.conv_in", "decoder.conv_in"),
        Row("decoder.mid", "decoder.mid", "decoder.mid_block", VAE_MID),
        *up,
        Row("decoder.norm_out", "decoder.norm_out", "decoder.conv_norm_out"),
        Row("decoder.conv_out", "decoder.conv_out", "decoder.conv_out"),
    ]


def vae_level(c_in: int, c_out: int, blocks: int) -> list[Row]:
    rows = [Row(f"res.{j}", f"block.{j}", f"resnets.{j}", VAE_RES_BLOCK) for j in range(blocks)]
    if c_in != c_out:
        rows[0] = replace(rows[0], rows=(*VAE_RES_BLOCK, VAE_SHORTCUT))
    return rows


# ---- text -----------------------------------------------------------------------------------

TEXT_LAYER = (
    Row("norm1", "ln_1", "layer_norm1"),
    Row("attn.to_q", "attn.in_proj", "self_attn.q_proj", third=0),
    Row("attn.to_k", "attn.in_proj", "self_attn.k_proj", third=1),
    Row("attn.to_v", "attn.in_proj", "self_attn.v_proj", third=2),
    Row("attn.to_out", "attn.out_proj", "self_attn.out_proj"),
    Row("attn", "attn", "self_attn"),
    Row("norm2", "ln_2", "layer_norm2"),
    Row("widen", "mlp.c_fc", "mlp.fc1"),
    Row("narrow", "mlp.c_proj", "mlp.fc2"),
)


def text_v2_rows(config: TextConfig) -> list[Row]:
    """The text transformer's rows for SD v2.

    In these rows, `original` is a name in open_clip, and `diffusers` is a name in Hugging Face's
    transformers.
    """
    embeddings = "text_model.embeddings"
    position = f"{embeddings}.position_embedding.weight"
    layers = [
        Row(f"layers.{i}", f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}")
        for i in range(config.layers)
    ]
    return [
        Row("token_embedding", "token_embedding", f"{embeddings}.token_embedding"),
        Row("position_embedding", "positional_embedding", position),  # the parameter itself
        *[replace(layer, rows=TEXT_LAYER) for layer in layers],
        Row("norm_out", "ln_final", "text_model.final_layer_norm"),
    ]


def text_v1_rows(config: TextConfig) -> list[Row]:
    """The text transformer's rows for SD v1.

    In these rows, `original` equals `diffusers`, because single files of SD v1 use Hugging Face's
    names. These files store q, k and v as three matrices.
    """
    return [with_hugging_face_names(row) for row in text_v2_rows(config)]


def with_hugging_face_names(row: Row) -> Row:
    inside = tuple(with_hugging_face_names(part) for part in row.rows)
    return replace(row, original=row.diffusers, rows=inside, third=None)
