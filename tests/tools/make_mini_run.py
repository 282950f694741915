"""Record the run that `minisd verify` uses again, after the mini's weights have changed:

python -m tests.tools.make_mini_run
"""

import minisd
from minisd.cli.known_numbers import MINI_RUN
from minisd.cli.record_run import record_run
from minisd.compare.trace_file import trace_tensors, write_trace

SETTINGS = {"prompt": "a cat on a blue background", "steps": 2}

if __name__ == "__main__":
    sd = minisd.load("mini")
    calls, inputs = record_run(sd, lambda: sd.txt2img(**SETTINGS), stats=True)
    write_trace(MINI_RUN, trace_tensors(calls, inputs), SETTINGS, {})
