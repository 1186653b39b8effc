"""The records of web archives: every intact one is found, every fault is named, whatever the cuts between shards."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warc_pages import http, members, record

from ntk_jax.mining.corpus.frames import read_frames

PAGES = [record(http(b"page %d " % n * 40), url=f"http://a.example/{n}") for n in range(6)]


def frames(tmp_path, data, **options):
    path = tmp_path / "a.warc"
    path.write_bytes(data)
    return list(read_frames(path, **options))


def urls(found):
    return [frame.data.split(b"example/")[1].split(b"\r\n")[0].decode() for frame in found if not frame.fault]


def faults(found):
    return [frame.fault for frame in found if frame.fault]


@pytest.mark.parametrize("join", [members, b"".join, lambda parts: gzip.compress(b"".join(parts))])
def test_all_records_of_a_good_file(tmp_path, join):
    data = join(PAGES)
    found = frames(tmp_path, data)
    assert urls(found) == list("012345") and not faults(found)
    for frame, page in zip(found, PAGES, strict=True):
        assert frame.data + b"\r\n\r\n" == page
        whole = gzip.decompress(data[frame.offset :]) if data[:2] == b"\x1f\x8b" else data[frame.offset :]
        assert whole[frame.inside :].startswith(frame.data)


def test_a_corrupt_member_costs_itself_only(tmp_path):
    parts = [gzip.compress(page) for page in PAGES]
    for place in (12, 40, len(parts[2]) - 6):  # in the block's header, in its codes, in the checksum
        bad = bytearray(parts[2])
        bad[place] ^= 0xFF
        found = frames(tmp_path, b"".join([*parts[:2], bytes(bad), *parts[3:]]))
        assert urls(found) == list("01345") and faults(found) in (["corrupt_member"], ["wrong_length"]), place


def test_a_damaged_beginning_costs_the_first_record_only(tmp_path):
    for join in (members, b"".join):
        for place in (0, 1):
            bad = bytearray(join(PAGES))
            bad[place] ^= 0xFF
            found = frames(tmp_path, bytes(bad))
            assert urls(found) == list("12345") and len(faults(found)) == 1, (join, place)


def test_rubbish_between_members(tmp_path):
    found = frames(tmp_path, members(PAGES[:2]) + b"rubbish" + members(PAGES[2:]))
    assert urls(found) == list("012345") and faults(found) == ["corrupt_member"]


@pytest.mark.parametrize("join", [members, b"".join])
def test_a_file_cut_anywhere_has_at_most_one_short_record(tmp_path, join):
    data = join(PAGES)
    whole = [frame.offset for frame in frames(tmp_path, data)] + [len(data)]
    for cut in range(2, len(data), 37):
        found = frames(tmp_path, data[:cut])
        intact = sum(1 for end in whole[1:] if end <= cut)
        assert len(urls(found)) in (intact, intact + 1)  # its last bytes are only empty lines and a checksum
        assert set(faults(found)) <= {"cut_short", "corrupt_member"}
        assert len(found) - intact <= 1


@pytest.mark.parametrize("join", [members, b"".join, lambda parts: gzip.compress(b"".join(parts))])
@pytest.mark.parametrize("length", [3, 5000, 10**9, 10**17])
def test_a_wrong_length_swallows_no_record(tmp_path, join, length):
    bad = record(http(b"bad " * 50), url="http://a.example/bad", length=length)
    found = frames(tmp_path, join([*PAGES[:2], bad, *PAGES[2:]]))
    assert urls(found) == list("012345") and faults(found) == ["wrong_length"]


def test_a_length_that_swallows_exactly_the_next_record(tmp_path):
    body = http(b"bad " * 50)
    bad = record(body, url="http://a.example/bad", length=len(body) + 4 + len(PAGES[0]) - 4)
    found = frames(tmp_path, bad + b"".join(PAGES))
    assert urls(found) == list("012345") and faults(found) == ["wrong_length"]


def test_a_page_about_web_archives_is_one_record(tmp_path):
    inner = record(http(b"page %s" % PAGES[1]), url="http://a.example/about")
    found = frames(tmp_path, PAGES[0] + inner + PAGES[2])
    assert urls(found) == ["0", "about", "2"] and not faults(found)


def test_what_is_no_archive(tmp_path):
    assert frames(tmp_path, b"") == []
    assert faults(frames(tmp_path, b"plain text\n" * 30)) == ["no_record"]
    assert faults(frames(tmp_path, gzip.compress(b"plain text\n" * 30))) == ["no_record"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4000), max_size=4), st.booleans())
def test_cuts_between_shards_change_nothing(tmp_path_factory, cuts, compressed):
    folder = tmp_path_factory.mktemp("cuts")
    data = (members if compressed else b"".join)([*PAGES, record(http(b"x" * 900), length=12), *PAGES[:3]])
    whole = frames(folder, data)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [frame for a, b in zip(edges, edges[1:], strict=False) for frame in frames(folder, data, start=a, stop=b)]
    assert parts == whole
