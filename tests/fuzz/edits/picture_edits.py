"""Edits of pictures: the chunks of a PNG with right checksums; bytes and numbers of the others."""

import struct
import zlib
from collections.abc import Callable

from hypothesis import strategies as st

from tests.fuzz.edits.byte_edits import EDGES, edit_bytes, set_number
from tests.fuzz.edits.json_edits import edit as edit_json_bytes
from tests.fuzz.edits.text_edits import edit as edit_text_bytes
from tests.fuzz.edits.text_edits import nasty

PNG = b"\x89PNG\r\n\x1a\n"
STARTS = (PNG, b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
KINDS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP")
KINDS += (b"acTL", b"fcTL", b"fdAT", b"sBIT", b"gAMA", b"xxxx")
SIZES = (0, 1, 2, 8, 63, 1000, 9000, 20_000, 65_536, 2**31 - 1, 2**31, 2**32 - 1)


def knows(start: bytes) -> bool:
    return start.startswith(STARTS)


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(PNG)
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def join(parts: list[tuple[bytes, bytes]]) -> bytes:
    whole = [PNG]
    for kind, body in parts:
        checksum = zlib.crc32(kind + body)
        whole.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum))
    return b"".join(whole)


def edit_header(draw: Callable, body: bytes) -> bytes:
    """Width, height, bits, colour type, compression, filter, interlace."""
    values = list(struct.unpack(">IIBBBBB", body[:13].ljust(13, b"\0")))
    at = draw(st.integers(0, 6))
    values[at] = draw(st.sampled_from(SIZES) if at < 2 else st.integers(0, 255))
    return struct.pack(">IIBBBBB", *values)


def edit_written(draw: Callable, body: bytes) -> bytes:
    """The text behind the name in a tEXt chunk: JSON, or the web UI's lines."""
    name, zero, text = body.partition(b"\0")
    edited = (edit_json_bytes if text.startswith(b"{") else edit_text_bytes)(draw, text)
    return name + zero + edited


def edit_png(draw: Callable, content: bytes) -> bytes:
    parts = chunks(content)
    if not parts:
        return edit_bytes(draw, content)
    texts = [i for i, (kind, _) in enumerate(parts) if kind == b"tEXt"]
    at, what = draw(st.integers(0, len(parts) - 1)), draw(st.integers(0, 9))
    kind, body = parts[at]
    if what <= 3 and texts:
        at = draw(st.sampled_from(texts))
        parts[at] = (b"tEXt", edit_written(draw, parts[at][1]))
    elif what <= 5:
        parts[0] = (parts[0][0], edit_header(draw, parts[0][1]))
    elif what == 6:
        del parts[at]
    elif what == 7:
        parts.insert(at, (draw(st.sampled_from(KINDS)), draw(st.binary(max_size=64))))
    elif what == 8:
        bomb = zlib.compress(b"a" * draw(st.sampled_from((10, 2_000_000))))
        text = nasty(draw).encode("utf-8", "replace")[:79] + b"\0\0" + bomb
        parts.insert(1, (draw(st.sampled_from((b"zTXt", b"iCCP", b"iTXt"))), text))
    else:
        parts[at] = (kind, edit_bytes(draw, body))
    return join(parts)


def edit(draw: Callable, content: bytes) -> bytes:
    if content.startswith(PNG):
        return edit_png(draw, content)
    if draw(st.booleans()):  # sizes and offsets stand near the start
        at = draw(st.integers(0, min(len(content), 200)))
        width, order = draw(st.sampled_from((2, 4))), draw(st.sampled_from(("little", "big")))
        new = draw(st.sampled_from((*EDGES, *SIZES))) % 256**width
        return content[:at] + new.to_bytes(width, order) + content[at + width :]
    return set_number(draw, content)
