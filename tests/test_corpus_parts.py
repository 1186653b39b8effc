"""The parts of the corpus one by one: extraction, language, quality, chunks, contamination, drops, files."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from warc_pages import http, members, page, record

from ntk_jax.data.chunks import chunks_of
from ntk_jax.data.contamination import contamination, evaluation_runs
from ntk_jax.data.decoding import clean, decode, nearly_utf8
from ntk_jax.data.words import bare_words, run_hashes, word_hashes, written_words
from ntk_jax.errors import UserError
from ntk_jax.mining.corpus import duplicates, layout, quality
from ntk_jax.mining.corpus.documents import Drop
from ntk_jax.mining.corpus.drops import Drops, merge
from ntk_jax.mining.corpus.extract import Extractor, check_extractor
from ntk_jax.mining.corpus.extract_worker import _decode
from ntk_jax.mining.corpus.files import corpus_files, shards_of
from ntk_jax.mining.corpus.quality import Quality, broken_rule
from ntk_jax.mining.corpus.readers import Reading, read_piece
from ntk_jax.mining.corpus.warc import read_warc

TEXT = "The nurse of the ward walks to the bed and looks at the chart. She writes down what she has found there."


# -- extraction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resiliparse", "trafilatura"])
def test_main_text_in_a_process_of_its_own(kind):
    pytest.importorskip("resiliparse")
    pytest.importorskip(kind)
    with Extractor(kind, recycle=2) as extractor:
        found = extractor.extract(page(TEXT, "Les élèves", "cp1252"), "windows-1252")
        first = extractor.process.pid
        assert TEXT in found.text and found.title == "Les élèves" and found.encoding == "cp1252" and not found.failure
        assert extractor.extract(b"<p>").failure == "no_main_text"
        assert TEXT in extractor.extract(page(TEXT), "a charset that there is not").text
        assert extractor.process.pid != first  # after two pages
    assert extractor.process is None


def test_a_page_that_hangs_or_kills_the_extractor_costs_itself_only():
    pytest.importorskip("resiliparse")
    with Extractor(seconds=0.3) as extractor:
        hangs = extractor.extract(b"<div>" * 20000 + b"x")
        assert (hangs.failure, hangs.detail) == ("timeout", "more than 0.3 s")
        assert TEXT in extractor.extract(page(TEXT)).text
        os.kill(extractor.process.pid, signal.SIGSTOP)  # waits and uses no time of the processor
        assert extractor.extract(page(TEXT)).failure == "timeout"
        assert TEXT in extractor.extract(page(TEXT)).text
        os.kill(extractor.process.pid, signal.SIGSEGV)
        extractor.process.wait()
        assert extractor.extract(page(TEXT)).failure == "crashed"
        assert TEXT in extractor.extract(page(TEXT)).text


def test_extractors_that_are_not_there(monkeypatch):
    with pytest.raises(UserError, match="no extractor is called justext; there are: resiliparse, trafilatura"):
        check_extractor("justext")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ntk_jax\[crawl\]'"):
        check_extractor("resiliparse")


def test_texts_of_other_encodings():
    assert decode("été".encode(), "latin-1") == ("été", False)
    assert decode("été".encode("utf-8-sig"), None) == ("été", False)
    assert decode("été".encode("utf-16"), None) == ("été", True)
    assert decode("été".encode("cp1252"), "no such charset") == ("été", True)
    assert decode("ůň".encode("iso-8859-2"), "iso-8859-2") == ("ůň", True)
    assert decode(b"\x81\x8d", None) == ("\x81\x8d", True)  # no Windows-1252 either


FRENCH = "Le cœur bat très fort à l'été, dit-elle. "


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (FRENCH, "cp1252"),
        ("Сердце бьётся сильно, сказала она. ", "cp1251"),
        ("Сердце бьётся сильно, сказала она. ", "koi8_r"),
        ("หัวใจเต้นแรงมาก เธอกล่าว และเดินออกไป ", "tis_620"),
        ("心脏跳动得很厉害，她说。", "gb2312"),
        ("心臟跳動得很厲害，她說。", "big5"),
        ("心臓がとても強く打つと彼女は言った。", "euc_jp"),
        ("심장이 아주 세게 뛴다고 그녀는 말했다. ", "euc_kr"),
        ("Η καρδιά χτυπά δυνατά, είπε. ", "iso8859_7"),
    ],
)
def test_damaged_utf8_is_known_from_other_encodings(text, encoding):
    assert nearly_utf8(text.encode(encoding) * 3) is None
    for cut in (1, 2):
        whole = (text * 3).encode()
        damaged = whole[: next(n for n in range(40, 99) if whole[n] & 0xC0 == 0x80)]  # in the middle of a character
        assert nearly_utf8(damaged)[:-1] == damaged.decode("utf-8", "ignore")
        assert decode(damaged + b" \xff" * cut, "iso-8859-1")[1]


def test_a_page_is_read_as_what_it_is_whatever_its_server_says():
    pytest.importorskip("resiliparse")
    assert _decode(FRENCH.encode() + b"\xff", "utf-8") == (FRENCH + "\ufffd", "utf-8")
    assert _decode(FRENCH.encode() + b"\xc3", "iso-8859-1") == (FRENCH + "\ufffd", "utf-8")
    assert _decode(FRENCH.encode("cp1252"), "utf-8") == (FRENCH, "cp1252")
    japanese = "<p>心臓がとても強く打つと彼女は言った。</p>" * 3
    assert _decode(japanese.encode("euc_jp"), "utf-8") == (japanese, "euc_jp")
    assert _decode(japanese.encode("shift_jis"), "") == (japanese, "shift_jis")
    assert _decode(b"\x81 \x8d", "utf-8")[0]


@pytest.mark.parametrize("coding", ["Content-Encoding: gzip", "Transfer-Encoding: chunked", "X-None: at all"])
def test_of_a_page_no_more_is_uncompressed_than_it_may_have(coding, tmp_path):
    for size, reason in ((1 << 20, None), (1 << 24, "too_large")):
        body = b"0123456789abcdef" * (size // 16)
        forms = {"gzip": gzip.compress(body, 1), "chunked": b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)}
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{coding}\r\n\r\n".encode()
        (tmp_path / "a.warc.gz").write_bytes(members([record(head + forms.get(coding.split()[1], body))]))
        tracemalloc.start()
        [found] = read_warc(tmp_path / "a.warc.gz", "a", notes=Counter(), largest_page=1 << 20)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.page == body if reason is None else found.reason == reason
        assert most < 1 << 23 or not coding.endswith("gzip")


def test_a_digest_of_an_unknown_kind_is_none(tmp_path):
    pytest.importorskip("fastwarc")
    for kind, reason in (("blake3", None), ("sha256", "wrong_digest"), ("SHA1", "wrong_digest")):
        (tmp_path / "a.warc").write_bytes(record(http(page(TEXT)), extra=f"WARC-Block-Digest: {kind}:ABCD\r\n"))
        (found,) = read_warc(tmp_path / "a.warc", "a.warc", notes=Counter())
        assert getattr(found, "reason", None) == reason


# -- quality -------------------------------------------------------------------------------------------------------


def prose(count=120):
    """Words of several lengths that make no run twice, with stop words."""
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefghij") for _ in range(draw.randint(3, 8))) for _ in range(count)]
    return " ".join(["the", "of", *words])


@pytest.mark.parametrize(
    "reason, text",
    [
        (None, prose()),
        ("too_few_words", "The end of it."),
        ("too_many_words", prose(400)),
        ("word_length", "The of " + "it is on a " * 30),
        ("symbols", prose() + " #" * 40),
        ("bullet_lines", "\n".join(f"- {line}" for line in prose().split(" "))),
        ("ellipsis_lines", "\n".join(f"{word} and more of it..." for word in prose(60).split())),
        ("not_alphabetic", prose() + " 1234" * 60),
        ("stop_words", prose().removeprefix("the of ")),
        ("repeated_lines", prose() + "\nab\ncd" * 9),
        ("repeated_paragraphs", prose().replace(" ", "\n") + "\n\nx y\n\nx y"),
        ("top_2_words", prose(60) + "".join(f" {word} good luck" for word in prose(30).split()[2:])),
        ("repeated_5_words", prose() + " " + " ".join(prose().split()[40:70])),
    ],
)
def test_each_rule_is_broken_by_what_it_is_for(reason, text):
    rules = Quality(max_words=300)
    if reason == "ellipsis_lines":
        rules = Quality(max_symbols=9)
    found = broken_rule(text, rules)
    assert (found and found[0]) == reason, found


def test_each_symbol_is_counted_by_itself():
    words = prose(100).split()
    for hashes, dots, reason in ((8, 8, None), (13, 0, "symbols"), (0, 13, "symbols")):
        text = " ".join(word + "#" * (n < hashes) + "..." * (50 <= n < 50 + dots) for n, word in enumerate(words))
        found = broken_rule(text, Quality())
        assert (found and found[0]) == reason


def test_rules_may_be_set():
    assert broken_rule("The end of that.", Quality(min_words=3, max_top_runs=(), max_repeated_runs=())) is None


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), min_size=1, max_size=30), st.integers(2, 6))
def test_shares_of_runs_are_those_of_counting(words, length):
    hashes, lengths = word_hashes(words), np.array([len(word) for word in words])
    runs = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    covered = {i + j for i, run in enumerate(runs) if runs.count(run) > 1 for j in range(length)}
    total = sum(map(len, words))
    expected = sum(len(words[i]) for i in covered) / total
    assert quality.repeated_run_share(hashes, lengths, length) == pytest.approx(expected)
    most = max((runs.count(run) for run in runs), default=0)
    top = max((len("".join(run)) for run in runs if runs.count(run) == most), default=0) * most / total
    assert quality.top_run_share(hashes, lengths, length) == pytest.approx(top if most > 1 else 0.0)


# -- words, chunks, contamination ----------------------------------------------------------------------------------


@given(st.text())
def test_written_words_are_those_between_white_space(text):
    assert "".join(written_words(text)) == "".join(text.split())
    assert all(not word.isspace() and word for word in bare_words(text))


@given(
    st.lists(st.sampled_from(["The", "cat", "sat.", "\n", "心", "臓。", "Dr.", "x", "Why?", " "]), max_size=60),
    st.integers(1, 12),
)
def test_chunks_hold_every_word_once(parts, words):
    text = " ".join(parts)
    found = chunks_of(text, words)
    assert [word for a, b, _ in found for word in written_words(text[a:b])] == written_words(text)
    assert all(0 < count == len(written_words(text[a:b])) <= words for a, b, count in found)
    assert all(text[a:b] == text[a:b].strip() for a, b, _ in found)
    if len(written_words(text)) <= words:
        assert len(found) <= 1


def test_chunks_end_with_sentences_and_are_of_like_length():
    sentences = [f"Sentence number {n} says that Dr. Smith saw 3.5 of them." for n in range(19)]  # 11 words each
    found = chunks_of(" ".join(sentences), 180)
    assert [count for _, _, count in found] == [110, 99]
    assert chunks_of("one two three four five", 2) == [(0, 7, 2), (8, 18, 2), (19, 23, 1)]
    assert [t for a, b, _ in chunks_of("甲乙丙。丁戊己。", 4) for t in ["甲乙丙。丁戊己。"[a:b]]] == [
        "甲乙丙。",
        "丁戊己。",
    ]
    assert chunks_of("skip this. Take that one.", 9, 11) == [(11, 25, 3)]
    with pytest.raises(ValueError):
        chunks_of("a", 0)


def test_contamination_is_a_shared_run_of_words():
    runs, short = evaluation_runs([TEXT, "a short one"], 8)
    assert short == 1 and len(runs) == len(bare_words(TEXT)) - 7
    assert contamination(f"Before. {TEXT.upper()}", runs, 8) == "the nurse of the ward walks to the"
    assert contamination("The nurse of the ward walks on, to the bed.", runs, 8) is None
    assert contamination("too short", runs, 8) is None
    assert contamination(TEXT, evaluation_runs([], 8)[0], 8) is None


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4))
def test_contamination_finds_what_comparing_finds(text, evaluation, length):
    runs, _ = evaluation_runs([" ".join(evaluation)], length)
    theirs = {tuple(evaluation[i : i + length]) for i in range(len(evaluation) - length + 1)}
    own = [tuple(text[i : i + length]) for i in range(len(text) - length + 1)]
    expected = next((" ".join(run) for run in own if run in theirs), None)
    assert contamination(" ".join(text), runs, length) == expected
    assert len(run_hashes(word_hashes(text), length)) == len(own)


# -- paragraphs and drops ------------------------------------------------------------------------------------------


def test_paragraphs_that_stood_before_are_left_out():
    text = f"Start.\n{TEXT}\n\nMiddle one.\n{TEXT}\nEnd."
    key = duplicates.paragraph_hash(TEXT, 10)
    segments, removed = duplicates.left_over(text, {key}, 10)
    assert removed == 2 and [text[a:b].strip() for a, b in segments] == ["Start.", "Middle one.", "End."]
    segments, removed = duplicates.left_over(text, set(), 10)  # within a text the first stays
    assert removed == 1 and text[slice(*segments[0])].strip().endswith("Middle one.")
    assert duplicates.left_over(text, {key}, 0) == ([(0, len(text))], 0)


@given(st.lists(st.lists(st.sets(st.integers(0, 5)), max_size=4), min_size=1, max_size=4), st.integers(1, 3))
def test_repeats_are_all_but_the_first(shards, part):
    entries = [np.array(sorted((k, r) for r, keys in enumerate(s) for k in keys), layout.PARAGRAPHS) for s in shards]
    kept = [np.array([r % 3 != 2 for r in range(len(s))], bool) for s in shards]
    before = duplicates._PART
    duplicates._PART = part
    try:
        found = duplicates.repeats(entries, kept)
    finally:
        duplicates._PART = before
    known, expected = set(), []
    for own, keep in zip(shards, kept, strict=True):
        again = []
        for row, keys in enumerate(own):
            if keep[row]:
                again += [(key, row) for key in keys if key in known]
                known |= keys
        expected.append(sorted(again))
    assert [own.tolist() for own in found] == expected


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 99)), unique_by=lambda x: x[1]), st.integers(0, 9)
)
def test_samples_of_drops_do_not_depend_on_the_division(drops, cut):
    def tally(part):
        found = Drops(3, seed=1)
        for reason, number in part:
            found.add(Drop(f"d{number}", reason, "why", "text"))
        return found.as_json()

    whole = tally(drops)
    assert merge([tally(drops[:cut]), tally(drops[cut:])], 3) == whole == tally(drops[::-1])
    assert sum(whole["counts"].values()) == len(drops)


@given(st.text())
def test_clean_text_can_be_written(text):
    odd = text + "\0\ud800x\udc00"
    assert clean(odd).encode("utf8").decode("utf8") == text.replace("\0", "") + "\ufffdx\ufffd"


# -- files ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.lists(st.integers(0, 50), min_size=1, max_size=4).filter(any))
def test_any_number_of_files_is_divided_among_any_number_of_shards(tmp_path_factory, count, sizes):
    folder = tmp_path_factory.mktemp("files")
    for number, size in enumerate(sizes):
        (folder / f"{number}.warc").write_bytes(b"x" * size)
    shards = shards_of(folder, count)
    assert [shard.index for shard in shards] == list(range(count))
    for number, size in enumerate(sizes):
        parts = [piece for shard in shards for piece in shard.pieces if piece.name == f"{number}.warc"]
        assert [part.start for part in parts] + [size] == [0] + [part.stop for part in parts] or not size
    lengths = [sum(piece.stop - piece.start for piece in shard.pieces) for shard in shards]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_row_belongs_to_one_shard(tmp_path, count):
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": f"text {n}", "id": n, "url": None} for n in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("text,id\n" + "\n".join(f"text {n},{n}" for n in range(100)))
    found = {}
    for shard in shards_of(tmp_path, count):
        for piece in shard.pieces:
            for document in read_piece(piece, Reading(), Counter()):
                assert document.id not in found
                found[document.id] = document
    for name in ("a.jsonl", "b.json", "c.parquet", "d.csv"):
        own = [found[f"{name}-{n + 1}"] for n in range(100)] if name != "d.csv" else None
        if own:
            assert [(d.text, d.record_id, d.offset) for d in own] == [(f"text {n}", str(n), n + 1) for n in range(100)]
    assert len(found) == 400


def test_names_do_not_depend_on_the_folder(tmp_path):
    for home in ("one", "two"):
        (tmp_path / home / "in").mkdir(parents=True)
        (tmp_path / home / "a.txt").write_text("text")
        (tmp_path / home / "in" / "a.txt").write_text("text")
    names = [[piece.name for piece in corpus_files(tmp_path / home)] for home in ("one", "two")]
    assert names == [["a.txt", "in/a.txt"]] * 2


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    for spec, line in [
        (tmp_path / "none.jsonl", "does not exist"),
        (tmp_path / "*.warc", "matches no file"),
        (tmp_path / "a.pdf", "not a known kind of file"),
        ([tmp_path / "a.txt", tmp_path / "a.txt"], "named twice"),
        ([], "has no file"),
    ]:
        with pytest.raises(UserError, match=line):
            shards_of(spec, 1)
