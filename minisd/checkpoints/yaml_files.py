"""The .yaml files that lie next to checkpoints, read within bounds."""

import json
from pathlib import Path

import yaml

from minisd.files.json_files import DEEPEST, parse_json, read_at_most

LARGEST_YAML = (
    100_000  # bytes. Published ones have 4,000, and PyYAML reads some 100,000 in a second
)


def read_yaml(path: Path) -> object:
    """What a .yaml says, of the values that JSON has, too.

    Raises ValueError, to be read after the name of the checkpoint next to it, for anything else.
    """
    try:
        text = read_at_most(path, LARGEST_YAML).decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            # a few lines of aliases of aliases stand for billions of values
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("an alias (*), which is unknown here")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError("too many levels inside one another")
        return parse_json(json.dumps(yaml.safe_load(text)))  # which tests names, texts and numbers
    except Exception as error:  # PyYAML can break anywhere: at the date 2024-99-99, for one
        reason = str(error).partition("\n")[0][:80]
        what = f"has {path.name} beside it, which is no YAML ({reason})"
        raise ValueError(f"{what}: fetch it again, or move it away") from error
