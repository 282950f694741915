"""What the commands print: results to the standard output, all else to the error stream.

Everything foreign passes through here: a name may hold what a terminal would obey.
"""

import sys

from minisd.files.one_line import one_line

LONGEST_RESULT = 100_000  # characters of a line: prompts are shown whole


def print_results(*results: object) -> None:
    """Print results, each in a line: the path of what was written, the rows of `info`."""
    for result in results:
        print(one_line(result, LONGEST_RESULT), flush=True)


def print_message(text: object, by: str = "minisd") -> None:
    """Print a message or an error in one line. by: the command that says it"""
    print(one_line(f"{by}: {text}"), file=sys.stderr)


def escape_unprintable() -> None:
    """Print numbers for letters that the terminal's encoding lacks, as Windows' and C's do."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has no such method, and needs none
            stream.reconfigure(errors="backslashreplace")
