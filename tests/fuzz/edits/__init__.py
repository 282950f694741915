"""How good input is broken. Every function takes hypothesis' draw and returns the broken input."""

from collections.abc import Callable

from hypothesis import strategies as st

from tests.fuzz.case import Case
from tests.fuzz.edits import (
    json_edits,
    pickle_edits,
    picture_edits,
    safetensors_edits,
    text_edits,
    zip_edits,
)
from tests.fuzz.edits.byte_edits import edit_bytes, splice


def editor(content: bytes) -> Callable:
    """The edits that know what these bytes are."""
    start = content[:16]
    if start[4:9] == b"\0\0\0\0{":
        return safetensors_edits.edit
    if start.startswith(b"PK\x03\x04"):
        return zip_edits.edit
    if start.startswith(b"\x80") and b"\x8a\x0a\x6c\xfc\x9c\x46" in start:
        return pickle_edits.edit  # the magic number of the old kind of torch.save
    if picture_edits.knows(start):
        return picture_edits.edit
    if start.lstrip().startswith((b"{", b"[")):
        return json_edits.edit
    return text_edits.edit


def edit(draw: Callable, content: bytes) -> bytes:
    """Break a file, mostly so that much of it still makes sense."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        try:
            edit_it = editor(content) if draw(st.integers(0, 3)) else edit_bytes
            content = edit_it(draw, content)
        except (ValueError, TypeError, AttributeError, LookupError):
            content = edit_bytes(draw, content)  # the edit before broke it too much for this one
    return content


@st.composite
def broken(draw: Callable, good: list[Case]) -> Case:
    """One of the good cases with some of its files broken, absent, or in one another's place."""
    case = draw(st.sampled_from(good))
    files = dict(case.files)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2)))):
        name = draw(st.sampled_from(sorted(files)))
        kind = draw(st.integers(0, 19))
        if kind == 0 and len(files) > 1:
            other = draw(st.sampled_from(sorted(files)))
            files[name] = splice(draw, files[name], files[other])
        elif kind == 1 and len(files) > 1 and name != case.target:
            del files[name]
        else:
            files[name] = edit(draw, files[name])
    return Case(files, case.target)
