"""Random texts from all of Unicode, and from snippets that are difficult for a tokenizer."""

import random

# Block borders: ASCII, Latin-1, combining marks, ..., the Basic Multilingual Plane, all others.
UNICODE = (0, 0x80, 0x100, 0x300, 0x370, 0x2000, 0x3000, 0xD800, 0xE000, 0x10000, 0x20000, 0x110000)
SNIPPETS = (
    *(" ", "  ", "\t", "\n", "\u00a0", "\u2028", "\u200d", "_", "-", "...", "'", "’", "1", "2026"),
    *("a", "cat", "CAT", "it's", "IT'S", "they'll", "don’t", "photograph", "straße", "İstanbul"),
    *(
        "&amp;",
        "&amp;amp;",
        "&amp;lt;",
        "&eacute;",
        "&amp;eacute;",
        "&Amp;",
        "&EACUTE;",
        "&#x1F431;",
        "&#0;",
        "&nbsp;",
    ),
    *(
        "Ã©",
        "â€™",
        "ï»¿",
        "ﬁ",
        "'ſ",
        "<|startoftext|>",
        "<|endoftext|>",
        "</w>",
        "🐱",
        "👩‍🎨",
        "🏳️‍🌈",
    ),
)


def random_text(rng: random.Random) -> str:
    """Up to 12 parts. Half are characters from anywhere in Unicode, and half are snippets."""
    parts = []
    for _ in range(rng.randint(2, 12)):
        block = rng.randrange(len(UNICODE) - 1)
        code = rng.randrange(UNICODE[block], UNICODE[block + 1])
        surrogate = 0xD800 <= code < 0xE000  # these cannot stand in UTF-8
        parts.append(rng.choice(SNIPPETS) if surrogate or rng.random() < 0.5 else chr(code))
    return "".join(parts)
