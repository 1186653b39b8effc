"""The corpus from files to chunks: every fault of a web archive counted, and the same bytes whoever runs the steps."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from warc_pages import http, members, page, record

from ntk_jax.data.contamination import evaluation_runs
from ntk_jax.errors import TryAgain, UserError
from ntk_jax.mining.corpus import layout
from ntk_jax.mining.corpus.files import shards_of
from ntk_jax.mining.corpus.local import each, run_corpus
from ntk_jax.mining.corpus.process import Settings, documents_of, extract_shard, finish_shard, keep
from ntk_jax.mining.corpus.quality import Quality
from ntk_jax.mining.corpus.store import close, count_chunks, read_chunks, read_corpus

pytest.importorskip("fastwarc")
pytest.importorskip("resiliparse")

WORDS = "heart vein blood the of and that nurse ward have with clinic to be fever bone skin lung dose pill"
LOOSE = Quality(min_words=20, max_top_runs=(), max_repeated_runs=())
SETTINGS = Settings(quality=LOOSE, chunk_words=40, min_chunk_words=5, page_seconds=0.5, samples=3)


def prose(seed, sentences=8):
    """Sentences that no other seed has."""
    draw = random.Random(seed)
    found, lexicon = [], WORDS.split()
    for number in range(sentences):
        words = [draw.choice(lexicon) + draw.choice(["", "s", "ed", "ing"]) for _ in range(draw.randint(8, 14))]
        found.append(f"The {' '.join(words)} and that of {seed} {number}.")
    return " ".join(found)


def corpus(folder: Path) -> list[str]:
    """A web archive and records with duplicates of all kinds; the names of the files."""
    common = "This paragraph of fourteen words stands on every page of the whole site here."
    pages = [record(http(page(prose(n) + "\n" + common)), url=f"http://a.example/{n}") for n in range(12)]
    copies = [record(http(page(prose(n) + "\n" + common)), url=f"http://b.example/{n}") for n in (3, 4)]
    near = [record(http(page(prose(5, 40))), url="http://c.example/0")]
    near += [record(http(page(prose(5, 40) + " One more.")), url="http://c.example/1")]
    (folder / "a.warc.gz").write_bytes(members([*pages, *near, *copies]))
    rows = [{"id": f"r{n}", "text": prose(100 + n % 20), "title": f"T{n}", "source": "s"} for n in range(30)]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode(), mtime=0))
    (folder / "c.txt").write_text(prose(200, 30))
    return [str(folder / name) for name in ("a.warc.gz", "b.jsonl.gz", "c.txt")]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the files, a folder where one process did everything in order)."""
    files = corpus(tmp_path_factory.mktemp("files"))
    folder = tmp_path_factory.mktemp("corpus")
    run_corpus(shards_of(files, 4), SETTINGS, folder)
    return files, folder


def test_everything_is_counted_and_every_chunk_says_where_it_is_from(finished):
    files, folder = finished
    found = read_corpus(folder)
    assert found["records"] == 16 + 30 + 1
    assert found["drops"]["counts"] == {"exact_duplicate": 12, "near_duplicate": 1}
    assert found["records"] == found["documents"] + sum(found["drops"]["counts"].values())
    assert found["notes"]["paragraphs_removed"] == 11
    rows = read_chunks(folder, 0, count_chunks(folder))
    assert len({row["id"] for row in rows}) == len(rows) == found["chunks"]
    documents = {}
    for shard in range(4):
        documents |= {document["id"]: document for document in documents_of(folder, shard)}
    for row in rows:
        document = documents[row["document"]]
        assert document["text"][row["start"] : row["end"]] == row["text"]
        assert row["words"] == len(row["text"].split()) <= 40
        assert row["file"] in ("a.warc.gz", "b.jsonl.gz", "c.txt")
    one = next(row for row in rows if row["url"] == "http://a.example/7")
    assert one["title"] == "A page" and one["date"] == "2024-01-02T03:04:05Z"
    assert gzip.decompress(Path(files[0]).read_bytes()[one["offset"] :]).find(b"a.example/7") > 0
    assert next(row for row in rows if row["record_id"] == "r7")["source"] == "s"


def test_the_samples_name_the_original(finished):
    samples = read_corpus(finished[1])["drops"]["samples"]
    assert len(samples["exact_duplicate"]) == 3
    near = samples["near_duplicate"][0]
    assert near["like"].startswith("a.warc.gz@") and near["like"] != near["document"]


@pytest.mark.parametrize("start, stop", [(0, 3), (5, 60), (0, 10**6), (7, 7), (10**6, 10**6 + 1)])
def test_chunks_by_ordinal(finished, start, stop):
    rows = read_chunks(finished[1], 0, count_chunks(finished[1]))
    assert read_chunks(finished[1], start, stop) == rows[start:stop]
    assert read_chunks(finished[1], start, stop, ["text"]) == [{"text": row["text"]} for row in rows[start:stop]]


def test_chunks_are_found_in_many_row_groups(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_ROWS", 4)
    monkeypatch.setattr(layout, "DOCUMENT_ROWS", 4)
    found = run_corpus(shards_of(finished[0], 4), SETTINGS, tmp_path)
    assert found == read_corpus(finished[1])
    rows = read_chunks(finished[1], 0, found["chunks"])
    for start, stop in ((0, 1), (3, 5), (4, 8), (2, found["chunks"]), (9, 30)):
        assert read_chunks(tmp_path, start, stop) == rows[start:stop]


def test_any_order_with_repeats_gives_the_same_bytes(finished, tmp_path):
    files, folder = finished
    shards = shards_of(files, 4)
    for number in (2, 0, 3, 1, 2):
        extract_shard(shards[number], SETTINGS, tmp_path)
    keep(tmp_path, 4, SETTINGS)
    keep(tmp_path, 4, SETTINGS)
    for number in (3, 1, 0, 3, 2):
        finish_shard(number, tmp_path, SETTINGS)
    close(tmp_path, 4, SETTINGS)
    assert tree(tmp_path) == tree(folder)


@pytest.mark.parametrize("pages", [1, 3])
def test_a_shard_that_breaks_off_gives_the_same_bytes(finished, tmp_path, pages):
    class Stop(BaseException):
        pass

    def stop(done, total):
        nonlocal pages
        pages -= 1
        if not pages:
            raise Stop

    shards = shards_of(finished[0], 4)
    with pytest.raises(Stop):
        extract_shard(shards[0], SETTINGS, tmp_path, progress=stop)
    assert not tree(tmp_path)
    run_corpus(shards, SETTINGS, tmp_path)
    layout.chunks(tmp_path, 2, "json").unlink()
    layout.kept_manifest(tmp_path).unlink()
    run_corpus(shards, SETTINGS, tmp_path)
    layout.chunks(tmp_path, 1).unlink()
    layout.kept(tmp_path, "repeats", 0).unlink()
    layout.extracted(tmp_path, "digests", 2).unlink()
    run_corpus(shards, SETTINGS, tmp_path)
    assert tree(tmp_path) == tree(finished[1])


def test_the_documents_do_not_depend_on_the_number_of_shards(finished, tmp_path):
    def texts(folder):
        return sorted(row["text"] for row in read_chunks(folder, 0, count_chunks(folder)))

    files, folder = finished
    for count in (1, 7):
        own = tmp_path / str(count)
        run_corpus(shards_of(files, count), replace(SETTINGS, paragraph_words=0, near=0.0), own)
    assert texts(tmp_path / "1") == texts(tmp_path / "7")
    assert read_corpus(tmp_path / "1")["drops"]["counts"] == {"exact_duplicate": 12}


SHARD = """
import sys, pickle, pathlib
from ntk_jax.mining.corpus.process import extract_shard
shard, settings = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
extract_shard(shard, settings, sys.argv[2], progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.slow
def test_processes_and_a_killed_shard_give_the_same_bytes(finished, tmp_path):
    files, folder = finished
    shards = shards_of(files, 4)
    (tmp_path / "s").write_bytes(pickle.dumps((shards[0], SETTINGS)))
    out = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", SHARD, str(tmp_path / "s"), str(out)], stdout=subprocess.PIPE, text=True
    )
    child.stdout.readline()  # it is in the middle of its pages
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not layout.extracted(out, "shard", 0).exists()
    run_corpus(shards, SETTINGS, out, processes=2)
    for leftover in out.rglob(".*.tmp"):
        leftover.unlink()
    assert tree(out) == tree(folder)


def die(number):
    if number == 1:
        os._exit(9)


@pytest.mark.slow
def test_a_killed_process_is_one_line():
    with pytest.raises(TryAgain, match="run again"):
        each(die, range(2), 2)


WAITING = """
import os, sys, pathlib, time
from ntk_jax.mining.corpus.local import each
def note(folder):
    (pathlib.Path(folder) / str(os.getpid())).touch()
    time.sleep(600)
if __name__ == "__main__":
    each(note, [sys.argv[1]] * 2, 2)
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path):
    (tmp_path / "run.py").write_text(WAITING)
    (tmp_path / "pids").mkdir()
    parent = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(tmp_path / "pids")])
    until(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
    parent.kill()
    parent.wait()
    children = [path.name for path in (tmp_path / "pids").iterdir()]
    until(lambda: not any(running(child) for child in children))


def until(condition):
    """Returns when it holds; a test that waits for ever fails by its time limit."""
    while not condition():
        time.sleep(0.05)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_beam_gives_the_same_bytes(finished, tmp_path):
    pytest.importorskip("apache_beam")
    # in a process of its own: Beam warns of much, and keeps threads
    code = (
        "import sys, pickle, pathlib\nfrom ntk_jax.mining.corpus.beam import run_on_beam\n"
        "shards, settings = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "run_on_beam(shards, settings, sys.argv[2])\n"
    )
    files, folder = finished
    (tmp_path / "s").write_bytes(pickle.dumps((shards_of(files, 4), SETTINGS)))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s"), str(tmp_path / "out")], check=True, timeout=300)
    assert tree(tmp_path / "out") == tree(folder)


def test_every_fault_of_an_archive_is_counted_and_the_rest_is_mined(tmp_path):
    good = [record(http(page(prose(n))), url=f"http://a.example/{n}", digest=http(page(prose(n)))) for n in range(4)]
    corrupt = bytearray(gzip.compress(record(http(page(prose(50))))))
    corrupt[40] ^= 0xFF
    body = http(page(prose(51)))
    swallows = record(body, url="http://a.example/long", length=len(body) + 3000)
    latin = http(page("Le cœur bat, et the nurse of that ward. " + prose(52), "Été", "cp1252"))
    bad = [
        record(http(b"<div>" * 20000 + b"x"), url="http://a.example/hangs"),
        record(latin, url="http://a.example/latin"),
        record(http(b""), url="http://a.example/empty"),
        record(http(page(prose(53))), url="http://a.example/digest", digest=b"something else"),
        record(http(page(prose(54)), status="404 Not Found"), url="http://a.example/404"),
        record(http(b"\x89PNG", mime="image/png"), url="http://a.example/picture"),
        record(b"GET / HTTP/1.1\r\n\r\n", kind="request", url="http://a.example/"),
        record(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\nnothing of it"),
    ]
    data = members(good[:2]) + bytes(corrupt) + members([swallows, *good[2:], *bad])
    last = gzip.compress(record(http(page(prose(55, 40)))))
    (tmp_path / "a.warc.gz").write_bytes(data + last[: len(last) // 2])
    found = run_corpus(shards_of(tmp_path / "a.warc.gz", 3), SETTINGS, tmp_path / "out")
    assert found["drops"]["counts"] == {
        "corrupt_member": 1,
        "wrong_length": 1,
        "timeout": 1,
        "empty": 1,
        "wrong_digest": 1,
        "http_status": 1,
        "no_text_type": 1,
        "damaged_record": 1,
        "cut_short": 1,
    }
    assert found["records"] == found["documents"] + 9 and found["documents"] == 5
    assert found["encodings"] == {"utf-8": 4, "cp1252": 1}
    assert found["notes"]["not_a_page"] == 1 and found["notes"]["no_digest"] > 0
    rows = read_chunks(tmp_path / "out", 0, 100)
    assert {row["url"].split("/")[-1] for row in rows} == {"0", "1", "2", "3", "latin"}
    assert any("Le cœur bat" in row["text"] for row in rows)


def test_contaminated_documents_are_dropped(tmp_path):
    question = "which of these nine bones of the hand did the nurse of that ward heal first"
    rows = [{"text": prose(1)}, {"text": f"{prose(2)} Then, {question.upper()}? {prose(3)}"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    runs, short = evaluation_runs([question, "too short"])
    assert short == 1
    found = run_corpus(shards_of(tmp_path / "a.jsonl", 1), SETTINGS, tmp_path / "out", evaluation=runs)
    assert found["drops"]["counts"] == {"contamination": 1} and found["documents"] == 1
    assert "bones of the hand" in found["drops"]["samples"]["contamination"][0]["detail"]


def test_languages(tmp_path):
    german = "Der Arzt untersucht das Herz des Patienten und schreibt einen Bericht über die Behandlung. " * 3
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in (prose(1), german)))
    settings = replace(SETTINGS, languages=("en",))
    found = run_corpus(shards_of(tmp_path / "a.jsonl", 1), settings, tmp_path / "out")
    assert found["drops"]["counts"] == {"language": 1} and found["languages"] == {"de": 1, "en": 1}


def test_other_chunks_do_not_read_the_corpus_again(finished, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": prose(1)}))
    shards = shards_of(tmp_path / "a.jsonl", 1)
    run_corpus(shards, SETTINGS, tmp_path / "out")
    before = layout.extracted(tmp_path / "out", "documents", 0).stat().st_mtime_ns
    longer = replace(SETTINGS, chunk_words=1000)
    assert run_corpus(shards, longer, tmp_path / "out")["chunks"] == 1
    assert layout.extracted(tmp_path / "out", "documents", 0).stat().st_mtime_ns == before
    run_corpus(shards, replace(longer, quality=None), tmp_path / "out")
    assert layout.extracted(tmp_path / "out", "documents", 0).stat().st_mtime_ns > before


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "too short"}))
    with pytest.raises(UserError, match="the corpus is empty: of 1 records none is left .1 too_few_words"):
        run_corpus(shards_of(tmp_path / "a.jsonl", 2), SETTINGS, tmp_path / "out")
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(UserError, match="0 bytes"):
        shards_of(tmp_path / "b.jsonl", 2)
    with pytest.raises(UserError, match="holds no file"):
        (tmp_path / "none").mkdir()
        shards_of(tmp_path / "none", 2)


def test_a_missing_shard_is_named(finished, tmp_path):
    shards = shards_of(finished[0], 4)
    extract_shard(shards[0], SETTINGS, tmp_path)
    with pytest.raises(UserError, match="shard 1 of 4"):
        keep(tmp_path, 4, SETTINGS)


def test_records_without_text_are_refused_and_single_bad_ones_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"content": prose(1)}))
    with pytest.raises(UserError, match='no "text"; .*keys found: content'):
        run_corpus(shards_of(tmp_path / "a.jsonl", 1), SETTINGS, tmp_path / "out")
    lines = [json.dumps({"text": prose(1)}), "{broken", json.dumps({"text": None}), json.dumps({"text": prose(2)})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = run_corpus(shards_of(tmp_path / "a.jsonl", 1), SETTINGS, tmp_path / "out")
    assert found["drops"]["counts"] == {"no_text": 1, "unreadable_row": 1} and found["documents"] == 2
