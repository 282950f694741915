"""How an answer is called. A grader copies this file to where the student's code runs.

So this file imports nothing of minisd, and holds nothing that answers a question.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from os.path import dirname
from traceback import extract_tb
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

IN_LINE = " (line "  # between an error and the place where it was raised


class MisfitError(ValueError):
    """An answer that cannot be tried. The message is a whole sentence."""


class Made(NamedTuple):
    """An argument that has to be built before the call.

    kind: the name of a function in BUILDERS    settings: its arguments
    """

    kind: str
    settings: dict


def build_denoise(gain: float) -> Callable:
    """A simple denoiser for samplers. Its guess depends on x and on the noise level."""

    def denoise(x: Tensor, level: Any) -> SimpleNamespace:
        eps = torch.tanh(gain * x) + 0.1 * level.sigma / (1 + level.sigma)
        x0 = (x - level.noise_rate * eps) / level.signal_rate
        return SimpleNamespace(x0=x0, eps=eps)

    return denoise


def build_sigma_denoise(gain: float) -> Callable:
    """The same for x = x0 + sigma eps. It returns the guess x0."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        eps = torch.tanh(gain * x / (1 + sigma**2) ** 0.5) + 0.1 * sigma / (1 + sigma)
        return x - sigma * eps

    return denoise


def build_network(gain: float, rows: float = 0.0) -> Callable:
    """A simple network(x, t, context) -> eps. Every argument changes its output.

    rows: how much a sample's place in the batch changes its eps. If it is not 0, the output shows
        how the batch was put together
    """

    def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        if getattr(t, "ndim", 0) == 0:
            raise MisfitError("network got one number as t. It needs one number for each sample.")
        if not len(x) == len(t) == len(context):
            counts = f"x has {len(x)} samples, t has {len(t)}, and context has {len(context)}"
            raise ValueError(f"{counts}. The three numbers must be equal.")
        words = context.mean(dim=(1, 2)) + rows * torch.arange(1, len(x) + 1) / len(x)
        share = torch.tanh(gain * words + 0.001 * t.to(x))
        return torch.sin(x) * share[:, None, None, None] + 0.1 * x

    return network


def build_velocity_network(gain: float) -> Callable:
    """A simple network(x, t) -> velocity. It reads t from 0 to 1000, one number per sample."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        if getattr(t, "shape", None) != (len(x),):
            raise MisfitError("network needs one t for each sample: a tensor of b numbers.")
        return torch.sin(gain * x) + torch.cos(0.003 * t.to(x))[:, None, None, None] * x

    return network


def build_embed(places: int | None = None) -> Callable:
    """A simple embed(prompts) -> context, b m 3.

    places: m. None: m is one more than the letters of the longest prompt
    """

    def embed(prompts: str | list[str]) -> Tensor:
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        longest = max(len(text) for text in texts) + 1
        codes = [[ord(letter) for letter in text.ljust(longest)] for text in texts]
        angles = torch.tensor(codes, dtype=torch.float64)[:, :places, None]
        return torch.sin(angles * torch.tensor([1.0, 0.25, 0.5]))

    return embed


def build_model(gain: float, alpha_bar: Tensor) -> SimpleNamespace:
    """What text-to-image needs of a StableDiffusion: embed, unet and schedule.alpha_bar."""
    schedule = SimpleNamespace(alpha_bar=alpha_bar)
    return SimpleNamespace(unet=build_network(gain), embed=build_embed(9), schedule=schedule)


def build_level(sigma: float, t: float = 0.0) -> SimpleNamespace:
    """A noise level, with the fields of schedule.Level."""
    signal_rate = (1 + sigma**2) ** -0.5
    noise_rate = sigma * signal_rate
    rates = {"signal_rate": signal_rate, "noise_rate": noise_rate, "alpha_bar": signal_rate**2}
    return SimpleNamespace(t=t, sigma=sigma, **rates)


def build_layer(name: str, **settings: Any) -> nn.Module:
    """A layer of torch.nn without weights, such as nn.Upsample."""
    return getattr(nn, name)(**settings)


def build_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    copy_weights(layer, {"weight": weight, "bias": bias})
    return layer


def build_draw_batch(batches: list) -> Callable:
    """A function that returns the next batch at each call."""
    left = iter(batches)

    def draw_batch() -> Any:
        for batch in left:
            return batch
        raise MisfitError("You drew more batches than there are steps. Draw one in each step.")

    return draw_batch


def build_squared_error() -> Callable:
    """A loss_of(network, batch). A batch is a pair: inputs, and right answers."""

    def loss_of(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (network(x) - y).square().mean()

    return loss_of


def build_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


BUILDERS: dict[str, Callable] = {"namespace": SimpleNamespace}
BUILDERS |= {name[6:]: one for name, one in globals().items() if name.startswith("build_")}


def materialize(data: Any) -> Any:
    """A copy of the data in which every Made is built."""
    if isinstance(data, Made):
        return BUILDERS[data.kind](**materialize(data.settings))
    if isinstance(data, dict):
        return {key: materialize(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(materialize(value) for value in data)
    return copy.deepcopy(data)


def run_function(answer: Callable, *arguments: Any) -> Any:
    """Call a function. If it yields, return the list of what it yields."""
    result = answer(*arguments)
    return list(result) if isinstance(result, Iterator) else result


def run_built_module(answer: Callable, init: dict, weights: dict, *arguments: Any) -> Any:
    """Build an nn.Module, copy the weights into it, and run it in float64.

    A list among the arguments may get shorter. If there is one, its length is returned, too.

    Raises ValueError if the names or the shapes of its parameters differ from those of the weights.
    """
    return run_built_method(answer, init, weights, "__call__", *arguments)


def run_built_method(answer: Callable, init: dict, weights: dict, name: str, *given: Any) -> Any:
    """The same, but call the method of this name. given: its arguments"""
    try:
        inspect.signature(answer).bind(**init)
    except TypeError as error:
        raise MisfitError(f"Name the arguments of __init__: {', '.join(init)}.") from error
    module = answer(**init)
    if not isinstance(module, nn.Module):
        raise MisfitError(f"The answer must be an nn.Module, got {type(module).__name__}.")
    copy_weights(module.double(), weights)
    with torch.no_grad():
        result = getattr(module.eval(), name)(*given)
    lists = [one for one in given if isinstance(one, list)]
    return {"returned": result, "length of the list": len(lists[0])} if lists else result


def copy_weights(module: nn.Module, weights: dict) -> None:
    """Copy weights into a module by their names. Raises ValueError if one does not fit."""
    check_weights(module, weights)
    module.load_state_dict(weights)


def check_weights(module: nn.Module, weights: dict) -> None:
    """Raise ValueError if the names or shapes of a module's parameters are not those of weights."""
    own, kind = module.state_dict(), type(module).__name__
    if weights and not own:
        raise MisfitError(f"Your {kind} has no parameters yet.")
    pairs = [("missing", weights.keys() - own.keys()), ("unknown", own.keys() - weights.keys())]
    wrong = [f"These are {what}: {', '.join(sorted(names))}." for what, names in pairs if names]
    if wrong:
        raise MisfitError(f"The names of the parameters of your {kind} differ. {' '.join(wrong)}")
    for name, value in weights.items():
        if own[name].shape != value.shape:
            shapes = f"the shape {list(own[name].shape)}, expected {list(value.shape)}"
            raise MisfitError(f"The parameter {name} of your {kind} has {shapes}.")


def run_object(answer: Callable, init: list, *reads: Any) -> dict:
    """Build an object that is no nn.Module, and read from it.

    reads: the name of an attribute, or a list: the name of a method, and its arguments
    """
    thing = answer(*init)
    results = {}
    for read in reads:
        name, *arguments = [read] if isinstance(read, str) else read
        if not hasattr(thing, name):
            state = f"lacks {name}" if vars(thing) else "has no attributes yet"
            raise MisfitError(f"Your {type(thing).__name__} {state}.")
        value = getattr(thing, name)
        again = f", read {len(results) + 1}" * (name in results)
        results[name + again] = value if isinstance(read, str) else value(*arguments)
    return results


@torch.enable_grad()
def run_loss(answer: Callable, predict: Any, *arguments: Any) -> Any:
    """Call a loss, and read its gradient.

    predict: the predicted noise, or a network that predicts it

    Raises MisfitError if the loss has no gradient.
    """
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    is_network = callable(predict)
    scaled: Any = (lambda *given: scale * predict(*given)) if is_network else predict * scale
    loss = answer(scaled, *arguments)
    if loss is None or loss is ...:
        return loss
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise MisfitError("The loss has no gradient. Return a tensor, without .item() or float().")
    return {"the loss": loss, "its gradient": torch.autograd.grad(loss.sum(), scale)[0]}


def run_training(answer: Callable, *arguments: Any) -> Any:
    """Call a function that trains and returns a network. Returns the weights of the network."""
    with torch.enable_grad():
        network = answer(*arguments)
    if isinstance(network, dict):
        raise MisfitError("Return the network itself, not its weights.")
    return network.state_dict() if isinstance(network, nn.Module) else network


CALLS: dict[str, Callable] = {"function": run_function, "object": run_object, "loss": run_loss}
CALLS |= {"training": run_training, "module": run_built_module, "method": run_built_method}


def run_answer(answer: Callable, call: str, arguments: list) -> Any:
    """Call an answer with the arguments of a stage. Raises whatever the answer raises.

    Raises MisfitError if the answer overwrites a tensor that it was given.
    """
    given = materialize(arguments)
    tensors = [one for one in tree_leaves(given) if isinstance(one, Tensor)]
    before = [one._version for one in tensors]
    result = CALLS[call](answer, *given)
    if before != [one._version for one in tensors]:
        raise MisfitError("Your code overwrites its input. Make a new tensor.")
    return result


def describe_error(error: BaseException) -> str:
    """What to say about an error that the student's code raised, in one line."""
    if isinstance(error, MisfitError):
        return str(error)
    words = " ".join(str(error).split()) or "no message"
    ours = [dirname(dirname(__file__)), dirname(copy.__file__), "-packages", "sandbox_child", "<f"]
    skip = "|".join(map(re.escape, ours))  # what is left is the student's code
    own = [one for one in extract_tb(error.__traceback__) if not re.search(skip, one.filename)]
    lines = [f"{IN_LINE}{one.lineno}: `{one.line}`)".replace(": ``", "") for one in own[-1:]]
    return "".join([f"It stopped with {type(error).__name__}: {words}", *lines])
