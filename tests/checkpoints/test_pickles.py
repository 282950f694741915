"""Pickles and zips from strangers: a good one loads as it is, another ends in one sentence."""

import io
import json
import os
import pickle
import pickletools
import socket
import sys
import tarfile
import threading
import time
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
from torch.serialization import get_safe_globals

from minisd.checkpoints.cover import cover_network
from minisd.checkpoints.folder import weight_files
from minisd.checkpoints.load import fill
from minisd.checkpoints.names import Row
from minisd.checkpoints.pickles import unpickle
from minisd.checkpoints.read import named_tensors, read_tensors

NUMBERS = torch.arange(12, dtype=torch.float32)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n"
ENCODE = b"c_codecs\nencode\n"


def save(path: Path, content: object, old: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def refusal(path: Path) -> str:
    """The error that read() raises: one line that names the file, within 5 seconds."""
    began = time.monotonic()
    with pytest.raises(ValueError) as caught:
        read_tensors(path)
    assert time.monotonic() - began < 5
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert len(message) < 300
    return message


def pack_again(source: Path, path: Path, method: int, changes: dict | None = None) -> Path:
    """The same members in another zip. changes: other content of some, by the end of their names"""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(path, "w", method) as packed:
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            packed.writestr(info.filename, (changes or {}).get(name) or archive.read(info))
    return path


def with_pickle(path: Path, program: bytes) -> Path:
    """A zip as torch.save writes it, with this program in place of its pickle."""
    whole = save(path.with_name("whole.ckpt"), {"w": NUMBERS})
    return pack_again(whole, path, zipfile.ZIP_STORED, {"data.pkl": b"\x80\x02" + program + b"."})


# ---- parts of programs -----------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def integer(value: int) -> bytes:
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def storage(key: str = "0", count: int = 12, kind: str = "FloatStorage") -> bytes:
    named = text("storage") + f"ctorch\n{kind}\n".encode() + text(key)
    return b"(" + named + text("cpu") + integer(count) + b"tQ"


def tensor(size=(12,), stride=(1,), offset=0, stored: bytes | None = None) -> bytes:
    sizes = [b"(" + b"".join(map(integer, each)) + b"t" for each in (size, stride)]
    inside = (storage() if stored is None else stored) + integer(offset) + b"".join(sizes)
    return REBUILD + b"(" + inside + b"\x89" + ORDERED + b")RtR"


def under_name(value: bytes, key: bytes | None = None) -> bytes:
    return b"}" + (text("w") if key is None else key) + value + b"s"


ENCODES = ENCODE + b"h\x00" + text("latin1") + b"\x86R"
DEEP_KEY = b")" + b"\x85" * 100_000
WIDE_KEY = b")" + b"q\x00h\x00\x86" * 60  # a pair of the same, 60 times
WIDE_LIST = b"]" + b"q\x00]h\x00ah\x00a" * 60  # a list of the same twice

PROGRAMS = {
    # numbers that the file does not have
    "numbers out of nothing": under_name(tensor((10**6, 10**6), (0, 0))),
    "numbers outside the storage": under_name(tensor((12,), (1,), 1)),
    "numbers far outside": under_name(tensor((2,), (10**15,))),
    "a shape larger than the storage": under_name(tensor((13,), (1,))),
    "a negative step": under_name(tensor((12,), (-1,), 11)),
    "a negative size": under_name(tensor((-1,), (1,))),
    "a negative place": under_name(tensor((1,), (1,), -5)),
    "sizes without steps": under_name(tensor((12,), ())),
    "sizes of thousands of digits": under_name(tensor((2**2000,) * 100, (2**2000,) * 100)),
    "a storage larger than its member": under_name(tensor(stored=storage(count=13))),
    "a storage smaller than its member": under_name(tensor(stored=storage(count=11))),
    "a storage of 10**15 numbers": under_name(tensor(stored=storage(count=10**15))),
    "a storage of fewer than none": under_name(tensor((), (), stored=storage(count=-12))),
    "a storage that is not there": under_name(tensor(stored=storage("7"))),
    "a storage with a path": under_name(tensor(stored=storage("../data.pkl"))),
    "one storage of two sizes": tensor() + storage(count=6),
    "one storage of two kinds": b"(" + tensor() + storage(count=6, kind="DoubleStorage") + b"t",
    "no storage but a number": under_name(tensor(stored=integer(5))),
    "no storage but a pair": under_name(tensor(stored=integer(4) + integer(12) + b"\x86")),
    # tensors of a kind that are no weights
    "complex": under_name(tensor((6,), stored=storage(count=6, kind="ComplexFloatStorage"))),
    "a sparse one": b"ctorch._utils\n_rebuild_sparse_tensor\n)R",
    "one without numbers": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R",
    "a nested one": b"ctorch._utils\n_rebuild_nested_tensor\n)R",
    "a quantized one": b"ctorch._utils\n_rebuild_qtensor\n)R",
    "a subclass": b"ctorch._tensor\n_rebuild_from_type_v2\n)R",
    "from NumPy": b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n)R",
    # work and memory without end
    "a key in itself 100,000 times": under_name(b"N", DEEP_KEY),
    "a key that doubles": under_name(b"N", WIDE_KEY),
    "a set of what doubles": b"cbuiltins\nset\n" + b"]" + WIDE_KEY + b"a\x85R",
    "a dictionary from what doubles": ORDERED + b"]" + WIDE_KEY + b"N\x86a\x85R",
    "attributes from what doubles": ORDERED + b")R]" + WIDE_KEY + b"N\x86ab",
    "a storage's key that doubles": b"(" + text("storage") + b"N" + WIDE_KEY + b"NNtQ",
    "a call of what doubles": WIDE_LIST + b")R",
    "a class that doubles": WIDE_LIST + b")\x81",
    "lists that double": WIDE_LIST,
    "a tensor in lists that double": b"]" + tensor() + b"a" + WIDE_LIST[1:],
    "a list in itself": b"]q\x00h\x00a",
    "a dictionary in itself": b"}q\x00" + text("w") + b"h\x00s",
    "lists in lists": b"]" * 100_000 + b"a" * 99_999,
    "a million steps": b"N" * 1_000_000,
    "a million dictionaries": b"(" + b"}" * 1_000_000 + b"t",
    "a thousand classes": b"".join(b"cnumpy\nx%d\n" % n for n in range(1000)),
    "a slow encoding": ENCODE + text("ä" * 100_000) + text("punycode") + b"\x86R",
    "a long text again and again": text("a" * 10**6) + b"q\x00" + ENCODES * 900,
    "ten billion zeros": b"cbuiltins\nbytearray\n" + integer(10**10) + b"\x85R",
    "a tensor of ten billion": b"ctorch\nTensor\n" + integer(10**10) + b"\x85R",
    "a long name": under_name(tensor(), text("w" * 100_000)),
    # not what it says
    "a call of a number": b"K\x01)R",
    "a state for a number": b"K\x01}b",
    "a state for a tensor": tensor() + b"(" + storage() + b"K\x00K\x0c\x85K\x01\x85tb",
    "no call but a text": ORDERED + text("ab" * 1000) + b"R",
    "a class's name with a zero": b"cnumpy\na\0b\n)R",
    "a missing mark": b"t",
    "a missing value": b"\x87",
    "a value from nowhere": b"h\x07",
    "an append to nothing": b"]a",
    "an unknown instruction": b"\xff",
    "another protocol": b"\x95" + (9).to_bytes(8, "little") + b"]\x94K\x01a",
    "no text": b"X\x02\0\0\0\xff\xff",
    "a text beyond the end": b"X\xff\xff\xff\xff",
    "a huge number": b"\x8b\xff\xff\xff\x7f",
    "half a character in a name": under_name(tensor(), b"X\x03\0\0\0\xed\xa0\x80"),
    "a name beyond ASCII": b"cnump\xc3\xa9\nx\n)R",
    "only its start": b"",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_hostile_program_ends_in_one_sentence(tmp_path, program):
    refusal(with_pickle(tmp_path / "a.ckpt", program))


def test_the_parts_of_programs_above_make_good_ones(tmp_path):
    assert torch.equal(
        read_tensors(with_pickle(tmp_path / "a.ckpt", under_name(tensor())))["w"], NUMBERS
    )
    turned = under_name(tensor((3, 2), (1, 6), 2))
    expected = NUMBERS.as_strided((3, 2), (1, 6), 2)
    assert torch.equal(read_tensors(with_pickle(tmp_path / "b.ckpt", turned))["w"], expected)


# ---- archives --------------------------------------------------------------------------------

CONTENT = {
    "state_dict": OrderedDict(
        whole=torch.randn(64, 32),
        half=torch.randn(16, 3, 3, 3).half(),
        short=torch.randn(7).bfloat16(),
        tiny=torch.randn(9).to(torch.float8_e4m3fn),
        long=torch.randn(5, dtype=torch.float64),
        turned=torch.randn(6, 4).T,
        part=torch.randn(20)[3:9:2],
        scalar=torch.tensor(0.5),
        empty=torch.zeros(0, 3),
        trained=torch.nn.Parameter(torch.randn(3)),
        position_ids=torch.arange(77)[None],
        mask=torch.ones(3, dtype=torch.bool),
    ),
    "epoch": 3,
}
CONTENT["state_dict"]["tied"] = CONTENT["state_dict"]["whole"]
CONTENT["state_dict"]["row"] = CONTENT["state_dict"]["whole"][5]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def assert_as_saved(path: Path, expected: dict) -> None:
    found = read_tensors(path)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].shape == tensor.shape
        assert torch.equal(found[key].double(), tensor.double())


@pytest.mark.parametrize("name", ["a.ckpt", "a.bin", "a.safetensors"])
def test_good_files_are_read_bit_for_bit(tmp_path, name):
    assert_as_saved(save(tmp_path / name, CONTENT), CONTENT["state_dict"])
    old = {key: tensor for key, tensor in CONTENT["state_dict"].items() if key != "tiny"}
    assert_as_saved(save(tmp_path / name, old, old=True), old)  # torch has no 8 bits there


@pytest.mark.parametrize("method", METHODS)
def test_a_good_file_packed_again_is_read_bit_for_bit(tmp_path, method):
    path = pack_again(save(tmp_path / "a.ckpt", CONTENT), tmp_path / "b.ckpt", method)
    assert_as_saved(path, CONTENT["state_dict"])


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be written there")
def test_tensors_stay_mapped_to_a_file_that_is_not_packed(tmp_path):
    path = save(tmp_path / "a.ckpt", {"w": torch.full((1000,), 7.0)})
    tensor = read_tensors(path)["w"]
    changed = path.read_bytes().replace(torch.tensor(7.0).numpy().tobytes(), bytes(4))
    with open(path, "r+b") as file:  # the same file: its mapping sees it
        file.write(changed)
    assert not tensor.any()


def edited(path: Path, at: int, content: bytes) -> Path:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)
    return path


def places(path: Path, name: str) -> tuple[int, int]:
    """Where a member's own header is, and where its line of the table of contents."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        own = next(info for info in infos if info.filename.endswith(name))
        line = archive.start_dir
        for info in infos[: infos.index(own)]:
            line += 46 + len(info.filename) + len(info.extra) + len(info.comment)
    return own.header_offset, line


def two(path: Path) -> Path:
    return save(path, {"a": torch.zeros(12), "b": torch.ones(12)})


def size_of_8_in_the_table(path: Path) -> Path:
    return edited(two(path), places(path, "data/0")[1] + 20, (8).to_bytes(4, "little") * 2)


def larger_than_the_file(path: Path) -> Path:
    return edited(two(path), places(path, "data/1")[1] + 20, (2**31).to_bytes(4, "little") * 2)


def one_over_another(path: Path) -> Path:
    start, line = places(two(path), "data/0")[0], places(path, "data/1")[1]
    return edited(path, line + 42, start.to_bytes(4, "little"))


def another_name_in_its_header(path: Path) -> Path:
    start = places(two(path), "data/0")[0]
    return edited(path, start + 30, path.read_bytes()[start + 30 :].split(b"0")[0] + b"7")


def another_method_in_its_header(path: Path) -> Path:
    return edited(two(path), places(path, "data/0")[0] + 8, b"\x08\0")


def no_header(path: Path) -> Path:
    return edited(two(path), places(path, "data/0")[0], b"PK\5\6")


def password(path: Path) -> Path:
    return edited(two(path), places(path, "data/0")[1] + 8, b"\x01\x08")


def unknown_method(path: Path) -> Path:
    for at, start in zip((8, 10), places(two(path), "data/0"), strict=True):
        edited(path, start + at, b"\x61\0")
    return path


def broken_packing(path: Path) -> Path:
    pack_again(two(path.with_name("b")), path, zipfile.ZIP_DEFLATED)
    return edited(path, places(path, "data/1")[0] + 40, b"\xff" * 9)


def one_name_twice(path: Path) -> Path:
    with zipfile.ZipFile(two(path), "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/data/0", b"\1" * 48)
    return path


def a_bomb(path: Path) -> Path:
    """300 MB in 0.3 MB, and its pickle asks for all of it."""
    program = under_name(tensor((75_000_000,), stored=storage(count=75_000_000)))
    whole = with_pickle(path.with_name("b"), program)
    return pack_again(whole, path, zipfile.ZIP_DEFLATED, {"data/0": bytes(300_000_000)})


def a_bomb_of_a_pickle(path: Path) -> Path:
    whole = two(path.with_name("b"))
    return pack_again(whole, path, zipfile.ZIP_DEFLATED, {"data.pkl": bytes(50_000_000)})


def a_huge_table_of_contents(path: Path) -> Path:
    whole = two(path).read_bytes()
    end = whole.rindex(b"PK\5\6")
    size = 40_000_000
    lines = b"PK\1\2".ljust(46, b"\0") * (size // 46)
    ending = whole[end : end + 8] + b"\xff" * 4 + len(lines).to_bytes(4, "little")
    path.write_bytes(whole[:end] + lines + ending + end.to_bytes(4, "little") + b"\0\0")
    return path


def another_order_of_bytes(path: Path) -> Path:
    return pack_again(
        two(path.with_name("b")), path, zipfile.ZIP_STORED, {"byteorder": b"sideways"}
    )


def no_version(path: Path) -> Path:
    return pack_again(two(path.with_name("b")), path, zipfile.ZIP_STORED, {"version": b"one"})


def two_folders(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/version", b"3")
        archive.writestr("y/data.pkl", b"\x80\x02}.")
    return path


def an_empty_zip(path: Path) -> Path:
    zipfile.ZipFile(path, "w").close()
    return path


ARCHIVES = [
    *(size_of_8_in_the_table, larger_than_the_file, one_over_another, another_name_in_its_header),
    *(another_method_in_its_header, no_header, password, unknown_method, broken_packing),
    *(one_name_twice, a_bomb, a_bomb_of_a_pickle, a_huge_table_of_contents, two_folders),
    *(another_order_of_bytes, no_version, an_empty_zip),
]


@pytest.mark.parametrize("make", ARCHIVES, ids=lambda make: make.__name__)
def test_an_archive_that_contradicts_itself_ends_in_one_sentence(tmp_path, make):
    refusal(make(tmp_path / "a.ckpt"))


# ---- files of before torch 1.6 ---------------------------------------------------------------


def old_parts(path: Path) -> list[bytes]:
    """The five pickles of an old file, and the rest."""
    file = io.BytesIO(save(path, {"w": NUMBERS}, old=True).read_bytes())
    ends = [0]
    for _ in range(5):
        list(pickletools.genops(file))
        ends.append(file.tell())
    return [file.getvalue()[a:b] for a, b in zip(ends, [*ends[1:], None], strict=True)]


def pickled(program: bytes) -> bytes:
    return b"\x80\x02" + program + b"."


VIEW = text("5") + b"K\x00K\x04\x87"
OLD_STORAGE = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
OLD = {
    "more numbers": (3, under_name(tensor(stored=b"(" + OLD_STORAGE + integer(10**9) + b"NtQ"))),
    "a view": (3, under_name(tensor(stored=b"(" + OLD_STORAGE + integer(12) + VIEW + b"tQ"))),
    "no keys": (4, b"]"),
    "another key": (4, b"]" + text("1") + b"a"),
    "a key twice": (4, b"](" + text("0") + text("0") + b"e"),
    "a key that doubles": (4, b"]" + WIDE_KEY + b"a"),
    "another magic number": (0, integer(7)),
    "a huge pickle": (2, text("a" * 30_000_000)),
    "numbers cut off": (5, b"\x0c" + bytes(46)),
}


@pytest.mark.parametrize("where, program", OLD.values(), ids=OLD)
def test_an_old_file_that_contradicts_itself_ends_in_one_sentence(tmp_path, where, program):
    parts = old_parts(tmp_path / "a.bin")
    parts[3] = pickled(under_name(tensor(stored=b"(" + OLD_STORAGE + integer(12) + b"NtQ")))
    parts[4] = pickled(b"]" + text("0") + b"a")
    (tmp_path / "a.bin").write_bytes(b"".join(parts))
    assert torch.equal(read_tensors(tmp_path / "a.bin")["w"], NUMBERS)
    parts[where] = program if where == 5 else pickled(program)
    (tmp_path / "a.bin").write_bytes(b"".join(parts))
    refusal(tmp_path / "a.bin")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_bare_pickle_says_that_it_is_none_of_torch(tmp_path, protocol):
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps({"w": [1.0, 2.0]}, protocol=protocol))
    assert "is a pickle, but not from torch.save" in refusal(path)


def test_a_tar_is_refused(tmp_path):
    name = pickled(integer(torch.serialization.MAGIC_NUMBER)).decode("latin-1")
    with tarfile.open(
        tmp_path / "a.bin", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1"
    ) as archive:
        archive.addfile(tarfile.TarInfo(name))
    assert "is a pickle, but not from torch.save" in refusal(tmp_path / "a.bin")


# ---- what is no regular file -----------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="there are none")
def test_a_pipe_a_socket_and_a_device_are_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.safetensors")
    refusal(tmp_path / "a.safetensors")
    with socket.socket(socket.AF_UNIX) as open_socket:
        monkeypatch.chdir(tmp_path)  # the name of a socket must be short
        open_socket.bind("b.ckpt")
        refusal(tmp_path / "b.ckpt")
    refusal(Path("/dev/zero"))


def test_links_lead_to_files_or_to_a_sentence(tmp_path):
    path = save(tmp_path / "a.ckpt", {"w": NUMBERS})
    links = {"good": path, "broken": tmp_path / "nothing", "round": tmp_path / "round"}
    try:
        for name, target in links.items():
            (tmp_path / name).symlink_to(target)
    except OSError:
        pytest.skip("links may not be made here")
    assert torch.equal(read_tensors(tmp_path / "good")["w"], NUMBERS)
    refusal(tmp_path / "broken")
    refusal(tmp_path / "round")


def test_a_folder_and_a_name_that_is_too_long_are_refused(tmp_path):
    refusal(tmp_path)
    with pytest.raises(ValueError, match="check the path"):
        read_tensors(tmp_path / ("a" * 5000))


# ---- containers ------------------------------------------------------------------------------


def test_a_container_may_be_there_twice_but_not_without_end():
    net = {"w": NUMBERS}
    assert list(dict(named_tensors({64: [net, net]}))) == ["64.0.w", "64.1.w"]
    shared = [NUMBERS]
    for _ in range(100):
        shared = [shared, shared]
    around: dict = {"w": NUMBERS}
    around["self"] = around
    for endless in (shared, around):
        with pytest.raises(ValueError, match=r"deeply nested|too long"):
            list(named_tensors(endless))


def test_one_tensor_may_not_stand_for_terabytes(tmp_path):
    tensor = torch.zeros(25_000_000)
    few = save(tmp_path / "few.ckpt", dict.fromkeys("abc", tensor))
    assert set(read_tensors(few)) == set("abc")
    grown = save(tmp_path / "grown.ckpt", {"w": torch.ones(1).expand(1000, 1000)})
    assert torch.equal(read_tensors(grown)["w"], torch.ones(1000, 1000))
    many = save(tmp_path / "many.ckpt", dict.fromkeys(map(str, range(1000)), tensor))
    assert "too many names" in refusal(many)


# ---- threads ---------------------------------------------------------------------------------


def test_threads_leave_the_list_of_allowed_classes_as_it_was(tmp_path, monkeypatch):
    path, programs = tmp_path / "a.ckpt", range(50)
    for number in programs:
        leftover = f"comegaconf.kind{number}\nClass{number}\n)R".encode()
        program = under_name(leftover, text("x")) + text("w") + tensor() + b"s"
        with_pickle(path, program).rename(tmp_path / f"{number}.ckpt")
    before, wrong, load = set(get_safe_globals()), [], torch.load

    def load_slowly(*arguments: object, **settings: object) -> object:
        time.sleep(0.001)  # another thread's turn
        if len(set(get_safe_globals()) - before) != 1:
            wrong.append("another thread's classes are allowed as well")
        return load(*arguments, **settings)

    def load_all(first: int) -> None:
        for number in programs:
            try:
                content = unpickle(tmp_path / f"{(first + number) % len(programs)}.ckpt")
                assert torch.equal(content["w"], NUMBERS)
            except Exception as error:
                wrong.append(error)

    monkeypatch.setattr(torch, "load", load_slowly)
    threads = [threading.Thread(target=load_all, args=(first * 10,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert set(get_safe_globals()) == before


def test_another_threads_classes_stay_allowed(tmp_path):
    leftover = pickle.dumps(defaultdict(list, {1: [2]}), protocol=2)[2:-1]
    path = with_pickle(tmp_path / "a.ckpt", leftover)
    torch.serialization.add_safe_globals([Path])
    try:
        assert unpickle(path) == {1: [2]}
        assert Path in get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()


# ---- what weights may be ---------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [torch.arange(12), torch.ones(12) > 0], ids=["int", "bool"])
def test_integers_are_read_but_are_no_weights(tmp_path, tensor):
    assert torch.equal(read_tensors(save(tmp_path / "a.pt", {"weight": tensor}))["weight"], tensor)
    network = torch.nn.ModuleDict({"x": torch.nn.Linear(4, 3, bias=False)})
    held = {"x.weight": tensor.reshape(3, 4)}
    with pytest.raises(ValueError, match="weights must be floating-point"):
        fill(network, held, "cpu", torch.float32, "a.pt")
    with pytest.raises(ValueError, match="1 not floating-point"):
        cover_network(held, network, [Row("x", "x", "x")], "original", "a.pt")


SHARDS = ["../a.safetensors", "/etc/a", "b/a.bin", "b\\a.bin", "C:a.bin", "..", ".", "", "a\0b", 7]


@pytest.mark.parametrize("name", SHARDS)
def test_an_index_leads_to_no_other_folder(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}), encoding="utf-8")
    with pytest.raises(ValueError, match="lists no files of weights"):
        weight_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"w": "a-1.safetensors"}}), encoding="utf-8")
    assert weight_files(tmp_path) == [tmp_path / "a-1.safetensors"]
