"""minisd verify: check models against published and recorded numbers."""

import argparse

from minisd.cli.messages import print_message, print_results


def add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", nargs="?", help="NAME (the mini and all downloaded models)")


def verify_command(options: argparse.Namespace) -> int:
    """Run and print every check. Returns the exit status: 1 if a check fails, else 0."""
    from minisd.cli.known_numbers import GOLDENS, run_checks

    known = ["mini", *GOLDENS["models"]]
    if options.model not in (None, *known):
        raise ValueError(f"no numbers are known for {options.model!r}: give {' or '.join(known)}.")
    checks = run_checks(options.model)
    print_results(*map(str, checks))
    wrong = sum(not check.is_ok for check in checks)
    print_message(f"{len(checks) - wrong} of {len(checks)} checks passed.")
    return 1 if wrong else 0
