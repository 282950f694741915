"""Edits of bytes that know nothing of what they mean."""

from collections.abc import Callable

from hypothesis import strategies as st

# Where programs count with 8, 16, 32 or 64 bits
EDGES = [2**bits + more for bits in (0, 7, 8, 15, 16, 24, 31, 32, 40, 63) for more in (-1, 0, 1)]


def place(draw: Callable, content: bytes) -> int:
    """Somewhere: often near the start or the end, where headers and tables lie."""
    last = max(0, len(content) - 1)
    near = min(last, 128)
    where = draw(st.integers(0, 3))
    if where == 0:
        return draw(st.integers(0, near))
    if where == 1:
        return draw(st.integers(last - near, last))
    return draw(st.integers(0, last))


def flip_bits(draw: Callable, content: bytes) -> bytes:
    edited = bytearray(content or b"\0")
    for _ in range(draw(st.sampled_from((1, 1, 2, 8)))):
        at = min(place(draw, content), len(edited) - 1)
        edited[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(edited)


def set_bytes(draw: Callable, content: bytes) -> bytes:
    at = place(draw, content)
    new = draw(st.binary(min_size=1, max_size=8))
    return content[:at] + new + content[at + len(new) :]


def set_number(draw: Callable, content: bytes) -> bytes:
    """A field of 1 to 8 bytes with an edge value, or one next to what is there."""
    at, width = place(draw, content), draw(st.sampled_from((1, 2, 4, 8)))
    order = draw(st.sampled_from(("little", "big")))
    old = int.from_bytes(content[at : at + width], order)
    near = [old - 1, old + 1, old * 2, old // 2, old + 8, old - 8]
    new = draw(st.sampled_from(EDGES + near)) % 256**width
    return content[:at] + new.to_bytes(width, order) + content[at + width :]


def truncate(draw: Callable, content: bytes) -> bytes:
    return content[: place(draw, content)]


def cut_out(draw: Callable, content: bytes) -> bytes:
    at = place(draw, content)
    return content[:at] + content[at + draw(st.sampled_from((1, 2, 4, 8, 64, 512))) :]


def insert(draw: Callable, content: bytes) -> bytes:
    at, new = place(draw, content), draw(st.binary(min_size=1, max_size=32))
    return content[:at] + new * draw(st.sampled_from((1, 1, 4, 100))) + content[at:]


def repeat(draw: Callable, content: bytes) -> bytes:
    at = place(draw, content)
    piece = content[at : at + draw(st.sampled_from((1, 4, 32, 256)))]
    return content[:at] + piece * draw(st.sampled_from((2, 3, 50))) + content[at:]


def blank(draw: Callable, content: bytes) -> bytes:
    """A hole, as a disk leaves it where it lost a block."""
    at, size = place(draw, content), draw(st.sampled_from((4, 16, 512, 4096)))
    hole = bytes([draw(st.sampled_from((0, 255)))]) * min(size, len(content) - at)
    return content[:at] + hole + content[at + len(hole) :]


def append(draw: Callable, content: bytes) -> bytes:
    return content + draw(st.binary(min_size=1, max_size=16)) * draw(st.sampled_from((1, 64)))


def splice(draw: Callable, content: bytes, other: bytes | None = None) -> bytes:
    """The beginning of one and the end of another, or of itself."""
    other = content if other is None else other
    return content[: place(draw, content)] + other[place(draw, other) :]


EDITS = (
    *(flip_bits, set_bytes, set_number, set_number, truncate, cut_out),
    *(insert, repeat, blank, append, splice),
)


def edit_bytes(draw: Callable, content: bytes) -> bytes:
    return draw(st.sampled_from(EDITS))(draw, content)
