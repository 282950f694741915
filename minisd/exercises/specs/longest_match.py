"""Another tokenizer, WordPiece, with the student's own mark and the student's longest piece."""

from minisd.exercises.exercise import Exercise, Stage, draw_choice

MARKS = ["##", "@@", "++", "_"]


def longest_match(word, vocabulary, *, mark="##", longest=4):
    """Split a word into the longest pieces that the vocabulary holds, from left to right.

    word: a string    vocabulary: a list of strings    returns: a list of strings
    """
    pieces = []
    at = 0
    while at < len(word):
        prefix = mark if at > 0 else ""
        rest = word[at:]
        lengths = range(1, min(longest, len(rest)) + 1)
        fitting = [length for length in lengths if prefix + rest[:length] in vocabulary]
        if not fitting:
            return ["[UNK]"]
        pieces.append(prefix + rest[: max(fitting)])
        at += max(fitting)
    return pieces


def take_pieces(word, vocabulary, mark, lengths, first="", unknown=None):
    """The same with other lengths, another first mark, and another rule for unknown pieces."""
    pieces = []
    at = 0
    while at < len(word):
        for length in lengths:
            piece = (mark if at else first) + word[at : at + length]
            if at + length <= len(word) and piece in vocabulary:
                break
        else:
            return [*pieces, "[UNK]"] if unknown == "rest" else ["[UNK]"]
        pieces.append(piece)
        at += length
    return pieces


def shortest_first(word, vocabulary, *, mark="##", longest=4):
    return take_pieces(word, vocabulary, mark, range(1, longest + 1))


def any_length(word, vocabulary, *, mark="##", longest=4):
    return take_pieces(word, vocabulary, mark, range(len(word), 0, -1))


def one_too_short(word, vocabulary, *, mark="##", longest=4):
    return take_pieces(word, vocabulary, mark, range(longest - 1, 0, -1))


def mark_counts(word, vocabulary, *, mark="##", longest=4):
    """The mark counts as letters of the piece."""
    pieces, at = [], 0
    while at < len(word):
        prefix = mark if at else ""
        for length in range(longest - len(prefix), 0, -1):
            piece = prefix + word[at : at + length]
            if at + length <= len(word) and piece in vocabulary:
                break
        else:
            return ["[UNK]"]
        pieces.append(piece)
        at += length
    return pieces


def without_mark(word, vocabulary, *, mark="##", longest=4):
    return take_pieces(word, vocabulary, "", range(longest, 0, -1))


def mark_everywhere(word, vocabulary, *, mark="##", longest=4):
    return take_pieces(word, vocabulary, mark, range(longest, 0, -1), first=mark)


def usual_mark(word, vocabulary, *, mark="##", longest=4):
    other = "##" if mark != "##" else "@@"
    return take_pieces(word, vocabulary, other, range(longest, 0, -1))


def only_rest_unknown(word, vocabulary, *, mark="##", longest=4):
    return take_pieces(word, vocabulary, mark, range(longest, 0, -1), unknown="rest")


def mark_dropped(word, vocabulary, *, mark="##", longest=4):
    pieces = longest_match(word, vocabulary, mark=mark, longest=longest)
    return [piece.removeprefix(mark) for piece in pieces]


def mark_behind(word, vocabulary, *, mark="##", longest=4):
    pieces = longest_match(word, vocabulary, mark=mark, longest=longest)
    bare = [piece.removeprefix(mark) for piece in pieces]
    return [piece + mark for piece in bare[:-1]] + bare[-1:]


def letters(g, count):
    return "".join(draw_choice(g, "abcdefgh") for _ in range(count))


def draw_vocabulary(word, share, g):
    """All letters, and a share of the parts of the word. Then the same with each mark."""
    parts = {word[i:j] for i in range(len(word)) for j in range(i + 2, min(i + 8, len(word) + 1))}
    starts, others = (
        [*"abcdefgh", *(part for part in sorted(parts) if draw_choice(g, range(100)) < share)]
        for _ in range(2)
    )
    return starts + [mark + part for part in others for mark in MARKS]


def match(count, share, odd=""):
    def draw(g):
        word = letters(g, count)
        return [word + odd, draw_vocabulary(word, share, g)]

    return draw


EXERCISE = Exercise(
    name="longest_match",
    lesson="05",
    place=9,
    title="A tokenizer without merges",
    question=(
        "BERT's tokenizer, WordPiece, has no merges. It begins at the left end of a word, and "
        "takes the longest piece that is in the vocabulary. Then it does the same with the rest "
        "of the word. Every piece except the first one has a mark in front, in the vocabulary and "
        "in the result. In your version, the mark is `{mark}`, and a piece has at most {longest} "
        "letters. The mark does not count as a letter. If no piece fits at some place, the whole "
        'word becomes `["[UNK]"]`. Write `longest_match(word, vocabulary)`.'
    ),
    solution=longest_match,
    stages=(
        Stage(
            "a word that is one piece", 1, lambda g: [word := letters(g, 3), [word, *"abcdefgh"]]
        ),
        Stage("every piece is known", 1, match(13, 100)),
        Stage("some pieces are known", 2, match(15, 40)),
        Stage("a letter that is not known", 1, match(9, 50, odd="z")),
    ),
    hints=(
        "Use a while loop with the place in the word. In each round, look for the longest piece "
        "that fits there.",
        "At place 0, look up the letters alone. Everywhere else, look up the mark and the "
        "letters. Near the end of the word, fewer letters are left.",
        "rest = word[at:]. Of all lengths up to your limit and up to len(rest), collect those "
        "for which prefix + rest[:length] is in the vocabulary (prefix is empty at place 0, and "
        "your mark elsewhere). Take the largest of them. If there is none, return ['[UNK]'].",
    ),
    mistakes={
        "You take the shortest piece. Try the longest one first.": shortest_first,
        "Some of your pieces have more letters than the question allows.": any_length,
        "Your pieces are one letter shorter than they may be. Check the loop over the lengths.": (
            one_too_short
        ),
        "You counted the mark as a letter. Only the letters of the word count.": mark_counts,
        "The pieces after the first one need the mark.": without_mark,
        "The first piece of a word has no mark.": mark_everywhere,
        "This is not the mark that your question asks for.": usual_mark,
        "If one piece is unknown, the whole word is unknown, not only its rest.": (
            only_rest_unknown
        ),
        "The mark belongs to the piece: leave it in the result.": mark_dropped,
        "The mark comes in front of a piece that continues a word, not after a piece.": (
            mark_behind
        ),
    },
    passing="BERT and many others read text in this way. A byte-level BPE never needs [UNK].",
    difficulty=3,
    minutes=25,
    constants=lambda rng: {"mark": rng.choice(MARKS), "longest": rng.choice([3, 4, 5])},
    in_lesson=True,
)
