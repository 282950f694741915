"""The self-test before the primer. It shows which parts of the primer a student should read."""

from dataclasses import dataclass

from minisd.teaching.plot.canvas import say


@dataclass(frozen=True)
class Question:
    """One question of the self-test, with its options (letter -> text) and the right letter."""

    part: str  # the part of the primer that explains the answer
    needed: str  # the first lesson that builds on this part
    words: str
    options: dict[str, str]
    answer: str


SELF_TEST = [
    Question(
        "Shapes",
        "01",
        "`image` has the shape 2 3 64 48. What is `image[1, 0, 5, 7]`?",
        {
            "a": "a row of 48 numbers",
            "b": "one number: red, second picture",
            "c": "a pixel, 3 numbers",
        },
        "b",
    ),
    Question(
        "einops",
        "06",
        '`rearrange(x, "b c h w -> b (h w) c")` of a tensor 2 4 8 8 has the shape',
        {"a": "2 64 4", "b": "2 4 64", "c": "2 8 32"},
        "a",
    ),
    Question(
        "Broadcasting",
        "01",
        "A tensor 5 1 1 1 times a tensor 5 4 8 8 has the shape",
        {"a": "5 1 1 1", "b": "none: it is an error", "c": "5 4 8 8"},
        "c",
    ),
    Question(
        "Convolution",
        "04",
        "A 3x3 convolution with stride 2 and padding 1 turns 64 x 64 places into",
        {"a": "32 x 32", "b": "31 x 31", "c": "62 x 62"},
        "a",
    ),
    Question(
        "Norms",
        "06",
        "Layer norm of tokens, b n c, takes the mean over",
        {"a": "the batch", "b": "all tokens", "c": "the channels of one token"},
        "c",
    ),
    Question(
        "Softmax",
        "07",
        "If 10 is added to every score of a row, its softmax",
        {"a": "gets sharper", "b": "stays the same", "c": "gets flatter"},
        "b",
    ),
    Question(
        "Sums of Gaussians",
        "01",
        "x and noise are independent, both with variance 1. The variance of 0.6 x + 0.8 noise is",
        {"a": "1.4", "b": "0.48", "c": "1"},
        "c",
    ),
]


def questions() -> None:
    """Show the self-test."""
    lines = []
    for number, question in enumerate(SELF_TEST, start=1):
        options = "    ".join(f"**{letter})** {text}" for letter, text in question.options.items())
        lines.append(f"{number}. {question.words}<br>{options}")
    say("\n".join(lines))


def where_to_start(answers: str) -> None:
    """Show which parts of the primer to read.

    answers: one letter for each question, or "?" if the student does not know the answer
    """
    say(advice(answers))


def advice(answers: str) -> str:
    """The text that where_to_start() shows. Raises ValueError if a question has no letter."""
    if len(answers) != len(SELF_TEST):
        raise ValueError(
            f"write {len(SELF_TEST)} letters, got {len(answers)}. Write ? where you do not know."
        )
    missed = [
        pair for pair in enumerate(SELF_TEST, start=1) if answers[pair[0] - 1] != pair[1].answer
    ]
    score = f"{len(SELF_TEST) - len(missed)} of {len(SELF_TEST)} are right."
    if not missed:
        return f"{score} Start with lesson 01. The puzzles here are only for fun."
    missed.sort(key=lambda pair: pair[1].needed)
    lines = [
        f"- part {number}, *{question.part}*: lesson {question.needed} needs it"
        for number, question in missed
    ]
    first = missed[0][1].needed
    others = "" if first == "01" else f" Lesson 01 needs none of them. Lesson {first} does."
    return "\n".join([f"{score} Start with these parts of the primer.{others}", "", *lines])
