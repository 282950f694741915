"""What can be compared: a trace, a model that minisd loads, a diffusers folder, or a function."""

import inspect
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import minisd
from minisd.compare.trace_file import TraceFile, is_trace, read_trace
from minisd.pipeline import StableDiffusion

COMPARED_PROMPT = "a photograph of an astronaut riding a horse"
EARLY_T = 981.0  # the t of an early step, where x is almost only noise
LARGEST_PICTURE = 128  # pixels per side of the picture for the VAE, which is slower than the U-Net


@dataclass
class Side:
    """A program that can run, as one side of a comparison.

    label: the name of this side in the report
    networks: part -> network
    calls: part -> a function call(network, *inputs) that runs the network. A part without such a
        function is run as network(*inputs)
    load: a function that returns minisd's model with the same weights. None: there is no such model
    """

    label: str
    networks: dict[str, nn.Module]
    calls: dict[str, Callable] = field(default_factory=dict)
    load: Callable[[], StableDiffusion] | None = None

    def run(self, part: str, network: nn.Module, inputs: tuple) -> object:
        """Run a network, which is one part of a model, on our inputs."""
        return self.calls.get(part, nn.Module.__call__)(network, *inputs)


def open_side(source: str) -> Side | TraceFile:
    """Open one side of a comparison.

    source: a trace file, "diffusers:FOLDER", "module.py:function", or a file, folder or name that
        minisd can load
    Raises ValueError if the source does not exist, or if a library that it needs is missing.
    """
    path, _, rest = source.rpartition(":")
    if path == "diffusers":
        return diffusers_side(rest)
    if path.endswith(".py"):
        return function_side(Path(path), rest, source)
    return read_trace(source) if is_trace(source) else our_side(minisd.load(source), source)


def our_side(sd: StableDiffusion, label: str) -> Side:
    networks = {"text_encoder": sd.text_encoder, "unet": sd.unet, "vae": sd.vae}
    return Side(label, networks, {"vae": run_vae}, lambda: sd)


def run_vae(vae: Any, image: Tensor | None, z: Tensor | None) -> None:
    """Run the encoder of a VAE, its decoder, or both. The VAE is minisd's or diffusers'.

    image: the input of the encoder. None: the encoder does not run
    z: the input of the decoder. None: the decoder does not run
    """
    for run, given in ((vae.encode, image), (vae.decode, z)):
        if given is not None:
            run(given)


def make_inputs(sd: StableDiffusion, seed: int = 0) -> dict[str, tuple[Tensor, ...]]:
    """Make the inputs for both sides: a prompt, noise at an early level, and a picture of noise.

    Returns a dictionary: part -> the inputs of our network, in order.
    """
    factor, small = sd.config.vae.factor, min(sd.config.size, LARGEST_PICTURE)
    draw = torch.Generator().manual_seed(seed)

    def noise(channels: int, size: int) -> Tensor:
        return torch.randn(1, channels, size, size, generator=draw).to(sd.device, sd.dtype)

    tokens = sd.tokenizer(COMPARED_PROMPT).to(sd.device)
    x = noise(sd.config.unet.in_channels, sd.config.size // factor)
    z = noise(sd.config.vae.latent_channels, small // factor)
    unet = (x, torch.tensor([EARLY_T], device=sd.device), sd.text_encoder(tokens))
    return {"text_encoder": (tokens,), "unet": unet, "vae": (noise(3, small).tanh(), z)}


def diffusers_side(path: str) -> Side:
    """Open the three networks of a diffusers folder with diffusers and transformers."""
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers import CLIPTextModel
    except ImportError as error:
        what = "diffusers: needs the libraries diffusers and transformers. Install them with"
        raise ValueError(f"{what} pip install diffusers transformers.") from error
    kinds = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
    networks = {}
    try:
        for part, kind in kinds.items():
            networks[part] = kind.from_pretrained(path, subfolder=part, torch_dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"diffusers cannot open {path} ({reason}). Check the path.") from error
    return Side(f"diffusers:{path}", networks, {"vae": run_vae}, lambda: minisd.load(path))


def function_side(path: Path, function: str, label: str) -> Side:
    """Get the port from a function in a .py file.

    The function in the file returns a network, or a tuple of a network and a function
    call(network, *inputs) that runs the network on our inputs. If the port has several networks,
    the function in the file returns a dictionary: part -> network or tuple.

    function_side() runs the code in the file. This is safe, because the user wrote the file.
    """
    returned = call_function(path, function)
    parts = returned if isinstance(returned, Mapping) else {"": returned}
    side = Side(label, {})
    for part, one in parts.items():
        network, call = one if isinstance(one, tuple) else (one, nn.Module.__call__)
        if not isinstance(network, nn.Module):
            what = f"{label} returned {type(network).__name__}"
            raise ValueError(f"{what}. It should return a module, or a module and a function.")
        side.networks[part], side.calls[part] = network.eval(), call
    return side


def call_function(path: Path, function: str) -> object:
    """Run a .py file and call one of its functions.

    Raises ValueError if the file or the function is missing, or if the code raises an error.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Check the path before the colon.")
    sys.path.insert(0, str(path.parent.resolve()))  # the file may import files next to it
    try:
        module = runpy.run_path(str(path))
        if not callable(module.get(function)):
            known = ", ".join(name for name, one in module.items() if inspect.isfunction(one))
            what = f"{path} has no function {function!r}"
            raise ValueError(f"{what}. It has {known or 'no functions'}.")
        return module[function]()
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{path} broke: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.pop(0)
