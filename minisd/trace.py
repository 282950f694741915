"""Read or change every tensor inside a model while the model runs.

    with trace(sd) as t:
        sd.txt2img("a cat", steps=1)
    t["unet.down.1.attn.0.cross.weights"][0]  # the first call's weights: b heads n m

A name is the path of a module, or of a tap (an nn.Identity that carries a tensor worth seeing).
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

# n x n maps take 1 GB each for a full-size picture, so they are recorded only on request
ON_REQUEST = ("*self_attention.weights", "*mid.attn.weights")

Edit = Tensor | Callable[[Tensor], Tensor]  # a new tensor, or a function of the old tensor


class MissingTensor(KeyError):
    """A name that the trace did not record. The message says why, and what to do."""

    __str__ = Exception.__str__  # KeyError would put the message in quotes


class Trace(dict[str, list]):
    """What a trace recorded: name -> list with one entry per call of the module, in order.

    An entry is the tensor that the module returned. If the module returned several tensors, the
    entry is a tuple of them.

    Raises MissingTensor, a KeyError, if you read a name that was not recorded.
    """

    def __init__(self, names: Collection[str], watched: Collection[str]):
        self.names, self.watched = names, watched

    def __missing__(self, name: str) -> list:
        module = name.removesuffix(".inputs")
        if module not in self.names:
            raise MissingTensor(f"nothing is called {name!r}. {did_you_mean(module, self.names)}")
        if module not in self.watched or module in self:  # in self: only its outputs were recorded
            request = repr(module) if module == name else f"{module!r}, inputs=True"
            raise MissingTensor(f"{name!r} was not recorded. Ask for it: trace(model, {request}).")
        raise MissingTensor(f"{module!r} never ran. Run it in the `with` block, or read its parts.")


@contextmanager
def trace(
    model: object, *patterns: str, inputs: bool = False, replace: dict[str, Edit] | None = None
) -> Iterator[Trace]:
    """Record the outputs of all modules whose names match a pattern, and replace some outputs.

    model: a network, or an object that holds networks as attributes. A module's name then begins
        with the attribute's name, as in "unet.mid"
    patterns: such as "unet.mid.*" or "*.cross.weights". If you give none, everything is recorded
        except the largest maps (ON_REQUEST)
    inputs: whether to record also what goes into each module, as "unet.mid.inputs"
    replace: a dictionary: name or pattern -> the new tensor, or a function that turns the old
        tensor into the new one

    Yields a Trace: name -> list, with one entry per call of the module. Most modules return one
    tensor, so t["unet.mid"][0] is what the module returned when it ran first.

    Raises ValueError if a pattern or a name fits no module, or if a replacement has another shape.
    """
    modules, replace = named_modules(model), replace or {}
    for pattern in (*patterns, *replace):
        if not select(modules, pattern):
            raise ValueError(f"nothing matches {pattern!r}. {did_you_mean(pattern, modules)}")
    watched = select(modules, *patterns) or modules.keys() - select(modules, *ON_REQUEST)

    values = Trace(list(modules), watched)
    with ExitStack() as hooks:
        for pattern, new in replace.items():
            for name in select(modules, pattern):
                hooks.enter_context(modules[name].register_forward_hook(replacer(name, new)))
        for name in watched:
            hook = recorder(name, values, inputs)
            hooks.enter_context(modules[name].register_forward_hook(hook, with_kwargs=True))
        yield values


def named_modules(model: object) -> dict[str, nn.Module]:
    """A dictionary: path -> module, for the networks ("unet") and all modules inside them."""
    networks = {name: part for name, part in vars(model).items() if isinstance(part, nn.Module)}
    whole = model if isinstance(model, nn.Module) else nn.ModuleDict(networks)
    return {name: module for name, module in whole.named_modules() if name}


def select(names: Collection[str], *patterns: str) -> list[str]:
    """The names that match any of the patterns."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def did_you_mean(name: str, names: Collection[str]) -> str:
    """A sentence for an error about an unknown name. The sentence suggests similar names."""
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {', '.join(close)}?" if close else "named_modules() lists the names."


def recorder(name: str, values: Trace, inputs: bool) -> Callable:
    """A hook that records the module's output under this name, and its inputs if asked."""

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        values.setdefault(name, []).append(detach_tensors(output))
        if inputs:
            values.setdefault(f"{name}.inputs", []).append(detach_tensors((args, kwargs)))

    return hook


def detach_tensors(tree: object) -> Tensor | tuple[Tensor, ...]:
    """The one tensor in nested tuples, lists and dictionaries, or a tuple of all their tensors."""
    found = [leaf.detach() for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]
    return found[0] if len(found) == 1 else tuple(found)


def replacer(name: str, new: Edit) -> Callable:
    """A hook that replaces the module's output."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(f"{name} returns several tensors. Replace one of its parts instead.")
        value = new if isinstance(new, Tensor) else new(output)
        if value.shape != output.shape:
            given, wanted = tuple(value.shape), tuple(output.shape)
            raise ValueError(f"the new {name} has shape {given}. Give it the old shape, {wanted}.")
        return value

    return hook
