"""Recognise the kind of any file that people give to minisd, and say what to do with it.

file_kinds.json lists the kinds, special ones before general ones. refusals.json contains the error
texts: those of each reader for files that it cannot use, and those for files without tensors.

A sign is a pattern for the name of a tensor, and sometimes for its shape: "body.#.block1.*" or
"*.to_k.weight *x2048". A * stands for any text and a # for a number. The names are those that other
programs write. Every reader calls refuse_other_kinds() first.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

MODEL_KIND = "Stable Diffusion model"
UNKNOWN_KIND = "file of an unknown kind"
MOST_LISTED = 3  # names in an error about a file of an unknown kind
LONGEST_NAMES = 500_000  # characters of all names together; the largest SD and SDXL files: 300,000


@dataclass(frozen=True)
class FileKind:
    """A kind of file, and the signs to recognise it by.

    A file is of this kind if one of its tensors matches `signs`, one matches `also` (if the kind
    has any), and none matches `without`.

    called: its name with an article: "a LoRA"
    every: whether all tensors must match `signs`, not only one
    use: how to use the file in minisd    instead: what to give in its place
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
    """A pattern that finds the first line of list_tensors() that matches one of the signs.

    A text between two stars may match where it first occurs: (?=(…))\\1 tries no other place. To
    try them all would take minutes for names that someone made up to be slow.
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


def read_table(name: str) -> Any:
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
    """What a file without tensors is, and what to do about it.

    what: "first bytes" or "members of a zip"
    beginning: the first bytes of the file as Latin-1, or the names of the files in a zip that
        torch.save did not write, one a line

    >>> describe_foreign_file("first bytes", "GGUF\\0\\0\\0")
    'is a GGUF file, whose weights are quantised: get the same model as .safetensors'
    """
    signs = REFUSALS[what]
    return next(signs[sign] for sign in signs if re.match(sign, beginning, re.DOTALL))


def list_tensors(tensors: Mapping[str, Tensor] | Iterable[str]) -> str:
    """One line for each tensor: its name, a tab and its shape, if the shape is known.

    >>> import torch
    >>> list_tensors({"clip_g": torch.zeros(2, 1280)})
    'clip_g\\t2x1280'
    """
    if not isinstance(tensors, Mapping):
        return "\n".join(f"{name}\t" for name in tensors)
    return "\n".join(f"{name}\t{'x'.join(map(str, t.shape))}" for name, t in tensors.items())


def find_kind(tensors: Mapping[str, Tensor] | Collection[str]) -> tuple[FileKind | None, str]:
    """The first kind that the tensors match, and the name of the tensor that shows it.

    Raises ValueError for more names than minisd can search in a few seconds.
    """
    lines = list_tensors(tensors)
    if len(lines) > LONGEST_NAMES:
        what = f"the file names {len(tensors):,} tensors in {len(lines):,} characters"
        raise ValueError(f"{what}, which is more than any model needs: get another copy.")
    for kind in KNOWN_KINDS:
        sign = kind.signs.search(lines)
        if not sign or not kind.also.search(lines) or kind.without.search(lines):
            continue
        if not kind.every or len(kind.signs.findall(lines)) == len(lines.splitlines()):
            return kind, sign[0].partition("\t")[0]
    return None, ""


def kind_of_tensors(tensors: Mapping[str, Tensor] | Collection[str]) -> str:
    """The kind of file that has these tensors, such as "LoRA". Some kinds differ only in shapes.

    >>> kind_of_tensors(["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"])
    'LoRA'
    """
    found, _ = find_kind(tensors)
    return found.name if found else UNKNOWN_KIND


def advice_for(tensors: Mapping[str, Tensor]) -> str:
    """How to use a file with these tensors, or what to do instead, in words."""
    found, _ = find_kind(tensors)
    advice = found and (found.use or found.instead or "minisd cannot use it")
    return advice or "minisd does not know this kind of file"


def refuse_other_kinds(name: str, tensors: Mapping[str, Tensor], wanted: str) -> None:
    """Raise ValueError if a file is surely not of the kind that its reader wants.

    The error says what the file is and what to do with it. A file of an unknown kind passes if a
    good file for this reader may have any names.

    name: the file's    wanted: the reader, by its name in refusals.json
    """
    found, sign = find_kind(tensors)
    reader = REFUSALS["readers"][wanted]
    if (found and found.name == wanted) or not tensors:
        return
    holds = sign or ", ".join(list(tensors)[:MOST_LISTED])
    if found and found.use:
        what = f"{found.called}, {reader['not_this']}"
    elif found:
        what = f"{found.called}, which minisd cannot use here (it holds {holds})"
    elif reader.get("refuses_unknown"):
        what = f"{reader['not_this']}: minisd does not know its kind (it holds {holds})"
    else:
        return  # the reader itself judges it
    advice = (found and (found.use or found.instead)) or reader["instead"]
    raise ValueError(f"{name} is {what}. {advice[:1].upper()}{advice[1:]}.")
