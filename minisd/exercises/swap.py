"""Put one module of your own into a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

from minisd.exercises.calls import copy_weights
from minisd.trace import did_you_mean, named_modules


@contextmanager
def swap(sd: Any, name: str, part: Any) -> Iterator[nn.Module]:
    """Put a module into a model for a `with` block. At the end, the old one comes back.

        with swap(sd, "unet.down.1.attn.0.cross", MyAttention):
            sd.txt2img("a cat")

    name: the path of the old module, as in trace()
    part: a class with the constructor of the old module's class, or a module. A class is built with
        the arguments of the old module. Its weights are copied by their names

    Yields the new module.

    Raises ValueError if there is no such module, or if a weight does not fit.
    """
    modules = named_modules(sd)
    if name not in modules:
        raise ValueError(f"nothing is called {name!r}. {did_you_mean(name, modules)}")
    old = modules[name]
    new = part
    if isinstance(part, type):
        arguments, settings = constructor_arguments(sd, name)
        new = part(*arguments, **settings)
        copy_weights(new, old.state_dict())
        weight = next(iter(old.state_dict().values()), torch.zeros(()))
        new = new.to(weight.device, weight.dtype).eval().requires_grad_(False)
    parent, _, attribute = name.rpartition(".")
    holder = modules[parent] if parent else sd
    setattr(holder, attribute, new)
    try:
        yield new
    finally:
        setattr(holder, attribute, old)


def constructor_arguments(sd: Any, name: str) -> tuple[tuple, dict]:
    """The arguments with which a module of a network was built.

    The network is built again on the device "meta", without numbers, and its constructors are
    watched.
    """
    network_name, _, path = name.partition(".")
    network = getattr(sd, network_name)
    kind = type(network.get_submodule(path))
    build, seen = kind.__init__, {}

    def watch(self: nn.Module, *arguments: Any, **settings: Any) -> None:
        build(self, *arguments, **settings)
        seen[id(self)] = (arguments, settings)

    with torch.device("meta"), mock.patch.object(kind, "__init__", watch):
        again = type(network)(network.config)
    return seen[id(again.get_submodule(path))]
