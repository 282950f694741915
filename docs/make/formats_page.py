"""Write the tables of docs/formats.md: python -m docs.make.formats_page"""

import json
from pathlib import Path

from minisd.checkpoints.known_settings import REQUIRED, KnownSettings, settings_tables

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
MARK = "<!-- docs/make/formats_page.py writes what follows -->\n"
HEAD = "| setting | | where it is absent |\n|---|---|---|\n"


def page() -> str:
    """The page as it should be: the text above MARK stays, the tables come from the code."""
    head, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    by_class = [name for name in settings_tables() if name.startswith("scheduler/")]
    sections = [schedulers_section({name: settings_tables()[name] for name in by_class})]
    sections += [section(name, t) for name, t in settings_tables().items() if name not in by_class]
    return head + MARK + "".join(sections)


def section(name: str, table: KnownSettings) -> str:
    return f"\n## {name}\n\n{HEAD}" + rows(table_rows(table))


def schedulers_section(classes: dict[str, KnownSettings]) -> str:
    """One table for all classes of schedulers: what most say, and which ones differ."""
    said = {}
    for name, table in classes.items():
        short = name.partition(" (")[2].removesuffix(")").replace("Scheduler", "")
        for setting, both in table_rows(table).items():
            said.setdefault(setting, {}).setdefault(both, []).append(short)
    merged = {}
    for setting, meanings in said.items():
        usual = max(meanings, key=lambda both: len(meanings[both]))
        others = [both for both in meanings if both != usual]
        notes = [[f"{', '.join(meanings[both])}: {both[i]}" for both in others] for i in (0, 1)]
        cells = [
            [usual[i], *notes[i]] if len({b[i] for b in meanings}) > 1 else [usual[i]]
            for i in (0, 1)
        ]
        merged[setting] = tuple("; ".join(cell) for cell in cells)
    return f"\n## scheduler/scheduler_config.json\n\n{HEAD}" + rows(merged)


def table_rows(table: KnownSettings) -> dict[str, tuple[str, str]]:
    """Setting -> what becomes of it, and what holds where it is absent."""
    said = {}
    for name, default in table.obeyed.items():
        said[name] = ("obeyed", "refused" if default is REQUIRED else shown(default))
    for name, (allowed, absent) in table.fixed.items():
        values = " or ".join(map(shown, allowed))
        said[name] = (f"refused, except {values}", shown(absent))
    for name, why in table.ignored.items():
        said[name] = (f"ignored: {why}", "")
    return said


def rows(said: dict[str, tuple[str, str]]) -> str:
    """Settings of which the same is said share a row."""
    alike = {}
    for name, both in said.items():
        alike.setdefault(both, []).append(f"`{name}`")
    lines = [
        f"| {', '.join(sorted(names))} | {' | '.join(both)} |" for both, names in alike.items()
    ]
    return "\n".join(sorted(lines, key=order)) + "\n"


def order(line: str) -> tuple[int, str]:
    kinds = ("| obeyed", "| refused", "| ignored")
    return next((i for i, kind in enumerate(kinds) if kind in line), 3), line


def shown(value: object) -> str:
    """As JSON has it."""
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
