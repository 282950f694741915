"""Run our network and a reference on the same inputs, and record what every module does."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from minisd.config import ModelConfig
from tests.helpers.reference_networks import Pair, pair


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, divided by the standard deviation of the reference."""
    theirs = laid_out_like(ours, theirs)
    return ((ours - theirs).abs().max() / theirs.std()).item()


def laid_out_like(ours: Tensor, theirs: Tensor) -> Tensor:
    """Their tensor in our layout: their 1x1 convolution gives b c h w, our Linear b (h w) c."""
    if theirs.ndim == 4 and theirs.shape != ours.shape:
        theirs = rearrange(theirs, "b c h w -> b (h w) c")
    return theirs.reshape(ours.shape)


@dataclass(frozen=True)
class Case:
    """One comparison: which network, config, reference and precision, and how weights are drawn."""

    part: str
    config: ModelConfig
    layout: str
    dtype: torch.dtype
    draw: str

    def __str__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return f"{self.config.name} {self.part} {self.layout} {precision} {self.draw}"


def inputs(case: Case) -> list[Tensor]:
    """A batch of two samples. One t is no integer, and height and width differ."""
    generator = torch.Generator().manual_seed(1)
    config = case.config

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype)

    if case.part == "unet":
        t = torch.tensor([3.0, 700.25])
        x = noise(2, config.unet.in_channels, *size(config.unet.channels))
        return [x, t, noise(2, 77, config.unet.context_dim)]
    if case.part == "vae":
        image = noise(2, 3, *size(config.vae.channels))
        return [image, noise(2, config.vae.latent_channels, 4, 6)]
    return [torch.randint(0, config.text.vocab_size, (2, 77), generator=generator)]


def size(channels: tuple[int, ...]) -> tuple[int, int]:
    """Height and width for as many levels as there are channels. The lowest level is 2 x 3."""
    lowest = 2 ** (len(channels) - 1)
    return 2 * lowest, 3 * lowest


@dataclass
class Call:
    """One call of a module: its arguments by name, and the tensors that it returned."""

    given: dict
    made: list[Tensor]


def tensors(output) -> list[Tensor]:
    """All tensors in nested tuples and lists, in order."""
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in tensors(part)]
    return [output] if isinstance(output, Tensor) else []


@contextmanager
def watched(network: nn.Module, names: list[str]) -> Iterator[dict[str, Call]]:
    """Record the call of each module that has one of these names. Other names are ignored."""
    calls: dict[str, Call] = {}
    modules = dict(network.named_modules())

    def keep(name: str) -> Callable:
        def hook(module, args, kwargs, output) -> None:
            assert name not in calls, f"{name} ran twice"
            given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            calls[name] = Call(given, tensors(output))

        return hook

    with ExitStack() as stack:
        for name in names:
            if name in modules:
                handle = modules[name].register_forward_hook(keep(name), with_kwargs=True)
                stack.callback(handle.remove)
        yield calls


@dataclass
class Run:
    """Both networks after a run on the same inputs, with what they returned and every call."""

    case: Case
    pair: Pair
    ours: list[Tensor]
    theirs: list[Tensor]
    our_calls: dict[str, Call]
    their_calls: dict[str, Call]

    def shared(self) -> list[tuple[str, Call, Call]]:
        """(name, our call, their call) for every module that both networks ran."""
        triples = [
            (
                row.ours,
                self.our_calls.get(row.ours),
                self.their_calls.get(self.pair.their_name(row)),
            )
            for row in self.pair.rows
        ]
        return [triple for triple in triples if None not in triple]


def run_both(case: Case) -> Run:
    both = pair(case.part, case.config, case.layout, case.draw, case.dtype)
    given = inputs(case)
    our_names = [row.ours for row in both.rows]
    their_names = [both.their_name(row) for row in both.rows]
    with torch.no_grad():
        with watched(both.ours, our_names) as our_calls:
            ours = both.run_ours(both.ours, *given)
        with watched(both.theirs, their_names) as their_calls:
            theirs = both.run_theirs(both.theirs, *given)
    return Run(case, both, ours, theirs, our_calls, their_calls)


def fed(module: nn.Module, call: Call) -> list[Tensor]:
    """What our module returns for the inputs of the reference's module in this call."""
    given = call.given
    x = next(iter(given.values()))  # each reference has another name for x, but x is always first
    if isinstance(module, nn.Linear) and x.ndim == 4:
        x = rearrange(x, "b c h w -> b (h w) c")
    context = given.get("context", given.get("encoder_hidden_states"))
    others = {
        "time": given.get("emb", given.get("temb")),
        "context": x if context is None else context,  # without a context, it is self-attention
        "skips": list(given.get("res_hidden_states_tuple", ())),
    }
    wanted = list(inspect.signature(module.forward).parameters)[1:]
    with torch.no_grad():
        return tensors(module(x, *[others[name] for name in wanted]))
