"""One input, and one reader."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis.strategies import SearchStrategy


@dataclass(frozen=True)
class Case:
    """Files by their names in an empty folder, and the one (or "", the folder) that is read.

    A prompt or a command line is a file as well, so that every case can be saved and read again.
    refused: whether the right answer to it is no, although nobody broke it; None: yes or no
    """

    files: dict[str, bytes]
    target: str
    refused: bool | None = False

    @property
    def size(self) -> int:
        return sum(map(len, self.files.values()))

    def write(self, folder: Path) -> Path:
        """Put the files into the folder. Returns the path of what is read."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder / self.target


@dataclass(frozen=True)
class Printed:
    """What a command answered."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Reader:
    """Something in minisd that reads what strangers wrote.

    good: the unbroken cases    cases: broken ones    read: gets the path of the target
    check: after a good load, says what is silently wrong with it; None: nothing
    share: how many of all cases it gets, next to the others' shares
    named: whether its errors have to name a file
    """

    name: str
    good: Callable[[], list[Case]]
    cases: Callable[[], SearchStrategy[Case]]
    read: Callable[[Path], object]
    check: Callable[[Path, object], str | None] = lambda path, result: None
    share: float = 1.0
    named: bool = True
