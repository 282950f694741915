"""The command line as the tests call it."""

from minisd import cli


def run(*arguments):
    """Run `minisd` in this process. Returns its exit status."""
    return cli.main([str(argument) for argument in arguments])
