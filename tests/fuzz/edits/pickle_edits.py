"""Edits of pickles, instruction by instruction, so that most of the program still runs."""

import pickletools
from collections.abc import Callable

from hypothesis import strategies as st

from tests.fuzz.edits.byte_edits import EDGES, edit_bytes

GLOBALS = [
    *("os system", "builtins eval", "builtins getattr", "builtins dict", "builtins list"),
    *(
        "collections OrderedDict",
        "collections defaultdict",
        "_codecs encode",
        "copyreg _reconstructor",
    ),
    *(
        "torch FloatStorage",
        "torch HalfStorage",
        "torch LongStorage",
        "torch QInt8Storage",
        "torch Size",
    ),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch device"),
    *("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_device_tensor_from_numpy"),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch._tensor _rebuild_from_type_v2"),
    *("torch.storage UntypedStorage", "torch.serialization _get_layout", "torch float8_e4m3fn"),
    *("numpy.core.multiarray scalar", "numpy dtype", "numpy.core.multiarray _reconstruct"),
    *("pathlib PosixPath", "argparse Namespace", "datetime datetime", "typing Any"),
    *("pytorch_lightning.callbacks ModelCheckpoint", "torch.nn.modules.container ParameterDict"),
]
# single instructions, and short runs that need nothing below them
INSERTED = [
    *(
        b"0",
        b"(",
        b")",
        b"]",
        b"}",
        b"N",
        b"2",
        b"\x88",
        b"t",
        b"R",
        b"b",
        b"\x81",
        b"Q",
        b"a",
        b"e",
    ),
    *(b"s", b"u", b"1", b"\x94", b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x91", b"l", b"d"),
    *(b"]2a2a2a", b"]" + b"2a" * 50, b"}q\x00(h\x00h\x00u", b"]" * 500, b"(" * 500, b"(" * 20_000),
    *(
        b"K\x00",
        b"J\xff\xff\xff\xff",
        b"\x8a\x09" + b"\xff" * 8 + b"\x00",
        b"G\x7f\xf8" + b"\0" * 6,
    ),
    *(
        b"h\xff",
        b"j\xff\xff\xff\x7f",
        b"q\xff",
        b"r\xff\xff\xff\x7f",
        b"X\xff\xff\xff\x7f",
        b"\x82\x01",
    ),
    *(b"B\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8, b"\x95" + b"\xff" * 8, b"\x80\x63", b"."),
]


def instructions(content: bytes) -> list[bytes]:
    """The pickle's instructions, one after the other. Raises ValueError for a broken one."""
    starts = [position for _, _, position in pickletools.genops(content)]
    ends = [*starts[1:], starts[-1] + 1]
    return [content[a:b] for a, b in zip(starts, ends, strict=True)]


def other_argument(draw: Callable, op: bytes) -> bytes:
    """The instruction with another argument, where it has one of the common kinds."""
    code = op[:1]
    if code == b"c":
        return b"c" + draw(st.sampled_from(GLOBALS)).replace(" ", "\n").encode() + b"\n"
    if code == b"K":
        return code + bytes([draw(st.integers(0, 255))])
    if code in (b"M", b"J", b"\x8a"):
        number = draw(st.sampled_from([*EDGES, *(-edge for edge in EDGES)]))
        return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)
    if code in (b"X", b"\x8c"):
        old = op[5:] if code == b"X" else op[2:]
        new = draw(
            st.sampled_from((b"", old + b"x", b"cpu", b"cuda", b"storage", b"0", b"../x", old * 50))
        )
        return b"X" + len(new).to_bytes(4, "little") + new
    if code in (b"h", b"q"):
        return code + bytes([draw(st.integers(0, 40))])
    return draw(st.sampled_from(INSERTED))


def edit_pickle(draw: Callable, content: bytes) -> bytes:
    try:
        ops = instructions(content)
    except Exception:  # broken already
        return edit_bytes(draw, content)
    rest = content[sum(map(len, ops)) :]
    at, kind = draw(st.integers(0, len(ops) - 1)), draw(st.integers(0, 9))
    if kind == 0:
        del ops[at]
    elif kind == 1:
        ops.insert(at, ops[draw(st.integers(0, len(ops) - 1))])
    elif kind == 2:
        other = draw(st.integers(0, len(ops) - 1))
        ops[at], ops[other] = ops[other], ops[at]
    elif kind == 3:
        ops.insert(at, draw(st.sampled_from(INSERTED)))
    elif kind == 4:
        name = draw(st.sampled_from(GLOBALS)).replace(" ", "\n").encode()
        ops.insert(at, b"c" + name + b"\n" + draw(st.sampled_from((b")R", b")\x81", b"", b"(tR"))))
    else:
        telling = [
            i for i, op in enumerate(ops) if op[:1] in (b"c", b"K", b"M", b"J", b"X", b"\x8a")
        ]
        at = draw(st.sampled_from(telling)) if telling else at
        ops[at] = other_argument(draw, ops[at])
    return b"".join(ops) + rest


def edit(draw: Callable, content: bytes) -> bytes:
    """The old kind of torch.save: five pickles, then the numbers."""
    parts, rest = [], content
    try:
        for _ in range(5):
            size = sum(map(len, instructions(rest)))
            parts.append(rest[:size])
            rest = rest[size:]
    except Exception:  # broken already
        return edit_bytes(draw, content)
    at = draw(st.sampled_from((0, 1, 2, 3, 3, 3, 3, 4)))
    parts[at] = edit_pickle(draw, parts[at])
    return b"".join(parts) + rest
