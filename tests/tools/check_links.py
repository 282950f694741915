"""Check every link inside the built site: python -m tests.tools.check_links docs/_site

It prints the dead links, and how many links it checked. It does not follow links to other sites.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Collects the links of a page, and the names inside the page to which a link can lead."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name in ("id", "name") and value:
                self.names.add(value)


def find_dead_links(site: Path) -> tuple[list[str], int]:
    """The dead links of a site, as "page: link", and the number of links inside it."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    found, count = [], 0
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:|//", link):
                continue
            count += 1
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file() and (
                not parts.fragment
                or target not in pages
                or unquote(parts.fragment) in pages[target].names
            )
            if not there:
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found, count


if __name__ == "__main__":
    lost, looked_at = find_dead_links(Path(sys.argv[1]))
    print(*lost, sep="\n")
    print(f"{len(lost)} of {looked_at} links are dead")
    sys.exit(bool(lost))
