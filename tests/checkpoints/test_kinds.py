"""What a file is: all kinds, given to all readers. Names come from the programs that write them.

kinds.txt has names as their sources state them (file_kinds.json says which). Where the program is
installed, it makes the names itself: PEFT, diffusers and transformers, on the meta device.
"""

import io
import json
import re
import zipfile
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch import nn

import minisd
from minisd.adapters.classifier import load_classifier
from minisd.adapters.controlnet import ControlNet
from minisd.adapters.hypernetwork import hypernetwork
from minisd.adapters.lora import lora
from minisd.adapters.textual_inversion import textual_inversion
from minisd.adapters.vae_file import swap_vae
from minisd.checkpoints import file_kinds
from minisd.checkpoints.file_kinds import MODEL_KIND, UNKNOWN_KIND, kind_of_tensors
from minisd.checkpoints.info import inspect_source
from minisd.checkpoints.read import read_tensors
from minisd.config import WEIGHTS
from minisd.depth.dpt import DepthEstimator
from minisd.depth.dpt_names import to_ours
from minisd.depth.small import load_estimator
from tests.helpers.checkpoint_files import V1, V2, original, single_file
from tests.helpers.tiny_models import SMALL_DPT

KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CROSS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
SPELT_OUT = {
    "{Q}": KOHYA,
    "{K}": CROSS,
    "{dotted}": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "{in}": "model.diffusion_model.input_blocks.0.0.weight",
    "{text}": "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
}


def examples():
    """What it is -> examples, each name -> shape, from kinds.txt."""
    found, name = {}, ""
    for line in Path(__file__).with_name("kinds.txt").read_text(encoding="utf-8").splitlines():
        for short, long in SPELT_OUT.items():
            line = line.replace(short, long)
        if line.startswith("    "):
            tensors = [tensor.rsplit(" ", 1) for tensor in line.strip().split(" | ")]
            shapes = {key: () if s == "-" else tuple(map(int, s.split("x"))) for key, s in tensors}
            found[name].append(shapes)
        elif line and not line.startswith("#"):
            name = line
            found[name] = []
    return found


EXAMPLES = examples()
PLAIN = EXAMPLES["LoRA"][0]
SHIPPED = {
    "emoji": "set of the drawings that the mini was trained on",
    "judge": "judge of the mini's pictures",
    "mini-classifier": "classifier of latents",
    "mini-edges-half": "half-trained ControlNet for the mini",
    "cats-and-dogs": "U-Net that draws cats and dogs without a prompt",
    "tiny-by-diffusers": "recorded trace of a tiny model",
    "mini": MODEL_KIND,
    "mini-inpaint": MODEL_KIND,
    "mini-depth": MODEL_KIND,
    "mini-decoder": "VAE",
    "mini-edges": "ControlNet",
    "mini-blueprint": "LoRA",
    "mini-lcm": "LoRA",
    "mini-blorp": "textual inversion",
}
CASES = [(name, n) for name, examples in EXAMPLES.items() for n in range(len(examples))]


def tensors_of(shapes):
    """Tensors that claim these shapes and cost one number each."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(("name", "n"), CASES)
def test_every_kind_is_called_by_its_name(name, n):
    assert kind_of_tensors(tensors_of(EXAMPLES[name][n])) == name


def test_every_kind_has_an_example_and_a_source():
    written = {entry.name for entry in file_kinds.KNOWN_KINDS}
    assert written == EXAMPLES.keys() | set(SHIPPED.values()) | BY_OTHERS
    listed = json.loads(
        (WEIGHTS.parent / "minisd/checkpoints/file_kinds.json").read_text(encoding="utf-8")
    )
    assert all("from" in one or "use" in one for one in listed)
    assert {key for one in listed for key in one} == {
        "is",
        "from",
        "signs",
        "also",
        "without",
        "all",
        "use",
        "instead",
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_called_by_their_names(name):
    assert kind_of_tensors(read_tensors(WEIGHTS / f"{name}.safetensors")) == SHIPPED[name]
    assert kind_of_tensors(read_tensors(WEIGHTS / "mini-sepia.pt")) == "hypernetwork"


# ---- what other programs write ---------------------------------------------------------------


class Attention(nn.Module):
    """The names of a U-Net's attention, for PEFT to put its methods on."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.norm = nn.Linear(16, 16), nn.Linear(16, 16), nn.LayerNorm(16)
        self.conv_in = nn.Conv2d(4, 16, 3)


TARGETS = {"target_modules": ["to_q", "to_k"]}
PEFTS = {
    "LoRA": LoraConfig(r=2, **TARGETS),
    "DoRA": LoraConfig(r=2, use_dora=True, **TARGETS),
    "LoHa": LoHaConfig(r=2, **TARGETS),
    "LoKr": LoKrConfig(r=2, **TARGETS),
    "IA3": IA3Config(feedforward_modules=["to_q"], **TARGETS),
    "OFT or BOFT": OFTConfig(r=0, oft_block_size=4, **TARGETS),
    "OFT or BOFT ": BOFTConfig(boft_block_size=4, **TARGETS),
    "VeRA": VeraConfig(r=2, **TARGETS),
    "AdaLoRA": AdaLoraConfig(init_r=2, target_r=1, total_step=9, **TARGETS),
    "adapter of a rare PEFT method": FourierFTConfig(n_frequency=4, **TARGETS),
    "LoRA that changes biases": LoraConfig(r=2, lora_bias=True, **TARGETS),
    "LoRA that replaces whole layers or biases (PEFT's bias or modules_to_save)": LoraConfig(
        r=2, bias="all", **TARGETS
    ),
}


@pytest.mark.parametrize("name", PEFTS)
def test_what_peft_writes_is_called_by_its_name(name):
    model = get_peft_model(nn.ModuleDict({"attn1": Attention()}), PEFTS[name])
    assert kind_of_tensors(get_peft_model_state_dict(model)) == name.strip()


def unet(**settings):
    shape = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 64}
    down = ("DownBlock2D", "CrossAttnDownBlock2D")
    up = ("CrossAttnUpBlock2D", "UpBlock2D")
    blocks = {"down_block_types": down, "up_block_types": up}
    return diffusers.UNet2DConditionModel(**{**shape, **blocks, **settings})


DIT = "diffusion transformer (PixArt, Lumina, AuraFlow, Hunyuan, Sana, Wan or the like)"
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "cross_attention_dim": 2048,
}
THEIRS = {
    "ControlNet": lambda: diffusers.ControlNetModel(),
    "ControlNet for SDXL": lambda: diffusers.ControlNetModel(**SDXL),
    "ControlNet union": lambda: diffusers.ControlNetUnionModel(**SDXL),
    "ControlNet of an AnimateDiff (SparseCtrl)": lambda: diffusers.SparseControlNetModel(),
    "ControlNet-XS": lambda: diffusers.ControlNetXSAdapter(),
    "ControlNet for SD3, Flux or another diffusion transformer": lambda: (
        diffusers.FluxControlNetModel(num_layers=1, num_single_layers=1)
    ),
    "T2I adapter": lambda: diffusers.T2IAdapter(adapter_type="full_adapter"),
    "T2I adapter ": lambda: diffusers.T2IAdapter(adapter_type="light_adapter"),
    "motion module of AnimateDiff": lambda: diffusers.MotionAdapter(),
    "U-Net alone": lambda: unet(),
    "U-Net of SDXL alone": lambda: unet(**SDXL),
    "latent consistency model": lambda: unet(time_cond_proj_dim=256),
    "GLIGEN model": lambda: unet(attention_type="gated"),
    "model that enlarges pictures (x4 upscaler)": lambda: unet(
        in_channels=7, num_class_embeds=1000
    ),
    "Kandinsky model": lambda: unet(
        addition_embed_type="image", encoder_hid_dim_type="image_proj", encoder_hid_dim=64
    ),
    "DeepFloyd IF model": lambda: unet(
        addition_embed_type="text", encoder_hid_dim=64, addition_embed_type_num_heads=8
    ),
    "video model": lambda: diffusers.UNetSpatioTemporalConditionModel(),
    "SD3 or Flux model": lambda: diffusers.FluxTransformer2DModel(
        num_layers=1, num_single_layers=1
    ),
    "SD3 or Flux model ": lambda: diffusers.SD3Transformer2DModel(num_layers=2),
    DIT: lambda: diffusers.PixArtTransformer2DModel(num_layers=1),
    "VAE": lambda: diffusers.AutoencoderKL(),
    "VAE of SD3 or Flux (16 channels)": lambda: diffusers.AutoencoderKL(latent_channels=16),
    "VAE for inpainting (asymmetric)": lambda: diffusers.AsymmetricAutoencoderKL(),
    "VAE with a codebook (VQ)": lambda: diffusers.VQModel(),
    "tiny autoencoder (TAESD)": lambda: diffusers.AutoencoderTiny(),
    "VAE of Wan, CogVideoX or the like": lambda: diffusers.AutoencoderKLWan(),
    "VAE of Wan, CogVideoX or the like ": lambda: diffusers.AutoencoderKLCogVideoX(),
    "consistency decoder": lambda: diffusers.ConsistencyDecoderVAE(),
    "text encoder": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig()),
    "text encoder of SDXL (OpenCLIP bigG)": lambda: transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(hidden_size=1280, num_attention_heads=20)
    ),
    "whole CLIP (for text and pictures)": lambda: transformers.CLIPModel(transformers.CLIPConfig()),
    "T5 text encoder": lambda: transformers.T5EncoderModel(transformers.T5Config()),
    "depth estimator": lambda: transformers.DPTForDepthEstimation(
        transformers.DPTConfig(is_hybrid=True, backbone_out_indices=[2, 5, 8, 11])
    ),
    "DPT without the hybrid backbone": lambda: transformers.DPTForDepthEstimation(
        transformers.DPTConfig()
    ),
}
BY_OTHERS = {name.strip() for name in [*PEFTS, *THEIRS]}


@pytest.mark.parametrize("name", THEIRS)
def test_what_diffusers_and_transformers_write_is_called_by_its_name(name):
    with torch.device("meta"):
        network = THEIRS[name]()
    assert kind_of_tensors(network.state_dict()) == name.strip()


# ---- all kinds, given to all readers ---------------------------------------------------------


@pytest.fixture(scope="module")
def sd():
    return minisd.load("mini")


ESTIMATOR = DepthEstimator(SMALL_DPT)  # of a size that is quickly made
READERS = {
    MODEL_KIND: lambda sd, path: minisd.load(path),
    "LoRA": lora,
    "textual inversion": textual_inversion,
    "hypernetwork": hypernetwork,
    "VAE": swap_vae,
    "ControlNet": lambda sd, path: ControlNet.load(path),
    "depth estimator": lambda sd, path: to_ours(read_tensors(path), ESTIMATOR, path.name),
    "classifier of latents": lambda sd, path: load_classifier(path),
}
WAY_OUT = {
    MODEL_KIND: "minisd.load()",
    "LoRA": "--lora",
    "textual inversion": "--embedding",
    "hypernetwork": "--hypernetwork",
    "VAE": "--vae",
    "ControlNet": "--control",
    "depth estimator": "--estimator",
    "classifier of latents": "--classifier",
}


def hooks(sd):
    """All that adapters put on a model."""
    modules = [*sd.unet.modules(), *sd.text_encoder.modules()]
    counts = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    return counts, sd.vae, dict(sd.tokenizer.added_words.ids), [*sd.guides], [*sd.swaps]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(kind, file) of every example, and of the shipped files. Small examples are .safetensors."""
    folder, made = tmp_path_factory.mktemp("kinds"), []
    for number, (name, n) in enumerate(CASES):
        tensors = tensors_of(EXAMPLES[name][n])
        small = sum(tensor.numel() for tensor in tensors.values()) < 10_000
        path = folder / f"{number}.{'safetensors' if small else 'pt'}"
        if small:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        else:
            torch.save(tensors, path)  # it keeps one number of each
        made.append((name, path))
    shipped = [(name, WEIGHTS / f"{file}.safetensors") for file, name in SHIPPED.items()]
    return [*made, *shipped, ("hypernetwork", WEIGHTS / "mini-sepia.pt")]


@pytest.mark.parametrize("wanted", READERS)
def test_every_reader_names_every_other_kind_and_the_way_out(sd, files, wanted):
    before = hooks(sd)
    for name, path in files:
        if name == wanted or (wanted == "depth estimator" and path.stem == "mini-depth"):
            continue
        with pytest.raises(ValueError, match=re.escape(path.name)) as caught:
            READERS[wanted](sd, path)
        sentence = str(caught.value)
        assert name in sentence and "\n" not in sentence and len(sentence) < 400, sentence
        assert WAY_OUT.get(name, "") in sentence
        assert "damaged" not in sentence and "another copy" not in sentence
    assert hooks(sd) == before


def test_an_estimator_is_not_read_from_a_lora():
    with pytest.raises(ValueError, match=r"is a LoRA, not a DPT-hybrid .* --lora"):
        load_estimator(WEIGHTS / "mini-blueprint.safetensors")


def test_a_file_of_unknown_kind_is_said_to_be_unknown(sd, tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file({f"layer.{n}.weight": torch.zeros(2, 2) for n in range(5)}, path)
    assert kind_of_tensors(read_tensors(path)) == UNKNOWN_KIND
    for wanted in (MODEL_KIND, "VAE", "ControlNet"):
        with pytest.raises(
            ValueError, match=r"not a .*not know its kind .*holds layer\.0\.weight, l"
        ):
            READERS[wanted](sd, path)


def test_info_says_what_every_file_is_and_what_to_do_with_it(files, tmp_path):
    for name, path in files:
        if name != MODEL_KIND:
            assert inspect_source(path).kind == name and inspect_source(path).use
    assert "use           give it as --lora, or to lora()" in str(
        inspect_source(WEIGHTS / "mini-blueprint.safetensors")
    )
    torch.save(tensors_of(EXAMPLES["LoHa"][0]), tmp_path / "a.pt")
    assert "use           minisd cannot use it" in str(inspect_source(tmp_path / "a.pt"))


def test_one_odd_tensor_among_a_lora_s_is_named(sd, tmp_path):
    tensors = tensors_of(PLAIN | {f"{CROSS}.hada_w1_a": (4, 8)})
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"is LoHa, .* \(it holds {CROSS}\.hada_w1_a\)"):
        lora(sd, tmp_path / "a.pt")


# ---- what is plain is never refused ----------------------------------------------------------


LEFT_IN_MODELS = (  # by trainers and converters
    *("optimizers.0.state", "model_ema.decay", "safety_checker.concept_embeds", "scale_factor"),
    "embedding_manager.string_to_param_dict.*",
    "cond_stage_model.transformer.vision_model.post_layernorm.weight",
    "cond_stage_model.model.visual.proj",
)


def test_whole_models_are_models():
    for config in (V1, V2):
        tensors = single_file(original(config)) | tensors_of(dict.fromkeys(LEFT_IN_MODELS, (4,)))
        assert kind_of_tensors(tensors) == kind_of_tensors(list(tensors)) == MODEL_KIND
        without = {key: t for key, t in tensors.items() if not key.startswith("first_stage")}
        assert kind_of_tensors(without) == MODEL_KIND  # load() says what it lacks


@pytest.mark.parametrize("settings", [{}, {"cross_attention_dim": 1024}])
def test_a_lora_of_every_layer_of_the_published_models_is_plain(settings):
    with torch.device("meta"):
        network = diffusers.UNet2DConditionModel(**{"cross_attention_dim": 768, **settings})
        layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        network = get_peft_model(network, LoraConfig(r=2, target_modules=layers))
    tensors = get_peft_model_state_dict(network)
    assert len(tensors) == 2 * len(layers) > 500
    assert kind_of_tensors(tensors) == "LoRA"
    plain = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
    assert (
        kind_of_tensors(plain)
        == kind_of_tensors({f"unet.{key}": value for key, value in plain.items()})
        == "LoRA"
    )
    halves = {"lora_A": "lora_down", "lora_B": "lora_up"}
    kohya = {}
    for key, value in plain.items():
        layer, half, _ = key.rsplit(".", 2)
        kohya[f"lora_unet_{layer.replace('.', '_')}.{halves[half]}.weight"] = value
        kohya[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(2.0)
    assert kind_of_tensors(kohya) == "LoRA"


def test_a_hypernetwork_with_its_optimizer_is_one():
    names = [
        "768.0.linear.0.weight",
        "768.1.linear.0.weight",
        "optimizer_state_dict.state.0.exp_avg",
    ]
    assert kind_of_tensors(names) == "hypernetwork"


def test_a_training_checkpoint_of_a_word_is_a_word():
    assert kind_of_tensors(["string_to_param.*", "string_to_token.*"]) == "textual inversion"


# ---- files without tensors for us ------------------------------------------------------------


def npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def torch_script():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__/net.py"):
            archive.writestr(f"net/{name}", b"\x80\x02}.")
    return file.getvalue()


def packed(pack):
    import gzip
    import lzma
    import tarfile

    if pack == "tar":
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("model.safetensors"))
        return file.getvalue()
    return {"gz": gzip.compress, "xz": lzma.compress}[pack](b"weights")


def picture(form):
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, form)
    return file.getvalue()


# as the formats' specifications give their first bytes
FOREIGN = {
    "is a GGUF file": [b"GGUF" + bytes([3, 0, 0, 0, 0x7B]) + bytes(100)],
    "is a picture, not a file of weights": [
        picture(form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    ],
    "is a Keras or TensorFlow file (HDF5)": [b"\x89HDF\r\n\x1a\n" + bytes(100)],
    "is an ONNX or TensorFlow graph": [
        b"\x08\x07\x12\x07pytorch\x1a\x052.4.0",
        b"\x08\x01\x12\x9a\x01meta",
    ],
    "is a Flax file (msgpack)": [
        b"\x81\xa6params\x82\xa7conv_in\x81",
        b"\xde\x00\x10\xa7conv_in\x81",
    ],
    "is a single NumPy array": [b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}"],
    "is a NumPy archive": [npz()],
    "is a program (TorchScript)": [torch_script()],
    "is a packed archive: unpack it first": [packed("gz"), packed("xz"), packed("tar")],
    "is a JSON file with settings, not a file of weights": [
        b'{"lora_alpha": 8, "r": 4}',
        b'{"unet":{"a": 1}}',
        b"[1, 2, 3, 4, 5]",
    ],
    "is a text file, not a file of weights": [
        b"model:\n  target: ldm\n",
        "ein Café, 2 Öfen".encode(),
    ],
    "is a PDF, not a file of weights": [b"%PDF-1.7\n%\xe2\xe3\xcf\xd3"],
}


@pytest.mark.parametrize("wanted", READERS)
def test_every_reader_says_what_a_file_without_weights_is(sd, tmp_path, wanted):
    path = tmp_path / "a.safetensors"
    for sentence, contents in FOREIGN.items():
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(ValueError, match="^" + re.escape(f"a.safetensors {sentence}")):
                READERS[wanted](sd, path)


def test_no_header_of_safetensors_looks_like_another_format(tmp_path):
    """The first two bytes of a header's length may be those of another format."""
    for length in (0x120708, 0xA181, 0x1F8B, 0x8B1F):
        text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
        path = tmp_path / "a.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + text + bytes(4))
        assert list(read_tensors(path)) == ["a"]
