"""Everything in minisd that reads what strangers wrote, by subject."""

from ..case import Reader
from .adapters import ADAPTERS
from .bombs import BOMBS
from .commands import COMMANDS
from .drawings import DRAWINGS
from .files import FILES
from .models import MODELS
from .odd_files import ODD_FILES
from .runs import RUNS
from .text import TEXT

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        *(*FILES, *MODELS, *ADAPTERS, *DRAWINGS),
        *(*TEXT, *RUNS, *COMMANDS, *ODD_FILES, *BOMBS),
    )
}
