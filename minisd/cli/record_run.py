"""Record a whole drawing: the outputs of every block, and the inputs of every network."""

from collections.abc import Callable
from fnmatch import fnmatchcase

from torch import Tensor, nn

from minisd.compare.calls import Call, watch_calls
from minisd.compare.sides import our_side
from minisd.compare.trace_file import INPUT_NAMES, statistics
from minisd.pipeline import StableDiffusion


def record_run(
    sd: StableDiffusion,
    draw: Callable[[], object],
    patterns: tuple[str, ...] = (),
    with_inputs: bool = False,
    stats: bool = False,
) -> tuple[list[Call], dict[str, Tensor]]:
    """Run draw(), and record the calls of the chosen modules.

    patterns: patterns for the names of the modules to record, such as "unet.mid.*" or
        "*.cross.weights". Empty: every block, but no single layers and no attention maps
    with_inputs: whether to keep each module's inputs
    stats: whether to keep only a few numbers for each output
    Returns the calls in order, and a dictionary: name of an input, such as "x.0" -> tensor.
    Raises ValueError if no pattern matches any module.
    """
    calls: list[Call] = []
    inputs: dict[str, Tensor] = {}
    whole = nn.ModuleDict(our_side(sd, "").networks)
    chosen = choose(whole, patterns)

    def keep(call: Call) -> None:
        # strict=False: a ControlNet gives the U-Net more inputs
        for name, tensor in zip(INPUT_NAMES.get(call.name, ()), call.inputs, strict=False):
            inputs[f"{name}.{call.number}"] = tensor
        if call.name in chosen:
            given = (call.args, call.kwargs) if with_inputs else ((), {})
            kept = [statistics(call.name, one) if stats else one for one in call.outputs]
            calls.append(Call(call.name, call.number, *given, kept, stats))

    with watch_calls(whole, keep, copy=False, names={*chosen, *INPUT_NAMES}):
        draw()
    return calls, inputs


def choose(whole: nn.Module, patterns: tuple[str, ...]) -> set[str]:
    """The names of the modules to record. Raises ValueError if no module matches."""
    modules = {name: one for name, one in whole.named_modules() if name}
    if not patterns:
        return {name for name, one in modules.items() if type(one).__module__.startswith("minisd")}
    chosen = {name for name in modules if any(fnmatchcase(name, p) for p in patterns)}
    if not chosen:
        raise ValueError(f"nothing matches {', '.join(patterns)}. Try unet.mid.* or *.cross.*")
    return chosen
