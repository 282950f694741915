"""Prints results to the standard output, and everything else to the error stream.

A name from a stranger's file may hold control characters that a terminal would obey. The functions
of this file replace control characters (see one_line()). So only these functions print.
"""

import io
import sys

from minisd.files.one_line import one_line

LONGEST_RESULT = 100_000  # characters in one line: enough for a whole prompt


def print_results(*results: object) -> None:
    """Print each result on its own line. A result is a path or a line of text."""
    for result in results:
        print(one_line(result, LONGEST_RESULT), flush=True)


def print_message(text: object, by: str = "minisd") -> None:
    """Print a message or an error on one line.

    by: the command that prints the message, such as "minisd train"
    """
    print(one_line(f"{by}: {text}"), file=sys.stderr)


def escape_unprintable() -> None:
    """Let print() write an escape code for a letter that the terminal's encoding does not have.

    Otherwise, print() would raise an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the streams of a notebook have another class
            stream.reconfigure(errors="backslashreplace")
