"""What changes a model: LoRA, words, hypernetworks, ControlNets, classifiers, depth estimators."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from minisd.adapters.classifier import load_classifier
from minisd.adapters.controlnet import ControlNet
from minisd.adapters.hypernetwork import hypernetwork
from minisd.adapters.lora import lora
from minisd.adapters.textual_inversion import textual_inversion
from minisd.depth.dpt import DepthConfig, DepthEstimator
from minisd.depth.small import load_estimator
from minisd.mini import judge
from tests.fuzz import good
from tests.fuzz.case import Case, Reader
from tests.fuzz.edits import broken

DPT = DepthConfig(
    stem=4,
    stages=(8, 8, 8),
    blocks=(1, 1, 1),
    width=8,
    layers=2,
    heads=2,
    readout_layers=(0, 1),
    features=4,
    grid=2,
    norm_groups=2,
)


def loras() -> list[Case]:
    kohya, peft, first = good.kohya_lora(), good.peft_lora(), good.first_lora()
    settings = {f"unet.{k}": v for k, v in good.PEFT_SETTINGS.items()}
    settings |= {f"text_encoder.{k}": v for k, v in good.PEFT_SETTINGS.items()}
    header = {"lora_adapter_metadata": json.dumps(settings), "ss_network_dim": "2"}
    config = json.dumps(good.PEFT_SETTINGS).encode()
    return [
        Case({"k.safetensors": good.safetensors(kohya, {"ss_network_dim": "2"})}, "k.safetensors"),
        Case({"k.pt": good.pickled(kohya)}, "k.pt"),
        Case({"p.safetensors": good.safetensors(peft, header)}, "p.safetensors"),
        Case({"f.bin": good.pickled(first)}, "f.bin"),
        Case(
            {
                "lora-folder/adapter_model.safetensors": good.safetensors(peft),
                "lora-folder/adapter_config.json": config,
            },
            "lora-folder",
        ),
    ]


def words() -> list[Case]:
    vectors = good.word_vectors()
    web_ui = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "cat",
        "step": 100,
        "sd_checkpoint": "abc",
        "sd_checkpoint_name": None,
    }
    return [
        Case({"a-cat.bin": good.pickled({"<cat>": vectors[0]})}, "a-cat.bin"),
        Case({"my-cat.pt": good.pickled(web_ui)}, "my-cat.pt"),
        Case({"old.pt": good.pickled(web_ui, old=True)}, "old.pt"),
        Case(
            {"my-cat.safetensors": good.safetensors({"emb_params": vectors})}, "my-cat.safetensors"
        ),
        Case(
            {"two.safetensors": good.safetensors({"<a>": vectors, "<b>": vectors})},
            "two.safetensors",
        ),
        Case({"w.png": good.drawn_picture()}, "w.png", refused=True),
    ]


def hypernetworks() -> list[Case]:
    made = good.hypernetwork()
    return [
        Case({"h.pt": good.pickled(made)}, "h.pt"),
        Case({"old.pt": good.pickled(made, old=True)}, "old.pt"),
    ]


def control_nets() -> list[Case]:
    from safetensors.torch import load

    ours, folder = good.control_file()["c.safetensors"], good.control_folder()
    original = load(good.original_control())
    pth = good.pickled({f"control_model.{k}": v for k, v in original.items()})
    return [
        Case({"c.safetensors": ours}, "c.safetensors"),
        Case({"c.pth": pth, "c.yaml": good.CONTROL_YAML}, "c.pth"),
        Case({f"control-net/{name}": content for name, content in folder.items()}, "control-net"),
        Case(folder, "diffusion_pytorch_model.safetensors"),
    ]


def state_of_model() -> tuple:
    """What adapters change, in numbers."""
    sd = good.small_sd()
    hooks = [
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for part in (sd.unet, sd.text_encoder, sd.vae)
        for module in part.modules()
    ]
    return sum(hooks), tuple(sd.tokenizer.added_words.ids)


class Changed(AssertionError):
    """A refused adapter left something of itself in the model."""


def put_on(adapter: Callable) -> Callable[[Path], None]:
    """A reader that puts the adapter on the small model, uses the model, and takes it off again."""

    def reader(path: Path) -> None:
        sd = good.small_sd()
        before = state_of_model()
        try:
            handle = adapter(sd, path)
            try:
                context = sd.text_encoder(sd.tokenizer("a cat <cat> <a>"))
                sd.unet(torch.zeros(1, 4, 4, 4), torch.tensor([1.0]), context)
            finally:
                handle.remove()
        finally:
            if state_of_model() != before:
                for part in (sd.unet, sd.text_encoder):
                    for module in part.modules():
                        module._forward_hooks.clear()
                        module._forward_pre_hooks.clear()
                raise Changed(f"the model is not as it was: {state_of_model()}")

    return reader


def read_control(path: Path) -> None:
    network = ControlNet.load(path)
    x, context = torch.zeros(1, network.config.in_channels, 8, 8), torch.zeros(1, 3, 8)
    if not network.is_difference and network.config.context_dim == 8:
        network(x, torch.tensor([1.0]), context, torch.zeros(1, 3, 64, 64))


def classifiers() -> list[Case]:
    return [Case({"c.safetensors": good.classifier()}, "c.safetensors")]


def judges() -> list[Case]:
    return [Case({"j.safetensors": good.judge_file()}, "j.safetensors")]


def read_classifier(path: Path) -> None:
    network = load_classifier(path)
    network(torch.zeros(1, 4, 8, 8), torch.tensor([1.0]))


def read_judge(path: Path) -> None:
    network = judge.load_judge(path)
    network(torch.zeros(1, 3, judge.CROP_SIDE, judge.CROP_SIDE))


def small_depths() -> list[Case]:
    return [Case({"d.safetensors": good.small_depth()}, "d.safetensors")]


def read_depth(path: Path) -> None:
    load_estimator(path)(torch.zeros(1, 3, 16, 16))


def dpts() -> list[Case]:
    """In transformers' layout and as a pickle, with tiny sizes."""
    from minisd.checkpoints.names import to_official
    from minisd.depth.dpt_names import dpt_rows

    ours, rows = DepthEstimator(DPT).state_dict(), dpt_rows(DPT)
    state, midas = (to_official(ours, rows, layout) for layout in ("diffusers", "original"))
    return [
        Case({"d.safetensors": good.safetensors(state)}, "d.safetensors"),
        Case({"d.pt": good.pickled(midas)}, "d.pt"),
    ]


def read_dpt(path: Path) -> object:
    return DepthEstimator.load(path, DPT)


ADAPTERS = [
    Reader("LoRA", loras, lambda: broken(loras()), put_on(lora), share=2),
    Reader("textual inversion", words, lambda: broken(words()), put_on(textual_inversion), share=2),
    Reader(
        "hypernetwork",
        hypernetworks,
        lambda: broken(hypernetworks()),
        put_on(hypernetwork),
        share=2,
    ),
    Reader("ControlNet", control_nets, lambda: broken(control_nets()), read_control, share=0.7),
    Reader("classifier", classifiers, lambda: broken(classifiers()), read_classifier),
    Reader("judge", judges, lambda: broken(judges()), read_judge, share=0.7),
    Reader("small depth", small_depths, lambda: broken(small_depths()), read_depth),
    Reader("DPT-hybrid", dpts, lambda: broken(dpts()), read_dpt),
]
