"""Every kind of file that people give to minisd: what it is, and what to do with it.

kinds.json lists them with the names that other programs write, the particular before the general.
A sign is the name of a tensor, maybe with its shape: "body.#.block1.*", "*.to_k.weight *x2048". In
it * stands for anything and # for a number. Every reader asks here before it looks further.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

MODEL = "Stable Diffusion model"
UNKNOWN = "file of a kind unknown here"
SHOWN = 3  # names in an error about a file of an unknown kind


@dataclass(frozen=True)
class Kind:
    """called: "a LoRA"    use: what to do with it here    instead: what to get in its place

    The file has one of the signs, one of `also` if there are any, and none of `without`.
    every: all its tensors show a sign, not only one of them
    """

    called: str
    signs: re.Pattern
    also: re.Pattern | None
    without: re.Pattern | None
    every: bool
    use: str
    instead: str

    @property
    def name(self) -> str:
        return re.sub(r"^(an?|the) ", "", self.called)


@dataclass(frozen=True)
class Reader:
    """What one reader wants. not_this, no_such: in an error; no_such: of a file of unknown kind."""

    not_this: str
    instead: str
    no_such: str = ""  # the reader itself judges files of unknown kinds


READERS = {
    MODEL: Reader("not a whole model", "give a Stable Diffusion v1 or v2 model", "no whole model"),
    "LoRA": Reader("not a LoRA", "give a plain LoRA for Stable Diffusion v1 or v2"),
    "ControlNet": Reader(
        "not a ControlNet", "give a ControlNet for Stable Diffusion v1 or v2", "no ControlNet"
    ),
    "VAE": Reader("not a VAE file", "give a VAE file, such as vae-ft-mse", "no VAE file"),
    "textual inversion": Reader(
        "not a textual inversion", "give a textual inversion for Stable Diffusion v1 or v2"
    ),
    "hypernetwork": Reader("not a hypernetwork", "give the .pt file of a hypernetwork"),
    "depth estimator": Reader(
        "not a DPT-hybrid depth estimator",
        "give a depth model, such as sd20-depth, or a DPT-hybrid",
    ),
    "classifier of latents": Reader(
        "which holds no classifier", "give a file that `minisd train classifier` made"
    ),
}


def pattern(signs: Iterable[str]) -> re.Pattern | None:
    """Finds the first line of shown() that has one of the signs. None: there are no signs."""
    lines = []
    for sign in signs:
        name, _, shape = sign.partition(" ")
        escaped = re.escape(f"{name}\t{shape or '*'}").replace(r"\[", "[").replace(r"\]", "]")
        lines.append(escaped.replace(r"\*", ".*").replace(r"\#", r"\d+"))
    return re.compile(f"^(?:{'|'.join(lines)})$", re.MULTILINE) if lines else None


def read_kinds() -> tuple[Kind, ...]:
    listed = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return tuple(
        Kind(
            called=one["is"],
            signs=pattern(one["signs"]),
            also=pattern(one.get("also", ())),
            without=pattern(one.get("without", ())),
            every=one.get("all", False),
            use=one.get("use", ""),
            instead=one.get("instead", ""),
        )
        for one in listed
    )


KINDS = read_kinds()

# What files begin with that hold no tensors for us, whatever their names end in.
PICTURES = rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP|BM.{4}\0{4}|II\*\0|MM\0\*"
ARCHIVES = rb"\x1f\x8b|7z\xbc\xaf|Rar!|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd|.{257}ustar"
FORMATS = {
    rb"GGUF": "is a GGUF file, whose weights are quantised: get the same model as .safetensors",
    PICTURES: "is no file of weights but a picture: give it where a picture is asked for",
    ARCHIVES: "is a packed archive: unpack it first",
    rb"\x89HDF": "is a file of Keras or TensorFlow (HDF5): get PyTorch weights",
    rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a:B]": "is an ONNX or TensorFlow graph: get PyTorch weights",
    rb"([\x81-\x8f]|\xde..)[\xa1-\xbf\xd9]": "is a file of Flax (msgpack): get PyTorch weights",
    rb"\x93NUMPY": "is a NumPy array, without names: get the weights as .safetensors",
    rb"%PDF": "is no file of weights but a PDF: check the path",
}
ZIPPED = {
    r"\.npy$": "is a NumPy archive (.npz): get the weights as .safetensors",
    r"/code/": "is a program (TorchScript), and was not run: get its weights as .safetensors",
    r"": "is a zip, but not from torch.save: unpack it first",
}


def foreign_format(start: bytes) -> str | None:
    """What a file that starts so is, and what to do; None: nothing known.

    >>> foreign_format(b"GGUF" + bytes(9))
    'is a GGUF file, whose weights are quantised: get the same model as .safetensors'
    """
    for magic, sentence in FORMATS.items():
        if re.match(magic, start, re.DOTALL):
            return sentence
    text = start.decode("utf-8", errors="ignore")
    if len(text.encode()) < len(start) - 3 or not all(c.isprintable() or c.isspace() for c in text):
        return None  # 3: the end may cut a letter in two
    if text.lstrip().startswith(("{", "[")):
        return (
            "is no file of weights but settings (JSON): give the weights next to it, or the folder"
        )
    return "is no file of weights but text: check the path"


def foreign_zip(members: Iterable[str]) -> str:
    """The same for a zip of these members that torch.save did not write."""
    names = "\n".join(members)
    return next(what for sign, what in ZIPPED.items() if re.search(sign, names, re.MULTILINE))


def shown(tensors: Mapping[str, Tensor] | Iterable[str]) -> str:
    """A line for each tensor: its name, a tab and its shape, if that is given.

    >>> shown({"clip_g": torch.zeros(2, 1280)})
    'clip_g\\t2x1280'
    """
    if not isinstance(tensors, Mapping):
        return "\n".join(f"{name}\t" for name in tensors)
    return "\n".join(f"{name}\t{'x'.join(map(str, t.shape))}" for name, t in tensors.items())


def find(tensors: Mapping[str, Tensor] | Iterable[str]) -> tuple[Kind | None, str]:
    """The first kind whose signs the tensors have, and the name of the one that shows it."""
    lines = shown(tensors)
    for kind in KINDS:
        sign = kind.signs.search(lines)
        if not sign or (kind.also and not kind.also.search(lines)):
            continue
        if kind.without and kind.without.search(lines):
            continue
        if kind.every and len(kind.signs.findall(lines)) < lines.count("\n") + 1:
            continue
        return kind, sign[0].partition("\t")[0]
    return None, ""


def kind(tensors: Mapping[str, Tensor] | Iterable[str]) -> str:
    """What tensors of these names, and better these shapes, make up, such as "LoRA".

    >>> kind(["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"])
    'LoRA'
    """
    found, _ = find(tensors)
    return found.name if found else UNKNOWN


def way_out(tensors: Mapping[str, Tensor]) -> str:
    """What to do with a file of these tensors, in words."""
    found, _ = find(tensors)
    if found is None:
        return "unknown here"
    return found.use or found.instead or "minisd has no use for it"


def refuse_other_kinds(name: str, tensors: Mapping[str, Tensor], wanted: str) -> None:
    """Raise ValueError where a file is surely not what its reader wants: what it is, what to do.

    name: of the file    wanted: a key of READERS
    A file of unknown kind is refused where no good file could be one.
    """
    found, sign = find(tensors)
    reader = READERS[wanted]
    if (found and found.name == wanted) or not tensors:
        return
    if wanted == MODEL:
        raise ValueError(no_whole_model(name, found, sign, tensors))
    if found and found.use:
        raise ValueError(f"{name} is {found.called}, {reader.not_this}: {found.use}.")
    if found:
        seen = f"which is unknown here (it holds {sign})"
        raise ValueError(f"{name} is {found.called}, {seen}: {found.instead or reader.instead}.")
    if reader.no_such:
        seen = f"its kind is unknown here (it holds {some_of(tensors)})"
        raise ValueError(f"{name} is {reader.no_such}: {seen}. {capitalised(reader.instead)}.")


def no_whole_model(name: str, found: Kind | None, sign: str, tensors: Mapping[str, Tensor]) -> str:
    """The sentence for a file from which no model can be loaded."""
    way = (found.use or found.instead) if found else ""
    if found and found.use:
        seen = "."
    else:
        seen = f", so give one of those (this file holds {sign or some_of(tensors)})."
    return (
        f"{name} is no whole model ({found.name if found else UNKNOWN}): minisd loads whole Stable "
        f"Diffusion v1 and v2 models{seen}" + (f" {capitalised(way)}." if way else "")
    )


def some_of(tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
