"""Turn ids back into text."""

from minisd.exercises.exercise import Exercise, Stage, draw_choice
from minisd.tokenizer import BEGIN, BYTE_TO_CHARACTER, CHARACTER_TO_BYTE, END


def decode(ids, vocabulary, begin, end):
    """Turn ids into text, up to the first end mark.

    ids: a list of numbers    vocabulary: a list of pieces    begin, end: the ids of the marks
    returns: a string
    """
    characters = ""
    for index in ids:
        if index == end:
            break
        if index != begin:
            characters += vocabulary[index]
    text = bytes(CHARACTER_TO_BYTE[one] for one in characters).decode(errors="replace")
    return text.replace("</w>", " ").strip()


def as_text(pieces):
    text = bytes(CHARACTER_TO_BYTE[one] for one in "".join(pieces)).decode(errors="replace")
    return text.replace("</w>", " ").strip()


def read_on(ids, vocabulary, begin, end):
    return as_text([vocabulary[index] for index in ids if index not in (begin, end)])


def keep_begin(ids, vocabulary, begin, end):
    return as_text([vocabulary[index] for index in ids[: [*ids, end].index(end)]])


def keep_marks(ids, vocabulary, begin, end):
    return as_text([vocabulary[index] for index in ids])


def piece_by_piece(ids, vocabulary, begin, end):
    words = []
    for index in ids[: [*ids, end].index(end)]:
        piece = vocabulary[index] if index != begin else ""
        words.append(bytes(CHARACTER_TO_BYTE[one] for one in piece).decode(errors="replace"))
    return "".join(words).replace("</w>", " ").strip()


def byte_alphabet_stays(ids, vocabulary, begin, end):
    pieces = [vocabulary[index] for index in ids[: [*ids, end].index(end)] if index != begin]
    return "".join(pieces).replace("</w>", " ").strip()


def no_spaces(ids, vocabulary, begin, end):
    return decode(ids, vocabulary, begin, end).replace(" ", "")


def spaces_everywhere(ids, vocabulary, begin, end):
    pieces = [vocabulary[index] for index in ids[: [*ids, end].index(end)] if index != begin]
    text = " ".join(bytes(CHARACTER_TO_BYTE[c] for c in one).decode("latin-1") for one in pieces)
    return text.encode("latin-1").decode(errors="replace").replace("</w>", "").strip()


def marks_stay(ids, vocabulary, begin, end):
    pieces = [vocabulary[index] for index in ids[: [*ids, end].index(end)] if index != begin]
    return bytes(CHARACTER_TO_BYTE[one] for one in "".join(pieces)).decode(errors="replace")


def outer_space(ids, vocabulary, begin, end):
    return decode(ids, vocabulary, begin, end) + " "


def decode_strictly(ids, vocabulary, begin, end):
    pieces = [vocabulary[index] for index in ids[: [*ids, end].index(end)] if index != begin]
    text = bytes(CHARACTER_TO_BYTE[one] for one in "".join(pieces)).decode()
    return text.replace("</w>", " ").strip()


def row_of(words, padding=0, lost=0):
    """The arguments of a stage: pieces of one byte, in a vocabulary of another order."""

    def draw(g):
        things = {"a": draw_choice(g, ["cat", "dog"]), "b": draw_choice(g, ["owl", "fox"])}
        pieces = []
        for word in words.format(**things).split():
            letters = [BYTE_TO_CHARACTER[byte] for byte in word.encode()]
            joined = [letters[0] + letters[1], *letters[2:]] if word.isascii() else letters
            pieces += [*joined[:-1], joined[-1] + "</w>"]
        pieces = pieces[: len(pieces) - lost]
        vocabulary = ["x", "y</w>", *sorted({*pieces}), BEGIN, END]
        begin, end = len(vocabulary) - 2, len(vocabulary) - 1
        ids = [begin, *(vocabulary.index(piece) for piece in pieces), end]
        return [[*ids, *[draw_choice(g, [0, 1]) for _ in range(padding)]], vocabulary, begin, end]

    return draw


EXERCISE = Exercise(
    name="decode",
    lesson="05",
    place=8,
    title="From ids back to text",
    question=(
        "Write `decode(ids, vocabulary, begin, end)`. Read the pieces of the ids, up to the "
        "first end mark, and leave out the begin mark. Join the pieces to one string. Turn each "
        "of its characters into a byte with `CHARACTER_TO_BYTE`, and all bytes together into "
        'text with `.decode(errors="replace")`: bytes that do not form a whole character become '
        "the sign U+FFFD. Replace each end-of-word mark `</w>` by a space, and remove the spaces "
        "at both ends."
    ),
    solution=decode,
    stages=(
        Stage("two words", 1, row_of("{a} {b}")),
        Stage("letters of several bytes", 1, row_of("{a} café 猫")),
        Stage("a row with padding", 1, row_of("{b} {a}", padding=5)),
        Stage("half a character", 1, row_of("{b} 猫", lost=1)),
    ),
    hints=(
        "There are three steps: ids to pieces, characters to bytes, bytes to text.",
        "A letter such as é may lie in two pieces. So join all pieces before you turn the bytes "
        "into text.",
        'bytes(CHARACTER_TO_BYTE[one] for one in characters).decode(errors="replace"), then '
        '.replace("</w>", " ") and .strip().',
    ),
    mistakes={
        "Stop at the first end mark. What follows is padding.": read_on,
        "Leave out the begin mark.": keep_begin,
        "Leave out the marks, and stop at the first end mark.": keep_marks,
        "You turned each piece into text alone. The bytes of a letter may lie in two pieces.": (
            piece_by_piece
        ),
        "The text is still written in the byte alphabet. Use CHARACTER_TO_BYTE.": (
            byte_alphabet_stays
        ),
        "There are no spaces. Each end-of-word mark becomes a space.": no_spaces,
        "There is a space after each piece. Only the end of a word gives a space.": (
            spaces_everywhere
        ),
        "The end-of-word marks </w> are still there. Replace each by a space.": marks_stay,
        "There is a space at the end. Use strip().": outer_space,
        'Half a character stops your code. Use .decode(errors="replace").': (decode_strictly),
    },
    passing="If a prompt is too long, the warning uses this function to show what was cut off.",
    difficulty=2,
    minutes=15,
    needs=("byte_words",),
    given="from minisd.tokenizer import CHARACTER_TO_BYTE",
    replaces={
        "minisd.tokenizer.Tokenizer.decode": lambda answer: (
            lambda self, ids: answer(
                [int(index) for index in ids], self.vocabulary, self.begin, self.end
            )
        )
    },
)
