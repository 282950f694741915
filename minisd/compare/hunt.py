"""Run two networks on the same inputs and measure, module by module, where they begin to differ.

Each module of theirs is measured twice. Its whole error is the difference between its output and
the output of our module when our whole network runs. Its own error is the difference between its
output and the output of our module when our module runs on the input of their module. So the own
error contains no error of earlier modules.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from minisd.compare.align import Alignment
from minisd.compare.calls import Call, map_floats, tensors_in, watch_calls
from minisd.compare.layouts import Errors, errors, find_layout

Arguments = tuple[tuple, dict]  # the arguments of a module by position, and by keyword

LONG = 4096  # if our module is not known, its sums are assumed to have this many products
COMPOSITE = 5  # a module of many layers may have this many times the rounding error of one
MOST_KEPT = 8  # for this many modules with an error, tensors are kept to find the cause
MOST_INPUTS = 4  # if a module has at most this many inputs, they are tried in every order
GROWTH = 10  # a whole error up to this many times the tolerance may be rounding of earlier modules
JUMP = 8  # an error counts as new if it is this many times as large as all errors before it
NOISE = 6  # an own error up to this many times the change by random rounding counts as rounding
VISIBLE = 0.2  # the own error counts only if the whole error is at least this share of it


class ErrorLimits(NamedTuple):
    """Which errors are accepted.

    rtol: the largest error of a module, relative to the spread of its output. None: the largest
        error that rounding explains
    atol: an absolute error that is accepted in addition
    """

    rtol: float | None = None
    atol: float = 0.0


ROUNDING_ONLY = ErrorLimits()  # only what rounding explains


@dataclass(frozen=True)
class Comparison:
    """The result of comparing one call of one module.

    name: our module's name
    theirs: their module's name
    number: how often the module was called before
    shape: the shape of our output
    error: root mean square of the difference, relative to the spread of our output
    largest: the largest difference, relative to the spread of our output
    cosine: the cosine of the two outputs
    own: the error that arises in this module. None: unknown, because their module does not get an
        input that our module needs
    tolerance: the largest error that counts as rounding
    """

    name: str
    theirs: str
    number: int
    shape: tuple[int, ...]
    error: float
    largest: float
    cosine: float
    own: float | None
    tolerance: float

    @property
    def inherited_error(self) -> float | None:
        """The part of the error that came in with the inputs."""
        return None if self.own is None else max(self.error**2 - self.own**2, 0.0) ** 0.5

    @property
    def differs(self) -> bool:
        """Whether the error is too large to come only from rounding in all modules up to here."""
        return not self.error <= GROWTH * self.tolerance

    @property
    def is_source(self) -> bool:
        """Whether the own error is too large to come only from rounding.

        If the own error is unknown, the whole error is used instead.
        """
        own = self.error if self.own is None else self.own
        return not own <= self.tolerance


@dataclass
class Case:
    """What find_cause() needs to know about one module.

    module: our module
    args, kwargs: their inputs, in our layout
    output: their output, in our layout
    inner: the name of the submodule of `module` that should return `output`. Their network then has
        no partner for `module` itself. Empty: `module` itself should return `output`
    place: the number of the output, counted from 0, if there are several
    innocent: submodules that have been compared, and make no error of their own
    """

    module: nn.Module
    args: tuple
    kwargs: dict
    output: Tensor
    inner: str = ""
    place: int = 0
    innocent: list[nn.Module] = field(default_factory=list)

    def run(self, module: nn.Module | None = None) -> Tensor:
        """Run our module, or an edited copy of it, on their inputs. Returns its output."""
        return run_module(module or self.module, self.args, self.kwargs, self.inner, self.place)


def record(network: nn.Module, run: Callable[[], object]) -> list[Call]:
    """Run our network. Returns every call, in running order."""
    calls: list[Call] = []
    with torch.no_grad(), watch_calls(network, calls.append, copy=False):
        run()
    return calls


@dataclass
class Hunt:
    """Compares each call of their modules with a call of our modules.

    modules: our module's name -> our module. Empty: there is only a trace of our network
    recorded: the calls of our modules, as record() returns them
    rows: the results so far
    last: the name of their module that returned last
    nan: the name of their first module that returned NaN
    kept: number of a row -> number of the output, their output, their inputs. Only the first rows
        with an error are kept
    """

    modules: Mapping[str, nn.Module]
    recorded: list[Call]
    alignment: Alignment
    limits: ErrorLimits
    rows: list[Comparison] = field(default_factory=list)
    last: str | None = None
    nan: str | None = None
    kept: dict[int, tuple[int, Tensor, Arguments | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.calls: dict[str, list[Call]] = {}
        for call in self.recorded:
            self.calls.setdefault(call.name, []).append(call)

    def judge(self, call: Call) -> None:
        """Compare one call of their module with the matching call of ours, if there is one."""
        self.last = call.name
        if self.nan is None and any(one.isnan().any() for one in call.outputs):
            self.nan = call.name
        name = self.alignment.modules.get(call.name, "no such module")
        ours = self.calls.get(name, [])[call.number : call.number + 1]
        worst = worst_output(call, ours[0]) if ours else None
        if worst is None:
            return
        (place, output, measured), module = worst, self.modules.get(name)
        unit = coarser_unit(output, ours[0].outputs[place])
        extra, own, arguments = self.limits.atol / measured.spread, None, None
        tolerance = extra + (self.limits.rtol or rounding(module, unit))
        # a module of many layers takes long to run, so it runs again only if its output differs
        if module and (measured.error > tolerance or not [*module.children()]):
            arguments = as_ours(ours[0], call)
        if module and arguments is not None:
            made = run_module(module, *arguments, place=place)
            own = errors(output, made).error
            if own > tolerance and self.limits.rtol is None:
                moved = rounding_of(module, *arguments, made, unit, place)
                tolerance = max(tolerance, extra + NOISE * moved)
            # a much smaller whole error shows that our module needs an input that theirs lacks
            own = None if own > tolerance and measured.error < VISIBLE * own else own
        shape = tuple(output.shape)
        row = Comparison(name, call.name, call.number, shape, *measured[:3], own, tolerance)
        is_entry = row.differs and not any(one.differs for one in self.rows)
        if is_entry or (row.is_source and len(self.kept) < MOST_KEPT):
            self.kept[len(self.rows)] = place, output, arguments
        self.rows.append(row)

    def case_of(self, i: int) -> list[Case]:
        """The cases for find_cause() from row number i. Empty if its tensors were not kept."""
        row = self.rows[i]
        if i not in self.kept or not self.modules:
            return []
        place, output, arguments = self.kept[i]
        # if their inputs are unknown, use ours: up to the first error, both are equal
        call = self.calls[row.name][row.number]
        given = arguments or (call.args, call.kwargs)
        right = [one.name for one in self.inside(row.name, before=i) if not one.is_source]
        innocent = [self.modules[name] for name in right]
        return [Case(self.modules[row.name], *given, output, place=place, innocent=innocent)]

    def inside(self, name: str, before: int | None = None) -> list[Comparison]:
        """The rows of all submodules of a module.

        before: only the rows before the row with this number are searched. None: all rows
        """
        return [
            row for row in self.rows[:before] if row.name.startswith(f"{name}." if name else "")
        ]

    @property
    def first_source(self) -> Comparison | None:
        """The row of the first module that makes an error of its own. None if there is none.

        If a module's own error is unknown, the module counts if its whole error is much larger than
        all errors before it. Sometimes outputs differ, although no module makes an error. Then the
        error arises between two modules, and the result is the row of the first module that
        inherits this error.
        """
        jump = None
        for i, row in enumerate(self.rows):
            if row.own is not None and row.is_source:
                return row
            outside = [one for one in self.rows[:i] if not one.name.startswith(f"{row.name}.")]
            before = max((one.error for one in outside), default=0.0)
            if row.differs and row.error > JUMP * before:
                if row.own is None:
                    return row
                jump = jump or row
        return jump

    def locate(self, row: Comparison) -> tuple[str, list[Case]]:
        """Find our module in which the error arises. Returns its name, and cases for find_cause().

        The port may have one module where our network has several nested modules. Then the result
        is the innermost of our modules that has no partner and whose submodules are all right.
        """
        own = row.own is None or row.is_source
        inside = self.inside(row.name) if own else []
        entered = next((one for one in inside if one.differs), row)
        usual, place = (row.name, self.case_of(self.rows.index(row))), self.rows.index(entered)
        if place not in self.kept or not self.modules:
            return usual
        _, output, arguments = self.kept[place]
        wrong = self.wrong_input(entered, arguments) if arguments and not own else None
        for call in self.makers_of(wrong[1]) if wrong else ():
            if wrong and call.name not in self.alignment.modules.values():
                theirs = wrong[0].reshape(call.outputs[0].shape)
                return call.name, [Case(self.modules[call.name], call.args, call.kwargs, theirs)]
        name = self.around(entered, row.name if own else "")
        if name == row.name or entered.number >= len(self.calls[name]):
            return usual
        given, inner = self.calls[name][entered.number], entered.name.removeprefix(name).lstrip(".")
        cases = [Case(self.modules[name], given.args, given.kwargs, output, inner)]
        cases += [Case(nn.Identity(), (wrong[1],), {}, wrong[0])] if wrong else []
        return name, cases

    def wrong_input(self, row: Comparison, given: Arguments) -> tuple[Tensor, Tensor] | None:
        """Find the first wrong input. Returns their tensor and ours, or None if all are right."""
        ours = self.calls[row.name][row.number].inputs
        for pair in zip(tensors_in(given), ours, strict=True):
            if errors(*pair).error > GROWTH * row.tolerance:
                return pair
        return None

    def makers_of(self, tensor: Tensor) -> list[Call]:
        """The calls of ours that returned this tensor, from the innermost module outwards."""
        return [call for call in self.recorded if holds(call.outputs[:1], tensor)]

    def around(self, row: Comparison, most: str) -> str:
        """The name of our innermost module that contains the row's module and has no partner.

        Some modules only pass their own input on to the row's module. These are left out, because
        the error is already in their input.

        most: the name of the outermost module to search. It is the result if the search finds no
            other module
        """
        matched, call = self.alignment.modules.values(), self.calls[row.name][row.number]
        outer = whole = row.name
        while outer not in (most, ""):
            outer, _, _ = outer.rpartition(".")
            calls = self.calls.get(outer, [])
            if row.number >= len(calls):
                continue
            whole = outer
            if outer in matched:
                continue
            if not call.inputs or not holds(calls[row.number].inputs, call.inputs[0]):
                return outer
        return most if most in self.calls else whole


def worst_output(theirs: Call, ours: Call) -> tuple[int, Tensor, Errors] | None:
    """Compare the outputs of two calls, and find the output with the largest error.

    If one call has more outputs than the other, only the first outputs are compared.
    Returns the number of the output, their output in our layout, and the errors. Returns None if no
    layout turns the shape of one of their outputs into ours.
    """
    worst, same = None, len(theirs.outputs) == len(ours.outputs)
    for place, output in enumerate(theirs.outputs if same else theirs.outputs[:1]):
        layout, _ = find_layout(output, ours.outputs[place])
        if layout is None:
            return None
        output = layout.apply(output)
        measured = errors(output, ours.outputs[place])
        if worst is None or not measured.error <= worst[2].error:
            worst = place, output, measured
    return worst


def as_ours(reference: Call, call: Call) -> Arguments | None:
    """Their inputs in our order and layout. None if one of our inputs is missing among theirs."""
    leaves, structure = tree_flatten((reference.args, reference.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    found = assign([leaves[i] for i in places], call.inputs)
    if found is None:
        return None
    for i, tensor in zip(places, found, strict=True):
        leaves[i] = tensor.to(leaves[i].dtype)
    return tree_unflatten(leaves, structure)


def holds(tensors: list[Tensor], tensor: Tensor) -> bool:
    """Whether one of `tensors` shares its memory with `tensor`."""
    wanted = tensor.data_ptr(), tensor.numel()
    return any((one.data_ptr(), one.numel()) == wanted for one in tensors)


def coarser_unit(a: Tensor, b: Tensor) -> float:
    """The relative rounding error of one number, in the coarser precision of two tensors."""
    dtypes = [x.dtype if x.is_floating_point() else torch.float32 for x in (a, b)]
    return max(torch.finfo(dtype).eps for dtype in dtypes) / 2


def rounding(module: nn.Module | None, unit: float) -> float:
    """The root mean square error, relative to the spread, that rounding alone may cause.

    module: our module. None: it is not known, so a large module is assumed
    unit: the relative rounding error of one number

    The rounding error of a sum of n products grows like the square root of n (like a random walk).
    In half precision, sums are computed in float32, and only the result is rounded.
    """
    sizes = [one[0].numel() for one in module.parameters() if one.ndim > 1] if module else [LONG]
    half = unit > torch.finfo(torch.float32).eps
    layer = 3 * unit if half else unit * (6 + max(sizes, default=0) ** 0.5 / 2)
    return layer if module and not [*module.children()] else layer * COMPOSITE


def rounding_of(
    module: nn.Module, args: tuple, kwargs: dict, output: Tensor, unit: float, place: int = 0
) -> float:
    """How much the output changes if every input is rounded once more, at random.

    For example, the change is large if a norm subtracts a large mean: few exact digits remain.

    unit: the relative rounding error of one number
    """
    draw = torch.Generator(output.device).manual_seed(0)

    def move_leaf(leaf: Tensor) -> Tensor:
        noise = torch.randn(leaf.shape, generator=draw, device=leaf.device)
        return leaf * (1 + unit * noise).to(leaf.dtype)

    args, kwargs = map_floats(move_leaf, (args, kwargs))
    return errors(run_module(module, args, kwargs, place=place), output).error


def assign(ours: list[Tensor], theirs: list[Tensor]) -> list[Tensor] | None:
    """For each of our inputs, find the matching input of theirs, and bring it into our layout.

    If there are equally many inputs of ours and theirs, each is used once, in the order that fits
    best. Otherwise, or if there are more than MOST_INPUTS, each of our inputs gets the most similar
    input of theirs.
    Returns None if one of our inputs has no partner.
    """
    fits = [[find_layout(their, our) for their in theirs] for our in ours]
    near = tuple(
        min(range(len(theirs)), key=lambda j, fit=fit: fit[j][1], default=-1) for fit in fits
    )
    if len(ours) == len(theirs) <= MOST_INPUTS:
        orders = permutations(range(len(theirs)))
        fitting = [one for one in orders if all(fits[i][j][0] for i, j in enumerate(one))]
        total = {one: sum(fits[i][j][1] for i, j in enumerate(one)) for one in fitting}
        near = min(total, key=total.__getitem__, default=near)
    layouts = [fits[i][j][0] if j >= 0 else None for i, j in enumerate(near)]
    found = [one.apply(theirs[j]) for one, j in zip(layouts, near, strict=True) if one]
    return found if len(found) == len(ours) else None


def run_module(
    module: nn.Module, args: tuple, kwargs: dict, inner: str = "", place: int = 0
) -> Tensor:
    """Run our module. Returns output number `place` of its submodule `inner`.

    inner: the name of the submodule. Empty: the module itself
    """
    args, kwargs = tree_map(lambda leaf: leaf, (args, kwargs))  # copied: a module may empty lists
    seen: list[object] = []
    hook = module.get_submodule(inner).register_forward_hook(lambda *call: seen.append(call[-1]))
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    finally:
        hook.remove()
    return tensors_in(seen[0])[place]
