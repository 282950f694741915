"""Edits of text: prompts, merges.txt, .yaml, logs, and strings inside other files."""

import re
from collections.abc import Callable

from hypothesis import strategies as st

NASTY = [
    *("", " ", "\0", "\n", "\r\n", "\t", "\x1b[2J\x1b[31m", "\x07", "\x9b", "\u2028", "\u202e"),
    *("\ufeff", "\ud800", "\U0010ffff", "e\u0301", "\u0130", "ß", "𝔸", "👩‍👩‍👧"),
    *("../../etc/passwd", "/dev/zero", "CON", "a/b", "..", ".", "~", "%s%n", "{0.__class__}", "{}"),
    *(
        "null",
        "true",
        "-1",
        "0",
        "1e999",
        "NaN",
        "inf",
        "0x10",
        "1_000",
        "٣",
        "9" * 5000,
        "1" * 400,
    ),
    *(
        "(",
        ")",
        "((",
        "\\(",
        "(a:1.2)",
        "(a:)",
        "(a:1e9)",
        "[a]",
        "<lora:a:1>",
        "&amp;",
        "&#0;",
        "&#x110000;",
    ),
    *("<|startoftext|>", "<|endoftext|>", "<end_of_text>", "</w>", "&" * 40, "# comment", "---"),
    *("!!python/object/apply:os.system ['true']", "&a [*a,*a]", "*a", "<<: *a", "? [", "- - - -"),
    *(
        "model.diffusion_model.",
        "lora_unet_",
        "text_model.",
        ".lora_down.weight",
        "string_to_param",
    ),
]
LONG = (10, 1000, 30_000)


def nasty(draw: Callable) -> str:
    """A text that somebody may not have thought of."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.text(max_size=12))
    return draw(st.sampled_from(NASTY))


def pieces(text: str) -> list[str]:
    """Words, numbers, marks and spaces; joined they are the text again."""
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def edit_text(draw: Callable, text: str) -> str:
    parts = pieces(text) or [""]
    at = draw(st.integers(0, len(parts) - 1))
    kind = draw(st.integers(0, 7))
    if kind == 0:
        parts[at] = nasty(draw)
    elif kind == 1:
        parts.insert(at, nasty(draw))
    elif kind == 2:
        del parts[at]
    elif kind == 3:
        parts[at] = parts[at] * draw(st.sampled_from(LONG))
    elif kind == 4:
        parts.insert(at, nasty(draw)[:40] * draw(st.sampled_from(LONG)))
    elif kind == 5:
        other = draw(st.integers(0, len(parts) - 1))
        parts[at], parts[other] = parts[other], parts[at]
    else:
        return edit_lines(draw, text)
    return "".join(parts)


def edit_lines(draw: Callable, text: str) -> str:
    lines = text.split("\n")
    at, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    kind = draw(st.integers(0, 3))
    if kind == 0:
        lines.insert(at, lines[other])
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at] = nasty(draw)
    return "\n".join(lines)


def edit(draw: Callable, content: bytes) -> bytes:
    text = content.decode("utf-8", errors="surrogateescape")
    edited = edit_text(draw, text)
    return edited.encode("utf-8", errors="surrogatepass" if "\ud800" in edited else "replace")
