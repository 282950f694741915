"""Find the sizes of a model from the names and shapes of its tensors."""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from minisd.checkpoints.names import PREFIXES_V1, PREFIXES_V2
from minisd.config import OPENCLIP_H, ModelConfig, TextConfig, UNetConfig, VAEConfig

GIVE_VAE = "give an autoencoder (it turns latents into pictures) with vae=FILE or --vae FILE"
NORM_GROUPS = 32  # in every network of v1 and v2; no tensor shows this number
MOST_MODULES = 200  # modules with the same prefix; SD has at most 12
HEAD_WIDTH = 64  # of v2's U-Net and of both text transformers

# Width of a text transformer -> possible numbers of layers. v2 does not use the last layer, so some
# files do not hold the last layer.
TEXT_LAYERS = {
    TextConfig.width: (TextConfig.layers,),
    OPENCLIP_H.width: (OPENCLIP_H.layers, OPENCLIP_H.layers + 1),
}


def config_from_tensors(tensors: Mapping[str, Tensor], name: str) -> ModelConfig:
    """Find the sizes of the model in an original single file.

    If no tensor shows a size, the size of the published models is used.

    name: the name of the model in the config

    Raises ValueError if a tensor that shows a size is missing or has too few axes.
    """
    v2 = has_prefix(tensors, PREFIXES_V2["text_encoder"])
    if v2 and has_prefix(tensors, PREFIXES_V1["text_encoder"]):
        both = " and ".join(each["text_encoder"] for each in (PREFIXES_V1, PREFIXES_V2))
        raise ValueError(f"holds two text transformers, {both}: delete the wrong one")
    prefixes = PREFIXES_V2 if v2 else PREFIXES_V1
    for part, prefix in prefixes.items():
        if not has_prefix(tensors, prefix):
            advice = GIVE_VAE if part == "vae" else "get a complete copy of the model"
            raise ValueError(f"holds no {part} ({prefix}…): {advice}")
    text = (text_v2_sizes if v2 else text_v1_sizes)(tensors, prefixes["text_encoder"])
    others = {
        "unet": unet_sizes(tensors, prefixes["unet"]),
        "vae": vae_sizes(tensors, prefixes["vae"]),
    }
    return with_text_layout(ModelConfig(name=name, text=text, **others), open_clip=v2)


def with_text_layout(config: ModelConfig, open_clip: bool) -> ModelConfig:
    """Set config.open_clip_text. The value is None if is_v2() can tell the layout from the U-Net.

    open_clip: whether the text transformer has open_clip's names, as in SD v2
    """
    usual = open_clip == config.unet.linear_projection
    return replace(config, open_clip_text=None if usual else open_clip)


def has_prefix(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)


def shape_of(tensors: Mapping[str, Tensor], key: str, axes: int = 1) -> tuple[int, ...]:
    """The shape of a tensor.

    axes: the smallest allowed number of axes

    Raises ValueError if the tensor is missing or has fewer axes.
    """
    if key not in tensors:
        raise ValueError(f"lacks {key}: get a complete copy of the model")
    found = tuple(tensors[key].shape)
    if len(found) < axes:
        raise ValueError(f"holds {key} in the impossible shape {found}: get another copy")
    return found


def count_modules(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Count the modules with a prefix. For example, the prefix "up." has "up.0", "up.1", and so on.

    The result is the highest number plus 1, even if some module is missing in between.

    >>> count_modules({"up.0.weight": None, "up.2.weight": None}, "up.")
    3
    """
    highest = max(module_numbers(tensors, prefix), default=-1)
    if highest >= MOST_MODULES:
        found = f"holds {prefix}{highest}, but no network has so many modules"
        raise ValueError(f"{found}: get another copy")
    return 1 + highest


def module_numbers(tensors: Mapping[str, Tensor], prefix: str) -> set[int]:
    """The numbers that come right after a prefix in the names of tensors."""
    numbered = re.compile(re.escape(prefix) + r"(\d{1,9})\.")
    return {int(match[1]) for match in map(numbered.match, tensors) if match}


def unet_sizes(tensors: Mapping[str, Tensor], prefix: str) -> UNetConfig:
    levels = unet_levels(tensors, prefix)
    channels = tuple(shape_of(tensors, f"{level[0]}.0.out_layers.3.weight")[0] for level in levels)
    transformer = f"{prefix}middle_block.1."
    linear = len(shape_of(tensors, f"{transformer}proj_in.weight")) == 2
    divisor = HEAD_WIDTH if linear else NORM_GROUPS
    if any(width % divisor for width in channels):
        widths = f"U-Net levels of the widths {channels}, but not all are multiples of {divisor}"
        raise ValueError(f"has {widths}: get another model")
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
    """The prefixes of the U-Net's input blocks, in one list for each level.

    At the end of every level except the last, there is a block with a convolution named "op". The
    lists do not contain these blocks.
    """
    levels = [[]]
    for n in range(1, count_modules(tensors, f"{prefix}input_blocks.")):
        block = f"{prefix}input_blocks.{n}"
        if has_prefix(tensors, f"{block}.0.op."):
            levels.append([])
        else:
            levels[-1].append(block)
    if not all(levels):
        raise ValueError(f"lacks tensors of {prefix}input_blocks: get a complete copy of the model")
    return levels


def vae_sizes(tensors: Mapping[str, Tensor], prefix: str, layout: str = "original") -> VAEConfig:
    """Find the sizes of the autoencoder.

    prefix: the beginning of the names of all its tensors
    layout: the layout of these names, "original" or "diffusers"
    """
    level, block = ("down", "block") if layout == "original" else ("down_blocks", "resnets")
    if not has_prefix(tensors, f"{prefix}encoder."):  # some programs save only the decoder
        half = "holds the decoder of a VAE, but not the encoder"
        raise ValueError(f"{half}: give a complete autoencoder with vae=FILE or --vae FILE")
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
    """Find the sizes of SD v2's text transformer. The last layer is not counted.

    SD v2 uses the output of the second to last layer, so some files do not hold the last layer. At
    the published width, the number of layers shows whether a file holds the last layer. At another
    width, the tensor text_projection shows it: text_projection comes after the last layer, so a
    file with this tensor probably holds the last layer, too.
    """
    words, layers = f"{prefix}token_embedding.weight", f"{prefix}transformer.resblocks."
    positions = f"{prefix}positional_embedding"
    found = text_sizes(tensors, OPENCLIP_H, words, positions, layers, "mlp.c_fc")
    layers, projected = found.layers, f"{prefix}text_projection" in tensors
    projected = projected and found.width != OPENCLIP_H.width
    whole = layers > 1 and (projected or layers == OPENCLIP_H.layers + 1)
    return replace(found, layers=layers - 1) if whole else found


def text_sizes(tensors: Mapping[str, Tensor], usual: TextConfig, *names: str) -> TextConfig:
    """Find the sizes of the text transformer. All layers in the file are counted.

    usual: a config with the sizes that no tensor shows
    names: the name of the token vectors, the name of the position vectors, the prefix of all
        layers, and the name of the MLP's first matrix inside a layer

    Raises ValueError if layers are missing, or if the width is not a multiple of HEAD_WIDTH.
    """
    words, positions, layers, mlp = names
    vocabulary, width = shape_of(tensors, words, 2)[:2]
    found = module_numbers(tensors, layers)
    known = TEXT_LAYERS.get(width, (max(len(found), 1),))
    if not any(found == set(range(number)) for number in known):
        wanted = " or ".join(str(number) for number in known)
        lost = f"holds {len(found)} text layers ({layers}…), but needs {wanted}, numbered from 0"
        raise ValueError(f"{lost} without gaps: get another copy")
    if width % HEAD_WIDTH:
        wide = f"a text transformer of width {width}, which is not a multiple of {HEAD_WIDTH}"
        raise ValueError(f"has {wide}: get another model")
    mlp = f"{layers}0.{mlp}.weight"
    mlp_width = shape_of(tensors, mlp)[0] if mlp in tensors else None  # a later check refuses this
    return replace(
        usual,
        vocab_size=vocabulary,
        width=width,
        layers=len(found),
        heads=width // HEAD_WIDTH,
        max_length=shape_of(tensors, positions)[0],
        mlp_width=None if mlp_width == 4 * width else mlp_width,
    )
