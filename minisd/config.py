"""Every size and constant of a model, as data. `replace(SD15, ...)` makes a variant of SD15."""

from dataclasses import dataclass, field, replace
from pathlib import Path


def shipped_folder(name: str) -> Path:
    """The path of a folder that comes with this project, for example "weights".

    In a git checkout, the folder is next to the package. In a wheel, it is inside the package.
    """
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parents[1] / name


WEIGHTS, NOTEBOOKS = shipped_folder("weights"), shipped_folder("notebooks")


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text transformer. The defaults are OpenAI's CLIP ViT-L/14, as in SD v1."""

    vocab_size: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: str = "quick_gelu"  # x * sigmoid(1.702 x), or the exact "gelu"
    max_length: int = 77  # begin mark + 75 tokens + end mark
    pad_token: int | None = None  # fills the row after the end mark. None: more end marks. v2: 0
    mlp_width: int | None = None  # the width inside the MLP of a layer. None: 4 * width


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the noise predictor. The defaults are SD v1 (CompVis, v1-inference.yaml)."""

    in_channels: int = 4  # 4 for the latent; 5 with depth; 9 with a mask and the masked picture
    out_channels: int = 4
    # the number of channels at each resolution. Each resolution is half as large as the one before
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)  # which resolutions read the prompt
    res_blocks: int = 2  # per resolution in the encoder; one more in the decoder
    context_dim: int = 768
    heads: int = 8
    head_width: int | None = None  # channels per head; `heads` is then ignored. v1: None, v2: 64
    linear_projection: bool = False  # True: Linear layers in files (v2). False: 1x1 convolutions
    norm_groups: int = 32


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder. The defaults are Stable Diffusion's kl-f8."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 4
    res_blocks: int = 2  # per resolution in the encoder; one more in the decoder
    scale: float = 0.18215  # 1 / standard deviation of a batch of latents (v1-inference.yaml)
    norm_groups: int = 32

    @property
    def factor(self) -> int:
        """The width of a picture divided by the width of its latent (8 for SD)."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class ScheduleConfig:
    """How noise grows with t, and what the network was trained to predict (v1-inference.yaml)."""

    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: str = "eps"  # or "v" (Salimans & Ho 2022), as SD 2.1 at 768 pixels
    zero_terminal_snr: bool = False  # True: the levels are rescaled, so the last t is pure noise
    beta_schedule: str = "scaled_linear"  # or "linear", "squaredcos_cap_v2"
    betas: tuple[float, ...] | None = None  # the beta of every t. None: beta_schedule computes it
    # The fields below say how to sample. Only a model from a diffusers folder has such settings.
    # They do not change the network. So when two configs are compared, these fields are ignored.
    # spacing: diffusers' rule that chooses the t: "leading", "linspace" or "trailing". "default":
    #   the rule that diffusers uses for the sampler. None: the levels of the original code
    # set_alpha_to_one: whether the last step of DDIM and PLMS ends without noise
    # final: the noise after the last step of Euler and DPM++: "zero" (none) or "sigma_min" (t = 0)
    # karras: whether LMS, Euler, Heun and DPM++ use the levels of Karras et al. 2022
    spacing: str | None = field(default=None, compare=False)
    steps_offset: int = field(default=1, compare=False)  # the last and smallest t of "leading"
    set_alpha_to_one: bool | None = field(default=None, compare=False)
    final: str | None = field(default=None, compare=False)
    karras: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: the sizes of its parts, and its usual picture size, cfg_scale and sampler."""

    name: str = "sd15"
    text: TextConfig = field(default_factory=TextConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    size: int = 512  # pixels
    cfg_scale: float = 7.5
    sampler: str = "ddim"
    # The names of the text transformer's tensors in single files. True: the names of open_clip (SD
    # v2). False: the names of transformers (SD v1). None: the value of unet.linear_projection
    open_clip_text: bool | None = None

    @property
    def size_multiple(self) -> int:
        """The smallest picture side, in pixels, that the U-Net can halve without rounding (SD: 64).

        The U-Net also halves the multiples of this number without rounding. The side may be any
        other multiple of 8, too. But then the U-Net meets odd sizes. It halves them and rounds up.
        """
        return self.vae.factor * 2 ** (len(self.unet.channels) - 1)


OPENCLIP_H = TextConfig(
    width=1024,
    layers=23,  # OpenCLIP has 24. SD v2 leaves out the last layer, but keeps the final norm
    heads=16,
    activation="gelu",
    pad_token=0,
)
UNET_V2 = UNetConfig(context_dim=1024, head_width=64, linear_projection=True)

SD15 = ModelConfig()
SD15_INPAINT = replace(SD15, name="sd15-inpaint", unet=replace(SD15.unet, in_channels=9))

SD20_BASE = ModelConfig(name="sd20-base", text=OPENCLIP_H, unet=UNET_V2)
SD21 = replace(SD20_BASE, name="sd21", size=768, schedule=ScheduleConfig(prediction="v"))
SD20_INPAINT = replace(SD20_BASE, name="sd20-inpaint", unet=replace(UNET_V2, in_channels=9))
SD20_DEPTH = replace(SD20_BASE, name="sd20-depth", unet=replace(UNET_V2, in_channels=5))

MINI = ModelConfig(
    name="mini",
    text=TextConfig(vocab_size=1024, width=128, layers=4, heads=4, activation="gelu"),
    unet=UNetConfig(
        channels=(96, 160),
        attention=(True, True),
        res_blocks=1,
        context_dim=128,
        head_width=32,
        linear_projection=True,
        norm_groups=16,
    ),
    vae=VAEConfig(channels=(16, 32, 64, 128), res_blocks=1, norm_groups=8),
    size=64,
    cfg_scale=3.0,
)
