"""The process that takes main texts out of pages: one page in, one answer out, until its standard input ends.

    python -m ntk_jax.mining.corpus.extract_worker KIND SECONDS

It is killed by the kernel when a page has taken SECONDS of CPU time, and when it asks for too much memory.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

SIZES = struct.Struct("<II")  # bytes of the charset's name and of the page, which follow
LENGTH = struct.Struct("<I")  # of an answer
_MEMORY = 4 << 30  # bytes of addresses


def main() -> None:
    """Answers until there is no more to read."""
    kind, seconds = sys.argv[1], float(sys.argv[2])
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    run = {"resiliparse": _resiliparse, "trafilatura": _trafilatura}[kind]()
    _answer(run, b"<p>The first page loads tables, in time that is no page's.</p>", "")
    _write(output, b"ready")
    while head := sys.stdin.buffer.read(SIZES.size):
        charset, page = map(sys.stdin.buffer.read, SIZES.unpack(head))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = _answer(run, page, charset.decode("utf8", "replace"))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(output, json.dumps(answer).encode())


def _answer(run: Callable[[str], tuple[str, str]], page: bytes, charset: str) -> dict[str, Any]:
    from ntk_jax.data.decoding import clean

    try:
        html, encoding = _decode(page, charset)
        text, title = run(html)
    except MemoryError:
        os._exit(12)
    except Exception as error:  # whatever a library makes of a page, it is this page's
        return {"failure": "extractor_error", "detail": f"{type(error).__name__}: {error}"[:200]}
    if not text.strip():
        return {"failure": "no_main_text", "encoding": encoding}
    return {"text": clean(text).strip(), "title": clean(" ".join(title.split())), "encoding": encoding}


def _decode(page: bytes, charset: str) -> tuple[str, str]:
    """(the page as text, the encoding): by its mark or as UTF-8 where it is that, or that but for some damage; by the
    charset that the server named, by the one that the page names, by the look of its bytes, each where it fits."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    from ntk_jax.data.decoding import nearly_utf8

    try:
        return page.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        pass
    if (text := nearly_utf8(page)) is not None:
        return text, "utf-8"
    named = map_encoding_to_html5(charset, fallback_utf8=False) if charset else None
    for found in (named, detect_encoding(page, from_html_meta=True), detect_encoding(page)):
        try:
            if found and found != "utf-8":
                return page.decode(found).removeprefix("\ufeff"), found
        except (UnicodeDecodeError, LookupError):
            continue
    return page.decode("cp1252", "replace"), "cp1252"


def _resiliparse() -> Callable[[str], tuple[str, str]]:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    def run(html: str) -> tuple[str, str]:
        tree = HTMLTree.parse(html)
        text = extract_plain_text(tree, main_content=True, preserve_formatting=True, alt_texts=False)
        return text, tree.title or ""

    return run


def _trafilatura() -> Callable[[str], tuple[str, str]]:
    import trafilatura

    def run(html: str) -> tuple[str, str]:
        found = trafilatura.bare_extraction(html, include_comments=False, with_metadata=True)
        return (found.text or "", found.title or "") if found else ("", "")

    return run


def _write(output: Any, answer: bytes) -> None:
    output.write(LENGTH.pack(len(answer)) + answer)
    output.flush()


if __name__ == "__main__":
    main()
