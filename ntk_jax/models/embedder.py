"""Texts to vectors: an encoder or a decoder, its tokenizer, its pooling, on packed rows.

An encoder of the BERT type (bge, e5, gte, MiniLM), a decoder that was made an embedder (Qwen3-Embedding: the last
token's state), or, where there is neither, the mean hidden state of any Llama or Qwen model.
"""

from __future__ import annotations

import functools
import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from ntk_jax.data.windows import WindowBatch, WindowTokens, batches, fill, plan_rows
from ntk_jax.errors import UserError
from ntk_jax.models import hub
from ntk_jax.models.checkpoint import read_object, refuse_other_folder
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.encoder import abstract_encoder, encoder_states
from ntk_jax.models.encoder_config import is_encoder, parse_encoder_config
from ntk_jax.models.encoder_hub import load_encoder_weights
from ntk_jax.models.model import load_model
from ntk_jax.models.sentence_files import POOLINGS, SentenceFiles, read_sentence_files
from ntk_jax.parallel.hosts import on_host
from ntk_jax.parallel.rules import ROWS, shard_batch
from ntk_jax.storage.hashing import hash_model, hash_tree
from ntk_jax.xla import refuse_wrong_sums

DECODER_TOKENS = 512  # of a window, where a decoder's folder does not say
WINDOWS_A_ROW = 16
_TEXTS = 2048  # tokenized together, while the device works on those before
_AHEAD = 2  # batches on their way to the device
_CPU_TOKENS, _DEVICE_TOKENS = 1024, 32_768  # of a batch: what fits a CPU's cache, what fills an accelerator
Progress = Callable[[int, int], None]  # texts that are done, of how many


@dataclass(frozen=True)
class Backbone:
    """The model without its weights. Hashable, so that compiled programs are shared. first_position: the position of a
    text's first token. remat: a backward pass computes what is inside a layer again instead of keeping it."""

    graphdef: Any
    dtype: Any
    is_encoder: bool
    first_position: int = 0
    remat: bool = False

    def __call__(self, weights: Any, tokens: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        """Hidden states [B, T, D]."""
        positions = positions + self.first_position
        if self.is_encoder:
            return encoder_states(
                self.graphdef, weights, tokens, positions, segments, dtype=self.dtype, remat=self.remat
            )
        return hidden_states(
            self.graphdef, {}, weights, tokens, positions, segments, dtype=self.dtype, remat=self.remat
        )


@dataclass(frozen=True)
class Embedder:
    """Made by `load_embedder`.

    facts: JSON values that say what made the vectors, for the stores that hold them: other facts, other vectors.
    note: a line for people where the vectors are not those of an encoder as its folder wants it; None otherwise.
    """

    name: str
    dim: int
    backbone: Backbone
    weights: Any = field(repr=False)
    tokens: WindowTokens = field(repr=False)
    pooling: str
    normalize: bool
    prefixes: dict[str, str]  # of "query" and "passage"
    facts: dict[str, Any]
    note: str | None = None
    mesh: Mesh | None = None

    @property
    def max_tokens(self) -> int:
        """Tokens of a window at most, special ones included."""
        return self.tokens.max_tokens

    def embed(
        self,
        texts: Sequence[str],
        *,
        kind: str = "passage",
        combine: str = "mean",
        batch_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """[N, D] fp32, one vector a text.

        kind: `passage` or `query`, which decides the prefix. combine: of a text longer than `max_tokens`, `mean` takes
        the mean of its windows, `first` its beginning alone, as an encoder that truncates does. batch_tokens: of a
        device's step; None suits the device. progress(done, total) counts texts.
        Raises UserError: something else than texts, or another kind or combine.
        """
        if combine not in ("mean", "first"):
            raise UserError(f"combine = {combine!r} is not one of mean, first")
        vectors, owner = self.embed_windows(
            texts, kind=kind, first_only=combine == "first", batch_tokens=batch_tokens, progress=progress
        )
        if len(owner) == len(texts):
            return vectors
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        means = np.add.reduceat(vectors, starts, axis=0) / np.diff(starts, append=len(owner))[:, None]
        if self.normalize:
            means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return means.astype(np.float32)

    def embed_windows(
        self,
        texts: Sequence[str],
        *,
        kind: str = "passage",
        first_only: bool = False,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(vectors [W, D] fp32, owner [W] int64): every window of every text, in order, and whose it is. A text without
        a single token has one window, the zero vector. The other arguments are those of `embed`."""
        if kind not in self.prefixes:
            raise UserError(f"kind = {kind!r} is not one of passage, query")
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserError("an embedder takes a list of texts; at least one of these is something else")
        vectors, owners, done = [np.zeros((0, self.dim), np.float32)], [np.zeros(0, np.int64)], 0
        for windows in _ahead(self._cut(texts, self.prefixes[kind], first_only)):
            flat = [ids for own in windows for ids in own]
            vectors.append(self._vectors(flat, batch_tokens))
            owners.append(np.repeat(np.arange(done, done + len(windows)), [len(own) for own in windows]))
            done += len(windows)
            if progress is not None:
                progress(done, len(texts))
        return np.concatenate(vectors), np.concatenate(owners)

    def _cut(self, texts: Sequence[str], prefix: str, first_only: bool) -> Iterator[list[list[np.ndarray]]]:
        for start in range(0, len(texts), _TEXTS):
            yield self.tokens.windows(texts[start : start + _TEXTS], prefix, first_only)

    def _vectors(self, windows: Sequence[np.ndarray], batch_tokens: int | None) -> np.ndarray:
        """[W, D] fp32 of windows."""
        if batch_tokens is None:
            batch_tokens = _CPU_TOKENS if jax.default_backend() == "cpu" else _DEVICE_TOKENS
        parts = 1 if self.mesh is None else int(np.prod([self.mesh.shape[axis] for axis in ROWS]))
        rows = plan_rows([len(ids) for ids in windows], self.max_tokens, WINDOWS_A_ROW)
        out = np.zeros((len(windows), self.dim), np.float32)
        waiting: deque[tuple[np.ndarray, jax.Array]] = deque()

        def take() -> None:
            index, pooled = waiting.popleft()
            out[index[index >= 0]] = on_host(pooled)[index >= 0]

        for planned in batches(rows, batch_tokens, parts):
            batch = fill(planned, windows, WINDOWS_A_ROW)
            waiting.append((batch.index, self._pooled(batch)))
            if len(waiting) > _AHEAD:
                take()
        while waiting:
            take()
        return out

    def _pooled(self, batch: WindowBatch) -> jax.Array:
        """[B, S, D] on the device."""
        arrays = (batch.tokens, batch.positions, batch.segments)
        if self.mesh is not None:
            arrays = shard_batch(arrays, self.mesh)
        return pool_states(self.backbone, self.weights, *arrays, pooling=self.pooling, normalize=self.normalize)


def load_embedder(
    path: str,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    max_tokens: int | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    ignore_config_keys: Collection[str] = (),
) -> Embedder:
    """Loads a Hugging Face folder, a hub id or `builtin:model` as an embedder.

    What is None is decided by the files of sentence-transformers in the folder; where these say nothing: mean pooling,
    vectors of length 1, no prefix, all positions of an encoder and `DECODER_TOKENS` of a decoder.

    Args:
        path: an encoder (BERT, RoBERTa, XLM-RoBERTa), or any model that `load_model` reads.
        pooling: `mean`, `cls` (the first token), `max` or `last`. normalize: whether vectors have length 1.
        query_prefix, passage_prefix: put before texts of that kind, such as "query: ".
        max_tokens: of a window. dtype: of weights and computation, `float32` or `bfloat16`.
        mesh: rows are shared by its devices; an encoder's weights are whole on each.
        ignore_config_keys: as of `load_model`.

    Raises:
        UserError: anything wrong with the folder, an unknown pooling, more tokens than the model has positions.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise UserError(f"pooling = {pooling!r} is not one of {', '.join(POOLINGS)}")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype {dtype!r} is not supported; use float32 or bfloat16")
    refuse_wrong_sums()
    folder = hub.resolve(str(path))
    refuse_other_folder(folder)
    said = read_sentence_files(folder)
    found = _read_model(str(path), folder, dtype, mesh, ignore_config_keys)
    longest = _longest(folder, max_tokens, said, found)
    cutter = _window_tokens(folder, found.tokenizer, longest, said)
    taken = pooling or said.pooling or "mean"
    note = None
    if said.pooling is None:
        note = f"no encoder: {taken} hidden state of {path}"
        if found.backbone.is_encoder:
            note = f"{path} does not name its pooling: {taken} is taken"
    prefixes = {
        "query": (said.query_prefix or "") if query_prefix is None else query_prefix,
        "passage": (said.passage_prefix or "") if passage_prefix is None else passage_prefix,
    }
    unit = said.normalize is not False if normalize is None else normalize
    facts = {
        "encoder": Path(path).name or str(path),
        "model": hash_model(folder),
        "tokenizer": hash_tree([cutter.tokenizer.to_str(), cutter.lowercase]),
        "dimension": found.dim,
        "pooling": taken,
        "normalize": unit,
        "max_tokens": cutter.max_tokens,
        "passage_prefix": prefixes["passage"],
        "dtype": dtype,
    }
    return Embedder(
        str(path), found.dim, found.backbone, found.weights, cutter, taken, unit, prefixes, facts, note, mesh
    )


@dataclass(frozen=True)
class _Model:
    """What is read of a folder. positions: the most tokens of a text; usual: of a window, where nobody says."""

    backbone: Backbone
    weights: Any
    tokenizer: Any
    dim: int
    positions: int
    usual: int


def _read_model(path: str, folder: Path, dtype: str, mesh: Mesh | None, ignore: Collection[str]) -> _Model:
    hf = read_object(folder / "config.json")
    if not is_encoder(hf):
        model = load_model(path, dtype=dtype, mesh=mesh, ignore_config_keys=ignore)
        backbone, most = Backbone(model.graphdef, model.dtype, False), model.config.max_positions
        return _Model(backbone, model.base, model.tokenizer, model.config.hidden_size, most, DECODER_TOKENS)
    config = parse_encoder_config(hf, str(folder / "config.json"), ignore)
    graphdef, shapes = abstract_encoder(config, jnp.dtype(dtype))
    return _Model(
        Backbone(graphdef, jnp.dtype(dtype), True, config.first_position),
        load_encoder_weights(folder, config, shapes, mesh),
        hub.load_tokenizer(folder, config.vocab_size),
        config.hidden_size,
        config.max_positions,
        config.max_positions,
    )


def _longest(folder: Path, asked: int | None, said: SentenceFiles, found: _Model) -> int:
    """Tokens of a window: what is asked for, else what the folder says, at most the model's positions."""
    if asked is not None:
        if asked > found.positions:
            raise UserError(f"max_tokens = {asked} is more than the {found.positions} positions of {folder}; lower it")
        return asked
    if said.max_tokens is not None:
        return min(said.max_tokens, found.positions)
    return min(found.usual, int(min(found.tokenizer.model_max_length, found.positions)))


def _window_tokens(folder: Path, tokenizer: Any, max_tokens: int, said: SentenceFiles) -> WindowTokens:
    """The cutter of a folder's tokenizer. Raises UserError: no fast tokenizer, or no room for a text."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{folder}: an embedder needs a fast tokenizer; add its tokenizer.json")
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    fast = Tokenizer.from_str(json.dumps({**spec, "truncation": None, "padding": None}))
    plain, special = (fast.encode("a", add_special_tokens=marks).ids for marks in (False, True))
    starts = [at for at in range(len(special) - len(plain) + 1) if special[at : at + len(plain)] == plain]
    if not plain or not starts:
        raise UserError(f"{folder}: the tokenizer changes a text where it adds special tokens; use another encoder")
    before, after = special[: starts[0]], special[starts[0] + len(plain) :]
    if max_tokens <= len(special) - len(plain):
        raise UserError(f"max_tokens = {max_tokens} leaves no room beside the special tokens; raise it")
    return WindowTokens(fast, tuple(before), tuple(after), max_tokens, said.lowercase)


@functools.partial(jax.jit, static_argnames=("backbone", "pooling", "normalize"))
def pool_states(
    backbone: Backbone,
    weights: Any,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    *,
    pooling: str,
    normalize: bool,
) -> jax.Array:
    """[B, WINDOWS_A_ROW, D] fp32 of rows [B, T]: the pooled states of segments 1, 2, ...; zeros of those not there."""
    hidden = backbone(weights, tokens, positions, segments).astype(jnp.float32)
    own = segments[:, None, :] == jnp.arange(1, WINDOWS_A_ROW + 1)[:, None]  # [B, S, T]
    count = own.sum(axis=-1, keepdims=True)
    if pooling == "mean":
        pooled = jnp.einsum("bst,btd->bsd", own.astype(jnp.float32), hidden, precision="highest")
        pooled = pooled / jnp.maximum(count, 1)
    elif pooling == "max":
        pooled = jax.lax.map(lambda one: jnp.where(one[0][..., None], one[1][None], -jnp.inf).max(1), (own, hidden))
    else:
        at = jnp.argmax(own, axis=-1) + (count[..., 0] - 1 if pooling == "last" else 0)
        pooled = jnp.take_along_axis(hidden, jnp.maximum(at, 0)[..., None], axis=1)
    pooled = jnp.where(count > 0, pooled, 0.0)
    if normalize:
        # The root of a bounded sum: a norm has no gradient at the zero vectors of segments that are not there.
        pooled = pooled / jnp.sqrt(jnp.maximum(jnp.square(pooled).sum(axis=-1, keepdims=True), 1e-24))
    return pooled


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The items in order, the next one made in another thread while the caller works on one."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
