"""minisd compare: find the first tensor that differs between a model and a port of it."""

import argparse
from pathlib import Path

from minisd.cli.messages import print_message, print_results


def add_compare(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("reference", help="a model: FILE, FOLDER or NAME")
    add("port", help="another model, diffusers:FOLDER, module.py:FUNCTION, or a trace FILE")
    add("--rtol", type=float, help="the allowed error of one operation (what rounding explains)")
    add("--seed", type=int, default=0, help="seed of the inputs that both models get (0)")
    add("--json", type=Path, metavar="FILE", help="also write the report for other programs")
    add("--html", type=Path, metavar="FILE", help="also write the report as a web page")
    command.set_defaults(run=compare_command)


def compare_command(options: argparse.Namespace) -> int:
    """Compare a model with its port and print the report. Returns 0 if they are equal, else 1."""
    import minisd
    from minisd.compare.run import compare_sides
    from minisd.compare.run_trace import compare_trace
    from minisd.compare.sides import make_inputs, open_port
    from minisd.compare.trace_file import is_trace, read_trace
    from minisd.files.whole_files import write_text

    sd = minisd.load(options.reference)
    if is_trace(options.port):
        report = compare_trace(sd, options.reference, read_trace(options.port), options.rtol)
    else:
        port, inputs = open_port(options.port, sd), make_inputs(sd, options.seed)
        report = compare_sides(sd, options.reference, port, inputs, options.rtol)
    print_results(*str(report).split("\n"))
    if options.json:
        write_text(options.json, report.to_json())
        print_message(f"wrote {options.json}.")
    if options.html:
        write_text(options.html, report.to_html())
        print_message(f"wrote {options.html}.")
    return 0 if report.is_equal else 1
