"""Record what goes into every module of a network and what comes out, call by call."""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

Watcher = Callable[["Call"], None]


@dataclass
class Call:
    """One call of one module.

    name: the module's name in its network
    number: how often the module was called before
    args, kwargs: the arguments of the call. watch_calls() says whether they are copies.
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
    if hasattr(tree, "to_tuple"):  # transformers' and diffusers' outputs
        tree = tree.to_tuple()
    leaves, _ = tree_flatten(tree)
    found: list[Tensor] = []
    for leaf in leaves:
        found += tensors_in(leaf) if hasattr(leaf, "to_tuple") else []
        found += [leaf] if isinstance(leaf, Tensor) else []
    return found


def map_floats(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to every tensor of floats in nested tuples, lists and dictionaries."""
    is_float = lambda x: isinstance(x, Tensor) and x.is_floating_point()  # noqa: E731
    return tree_map(lambda leaf: function(leaf) if is_float(leaf) else leaf, tree)


@contextmanager
def watch_calls(
    network: nn.Module, watcher: Watcher, copy: bool = True, names: Container[str] | None = None
) -> Iterator[None]:
    """Inside the `with` block, pass every call to the watcher as soon as the module returns.

    An inner module returns before the module around it, so its call is passed on first.

    copy: whether to copy all tensors, in case the network changes some of them in place
    names: the modules to watch. None: all modules except nn.Identity. minisd marks tensors to watch
        with nn.Identity, and a watched attention map would have to be computed and kept.
    """
    counts: dict[str, int] = {}
    waiting: dict[str, list[tuple]] = {}

    def keep(tree: object) -> Any:
        same = (lambda t: t.detach().clone()) if copy else (lambda t: t.detach())
        return tree_map(lambda leaf: same(leaf) if isinstance(leaf, Tensor) else leaf, tree)

    def before(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            waiting.setdefault(name, []).append(keep((args, kwargs)))

        return hook

    def after(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            args, kwargs = waiting[name].pop()
            number = counts[name] = counts.get(name, -1) + 1
            watcher(Call(name, number, args, kwargs, keep(tensors_in(output))))

        return hook

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Identity) if names is None else name not in names:
            continue
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after(name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
