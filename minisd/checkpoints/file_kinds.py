"""Recognise what kind of file the user gave to minisd, and say how to use the file.

file_kinds.json lists the kinds of files. Special kinds come before general kinds. minisd recognises
a kind by its signs. A sign is a pattern for the name of a tensor, such as "body.#.block1.*". In
this pattern, # stands for a number and * stands for any text. A sign may also contain a pattern for
the shape of the tensor, as in "*.to_k.weight *x2048".

A reader is a function that reads one kind of file. It calls refuse_other_kinds() first. For each
reader, refusals.json contains the error texts about files of other kinds. refusals.json also
contains the error texts about files without tensors.
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
MOST_LISTED = 3  # the most names in an error about a file of an unknown kind
# The most characters in the names of all tensors of a file. The largest SD and SDXL files have
# 300,000 characters.
LONGEST_NAMES = 500_000


@dataclass(frozen=True)
class FileKind:
    """A kind of file, and the signs by which minisd recognises it.

    called: the name of the kind with an article: "a LoRA"
    signs: the pattern that at least one tensor of the file must match
    also: a second pattern that at least one tensor of the file must match
    without: a pattern that no tensor of the file may match
    every: whether all tensors of the file must match `signs`
    use: a text that says how to use the file in minisd. "": minisd cannot use the file
    instead: a text that says which file to give instead of this file. "": there is no such text
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
    """Turn signs into one regular expression for the text that list_tensors() returns.

    The expression finds the first line that matches at least one sign.

    If a text in a sign stands between two stars, such as "a" in "*a*b", only its first occurrence
    in the line is tried. The group (?=(…))\\1 has this effect. If all occurrences were tried, the
    search could take minutes for the names in a hostile file.
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
    """A text that says what a file without tensors is, and what to do.

    what: "first bytes", or "members of a zip" for a zip file that torch.save did not write
    beginning: for "first bytes": the first bytes of the file, decoded as Latin-1. For "members of a
        zip": the names of the files in the zip, with one name on each line

    >>> describe_foreign_file("first bytes", "GGUF\\0\\0\\0")
    'is a GGUF file, whose weights are quantised: get the same model as .safetensors'
    """
    signs = REFUSALS[what]
    return next(signs[sign] for sign in signs if re.match(sign, beginning, re.DOTALL))


def list_tensors(tensors: Mapping[str, Tensor] | Iterable[str]) -> str:
    """A text with one line for each tensor: the name, a tab, and the shape.

    If `tensors` contains only names, the shapes are left out.

    >>> import torch
    >>> list_tensors({"clip_g": torch.zeros(2, 1280)})
    'clip_g\\t2x1280'
    """
    if not isinstance(tensors, Mapping):
        return "\n".join(f"{name}\t" for name in tensors)
    return "\n".join(f"{name}\t{'x'.join(map(str, t.shape))}" for name, t in tensors.items())


def find_kind(tensors: Mapping[str, Tensor] | Collection[str]) -> tuple[FileKind | None, str]:
    """Find the first kind in file_kinds.json that fits the tensors.

    Returns this kind, and the name of a tensor that matches one of its signs. If no kind fits,
    returns None and "".

    Raises ValueError if there are more names than minisd can search in a few seconds.
    """
    lines = list_tensors(tensors)
    if len(lines) > LONGEST_NAMES:
        what = f"the names of the file's {len(tensors):,} tensors have {len(lines):,} characters"
        raise ValueError(f"{what}, more than any model needs: get another copy.")
    for kind in KNOWN_KINDS:
        sign = kind.signs.search(lines)
        if not sign or not kind.also.search(lines) or kind.without.search(lines):
            continue
        if not kind.every or len(kind.signs.findall(lines)) == len(lines.splitlines()):
            return kind, sign[0].partition("\t")[0]
    return None, ""


def kind_of_tensors(tensors: Mapping[str, Tensor] | Collection[str]) -> str:
    """The kind of file that has these tensors, such as "LoRA".

    Some kinds differ only in the shapes of the tensors. So if you have the tensors, pass them
    instead of only their names.

    >>> kind_of_tensors(["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"])
    'LoRA'
    """
    found, _ = find_kind(tensors)
    return found.name if found else UNKNOWN_KIND


def advice_for(tensors: Mapping[str, Tensor]) -> str:
    """A text that says how to use a file with these tensors, or which file to use instead."""
    found, _ = find_kind(tensors)
    advice = found and (found.use or found.instead or "minisd cannot use it")
    return advice or "minisd does not know this kind of file"


def refuse_other_kinds(name: str, tensors: Mapping[str, Tensor], wanted: str) -> None:
    """Raise ValueError if a file is certainly not of the kind that a reader wants.

    The error says what the file is and what to do with the file. If the kind of the file is
    unknown, only some readers refuse the file. The other readers accept tensors with any names.

    name: the name of the file
    wanted: the kind that the reader wants, such as "LoRA". It is a key under "readers" in
        refusals.json
    """
    found, sign = find_kind(tensors)
    reader = REFUSALS["readers"][wanted]
    if (found and found.name == wanted) or not tensors:
        return
    holds = sign or ", ".join(list(tensors)[:MOST_LISTED])
    if found and found.use:
        what = f"{found.called}, {reader['not_this']}"
    elif found:
        what = f"{found.called}, which minisd cannot use (it holds {holds})"
    elif reader.get("refuses_unknown"):
        what = f"{reader['not_this']}: minisd does not know its kind (it holds {holds})"
    else:
        return  # the reader itself checks the file
    advice = (found and (found.use or found.instead)) or reader["instead"]
    raise ValueError(f"{name} is {what}. {advice[:1].upper()}{advice[1:]}.")
