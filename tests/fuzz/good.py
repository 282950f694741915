"""The smallest good input of every kind, made once and kept in memory."""

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from minisd.adapters.controlnet import ControlNet
from minisd.checkpoints import write
from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.controlnet_settings import DEFAULT_HINT, HintSettings
from minisd.clip import TextTransformer
from minisd.config import OPENCLIP_H, ModelConfig, TextConfig, UNetConfig, VAEConfig
from minisd.pipeline import StableDiffusion
from minisd.teaching.tiny import randomise
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE

Files = dict[str, bytes]

WORDS = ["a cat on a mat, the cat sat on a red hat", "ab ab aba abab"]
SMALL = ModelConfig(
    name="small",
    text=TextConfig(vocab_size=520, width=8, layers=1, heads=1),
    unet=UNetConfig(
        channels=(8,), attention=(True,), res_blocks=1, context_dim=8, heads=2, norm_groups=4
    ),
    vae=VAEConfig(channels=(4, 4), res_blocks=1, norm_groups=2),
    size=16,
)
# Original files say fewer sizes than ours: the others are as in the published models.
V1 = ModelConfig(
    name="v1",
    text=TextConfig(width=64, layers=1, heads=1, mlp_width=8),
    unet=UNetConfig(channels=(32,), attention=(True,), res_blocks=1, context_dim=64),
    vae=VAEConfig(channels=(32, 32), res_blocks=1),
)
V2 = replace(
    V1,
    name="v2",
    text=replace(OPENCLIP_H, width=64, layers=1, heads=1, mlp_width=8),
    unet=replace(V1.unet, channels=(64,), head_width=64, linear_projection=True),
)
CONTROL = replace(SMALL.unet, heads=2)
ORIGINAL_CONTROL = UNetConfig(channels=(32,), attention=(True,), res_blocks=1, context_dim=8)
FEW_WIDTHS = HintSettings(widths=(4, 4, 4, 8))


def files_in(folder: Path) -> Files:
    """Every file of a folder, by its name in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def written(make: Callable[[Path], object]) -> Files:
    """What a function writes into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return files_in(Path(folder))


def safetensors(tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> bytes:
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    return safetensors_bytes(whole, dict(header) if header else None)


def pickled(content: object, old: bool = False) -> bytes:
    """As torch.save writes it now, in a zip, or as it did before version 1.6."""
    whole = io.BytesIO()
    torch.save(content, whole, _use_new_zipfile_serialization=not old)
    return whole.getvalue()


# ---- models ----------------------------------------------------------------------------------


@cache
def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(WORDS, SMALL.text.vocab_size)


def networks(config: ModelConfig) -> list[nn.Module]:
    made = [TextTransformer(config.text), UNet(config.unet), VAE(config.vae)]
    for seed, network in enumerate(made):
        randomise(network, 1.0, seed)
    return [network.eval().requires_grad_(False) for network in made]


@cache
def small_sd() -> StableDiffusion:
    """The model that adapters are put on."""
    return StableDiffusion(SMALL, small_tokenizer(), *networks(SMALL))


@cache
def our_model() -> Files:
    parts = Parts(SMALL, small_tokenizer(), *networks(SMALL))
    return written(lambda to: write.save(to / "model.safetensors", parts, torch.float16))


@cache
def model_folder() -> Files:
    def make(to: Path) -> None:
        (to / "model.safetensors").write_bytes(our_model()["model.safetensors"])
        write.convert(to / "model.safetensors", to / "folder")
        (to / "model.safetensors").unlink()

    return written(make)


@cache
def sharded_folder() -> Files:
    """The U-Net in two shards, of the old kind, with an index."""
    files = dict(model_folder())
    name = "folder/unet/diffusion_pytorch_model.safetensors"
    from safetensors.torch import load

    tensors = list(load(files.pop(name)).items())
    half = len(tensors) // 2
    shards = {"one.bin": dict(tensors[:half]), "two.bin": dict(tensors[half:])}
    places = {key: name for name, held in shards.items() for key in held}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    for shard, held in shards.items():
        files[f"folder/unet/{shard}"] = pickled(held)
    files["folder/unet/diffusion_pytorch_model.bin.index.json"] = json.dumps(index).encode()
    return files


@cache
def original_model(v2: bool) -> bytes:
    config = V2 if v2 else V1
    parts = Parts(config, Tokenizer.clip(config.text.pad_token), *networks(config))

    def make(to: Path) -> None:
        write.save(to / "ours.safetensors", parts, torch.float16)
        write.convert(to / "ours.safetensors", to / "model.safetensors")

    return written(make)["model.safetensors"]


@cache
def original_ckpt() -> bytes:
    from safetensors.torch import load

    return pickled({"state_dict": load(original_model(False)), "epoch": 3, "callbacks": {}})


YAML = b"""model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.18215
    parameterization: "eps"  # what it predicts
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        num_heads: 8
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
"""

# ---- parts and adapters ----------------------------------------------------------------------


@cache
def part_of_folder(part: str) -> Files:
    """One part of the diffusers folder, without the part's name."""
    start = f"folder/{part}/"
    return {k.removeprefix(start): v for k, v in model_folder().items() if k.startswith(start)}


@cache
def original_vae() -> bytes:
    from safetensors.torch import load

    tensors, start = load(original_model(False)), "first_stage_model."
    return safetensors(
        {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
    )


def low_rank(layers: list[str], leaves: tuple[str, str], rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (rank, 8), (8, rank)
    return {
        f"{layer}{leaf}": torch.randn(shape, generator=generator)
        for layer in layers
        for leaf, shape in zip(leaves, shapes, strict=True)
    }


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
MLP = "text_model.encoder.layers.0.self_attn.q_proj"


def kohya_lora() -> dict[str, Tensor]:
    layers = [f"lora_unet_{ATTENTION}", f"lora_te_{MLP}"]
    layers = [layer.replace(".", "_") for layer in layers]
    tensors = low_rank(layers, (".lora_down.weight", ".lora_up.weight"))
    return tensors | {f"{layer}.alpha": torch.tensor(1.0) for layer in layers}


def peft_lora() -> dict[str, Tensor]:
    layers = [f"unet.{ATTENTION}", f"text_encoder.{MLP}"]
    return low_rank(layers, (".lora_A.weight", ".lora_B.weight"))


def first_lora() -> dict[str, Tensor]:
    """As diffusers spelled it at first."""
    layer = f"unet.{ATTENTION}".replace(".to_q", ".processor.to_q_lora")
    return low_rank([layer], (".down.weight", ".up.weight"))


PEFT_SETTINGS = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": ["to_q", "q_proj"],
    "rank_pattern": {},
    "alpha_pattern": {"to_q": 2},
    "use_rslora": False,
    "use_dora": False,
    "task_type": None,
}


def word_vectors() -> Tensor:
    return torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def hypernetwork() -> dict:
    generator = torch.Generator().manual_seed(0)

    def layers() -> dict[str, Tensor]:
        sizes = {"linear.0": (16, 8), "linear.2": (8, 16)}
        weights = {f"{k}.weight": torch.randn(s, generator=generator) for k, s in sizes.items()}
        return weights | {
            f"{k}.bias": torch.randn(s[0], generator=generator) for k, s in sizes.items()
        }

    return {
        8: (layers(), layers()),
        "step": 10,
        "name": "hyper",
        "layer_structure": [1, 2, 1],
        "activation_func": "relu",
        "is_layer_norm": False,
        "weight_initialization": "Normal",
        "use_dropout": False,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        "activate_output": False,
        "last_layer_dropout": False,
    }


def control_net(config: UNetConfig, settings: HintSettings) -> ControlNet:
    network = ControlNet(config, settings)
    randomise(network, 1.0, 0)
    return network


@cache
def control_file() -> Files:
    network = control_net(CONTROL, FEW_WIDTHS)
    return written(lambda to: network.save(to / "c.safetensors"))


@cache
def original_control() -> bytes:
    network = control_net(ORIGINAL_CONTROL, DEFAULT_HINT)
    return written(lambda to: network.save(to / "c.safetensors"))["c.safetensors"]


@cache
def control_folder() -> Files:
    """In diffusers' layout, with its config.json."""
    from minisd.checkpoints.controlnet_file import controlnet_rows
    from minisd.checkpoints.folder_settings import unet_json
    from minisd.checkpoints.names import to_official

    network = control_net(CONTROL, FEW_WIDTHS)
    state = to_official(network.state_dict(), controlnet_rows(CONTROL, FEW_WIDTHS), "diffusers")
    sizes = unet_json(ModelConfig(unet=CONTROL))
    absent = ("up_block_types", "out_channels", "sample_size", "center_input_sample")
    config = {key: value for key, value in sizes.items() if key not in absent}
    config["conditioning_embedding_out_channels"] = list(FEW_WIDTHS.widths)
    config["_class_name"] = "ControlNetModel"
    return {
        "diffusion_pytorch_model.safetensors": safetensors(state),
        "config.json": json.dumps(config).encode(),
    }


CONTROL_YAML = b"""model:
  target: cldm.cldm.ControlLDM
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    control_key: "hint"
    global_average_pooling: False
    control_stage_config:
      target: cldm.cldm.ControlNet
      params:
        in_channels: 4
        hint_channels: 3
        model_channels: 32
        attention_resolutions: [1]
        num_res_blocks: 1
        channel_mult: [1]
        num_heads: 8
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: 8
"""


@cache
def classifier() -> bytes:
    from minisd.adapters.classifier import ClassifierConfig, LatentClassifier, save_classifier

    network = LatentClassifier(ClassifierConfig(("cat", "dog"), (8, 8), 4))
    return written(lambda to: save_classifier(to / "c.safetensors", network, {}))["c.safetensors"]


@cache
def judge_file() -> bytes:
    from minisd.mini.judge import Judge, save_judge

    network = Judge(("cat", "dog"), ("flat", "noto"), ("red", "blue"))
    return written(lambda to: save_judge(to / "j.safetensors", network, {}))["j.safetensors"]


@cache
def small_depth() -> bytes:
    from minisd.depth.small import DEPTH_PREFIX, SmallDepthEstimator

    state = SmallDepthEstimator().half().state_dict()
    return safetensors({DEPTH_PREFIX + name: tensor for name, tensor in state.items()})


@cache
def cut_outs() -> bytes:
    """What docs.make.draw_emoji writes, with two drawings."""
    tile = io.BytesIO()
    Image.new("RGBA", (8, 8), (200, 30, 30, 255)).save(tile, "PNG")
    numbers = torch.frombuffer(bytearray(tile.getvalue()), dtype=torch.uint8)
    header = {"things": json.dumps({"cat": "animal", "dog": "animal"})}
    header["styles"] = json.dumps({"flat": {"package": "p", "version": "1"}})
    return safetensors({"cat/flat": numbers, "dog/flat": numbers}, header)


@cache
def run_folder() -> Files:
    from minisd.training.loop import Hyperparameters, create_optimizers, description
    from minisd.training.run_folder import state_of

    model, settings = nn.Linear(2, 2), Hyperparameters(steps=4, rate=0.1)
    optimizers = create_optimizers(model, settings)
    state = state_of(2, 1.0, description(settings, dict(RUN)), model, model, optimizers)
    lines = [{"step": step, "loss": 0.5, "seconds": 1.0} for step in range(3)]
    return {
        "run/state.pt": pickled(state),
        "run/log.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode(),
        "run/tokenizer.json": small_tokenizer().to_json().encode(),
    }


RUN = {"seed": 0, "threads": 1, "commit": "unknown"}

# ---- pictures --------------------------------------------------------------------------------


def drawing(mode: str = "RGB", size: tuple[int, int] = (16, 12)) -> Image.Image:
    picture = Image.linear_gradient("L").resize(size)
    return picture.convert(mode)


def encoded(picture: Image.Image, kind: str, **more: object) -> bytes:
    whole = io.BytesIO()
    picture.save(whole, kind, **more)
    return whole.getvalue()


@cache
def pictures() -> Files:
    """The kinds that are read, in several forms."""
    rgb, second = drawing(), drawing("RGB").rotate(180)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "rgb.png": encoded(rgb, "PNG", exif=exif),
        "rgba.png": encoded(drawing("RGBA"), "PNG"),
        "palette.png": encoded(rgb.convert("P"), "PNG", transparency=0),
        "deep.png": encoded(drawing("I;16"), "PNG"),
        "text.png": encoded(rgb, "PNG", pnginfo=texts({"workflow": "{}" * 50})),
        "photo.jpg": encoded(rgb, "JPEG", exif=exif),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "lossy.webp": encoded(rgb, "WEBP"),
        "moving.webp": encoded(rgb, "WEBP", save_all=True, append_images=[second]),
        "moving.gif": encoded(rgb, "GIF", save_all=True, append_images=[second]),
        "plain.bmp": encoded(rgb, "BMP"),
        "pages.tif": encoded(rgb, "TIFF", save_all=True, append_images=[second]),
        "packed.tif": encoded(drawing("RGBA"), "TIFF", compression="tiff_lzw"),
        "float.tif": encoded(drawing("F"), "TIFF"),
        "moving.png": encoded(rgb, "PNG", save_all=True, append_images=[second]),
    }


# Files that Pillow opens and we must not, or that only look like pictures
OTHER_PICTURES = {
    "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "paper.pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n",
    "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "shades.pgm": b"P5 4 4 255\n" + bytes(range(16)),
    "huge.ppm": b"P6 100000 100000 255\n" + bytes(48),
    "floats.pfm": b"Pf\n4 4\n-1.0\n" + bytes(64),
    "icon.ico": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x68\4\0\0\x16\0\0\0" + bytes(1128),
    "layers.psd": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\4\0\0\0\4\0\x08\0\3" + bytes(80),
    "old.pcx": b"\x0a\x05\x01\x08" + bytes(124),
    "plain.xbm": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0xff};\n",
    "plain.xpm": b'/* XPM */\nstatic char *a[] = {"1 1 1 1","a c #ff0000","a"};\n',
    "table.fits": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
    "array.npy": b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,)}".ljust(
        128
    ),
    "movie.mpg": b"\0\0\1\xb3" + bytes(40),
    "meta.wmf": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "font.ttf": b"\0\1\0\0" + bytes(60),
}


def texts(said: Mapping[str, str]) -> PngInfo:
    info = PngInfo()
    for key, text in said.items():
        info.add_text(key, text)
    return info


DRAWN = {
    "prompt": "a cat on a blue background",
    "negative_prompt": "",
    "seed": 0,
    "steps": 2,
    "cfg_scale": 3.0,
    "sampler": "ddim",
    "width": 64,
    "height": 64,
    "clip_skip": 0,
    "extended": False,
    "ema": False,
    "edges": False,
    "model": "mini",
    "device": "cpu",
    "prediction": "eps",
    **{name: [] for name in ("lora", "embedding", "hypernetwork", "vae", "control", "classifier")},
    "minisd": "0.1.0",
    "command": "generate",
    "hashes": {},
    "dtype": "float32",
    "threads": 1,
    "torch": "2.4.0",
}
INFOTEXT = (
    "a (big:1.3) cat, [far], \\(here\\)\nNegative prompt: dog, ((ugly))\nSteps: 2, "
    "Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 64x64, "
    "Model hash: 6ce0161689, Model: mini, Clip skip: 2, RNG: CPU, Version: v1.10.1"
)


@cache
def drawn_picture() -> bytes:
    return encoded(drawing(), "PNG", pnginfo=texts({"minisd": json.dumps(DRAWN)}))


@cache
def web_ui_picture() -> bytes:
    return encoded(drawing(), "PNG", pnginfo=texts({"parameters": INFOTEXT}))


def config_json(config: ModelConfig) -> bytes:
    return json.dumps(asdict(config)).encode()
