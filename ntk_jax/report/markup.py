"""HTML built from functions that escape by default, so that no record's text can become markup.

Why not templates: the page is mostly tables and figures made from numbers, and one rule ("a plain `str` is
escaped, an `Html` is not") is easier to keep than remembering a filter at each place text enters.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that already is markup. Only this module's functions and literal markup should make one."""


# C0 controls (except tab and newline), DEL and C1 are parse errors in HTML; lone surrogates cannot be written as UTF-8.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_UNPRINTABLE = re.compile("[\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = frozenset({"meta", "br", "hr", "link", "img"})


def clean(text: str) -> str:
    """`text` with everything HTML or UTF-8 cannot carry made visible instead: NUL becomes ␀, a lone surrogate �."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub(lambda m: chr(0x2400 + ord(m.group())), text)
    return _UNPRINTABLE.sub("\ufffd", text)


def escape(value: object) -> Html:
    """Markup for a value: an `Html` as it is, nothing for None, anything else escaped (also for use in attributes)."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else html.escape(clean(str(value)), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """The parts' markup one after the other."""
    return Html(separator.join(escape(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """One element. `class_` gives `class`, `aria_label` gives `aria-label`; an attribute that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(clean(str(value)), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def pre(text: str, **attributes: object) -> Html:
    """Preformatted text. The line feed after the tag is eaten by the parser, so that one in the text is not."""
    return tag("pre", Html("\n"), text, **attributes)


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: object = None,
    text_columns: int = 1,
    groups: Sequence[tuple[object, int]] = (),
) -> Html:
    """A table whose first column heads the rows; columns from `text_columns` on are numbers, set flush right.

    A cell that already is a `<td>`/`<th>` element is taken as it is. `groups` puts a row of (title, columns spanned)
    above the header.
    """

    def cell(value: object, column: int) -> Html:
        if isinstance(value, Html) and value.startswith(("<td", "<th")):
            return value
        kind = None if column < text_columns else "number"
        if column == 0:
            return tag("th", value, scope="row", class_=kind)
        return tag("td", value, class_=kind)

    head = join(
        tag("th", name, scope="col", class_=None if i < text_columns else "number") for i, name in enumerate(header)
    )
    spans = [
        tag("th", t, colspan=n, scope="colgroup", class_="group") if t else tag("td", colspan=n) for t, n in groups
    ]
    above = tag("tr", *spans) if spans else None
    body = join((tag("tr", join(cell(value, i) for i, value in enumerate(row))) for row in rows), "\n")
    inner = tag(
        "table", tag("caption", caption) if caption else None, tag("thead", above, tag("tr", head)), tag("tbody", body)
    )
    # A wide table scrolls inside its own box, which takes the keyboard focus so that no mouse is needed.
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=_label(caption))


def _label(caption: object) -> str:
    return html.unescape(re.sub("<[^>]*>", "", str(caption))) if caption else "table"


def fold(summary: object, *children: object, open_: bool = False, class_: str | None = None) -> Html:
    """Content that opens on demand, without scripts."""
    markup = tag("details", tag("summary", summary), *children, class_=class_)
    return Html(markup.replace("<details", "<details open", 1)) if open_ else markup
