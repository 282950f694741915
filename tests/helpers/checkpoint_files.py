"""Tiny models in the published layouts, with the names and shapes of the references' classes."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from minisd.checkpoints.folder_tokenizer import write_tokenizer
from minisd.config import OPENCLIP_H, ModelConfig, TextConfig, UNetConfig, VAEConfig
from minisd.tokenizer import Tokenizer
from tests.helpers.reference_networks import (
    ddim_scheduler,
    diffusers_unet,
    diffusers_vae,
    hugging_face_text,
    open_clip_text,
    original_unet,
    original_vae,
    randomise,
)

TINY_VAE = VAEConfig(channels=(32, 64), res_blocks=1)
V1 = ModelConfig(
    name="v1",
    text=TextConfig(width=64, layers=2, heads=1),
    unet=UNetConfig(channels=(32, 64), attention=(True, False), context_dim=64),
    vae=TINY_VAE,
)
V2 = ModelConfig(
    name="v2",
    text=replace(OPENCLIP_H, width=64, layers=2, heads=1),
    unet=UNetConfig(
        channels=(64, 128),
        attention=(True, False),
        res_blocks=1,
        context_dim=64,
        head_width=64,
        linear_projection=True,
    ),
    vae=TINY_VAE,
)


def with_inputs(config: ModelConfig, channels: int) -> ModelConfig:
    return replace(config, unet=replace(config.unet, in_channels=channels))


def filled(network: nn.Module, seed: int) -> nn.Module:
    randomise(network, gain=1.0, seed=seed)
    return network.eval()


# ---- original single files -------------------------------------------------------------------


def original(config: ModelConfig) -> dict[str, nn.Module]:
    """The original classes with random weights: unet, vae, text_encoder."""
    v2 = config.unet.linear_projection
    return {
        "unet": filled(original_unet(config.unet), 0),
        "vae": filled(original_vae(config.vae), 1),
        "text_encoder": filled((open_clip_text if v2 else hugging_face_text)(config.text), 2),
    }


def single_file(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of an original file: the networks, and what else published files contain."""
    v2 = hasattr(networks["text_encoder"], "text_projection")
    prefixes = {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        # these files have "text_model.", which transformers 5 leaves out
        "text_encoder": "cond_stage_model.model." if v2 else f"{TEXT_V1}text_model.",
    }
    tensors = {}
    for part, network in networks.items():
        tensors |= {prefixes[part] + key: value for key, value in network.state_dict().items()}
    return tensors | (beside_v2() if v2 else beside_v1()) | averaged(tensors)


TEXT_V1 = "cond_stage_model.transformer."


def beside_v1() -> dict[str, Tensor]:
    schedule = ["betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1"]
    tensors = {name: torch.rand(1000) for name in schedule}
    return tensors | {f"{TEXT_V1}text_model.embeddings.position_ids": torch.arange(77)[None]}


def beside_v2() -> dict[str, Tensor]:
    text = {"attn_mask": torch.rand(77, 77), "logit_scale": torch.rand(())}
    return {f"cond_stage_model.model.{name}": value for name, value in text.items()}


def averaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Averaged weights (EMA) for a test: half of the U-Net's, under the flat names of LitEma."""
    unet = [key for key in tensors if key.startswith("model.diffusion_model.")]
    names = {key: key.removeprefix("model.").replace(".", "") for key in unet}
    halved = {f"model_ema.{names[key]}": tensors[key] / 2 for key in unet}
    return halved | {"model_ema.decay": torch.tensor(0.9999)}


# ---- diffusers folders -----------------------------------------------------------------------


def pipeline(config: ModelConfig, tokenizer_folder: Path) -> StableDiffusionPipeline:
    """A pipeline of diffusers: its classes and those of transformers, with random weights."""
    write_tokenizer(tokenizer_folder, Tokenizer.clip(config.text.pad_token))
    vae = filled(diffusers_vae(config.vae), 1)
    unet = filled(diffusers_unet(config.unet), 0)
    unet.register_to_config(sample_size=config.size // config.vae.factor)
    if not config.unet.head_width:
        unet.register_to_config(attention_head_dim=config.unet.heads)  # as in the folders of v1
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=filled(hugging_face_text(config.text), 2),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer_folder),
        unet=unet,
        scheduler=ddim_scheduler(config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
