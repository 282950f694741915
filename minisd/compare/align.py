"""Find for each module of ours the module of another program that holds the same weights."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from minisd.compare.layouts import same_numbers
from minisd.compare.weights import Fingerprint, Piece, match_by_fingerprint, weights_of


@dataclass
class Alignment:
    """Pairs of parameters and of modules: one of the port ("theirs"), and one of minisd ("ours").

    parameters: our parameter's name -> their parameter, or the part of it that holds our values
    modules: their module's name -> our module's name
    other_values: our parameter's name -> largest difference from their parameter. It lists only
        partners whose values differ.
    only_ours, only_theirs: the names of parameters that have no partner
    """

    parameters: dict[str, Piece]
    modules: dict[str, str]
    other_values: dict[str, float] = field(default_factory=dict)
    only_ours: list[str] = field(default_factory=list)
    only_theirs: list[str] = field(default_factory=list)


def align(
    ours: nn.Module,
    theirs: nn.Module,
    our_order: Sequence[str] = (),
    their_order: Callable[[], Sequence[str]] = tuple,
    tolerance: float = 1e-5,
) -> Alignment:
    """Match two networks by their weights.

    our_order: our modules in running order
    their_order: a function that returns their modules in running order. It is called only if
        fingerprints do not match all parameters.
    tolerance: the largest relative difference between two fingerprints of the same weight. It has
        to be larger if one side has half precision.
    """
    own, foreign = weights_of(ours), weights_of(theirs)
    lists = (nn.ModuleList, nn.ModuleDict, nn.ParameterList)  # these containers never run
    modules = {name for name, one in theirs.named_modules() if not isinstance(one, lists)}
    alignment = align_weights(ours, own, foreign, modules, our_order, their_order, tolerance)
    for name, piece in alignment.parameters.items():
        their = piece_of(foreign, piece)
        if not same_numbers(their, own[name], max(tolerance, 1e-6)):
            their = their.reshape(own[name].shape).to(own[name])
            alignment.other_values[name] = (their - own[name]).abs().max().item()
    return alignment


def align_weights(
    ours: nn.Module,
    own: Mapping[str, Tensor],
    foreign: Mapping[str, Tensor | Fingerprint],
    modules: Collection[str],
    our_order: Sequence[str] = (),
    their_order: Callable[[], Sequence[str]] = tuple,
    tolerance: float = 1e-5,
) -> Alignment:
    """Match parameters, then modules.

    own: our parameters
    foreign: their parameters, or the fingerprints of their parameters
    modules: the names of those of their modules that may run
    """
    found = match_by_fingerprint(own, foreign, tolerance)
    match_in_modules(own, foreign, found)
    before = -1
    while len(own) > len(found) > before:  # each match gives the next round one more neighbour
        before = len(found)
        match_by_order(own, foreign, found, (our_order, their_order()))
        match_in_modules(own, foreign, found)
    used = {piece.name for piece in found.values()}
    return Alignment(
        found,
        match_modules(ours, modules, found),
        only_ours=[name for name in own if name not in found],
        only_theirs=[name for name in foreign if name not in used],
    )


def piece_of(weights: Mapping[str, Tensor], piece: Piece) -> Tensor:
    """The values of a parameter, or of one part of a fused parameter."""
    whole = weights[piece.name]
    return whole if piece.parts == 1 else whole.chunk(piece.parts, dim=piece.axis)[piece.part]


def owner(name: str) -> str:
    """The module that a parameter belongs to.

    >>> owner("mid.attn.to_q.weight")
    'mid.attn.to_q'
    """
    return name.rpartition(".")[0]


def match_in_modules(
    own: Mapping[str, Tensor],
    foreign: Mapping[str, Tensor | Fingerprint],
    found: dict[str, Piece],
) -> None:
    """Match the other parameters of modules that have a matched parameter.

    For example, the bias of a matched weight. The values of the bias do not matter.
    """
    used = {(piece.name, piece.part) for piece in found.values()}
    partners = {owner(name): piece for name, piece in found.items()}
    for name, tensor in own.items():
        if name in found or owner(name) not in partners:
            continue
        piece = partners[owner(name)]
        siblings = [
            other
            for other in foreign
            if owner(other) == owner(piece.name)
            and (other, piece.part) not in used
            and weight_count(foreign[other]) == tensor.numel() * piece.parts
        ]
        if len(siblings) == 1:
            axis = piece.axis if tensor.ndim > 1 else 0
            found[name] = Piece(siblings[0], piece.part, piece.parts, axis)
            used.add((siblings[0], piece.part))


def match_by_order(
    own: Mapping[str, Tensor],
    foreign: Mapping[str, Tensor | Fingerprint],
    found: dict[str, Piece],
    order: tuple[Sequence[str], Sequence[str]],
) -> None:
    """Match parameters by their place between two matched neighbours.

    Take the unmatched parameters between two matched neighbours, and of these, all that have the
    same number of values. If both sides have equally many of them, they are matched in order: the
    first with the first, and so on. Otherwise, they stay unmatched.

    order: our modules in running order, their modules in running order
    """
    our_names, their_names = in_order(own, order[0]), in_order(foreign, order[1])
    places = {name: i for i, name in enumerate(their_names)}
    used = {piece.name for piece in found.values()}
    gaps: dict[tuple[int, int], list[str]] = {}
    anchors = [(i, places[found[name].name]) for i, name in enumerate(our_names) if name in found]
    for i, name in enumerate(our_names):
        if name not in found:
            low = max((place for j, place in anchors if j < i), default=-1)
            high = min((place for j, place in anchors if j > i), default=len(their_names))
            gaps.setdefault((low, high), []).append(name)
    for (low, high), names in gaps.items():
        between = [name for name in their_names[low + 1 : high] if name not in used]
        for count in {own[name].numel() for name in names}:
            left = [name for name in names if own[name].numel() == count]
            right = [name for name in between if weight_count(foreign[name]) == count]
            if len(left) == len(right):
                found.update({a: Piece(b) for a, b in zip(left, right, strict=True)})


def weight_count(weight: Tensor | Fingerprint) -> int:
    return weight.numel() if isinstance(weight, Tensor) else weight.count


def in_order(weights: Mapping[str, Tensor | Fingerprint], modules: Iterable[str]) -> list[str]:
    """The names of the parameters, in the order in which the modules that hold them ran.

    Parameters of modules that never ran come last.
    """
    place = {name: i for i, name in enumerate(modules)}
    registered = {name: i for i, name in enumerate(weights)}
    return sorted(weights, key=lambda name: (place.get(owner(name), len(place)), registered[name]))


# ---- modules -----------------------------------------------------------------------------------


def match_modules(
    ours: nn.Module, theirs: Collection[str], found: Mapping[str, Piece]
) -> dict[str, str]:
    """Match modules that hold the same set of matched parameters.

    Returns a dictionary: their module's name -> our module's name.
    """
    number = {name: 1 << i for i, name in enumerate(found)}
    foreign_bits: dict[str, int] = {}
    for name, piece in found.items():
        foreign_bits[piece.name] = foreign_bits.get(piece.name, 0) | number[name]
    lists = (nn.ModuleList, nn.ModuleDict)
    names = [name for name, one in ours.named_modules() if not isinstance(one, lists)]
    own, foreign = sets_of(names, number), sets_of(sorted(theirs), foreign_bits)
    matched: dict[str, str] = {}
    for bits in dict.fromkeys(own.values()):
        # modules with the same weights lie inside one another: pair from the innermost outwards.
        # strict=False: one side may have more modules inside one another than the other
        our_names = [name for name in own if own[name] == bits]
        their_names = [name for name in foreign if foreign[name] == bits]
        matched |= dict(zip(reversed(their_names), reversed(our_names), strict=False))
    return matched


def sets_of(modules: Iterable[str], bits: Mapping[str, int]) -> dict[str, int]:
    """Collect which matched parameters each module holds, inside it and in its submodules.

    bits: parameter -> a number with one bit for each match of the parameter
    Returns a dictionary: module -> all bits of its parameters. Outer modules come first.
    """
    sets: dict[str, int] = {}
    for name, bit in bits.items():
        while name:
            name = name.rpartition(".")[0]
            sets[name] = sets.get(name, 0) | bit
    inside = [name for name in modules if name in sets]
    return {
        name: sets[name] for name in sorted(inside, key=lambda name: name.count(".") + bool(name))
    }
