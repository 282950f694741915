"""Match the modules of two recorded runs by their inputs and outputs."""

from collections.abc import Mapping

from torch import Tensor, nn

from minisd.compare.align import Alignment
from minisd.compare.calls import Call
from minisd.compare.hunt import as_ours, run_module
from minisd.compare.layouts import find_layout

CLOSE = 0.02  # two outputs that differ by less than this come from the same module
FAR = 0.7  # two outputs that differ by more than this come from different modules
UNRELATED = 1.2  # inputs that differ by more than this are unrelated
CALLS_AHEAD = 60  # how many of our next calls are searched if no output is close


def align_by_values(
    modules: Mapping[str, nn.Module], ours: list[Call], theirs: list[Call]
) -> Alignment:
    """Match their modules with ours by the values of inputs and outputs.

    Two modules are partners if their outputs are nearly equal. After an error, the outputs are no
    longer equal. Then two modules are partners if their inputs are nearly equal. They are also
    partners if our module, run on the inputs of their module, returns the output of their module.
    If no module of ours fits in one of these ways, the module with the most similar output among
    our next calls is the partner, unless even this output is very different.

    modules: our module's name -> our module. Empty: our modules cannot run
    ours, theirs: calls in running order
    """
    matched, place = {}, 0
    for call in theirs:
        if not call.outputs or call.name in matched:
            continue
        gaps = {
            i: (gap(call.outputs[0], one.outputs[0]), input_gap(call, one))
            for i, one in enumerate(ours[place:], place)
            if one.outputs and one.outputs[0].numel() == call.outputs[0].numel()
        }
        same = [i for i in gaps if call.inputs and gaps[i][1] < CLOSE]
        same = same or [i for i in gaps if call.inputs and fits(modules, ours[i], call)][:1]
        close = [i for i in gaps if gaps[i][0] < CLOSE]
        both = [i for i in same if i in close]
        near = both or same or close or [i for i in gaps if i < place + CALLS_AHEAD]
        found = min(near, key=gaps.__getitem__, default=-1)
        if near and (same or not (gaps[found][0] > FAR or gaps[found][1] > UNRELATED)):
            matched[call.name] = ours[found].name
            place = found + 1
    return Alignment({}, matched)


def fits(modules: Mapping[str, nn.Module], ours: Call, theirs: Call) -> bool:
    """Whether our module, run on the inputs of their module, returns the output of their module."""
    given = as_ours(ours, theirs) if ours.name in modules else None
    return bool(given) and gap(theirs.outputs[0], run_module(modules[ours.name], *given)) < CLOSE


def gap(theirs: Tensor, ours: Tensor) -> float:
    return find_layout(theirs, ours, CLOSE / 10)[1]


def input_gap(theirs: Call, ours: Call) -> float:
    """How much our inputs differ from theirs.

    Each of our inputs is compared with the most similar input of theirs. The largest difference
    counts.
    """
    near = [min(gap(one, our) for one in theirs.inputs) for our in ours.inputs if theirs.inputs]
    return max(near, default=0.0)
