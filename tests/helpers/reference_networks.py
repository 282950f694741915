"""The same network twice, with the same random weights: ours, and one that others wrote.

Three independent references: diffusers and transformers (float32 and float64), open_clip (SD v2's
text), and the original CompVis / Stability code as the package stable-diffusion-sdkit carries it
(float32 only: its norms and time embedding cast to float32, and then raise on float64 weights).
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from minisd.checkpoints import names
from minisd.clip import TextTransformer
from minisd.config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from minisd.unet import UNet
from minisd.vae import VAE
from tests.helpers.references import open_clip, stand_ins

with stand_ins("pytorch_lightning"):
    sys.modules["pytorch_lightning"].LightningModule = nn.Module
    from ldm.models.autoencoder import AutoencoderKL as OriginalVAE
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

# ---- ours -----------------------------------------------------------------------------------

BUILD = {"unet": UNet, "vae": VAE, "text_encoder": TextTransformer}

# The spread of the weights, as a multiple of 1 / sqrt(fan-in). With 1, activations have a spread
# near 1. With 0.3 they are small, and then a wrong epsilon changes the result visibly.
DRAWS = {"unit": 1.0, "small": 0.3}


def ours(part: str, config: ModelConfig) -> nn.Module:
    """Our network on the meta device, where tensors have no values yet."""
    with torch.device("meta"):
        return BUILD[part](getattr(config, part.removesuffix("_encoder")))


def randomise(network: nn.Module, gain: float, seed: int) -> None:
    """Make every parameter random, also those of norms and those that start training at 0."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        norm = isinstance(module, nn.GroupNorm | nn.LayerNorm)
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if norm:
                value = 0.3 * noise + (name == "weight")
            elif parameter.ndim == 1 or isinstance(module, nn.Embedding | TextTransformer):
                value = 0.3 * gain * noise
            else:
                value = gain / math.sqrt(parameter[0].numel()) * noise
            setattr(module, name, nn.Parameter(value, requires_grad=False))


# ---- theirs ---------------------------------------------------------------------------------


def diffusers_unet(config: UNetConfig) -> nn.Module:
    attends, levels = config.attention, len(config.channels)
    down = ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends]
    up = ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)]
    heads = [config.heads] * levels
    if config.head_width:
        heads = [channels // config.head_width for channels in config.channels]
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.channels,
        layers_per_block=config.res_blocks,
        cross_attention_dim=config.context_dim,
        attention_head_dim=tuple(heads),  # in spite of its name: the number of heads
        use_linear_projection=config.linear_projection,
        norm_num_groups=config.norm_groups,
    )


def original_unet(config: UNetConfig) -> nn.Module:
    assert config.norm_groups == 32, "the original knows no other number of groups"
    width = config.channels[0]
    with stand_ins("omegaconf", "omegaconf.listconfig"):
        return UNetModel(
            image_size=0,  # the class stores it, but never reads it
            in_channels=config.in_channels,
            model_channels=width,
            out_channels=config.out_channels,
            num_res_blocks=config.res_blocks,
            attention_resolutions=[2**i for i, yes in enumerate(config.attention) if yes],
            channel_mult=[channels // width for channels in config.channels],
            num_heads=-1 if config.head_width else config.heads,
            num_head_channels=config.head_width or -1,
            use_spatial_transformer=True,
            context_dim=config.context_dim,
            use_linear_in_transformer=config.linear_projection,
            legacy=False,
        )


def diffusers_vae(config: VAEConfig) -> nn.Module:
    levels = len(config.channels)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=config.channels,
        layers_per_block=config.res_blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
    )


def original_vae(config: VAEConfig) -> nn.Module:
    assert config.norm_groups == 32, "the original knows no other number of groups"
    width = config.channels[0]
    sizes = {
        "double_z": True,
        "z_channels": config.latent_channels,
        "resolution": 64,  # open_clip only prints it
        "in_channels": 3,
        "out_ch": 3,
        "ch": width,
        "ch_mult": [channels // width for channels in config.channels],
        "num_res_blocks": config.res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    no_loss = {"target": "torch.nn.Identity"}
    return OriginalVAE(sizes, no_loss, embed_dim=config.latent_channels)


def hugging_face_text(config: TextConfig) -> nn.Module:
    sizes = CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_length,
        hidden_act=config.activation,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation="sdpa",  # the eager one computes its softmax in float32
    )
    return CLIPTextModel(sizes)


def open_clip_text(config: TextConfig) -> nn.Module:
    """The whole text transformer of open_clip, with the last layer, which SD v2 leaves out."""
    return open_clip.transformer.TextTransformer(
        context_length=config.max_length,
        vocab_size=config.vocab_size,
        width=config.width,
        heads=config.heads,
        layers=config.layers + 1,
        output_dim=config.width,
    )


def ddim_scheduler(config: ModelConfig) -> DDIMScheduler:
    """DDIM with the settings of the official models, as in their folder scheduler/."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[config.schedule.prediction],
    )


# ---- the pair -------------------------------------------------------------------------------


def run_unet(unet: nn.Module, x: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
    out = unet(x, t, context)
    return [out if isinstance(out, Tensor) else out.sample]


def run_our_vae(vae: VAE, image: Tensor, z: Tensor) -> list[Tensor]:
    return [vae.encoder(image), vae.decode(z)]


def run_diffusers_vae(vae: nn.Module, image: Tensor, z: Tensor) -> list[Tensor]:
    return [vae.encode(image).latent_dist.parameters, vae.decode(z).sample]


def run_original_vae(vae: nn.Module, image: Tensor, z: Tensor) -> list[Tensor]:
    return [vae.encode(image).parameters, vae.decode(z)]


def run_our_text(text: TextTransformer, tokens: Tensor) -> list[Tensor]:
    return [text(tokens)]


def run_hugging_face_text(text: nn.Module, tokens: Tensor) -> list[Tensor]:
    return [text(tokens).last_hidden_state]


def run_open_clip_text(text: nn.Module, tokens: Tensor) -> list[Tensor]:
    """All layers except the last, then the final norm: "penultimate" in the config of SD v2."""
    x = text.token_embedding(tokens) + text.positional_embedding[: tokens.shape[1]]
    mask = text.attn_mask[: tokens.shape[1], : tokens.shape[1]].to(x.dtype)
    for block in text.transformer.resblocks[:-1]:
        x = block(x, attn_mask=mask)
    return [text.ln_final(x)]


OURS = {"unet": run_unet, "vae": run_our_vae, "text_encoder": run_our_text}
THEIRS = {
    ("unet", "diffusers"): (diffusers_unet, run_unet),
    ("unet", "original"): (original_unet, run_unet),
    ("vae", "diffusers"): (diffusers_vae, run_diffusers_vae),
    ("vae", "original"): (original_vae, run_original_vae),
    ("text_encoder", "diffusers"): (hugging_face_text, run_hugging_face_text),
    ("text_encoder", "original"): (open_clip_text, run_open_clip_text),
}


@dataclass(frozen=True)
class Pair:
    """Two networks with the same weights, the table of their names, and how to run each."""

    ours: nn.Module
    theirs: nn.Module
    rows: list[names.Row]
    layout: str
    run_ours: Callable
    run_theirs: Callable

    def their_name(self, row: names.Row) -> str:
        return spelling(self.theirs, getattr(row, self.layout))


def spelling(theirs: nn.Module, name: str) -> str:
    """The name in a file. Files have "text_model.", which transformers 5 leaves out."""
    return name if hasattr(theirs, "text_model") else name.removeprefix("text_model.")


def pair(
    part: str, config: ModelConfig, layout: str, draw: str, dtype: torch.dtype, seed: int = 0
) -> Pair:
    """Both networks. They use the same memory for their weights, so that full sizes fit."""
    mine = ours(part, config)
    randomise(mine, DRAWS[draw], seed)
    mine = mine.to(dtype).eval()
    rows = names.model_rows(config)[part]
    build, run = THEIRS[part, layout]
    # building a text transformer computes buffers, so it cannot be on the meta device
    with torch.device("cpu" if part == "text_encoder" else "meta"):
        theirs = build(mine.config)
    official = names.to_official(mine.state_dict(), rows, layout)
    official = {spelling(theirs, name): tensor for name, tensor in official.items()}
    missing, unexpected = theirs.load_state_dict(official, strict=False, assign=True)
    assert not unexpected, f"not in the reference: {unexpected}"
    assert all(beyond(name, config) for name in missing), f"without a value: {missing}"
    return Pair(mine, theirs.eval(), rows, layout, OURS[part], run)


def beyond(name: str, config: ModelConfig) -> bool:
    """Whether a parameter belongs to the end of open_clip's transformer, which SD v2 leaves out."""
    return name.startswith(("text_projection", f"transformer.resblocks.{config.text.layers}."))
