"""Edits of zip archives, and of the pickle inside one that torch.save wrote."""

import io
import warnings
import zipfile
import zlib
from collections.abc import Callable

from hypothesis import strategies as st

from tests.fuzz.edits.byte_edits import EDGES, edit_bytes
from tests.fuzz.edits.pickle_edits import edit_pickle
from tests.fuzz.edits.text_edits import nasty

# Fields by their place in a record and their width in bytes (APPNOTE.TXT, sections 4.3.7 to 4.3.16)
LOCAL = [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)]
CENTRAL = [(4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2)]
CENTRAL += [(34, 2), (42, 4)]
END = [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)]
RECORDS = {b"PK\x03\x04": LOCAL, b"PK\x01\x02": CENTRAL, b"PK\x05\x06": END}


def members(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def pack(parts: list[tuple[str, bytes]], method: int) -> bytes:
    whole = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(whole, "w", method) as archive:
        warnings.simplefilter("ignore")  # a name may be there twice
        for name, content in parts:
            archive.writestr(name, content)
    return whole.getvalue()


def edit_members(draw: Callable, parts: list[tuple[str, bytes]]) -> None:
    at, kind = draw(st.integers(0, len(parts) - 1)), draw(st.integers(0, 9))
    pickles = [i for i, (name, _) in enumerate(parts) if name.endswith("data.pkl")]
    name, content = parts[at]
    if kind <= 5 and pickles:
        name, content = parts[pickles[0]]
        parts[pickles[0]] = (name, edit_pickle(draw, content))
    elif kind == 6:
        del parts[at]
    elif kind == 7:
        parts.append((name, edit_bytes(draw, content)))
    elif kind == 8:
        changed = name + nasty(draw).replace("\ud800", "")
        changed = draw(
            st.sampled_from((changed, "a/" + name, name.upper(), "../" + name, "x/code/y"))
        )
        parts[at] = (changed.replace("\0", "") or "x", content)
    else:
        parts[at] = (name, edit_bytes(draw, content))


def set_field(draw: Callable, content: bytes) -> bytes:
    """One field of one record: a size, an offset, a method, a checksum."""
    mark = draw(st.sampled_from(sorted(RECORDS)))
    starts, at = [], content.find(mark)
    while at >= 0:
        starts.append(at)
        at = content.find(mark, at + 1)
    if not starts:
        return edit_bytes(draw, content)
    offset, width = draw(st.sampled_from(RECORDS[mark]))
    at = draw(st.sampled_from(starts)) + offset
    old = int.from_bytes(content[at : at + width], "little")
    new = (
        draw(st.sampled_from([*EDGES, old - 1, old + 1, old * 2, old // 2, old + 64])) % 256**width
    )
    return content[:at] + new.to_bytes(width, "little") + content[at + width :]


def edit(draw: Callable, content: bytes) -> bytes:
    if draw(st.integers(0, 2)) == 0:
        return set_field(draw, content)
    try:
        parts = members(content)
        edit_members(draw, parts)
        method = draw(st.sampled_from((zipfile.ZIP_STORED,) * 3 + (zipfile.ZIP_DEFLATED,)))
        return pack(parts, method)
    except (
        ValueError,
        RuntimeError,
        OSError,
        EOFError,
        NotImplementedError,
        zlib.error,
        zipfile.BadZipFile,
        IndexError,
    ):
        return edit_bytes(draw, content)  # broken already
