"""Text for continual pre-training: what becomes of documents, of stores of their tokens, and of mixes."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_texts import TOKENIZER, random_texts, records_of, store_of

from files_found.case import Case
from ntk_jax.data.sources import read_records
from ntk_jax.data.token_store import TokenStore, open_tokens, write_tokens
from ntk_jax.errors import UserError
from ntk_jax.evaluation.perplexity import held_out_text
from ntk_jax.training.mixture import mix

TITLE = "Text for continual pre-training"


def ids_of(store: TokenStore) -> list[int]:
    return [int(token) for _, ids in store.pieces(0, store.tokens) for token in ids]


def from_file(folder: Path, *rows: Any) -> TokenStore:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_tokens(folder / "tokens", lambda start: itertools.islice(read_records(file), start, None), TOKENIZER)


def _text(folder: Path) -> None:
    store = from_file(folder, {"id": "a", "text": "abc", "url": "x"}, {"id": "b", "text": "de"})
    eos = TOKENIZER.eos_token_id
    assert ids_of(store) == [*TOKENIZER("abc")["input_ids"], eos, *TOKENIZER("de")["input_ids"], eos]


def _pair(folder: Path) -> None:
    store = from_file(folder, {"id": "a", "prompt": "ab", "response": "cd"})
    assert ids_of(store)[:-1] == TOKENIZER("ab cd")["input_ids"]


def _control(folder: Path) -> None:
    store = from_file(folder, {"id": "a", "text": "<|user|>"})
    assert len(ids_of(store)) == len("<|user|>") + 1


def _long(folder: Path) -> None:
    feed = mix({"a": store_of(folder, ["x" * 70])}, {"a": 1}, tokens=64, row_length=32, batch_size=1)
    assert sorted(feed.window(row)[2:] for row in range(2)) == [(0, 32), (32, 64)]


def _short(folder: Path) -> None:
    with pytest.raises(UserError, match="the text a has 4 tokens, fewer than a row of 32; give more text"):
        mix({"a": store_of(folder, ["abc"])}, {"a": 1}, tokens=64, row_length=32, batch_size=1)


def _again(folder: Path) -> None:
    feed = mix({"a": store_of(folder, ["x" * 70])}, {"a": 1}, tokens=320, row_length=32, batch_size=1)
    assert feed.account()["a"]["passes"] == 5


def _empty(folder: Path) -> None:
    with pytest.raises(UserError, match="no records; give a source with at least one"):
        from_file(folder)


def _changed(folder: Path) -> None:
    store_of(folder, random_texts(3), facts={"files": "one"})
    with pytest.raises(UserError, match="was made with files one, not two"):
        store_of(folder, random_texts(3), facts={"files": "two"})


def _damaged(folder: Path) -> None:
    store_of(folder / "a", random_texts(3, seed=4))
    file = folder / "a" / "00000.tokens.npy"
    shutil.copyfile(folder / "a" / "00000.ends.npy", file)
    with pytest.raises(UserError, match="the block is damaged"):
        open_tokens(folder / "a").pieces(0, 9)


def _cut_short(folder: Path) -> None:
    texts = random_texts(6, lengths=(30,))
    whole = store_of(folder, texts, block_characters=60)
    for file in ("index.json", "00001.json"):
        (folder / file).unlink()
    with pytest.raises(UserError, match="holds no whole store of tokens"):
        open_tokens(folder)
    kept = (folder / "00000.tokens.npy").stat().st_mtime_ns
    assert store_of(folder, texts, block_characters=60).digest == whole.digest
    assert (folder / "00000.tokens.npy").stat().st_mtime_ns == kept


def _held_out(folder: Path) -> None:
    found = held_out_text(records_of(["a", "some words"]), TOKENIZER, row_length=8)
    assert found.dropped == {"fewer than two tokens": 1} and len(found.rows) == 2


CASES = [
    Case('records with `"text"` (other keys beside it)', "each document closed with the EOS", _text),
    Case("records with prompt and response", "one text, without a chat template", _pair),
    Case("control tokens spelled in a document", "text", _control),
    Case("a document longer than a row", "cut into windows, of which none sees another", _long),
    Case("a text shorter than one row", "refused", _short),
    Case("less text than an arm needs", "read again in another order; the passes are counted", _again),
    Case("a file without records", "refused", _empty),
    Case("a store of tokens made from other files or by another tokenizer", "refused, with what differs", _changed),
    Case("a damaged block of a store", "refused, with its file", _damaged),
    Case("a store whose writing was cut short", "written on from the last whole block", _cut_short),
    Case("a held-out document of one token", "left out and counted", _held_out),
]
