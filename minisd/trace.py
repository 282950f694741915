"""Read or change every tensor inside a model while the model runs.

    with trace(sd) as t:
        sd.txt2img("a cat", steps=1)
    t["unet.down.1.attn.0.cross.weights"]  # b heads n m

A name is the path of a module, or of a tap (an nn.Identity that carries a tensor worth seeing).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor, nn

# n x n maps take 1 GB each for a full-size picture, so they are recorded only on request
ON_REQUEST = ("*self_attention.weights", "*mid.attn.weights")

Trace = dict[str, Tensor | list[Tensor]]
Replacement = Tensor | Callable[[Tensor], Tensor]


@contextmanager
def trace(
    model: object, *patterns: str, replace: dict[str, Replacement] | None = None
) -> Iterator[Trace]:
    """Record the outputs of all modules whose names match a pattern, and replace some outputs.

    model: a network, or an object that holds networks as attributes. A module's name then begins
        with the attribute's name, as in "unet.mid"
    patterns: such as "unet.mid.*" or "*.cross.weights". If you give none, everything is recorded
        except the largest maps (ON_REQUEST)
    replace: a dictionary: name -> the new tensor, or a function that turns the old tensor into the
        new one

    Yields a dictionary: name -> tensor. If a module ran more than once: name -> list of tensors. If
    a module returns several tensors, only the first tensor is recorded.

    Raises ValueError if a pattern or a name fits no module, or if a replacement has another shape.
    """
    modules = named_modules(model)
    replace = replace or {}
    watched = select(modules, patterns)
    unknown = [name for name in replace if name not in modules]
    if unknown:
        raise ValueError(f"nothing is called {unknown[0]!r}. {did_you_mean(unknown[0], modules)}")

    values: Trace = {}
    handles = [
        modules[name].register_forward_hook(replacer(name, new)) for name, new in replace.items()
    ]
    handles += [modules[name].register_forward_hook(recorder(name, values)) for name in watched]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def named_modules(model: object) -> dict[str, nn.Module]:
    """A dictionary: path -> module, for the networks ("unet") and all modules inside them."""
    if isinstance(model, nn.Module):
        return {name: module for name, module in model.named_modules() if name}
    networks = {name: part for name, part in vars(model).items() if isinstance(part, nn.Module)}
    return {
        f"{part}.{name}".rstrip("."): module
        for part, network in networks.items()
        for name, module in network.named_modules()
    }


def select(modules: dict[str, nn.Module], patterns: tuple[str, ...]) -> list[str]:
    """The names that match any of the patterns. Raises ValueError if a pattern matches no name."""
    if not patterns:
        return [name for name in modules if not any(fnmatchcase(name, big) for big in ON_REQUEST)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise ValueError(f"nothing matches {pattern!r}. {did_you_mean(pattern, modules)}")
    return [name for name in modules if any(fnmatchcase(name, p) for p in patterns)]


def did_you_mean(name: str, modules: dict[str, nn.Module]) -> str:
    """A sentence for an error about an unknown name. The sentence suggests similar names."""
    close = get_close_matches(name, modules, n=3, cutoff=0.5)
    return f"Did you mean {', '.join(close)}?" if close else "named_modules() lists the names."


def recorder(name: str, values: Trace) -> Callable:
    """A hook that records the module's output under this name."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        value = (output[0] if isinstance(output, tuple) else output).detach()
        earlier = values.get(name, [])
        earlier = earlier if isinstance(earlier, list) else [earlier]
        values[name] = [*earlier, value] if earlier else value

    return hook


def replacer(name: str, new: Replacement) -> Callable:
    """A hook that replaces the module's output."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        if isinstance(output, tuple):
            raise ValueError(f"{name} returns several tensors. Replace one of its parts instead.")
        value = new if isinstance(new, Tensor) else new(output)
        if value.shape != output.shape:
            raise ValueError(
                f"the replacement for {name} has shape {tuple(value.shape)}. "
                f"Give it the shape of the original tensor, {tuple(output.shape)}."
            )
        return value

    return hook
