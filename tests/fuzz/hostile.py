"""Pickles that try to run code, by hand and one instruction after the other. None may.

Each would create the file CANARY if it ran, or do something that watch.py sees.
"""

import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

CANARY = "canary"
SHELL = f"touch {CANARY}"
PYTHON = f"open({CANARY!r}, 'w').close()"


@dataclass(frozen=True)
class Name:
    """module.name, looked up when the pickle is read."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """function(*arguments)"""

    function: object
    arguments: tuple = ()


@dataclass(frozen=True)
class New:
    """cls.__new__(cls, *arguments)"""

    cls: object
    arguments: tuple = ()


@dataclass(frozen=True)
class Build:
    """made.__setstate__(state), or made.__dict__.update(state)"""

    made: object
    state: object


@dataclass(frozen=True)
class Persistent:
    """What persistent_load() returns for this."""

    key: object


@dataclass(frozen=True)
class Raw:
    """Instructions as they are."""

    ops: bytes


def ops(value: object) -> bytes:
    """The instructions of protocol 2 that leave a value on the stack."""
    if isinstance(value, Raw):
        return value.ops
    if isinstance(value, Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return ops(value.function) + ops(tuple(value.arguments)) + b"R"
    if isinstance(value, New):
        return ops(value.cls) + ops(tuple(value.arguments)) + b"\x81"
    if isinstance(value, Build):
        return ops(value.made) + ops(value.state) + b"b"
    if isinstance(value, Persistent):
        return ops(value.key) + b"Q"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    inner = b"".join(ops(one) for one in (value if not isinstance(value, dict) else pairs(value)))
    if isinstance(value, dict):
        return b"}(" + inner + b"u"
    return b"(" + inner + (b"t" if isinstance(value, tuple) else b"l")


def pairs(value: dict) -> Iterator[object]:
    for key, one in value.items():
        yield key
        yield one


def pickle(value: object, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + ops(value) + b"."


# ---- the attacks -----------------------------------------------------------------------------

builtin = {
    name: Name("builtins", name) for name in ("eval", "exec", "getattr", "map", "list", "dict")
}
IMPORT = Name("builtins", "__import__")
GETATTR = builtin["getattr"]


def attribute(owner: object, *path: str) -> object:
    for name in path:
        owner = Call(GETATTR, (owner, name))
    return owner


# one function of a module, called with a word
DIRECT = [
    *(("os", name, (SHELL,)) for name in ("system", "popen")),
    *(("posix", name, (SHELL,)) for name in ("system", "popen")),
    ("nt", "system", (SHELL,)),
    *(
        ("subprocess", name, (["touch", CANARY],))
        for name in ("Popen", "run", "call", "check_call")
    ),
    *(("subprocess", name, (SHELL,)) for name in ("check_output", "getoutput", "getstatusoutput")),
    *(("builtins", name, (PYTHON,)) for name in ("eval", "exec")),
    *(("__builtin__", name, (PYTHON,)) for name in ("eval", "exec", "execfile")),
    ("builtins", "compile", (PYTHON, "x", "exec")),
    ("builtins", "__import__", ("antigravity",)),
    ("builtins", "open", (CANARY, "w")),
    ("builtins", "input", ("",)),
    ("builtins", "breakpoint", ()),
    ("io", "open", (CANARY, "w")),
    ("io", "FileIO", (CANARY, "w")),
    ("_io", "open", (CANARY, "w")),
    ("os", "open", (CANARY, 65)),
    ("os", "mkdir", (CANARY,)),
    ("os", "remove", ("case.json",)),
    ("os", "execv", ("/bin/sh", ["sh", "-c", SHELL])),
    ("os", "posix_spawn", ("/bin/sh", ["sh", "-c", SHELL], {})),
    ("os", "putenv", ("LD_PRELOAD", "x")),
    ("os", "kill", (0, 0)),
    ("os", "_exit", (0,)),
    ("sys", "exit", (0,)),
    ("sys", "setrecursionlimit", (10**9,)),
    ("shutil", "rmtree", (".",)),
    ("shutil", "copy", ("/etc/passwd", CANARY)),
    ("pathlib", "Path.touch", (CANARY,)),
    ("pty", "spawn", (["touch", CANARY],)),
    ("webbrowser", "open", ("http://localhost/",)),
    ("socket", "create_connection", (("localhost", 9),)),
    ("urllib.request", "urlopen", ("http://localhost:9/",)),
    ("ctypes", "CDLL", ("libc.so.6",)),
    ("ctypes.util", "find_library", ("c",)),
    ("code", "interact", ()),
    ("codeop", "compile_command", (PYTHON,)),
    ("runpy", "run_path", (CANARY,)),
    ("runpy", "run_module", ("antigravity",)),
    ("importlib", "import_module", ("antigravity",)),
    ("importlib", "reload", (Name("os", "path"),)),
    ("imp", "load_source", ("x", CANARY)),
    ("pkgutil", "resolve_name", ("os:system",)),
    ("pydoc", "pipepager", ("", SHELL)),
    ("pydoc", "locate", ("antigravity",)),
    ("timeit", "timeit", (PYTHON,)),
    ("cProfile", "run", (PYTHON,)),
    ("profile", "run", (PYTHON,)),
    ("pdb", "run", (PYTHON,)),
    ("bdb", "Bdb.run", (PYTHON,)),
    ("trace", "Trace.run", (PYTHON,)),
    ("doctest", "debug_script", (PYTHON,)),
    ("platform", "popen", (SHELL,)),
    ("commands", "getoutput", (SHELL,)),
    ("asyncio", "create_subprocess_shell", (SHELL,)),
    ("multiprocessing", "Process", ()),
    ("threading", "Timer", (0, builtin["eval"], (PYTHON,))),
    ("signal", "raise_signal", (15,)),
    ("atexit", "register", (builtin["eval"], PYTHON)),
    ("marshal", "loads", (b"\xe3\0\0\0\0",)),
    ("pickle", "loads", (b"cos\nsystem\n(S'" + SHELL.encode() + b"'\ntR.",)),
    ("_pickle", "loads", (b"cos\nsystem\n(S'" + SHELL.encode() + b"'\ntR.",)),
    ("cloudpickle", "loads", (b"",)),
    ("dill", "loads", (b"",)),
    ("joblib", "load", (CANARY,)),
    ("yaml", "unsafe_load", (f"!!python/object/apply:os.system ['{SHELL}']",)),
    ("shelve", "open", (CANARY,)),
    ("logging.config", "listen", ()),
    ("tempfile", "mkdtemp", ()),
    ("zipimport", "zipimporter", (CANARY,)),
    ("site", "addsitedir", (".",)),
    ("idlelib.run", "show_socket_error", ()),
    ("lib2to3.pgen2.grammar", "Grammar.loads", (b"",)),
    ("numpy", "load", (CANARY, None, True)),
    ("numpy", "fromfile", (CANARY,)),
    ("numpy", "memmap", (CANARY, "uint8", "w+", 0, (8,))),
    ("numpy.testing._private.utils", "runstring", (PYTHON, {})),
    ("numpy.f2py.crackfortran", "myeval", (PYTHON,)),
    ("numpy.ctypeslib", "load_library", ("libc", ".")),
    ("numpy.core.multiarray", "scalar", (Call(Name("numpy", "dtype"), ("O",)), b"")),
    ("numpy.core.multiarray", "_reconstruct", (Name("numpy", "ndarray"), (0,), b"b")),
    ("torch", "load", (CANARY,)),
    ("torch", "save", ({}, CANARY)),
    ("torch", "jit.load", (CANARY,)),
    ("torch.jit", "load", (CANARY,)),
    ("torch.hub", "load", ("a/b", "c")),
    ("torch.hub", "load_state_dict_from_url", ("http://localhost:9/x",)),
    ("torch.hub", "download_url_to_file", ("http://localhost:9/x", CANARY)),
    ("torch.utils.cpp_extension", "load_inline", ("x", "int a;")),
    ("torch.utils.collect_env", "run", (SHELL,)),
    ("torch.serialization", "load", (CANARY,)),
    ("torch.storage", "_load_from_bytes", (b"\x80\x02cos\nsystem\n.",)),
    ("torch.ops", "load_library", ("libc.so.6",)),
    ("torch._inductor.codecache", "compile_file", (CANARY, CANARY, "")),
    ("torch.fx.graph_module", "reduce_graph_module", ({"_code": PYTHON}, "")),
    ("torch.package.package_importer", "PackageImporter", (CANARY,)),
    ("torch._dynamo.guards", "eval", (PYTHON,)),
    ("safetensors.torch", "save_file", ({}, CANARY)),
    ("PIL.Image", "open", (CANARY,)),
    ("PIL.ImageMath", "unsafe_eval", (PYTHON,)),
    ("minisd.cli", "main", (["download", "sd15"],)),
    ("minisd.checkpoints.registry", "download", ("sd15",)),
]

CHAINS = {
    "getattr of an import": Call(attribute(Call(IMPORT, ("os",)), "system"), (SHELL,)),
    "map over system": Call(
        builtin["list"], (Call(builtin["map"], (Name("os", "system"), [SHELL])),)
    ),
    "partial": Call(Call(Name("functools", "partial"), (Name("os", "system"), SHELL)), ()),
    "partial with state": Build(
        New(Name("functools", "partial"), (Name("os", "system"),)),
        (Name("os", "system"), (SHELL,), {}, {}),
    ),
    "reduce": Call(Name("functools", "reduce"), (GETATTR, ["os", "system"])),
    "methodcaller": Call(
        Call(Name("operator", "methodcaller"), ("system", SHELL)), (Name("os", "path"),)
    ),
    "attrgetter": Call(
        Call(Name("operator", "attrgetter"), ("os.system",)), (Name("shutil", "sys"),)
    ),
    "starmap": Call(
        builtin["list"], (Call(Name("itertools", "starmap"), (Name("os", "system"), [(SHELL,)])),)
    ),
    "subclasses": attribute(Name("builtins", "object"), "__subclasses__"),
    "globals of a function": attribute(Name("torch", "load"), "__globals__"),
    "dotted name": Call(Name("torch", "serialization.os.system"), (SHELL,)),
    "dotted name in minisd": Call(Name("minisd.checkpoints.read", "zipfile.os.system"), (SHELL,)),
    "copyreg": Call(
        Name("copyreg", "_reconstructor"),
        (Name("os", "_wrap_close"), Name("builtins", "object"), None),
    ),
    "copyreg newobj": Call(
        Name("copyreg", "__newobj__"), (Name("subprocess", "Popen"), ["touch", CANARY])
    ),
    "copyreg extension": Call(Name("copyreg", "add_extension"), ("os", "system", 1)),
    "codecs": Call(Name("_codecs", "encode"), (PYTHON, "rot13")),
    "codecs lookup": Call(Name("codecs", "open"), (CANARY, "w")),
    "codecs register": Call(Name("_codecs", "register"), (builtin["eval"],)),
    "typing": Call(Name("typing", "get_type_hints"), (Name("os", "system"),)),
    "forward reference": Call(
        Name("typing", "_eval_type"), (Call(Name("typing", "ForwardRef"), (PYTHON,)), {}, {})
    ),
    "typing.Any": Build(New(Name("typing", "Any"), ()), {"__class__": Name("os", "system")}),
    "collections": Call(Name("collections", "namedtuple"), ("A", PYTHON)),
    "defaultdict factory": Call(Name("collections", "defaultdict"), (Name("os", "getcwd"),)),
    "OrderedDict with state": Build(
        Call(Name("collections", "OrderedDict"), ()), {"__class__": Name("os", "_wrap_close")}
    ),
    "state of a module": Build(Name("torch", "serialization"), {"os": None}),
    "state of a class": Build(Name("torch", "Tensor"), {"__setstate__": Name("os", "system")}),
    "state of a stand-in": Build(
        New(Name("argparse", "Namespace"), ()), {"__reduce__": Name("os", "system")}
    ),
    "stand-in as a function": Call(
        Name("pytorch_lightning.x", "Callback"), (Name("os", "system"), SHELL)
    ),
    "stand-in of numpy": Call(Name("numpy.x", "load"), (CANARY,)),
    "stand-in of pathlib": Call(Name("pathlib", "PosixPath"), ("/etc/passwd",)),
    "stand-in of datetime": Call(Name("datetime", "datetime"), (b"\xff" * 10,)),
    "persistent load": Persistent(("storage", Name("os", "system"), "0", "cpu", 1)),
    "persistent load of a module": Persistent(("module", Name("os", "system"), "x.py", PYTHON)),
    "persistent load of a path": Persistent(
        ("storage", Name("torch", "FloatStorage"), "../../etc/passwd", "cpu", 9)
    ),
    "nested persistent load": Persistent(
        Persistent(("storage", Name("torch", "FloatStorage"), "0", "cpu", 1))
    ),
    "extension 1": Raw(b"\x82\x01"),
    "extension 2": Raw(b"\x83\x01\x00"),
    "extension 4": Raw(b"\x84\x01\x00\x00\x00"),
    "INST": Raw(b"(X" + struct.pack("<I", len(SHELL)) + SHELL.encode() + b"ios\nsystem\n"),
    "OBJ": Raw(b"(cos\nsystem\nX" + struct.pack("<I", len(SHELL)) + SHELL.encode() + b"o"),
    "STACK_GLOBAL": Raw(
        b"\x8c\x02os\x8c\x06system\x93X" + struct.pack("<I", len(SHELL)) + SHELL.encode() + b"\x85R"
    ),
    "STACK_GLOBAL by memo": Raw(b"\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93)R"),
    "NEWOBJ_EX": Raw(b"csubprocess\nPopen\n(]X\x05\0\0\0toucht}\x92"),
    "two pickles in one": Raw(
        b"N.\x80\x02cos\nsystem\n(X" + struct.pack("<I", len(SHELL)) + SHELL.encode() + b"tR"
    ),
    "PyTorch's rebuild with a function": Call(
        Name("torch._utils", "_rebuild_tensor_v2"), (Name("os", "system"), 0, (1,), (1,), False, {})
    ),
    "rebuild from a type": Call(
        Name("torch._tensor", "_rebuild_from_type_v2"),
        (Name("os", "system"), Name("torch", "Tensor"), (SHELL,), {}),
    ),
    "rebuild a parameter with state": Call(
        Name("torch._utils", "_rebuild_parameter_with_state"),
        (None, True, {}, {"data": Name("os", "system")}),
    ),
    "rebuild a wrapper subclass": Call(
        Name("torch._utils", "_rebuild_wrapper_subclass"),
        (Name("os", "system"), None, (1,), (1,), 0, None, None, False),
    ),
    "rebuild from numpy": Call(
        Name("torch._utils", "_rebuild_device_tensor_from_numpy"),
        (Name("os", "system"), None, "cpu", False),
    ),
    "rebuild far away": Call(
        Name("torch._utils", "_rebuild_tensor_v2"),
        (
            Persistent(("storage", Name("torch", "FloatStorage"), "0", "cpu", 1)),
            2**30,
            (2**30,),
            (1,),
            False,
            {},
        ),
    ),
    "rebuild a meta tensor": Call(
        Name("torch._utils", "_rebuild_meta_tensor_no_storage"),
        (Name("torch", "float32"), (2**30, 2**30), (1, 1), False),
    ),
    "a quantised tensor": Call(
        Name("torch._utils", "_rebuild_qtensor"),
        (None, 0, (1,), (1,), (Name("os", "system"),), False, {}),
    ),
    "state of a tensor": Build(
        Call(Name("torch._utils", "_rebuild_parameter"), (None, False, {})),
        {"__class__": Name("os", "system")},
    ),
    "a device": Call(Name("torch", "device"), (SHELL,)),
    "a generator": Call(Name("torch", "Generator"), (SHELL,)),
    "a script module": New(Name("torch.jit._script", "RecursiveScriptModule"), (SHELL,)),
    "a nn.Module": Build(
        New(Name("torch.nn.modules.module", "Module"), ()), {"forward": Name("os", "system")}
    ),
    "a lambda module": Call(Name("torch.nn.modules.linear", "Linear"), (10**9, 10**9)),
    "a ParameterDict": Build(
        New(Name("torch.nn.modules.container", "ParameterDict"), ()),
        {"_parameters": Name("os", "system")},
    ),
    "an AttributeDict": Build(
        New(Name("pytorch_lightning.utilities.parsing", "AttributeDict"), ()),
        {"a": Name("os", "system")},
    ),
    "a code object": Call(
        Name("types", "CodeType"), (0, 0, 0, 0, 0, 0, b"", (), (), (), "", "", 0, b"")
    ),
    "a function": Call(Name("types", "FunctionType"), (Call(builtin["eval"], (PYTHON,)), {})),
    "a class": Call(
        Name("builtins", "type"),
        ("A", (Name("os", "_wrap_close"),), {"__del__": Name("os", "system")}),
    ),
    "a property": Call(Name("builtins", "property"), (Name("os", "system"),)),
    "names with spaces": Call(Name("os ", " system"), (SHELL,)),
    "a name without a module": Call(Name("", "system"), (SHELL,)),
    "a name of another script": Call(Name("ｏｓ", "system"), (SHELL,)),
    "__main__": Call(Name("__main__", "main"), ()),
}

ATTACKS: dict[str, object] = {
    f"{module}.{name}": Call(Name(module, name), arguments) for module, name, arguments in DIRECT
} | CHAINS


# ---- the files -------------------------------------------------------------------------------


def bare(attack: object) -> bytes:
    """The pickle alone."""
    return pickle(attack)


def old(attack: object) -> bytes:
    """As torch.save wrote it before version 1.6: magic number, protocol, system, content, keys."""
    magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return magic + pickle(1001) + pickle(system) + pickle(attack) + pickle([])


def zipped(attack: object, code: bool = False) -> bytes:
    """As torch.save writes it now. code: with what TorchScript keeps next to it"""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a/data.pkl", pickle(attack))
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", bytes(4))
        archive.writestr("a/version", "3\n")
        if code:
            archive.writestr("a/code/__torch__.py", "import os\nos.system('touch canary')\n")
            archive.writestr("a/constants.pkl", pickle(attack))
    return whole.getvalue()


def inside(attack: object) -> object:
    """The attack as a value among others, as a file of weights has them."""
    return {"state_dict": {"a": attack}, "string_to_param": {"*": attack}, 768: [attack]}


def forms(attack: object) -> dict[str, bytes]:
    """The same attack in every kind of file."""
    return {
        "bare": bare(attack),
        "old": old(inside(attack)),
        "zip": zipped(inside(attack)),
        "script": zipped(attack, code=True),
        "packed": zipped(attack),
    }
