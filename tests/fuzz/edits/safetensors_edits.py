"""Edits of .safetensors files: the length, the JSON at their head, and the numbers behind it."""

import struct
from collections.abc import Callable

from hypothesis import strategies as st

from tests.fuzz.edits.byte_edits import EDGES, edit_bytes
from tests.fuzz.edits.json_edits import NUMBERS, Pairs, edit_value, parse, write
from tests.fuzz.edits.text_edits import edit_text, nasty

DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "C64",
    "F4",
    "x",
)


def assemble(header: str, data: bytes, length: int | None = None) -> bytes:
    """A file with this header. length: what it says of the header's; None: the truth"""
    head = header.encode("utf-8", errors="surrogatepass")
    said = len(head) if length is None else length
    return struct.pack("<Q", said % 2**64) + head + data


def take_apart(content: bytes) -> tuple[Pairs, bytes]:
    """The header and the bytes of the numbers. Raises ValueError for a broken file."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = parse(content[8:end].decode("utf-8"))
    if not isinstance(header, Pairs) or not header:
        raise ValueError("no object")
    return header, content[end:]


def edit_entry(draw: Callable, header: Pairs) -> None:
    """The dtype, the shape or the place of one tensor."""
    at = draw(st.integers(0, len(header) - 1))
    name, entry = header[at]
    fields = dict(entry) if isinstance(entry, Pairs) else {}
    kind = draw(st.integers(0, 4))
    if kind == 0:
        fields["dtype"] = draw(st.sampled_from(DTYPES))
    elif kind == 1:
        shape = list(fields.get("shape") or [])
        shape = draw(st.sampled_from((shape[::-1], [*shape, 1], shape[:-1], [2**62, *shape], [0])))
        fields["shape"] = shape
    elif kind == 2:
        offset = draw(st.sampled_from((*EDGES, *NUMBERS)))
        fields["data_offsets"] = [*(fields.get("data_offsets") or [0])[:1], offset]
    elif kind == 3:
        other = draw(st.integers(0, len(header) - 1))
        another = header[other][1]
        another = dict(another) if isinstance(another, Pairs) else {}
        fields["data_offsets"] = another.get("data_offsets", [0, 0])
    else:
        name = edit_text(draw, name) if draw(st.booleans()) else nasty(draw)
    header[at] = (name, Pairs(fields.items()))


def edit_metadata(draw: Callable, header: Pairs) -> None:
    """The texts of __metadata__, which are often JSON themselves."""
    for at, (name, value) in enumerate(header):
        if name == "__metadata__":
            header[at] = (name, edit_value(draw, value))
            return
    header.insert(0, ("__metadata__", Pairs([(nasty(draw), nasty(draw))])))


def set_numbers(draw: Callable, data: bytes) -> bytes:
    """NaN, infinity, zeros or the largest half-precision number somewhere, or everywhere."""
    new = draw(st.sampled_from((b"\xff\xff", b"\0\x7c", b"\0\xfc", b"\xff\x7b", b"\0\0")))
    if draw(st.integers(0, 3)) == 0:
        return (new * len(data))[: len(data)]
    at = 2 * draw(st.integers(0, max(0, len(data) // 2 - 1)))
    return data[:at] + new + data[at + 2 :]


def edit(draw: Callable, content: bytes) -> bytes:
    try:
        header, data = take_apart(content)
    except (ValueError, RecursionError):  # broken already
        return edit_bytes(draw, content)
    kind = draw(st.integers(0, 9))
    if kind <= 3:
        edit_metadata(draw, header)
    elif kind <= 6:
        edit_entry(draw, header)
    elif kind == 7:
        header = edit_value(draw, header)
    elif kind == 8:
        data = set_numbers(draw, data)
    else:
        text = write(header)
        near = [len(text) - 1, len(text) + 1, len(text) + len(data), len(text) + len(data) + 1]
        return assemble(text, data, draw(st.sampled_from(EDGES + near)))
    return assemble(write(header), data)
