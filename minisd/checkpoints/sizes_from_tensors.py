"""The sizes of the model in a file, told from names and shapes alone."""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from minisd.checkpoints.names import PREFIXES_V1, PREFIXES_V2
from minisd.config import OPENCLIP_H, ModelConfig, TextConfig, UNetConfig, VAEConfig

NO_VAE = "the autoencoder that turns latents into pictures: give one with vae=FILE or --vae FILE"
NORM_GROUPS = 32  # in every v1 and v2 network; no tensor shows it
MOST_MODULES = 200  # under one prefix; SD has 12
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
    v2 = has_prefix(tensors, PREFIXES_V2["text_encoder"])
    if v2 and has_prefix(tensors, PREFIXES_V1["text_encoder"]):
        both = " and ".join(each["text_encoder"] for each in (PREFIXES_V1, PREFIXES_V2))
        raise ValueError(f"holds two text transformers, {both}: delete the one that is not meant")
    prefixes = PREFIXES_V2 if v2 else PREFIXES_V1
    for part, prefix in prefixes.items():
        if not has_prefix(tensors, prefix):
            raise ValueError(f"holds no {part} ({NO_VAE if part == 'vae' else prefix + '…'})")
    text = (text_v2_sizes if v2 else text_v1_sizes)(tensors, prefixes["text_encoder"])
    others = {
        "unet": unet_sizes(tensors, prefixes["unet"]),
        "vae": vae_sizes(tensors, prefixes["vae"]),
    }
    return with_text_layout(ModelConfig(name=name, text=text, **others), open_clip=v2)


def with_text_layout(config: ModelConfig, open_clip: bool) -> ModelConfig:
    """open_clip: whether the text transformer is one of open_clip's, as SD v2's is."""
    usual = open_clip == config.unet.linear_projection
    return replace(config, open_clip_text=None if usual else open_clip)


def has_prefix(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)


def shape_of(tensors: Mapping[str, Tensor], key: str, axes: int = 1) -> tuple[int, ...]:
    """A tensor's shape. Raises ValueError where it is absent or has fewer axes than it must."""
    if key not in tensors:
        raise ValueError(f"lacks {key}: get a whole copy of the model")
    found = tuple(tensors[key].shape)
    if len(found) < axes:
        raise ValueError(f"holds {key} in the impossible shape {found}: get another copy")
    return found


def count_modules(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules are numbered under a prefix: one more than the highest number.

    >>> count_modules({"up.0.weight": None, "up.2.weight": None}, "up.")
    3
    """
    highest = max(module_numbers(tensors, prefix), default=-1)
    if highest >= MOST_MODULES:
        raise ValueError(
            f"holds {prefix}{highest}, and no such network has so many: get another copy"
        )
    return 1 + highest


def module_numbers(tensors: Mapping[str, Tensor], prefix: str) -> set[int]:
    """The numbers of the modules under a prefix."""
    numbered = re.compile(re.escape(prefix) + r"(\d{1,9})\.")
    return {int(match[1]) for match in map(numbered.match, tensors) if match}


def unet_sizes(tensors: Mapping[str, Tensor], prefix: str) -> UNetConfig:
    levels = unet_levels(tensors, prefix)
    channels = tuple(shape_of(tensors, f"{level[0]}.0.out_layers.3.weight")[0] for level in levels)
    transformer = f"{prefix}middle_block.1."
    linear = len(shape_of(tensors, f"{transformer}proj_in.weight")) == 2
    divisor = HEAD_WIDTH if linear else NORM_GROUPS
    if any(width % divisor for width in channels):
        raise ValueError(f"has U-Net levels {channels} wide, but SD's are multiples of {divisor}")
    context = f"{transformer}transformer_blocks.0.attn2.to_k.weight"
    return UNetConfig(
        in_channels=shape_of(tensors, f"{prefix}input_blocks.0.0.weight", 2)[1],
        out_channels=shape_of(tensors, f"{prefix}out.2.weight")[0],
        channels=channels,
        attention=tuple(
            any(has_prefix(tensors, f"{block}.1.") for block in level) for level in levels
        ),
        res_blocks=len(levels[0]),
        context_dim=shape_of(tensors, context, 2)[1],
        head_width=HEAD_WIDTH if linear else None,
        linear_projection=linear,
    )


def unet_levels(tensors: Mapping[str, Tensor], prefix: str) -> list[list[str]]:
    """The input blocks, level by level; a convolution called "op" ends each level but the last."""
    levels = [[]]
    for n in range(1, count_modules(tensors, f"{prefix}input_blocks.")):
        block = f"{prefix}input_blocks.{n}"
        if has_prefix(tensors, f"{block}.0.op."):
            levels.append([])
        else:
            levels[-1].append(block)
    if not all(levels):
        raise ValueError(f"lacks tensors of {prefix}input_blocks: get a whole copy of the model")
    return levels


def vae_sizes(tensors: Mapping[str, Tensor], prefix: str, layout: str = "original") -> VAEConfig:
    """layout: "original" or "diffusers", of the names within."""
    level, block = ("down", "block") if layout == "original" else ("down_blocks", "resnets")
    if not has_prefix(
        tensors, f"{prefix}encoder."
    ):  # as programs that never encode a picture save it
        half = "holds a VAE's decoder without its encoder"
        raise ValueError(f"{half}: give a whole autoencoder with vae=FILE or --vae FILE")
    down = f"{prefix}encoder.{level}."
    levels = range(count_modules(tensors, down))
    return VAEConfig(
        channels=tuple(shape_of(tensors, f"{down}{i}.{block}.0.conv2.weight")[0] for i in levels),
        latent_channels=shape_of(tensors, f"{prefix}decoder.conv_in.weight", 2)[1],
        res_blocks=count_modules(tensors, f"{down}0.{block}."),
    )


def text_v1_sizes(tensors: Mapping[str, Tensor], prefix: str) -> TextConfig:
    vectors, layers = f"{prefix}text_model.embeddings.", f"{prefix}text_model.encoder.layers."
    words, positions = (f"{vectors}{name}_embedding.weight" for name in ("token", "position"))
    return text_sizes(tensors, TextConfig(), words, positions, layers, "mlp.fc1")


def text_v2_sizes(tensors: Mapping[str, Tensor], prefix: str) -> TextConfig:
    """SD v2 reads what comes out of the last layer but one. Some files leave that last layer out.

    At another width than the published one, a file that keeps what only the whole tower needs
    (text_projection) is taken to keep that layer as well.
    """
    words, layers = f"{prefix}token_embedding.weight", f"{prefix}transformer.resblocks."
    positions = f"{prefix}positional_embedding"
    found = text_sizes(tensors, OPENCLIP_H, words, positions, layers, "mlp.c_fc")
    layers, projected = found.layers, f"{prefix}text_projection" in tensors
    projected = projected and found.width != OPENCLIP_H.width
    whole = layers > 1 and (projected or layers == OPENCLIP_H.layers + 1)
    return replace(found, layers=layers - 1) if whole else found


def text_sizes(tensors: Mapping[str, Tensor], usual: TextConfig, *names: str) -> TextConfig:
    """The text transformer's sizes, all layers counted.

    names: of the words' vectors, the positions', how the layers' begin, and the MLP's in a layer
    Raises ValueError if some layers are surely lost, and for a width that leaves the heads open.
    """
    words, positions, layers, mlp = names
    vocabulary, width = shape_of(tensors, words, 2)[:2]
    found = module_numbers(tensors, layers)
    known = TEXT_LAYERS.get(width, (max(len(found), 1),))
    if not any(found == set(range(number)) for number in known):
        wanted = " or ".join(str(number) for number in known)
        lost = f"holds {len(found)} text layers ({layers}…) where {wanted}, numbered from 0"
        raise ValueError(f"{lost} without gaps, are needed: get another copy")
    if width % HEAD_WIDTH:
        raise ValueError(f"has a text transformer {width} wide, no multiple of {HEAD_WIDTH}")
    mlp = f"{layers}0.{mlp}.weight"
    mlp_width = shape_of(tensors, mlp)[0] if mlp in tensors else None  # its absence is named later
    return replace(
        usual,
        vocab_size=vocabulary,
        width=width,
        layers=len(found),
        heads=width // HEAD_WIDTH,
        max_length=shape_of(tensors, positions)[0],
        mlp_width=None if mlp_width == 4 * width else mlp_width,
    )
