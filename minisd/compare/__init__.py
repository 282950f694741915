"""Find the first tensor in which another implementation differs from ours, and say why.

    from minisd.compare import compare

    report = compare(ours, theirs, (x, t, context))
    print(report)  # the table, the first module that differs, and the cause

Reading order: calls (what is recorded), weights and align (which module is which), layouts, hunt
(own and inherited errors), causes (why), report and page, sides (what can be compared), trace_file.
"""

from minisd.compare.report import Report as Report
from minisd.compare.run import compare as compare
