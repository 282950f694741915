"""Check that the tests notice mistakes: change one important line at a time, and run tests.

    python -m tests.tools.mutate            # every mutation, some minutes
    python -m tests.tools.mutate pad scale  # those with one of the words in their description

Each change is made in a copy of the repository. The tests that should notice it run on this copy.
The program prints one line for each change. The exit status is 1 if the tests missed a change, and
2 if the code no longer contains a line that a mutation names.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutation(NamedTuple):
    fact: str  # what the line makes sure of
    file: str
    line: str  # part of a line, which the file contains once
    wrong: str
    tests: str  # the test files that should notice


MUTATIONS = [
    Mutation(
        "eps of the transformer's group norm",
        "attention.py",
        "channels, eps=1e-6)",
        "channels, eps=1e-5)",
        "test_parity",
    ),
    Mutation(
        "eps of the VAE's norms", "vae.py", "NORM_EPS = 1e-6", "NORM_EPS = 1e-5", "test_parity"
    ),
    Mutation(
        "cosines before sines",
        "unet.py",
        "torch.cat([angles.cos(), angles.sin()]",
        "torch.cat([angles.sin(), angles.cos()]",
        "test_parity",
    ),
    Mutation(
        "frequencies divided by half",
        "unet.py",
        "* steps / half)",
        "* steps / (half - 1))",
        "test_parity",
    ),
    Mutation("VAE pad, right and bottom", "vae.py", "(0, 1, 0, 1)", "(1, 0, 1, 0)", "test_parity"),
    Mutation(
        "GEGLU's gate is the second half",
        "attention.py",
        "value, gate = self.widen",
        "gate, value = self.widen",
        "test_parity",
    ),
    Mutation(
        "scores over the root of the head's width",
        "attention.py",
        "q = q * q.shape[-1] ** -0.5",
        "q = q * q.shape[-1] ** -1.0",
        "test_attention test_parity test_trace",
    ),
    Mutation(
        "the skip comes behind x",
        "unet.py",
        "torch.cat([x, skip], dim=1)",
        "torch.cat([skip, x], dim=1)",
        "test_parity",
    ),
    Mutation("quick gelu", "clip.py", "1.702 * x", "1.7 * x", "test_parity"),
    Mutation("causal mask", "clip.py", "forbidden.triu(1)", "forbidden.triu(2)", "test_parity"),
    Mutation(
        "latent scale",
        "pipeline.py",
        "z = latent / self.vae.config.scale",
        "z = latent * self.vae.config.scale",
        "test_pipeline",
    ),
    Mutation(
        "log-variance clamped at 20",
        "vae.py",
        "logvar.clamp(-30, 20)",
        "logvar.clamp(-20, 30)",
        "test_vae test_parity",
    ),
    Mutation(
        "leading timesteps are offset by 1",
        "schedule.py",
        "first = 0 if steps == self.config.timesteps else 1",
        "first = 0",
        "test_schedule",
    ),
    Mutation(
        "betas are even in their square root",
        "schedule.py",
        "first, last = config.beta_start**0.5, config.beta_end**0.5",
        "first, last = config.beta_start, config.beta_end",
        "test_schedule",
    ),
    Mutation(
        "DDIM ends at alpha_bar[0]",
        "checkpoints/folder_levels.py",
        '"sigma_min" if name in ("ddim", "plms") and not clean else "zero"',
        '"zero"',
        "test_samplers test_pipeline",
    ),
    Mutation(
        "guidance starts from the unconditional",
        "guidance.py",
        "guided = uncond + cfg_scale * (cond - uncond)",
        "guided = cond + cfg_scale * (cond - uncond)",
        "test_guidance",
    ),
    Mutation(
        "the sign in the v objective",
        "guidance.py",
        "return level.signal_rate * x - level.noise_rate * v",
        "return level.signal_rate * x + level.noise_rate * v",
        "test_guidance",
    ),
    Mutation(
        "sample i uses seed + i",
        "pipeline.py",
        "[int(seeds[0]) + i for i in range(count)]",
        "[int(seeds[0]) for i in range(count)]",
        "test_pipeline test_cli",
    ),
]


def problem(mutation: Mutation) -> str:
    """Why this mutation cannot be made in the code as it is now; "" if it can."""
    path = ROOT / "minisd" / mutation.file
    if not path.is_file():
        return f"minisd/{mutation.file} does not exist. Name the file that holds the line now."
    found = path.read_text(encoding="utf-8").count(mutation.line)
    if found != 1:
        return f"minisd/{mutation.file} has {mutation.line!r} {found} times. Name one line."
    lost = [name for name in mutation.tests.split() if len(test_files(name)) != 1]
    return f"No test file has the name {lost[0]}.py. Name one that has." if lost else ""


def test_files(name: str) -> list[Path]:
    """The test files of this name in all folders of tests/; relative to the repository."""
    return [path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob(f"{name}.py"))]


def is_noticed(mutation: Mutation, folder: Path) -> bool:
    """Make the change in the copy, and run the tests that should fail."""
    path = folder / "minisd" / mutation.file
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace(mutation.line, mutation.wrong), encoding="utf-8")
    tests = [path for name in mutation.tests.split() for path in test_files(name)]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(folder)}  # test the copy
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    path.write_text(right, encoding="utf-8")
    assert done.returncode in (0, 1), done.stdout.decode()[-2000:]
    return done.returncode == 1


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word in m.fact for word in words)]
    if problems := [f"{m.fact}: {why}" for m in chosen if (why := problem(m))]:
        print(*problems, sep="\n")
        return 2
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("minisd", "tests", "docs"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "weights").symlink_to(ROOT / "weights")
        for mutation in chosen:
            seen = is_noticed(mutation, folder)
            missed += not seen
            print(f"{'noticed' if seen else 'MISSED':8} {mutation.fact}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
