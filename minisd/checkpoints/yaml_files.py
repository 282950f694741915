"""Read the .yaml files that lie next to checkpoints. Their size and depth are limited."""

import json
from pathlib import Path

import yaml

from minisd.files.json_files import DEEPEST, parse_json, read_at_most

LARGEST_YAML = 100_000  # bytes. Published files have 4,000; PyYAML reads about 100,000 per second


def read_yaml(path: Path) -> object:
    """Read a .yaml file. Its values must have types that JSON also has.

    Raises ValueError if the file is not valid YAML, if it is too large, if it has too many nested
    levels, or if a value has a type that JSON does not have. The caller puts the name of the
    checkpoint before the message.
    """
    try:
        text = read_at_most(path, LARGEST_YAML).decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            # a few lines with aliases of aliases can stand for billions of values
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has an alias, written with *")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError("it has too many nested levels")
        return parse_json(json.dumps(yaml.safe_load(text)))  # checks names, texts and numbers
    except Exception as error:  # PyYAML raises many types, for example for the date 2024-99-99
        reason = str(error).partition("\n")[0][:80]
        what = f"lies next to {path.name}, which is not valid YAML ({reason})"
        raise ValueError(f"{what}: fetch the .yaml again, or move it away") from error
