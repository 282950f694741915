"""Going through a pickle's instructions before torch does, without making anything of them.

A pickle is a program for a small machine with a stack. torch's interpreter runs no foreign code,
but it believes what the program says of sizes, and works as long as the program wants. Here names
stand for all objects, so the way through takes a bounded time. It shows what the pickle asks for.
"""

import pickletools
from typing import BinaryIO, NamedTuple

import torch
from torch.serialization import StorageType

from minisd.files.json_files import shorten

MOST_STEPS = (
    300_000  # SD v1 with its averaged weights takes 60,000, and twice that with an optimizer
)
MOST_NESTED = 1000  # values in one key, or in the arguments of one call
MAY_COPY = 5000  # steps for what may copy a dictionary, so that few can
MOST_CLASSES = 100

# What tensors themselves are pickled with, next to storages and dtypes.
DICTIONARY, PARAMETER_CLASS = "collections.OrderedDict", "torch._utils._rebuild_parameter"
REBUILDS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
OTHER_CLASSES = {
    DICTIONARY,
    PARAMETER_CLASS,
    "torch.Size",
    "torch.device",
    "builtins.set",
    "_codecs.encode",
}
PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # old pickles have the old names

# Seen in published files: callbacks, settings, losses as NumPy scalars, times and paths.
LEFT_BEHIND = (
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "numpy.", "pathlib."),
    *("argparse.Namespace", "datetime.", "typing.Any", "builtins.dict", "builtins.list"),
    *("collections.defaultdict", "torch.nn.modules.container.ParameterDict"),
)


class Refusal(ValueError):
    """Why a file is refused, in words that follow its name."""


class AskedName(str):
    """A class or function that a pickle asks for: "module.name"."""


class MadeObject(str):
    """What a call of one gives, under its name."""


class StoredNumbers(NamedTuple):
    """The numbers of one or more tensors. itemsize: bytes of one of them"""

    itemsize: int
    count: int


def torch_dtype(name: str) -> torch.dtype | None:
    """The dtype that is called so, as in "torch.float16"; None if none is."""
    found = vars(torch).get(name.removeprefix("torch."))
    return found if isinstance(found, torch.dtype) else None


def check_name(name: str) -> AskedName:
    """A name that is harmless. Raises Refusal for any other."""
    storage = name.startswith("torch.") and name.endswith("Storage")
    if (
        storage
        or name in REBUILDS | OTHER_CLASSES
        or name.startswith(LEFT_BEHIND)
        or torch_dtype(name)
    ):
        return AskedName(name)
    name = shorten(name).strip("'")
    asks = f"asks for {name}, which could run code, and was not loaded"
    if "._rebuild_" in name:
        asks = f"holds tensors of a kind that no model needs ({name})"
    raise Refusal(f"{asks}: get the same weights as .safetensors")


class PickleSteps:
    """Goes through the pickles of one file. What they ask for, and the storages by their keys."""

    def __init__(self):
        self.names: set[str] = set()
        self.storages: dict[str, StoredNumbers] = {}
        self.left = MOST_STEPS

    def follow(self, file: BinaryIO) -> object:
        """Go through the next pickle in the file. Returns what it leaves.

        Raises Refusal for what torch should not be given, another exception for a damaged pickle.
        An instruction that torch does not have may do anything here: it refuses it anyway.
        """
        stack, marks, memo = [], [], {}
        for instruction, argument, _ in pickletools.genops(file):
            name, taken, below = instruction.name, [], instruction.stack_before
            self.spend(1)
            if name == "MARK":
                marks.append(stack)
                stack = []
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "STOP":
                return stack.pop()
            else:
                if pickletools.markobject in below:
                    taken, stack = stack, marks.pop()
                    below = below[: below.index(pickletools.markobject)]
                taken = [stack.pop() for _ in below][::-1] + taken
                stack += [self.step(name, argument, taken)] if instruction.stack_after else []
        raise ValueError("a pickle without end")

    def step(self, name: str, argument: object, taken: list) -> object:
        """One instruction: the value that it puts in place of those that it takes."""
        if "TUPLE" in name:
            return tuple(taken)
        if name in ("EMPTY_LIST", "EMPTY_DICT"):
            return [] if name == "EMPTY_LIST" else {}
        if name in ("GLOBAL", "STACK_GLOBAL"):
            module, short = taken or argument.split(" ")
            self.names.add(f"{PYTHON_3.get(module, module)}.{short}")
            if len(self.names) > MOST_CLASSES:
                raise Refusal(f"asks for more than {MOST_CLASSES} classes: get another copy")
            return check_name(f"{PYTHON_3.get(module, module)}.{short}")
        if name == "BINPERSID":
            return self.storage(*taken[0])
        if name in ("REDUCE", "NEWOBJ"):
            return self.call(*taken)
        if name == "BUILD":
            self.build(*taken)
        elif name.startswith("APPEND"):
            taken[0].extend(taken[1:])
        elif name.startswith("SETITEM"):
            for key in taken[1::2]:
                self.count(key)
        return taken[0] if taken else argument

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Refusal(f"is a pickle of more than {MOST_STEPS:,} steps: get another copy")

    def count(self, value: object) -> None:
        """Spend a step for all that a value holds, as often as it is there: so a hash works."""
        waiting, count = [value], 0
        while waiting:
            each = waiting.pop()
            if isinstance(each, (tuple, list)):
                count += len(each)
                if count > MOST_NESTED:
                    raise Refusal("nests too much in one name or call: get another copy")
                waiting += each
        self.spend(count)

    def storage(
        self, what: str, kind: AskedName, key: str, place: str, count: int, *view
    ) -> StoredNumbers:
        """What lies in the file. view: in old files, and None since PyTorch 0.4"""
        texts = all(type(each) is str for each in (what, key, place)) and key.isdecimal()
        if (
            not texts
            or type(kind) is not AskedName
            or type(count) is not int
            or count < 0
            or any(view)
        ):
            raise ValueError("no storage")
        untyped = kind == "torch.storage.UntypedStorage"
        itemsize = 1 if untyped else StorageType(kind.rpartition(".")[2]).dtype.itemsize
        stored = StoredNumbers(itemsize, count)
        if self.storages.setdefault(key, stored) != stored:
            raise ValueError("a storage of two sizes")
        return stored

    def build(self, made: MadeObject, state: object) -> None:
        """A dictionary may have attributes. A stand-in keeps nothing, but for ParameterDict."""
        if type(made) is not MadeObject or not (made == DICTIONARY or made.startswith(LEFT_BEHIND)):
            raise ValueError("nothing that has a state")
        if made == DICTIONARY or made.endswith("ParameterDict"):
            self.count(state)
            self.spend(MAY_COPY)

    def call(self, called: AskedName, arguments: tuple) -> MadeObject:
        if type(called) is not AskedName or type(arguments) is not tuple:
            raise ValueError("no call")
        self.count(arguments)
        if called in REBUILDS:
            refuse_too_large(called, *arguments)
        elif called == "_codecs.encode":  # old pickles hold bytes as text
            if arguments[1:] != ("latin1",):
                raise ValueError("no bytes")
            self.spend(len(arguments[0]) // 100)
        elif called != PARAMETER_CLASS and any(
            isinstance(each, (dict, MadeObject)) for each in arguments
        ):
            self.spend(MAY_COPY)
        return MadeObject(called)


def refuse_too_large(
    called: str, stored: StoredNumbers, offset: int, size: tuple, stride: tuple, *rest: object
) -> None:
    """Raise Refusal for a tensor with numbers outside its storage.

    One number may fill a whole tensor, as expand() makes it: named_tensors() limits how often.

    rest: whether it is trained, its hooks and, in _v3, the dtype, which the storage does not say
    """
    itemsize = torch_dtype(rest[2]).itemsize if called.endswith("_v3") else stored.itemsize
    if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
        raise ValueError("no sizes")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last + 1) * itemsize > stored.itemsize * stored.count:
        large = f"holds a tensor {shorten(list(size))} larger than its storage"
        raise Refusal(f"{large}: get another copy")
