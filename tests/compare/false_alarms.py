"""Compare right ports, and count false alarms: python -m tests.compare.false_alarms [SEEDS]

Every reference that others wrote, on models with random weights: none may differ, and all weights
must be aligned without the table of names.
"""

import sys
from collections import Counter
from itertools import product

import torch

from minisd.compare.report import Report
from minisd.compare.run import compare_part
from tests.compare.bench import bench_inputs
from tests.helpers.reference_networks import DRAWS, Pair, pair
from tests.helpers.tiny_models import V1, V2

DTYPES = {
    "diffusers": (torch.float32, torch.float64, torch.bfloat16),
    "original": (torch.float32,),  # its norms cast to float32, and raise on other weights
}


def compare_pair(part, config, layout, draw, dtype, seed=0) -> tuple[Pair, Report]:
    """Compare a reference with ours."""
    both = pair(part, config, layout, draw, dtype, seed)
    inputs = [
        one.to(dtype) if one.is_floating_point() and one.ndim > 1 else one
        for one in bench_inputs(part)
    ]
    report = Report()
    compare_part(
        report,
        part,
        both.ours,
        both.theirs,
        lambda one: both.run_ours(one, *inputs),
        lambda one: both.run_theirs(one, *inputs),
    )
    return both, report


def main() -> None:
    counts: Counter[str] = Counter()
    matched = total = 0
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    parts = "unet", "vae", "text_encoder"
    for part, config, layout, draw in product(parts, (V1, V2), DTYPES, DRAWS):
        if (part, layout, config) == ("text_encoder", "original", V1):
            continue  # open_clip has v2's only
        for dtype, seed in product(DTYPES[layout], seeds):
            both, report = compare_pair(part, config, layout, draw, dtype, seed)
            matched, total = matched + report.matched, total + len([*both.ours.parameters()])
            counts["equal" if report.is_equal else "FALSE ALARM"] += 1
            if not report.is_equal:
                where = f"{part} {'v1' if config is V1 else 'v2'} {layout} {draw} {dtype} {seed}"
                print(where, *report.verdict(), flush=True)
    print(dict(counts), f"{matched} of {total} parameters aligned")


if __name__ == "__main__":
    main()
