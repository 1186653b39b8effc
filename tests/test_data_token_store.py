"""Texts as tokens on the disk: what is in a store, that a kill changes nothing, and what is refused."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_texts import TOKENIZER, random_texts, records_of, store_of
from small_tokenizers import byte_tokenizer

from ntk_jax.data.token_store import open_tokens, write_tokens
from ntk_jax.data.tokens import encode_many
from ntk_jax.errors import UserError

TEXTS = [*random_texts(12, seed=1), "  ", "caf\u00e9 <eos> <|user|>", *random_texts(9, seed=2)]


def ids_of(texts: list[str]) -> list[list[int]]:
    """One by one, and each closed with the EOS."""
    return [TOKENIZER(text)["input_ids"] + [TOKENIZER.eos_token_id] for text in texts]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_tokens_are_those_of_the_texts(tmp_path: Path) -> None:
    plain = [text for text in TEXTS if "<" not in text]
    store = store_of(tmp_path, plain, block_characters=100)
    found = store.pieces(0, store.tokens)
    assert len(list(tmp_path.glob("*.tokens.npy"))) > 3
    assert [ids.tolist() for _, ids in found] == ids_of(plain)
    assert [number for number, _ in found] == list(range(len(plain)))
    assert (store.documents, store.tokens) == (len(plain), sum(map(len, ids_of(plain))))
    assert found[0][1].dtype == np.int32 and np.load(tmp_path / "00000.tokens.npy").dtype == np.uint16


def test_control_tokens_that_a_text_spells_are_text(tmp_path: Path) -> None:
    (row,) = encode_many(records_of(["a<|user|>b"]), TOKENIZER, span="all")
    ((_, ids),) = store_of(tmp_path, ["a<|user|>b"]).pieces(0, 100)
    assert ids.tolist() == row.ids.tolist() and TOKENIZER.convert_tokens_to_ids("<|user|>") not in ids  # type: ignore[union-attr]
    assert len(ids) == len("a<|user|>b") + 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return store_of(tmp_path_factory.mktemp("store"), TEXTS, block_characters=70)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_range_is_a_part_of_the_whole(whole: Any, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, whole.tokens))
    stop = data.draw(st.integers(start, whole.tokens + 20))
    owner = [number for number, ids in whole.pieces(0, whole.tokens) for _ in ids]
    everything = np.concatenate([ids for _, ids in whole.pieces(0, whole.tokens)])
    found = whole.pieces(start, stop)
    joined = [int(token) for _, ids in found for token in ids]
    assert joined == everything[start:stop].tolist()
    assert [number for number, ids in found for _ in ids] == owner[start:stop]
    assert len({number for number, _ in found}) == len(found)  # a document has one piece in a range


def test_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    texts = random_texts(24, seed=3, lengths=(30, 60))
    whole = store_of(tmp_path / "whole", texts, block_characters=100)
    records = records_of(texts)
    read: list[int] = []

    def dying(last: int) -> Any:
        def rest(start: int) -> Any:
            read.append(start)
            for number, record in enumerate(itertools.islice(records, start, None), start):
                if number == last:
                    raise Killed
                yield record

        return rest

    for last in (0, 5, 5, 23):
        with pytest.raises(Killed):
            write_tokens(tmp_path / "cut", dying(last), TOKENIZER, block_characters=100)
        with pytest.raises(UserError, match="holds no whole store"):
            open_tokens(tmp_path / "cut")
    again = write_tokens(tmp_path / "cut", dying(99), TOKENIZER, block_characters=100)
    assert read[0] == 0 and 0 < read[2] <= 5 and read[-1] > 5  # what whole blocks hold is not read again
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    assert again.digest == whole.digest
    write_tokens(tmp_path / "cut", dying(0), TOKENIZER)  # whole: nothing is read


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 700), st.sampled_from((60, 10_000)))
def test_no_more_is_read_than_asked_for(most: int, block: int) -> None:
    texts = random_texts(12, seed=5, lengths=(30, 60))
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder), texts, most_tokens=most, block_characters=block)
        sizes = np.cumsum([len(text) + 1 for text in texts])
        assert store.documents == min(int(np.searchsorted(sizes, most)) + 1, len(texts))
        assert store.tokens == sizes[store.documents - 1]


def test_documents_without_tokens_are_counted(tmp_path: Path) -> None:
    records = [{"id": "a", "prompt": "", "response": "words"}, {"id": "b", "prompt": "", "response": ""}]
    store = write_tokens(
        tmp_path / "a", lambda start: iter(records[start:]), byte_tokenizer(eos=False), block_characters=1
    )
    assert (store.documents, dict(store.dropped)) == (2, {"no response tokens": 1})
    assert [number for number, _ in store.pieces(0, 9)] == [0]
    with pytest.raises(UserError, match=r"none of 1 documents has a token \(no response tokens: 1\); give other files"):
        write_tokens(tmp_path / "b", lambda start: iter(records[1 + start :]), byte_tokenizer(eos=False))


def test_what_is_refused(tmp_path: Path) -> None:
    store_of(tmp_path, TEXTS, facts={"files": "one"})
    with pytest.raises(UserError, match="was made with files one, not two; give another folder, or delete this one"):
        store_of(tmp_path, TEXTS, facts={"files": "two"})
    with pytest.raises(UserError, match="was made with tokenizer"):
        write_tokens(tmp_path, lambda start: iter(()), byte_tokenizer(eos=False), facts={"files": "one"})

    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "00000.tokens.npy").write_bytes((tmp_path / "00000.tokens.npy").read_bytes()[:-40])
    with pytest.raises(UserError, match="00000.tokens.npy: the block is damaged .*; delete the folder"):
        open_tokens(tmp_path).pieces(0, 5)
    (tmp_path / "index.json").write_text(json.dumps({**index, "blocks": [{}]}))
    with pytest.raises(UserError, match=r"index.json is damaged"):
        open_tokens(tmp_path)
