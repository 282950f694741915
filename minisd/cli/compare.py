"""minisd compare: find the first tensor that differs between a model and a port of it."""

import argparse
from pathlib import Path

from minisd.cli.messages import print_message, print_results


def add_compare(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    kinds = "FILE, FOLDER or NAME of a model, diffusers:FOLDER, module.py:FUNCTION, or a trace FILE"
    add("reference", help=kinds)
    add("port", help="what to judge: one of the same kinds")
    add("--rtol", type=float, help="the allowed error of one module (what rounding explains)")
    add("--atol", type=float, default=0.0, help="an error that is allowed in addition (0)")
    add("--seed", type=int, default=0, help="seed of the inputs that both sides get (0)")
    add("--json", type=Path, metavar="FILE", help="also write the report for other programs")
    add("--html", type=Path, metavar="FILE", help="also write the report as a web page")


def compare_command(options: argparse.Namespace) -> int:
    """Compare the two sides and print the report. Returns 0 if they are equal, else 1."""
    from minisd.compare.hunt import ErrorLimits
    from minisd.compare.run import compare_sides
    from minisd.compare.sides import open_side
    from minisd.files.whole_files import write_text

    sides = open_side(options.reference), open_side(options.port)
    report = compare_sides(*sides, options.seed, ErrorLimits(options.rtol, options.atol))
    print_results(*str(report).split("\n"))
    for path, make_text in ((options.json, report.to_json), (options.html, report.to_html)):
        if path:
            write_text(path, make_text())
            print_message(f"wrote {path}.")
    return 0 if report.is_equal else 1
