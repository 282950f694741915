"""Record a whole drawing: the outputs of every block, and the inputs of every network."""

from collections.abc import Callable
from contextlib import ExitStack
from fnmatch import fnmatchcase

from torch import Tensor, nn

from minisd.compare.calls import Call, watch_calls
from minisd.compare.report import join_names
from minisd.compare.trace_file import statistics
from minisd.pipeline import StableDiffusion

NETWORKS = ("text_encoder", "unet", "vae.encoder", "vae.decoder")
INPUT_NAMES = {
    "text_encoder": ("tokens",),
    "unet": ("x", "t", "context"),
    "vae.encoder": ("image",),
    "vae.decoder": ("z",),
}


def record_run(
    sd: StableDiffusion,
    draw: Callable[[], object],
    patterns: tuple[str, ...] = (),
    with_inputs: bool = False,
    stats: bool = False,
) -> tuple[list[Call], dict[str, Tensor]]:
    """Run draw(), and record the calls of the chosen modules.

    patterns: the modules to record, such as "unet.mid.*" or "*.cross.weights". Empty: every block,
        but neither the single layers in it nor the attention maps
    with_inputs: whether to keep each module's inputs
    stats: whether to keep only a few numbers for each output
    Returns the calls in order, and a dictionary: name of a network's input -> tensor, as in "x.0".
    Raises ValueError if no pattern matches any module.
    """
    calls: list[Call] = []
    inputs: dict[str, Tensor] = {}

    def keep(network: str, call: Call, names: set[str]) -> None:
        if not call.name:
            # strict=False: a ControlNet gives the U-Net more inputs
            for name, tensor in zip(INPUT_NAMES[network], call.inputs, strict=False):
                inputs[f"{name}.{call.number}"] = tensor
        if call.name in names:
            call.name = join_names(network, call.name)
            if not with_inputs:
                call.args, call.kwargs = (), {}
            if stats:
                call.stats = True
                call.outputs = [statistics(call.name, one) for one in call.outputs]
            calls.append(call)

    with ExitStack() as stack:
        chosen = {name: choose(name, part_of(sd, name), patterns) for name in NETWORKS}
        if not any(chosen.values()):
            raise ValueError(f"nothing matches {', '.join(patterns)}. Try unet.mid.* or *.cross.*")
        for name, names in chosen.items():
            watcher = lambda call, name=name, names=names: keep(name, call, names)  # noqa: E731
            watch = watch_calls(part_of(sd, name), watcher, copy=False, names={*names, ""})
            stack.enter_context(watch)
        draw()
    return calls, inputs


def part_of(sd: StableDiffusion, name: str) -> nn.Module:
    part, _, within = name.partition(".")
    return getattr(sd, part).get_submodule(within)


def choose(part: str, network: nn.Module, patterns: tuple[str, ...]) -> set[str]:
    """The names of the modules to record in one network."""
    names = {name: join_names(part, name) for name, _ in network.named_modules()}
    if patterns:
        return {name for name, full in names.items() if any(fnmatchcase(full, p) for p in patterns)}
    ours = [
        name for name, one in network.named_modules() if type(one).__module__.startswith("minisd")
    ]
    return set(ours)
