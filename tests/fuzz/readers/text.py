"""Texts that people type or copy: prompts, the web UI's settings."""

from pathlib import Path

from hypothesis import strategies as st

from minisd import prompt
from minisd.cli import a1111_metadata
from minisd.tokenizer import Tokenizer
from tests.fuzz import good
from tests.fuzz.case import Case, Reader
from tests.fuzz.edits import broken
from tests.fuzz.edits.text_edits import LONG, nasty

PROMPTS = [
    "a cat on a blue background",
    "a (red:1.3) cat, (soft\\)light:0.7) &amp; &lt;b&gt; <|endoftext|>",
    "Ein süßer café ﬁsh — 日本語 👩‍👩‍👧 don't 1,234.50 x²",
]


def prompts() -> list[Case]:
    return [Case({"prompt.txt": text.encode()}, "prompt.txt") for text in PROMPTS]


@st.composite
def long_prompts(draw: st.DrawFn) -> Case:
    """Something odd, again and again: only its length may decide about the time."""
    parts = [nasty(draw)[:60] for _ in range(draw(st.integers(1, 3)))]
    text = "".join(parts) * draw(st.sampled_from(LONG))
    return Case({"prompt.txt": text[:60_000].encode("utf-8", "surrogatepass")}, "prompt.txt")


def typed(path: Path) -> str:
    """The text as a terminal hands it on: what is no UTF-8 becomes lone surrogates."""
    with path.open("rb") as file:  # Pillow hands on 1 MB of text at most
        return file.read(4 << 20).decode("utf-8", errors="surrogateescape")


def read_prompt(path: Path) -> None:
    text, tokenizer = typed(path), Tokenizer.clip()
    tokenizer(text)
    tokenizer.pieces(text[:2000])
    prompt.chunks(tokenizer, text)
    small = Tokenizer.from_json(good.small_tokenizer().to_json())
    small.add_word("<cat>", 2)
    small(text)
    small.decode(small.encode(text)[:100])
    prompt.weighted_chunks(tokenizer, text)


def infotexts() -> list[Case]:
    return [Case({"parameters.txt": good.INFOTEXT.encode()}, "parameters.txt")]


def read_infotext(path: Path) -> None:
    text = typed(path)
    a1111_metadata.parse_parameters(text)
    settings, _ = a1111_metadata.settings_from_webui(text, {"model"})
    a1111_metadata.parameters_text(good.DRAWN | settings)


TEXT = [
    Reader(
        "prompts",
        prompts,
        lambda: st.one_of(broken(prompts()), broken(prompts()), long_prompts()),
        read_prompt,
        share=2,
        named=False,
    ),
    Reader(
        "web UI's text",
        infotexts,
        lambda: broken(infotexts()),
        read_infotext,
        share=2,
        named=False,
    ),
]
