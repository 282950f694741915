"""Record what goes into every module of a network and what comes out, call by call."""

from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass
class Call:
    """One call of one module.

    name: the module's name in its network
    number: how often the module was called before
    args, kwargs: the arguments of the call. watch_calls() can copy their tensors
    outputs: every tensor that the module returned, in order
    stats: whether `outputs` holds only statistics of the tensors, not the tensors themselves
    """

    name: str
    number: int
    args: tuple
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    stats: bool = False

    @property
    def inputs(self) -> list[Tensor]:
        """Every tensor among the arguments, in order."""
        return tensors_in((self.args, self.kwargs))


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dictionaries and output objects, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if hasattr(tree, "to_tuple"):  # transformers' and diffusers' outputs
        tree = tree.to_tuple()
    return [one for leaf in tree_leaves(tree) if leaf is not tree for one in tensors_in(leaf)]


def map_floats(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to every floating-point tensor in nested tuples, lists and dictionaries."""
    return tree_map_only(Tensor, lambda x: function(x) if x.is_floating_point() else x, tree)


@contextmanager
def watch_calls(
    network: nn.Module, watcher: Callable, copy: bool = True, names: Container[str] | None = None
) -> Iterator[None]:
    """During the `with` block, pass each call of a module to the watcher when the module returns.

    An inner module returns before the module around it, so its call is passed on first.

    watcher: a function that gets a Call
    copy: whether to copy all tensors. This is necessary if the network changes tensors in place
    names: the modules to watch. None: all modules except nn.Identity. In minisd, attention maps go
        through an nn.Identity. If this were watched, each map would have to be computed and kept
    """
    numbers: dict[str, count] = defaultdict(count)
    waiting: dict[str, list[tuple]] = defaultdict(list)

    same = (lambda t: t.detach().clone()) if copy else Tensor.detach
    keep = partial(tree_map_only, Tensor, same)

    def before(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        waiting[name].append(keep((args, kwargs)))

    def after(name: str, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        args, kwargs = waiting[name].pop()
        watcher(Call(name, next(numbers[name]), args, kwargs, keep(tensors_in(output))))

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if not isinstance(module, nn.Identity) if names is None else name in names:
                start, end = partial(before, name), partial(after, name)
                hooks.enter_context(module.register_forward_pre_hook(start, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(end, with_kwargs=True))
        yield
