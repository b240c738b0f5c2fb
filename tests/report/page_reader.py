"""Reads pages for the tests, and keys that try to break them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

VOID = {"meta", "img", "input", "br", "hr"}
TAGS = frozenset(
    "html head meta title style body header main footer section aside article dialog details summary noscript "  # noqa: SIM905
    "script h1 h2 h3 h4 p b small i kbd code span div ul li dl dt dd a img button label select option input output "
    "table thead tbody tr th td svg rect line text".split()
)
EVIL = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"quoted\" & 'single'",
    "two\nlines\tand a tab",
    " blanks ",
    "#hash",
    "{{ 7 * 7 }}",
    "</title><!--",
    "\u202egnp.exe",
    "Straße/日本/été.png",
    "\u2028line",
    "javascript:alert(1)",
]


class Page(HTMLParser):
    """Collects what tests ask for, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words)).replace("\N{NO-BREAK SPACE}", " ")

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])

    def having(self, tag: str, kind: str) -> list[dict[str, str]]:
        return [found for name, found in self.tags if name == tag and kind in (found.get("class") or "").split()]
