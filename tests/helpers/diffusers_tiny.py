"""The networks of the tiny pipeline in the tests of diffusers."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

SIDE = 32  # pixels; a side of the latent is half as long


def networks(channels: int, v2: bool) -> dict[str, torch.nn.Module]:
    """The networks by name.

    channels: input channels of the U-Net    v2: equal heads, linear projections, exact GELU
    """
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=2,
        sample_size=32,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        **({"attention_head_dim": (2, 4), "use_linear_projection": True} if v2 else {}),
    )
    vae = AutoencoderKL(
        block_out_channels=[32, 64],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
    )
    text = CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=2,
        hidden_size=32,
        intermediate_size=37,
        layer_norm_eps=1e-05,
        num_attention_heads=4,
        num_hidden_layers=5,
        pad_token_id=1,
        vocab_size=1000,
        hidden_act="gelu" if v2 else "quick_gelu",
    )
    return {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(text)}
