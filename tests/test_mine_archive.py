"""A damaged web archive through the whole of mining: what can be read is mined, and the rest is counted by reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tiny_mine import DOCUMENTS, SUBJECTS, mine_config, sentences, write_mine_inputs
from warc_pages import http, members, page, record

from ntk_jax import pipelines

pytest.importorskip("fastwarc")
pytest.importorskip("resiliparse")


def test_from_a_damaged_archive_to_mined_records(tmp_path: Path) -> None:
    write_mine_inputs(tmp_path)
    good = [
        record(http(page(sentences(subject, 3 + i % 4, i))), url=f"http://a.example/{subject}/{i}")
        for subject in SUBJECTS
        for i in range(DOCUMENTS)
    ]
    swallows = http(page(sentences("law", 6, 900)))
    corrupt = bytearray(gzip.compress(record(http(page(sentences("law", 6, 901))))))
    corrupt[40] ^= 0xFF
    latin = http(page("The café. " + sentences("medicine", 6, 902), "Été", "cp1252"))
    bad = [
        record(http(b"<div>" * 20000 + b"x"), url="http://a.example/hangs"),
        record(http(b""), url="http://a.example/empty"),
        record(latin, url="http://a.example/latin"),
    ]
    data = members(good[:40]) + bytes(corrupt) + members([record(swallows, length=len(swallows) + 3000)])
    data += members([*good[40:], *bad])
    last = gzip.compress(record(http(page(sentences("law", 40, 903)))))
    (tmp_path / "a.warc.gz").write_bytes(data + last[: len(last) // 2])
    corpus = {"files": [str(tmp_path / "a.warc.gz")], "page_seconds": 0.5}
    folder = pipelines.run("mine", mine_config(tmp_path, corpus=corpus), progress=lambda *_: lambda *_: None)

    summary = json.loads((folder / "corpus" / "summary.json").read_text())
    counted = {**summary["drops"], **summary["faults"]}
    wanted = {"corrupt_member": 1, "wrong_length": 1, "timeout": 1, "empty": 1, "cut_short": 1}
    assert {name: counted.get(name) for name in wanted} == wanted
    mined = [json.loads(line) for line in (folder / "mined.jsonl").read_text(encoding="utf8").splitlines()]
    assert len(mined) > 20
    for one in mined:
        assert one["file"] == "a.warc.gz" and one["url"].startswith("http://a.example/") and one["seed"]
    for name in ("medicine", "law"):
        own = [one for one in mined if name in one["domains"]]
        assert sum(f"/{name}/" in one["url"] or "latin" in one["url"] for one in own) / len(own) > 0.7
