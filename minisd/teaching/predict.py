"""Questions that a student answers before seeing the output. People remember their wrong guesses.

guess = predict("At cfg_scale 0, what does the prompt draw?", a="a faint cat", b="anything")
...                                                     # the cell that shows the output
guess.reveal("b", a="No: at 0 the prompt is not read at all.", b="Yes: …")

reveal() waits until the student has chosen an answer. The first choice is kept in the learner's
folder, in predictions.json. `minisd lessons --answers` lists these choices.
"""

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

from minisd.files.whole_files import make_folder, write_text
from minisd.teaching import is_headless
from minisd.teaching.plot.canvas import display, find_widgets, in_notebook, say

CHOICES_FILE = "predictions.json"  # question -> what was chosen, and the right answer


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
        """Show whether the guess was right. If there is no guess yet, ask for one.

        If nobody is there to choose, for example while a page is made, explain every option.

        The arguments are those of verdict(). The answer may be computed, for example
        `"a" if near > far else "b"`.
        """
        words = self.verdict(answer, **sentences)
        if self.chosen is None and is_person_there():
            letters = " or ".join(f'guess.choose("{letter}")' for letter in self.options)
            say(
                "**Choose your answer first**, with the buttons below the question. Then run this "
                f"cell again. (Without buttons, run {letters}, with the name of the guess.)"
            )
            return
        if self.chosen is not None:
            keep_prediction(self.question, self.options[self.chosen], self.options[answer])
        say(words)


def is_person_there() -> bool:
    """Whether somebody can answer: Jupyter shows the lesson, or a terminal runs it."""
    if is_headless():
        return False
    if in_notebook():  # nbconvert, too, runs notebooks, but nobody can type there
        from IPython import get_ipython

        return getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", True)
    return sys.stdin is not None and sys.stdin.isatty()


def keep_prediction(question: str, chosen: str, answer: str) -> None:
    """Write a student's choice to the learner's folder, unless the question has one already."""
    from minisd.exercises.learner_folder import learner_folder

    folder = learner_folder()
    kept = read_predictions(folder)
    if question not in kept:
        make_folder(folder)
        choice = {"chosen": chosen, "answer": answer}
        text = json.dumps(kept | {question: choice}, indent=1, ensure_ascii=False)
        write_text(folder / CHOICES_FILE, text + "\n")


def read_predictions(folder: Path) -> dict[str, dict[str, str]]:
    """The choices in a learner's folder: question -> {"chosen": its text, "answer": its text}.

    Raises ValueError if the file is damaged.
    """
    path = folder / CHOICES_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {str(q): {k: str(one[k]) for k in ("chosen", "answer")} for q, one in found.items()}
    except (ValueError, AttributeError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be read. Delete it to start again.") from error


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
