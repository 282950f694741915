"""The same cases, found by atheris: it prefers bytes that lead to lines not yet run.

python -m tests.fuzz --guided --reader LoRA --cases 10000
"""

import random
import sys
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings

LENGTH = 4096  # bytes, which hypothesis takes for its choices


def main() -> int:
    try:
        import atheris
    except ImportError:
        print("The guided run needs atheris: pip install atheris (Linux and macOS).")
        return 2
    with atheris.instrument_imports(include=["minisd"]):
        from tests.fuzz.judge import Limits, judge
        from tests.fuzz.readers import READERS
        from tests.fuzz.run import keep, read_good
    name, *options = sys.argv[1:]
    reader, seen = READERS[name], set()
    folder = Path(tempfile.mkdtemp(prefix="minisd-guided-"))
    read_good(reader)

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(reader.cases())
    def each(case) -> None:
        verdict = judge(reader, case, Limits())
        sign = (verdict.kind, verdict.where, verdict.why.partition(":")[0])
        if verdict.is_fault and sign not in seen:
            seen.add(sign)
            keep(folder / str(len(seen)), reader, case, verdict, 0)
            print(f"{verdict.kind} at {verdict.where}: {verdict.why!a:.200}")
            print(f"    --replay {folder / str(len(seen))}", flush=True)

    corpus = folder / "corpus"  # it would begin with single bytes, which choose nothing
    corpus.mkdir()
    for number in range(30):
        (corpus / str(number)).write_bytes(random.Random(number).randbytes(LENGTH))
    sizes = [f"-max_len={LENGTH}", "-len_control=0"]
    atheris.Setup([sys.argv[0], *options, *sizes, str(corpus)], each.hypothesis.fuzz_one_input)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
