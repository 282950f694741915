"""Host (a): our own networks under other names. A bug is an edit of their source.

The source of minisd's network files is edited, every attribute gets a new name, and the result runs
as modules of its own.
"""

import random
import re
import sys
import types
from pathlib import Path

import minisd
from minisd.compare.weights import weights_of

FILES = ("attention", "clip", "unet", "vae")
PACKAGE = Path(minisd.__file__).parent
# attributes that torch, the configs or the callers name
KEPT = {
    "config",
    "weight",
    "bias",
    "channels",
    "heads",
    "width",
    "layers",
    "mode",
    "mean",
    "sample",
}


def build(part: str, config, edits: dict[str, tuple[str, str]], seed: int = 0):
    """One network with other names, untrained. edits: file -> (old, new), which must be there"""
    modules, renames = {}, attribute_names(seed)
    for file in FILES:
        text = (PACKAGE / f"{file}.py").read_text(encoding="utf-8")
        if file in edits:
            old, new = edits[file]
            assert old in text, f"{file}.py has no {old!r}"
            text = text.replace(old, new)
        text = re.sub(r"self\.([a-z_0-9]+)\b", lambda m: f"self.{renames.get(m[1], m[1])}", text)
        text = re.sub(
            r"\b(tap=self|resize|self)\.(\w+)\b",
            lambda m: f"{m[1]}.{renames.get(m[2], m[2])}",
            text,
        )
        text = text.replace("from minisd.attention", "from shuffled_attention")
        module = types.ModuleType(f"shuffled_{file}")
        module.__file__ = f"shuffled_{file}.py"
        sys.modules[module.__name__] = module
        exec(compile(text, module.__file__, "exec"), vars(module))
        modules[file] = module
    names = {
        "unet": ("unet", "UNet"),
        "vae": ("vae", "VAE"),
        "text_encoder": ("clip", "TextTransformer"),
    }
    file, name = names[part]
    return getattr(modules[file], name)(getattr(config, part.removesuffix("_encoder")))


def attribute_names(seed: int) -> dict[str, str]:
    """Attribute of our networks -> another name."""
    found = set()
    for file in FILES:
        text = (PACKAGE / f"{file}.py").read_text(encoding="utf-8")
        found |= set(re.findall(r"self\.([a-z_0-9]+) = nn|self\.([a-z_0-9]+) = [A-Z]\w+\(", text))
    names = sorted({name for pair in found for name in pair if name} - KEPT)
    numbers = list(range(len(names)))
    random.Random(seed).shuffle(numbers)
    return {name: f"part{number}" for name, number in zip(names, numbers, strict=True)}


def load(port, ours) -> None:
    """Give the port our weights: both register their parameters in the same order."""
    theirs, own = weights_of(port), weights_of(ours)
    for target, source in zip(theirs.values(), own.values(), strict=True):
        assert target.shape == source.shape
        target.copy_(source)
