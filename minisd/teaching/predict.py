"""Questions that a student answers before the output is shown. People remember a wrong guess.

guess = predict("At cfg_scale 0, what does the prompt draw?", a="a faint cat", b="anything")
...                                                     # the cell that shows the output
guess.reveal("b", a="No: at 0 the prompt is not read at all.", b="Yes: …")
"""

from html import escape
from typing import Any

from minisd.teaching.plot.canvas import display, find_widgets, say


class Guess:
    """A question, its options by letter, and the letter that was chosen (None at first)."""

    def __init__(self, question: str, options: dict[str, str]):
        self.question, self.options = question, options
        self.chosen: str | None = None

    def choose(self, letter: str) -> None:
        """Choose an option where there are no buttons. Raises ValueError for an unknown letter."""
        if letter not in self.options:
            raise ValueError(
                f"there is no option {letter!r}: choose one of {', '.join(self.options)}."
            )
        self.chosen = letter

    def words(self) -> str:
        """The question as Markdown."""
        lines = [f"- **{letter})** {text}" for letter, text in self.options.items()]
        return "\n".join([f"**Predict.** {self.question}", "", *lines])

    def verdict(self, answer: str, **sentences: str) -> str:
        """The text that reveal() shows, as Markdown.

        answer: the letter of the right option
        sentences: for every letter, why its option is right or wrong
        Raises ValueError if an option has no sentence, or if the answer is not an option.
        """
        if sentences.keys() != self.options.keys() or answer not in self.options:
            raise ValueError(
                f"the options are {', '.join(self.options)}: one of them is the answer (got "
                f"{answer!r}), and each needs a sentence (got {', '.join(sentences) or 'none'})."
            )
        whole = {
            letter: f"**{letter}) {text.rstrip('.')}.** {sentences[letter]}"
            for letter, text in self.options.items()
        }
        if self.chosen == answer:
            return f"You were right: {whole[answer]}"
        if self.chosen:
            return f"You said {whole[self.chosen]}\n\nThe answer is {whole[answer]}"
        others = [f"- {letter}) {text}" for letter, text in sentences.items() if letter != answer]
        return "\n".join([f"The answer is {whole[answer]}", "", *others])

    def reveal(self, answer: str, **sentences: str) -> None:
        """Show whether the guess was right. Without a guess, explain every option.

        The answer may be computed: `"a" if near > far else "b"`. See verdict() for the arguments.
        """
        say(self.verdict(answer, **sentences))


def predict(question: str, **options: str) -> Guess:
    """Ask a question and keep the student's answer.

    A notebook shows buttons. Elsewhere the question is text, and `.choose("a")` answers it.
    options: letter -> text of the option, as in a="…", b="…"
    """
    if len(options) < 2:
        raise ValueError("a question needs two options or more: give a=…, b=….")
    guess = Guess(question, options)
    if widgets := find_widgets():
        display(buttons(guess, widgets))
    else:
        say(guess.words())
    return guess


def buttons(guess: Guess, ipywidgets: Any) -> object:
    """The question with radio buttons. A button sets guess.chosen."""
    labelled = [(f"{letter}) {text}", letter) for letter, text in guess.options.items()]
    radio = ipywidgets.RadioButtons(
        options=labelled, value=None, layout=ipywidgets.Layout(width="max-content")
    )

    def keep(change: dict) -> None:
        guess.choose(change["new"])

    radio.observe(keep, names="value")
    heading = ipywidgets.HTML(f"<b>Predict.</b> {escape(guess.question)}")
    return ipywidgets.VBox([heading, radio])
