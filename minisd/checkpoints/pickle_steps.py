"""Check the instructions of a pickle before torch executes them.

A pickle is a program: a list of instructions that build objects on a stack. If torch executes a
pickle, torch runs no code from the file. But torch believes the sizes that the pickle states, and a
pickle may have any number of instructions. So minisd goes through the instructions first. In this
check, minisd does not build the objects, and only puts their names on a stack. The check takes a
limited time. It shows which classes and how much memory the pickle asks for.
"""

import pickletools
from typing import BinaryIO, NamedTuple

import torch
from torch.serialization import StorageType

from minisd.files.json_files import shorten

MOST_STEPS = 300_000  # SD v1 with averaged weights needs 60,000, or 120,000 with an optimizer
MOST_NESTED = 1000  # values in one key, or in the arguments of one call
MAY_COPY = 5000  # a call that may copy a dictionary counts as 5000 steps, so few can happen
MOST_CLASSES = 100

# The classes and functions that pickled tensors need, besides storages and dtypes.
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
PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # old pickles use Python 2's names

# Training frameworks leave objects in published files: callbacks, settings, losses, times, paths.
# The names of the classes of these objects begin like this:
LEFT_BEHIND = (
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "numpy.", "pathlib."),
    *("argparse.Namespace", "datetime.", "typing.Any", "builtins.dict", "builtins.list"),
    *("collections.defaultdict", "torch.nn.modules.container.ParameterDict"),
)


class Refusal(ValueError):
    """The reason why a file is refused. unpickle() puts the file's name before the message."""


class AskedName(str):
    """The name of a class or function that a pickle asks for, as "module.name"."""


class MadeObject(str):
    """Stands for an object that a call would return. The text is the name of what was called."""


class StoredNumbers(NamedTuple):
    """The size of a storage. A storage holds the numbers of one or more tensors.

    itemsize: the number of bytes of each number
    count: how many numbers the storage holds
    """

    itemsize: int
    count: int


def torch_dtype(name: str) -> torch.dtype | None:
    """The dtype with this name, such as "torch.float16". None: there is no such dtype."""
    found = vars(torch).get(name.removeprefix("torch."))
    return found if isinstance(found, torch.dtype) else None


def check_name(name: str) -> AskedName:
    """Return the name if the class or function is harmless. Otherwise, raise Refusal."""
    storage = name.startswith("torch.") and name.endswith("Storage")
    known = name in REBUILDS | OTHER_CLASSES or name.startswith(LEFT_BEHIND)
    if storage or known or torch_dtype(name):
        return AskedName(name)
    name = shorten(name).strip("'")
    asks = f"asks for {name}, which could run code. minisd did not load the file"
    if "._rebuild_" in name:
        asks = f"holds tensors of a type that no model needs ({name})"
    raise Refusal(f"{asks}: get the same weights as .safetensors")


class PickleSteps:
    """Goes through the instructions of the pickles in a file, without creating objects.

    names: the names of the classes and functions that the pickles ask for
    storages: key of a storage -> size of the storage
    left: how many more steps are allowed. An instruction counts as one step, or as several steps if
        it takes a long time
    """

    def __init__(self):
        self.names: set[str] = set()
        self.storages: dict[str, StoredNumbers] = {}
        self.left = MOST_STEPS

    def follow(self, file: BinaryIO) -> object:
        """Go through the next pickle in the file. Returns a stand-in for the pickle's result.

        Raises Refusal if torch should not load the pickle. Raises other exceptions if the pickle is
        damaged. Instructions that torch does not know are not checked, because torch refuses them.
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
        raise ValueError("the pickle does not end")

    def step(self, name: str, argument: object, taken: list) -> object:
        """Check one instruction. Returns the value that the instruction puts on the stack.

        name: the name of the instruction
        argument: the value that follows the instruction in the file. None: there is no such value
        taken: the values that the instruction takes from the stack
        """
        if "TUPLE" in name:
            return tuple(taken)
        if name in ("EMPTY_LIST", "EMPTY_DICT"):
            return [] if name == "EMPTY_LIST" else {}
        if name in ("GLOBAL", "STACK_GLOBAL"):
            module, short = taken or str(argument).split(" ")
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
            raise Refusal(f"is a pickle with more than {MOST_STEPS:,} steps: get another copy")

    def count(self, value: object) -> None:
        """Count one step for each value inside a tuple or list.

        If a value occurs several times, every occurrence is counted, because Python's hash() also
        reads the value again at every occurrence.
        """
        waiting, count = [value], 0
        while waiting:
            each = waiting.pop()
            if isinstance(each, (tuple, list)):
                count += len(each)
                if count > MOST_NESTED:
                    raise Refusal("has too many values in one name or call: get another copy")
                waiting += each
        self.spend(count)

    def storage(
        self, what: str, kind: AskedName, key: str, place: str, count: int, *view
    ) -> StoredNumbers:
        """Record the size of a storage: a list of numbers in the file.

        what: the word "storage"
        kind: the class of the storage, such as torch.FloatStorage
        key: the name of the storage in the file, a number such as "12"
        place: the device of the storage
        count: how many numbers the storage holds
        view: None, or nothing. Only files from before PyTorch 0.4 have a value here
        """
        texts = all(type(each) is str for each in (what, key, place)) and key.isdecimal()
        counted = type(count) is int and count >= 0
        if not texts or type(kind) is not AskedName or not counted or any(view):
            raise ValueError("the pickle describes a storage wrongly")
        untyped = kind == "torch.storage.UntypedStorage"
        itemsize = 1 if untyped else StorageType(kind.rpartition(".")[2]).dtype.itemsize
        stored = StoredNumbers(itemsize, count)
        if self.storages.setdefault(key, stored) != stored:
            raise ValueError("the pickle states two sizes for a storage")
        return stored

    def build(self, made: MadeObject, state: object) -> None:
        """Check an instruction that sets the state of an object.

        The values of the state count as steps only if the object is a dictionary or ParameterDict.
        All other objects are replaced by stand-ins that ignore their state (pickles.py).
        """
        if type(made) is not MadeObject or not (made == DICTIONARY or made.startswith(LEFT_BEHIND)):
            raise ValueError("the pickle sets the state of an object that has none")
        if made == DICTIONARY or made.endswith("ParameterDict"):
            self.count(state)
            self.spend(MAY_COPY)

    def call(self, called: AskedName, arguments: tuple) -> MadeObject:
        """Check a call of a class or function. Returns a stand-in for the result."""
        if type(called) is not AskedName or type(arguments) is not tuple:
            raise ValueError("the pickle calls something that is not a function")
        self.count(arguments)
        if called in REBUILDS:
            refuse_too_large(called, *arguments)
        elif called == "_codecs.encode":  # old pickles hold bytes as text
            if arguments[1:] != ("latin1",):
                raise ValueError("a text in the pickle does not stand for bytes")
            self.spend(len(arguments[0]) // 100)
        elif called != PARAMETER_CLASS and any(
            isinstance(each, (dict, MadeObject)) for each in arguments
        ):
            self.spend(MAY_COPY)
        return MadeObject(called)


def refuse_too_large(
    called: str, stored: StoredNumbers, offset: int, size: tuple, stride: tuple, *rest: object
) -> None:
    """Raise Refusal if a tensor needs numbers that are not in its storage.

    A tensor may use one number of its storage many times, for example after expand(). But
    named_tensors() limits how often this may happen.

    called: the name of the function that makes the tensor
    stored: the size of the storage
    offset: the index of the tensor's first number in the storage
    size, stride: the shape of the tensor, and its strides in the storage
    rest: requires_grad and hooks. For _rebuild_tensor_v3, the dtype of the tensor comes third
    """
    dtype = torch_dtype(str(rest[2])) if called.endswith("_v3") else None
    if called.endswith("_v3") and dtype is None:
        raise ValueError("the pickle states an unknown dtype")
    itemsize = dtype.itemsize if dtype else stored.itemsize
    if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
        raise ValueError("a size in the pickle is not a whole number")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last + 1) * itemsize > stored.itemsize * stored.count:
        large = f"holds a tensor of shape {shorten(list(size))}, but too few numbers for this shape"
        raise Refusal(f"{large}: get another copy")
