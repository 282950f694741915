"""Small or plain files that ask for much work or memory, through every reader."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache

from hypothesis import strategies as st
from PIL import Image

from tests.fuzz import good, hostile
from tests.fuzz.case import Case, Reader
from tests.fuzz.edits import edit
from tests.fuzz.edits.picture_edits import PNG, join
from tests.fuzz.edits.safetensors_edits import assemble
from tests.fuzz.readers.odd_files import READING, read_as_another, some_wrong_kinds

MILLION = 10**6


def doubled(levels: int) -> bytes:
    """Lists that hold the list before twice: 2**levels values in a few hundred bytes."""
    inner = b"]q\x00" + b"".join(
        b"](h" + bytes([level]) + b"h" + bytes([level]) + b"eq" + bytes([level + 1])
        for level in range(levels)
    )
    return inner


def pickles() -> Iterator[bytes]:
    """The content of data.pkl, without its first two bytes and its last."""
    yield doubled(60)
    yield b"]q\x00h\x00a"  # a list that holds itself
    yield b"}q\x00K\x01h\x00s"  # and a dictionary
    yield b"](" + b"]" * 100_000 + b"e"
    yield b"](" * 3000 + b"e" * 3000
    yield b"](" + b"}" * MILLION + b"e"
    yield b"N0" * MILLION + b"N"
    yield b"X" + struct.pack("<I", 2**31 - 1) + b"a"
    yield b"](" + b"ccollections\nOrderedDict\n)R" * 50_000 + b"e"
    for shape, stride in ((2**40, 1), (2**62, 2**62), (-1, 1), (4, -1), (2**31, 0)):
        yield hostile.ops({"a": tensor(shape, stride)})


def tensor(shape: int, stride: int) -> hostile.Call:
    """A tensor of four floats that says to be larger."""
    storage = hostile.Persistent(("storage", hostile.Name("torch", "FloatStorage"), "0", "cpu", 4))
    sizes = tuple(hostile.Raw(long(number)) for number in (shape, stride))
    rebuild = hostile.Name("torch._utils", "_rebuild_tensor_v2")
    return hostile.Call(rebuild, (storage, 0, sizes[:1], sizes[1:], False, {}))


def long(number: int) -> bytes:
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


def archive(content: bytes, data: bytes = bytes(16), method: int = zipfile.ZIP_STORED) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as file:
        file.writestr("a/data.pkl", b"\x80\x02" + content + b".")
        file.writestr("a/byteorder", "little")
        file.writestr("a/data/0", data)
        file.writestr("a/version", "3\n")
    return whole.getvalue()


def archives() -> Iterator[bytes]:
    for content in pickles():
        yield archive(content)
    small = hostile.ops({"a": tensor(4, 1)})
    yield archive(small, bytes(300 * MILLION), zipfile.ZIP_DEFLATED)  # a thousandth of that
    yield archive(b"N0" * 30 * MILLION + b"N", method=zipfile.ZIP_DEFLATED)
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + small + b".")
        for number in range(20_000):
            file.writestr(f"a/data/{number}", b"")
    yield many.getvalue()


def headers() -> Iterator[bytes]:
    """.safetensors"""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield assemble(json.dumps({f"t{n}": entry for n in range(100_000)}), b"")
    yield assemble(json.dumps({"a" * 10 * MILLION: entry}), b"")
    yield assemble(json.dumps({"t": entry | {"shape": [0] + [2**31] * 1000}}), b"")
    yield assemble(json.dumps({"t": entry | {"shape": [2**62, 0, 2**62]}}), b"")
    yield assemble('{"__metadata__": {"a": "' + "\\u0000" * MILLION + '"}}', b"")
    yield assemble("[" * MILLION, b"")
    yield assemble('{"a":' * MILLION, b"")
    yield assemble(json.dumps({"t": entry}) + " " * 30 * MILLION, b"")
    yield assemble("{}", b"", 2**32 - 1)
    for levels in ("1000000.", "999999999999.", "1" * 5000 + "."):
        keys = (f"model.diffusion_model.input_blocks.{levels}0.weight", f"unet.down.{levels}conv")
        yield assemble(json.dumps(dict.fromkeys(keys, entry)), b"")


def png(width: int, height: int, *chunks: tuple[bytes, bytes], row: bytes | None = None) -> bytes:
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress((bytes(1 + 3 * width) if row is None else row) * height, 9)
    return join([(b"IHDR", size), *chunks, (b"IDAT", rows), (b"IEND", b"")])


def drawings() -> Iterator[bytes]:
    yield png(9000, 9000)
    yield png(8000, 6000)
    yield png(2**31 - 1, 1, row=b"")
    yield png(1, 2**20)
    bomb = b"Comment\0\0" + zlib.compress(bytes(100 * MILLION), 9)
    yield png(8, 8, *[(b"zTXt", bomb)] * 20)
    yield png(8, 8, (b"iCCP", bomb))
    yield png(8, 8, *[(b"tEXt", b"a\0b")] * 100_000)
    yield png(8, 8, *[(b"IDAT", b"")] * 200_000)
    yield PNG + struct.pack(">I", 2**31 - 1) + b"IHDR"
    frames = [Image.new("P", (4, 4), shade % 256) for shade in range(1500)]
    yield good.encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield good.encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:300])
    jpeg = good.encoded(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    scan = jpeg.find(b"\xff\xda")
    yield jpeg[:scan] + jpeg[scan:-2] * 50 + b"\xff\xd9"
    tiff = bytearray(good.pictures()["float.tif"])
    offset = int.from_bytes(tiff[4:8], "little")
    tiff[-4:] = offset.to_bytes(4, "little")
    yield bytes(tiff)  # its pages follow each other in a circle, if they end where most do
    yield (
        b"BM"
        + struct.pack("<IHHI", 10**9, 0, 0, 54)
        + struct.pack("<IiiHHI", 40, 60_000, 60_000, 1, 24, 0)
    )
    yield (
        b"GIF89a"
        + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
        + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;"
    )


def texts() -> Iterator[bytes]:
    """JSON, YAML, prompts and lists of merges: read by whatever reads texts."""
    yield b"[" * MILLION
    yield b'{"a":' * MILLION
    yield b"[" + b"{}," * 3 * MILLION + b"{}]"
    yield b'{"merges": ["' + b"a b" * MILLION + b'"], "pad_token": 0}'
    yield json.dumps({"merges": ["a a"] * 200_000, "pad_token": 0}).encode()
    yield b'{"pad_token": ' + b"9" * MILLION + b', "merges": []}'
    yield b'{"pad_token": 1e' + b"9" * 20 + b', "merges": []}'
    yield b"".join(
        b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9) if n else b"x")
        for n in range(30)
    )
    yield b"a: " + b"[" * 50_000
    yield b"? " * 20_000
    yield b"a" * 100_000
    yield b"(" * 50_000 + b"a:1.1)" * 5000
    yield "e\u0301".encode() * 40_000
    yield "\u0301".encode() * 50_000
    yield b"&amp;" * 20_000
    yield ("&" + "amp;" * 20_000).encode()
    yield "Ã\x83Â©".encode() * 10_000
    yield ("a" + "\u3164" * 20_000 + "b").encode()


@cache
def bombs() -> list[Case]:
    """Each with the ending that leads most readers to it."""
    kinds = {".ckpt": archives, ".safetensors": headers, ".png": drawings, ".json": texts}
    cases = [
        Case({f"bomb{at}{ending}": content}, f"bomb{at}{ending}")
        for ending, kind in kinds.items()
        for at, content in enumerate(kind())
    ]
    return cases + [
        Case({"old.pt": b"\x80\x02" + content + b"."}, "old.pt") for content in pickles()
    ]


@st.composite
def thrown(draw: st.DrawFn) -> Case:
    """One of them at a reader; a small one sometimes broken a little."""
    case, reader = draw(st.sampled_from(bombs())), draw(st.sampled_from(sorted(READING)))
    if case.size < 10_000 and draw(st.booleans()):
        case = Case({case.target: edit(draw, case.files[case.target])}, case.target)
    files = case.files | {"reader.txt": f"{reader}\n{case.target}".encode()}
    return Case(files, "reader.txt")


BOMBS = [Reader("bombs", some_wrong_kinds, thrown, read_as_another, share=0.7, named=False)]
