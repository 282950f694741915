"""Split a text into words, and write the words in bytes."""

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, draw_choice
from minisd.tokenizer import BYTE_TO_CHARACTER, WORD_PATTERN


def byte_words(text):
    """Split a clean text into words. Each byte of a word is written as one character.

    text: a string    returns: a list of strings
    """
    words = []
    for word in WORD_PATTERN.findall(text):
        words.append("".join(BYTE_TO_CHARACTER[byte] for byte in word.encode()))
    return words


def split_at_spaces(text):
    return ["".join(BYTE_TO_CHARACTER[byte] for byte in word.encode()) for word in text.split()]


def letters(text):
    return WORD_PATTERN.findall(text)


def chr_of_byte(text):
    return ["".join(chr(byte) for byte in word.encode()) for word in WORD_PATTERN.findall(text)]


def byte_of_letter(text):
    words = WORD_PATTERN.findall(text)
    return ["".join(BYTE_TO_CHARACTER[ord(letter)] for letter in word) for word in words]


def words_in_lists(text):
    return [[BYTE_TO_CHARACTER[b] for b in word.encode()] for word in WORD_PATTERN.findall(text)]


def end_marks(text):
    return [word + "</w>" for word in byte_words(text)]


def one_string(text):
    return "".join(byte_words(text))


def thing(g):
    return draw_choice(g, ["cat", "dog", "owl", "apple", "house", "tulip", "robot"])


def cats(g):
    return draw_choice(g, ["🐱", "🐈", "🦊", "🐶"])


EXERCISE = Exercise(
    name="byte_words",
    lesson="05",
    place=2,
    title="Words in the byte alphabet",
    question=(
        "Write `byte_words(text)`. `WORD_PATTERN.findall(text)` splits a clean text into words. "
        "Turn each word into its bytes with `word.encode()`, which gives numbers from 0 to 255. "
        "`BYTE_TO_CHARACTER` is a dictionary: byte -> the visible character that stands for it. "
        "Return the list of the words, each written with these characters."
    ),
    solution=byte_words,
    stages=(
        Stage("plain words", 1, lambda g: [f"a {thing(g)} on a {thing(g)}"]),
        Stage("endings, digits and signs", 1, lambda g: [f"it's 12 {thing(g)}s, a {thing(g)}!"]),
        Stage("letters of several bytes", 2, lambda g: [f"a {thing(g)} in a café, 猫, {cats(g)}"]),
    ),
    hints=(
        "You need two loops: one over the words, and one over the bytes of a word.",
        '"é".encode() gives two bytes, 195 and 169. Look up each of them in BYTE_TO_CHARACTER.',
        '"".join(BYTE_TO_CHARACTER[byte] for byte in word.encode()) writes one word.',
    ),
    mistakes={
        "You split at spaces only. WORD_PATTERN also separates 's, digits and signs.": (
            split_at_spaces
        ),
        "The words still consist of letters. Turn each word into bytes with word.encode().": (
            letters
        ),
        "chr(byte) is not always visible. Look up the byte in BYTE_TO_CHARACTER.": chr_of_byte,
        "ord(letter) is not a byte: a letter may have several bytes. Use word.encode().": (
            byte_of_letter
        ),
        "Join the characters of a word, so that each word is one string.": words_in_lists,
        "Leave out the end-of-word mark. bpe() adds it later.": end_marks,
        "Return a list with one string for each word, not one long string.": one_string,
    },
    passing="Pieces are merged only inside these words, so no piece ever holds a space.",
    difficulty=2,
    minutes=10,
    needs=("clean",),
    given="from minisd.tokenizer import BYTE_TO_CHARACTER, WORD_PATTERN",
    replaces={"minisd.tokenizer.byte_words": lambda answer: answer},
    draw=draw_cat,
)
