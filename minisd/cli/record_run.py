"""Record a whole drawing: the outputs of every block, and the inputs of every network."""

from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn

from minisd.attention import attend, is_watched
from minisd.compare.calls import Call, watch_calls
from minisd.compare.sides import our_side
from minisd.compare.trace_file import INPUT_NAMES, statistics
from minisd.pipeline import StableDiffusion
from minisd.trace import select


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
    stats: whether to keep only a few numbers for each output. In the U-Net, this also applies to
        the inputs of attention maps
    Returns the calls in order, and a dictionary: name of an input, such as "x.0" -> tensor.
    Raises ValueError if no pattern matches any module.
    """
    calls: list[Call] = []
    inputs: dict[str, Tensor] = {}
    whole = nn.ModuleDict(our_side(sd, "").networks)
    modules = {name: one for name, one in whole.named_modules() if name}
    blocks = [name for name, one in modules.items() if type(one).__module__.startswith("minisd")]
    chosen = select(modules, *patterns) if patterns else blocks
    if not chosen:
        raise ValueError(f"nothing matches {', '.join(patterns)}. Try unet.mid.* or *.cross.*")

    def keep(call: Call) -> None:
        # strict=False: a ControlNet gives the U-Net more inputs
        for name, tensor in zip(INPUT_NAMES.get(call.name, ()), call.inputs, strict=False):
            inputs[f"{name}.{call.number}"] = tensor
        if call.name in chosen:
            given = (call.args, call.kwargs) if with_inputs else ((), {})
            kept = [statistics(call.name, one) if stats else one for one in call.outputs]
            calls.append(Call(call.name, call.number, *given, kept, stats))

    watch = watch_calls(whole, keep, copy=False, names={*chosen, *INPUT_NAMES})
    with watch, patch("minisd.attention.attend", attend_by_heads if stats else attend):
        draw()
    return calls, inputs


def attend_by_heads(q: Tensor, k: Tensor, v: Tensor, tap: nn.Identity) -> Tensor:
    """Compute the same as attend(). But the tap gets statistics() of the map, not the map itself.

    The heads run one after the other, so only the map of one head is in memory. For a full-size
    picture with guidance, the map of all heads takes 1 GB, and its scores take another 1 GB.

    A hook on the tap can read the statistics, but it cannot change the map.
    """
    if is_watched(tap):
        rows, one = [], nn.Identity()
        one.register_forward_hook(lambda *call: rows.append(statistics("weights", call[-1])))
        for head in zip(q.split(1, 1), k.split(1, 1), v.split(1, 1), strict=True):
            attend(*head, one)
        tap(torch.cat(rows))
    return attend(q, k, v, nn.Identity())
