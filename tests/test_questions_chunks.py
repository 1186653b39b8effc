"""Documents as chunks, and what bad documents get."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.data.readable import looks_like_a_word, unreadable
from ntk_jax.data.sources import read_records
from ntk_jax.data.words import written_words
from ntk_jax.errors import UserError
from ntk_jax.questions import chunks as chunking
from ntk_jax.questions.chunks import chunk_documents, document_text

PROSE = "The tenant pays the rent on the first of May. The landlord keeps the roof whole. Neither may sublet a room."
GERMAN = (
    "Der Mieter zahlt die Miete zum ersten Mai eines jeden Jahres. Der Vermieter h\u00e4lt das Dach in Ordnung und "
    "darf die Wohnung nicht ohne Zustimmung des Mieters betreten. Beide Seiten k\u00f6nnen schriftlich k\u00fcndigen."
)
CHINESE = "租户应在每月五日前支付租金。房东负责修理屋顶。"
RUSSIAN = "Наниматель платит аренду пятого числа. Срок - 30 дней."
ARABIC = "يدفع المستأجر الإيجار في اليوم الخامس من كل شهر."
HINDI = "किरायेदार हर महीने किराया देता है।"
SCAN = "~|_ .,';: l1 |l ^^ ,,.: \u2022\u25a0\u25a1 \\/ ][ };{ =+ <>> ..'' \"^~ i! |;: _-_ '`'"
MISREAD = "Th3 t3n4nt p4ys thc r3nt 0n thc f1r5t 0f M4y bcf0r3 n00n c4ch y34r w1th0ut d3l4y 0r n0t1c3"
SPELLED = "t h e t e n a n t p a y s t h e r e n t o n m o n d a y"
WRONG_ENCODING = RUSSIAN.encode("utf8").decode("latin1")

texts = st.text(
    st.one_of(st.sampled_from("ab .\n\u00a0\u3000!?\u3002\u4e2d\u6587\u0416"), st.characters()), max_size=120
)


def record(text: Any, name: str = "a", **more: Any) -> dict[str, Any]:
    return {"id": name, "source": "s", "text": text, **more}


@pytest.mark.parametrize("text", [PROSE, GERMAN, CHINESE, RUSSIAN, ARABIC, HINDI, "x = f(y) + 1  # sum of both"])
def test_text_of_any_script_is_readable(text: str) -> None:
    assert unreadable(text) is None


@pytest.mark.parametrize(
    "text", [SCAN, MISREAD, SPELLED, WRONG_ENCODING, "\ufffd" * 40, "\x00\x01\x02 \x03", "qwrtp xcvbn lkjhg zxcvb"]
)
def test_rubbish_is_not(text: str) -> None:
    assert unreadable(text)


def test_control_characters_are_rubbish_where_there_are_many() -> None:
    assert unreadable("".join(c + "\x05" * (n % 9 == 0) for n, c in enumerate(PROSE))) == "control characters"
    assert unreadable(f"{PROSE}\f\n{PROSE}\x07") is None


def test_lines_to_write_on_and_tables_are_no_rubbish() -> None:
    assert unreadable("Name: ______________________  Date: ______________\nSignature ..................... 7") is None
    assert unreadable("| year | rent |\n|------|------|\n| 2020 | $1,200.50 |\n| 2021 | $1,300.00 |") is None


@pytest.mark.parametrize("word", ["30th", "10-K", "don't", "IBM", "McDonald's", "1,000.50", "www.x.org", "Stra\u00dfe"])
def test_words(word: str) -> None:
    assert looks_like_a_word(word)


@pytest.mark.parametrize("word", ["c0mp4ny", "aGrEe", "llllI", "com~pany", "x", "bcdfgh"])
def test_no_words(word: str) -> None:
    assert not looks_like_a_word(word)


def test_real_documents_are_readable(shared: Path) -> None:
    with gzip.open(shared / "data" / "legal" / "documents.jsonl.gz", "rt", encoding="utf8") as file:
        rows = [json.loads(line) for line in file][::4]
    assert [row["id"] for row in rows if unreadable(row["text"])] == []
    found = chunk_documents(rows, words=250)
    by_name = {row["id"]: row["text"] for row in rows}
    assert {one.document for one in found.chunks} == set(by_name) and not found.dropped
    assert all(by_name[one.document][one.start : one.stop] == one.text for one in found.chunks)


def test_chunks_have_names_titles_and_places() -> None:
    found = chunk_documents([record(PROSE, "lease", title=" A  lease "), record(GERMAN, "miete")], words=12)
    first, second, *_ = found.chunks
    assert (first.id, second.id) == ("lease#0", "lease#1") and first.document == "lease" and first.source == "s"
    assert first.title == "A lease" and found.chunks[-1].title == "miete", "the id where there is no title"
    assert first.text == "The tenant pays the rent on the first of May." and (first.start, first.stop) == (0, 45)
    assert found.dropped == {} and found.shortened == 0 and found.languages == {}


def test_records_as_they_are_read_from_files(tmp_path: Path) -> None:
    path = tmp_path / "lease.jsonl"
    path.write_text(json.dumps({"text": PROSE}) + "\n" + json.dumps({"text": "Rent is due. It is late."}) + "\n")
    found = chunk_documents(read_records(path), words=100)
    assert [(one.id, one.source) for one in found.chunks] == [("lease-1#0", "lease"), ("lease-2#0", "lease")]
    pairs = [{"prompt": "Who pays?", "response": "The tenant does."}]
    assert chunk_documents(read_records(pairs), words=9).chunks[0].text == "Who pays?\n\nThe tenant does."
    talk = {"messages": [{"role": "user", "content": "Who pays?"}, {"role": "assistant", "content": "The tenant."}]}
    assert document_text(talk) == "Who pays?\n\nThe tenant."


def test_bad_documents_are_counted_by_reason() -> None:
    rows = [
        *(record(text, str(number)) for number, text in enumerate(["", " \n\t\u00a0", PROSE, PROSE + " \n", SCAN])),
        record(MISREAD, "5"),
        record(None, "6"),
        {"id": "7", "messages": "no list"},
    ]
    found = chunk_documents(rows, words=50)
    assert [one.document for one in found.chunks] == ["2"]
    assert found.dropped == {
        "empty": 2,
        "the same as another": 1,
        "rubbish: hardly any letters": 1,
        "rubbish: hardly any words": 1,
        "no text": 2,
    }


def test_one_line_without_a_sentence_is_cut_between_words() -> None:
    line = "rent is paid monthly by the tenant " * 40
    found = chunk_documents([record(line)], words=100)
    assert [len(written_words(one.text)) for one in found.chunks] == [100, 100, 80]
    assert found.notes == {"one line": 1, "no end of a sentence": 1}


def test_ids_are_made_different() -> None:
    found = chunk_documents([record(PROSE), record(GERMAN), {"text": CHINESE}, record(RUSSIAN, 7)], words=200)  # type: ignore[arg-type]
    assert [one.id for one in found.chunks] == ["a#0", "a-2#0", "document-3#0", "7#0"]
    assert found.notes["an id that another has"] == 1


def test_nothing_left_says_why() -> None:
    with pytest.raises(UserError, match="no document is left to ask about: 2 empty, 1 rubbish: hardly any letters"):
        chunk_documents([record(""), record(" "), record(SCAN)], words=10)
    with pytest.raises(UserError, match="there was none"):
        chunk_documents([], words=10)
    with pytest.raises(UserError, match="words = 0"):
        chunk_documents([record(PROSE)], words=0)


def test_a_chunk_longer_than_the_context_is_cut_and_counted() -> None:
    word = "x" * 30
    found = chunk_documents([record(f"{PROSE} {word}a")], words=100, count_tokens=len, max_tokens=20)
    assert found.shortened == 1 and max(len(one.text) for one in found.chunks) <= 20
    assert "".join("".join(one.text.split()) for one in found.chunks) == "".join(f"{PROSE} {word}a".split())
    assert chunk_documents([record(PROSE)], words=100, count_tokens=len, max_tokens=500).shortened == 0
    with pytest.raises(UserError, match="a single character is more"):
        chunk_documents([record(PROSE)], words=100, count_tokens=lambda _: 9, max_tokens=2)


def test_documents_in_other_languages() -> None:
    pytest.importorskip("resiliparse")
    rows = [record(PROSE * 3, "en"), record(GERMAN * 2, "de")]
    assert len({one.document for one in chunk_documents(rows, words=50).chunks}) == 2, "all stay unless asked"
    found = chunk_documents(rows, words=50, languages=("en",))
    assert found.dropped == {"in another language": 1} and found.languages == {"en": "en"}
    assert set(chunk_documents(rows, words=50, languages=("en", "de")).languages.values()) == {"en", "de"}


def test_without_the_language_detector_only_asking_for_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(text: str) -> str:
        raise UserError("languages need the extra crawl")

    monkeypatch.setattr(chunking, "language_of", missing)
    assert chunk_documents([record(PROSE)], words=50).chunks
    with pytest.raises(UserError, match="crawl"):
        chunk_documents([record(PROSE)], words=50, languages=("en",))


@settings(max_examples=150, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), st.integers(1, 12), st.none() | st.integers(1, 9))
def test_every_chunk_is_where_it_says(found: list[str], words: int, most: int | None) -> None:
    count = None if most is None else len
    try:
        result = chunk_documents(
            [record(text, str(n)) for n, text in enumerate(found)], words=words, count_tokens=count, max_tokens=most
        )
    except UserError as error:
        assert "no document is left" in str(error)
        return
    assert len({one.document for one in result.chunks}) + sum(result.dropped.values()) == len(found)
    assert len({one.id for one in result.chunks}) == len(result.chunks)
    pieces: dict[str, list[str]] = {}
    for one in result.chunks:
        assert found[int(one.document)][one.start : one.stop] == one.text and one.text
        assert len(written_words(one.text)) <= words and (most is None or len(one.text) <= most)
        pieces.setdefault(one.document, []).append(one.text)
    for name, parts in pieces.items():
        assert "".join("".join(parts).split()) == "".join(found[int(name)].split()), "every word once and in order"


def test_a_title_takes_room_from_its_chunks() -> None:
    def count(text: str) -> int:
        return len(text.split())

    long = record("The tenant pays. " * 40, title="A lease of the mill " * 4)
    bare = record("The tenant pays. " * 39, "b", title="Lease")
    found = chunk_documents([long, bare], words=60, count_tokens=count, max_tokens=40)
    sizes = {name: max(count(one.text) for one in found.chunks if one.document == name) for name in ("a", "b")}
    assert sizes["a"] <= 40 - 20 < sizes["b"] <= 39
    with pytest.raises(UserError, match="no document is left"):
        chunk_documents([long], words=60, count_tokens=count, max_tokens=20)
