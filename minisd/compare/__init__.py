"""Find the first tensor in which another implementation differs from minisd, and say why.

    from minisd.compare import compare

    report = compare(ours, theirs, (x, t, context))
    print(report)  # the table, the first module that differs, and the cause

Two words are used everywhere in this folder. "Ours" means minisd's network: the reference. "Theirs"
means the other implementation: the port.

Read the files in this order: calls (what is recorded), weights and align (which module of theirs
belongs to which module of ours), layouts (the order of axes), hunt (own and inherited errors),
causes (why a module differs), report (the result; its web page is report.html), sides (what can be
compared), trace_file (recorded runs).
"""

from minisd.compare.report import Report as Report
from minisd.compare.run import compare as compare
