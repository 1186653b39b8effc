"""SVG built from functions that escape by default, and the text that HTML cannot carry.

The figures are made of computed coordinates, for which functions read better than templates; everything else on the
page is a template (`layout.py`).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable


class Html(str):
    """Text that already is markup. Only this module, the templates and literal markup should make one."""

    def __html__(self) -> str:
        """What jinja2 asks for before it would escape."""
        return str(self)


# C0 controls (except tab and newline), DEL and C1 are parse errors in HTML; lone surrogates cannot be written as UTF-8.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_UNPRINTABLE = re.compile("[\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


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
    return Html(f"<{name}{written}>{join(children)}</{name}>")
