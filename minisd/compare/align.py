"""For each of our modules, find the module of another program that holds the same weights."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from minisd.compare.layouts import same_numbers
from minisd.compare.weights import Partners, Piece, Weights, match_by_fingerprint, weights_of


@dataclass
class Alignment:
    """Pairs of parameters, and pairs of modules. In each pair, one is ours and one is theirs.

    parameters: our parameter's name -> their parameter, or the part of it that matches ours
    modules: their module's name -> our module's name
    other_values: our parameter's name -> largest difference from their parameter. Only pairs with
        different values are listed
    only_ours, only_theirs: the names of parameters that have no partner
    """

    parameters: Partners
    modules: dict[str, str]
    other_values: dict[str, float] = field(default_factory=dict)
    only_ours: list[str] = field(default_factory=list)
    only_theirs: list[str] = field(default_factory=list)


def align(
    ours: nn.Module,
    theirs: nn.Module | Weights,
    our_order: Sequence[str] = (),
    their_order: Callable[[], Sequence[str]] = tuple,
    tolerance: float = 1e-5,
    modules: Collection[str] = (),
) -> Alignment:
    """Match two networks by their weights: first the parameters, then the modules.

    theirs: their network, or the fingerprints of its parameters
    our_order: our modules in running order
    their_order: a function that returns their modules in running order. It is called only if some
        of our parameters cannot be matched without this order
    tolerance: the largest relative difference at which two fingerprints belong to the same weight.
        It has to be larger if one network has half precision
    modules: if `theirs` are fingerprints: the names of their modules that ran
    """
    if isinstance(theirs, nn.Module):
        modules, theirs = runnable(theirs), weights_of(theirs)
    own, before = weights_of(ours), -1
    found = match_by_fingerprint(own, theirs, tolerance)
    while len(found) > before:  # each match gives the next round one more neighbour
        before = len(found)
        match_in_modules(own, theirs, found)
        if len(found) < len(own):
            match_by_order(in_order(own, our_order), in_order(theirs, their_order()), found)
    used = {piece.name for piece in found.values()}
    return Alignment(
        found,
        match_modules(runnable(ours), modules, found),
        other_values(own, theirs, found, tolerance),
        only_ours=[name for name in own if name not in found],
        only_theirs=[name for name in theirs if name not in used],
    )


def other_values(
    own: Mapping[str, Tensor], foreign: Weights, found: Partners, tolerance: float
) -> dict[str, float]:
    """Find the pairs of parameters with different values.

    Returns a dictionary: our parameter's name -> largest difference from their parameter.
    """
    values = {}
    for name, piece in found.items():
        weight = foreign[piece.name]
        if isinstance(weight, Tensor) and not same_numbers(piece.of(weight), own[name], tolerance):
            theirs = piece.of(weight).reshape(own[name].shape).to(own[name])
            values[name] = (theirs - own[name]).abs().max().item()
    return values


def runnable(network: nn.Module) -> set[str]:
    """The names of all modules except containers. Containers (such as nn.ModuleList) never run."""
    lists = (nn.ModuleList, nn.ModuleDict, nn.ParameterList)
    return {name for name, one in network.named_modules() if not isinstance(one, lists)}


def owner(name: str) -> str:
    """The name of the module that a parameter belongs to.

    >>> owner("mid.attn.to_q.weight")
    'mid.attn.to_q'
    """
    return name.rpartition(".")[0]


def match_in_modules(own: Mapping[str, Tensor], foreign: Weights, found: Partners) -> None:
    """If a module has a matched parameter, match the other parameters of this module, too.

    For example, if the weights of two layers are matched, their biases are matched, too. The values
    of the biases may differ, but their sizes must fit.
    """
    partners = {owner(name): piece for name, piece in found.items()}
    for name in [name for name in own if name not in found and owner(name) in partners]:
        near, used = partners[owner(name)], {piece[:2] for piece in found.values()}
        count, module = own[name].numel() * near.parts, owner(near.name)
        siblings = [near._replace(name=other) for other in foreign if owner(other) == module]
        free = [one for one in siblings if one[:2] not in used]
        free = [one for one in free if foreign[one.name].numel() == count]
        if len(free) == 1:
            found[name] = free[0]


def match_by_order(own: Weights, foreign: Weights, found: Partners) -> None:
    """Match parameters by their order.

    The function looks at all unmatched parameters that lie between the same two matched parameters
    and have the same number of values. If both networks have equally many of these parameters, the
    first is matched with the first, the second with the second, and so on. Otherwise, these
    parameters stay unmatched.

    own, foreign: the parameters in running order
    """
    names, places = list(foreign), {name: i for i, name in enumerate(foreign)}
    used = {piece.name for piece in found.values()}
    matched = [(i, places[found[name].name]) for i, name in enumerate(own) if name in found]
    matched = longest_rise(matched)  # pairs in another order do not help
    gaps: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for i, name in enumerate(own):
        if name not in found:
            low = max((place for j, place in matched if j < i), default=-1)
            high = min((place for j, place in matched if j > i), default=len(names))
            gaps[low, high, own[name].numel()].append(name)
    for (low, high, count), left in gaps.items():
        between = [name for name in names[low + 1 : high] if name not in used]
        right = [Piece(name) for name in between if foreign[name].numel() == count]
        if len(left) == len(right):
            found.update(zip(left, right, strict=True))


def longest_rise(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out as few pairs as possible, so that the second number rises from pair to pair.

    >>> longest_rise([(0, 0), (1, 9), (2, 3), (3, 5)])
    [(0, 0), (2, 3), (3, 5)]
    """
    chains: list[list[tuple[int, int]]] = []  # for each length, the chain that ends lowest
    for pair in pairs:
        length = bisect_left(chains, pair[1], key=lambda chain: chain[-1][1])
        chains[length : length + 1] = [[*(chains[length - 1] if length else []), pair]]
    return chains[-1] if chains else []


def in_order(weights: Weights, modules: Sequence[str]) -> Weights:
    """Sort parameters in the order in which their modules ran.

    Parameters of modules that never ran come last.
    """
    place = {name: i for i, name in enumerate(modules)}
    return dict(sorted(weights.items(), key=lambda item: place.get(owner(item[0]), len(place))))


def match_modules(ours: set[str], theirs: Collection[str], found: Partners) -> dict[str, str]:
    """Match modules that hold the same set of matched parameters.

    Returns a dictionary: their module's name -> our module's name.
    """
    own = contents(ours, [(name, name) for name in found])
    foreign = contents(theirs, [(piece.name, name) for name, piece in found.items()])
    matched: dict[str, str] = {}
    for content in dict.fromkeys(own.values()):
        # modules with the same weights are nested: pair the two innermost modules first.
        # strict=False: one network may have more nested modules than the other
        our_names = [name for name in own if own[name] == content]
        their_names = [name for name in foreign if foreign[name] == content]
        matched |= zip(their_names, our_names, strict=False)
    return matched


def contents(modules: Collection[str], names: list[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """For each module, collect the matched parameters that it and its submodules hold.

    names: pairs of two names of one parameter: the name in this network, and our name
    Returns a dictionary: module -> our names of its parameters. Inner modules come first.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for name, ours in names:
        while name:
            name = owner(name)
            found[name].add(ours)
    return {name: frozenset(held) for name, held in found.items() if name in modules}
