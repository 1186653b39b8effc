"""A parser that checks a page and gathers what is on it, and what every pipeline puts there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from ntk_jax.pipelines.diagnose import report as diagnose_report
from ntk_jax.pipelines.kernel import report as kernel_report
from ntk_jax.pipelines.select.report import part
from ntk_jax.report.page import write_report

PARTS = {"select": part, "diagnose": diagnose_report.part, "kernel": kernel_report.part}
VOID = {"meta", "br", "hr", "link", "img"}


class Page(HTMLParser):
    """Checks that elements nest, and gathers elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, name: str, key: str) -> list[str]:
        return [a[key] or "" for n, a in self.elements if n == name and key in a]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def page_of(folder: Path) -> tuple[str, Page]:
    """(the page's source, parsed) of a run directory."""
    text = write_report(folder, PARTS).read_text(encoding="utf8")
    return text, Page(text)


def edit(path: Path, change: Any) -> None:
    """Changes the value in a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
