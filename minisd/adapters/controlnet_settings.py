"""What a ControlNet's weights do not show, and the three places where programs write it.

diffusers writes config.json, for the files in its own layout in the same folder. The original's
settings are a .yaml of the file's own name. Our own files say it in their header.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from minisd.checkpoints.known_settings import REQUIRED, KnownSettings, because
from minisd.checkpoints.read import metadata, read_json
from minisd.checkpoints.settings import checked, tuples, unet_config, unet_json
from minisd.config import ModelConfig, UNetConfig

STEM = "diffusion_pytorch_model"  # diffusers' name of every file: its folder bears the real one
NO, NONE, YES = ((False,), False), ((None,), None), ((True,), True)
ONE = ((1, [1, 1], [1, 1, 1, 1]), 1)  # for all levels, or for each
SILU, MID = (("silu", "swish"), "silu"), (("UNetMidBlock2DCrossAttn",), "UNetMidBlock2DCrossAttn")

# Every parameter of diffusers' ControlNetModel (models/controlnets/controlnet.py).
CONFIG_JSON = KnownSettings(
    "config.json",
    obeyed={
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        **{"in_channels": 4, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2},
        **{"norm_num_groups": 32, "cross_attention_dim": 1280, "use_linear_projection": False},
        **{"attention_head_dim": 8, "num_attention_heads": None, "global_pool_conditions": False},
        "controlnet_conditioning_channel_order": "rgb",
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
    },
    fixed={
        "_class_name": (("ControlNetModel", "FlaxControlNetModel"), "ControlNetModel"),
        "only_cross_attention": ((False, [False] * 2, [False] * 4), False),
        **{"conditioning_channels": ((3,), 3), "act_fn": SILU, "mid_block_type": MID},
        **{"flip_sin_to_cos": YES, "freq_shift": ((0,), 0), "norm_eps": ((1e-5,), 1e-5)},
        **{"downsample_padding": ((1,), 1), "mid_block_scale_factor": ((1,), 1)},
        **{"transformer_layers_per_block": ONE, "encoder_hid_dim": NONE},
        **{"encoder_hid_dim_type": NONE, "class_embed_type": NONE, "num_class_embeds": NONE},
        **{"addition_embed_type": NONE, "resnet_time_scale_shift": (("default",), "default")},
    },
    ignored={
        **because(
            "a setting of an input that is refused",
            "addition_time_embed_dim addition_embed_type_num_heads "
            "projection_class_embeddings_input_dim",
        ),
        **because("it matters in half precision only", "upcast_attention"),
    },
)
# "model: params:" of the original's .yaml (cldm/cldm.py, ControlLDM and the classes below it).
YAML = KnownSettings(
    ".yaml",
    obeyed={"control_stage_config": REQUIRED, "global_average_pooling": False},
    fixed={"only_mid_control": NO},
    ignored=because(
        "it is for the model around the ControlNet, or for training",
        "unet_config first_stage_config cond_stage_config linear_start linear_end timesteps "
        "beta_schedule parameterization image_size channels scale_factor scale_by_std cosine_s "
        "given_betas conditioning_key first_stage_key cond_stage_key control_key concat_mode "
        "force_null_conditioning num_timesteps_cond log_every_t monitor use_ema "
        "cond_stage_trainable cond_stage_forward scheduler_config ckpt_path ignore_keys "
        "load_only_unet loss_type original_elbo_weight v_posterior l_simple_weight learn_logvar "
        "logvar_init clip_denoised use_positional_encodings make_it_fit ucg_training reset_ema "
        "reset_num_ema_updates sd_locked",
    ),
)
# Its "control_stage_config: params:", every parameter of the original's ControlNet.
STAGE_YAML = KnownSettings(
    "control_stage_config in the .yaml",
    obeyed={
        **{"in_channels": REQUIRED, "model_channels": REQUIRED, "channel_mult": [1, 2, 4, 8]},
        **{"attention_resolutions": REQUIRED, "num_res_blocks": REQUIRED, "context_dim": REQUIRED},
        **{"num_heads": -1, "num_head_channels": -1, "use_linear_in_transformer": False},
    },
    fixed={
        **{"hint_channels": ((3,), None), "use_spatial_transformer": ((True,), False)},
        **{"transformer_depth": ((1,), 1), "dims": ((2,), 2), "conv_resample": YES},
        **{"use_scale_shift_norm": NO, "resblock_updown": NO, "disable_middle_self_attn": NO},
        **{"n_embed": NONE, "disable_self_attentions": NONE, "num_attention_blocks": NONE},
    },
    ignored={
        **because("the original never reads it", "image_size"),
        **because("it matters in training only", "dropout use_checkpoint"),
        **because("a precision, which the caller chooses here", "use_fp16"),
        **because("a ControlNet has no way up", "num_heads_upsample"),
        **because("only attention without a text reads it", "use_new_attention_order legacy"),
    },
)


@dataclass(frozen=True)
class HintSettings:
    """How a ControlNet sees its hint, and what it makes of its corrections.

    pools: each correction is its mean over the picture, and the unconditional half gets none
    channel_order: in which it sees the hint's colours, "rgb" or "bgr"
    widths: of the hint's convolutions; between two of them the hint's size halves
    """

    pools: bool = False
    channel_order: str = "rgb"
    widths: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self):
        """ValueError: a value that means nothing."""
        if not isinstance(self.pools, bool):
            raise ValueError(f"has a setting of pooling that is {self.pools!r}: say true or false")
        if self.channel_order not in ("rgb", "bgr"):
            raise ValueError(f"has the channel order {self.channel_order!r}: rgb and bgr are known")
        if not self.widths or not all(type(width) is int and width > 0 for width in self.widths):
            raise ValueError(f"has a hint network of widths {self.widths}: get another copy")


PLAIN = HintSettings()


def stated_settings(
    path: Path, layout: str, given: UNetConfig | None
) -> tuple[UNetConfig | None, HintSettings]:
    """The sizes that a file's settings state, and how it sees its hint.

    layout: "original" or "diffusers", which decides whether config.json describes it
    given: sizes from the caller, which hold for what the settings leave out
    Where nothing is said, a name with "shuffle" in it counts: ControlNet v1.1's shuffle is the one
    published network that pools, and its weights do not show it.
    Raises ValueError for a setting that cannot be obeyed and for places that disagree.
    """
    header, found = metadata(path), []
    config_json, name = path.with_name("config.json"), path.name
    try:
        if "controlnet" in header:
            found.append(from_header(header))
        if layout == "diffusers" and config_json.exists():
            found.append(from_json(read_json(config_json), given))
        for file in (path.with_suffix(".yaml"), path.with_suffix(".yml")):
            if file.exists():
                found.append(from_yaml(file))
        for config, _ in found:
            checked(ModelConfig(unet=config))
    except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
        what = f"has a setting of a wrong kind next to it or in its header ({error})"
        raise ValueError(f"{name} {what}: get another copy.") from error
    except ValueError as error:
        raise ValueError(f"{name} {error}.") from error
    if any(one != found[0] for one in found):
        raise ValueError(f"{name} has settings in two places that differ: delete the wrong ones.")
    if found:
        return found[0]
    pools = is_shuffle(path)
    if pools:
        warnings.warn(
            f"{name} has no settings next to it. By its name it is a shuffle ControlNet, so its "
            "corrections are pooled (global_average_pooling).",
            stacklevel=4,
        )
    return None, replace(PLAIN, pools=pools)


def is_shuffle(path: Path) -> bool:
    """Whether a file is called like ControlNet v1.1's shuffle network."""
    name = path.absolute().parent.name if path.stem.startswith(STEM) else path.stem
    return re.search(r"(^|[\W_])shuffle($|[\W_])", name.lower()) is not None


def from_header(header: Mapping[str, str]) -> tuple[UNetConfig, HintSettings]:
    try:
        config = UNetConfig(**tuples(json.loads(header["controlnet"])))
        return config, HintSettings(**tuples(json.loads(header.get("controlnet_hint", "{}"))))
    except (ValueError, TypeError, AttributeError) as error:
        what = "has a damaged header, or one of another version of minisd"
        raise ValueError(f"{what}: get another copy") from error


def to_header(config: UNetConfig, settings: HintSettings) -> dict[str, str]:
    """Undone by from_header."""
    return {
        "controlnet": json.dumps(asdict(config)),
        "controlnet_hint": json.dumps(asdict(settings)),
    }


def from_json(
    stored: Mapping[str, object], given: UNetConfig | None
) -> tuple[UNetConfig, HintSettings]:
    """What diffusers' config.json says."""
    sizes = unet_json(ModelConfig(unet=given)) if given else {}
    known = CONFIG_JSON.obeyed.keys()
    said = CONFIG_JSON.read({k: v for k, v in sizes.items() if k in known} | stored)
    up = [block.replace("Down", "Up") for block in reversed(said["down_block_types"])]
    settings = HintSettings(
        said.pop("global_pool_conditions"),
        said.pop("controlnet_conditioning_channel_order"),
        tuple(said.pop("conditioning_embedding_out_channels")),
    )
    return unet_config({**said, "up_block_types": up, "out_channels": 4}), settings


def from_yaml(path: Path) -> tuple[UNetConfig, HintSettings]:
    """What the original's .yaml says."""
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ValueError(f"has {path.name} next to it, which is no YAML: fetch it again") from error
    if not isinstance(stored, dict) or "params" not in (stored.get("model") or {}):
        raise ValueError(f"has {path.name} next to it, which describes no ControlNet: move it away")
    said = YAML.read(stored["model"]["params"])
    stage = STAGE_YAML.read(said["control_stage_config"]["params"])
    multiples, split = stage["channel_mult"], stage["num_head_channels"]
    config = UNetConfig(
        in_channels=stage["in_channels"],
        channels=tuple(stage["model_channels"] * multiple for multiple in multiples),
        attention=tuple(2**i in stage["attention_resolutions"] for i in range(len(multiples))),
        res_blocks=stage["num_res_blocks"],
        context_dim=stage["context_dim"],
        heads=stage["num_heads"] if split == -1 else UNetConfig.heads,
        head_width=None if split == -1 else split,
        linear_projection=stage["use_linear_in_transformer"],
    )
    return config, HintSettings(pools=said["global_average_pooling"])


def refuse_other_heads(name: str, stated: UNetConfig, given: UNetConfig) -> None:
    """Raise ValueError where two configs differ in what no tensor's shape shows."""
    says, has = unseen(stated), unseen(given)
    if says != has:
        raise ValueError(
            f"{name} does not fit the U-Net: its settings say {says}, and the U-Net has {has}. It "
            "is made for another model."
        )


def unseen(config: UNetConfig) -> str:
    """What no tensor's shape shows of a U-Net, in words."""
    split = config.head_width
    heads = [width // split if split else config.heads for width in config.channels]
    return f"{heads} heads and {config.norm_groups} norm groups"
