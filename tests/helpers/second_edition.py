"""The lessons that are held to the rules of the course's second edition. In the end: all."""

from docs.make.notebooks import select_paths

SECOND_EDITION = {path.name.split("_")[0] for path in select_paths([])}
