"""Writes docs/formats.md, what is read of each settings file: python tests/make_formats.py"""

from pathlib import Path

from minisd.checkpoints.known_settings import REQUIRED, KnownSettings, tables

PAGE = Path(__file__).parents[1] / "docs" / "formats.md"
HAND_WRITTEN = PAGE.with_name("formats-head.md")

SECTION = """
## {file}

| setting | | |
|---|---|---|
"""


def page() -> str:
    head = HAND_WRITTEN.read_text(encoding="utf-8")
    return head + "".join(section(name, table) for name, table in tables().items())


def section(name: str, table: KnownSettings) -> str:
    rows = [obeyed_row(name, default) for name, default in sorted(table.obeyed.items())]
    rows += [fixed_row(name, *values) for name, values in sorted(table.fixed.items())]
    rows += ignored_rows(table)
    return SECTION.format(file=name) + "".join(rows)


def obeyed_row(name: str, default: object) -> str:
    absent = "absent: refused" if default is REQUIRED else f"absent: `{shown(default)}`"
    return f"| `{name}` | obeyed | {absent} |\n"


def fixed_row(name: str, allowed: tuple, absent: object) -> str:
    values = " or ".join(f"`{shown(value)}`" for value in allowed)
    return f"| `{name}` | refused, except {values} | absent: `{shown(absent)}` |\n"


def ignored_rows(table: KnownSettings) -> list[str]:
    """One row for each reason, since many settings share one."""
    by_reason = {}
    for name, reason in table.ignored.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"| {', '.join(f'`{name}`' for name in sorted(names))} | ignored | {reason} |\n"
        for reason, names in by_reason.items()
    ]


def shown(value: object) -> str:
    return repr(value).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
