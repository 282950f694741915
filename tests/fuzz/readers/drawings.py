"""Pictures, masks, hints and depths, and the settings that are written inside pictures."""

from pathlib import Path

from hypothesis import strategies as st

from minisd.cli import draw
from minisd.files.picture_files import open_picture
from minisd.files.pictures import colours, depth_values, mask_shades
from tests.fuzz import good
from tests.fuzz.case import Case, Printed, Reader
from tests.fuzz.edits import broken
from tests.fuzz.judge import run_command


def pictures() -> list[Case]:
    return [Case({name: content}, name) for name, content in good.pictures().items()]


def any_pictures() -> st.SearchStrategy[Case]:
    """The kinds that are read, broken; sometimes another kind, whole or broken."""
    others = [Case({"p.png": content}, "p.png") for content in good.OTHER_PICTURES.values()]
    kinds = [broken(pictures())] * 8
    return st.one_of(*kinds, broken(others), st.sampled_from(others))


def read_picture(path: Path) -> None:
    """In all four ways. A refusal of one is no refusal of the file."""
    picture = open_picture(path)
    for use in (colours, mask_shades, depth_values):
        try:
            use(picture)
        except ValueError as error:
            if type(error) is not ValueError:
                raise


def drawn_pictures() -> list[Case]:
    return [
        Case({"p.png": good.drawn_picture()}, "p.png"),
        Case({"p.png": good.web_ui_picture()}, "p.png"),
    ]


def describe(path: Path) -> Printed:
    return run_command(["info", str(path)])


def draw_again(path: Path) -> Printed:
    """Up to the place where the model would be loaded."""
    before = dict(draw.COMMANDS)
    draw.COMMANDS.update({name: lambda options, outputs: None for name in before})
    try:
        out = path.with_name("out.png")
        return run_command(["generate", "--like", str(path), "-o", str(out), "--model", "mini"])
    finally:
        draw.COMMANDS.update(before)


DRAWINGS = [
    Reader("pictures", pictures, any_pictures, read_picture, share=4),
    Reader(
        "info on pictures", drawn_pictures, lambda: broken(drawn_pictures()), describe, share=1.5
    ),
    Reader("--like", drawn_pictures, lambda: broken(drawn_pictures()), draw_again, share=1.5),
]
