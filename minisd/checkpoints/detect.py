"""The sizes of the model in a file, told from names and shapes alone."""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from minisd.checkpoints.kinds import MODEL as MODEL
from minisd.checkpoints.kinds import kind as kind
from minisd.checkpoints.names import PREFIXES_V1, PREFIXES_V2
from minisd.config import OPENCLIP_H, ModelConfig, TextConfig, UNetConfig, VAEConfig

ABSENT = {
    "vae": "the autoencoder that turns latents into pictures: give one with vae=FILE or --vae FILE"
}
NORM_GROUPS = 32  # in every v1 and v2 network; no tensor shows it
HEAD_WIDTH = 64  # of v2's U-Net and of both text transformers

# Text layers by width, where they are known: v1's, then v2's without or with the one not used.
TEXT_LAYERS = {
    TextConfig.width: (TextConfig.layers,),
    OPENCLIP_H.width: (OPENCLIP_H.layers, OPENCLIP_H.layers + 1),
}


def config_from_tensors(tensors: Mapping[str, Tensor], name: str) -> ModelConfig:
    """The sizes of an original single file. What no tensor tells is as in the published models.

    Raises ValueError where a tensor that must tell a size is absent or has too few axes.
    """
    v2 = has(tensors, PREFIXES_V2["text_encoder"])
    if v2 and has(tensors, PREFIXES_V1["text_encoder"]):
        both = " and ".join(each["text_encoder"] for each in (PREFIXES_V1, PREFIXES_V2))
        raise ValueError(f"holds two text transformers, {both}: delete the one that is not meant")
    prefixes = PREFIXES_V2 if v2 else PREFIXES_V1
    for part, prefix in prefixes.items():
        if not has(tensors, prefix):
            raise ValueError(f"holds no {part} ({ABSENT.get(part, 'nothing under ' + prefix)})")
    text = text_v2 if v2 else text_v1
    config = ModelConfig(
        name=name,
        text=text(tensors, prefixes["text_encoder"]),
        unet=unet(tensors, prefixes["unet"]),
        vae=vae(tensors, prefixes["vae"]),
    )
    return with_text_layout(config, open_clip=v2)


def with_text_layout(config: ModelConfig, open_clip: bool) -> ModelConfig:
    """open_clip: whether the text transformer is one of open_clip's, as SD v2's is."""
    usual = open_clip == config.unet.linear_projection
    return replace(config, open_clip_text=None if usual else open_clip)


def has(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)


def shape(tensors: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in tensors:
        raise ValueError(f"lacks {key}: get a whole copy of the model")
    return tuple(tensors[key].shape)


def axis(tensors: Mapping[str, Tensor], key: str, index: int) -> int:
    """How long one axis of a tensor is."""
    lengths = shape(tensors, key)
    if index >= len(lengths):
        raise ValueError(f"holds {key} in the impossible shape {lengths}")
    return lengths[index]


def count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules are numbered under a prefix: one more than the highest number.

    >>> count({"up.0.weight": None, "up.2.weight": None}, "up.")
    3
    """
    return 1 + max(numbers(tensors, prefix), default=-1)


def numbers(tensors: Mapping[str, Tensor], prefix: str) -> set[int]:
    """The numbers of the modules under a prefix."""
    numbered = re.compile(re.escape(prefix) + r"(\d+)\.")
    matches = [numbered.match(key) for key in tensors]
    return {int(match[1]) for match in matches if match}


def unet(tensors: Mapping[str, Tensor], prefix: str) -> UNetConfig:
    levels = unet_levels(tensors, prefix)
    channels = tuple(axis(tensors, f"{level[0]}.0.out_layers.3.weight", 0) for level in levels)
    attention = tuple(any(has(tensors, f"{block}.1.") for block in level) for level in levels)
    transformer = f"{prefix}middle_block.1."
    linear = len(shape(tensors, f"{transformer}proj_in.weight")) == 2
    divisor = HEAD_WIDTH if linear else NORM_GROUPS
    if any(width % divisor for width in channels):
        raise ValueError(f"has U-Net levels {channels} wide, but SD's are multiples of {divisor}")
    return UNetConfig(
        in_channels=axis(tensors, f"{prefix}input_blocks.0.0.weight", 1),
        out_channels=axis(tensors, f"{prefix}out.2.weight", 0),
        channels=channels,
        attention=attention,
        res_blocks=len(levels[0]),
        context_dim=axis(tensors, f"{transformer}transformer_blocks.0.attn2.to_k.weight", 1),
        head_width=HEAD_WIDTH if linear else None,
        linear_projection=linear,
    )


def unet_levels(tensors: Mapping[str, Tensor], prefix: str) -> list[list[str]]:
    """The input blocks, level by level; a convolution called "op" ends each level but the last."""
    levels = [[]]
    for n in range(1, count(tensors, f"{prefix}input_blocks.")):
        block = f"{prefix}input_blocks.{n}"
        if has(tensors, f"{block}.0.op."):
            levels.append([])
        else:
            levels[-1].append(block)
    if not all(levels):
        raise ValueError(f"lacks tensors of {prefix}input_blocks: get a whole copy of the model")
    return levels


def vae(tensors: Mapping[str, Tensor], prefix: str, layout: str = "original") -> VAEConfig:
    """layout: "original" or "diffusers", of the names within."""
    level, block = {"original": ("down", "block"), "diffusers": ("down_blocks", "resnets")}[layout]
    if not has(tensors, f"{prefix}encoder."):  # as programs that never encode a picture save it
        raise ValueError(
            "holds a VAE's decoder without its encoder: give a whole autoencoder with vae=FILE or "
            "--vae FILE"
        )
    down = f"{prefix}encoder.{level}."
    levels = range(count(tensors, down))
    return VAEConfig(
        channels=tuple(axis(tensors, f"{down}{i}.{block}.0.conv2.weight", 0) for i in levels),
        latent_channels=axis(tensors, f"{prefix}decoder.conv_in.weight", 1),
        res_blocks=count(tensors, f"{down}0.{block}."),
    )


def text_v1(tensors: Mapping[str, Tensor], prefix: str) -> TextConfig:
    embeddings = f"{prefix}text_model.embeddings."
    vocabulary = f"{embeddings}token_embedding.weight"
    width = axis(tensors, vocabulary, 1)
    return TextConfig(
        vocab_size=axis(tensors, vocabulary, 0),
        width=width,
        layers=text_layers(tensors, f"{prefix}text_model.encoder.layers.", width),
        heads=heads(width),
        max_length=axis(tensors, f"{embeddings}position_embedding.weight", 0),
        mlp_width=mlp_width(tensors, f"{prefix}text_model.encoder.layers.0.mlp.fc1.weight", width),
    )


def text_v2(tensors: Mapping[str, Tensor], prefix: str) -> TextConfig:
    """SD v2 reads what comes out of the last layer but one. Some files leave that last layer out.

    At another width than the published one, a file that keeps what only the whole tower needs
    (text_projection) is taken to keep that layer as well.
    """
    width = axis(tensors, f"{prefix}token_embedding.weight", 1)
    layers = text_layers(tensors, f"{prefix}transformer.resblocks.", width)
    projected = f"{prefix}text_projection" in tensors and width != OPENCLIP_H.width
    whole = layers > 1 and (projected or layers == OPENCLIP_H.layers + 1)
    return replace(
        OPENCLIP_H,
        vocab_size=axis(tensors, f"{prefix}token_embedding.weight", 0),
        width=width,
        layers=layers - 1 if whole else layers,
        heads=heads(width),
        max_length=axis(tensors, f"{prefix}positional_embedding", 0),
        mlp_width=mlp_width(tensors, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", width),
    )


def text_layers(tensors: Mapping[str, Tensor], prefix: str, width: int) -> int:
    """How many text layers there are. Raises ValueError if some are surely lost."""
    found = numbers(tensors, prefix)
    layers = len(found)
    known = TEXT_LAYERS.get(width, (max(layers, 1),))
    if layers not in known or found != set(range(layers)):
        wanted = " or ".join(str(number) for number in known)
        raise ValueError(
            f"holds {layers} text layers ({prefix}…) where {wanted}, numbered from 0 without gaps, "
            "are needed: get another copy"
        )
    return layers


def mlp_width(tensors: Mapping[str, Tensor], key: str, width: int) -> int | None:
    """The text MLP's width, None where it is the usual one. A missing tensor is named later."""
    found = axis(tensors, key, 0) if key in tensors else 4 * width
    return None if found == 4 * width else found


def heads(width: int) -> int:
    if width % HEAD_WIDTH:
        raise ValueError(f"has a text transformer {width} wide, no multiple of {HEAD_WIDTH}")
    return width // HEAD_WIDTH
