"""The encoder itself as the classifier: tuned on the labelled set with a head above it, then read over the corpus anew.

    z = mean over a text's windows of  W x̂(window; θ) + b,    θ and (W, b) trained together

Dearer than the head on frozen embeddings (classifier.py) by a second pass over the corpus and a training, and able to
learn what the frozen embeddings do not show. On mined labels, which are a function of the frozen embeddings' cosines,
that is also the danger: it can learn how the labels were made. It suits labels that come from elsewhere better. What
the head on the frozen encoder reaches on the same held-out rows is kept in the facts, to be compared with.

Source: texts. Memory: the encoder four times in fp32 (weights, two moments, gradient) and a microbatch of layer inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.mining.calibration import Calibration, calibrate, check_labels, held_out
from ntk_jax.mining.classifier import Head, HeadConfig, train_head
from ntk_jax.mining.classifier_files import read_classifier, write_classifier
from ntk_jax.mining.tuning import TuneConfig, tune, windows_of
from ntk_jax.models.embedder import Embedder
from ntk_jax.parallel.hosts import on_host, place

KIND = "fine-tuned encoder"
_HEAD, _ENCODER = "head/", "encoder/"  # of the names in the file


@dataclass(frozen=True)
class EncoderConfig:
    """tuning: of the encoder. head: what it begins with; its held-out share and precision are those of the whole."""

    tuning: TuneConfig = field(default_factory=TuneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)


@dataclass(frozen=True)
class TunedEncoder:
    """A trained classifier of texts, with the interface of `Head` but for what it reads."""

    embedder: Embedder
    head: Head

    @property
    def names(self) -> tuple[str, ...]:
        """Of the M domains."""
        return self.head.names

    @property
    def calibration(self) -> Calibration:
        """From held-out rows."""
        return self.head.calibration

    @property
    def facts(self) -> Mapping[str, Any]:
        """What it was trained on; the facts of the encoder that it was made from among them."""
        return self.head.facts

    @property
    def thresholds(self) -> np.ndarray:
        """[M] probabilities at or above which a text belongs to a domain."""
        return self.head.thresholds

    def logits(
        self,
        texts: Iterable[str],
        *,
        batch_tokens: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """[n, M] fp32 raw logits. batch_tokens, progress: as of `Embedder.embed`."""
        vectors, owner = self.embedder.embed_windows(list(texts), batch_tokens=batch_tokens, progress=progress)
        return _means(self.head.logits(vectors), owner)

    def probabilities(
        self,
        texts: Iterable[str],
        *,
        batch_tokens: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """[n, M] fp32 calibrated probabilities."""
        return self.calibration.probabilities(self.logits(texts, batch_tokens=batch_tokens, progress=progress))

    def save(self, folder: str | Path) -> None:
        """Writes the classifier's two files, the encoder's weights among the arrays. Raises UserError as
        storage.atomic does."""
        arrays = {_HEAD + name: value for name, value in self.head.weights.items()}
        arrays |= {
            _ENCODER + name: np.asarray(on_host(leaf), np.float32) for name, leaf in _named(self.embedder.weights)
        }
        write_classifier(folder, KIND, self.names, arrays, self.calibration, self.facts)


def load_encoder(folder: str | Path, embedder: Embedder) -> TunedEncoder:
    """What `TunedEncoder.save` wrote; embedder: the encoder that it was tuned from.

    Raises UserError: it is absent, damaged, another kind of classifier, or tuned from another encoder.
    """
    names, arrays, calibration, facts = read_classifier(folder, KIND)
    own = {name.removeprefix(_HEAD): value for name, value in arrays.items() if name.startswith(_HEAD)}
    head = Head(names, own, calibration, facts)
    head.check_facts(embedder.facts, f"the encoder {embedder.name}")
    leaves = []
    for name, leaf in _named(embedder.weights):
        found = arrays.get(_ENCODER + name)
        if found is None or found.shape != leaf.shape:
            raise UserError(f"{folder} holds no encoder like {embedder.name} ({name}); train the classifier again")
        leaves.append(place(found.astype(leaf.dtype), leaf.sharding))
    weights = jax.tree.unflatten(jax.tree.structure(embedder.weights), leaves)
    tuned = {**embedder.facts, "tuned": facts["training"]["key"]}
    return TunedEncoder(dataclasses.replace(embedder, weights=weights, facts=tuned), head)


def train_encoder(
    embedder: Embedder,
    texts: Sequence[str],
    labels: np.ndarray,
    names: Sequence[str],
    *,
    folder: str | Path,
    config: EncoderConfig | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TunedEncoder:
    """A classifier for the M domains `names` from texts and labels [n, M] (1, 0; NaN is not used).

    folder: for checkpoints/ and history.jsonl; with the same arguments a training that was killed goes on to the same
    bits (`training.checkpoints.discard_checkpoints` when the result is safe). groups: as of `train_head`. progress
    counts steps. The given embedder is left untouched.
    Raises UserError: a domain without positives or negatives, shapes that differ, and what `tuning.tune` raises.
    """
    config = config or EncoderConfig()
    check_labels(labels, names, len(texts))
    groups = np.arange(len(texts)) if groups is None else np.asarray(groups)
    apart = held_out(labels, config.head.held_out, seed, groups)
    if not all(((labels[~apart] == value).any(axis=0)).all() for value in (0.0, 1.0)):
        apart = np.zeros(len(labels), bool)  # too few to hold any back: the calibration then says that it has none
    trained = np.flatnonzero(~apart)
    own, held = ([text for text, out in zip(texts, apart, strict=True) if out == side] for side in (False, True))
    begin = _begin(embedder, own, labels[trained], names, config, groups[trained], seed)
    before = calibrate(_frozen(embedder, begin, held), labels[apart], names)
    windows = windows_of(embedder, own)
    made = tune(
        embedder,
        begin.weights,
        windows,
        labels[trained],
        config.tuning,
        folder=Path(folder),
        seed=seed,
        progress=progress,
    )
    raw = TunedEncoder(made.embedder, dataclasses.replace(begin, weights=made.head))
    calibration = calibrate(
        raw.logits(held), labels[apart], names, precision=config.head.precision, groups=groups[apart]
    )
    training = {
        "penalty of the first head": begin.facts["training"]["penalty"],
        "held-out average precision of the first head": {
            name: curve.average_precision for name, curve in before.curves.items()
        },
        "windows": len(windows.ids),
        "steps": made.steps,
        "rows": len(texts),
        "rows held out": int(apart.sum()),
        "config": asdict(config),
        "seed": seed,
        "key": made.key,
    }
    head = Head(tuple(names), made.head, calibration, {**embedder.facts, "training": training})
    return TunedEncoder(made.embedder, head)


def _begin(
    embedder: Embedder,
    texts: Sequence[str],
    labels: np.ndarray,
    names: Sequence[str],
    config: EncoderConfig,
    groups: np.ndarray,
    seed: int,
) -> Head:
    """The head on the frozen encoder. Linear: a mean of windows' logits is then the logit of their mean vector."""
    vectors, owner = embedder.embed_windows(list(texts))
    linear = dataclasses.replace(config.head, hidden=0)
    return train_head(_means(vectors, owner), labels, names, config=linear, groups=groups, seed=seed)


def _frozen(embedder: Embedder, head: Head, texts: Sequence[str]) -> np.ndarray:
    return TunedEncoder(embedder, head).logits(texts)


def _means(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """[n, K] means of [W, K] over the windows of each text, of which each has at least one."""
    if not len(owner):
        return values
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    return np.add.reduceat(values, starts, axis=0) / np.diff(starts, append=len(owner))[:, None].astype(np.float32)


def _named(weights: Any) -> list[tuple[str, jax.Array]]:
    """(path, leaf) of a tree of weights."""
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
