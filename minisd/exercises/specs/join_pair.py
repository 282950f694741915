"""Join one pair of pieces wherever it occurs in a word."""

from minisd.exercises.exercise import Exercise, Stage, draw_choice


def join_pair(pieces, pair):
    """Join a pair of neighbouring pieces wherever it occurs, from left to right.

    pieces: a list of strings    pair: two strings    returns: a list of strings
    """
    joined = []
    at = 0
    while at < len(pieces):
        if tuple(pieces[at : at + 2]) == tuple(pair):
            joined.append(pieces[at] + pieces[at + 1])
            at += 2
        else:
            joined.append(pieces[at])
            at += 1
    return joined


def only_first(pieces, pair):
    for at in range(len(pieces) - 1):
        if tuple(pieces[at : at + 2]) == tuple(pair):
            return [*pieces[:at], "".join(pair), *pieces[at + 2 :]]
    return list(pieces)


def right_to_left(pieces, pair):
    turned = join_pair(pieces[::-1], pair[::-1])
    return ["".join(pair) if one == "".join(pair[::-1]) else one for one in turned[::-1]]


def use_twice(pieces, pair):
    joined = []
    for at, piece in enumerate(pieces):
        found = tuple(pieces[at : at + 2]) == tuple(pair)
        if found:
            joined.append("".join(pair))
        elif at == 0 or tuple(pieces[at - 1 : at + 1]) != tuple(pair):
            joined.append(piece)
    return joined


def keep_second(pieces, pair):
    joined = []
    for at, piece in enumerate(pieces):
        found = tuple(pieces[at : at + 2]) == tuple(pair)
        joined.append("".join(pair) if found else piece)
    return joined


def lose_last(pieces, pair):
    joined = []
    at = 0
    while at < len(pieces) - 1:
        found = tuple(pieces[at : at + 2]) == tuple(pair)
        joined.append("".join(pair) if found else pieces[at])
        at += 2 if found else 1
    return joined


def any_order(pieces, pair):
    joined = []
    for piece in pieces:
        if joined and {joined[-1], piece} == set(pair):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def compare_text(pieces, pair):
    joined = []
    for piece in pieces:
        if joined and joined[-1] + piece == "".join(pair):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def letter(g):
    return draw_choice(g, "cdglmr")


def short_word(g):
    a = letter(g)
    return [[a, "o", "n", "e</w>"], ("o", "n")]


def long_word(g):
    a, b = letter(g), letter(g)
    return [[a, "o", "n", b, "n", "o", "n", "o", "ne", "o", "n"], ("o", "n")]


def equal_letters(g):
    a, b = letter(g), letter(g)
    return [[a, "o", "o", "o", b, "o", "o", b], ("o", "o")]


def other_pieces(g):
    a, b = letter(g), letter(g)
    return [[a, "on", "e", b, "o", "ne", a, "on", "e"], ("o", "ne")]


EXERCISE = Exercise(
    name="join_pair",
    lesson="05",
    place=3,
    title="Join one pair",
    question=(
        "A word is a list of pieces. Write `join_pair(pieces, pair)`: go through the word from "
        "left to right. Wherever two neighbouring pieces are equal to the two pieces of the pair, "
        'put one joined piece in their place. `join_pair(["l", "o", "o", "o", "k"], ("o", "o"))` '
        'gives `["l", "oo", "o", "k"]`.'
    ),
    solution=join_pair,
    stages=(
        Stage("the pair occurs once", 1, short_word),
        Stage("the pair occurs several times", 1, long_word),
        Stage("two equal pieces", 1, equal_letters),
        Stage("pieces that look alike", 1, other_pieces),
    ),
    hints=(
        "Build a new list. Changing a list while you loop over it is difficult.",
        "Use a while loop with an index. After a pair, the index goes on by 2, otherwise by 1.",
        "Compare tuple(pieces[at : at + 2]) with the pair. At the end of the list, this slice "
        "has only one piece, and is never equal to the pair.",
    ),
    mistakes={
        "Only the first pair is joined. Join the pair wherever it occurs.": only_first,
        "You joined from right to left. Go from left to right.": right_to_left,
        "One piece is used in two pairs. After a pair, go on by two pieces.": use_twice,
        "The second piece of a pair is still there. After a pair, go on by two pieces.": (
            keep_second
        ),
        "The last piece of the word is lost.": lose_last,
        "The order of a pair matters: (a, b) is not (b, a).": any_order,
        "Compare both pieces. Other pieces may give the same text when they are joined.": (
            compare_text
        ),
    },
    passing="Learning a vocabulary repeats this step: learn_merges() joins one pair after another.",
    difficulty=1,
    minutes=10,
    replaces={"minisd.tokenizer.join": lambda answer: answer},
)
