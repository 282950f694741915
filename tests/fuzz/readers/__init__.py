"""Everything in minisd that reads what strangers wrote, by subject."""

from tests.fuzz.case import Reader
from tests.fuzz.readers.adapters import ADAPTERS
from tests.fuzz.readers.bombs import BOMBS
from tests.fuzz.readers.commands import COMMANDS
from tests.fuzz.readers.drawings import DRAWINGS
from tests.fuzz.readers.files import FILES
from tests.fuzz.readers.models import MODELS
from tests.fuzz.readers.odd_files import ODD_FILES
from tests.fuzz.readers.runs import RUNS
from tests.fuzz.readers.text import TEXT

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        *(*FILES, *MODELS, *ADAPTERS, *DRAWINGS),
        *(*TEXT, *RUNS, *COMMANDS, *ODD_FILES, *BOMBS),
    )
}
