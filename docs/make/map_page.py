"""Write docs/map.md, the table of names as a page: python -m docs.make.map_page"""

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from minisd.checkpoints import names
from minisd.config import SD15, SD20_BASE, ModelConfig
from tests.helpers.reference_networks import ours

PAGE = Path(__file__).parents[2] / "docs" / "map.md"

HEAD = """# Names

Every module of a model has three names: one in minisd, one in the original files (CompVis,
Stability AI) and one in diffusers folders. This page lists them. `python -m docs.make.map_page`
writes it from `minisd/checkpoints/names.py`.

For each network, the first table lists the blocks. The tables below it list the parts of each kind
of block. The full name of a part is the name of its block, a dot and its own name. For example, the
block `down.0.res.0` has a part `conv1`, so the full name is `down.0.res.0.conv1`. In the original
files, it is `input_blocks.1.0.in_layers.2`.

All layers of a text transformer have the same parts, so its table lists only the first two layers
and the last one.
"""
TABLE = """
| minisd | original | diffusers | remark |
|---|---|---|---|
"""


def page() -> str:
    parts = [
        ("U-Net", "unet", SD15, names.unet_rows(SD15.unet)),
        ("VAE", "vae", SD15, names.vae_rows(SD15.vae)),
        ("Text, SD v1", "text_encoder", SD15, names.text_v1_rows(SD15.text)),
        ("Text, SD v2", "text_encoder", SD20_BASE, names.text_v2_rows(SD20_BASE.text)),
    ]
    return HEAD + "".join(section(*part) for part in parts)


def section(title: str, part: str, config: ModelConfig, rows: list[names.Row]) -> str:
    prefix = names.prefixes(config)[part]
    text = f"\n## {title}\n\nIn a single file, the names start with `{prefix}`.\n"
    text += TABLE + "".join(line(row) for row in without_repeats(rows))
    for kind, inside in kinds(ours(part, config), rows).items():
        text += f"\nThe parts of each {kind}:\n{TABLE}" + "".join(line(row) for row in inside)
    return text


def line(row: names.Row) -> str:
    return f"| `{row.ours}` | `{row.original}` | `{row.diffusers}` | {remark(row)} |\n"


def remark(row: names.Row) -> str:
    if row.third is not None:
        return f"original: one matrix for three parts; this is part {row.third + 1}"
    if len(row.convolution) == 2:
        return "a 1x1 convolution in SD v1, a linear layer in SD v2"
    if row.convolution:
        return "original: a 1x1 convolution"
    remarks = {
        "shortcut": "only if the width changes",
        "resize": "`downsample` and `downsamplers.0` in the encoder",
    }
    return remarks.get(row.ours, "")


def without_repeats(rows: list[names.Row]) -> list[names.Row]:
    """The rows without the layers of a text transformer between the second and the last."""
    layers = [row for row in rows if row.ours.startswith("layers.")]
    return [row for row in rows if row not in layers[2:-1]]


def kinds(network: nn.Module, rows: Iterable[names.Row]) -> dict[str, tuple[names.Row, ...]]:
    """Class name -> the parts of a block of that class, for the block that has the most parts."""
    found = {}
    for row in rows:
        if row.rows:
            block = network.get_submodule(row.ours)
            blocks = {type(block).__name__: row.rows} | kinds(block, row.rows)
            found |= {
                kind: inside
                for kind, inside in blocks.items()
                if len(inside) > len(found.get(kind, ()))
            }
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
