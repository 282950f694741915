"""The package as a submission sees it: only what the exercise may use, cut out of the source.

A submission's process must not see the code that answers the question. So it sees a small package
"minisd". This package holds the definitions that the exercise's `given` imports, and what these
definitions need, from every module. It holds no specs, and its check() does nothing.
"""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

from minisd.exercises.exercise import Exercise

PACKAGE = Path(__file__).parents[1]
SHARED_FILES = ("calls.py", "plain_data.py")
NO_CHECK = "def __getattr__(name):\n    return lambda *_, **__: None\n"  # check, hint, question


def write_tree(exercise: Exercise, folder: Path) -> None:
    """Write the package that a submission sees to folder/minisd."""
    sources = {**cut_out(exercise), "minisd.exercises": NO_CHECK}
    for module, source in sources.items():
        path = folder / source_path(module).relative_to(PACKAGE.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    for name in SHARED_FILES:
        shutil.copyfile(PACKAGE / "exercises" / name, folder / "minisd" / "exercises" / name)
    for package in [path for path in folder.rglob("*") if path.is_dir()]:
        (package / "__init__.py").touch()


def cut_out(exercise: Exercise) -> dict[str, str]:
    """The name of each module that the tree needs -> the part of its source that it needs.

    Raises ValueError if `given` needs what the exercise asks for.
    """
    bodies: dict[str, list[ast.stmt]] = {}
    needed: set[ast.stmt] = set()
    names = list(find_names(ast.parse(exercise.given), ""))
    for module, name in names:  # the list grows while the loop runs
        if module.split(".")[0] != "minisd" or not source_path(module).is_file():
            continue
        if f"{module}.{name}" in exercise.replaces:
            raise ValueError(f"the exercise {exercise.name} gives away {module}.{name}.")
        if module not in bodies:
            bodies[module] = read_statements(module, exercise)
        for statement in bodies[module]:
            if statement not in needed and name in bound_names(statement):
                needed.add(statement)
                names += find_names(statement, module)
    chosen = {module: [one for one in body if one in needed] for module, body in bodies.items()}
    return {module: "\n".join(map(ast.unparse, body)) + "\n" for module, body in chosen.items()}


def source_path(module: str) -> Path:
    """The file of a module or package, whether it exists or not."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


def read_statements(module: str, exercise: Exercise) -> list[ast.stmt]:
    """The statements of a module, one import in each, without the methods that students write."""
    statements: list[ast.stmt] = []
    for statement in ast.parse(source_path(module).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ImportFrom):
            statements += [ast.ImportFrom(statement.module, [one], 0) for one in statement.names]
            continue
        if isinstance(statement, ast.ClassDef):
            own = f"{module}.{statement.name}."
            left = [
                x for x in statement.body if own + getattr(x, "name", "") not in exercise.replaces
            ]
            statement.body = left or [ast.Pass()]
        statements.append(statement)
    return statements


def bound_names(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top level of a module defines or changes."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    targets = getattr(statement, "targets", [getattr(statement, "target", statement)])
    nodes = [node for target in targets for node in ast.walk(target)]
    imports = {one.asname or one.name.split(".")[0] for one in nodes if isinstance(one, ast.alias)}
    return imports | {node.id for node in nodes if isinstance(node, ast.Name)}


def find_names(tree: ast.AST, module: str) -> Iterator[tuple[str, str]]:
    """The names that a piece of code in a module uses, each with the module that may define it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield module, node.id
        elif isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                yield node.module, one.name
                yield f"{node.module}.{one.name}", ""  # it may be a module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"minisd.{node.value.id}", node.attr  # as after `from minisd import attention`
