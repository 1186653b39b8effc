"""Texts as token ids on the disk: what continual pre-training reads, a row at a time and never all in memory.

A folder of blocks. A block holds the tokens of some whole documents one behind the other (`00000.tokens.npy`), how many
there are up to the end of each document (`00000.ends.npy`), and, written last, what is in it (`00000.json`), which says
that it is whole. The arrays are NumPy's own format and are mapped into memory. `index.json`, written when all documents
are there, describes the store; writing that was killed goes on behind the last whole block, to the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import Record, response_text
from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import Dropped, encode_many
from ntk_jax.errors import UserError
from ntk_jax.parallel import hosts
from ntk_jax.storage.arrays import differing_facts
from ntk_jax.storage.atomic import make_folder, plain, replacing, write_json
from ntk_jax.storage.hashing import hash_tree
from ntk_jax.storage.reading import read_json

INDEX, FACTS = "index.json", "facts.json"
BLOCK_CHARACTERS = 16_000_000  # of a block: some 4 million tokens, a few seconds of work that a kill may take away
CALL_CHARACTERS = 1_000_000  # of one tokenizer call
TEXT = Rendering("plain")  # a document is nobody's turn; it is closed with the EOS

Progress = Callable[[int, int | None], None]
LeaveOut = Callable[[Record], str | None]


@dataclass(frozen=True)
class TokenStore:
    """An open store.

    starts, first: [blocks + 1] int64, tokens and documents before each block. dropped: documents without tokens, by
    reason; they have a place in the order and no tokens. facts: what made it. digest: a hash of all tokens and ends.
    """

    folder: Path
    starts: np.ndarray
    first: np.ndarray
    dropped: Mapping[str, int]
    facts: Mapping[str, Any]
    digest: str

    @property
    def tokens(self) -> int:
        """Of all documents."""
        return int(self.starts[-1])

    @property
    def documents(self) -> int:
        """How many were read, with those that have no tokens."""
        return int(self.first[-1])

    def pieces(self, start: int, stop: int) -> list[tuple[int, np.ndarray]]:
        """Tokens [start, stop) of all documents one behind the other: (number of the document, its ids [n] int32 that
        lie in this range), in order.

        Raises UserError: a block is damaged or gone.
        """
        found = []
        while start < min(stop, self.tokens):
            block = int(np.searchsorted(self.starts, start, side="right")) - 1  # never one without tokens
            base = int(self.starts[block])
            tokens, ends = _mapped(self.folder, block, int(self.starts[block + 1]) - base, self.digest)
            until = min(stop, int(self.starts[block + 1])) - base
            place = start - base
            number = int(np.searchsorted(ends, place, side="right"))
            while place < until:
                end = min(int(ends[number]), until)
                if end > place:  # a dropped document has no tokens
                    found.append((int(self.first[block]) + number, np.asarray(tokens[place:end], np.int32)))
                place, number = end, number + 1
            start = base + until
        return found


def write_tokens(
    folder: str | Path,
    records: Callable[[int], Iterator[Record]],
    tokenizer: Any,
    *,
    rendering: Rendering = TEXT,
    facts: Mapping[str, Any] | None = None,
    most_tokens: int | None = None,
    block_characters: int = BLOCK_CHARACTERS,
    leave_out: LeaveOut | None = None,
    progress: Progress | None = None,
) -> TokenStore:
    """Writes the tokens of checked records, whole records one behind the other, and opens what it wrote.

    records(n): the records from the n-th on (from 0), such as `itertools.islice(read_records(path), n, None)`; a
    store that is whole is not written again and asks for none. The tokens are those of `encode_many` for training:
    with the tokenizer's BOS, and the EOS at the end where `rendering` has one. facts: JSON values that say where the
    records come from. most_tokens: no record is read behind the one with which there are so many; None: all are read.
    leave_out(record): why a record is dropped, or None; `facts` must say what decides it.
    progress(documents done, None): now and then. Of several processes the primary one writes.
    Raises UserError: other facts or another tokenizer in the folder, a record that cannot be read, no tokens at all, a
    full disk.
    """
    folder = Path(folder)
    if hosts.is_primary():
        make_folder(folder)
        made_by = _facts(tokenizer, rendering, {**(facts or {}), "most_tokens": most_tokens})
        _settle(folder, made_by)
        if not (folder / INDEX).exists():
            _write_blocks(folder, records, tokenizer, rendering, most_tokens, block_characters, leave_out, progress)
    hosts.barrier(f"tokens {folder}")
    hosts.wait_until_visible(folder / INDEX)
    return open_tokens(folder)


def open_tokens(folder: str | Path) -> TokenStore:
    """Opens a store. Raises UserError: there is none, writing it was cut short, or its description is damaged."""
    folder = Path(folder)
    if not (folder / INDEX).exists():
        raise UserError(f"{folder} holds no whole store of tokens; write it first (`write_tokens`)")
    index = read_json(folder / INDEX, _remedy(folder), dict)
    try:
        sizes = np.asarray([[block["tokens"], block["documents"]] for block in index["blocks"]], np.int64)
        starts, first = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(sizes, axis=0)]).T
        digest = hash_tree([block["sha256"] for block in index["blocks"]])
        return TokenStore(folder, starts, first, dict(index["dropped"]), dict(index["facts"]), digest)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / INDEX} is damaged ({error}); {_remedy(folder)}") from None


def tokenizer_digest(tokenizer: Any) -> str:
    """A hash of everything that decides the ids of a text and its EOS."""
    return hash_tree([tokenizer.backend_tokenizer.to_str(), str(tokenizer.eos_token), len(tokenizer)])


def _facts(tokenizer: Any, rendering: Rendering, facts: Mapping[str, Any]) -> dict[str, Any]:
    written = [rendering.template, rendering.add_eos, rendering.control_tokens, dict(rendering.options)]
    made_by = {**facts, "tokenizer": tokenizer_digest(tokenizer), "rendering": hash_tree(written)}
    found: dict[str, Any] = plain(made_by)
    return found


def _settle(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes what makes the store, or refuses what was made by something else."""
    if (folder / FACTS).exists():
        difference = differing_facts(read_json(folder / FACTS, _remedy(folder), dict), facts)
        if difference:
            raise UserError(f"{folder} was made with {difference}; give another folder, or delete this one")
    else:
        write_json(folder / FACTS, facts)


def _write_blocks(
    folder: Path,
    records: Callable[[int], Iterator[Record]],
    tokenizer: Any,
    rendering: Rendering,
    most_tokens: int | None,
    block_characters: int,
    leave_out: LeaveOut | None,
    progress: Progress | None,
) -> None:
    blocks: list[dict[str, Any]] = []
    while (folder / f"{len(blocks):05}.json").exists():
        blocks.append(read_json(folder / f"{len(blocks):05}.json", _remedy(folder), dict))
    documents = sum(block["documents"] for block in blocks)
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    wanted = np.inf if most_tokens is None else most_tokens - sum(block["tokens"] for block in blocks)
    for content in _portions(records(documents), block_characters) if wanted > 0 else ():
        rows: list[Any] = []
        for call in _portions(iter(content), CALL_CHARACTERS):
            for row in _encoded(call, tokenizer, rendering, leave_out):
                if wanted > 0:
                    rows.append(row)
                    wanted -= len(row.ids) if isinstance(row, TokenRow) else 0
            if progress is not None:
                progress(documents + len(rows), None)
            if wanted <= 0:
                break
        blocks.append(_write_block(folder, len(blocks), rows, dtype))
        documents += len(rows)
        if wanted <= 0:
            break
    dropped = sum((Counter(block["dropped"]) for block in blocks), Counter[str]())
    if not sum(block["tokens"] for block in blocks):
        why = ", ".join(f"{reason}: {count:,}" for reason, count in dropped.items())
        why = f" ({why})" if why else ""
        raise UserError(f"{folder}: none of {documents} documents has a token{why}; give other files with text")
    facts = read_json(folder / FACTS, _remedy(folder), dict)
    write_json(folder / INDEX, {"facts": facts, "dropped": dict(dropped), "blocks": blocks})


def _encoded(
    records: list[Record], tokenizer: Any, rendering: Rendering, leave_out: LeaveOut | None
) -> Iterator[TokenRow | Dropped]:
    """The tokens of each record, or why it is dropped, in order."""
    reasons = [None if leave_out is None else leave_out(record) for record in records]
    kept = [record for record, why in zip(records, reasons, strict=True) if why is None]
    rows = iter(encode_many(kept, tokenizer, span="all", rendering=rendering))
    for record, why in zip(records, reasons, strict=True):
        yield next(rows) if why is None else Dropped(why, record["id"])


def _write_block(folder: Path, number: int, rows: list[Any], dtype: Any) -> dict[str, Any]:
    none = np.zeros(0, np.int32)
    ids = [row.ids if isinstance(row, TokenRow) else none for row in rows]
    ends = np.cumsum([len(each) for each in ids], dtype=np.int64)
    tokens = np.concatenate(ids).astype(dtype)
    for name, array in (("tokens", tokens), ("ends", ends)):
        with replacing(_file(folder, number, name)) as file:
            np.save(file, array)
    about = {
        "documents": len(rows),
        "tokens": len(tokens),
        "dropped": dict(Counter(row.reason for row in rows if not isinstance(row, TokenRow))),
        "sha256": hashlib.sha256(tokens.astype("<u4").tobytes() + ends.astype("<i8").tobytes()).hexdigest(),
    }
    write_json(folder / f"{number:05}.json", about)
    return about


def _portions(records: Iterator[Record], characters: int) -> Iterator[list[Record]]:
    """The records in lists of about so many characters of text, at least one each."""
    portion: list[Record] = []
    size = 0
    for record in records:
        portion.append(record)
        size += len(record.get("prompt", "")) + len(response_text(record)) + 1
        if size >= characters:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


@functools.lru_cache(maxsize=256)
def _mapped(folder: Path, block: int, tokens: int, digest: str) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of a block, mapped; a random order over many blocks meets each of them again and again. digest: of the
    store, so that another one in the same folder is not taken for it."""
    files = [_file(folder, block, name) for name in ("tokens", "ends")]
    try:
        found = [np.load(file, mmap_mode="r") for file in files]
        if len(found[0]) != tokens or int(found[1][-1]) != tokens:
            raise ValueError(f"it holds {len(found[0])} tokens, not {tokens}")
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise UserError(f"{files[0]}: the block is damaged ({error}); {_remedy(folder)}") from None
    return found[0], found[1]


def _file(folder: Path, block: int, name: str) -> Path:
    return folder / f"{block:05}.{name}.npy"


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} and run again"
