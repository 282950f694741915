"""An autograder for Gradescope: a .zip file that grades each submission when it is handed in."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from minisd import __version__
from minisd.exercises.assignment import draw_seed
from minisd.exercises.exercise import Exercise, find_exercise
from minisd.exercises.grade import Student, feedback_text, judge_all, list_files, read_cells
from minisd.exercises.sandbox import RunLimits
from minisd.exercises.visible_tree import PACKAGE
from minisd.files.whole_files import written_whole

SCRIPTS = Path(__file__).with_name("autograder")  # what Gradescope runs
LEFT_OUT = {"__pycache__", "weights", "notebooks"}


def write_autograder(path: Path, exercises: list[Exercise], limits: RunLimits) -> None:
    """Write the .zip file to upload. It holds this package without weights, and the settings.

    Raises ValueError if the file cannot be written.
    """
    settings = {"exercises": [one.name for one in exercises], "limits": asdict(limits)}
    contents = {f"{file.name}": file.read_bytes() for file in SCRIPTS.iterdir()}
    contents["assignment.json"] = json.dumps(settings).encode()
    for file in sorted(PACKAGE.rglob("*")):
        if file.is_file() and not LEFT_OUT & {*file.relative_to(PACKAGE).parts}:
            contents[file.relative_to(PACKAGE.parent).as_posix()] = file.read_bytes()
    with written_whole(path) as unfinished, ZipFile(unfinished, "w", ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = ZipInfo(name)
            entry.external_attr = 0o100755 << 16  # the scripts must be executable
            archive.writestr(entry, content, ZIP_DEFLATED)


def grade_submission(root: Path) -> None:
    """Grade what Gradescope has put into root/submission, and write root/results/results.json.

    The student's id is the email address that Gradescope knows.
    """
    settings = json.loads((root / "source" / "assignment.json").read_text(encoding="utf-8"))
    about = json.loads((root / "submission_metadata.json").read_text(encoding="utf-8"))
    student, seed = Student({"id": about["users"][0]["email"]}), draw_seed()
    student.files = {str(path): read_cells(path) for path in list_files(root / "submission")}
    exercises = [find_exercise(name) for name in settings["exercises"]]
    judge_all([student], exercises, seed, RunLimits(**settings["limits"]))
    tests = []
    for verdict in student.verdicts:
        for one in verdict.results:
            name, points = f"{verdict.exercise.name}: {one.stage.title}", one.stage.points
            test = {"name": name, "score": points * (one.problem is None), "max_score": points}
            tests.append(test | {"visibility": "visible"})
    results = {"score": student.points, "tests": tests, "visibility": "visible"}
    results |= {"output": feedback_text(student), "output_format": "md"}
    results |= {"stdout_visibility": "hidden", "extra_data": {"seed": seed, "minisd": __version__}}
    (root / "results" / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    grade_submission(Path(sys.argv[1]))
