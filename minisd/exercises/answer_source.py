"""The source of an answer as a file of its own, with everything of the student that it uses."""

import ast
import inspect
import linecache
import sys
from contextlib import suppress
from pathlib import Path
from symtable import SymbolTable, symtable
from types import FunctionType, ModuleType
from typing import Any

DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom)


def standalone_source(name: str, answer: Any) -> str:
    """The text of a Python file in which `name` is the answer.

    The file also holds the imports, functions, classes and constants that the answer uses.

    Raises ValueError if the source of one of these is not known.
    """
    own_name = getattr(answer, "__name__", name).replace("<lambda>", name)
    functions = functions_of(answer)
    module = sys.modules.get(answer.__module__)
    space = functions[0].__globals__ if functions else getattr(module, "__dict__", {})
    pieces = {own_name: ""}
    add_definition(own_name, answer, space, pieces)
    codes = [*dict.fromkeys(pieces.values()), *[f"{name} = {own_name}"] * (own_name != name)]
    imports = [code for code in codes if code.startswith(("import ", "from "))]
    others = [f"\n\n{code}" for code in codes if code not in imports]
    return "\n".join([*imports, *others, ""])


def add_definition(name: str, thing: Any, space: dict, pieces: dict[str, str]) -> None:
    """Add the code that defines a global name. The code of everything that it uses comes first.

    space: the student's globals
    pieces: name -> its code, for all names so far. They grow
    """
    pieces[name] = ""  # so that two functions may call each other
    code = find_code(name, thing, space)
    for used in sorted(global_names(symtable(code, "answer", "exec")) & space.keys()):
        if used not in pieces:
            add_definition(used, space[used], space, pieces)
    del pieces[name]
    pieces[name] = code


def find_code(name: str, thing: Any, space: dict) -> str:
    """The source of the statement that defines a global name, in a file or in a notebook's cell.

    Raises ValueError if there is no such statement at the top level.
    """
    own = [one.__code__ for one in functions_of(thing) if one.__globals__ is space]
    files = [(one.co_filename, one.co_firstlineno) for one in own] + [
        (space.get("__file__", ""), 0)
    ]
    cells = [(file, 0) for file in linecache.cache if not Path(file).exists()]  # in a notebook
    for file, line in [*files, *reversed(cells)]:
        for code in statements(file, line):
            symbols = symtable(code, file, "exec").get_symbols()
            names = [one.get_name() for one in symbols if one.is_assigned() or one.is_imported()]
            if name in names:
                return code
    if isinstance(thing, ModuleType):  # it came with a star import
        return f"import {thing.__name__} as {name}"
    raise ValueError(
        f"the source of {name} is not known. Define it with def, class or =, or import it by "
        "name, at the top level of your file, or of a cell without %%."
    )


def functions_of(thing: Any) -> list[FunctionType]:
    """A function alone, or the methods of a class."""
    members = vars(thing).values() if isinstance(thing, type) else [thing]
    return [one for one in map(inspect.unwrap, members) if isinstance(one, FunctionType)]


def statements(file: str, line: int = 0) -> list[str]:
    """The source of the imports and definitions at the top level of a file, the last one first.

    line: a number of a line. The statement that holds it comes before all others
    """
    lines, nodes = linecache.getlines(file), []
    with suppress(SyntaxError):
        nodes = [one for one in ast.parse("".join(lines)).body if isinstance(one, DEFINITIONS)]
    tops = [[one, *getattr(one, "decorator_list", [])] for one in nodes]
    starts = [min(part.lineno for part in parts) - 1 for parts in tops]
    ends = [one.end_lineno or 0 for one in nodes]
    pairs = sorted(zip(starts, ends, strict=True), key=lambda pair: pair[0] < line <= pair[1])
    return ["".join(lines[start:end]).rstrip() for start, end in pairs][::-1]


def global_names(table: SymbolTable) -> set[str]:
    """The global names that a piece of code reads."""
    symbols = table.get_symbols()
    names = {one.get_name() for one in symbols if one.is_global() and one.is_referenced()}
    return names.union(*map(global_names, table.get_children()))
