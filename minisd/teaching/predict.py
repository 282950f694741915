"""Questions to answer before the output is seen: a wrong guess that is noticed is remembered.

guess = predict("At cfg_scale 0, what does the prompt draw?", a="a faint cat", b="anything")
...                                                     # the cell that shows it
guess.reveal("b", a="No: at 0 the prompt is not read at all.", b="Yes: …")
"""

from html import escape

from minisd.teaching import is_headless
from minisd.teaching.plot.canvas import display, in_notebook, say


class Guess:
    """A question, its options by letter, and the one the student has chosen (None: none yet)."""

    def __init__(self, question: str, options: dict[str, str]):
        self.question, self.options = question, options
        self.chosen: str | None = None

    def choose(self, letter: str) -> None:
        """Answer in code, where there are no buttons. ValueError: there is no such option."""
        if letter not in self.options:
            raise ValueError(
                f"there is no option {letter!r}: choose from {', '.join(self.options)}."
            )
        self.chosen = letter

    def words(self) -> str:
        """The question as Markdown."""
        lines = [f"- **{letter})** {text}" for letter, text in self.options.items()]
        return "\n".join([f"**Predict.** {self.question}", "", *lines])

    def verdict(self, answer: str, **sentences: str) -> str:
        """What reveal shows, as Markdown.

        answer: the letter of the right option
        sentences: for every option, by letter, why it is right or what is wrong with it
        ValueError: a letter has no sentence, or none of the options has that letter.
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
        """Say whether the guess was right; without a guess, say what holds of every option.

        The answer may be computed: `"a" if near > far else "b"`. See `verdict`.
        """
        say(self.verdict(answer, **sentences))


def predict(question: str, **options: str) -> Guess:
    """Ask, and keep the answer: buttons where there are any, else text and `.choose("a")`.

    options: by letter: a="…", b="…"
    """
    if len(options) < 2:
        raise ValueError("a question needs two options or more: a=…, b=….")
    guess = Guess(question, options)
    widget = None if is_headless() or not in_notebook() else buttons(guess)
    if widget is None:
        say(guess.words())
    else:
        display(widget)
    return guess


def buttons(guess: Guess) -> object | None:
    """The question with radio buttons that keep the choice in the guess. None: no ipywidgets."""
    try:
        import ipywidgets
    except ImportError:
        return None
    labelled = [(f"{letter}) {text}", letter) for letter, text in guess.options.items()]
    radio = ipywidgets.RadioButtons(
        options=labelled, value=None, layout=ipywidgets.Layout(width="max-content")
    )

    def keep(change: dict) -> None:
        guess.choose(change["new"])

    radio.observe(keep, names="value")
    heading = ipywidgets.HTML(f"<b>Predict.</b> {escape(guess.question)}")
    return ipywidgets.VBox([heading, radio])
