"""Questions that a student answers before seeing the output. People remember their wrong guesses.

guess = predict("At cfg_scale 0, what does the prompt draw?", a="a faint cat", b="anything")
...                                                     # the cell that shows the output
guess.reveal("b", a="No: at 0 the prompt is not read at all.", b="Yes: …")
"""

from html import escape
from typing import Any

from minisd.teaching.plot.canvas import display, find_widgets, say


class Guess:
    """A question, its options, and the letter that the student chose (None: not yet).

    options: letter -> text of the option
    """

    def __init__(self, question: str, options: dict[str, str]):
        self.question, self.options = question, options
        self.chosen: str | None = None

    def choose(self, letter: str) -> None:
        """Choose an option by its letter. Raises ValueError if no option has this letter."""
        if letter not in self.options:
            raise ValueError(
                f"there is no option {letter!r}. Choose one of {', '.join(self.options)}."
            )
        self.chosen = letter

    def words(self) -> str:
        """The question as Markdown."""
        lines = [f"- **{letter})** {text}" for letter, text in self.options.items()]
        return "\n".join([f"**Predict.** {self.question}", "", *lines])

    def verdict(self, answer: str, **sentences: str) -> str:
        """The text that reveal() shows, as Markdown.

        answer: the letter of the right option
        sentences: letter -> a sentence that says why this option is right or wrong

        Raises ValueError if an option has no sentence, or if the answer is not an option.
        """
        if sentences.keys() != self.options.keys() or answer not in self.options:
            raise ValueError(
                f"each option ({', '.join(self.options)}) needs a sentence, and the answer must be "
                f"an option. Got sentences for {', '.join(sentences) or 'none'}, answer {answer!r}."
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
        """Show whether the guess was right. If there is no guess, explain every option.

        The arguments are those of verdict(). The answer may be computed, for example
        `"a" if near > far else "b"`.
        """
        say(self.verdict(answer, **sentences))


def predict(question: str, **options: str) -> Guess:
    """Show a question. Returns a Guess, which keeps the student's answer.

    A notebook shows the question with buttons. Elsewhere, the question is printed, and the student
    answers with guess.choose("a").

    options: letter -> text of the option, for example a="…", b="…"
    """
    if len(options) < 2:
        raise ValueError("a question needs two options or more. Give a=…, b=….")
    guess = Guess(question, options)
    if widgets := find_widgets():
        display(buttons(guess, widgets))
    else:
        say(guess.words())
    return guess


def buttons(guess: Guess, ipywidgets: Any) -> object:
    """A widget: the question with radio buttons. A click on a button sets guess.chosen."""
    labelled = [(f"{letter}) {text}", letter) for letter, text in guess.options.items()]
    radio = ipywidgets.RadioButtons(
        options=labelled, value=None, layout=ipywidgets.Layout(width="max-content")
    )

    def keep(change: dict) -> None:
        guess.choose(change["new"])

    radio.observe(keep, names="value")
    heading = ipywidgets.HTML(f"<b>Predict.</b> {escape(guess.question)}")
    return ipywidgets.VBox([heading, radio])
