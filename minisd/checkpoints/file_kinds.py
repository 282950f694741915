"""Every kind of file that people give to minisd: what it is, and what to do with it.

file_kinds.json lists the kinds, special ones before general ones. refusals.json has what each
reader says about files that it cannot use, and about files that hold no tensors.

A sign is the name of a tensor, sometimes with its shape: "body.#.block1.*", "*.to_k.weight *x2048".
A * stands for any text and a # for a number. The names are those that other programs write. Every
reader asks here first.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

MODEL_KIND = "Stable Diffusion model"
UNKNOWN_KIND = "file of a kind unknown here"
MOST_LISTED = 3  # names in an error about a file of an unknown kind
LONGEST_NAMES = 500_000  # characters; those of the largest SD and SDXL files are 300,000


@dataclass(frozen=True)
class FileKind:
    """called: "a LoRA"    use: what to do with it here    instead: what to get in its place

    The file has one of the signs, one of `also` if there are any, and none of `without`.
    every: all its tensors show a sign, not only one of them
    """

    called: str
    signs: re.Pattern
    also: re.Pattern
    without: re.Pattern
    every: bool
    use: str
    instead: str

    @property
    def name(self) -> str:
        return re.sub(r"^(an?|the) ", "", self.called)


def signs_to_pattern(signs: Iterable[str]) -> re.Pattern:
    """Finds the first line of shown() that has one of the signs.

    The first place for a part between two * will do. (?=(…))\\1 tries no other, which would take
    minutes on names that someone made up for that.
    """
    lines, groups = [], 0
    for sign in signs:
        name, _, shape = sign.partition(" ")
        escaped = re.escape(f"{name}\t{shape or '*'}").replace(r"\[", "[").replace(r"\]", "]")
        line, *parts = escaped.replace(r"\#", r"\d+").split(r"\*")
        for part in parts[:-1] if any(parts[1:]) else ():
            groups += 1
            line += f"(?=(.*?{part}))\\{groups}"
        rest = parts[-1:] if any(parts[1:]) else parts
        lines.append(".*".join([line, *rest]))
    return re.compile(f"^(?:{'|'.join(lines)})$", re.MULTILINE)


def read_table(name: str) -> list | dict:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


KNOWN_KINDS = [
    FileKind(
        called=one["is"],
        signs=signs_to_pattern(one["signs"]),
        also=signs_to_pattern(one.get("also", ["*"])),
        without=signs_to_pattern(one.get("without", ())),
        every=one.get("all", False),
        use=one.get("use", ""),
        instead=one.get("instead", ""),
    )
    for one in read_table("file_kinds.json")
]
REFUSALS = read_table("refusals.json")


def describe_foreign_file(what: str, beginning: str) -> str:
    """What a file that holds no tensors for us is, and what to do.

    what: "first bytes", as Latin-1, or "members of a zip" that torch.save did not write, in lines

    >>> describe_foreign_file("first bytes", "GGUF\\0\\0\\0")
    'is a GGUF file, whose weights are quantised: get the same model as .safetensors'
    """
    signs = REFUSALS[what]
    return next(signs[sign] for sign in signs if re.match(sign, beginning, re.DOTALL))


def list_tensors(tensors: Mapping[str, Tensor] | Iterable[str]) -> str:
    """A line for each tensor: its name, a tab and its shape, if that is given.

    >>> import torch
    >>> list_tensors({"clip_g": torch.zeros(2, 1280)})
    'clip_g\\t2x1280'
    """
    if not isinstance(tensors, Mapping):
        return "\n".join(f"{name}\t" for name in tensors)
    return "\n".join(f"{name}\t{'x'.join(map(str, t.shape))}" for name, t in tensors.items())


def find_kind(tensors: Mapping[str, Tensor] | Iterable[str]) -> tuple[FileKind | None, str]:
    """The first kind whose signs the tensors have, and the name of the one that shows it.

    Raises ValueError for more names than can be looked through in a few seconds.
    """
    lines = list_tensors(tensors)
    if len(lines) > LONGEST_NAMES:
        what = f"the file names {len(tensors):,} tensors in {len(lines):,} letters"
        raise ValueError(f"{what}, more than any model needs: get another copy.")
    for kind in KNOWN_KINDS:
        sign = kind.signs.search(lines)
        if not sign or not kind.also.search(lines) or kind.without.search(lines):
            continue
        if not kind.every or len(kind.signs.findall(lines)) == len(lines.splitlines()):
            return kind, sign[0].partition("\t")[0]
    return None, ""


def kind_of_tensors(tensors: Mapping[str, Tensor] | Iterable[str]) -> str:
    """What tensors of these names, and better these shapes, make up, such as "LoRA".

    >>> kind_of_tensors(["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"])
    'LoRA'
    """
    found, _ = find_kind(tensors)
    return found.name if found else UNKNOWN_KIND


def advice_for(tensors: Mapping[str, Tensor]) -> str:
    """What to do with a file of these tensors, in words."""
    found, _ = find_kind(tensors)
    return (found.use or found.instead or "minisd has no use for it") if found else "unknown here"


def refuse_other_kinds(name: str, tensors: Mapping[str, Tensor], wanted: str) -> None:
    """Raise ValueError where a file is surely not what its reader wants: what it is, what to do.

    name: of the file    wanted: a reader of refusals.json
    A file of unknown kind is refused where no good file could be one.
    """
    found, sign = find_kind(tensors)
    reader = REFUSALS["readers"][wanted]
    if (found and found.name == wanted) or not tensors:
        return
    holds = sign or ", ".join(list(tensors)[:MOST_LISTED])
    if wanted == MODEL_KIND:
        loads = "minisd loads whole Stable Diffusion v1 and v2 models"
        what = f"no whole model ({kind_of_tensors(tensors)}): {loads}, and this file holds {holds}"
    elif found and found.use:
        what = f"{found.called}, {reader['not_this']}"
    elif found:
        what = f"{found.called}, which is unknown here (it holds {holds})"
    elif "no_such" in reader:
        what = f"{reader['no_such']}: its kind is unknown here (it holds {holds})"
    else:
        return  # the reader itself judges it
    way = (found and (found.use or found.instead)) or reader["instead"]
    raise ValueError(f"{name} is {what}. {way[:1].upper()}{way[1:]}.")
