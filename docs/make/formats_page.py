"""Write the tables of docs/formats.md: python -m docs.make.formats_page"""

import json
from pathlib import Path

from minisd.checkpoints.known_settings import REQUIRED, KnownSettings, settings_tables

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
MARK = "<!-- docs/make/formats_page.py writes what follows -->\n"
HEAD = "| setting | what minisd does | value if it is absent |\n|---|---|---|\n"


def page() -> str:
    """The page as it should be: the text above MARK, then a table for each kind of file."""
    head, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    by_class = [name for name in settings_tables() if name.startswith("scheduler/")]
    sections = [schedulers_section({name: settings_tables()[name] for name in by_class})]
    sections += [section(name, t) for name, t in settings_tables().items() if name not in by_class]
    return head + MARK + "".join(sections)


def section(name: str, table: KnownSettings) -> str:
    return f"\n## {name}\n\n{HEAD}" + rows(table_rows(table))


def schedulers_section(classes: dict[str, KnownSettings]) -> str:
    """One table for all scheduler classes: what holds for most of them, then the exceptions."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    for name, table in classes.items():
        short = name.partition(" (")[2].removesuffix(")").replace("Scheduler", "")
        for setting, cells in table_rows(table).items():
            found.setdefault(setting, {}).setdefault(cells, []).append(short)
    merged = {name: (merge(meanings, 0), merge(meanings, 1)) for name, meanings in found.items()}
    return f"\n## scheduler/scheduler_config.json\n\n{HEAD}" + rows(merged)


def merge(meanings: dict[tuple[str, str], list[str]], column: int) -> str:
    """One cell for all classes: the most frequent text, then the others with their classes.

    meanings: the two cells of a setting -> the classes where it has these cells
    """
    usual = max(meanings, key=lambda cells: len(meanings[cells]))
    if all(cells[column] == usual[column] for cells in meanings):
        return usual[column]
    others = [cells for cells in meanings if cells != usual]
    notes = [f"{', '.join(meanings[cells])}: {cells[column]}" for cells in others]
    return "; ".join(filter(None, [usual[column], *notes]))


def table_rows(table: KnownSettings) -> dict[str, tuple[str, str]]:
    """Setting -> its two cells: what minisd does with it, and its value if it is absent."""
    cells = {}
    for name, default in table.obeyed.items():
        cells[name] = ("obeyed", "none: it is required" if default is REQUIRED else shown(default))
    for name, (allowed, absent) in table.fixed.items():
        values = " or ".join(map(shown, allowed))
        cells[name] = (f"refused, except {values}", shown(absent))
    for name, why in table.ignored.items():
        cells[name] = (f"ignored: {why}", "")
    return cells


def rows(cells: dict[str, tuple[str, str]]) -> str:
    """The rows of a table. Settings with the same cells share a row."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, both in cells.items():
        alike.setdefault(both, []).append(f"`{name}`")
    lines = [
        f"| {', '.join(sorted(names))} | {' | '.join(both)} |" for both, names in alike.items()
    ]
    return "\n".join(sorted(lines, key=order)) + "\n"


def order(line: str) -> tuple[int, str]:
    """A key to sort rows by: obeyed settings first, then refused ones, then ignored ones."""
    kinds = ("| obeyed", "| refused", "| ignored")
    return next((i for i, kind in enumerate(kinds) if kind in line), 3), line


def shown(value: object) -> str:
    """A value as JSON writes it, to go into a cell of a table."""
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
