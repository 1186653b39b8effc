"""The fine-tuned encoder as a classifier of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_encoder import write_encoder

from ntk_jax.errors import UserError
from ntk_jax.mining.classifier import HeadConfig
from ntk_jax.mining.finetuned import EncoderConfig, TunedEncoder, load_encoder, train_encoder
from ntk_jax.mining.metrics import precision_recall
from ntk_jax.mining.tuning import TuneConfig
from ntk_jax.models.embedder import Embedder, load_embedder
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.training.checkpoints import discard_checkpoints

FILLERS = ["a", "the", "of", "and", "in", "to", "river", "sea"]
QUICK = {"learning_rate": 3e-3, "head_learning_rate": 1e-2}


def texts_and_labels(count: int, longest: int = 12, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts that belong where exactly one of two words stands in them: no linear head on mean vectors sees that."""
    rng = np.random.default_rng(seed)
    texts, labels = [], np.zeros((count, 1), np.float32)
    for row in range(count):
        has = rng.random(2) < 0.5
        words = list(rng.choice(FILLERS, int(rng.integers(4, longest))))
        for word, there in zip(("heart", "court"), has, strict=True):
            words += [word] * (len(words) // 2 if there else 0)
        texts.append(" ".join(rng.permutation(words)))
        labels[row] = has.sum() == 1
    return texts, labels


def config(**tuning: Any) -> EncoderConfig:
    return EncoderConfig(TuneConfig(**QUICK | tuning), HeadConfig(steps=50, penalties=(0.1,)))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("encoder")
    return load_embedder(str(write_encoder(folder, std=0.2, num_hidden_layers=1)))


@pytest.fixture(scope="module")
def tuned(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> TunedEncoder:
    texts, labels = texts_and_labels(240)
    return train_encoder(
        embedder, texts, labels, ["one"], folder=tmp_path_factory.mktemp("tuned"), config=config(epochs=12)
    )


def test_it_learns_what_the_frozen_encoder_does_not_show(tuned: TunedEncoder) -> None:
    frozen = tuned.facts["training"]["held-out average precision of the first head"]["one"]
    assert tuned.calibration.curves["one"].average_precision > max(0.95, frozen + 0.1)
    texts, labels = texts_and_labels(200, seed=1)
    found = tuned.probabilities(texts)[:, 0]
    assert precision_recall(labels[:, 0] == 1, found).average_precision > 0.95
    kept = found >= tuned.thresholds[0]
    assert np.mean(labels[kept, 0]) > 0.9


def test_a_long_text_has_the_mean_of_its_windows(tuned: TunedEncoder) -> None:
    text = "heart the court of stone " * 30
    windows = tuned.embedder.tokens.windows([text])[0]
    assert len(windows) > 3
    vectors, _ = tuned.embedder.embed_windows([text])
    np.testing.assert_allclose(tuned.logits([text, ""])[0], tuned.head.logits(vectors).mean(axis=0), rtol=1e-5)
    assert tuned.logits([]).shape == (0, 1)


def test_it_is_read_back_as_it_was(tuned: TunedEncoder, embedder: Embedder, tmp_path: Path) -> None:
    texts, _ = texts_and_labels(10, seed=2)
    tuned.save(tmp_path)
    again = load_encoder(tmp_path, embedder)
    np.testing.assert_array_equal(again.probabilities(texts), tuned.probabilities(texts))
    assert again.embedder.facts == tuned.embedder.facts != embedder.facts
    other = load_embedder(embedder.name, max_tokens=30)
    with pytest.raises(UserError, match="max_tokens 30, but the classifier was trained with 40"):
        load_encoder(tmp_path, other)


def trained(embedder: Embedder, folder: Path, progress: Any = lambda *_: None, **tuning: Any) -> np.ndarray:
    """Logits of a few steps on texts of one and of several windows."""
    texts, labels = texts_and_labels(30, longest=60, seed=3)
    found = train_encoder(
        embedder,
        texts,
        labels,
        ["one"],
        folder=folder,
        config=config(batch=8, checkpoint_every=5, **tuning),
        progress=progress,
    )
    return found.logits(texts)


def test_a_killed_training_goes_on_to_the_same_bits(embedder: Embedder, tmp_path: Path) -> None:
    whole = trained(embedder, tmp_path / "whole")

    def dying(done: int, total: int) -> None:
        assert total > 8
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(embedder, tmp_path / "killed", dying)
    seen: list[int] = []
    again = trained(embedder, tmp_path / "killed", lambda done, total: seen.append(done))
    assert seen[0] == 6, "from the checkpoint of step 5"
    np.testing.assert_array_equal(again, whole)
    lines = [(tmp_path / name / "history.jsonl").read_text() for name in ("whole", "killed")]
    assert lines[0] == lines[1] and lines[0].count("\n") == seen[-1]
    with pytest.raises(UserError, match="other examples, settings, seed"):
        trained(embedder, tmp_path / "killed", epochs=1.0)
    discard_checkpoints(tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["history.jsonl"]


@pytest.mark.slow
def test_neither_microbatches_nor_a_mesh_change_what_is_learnt(embedder: Embedder, tmp_path: Path) -> None:
    whole = trained(embedder, tmp_path / "whole", epochs=1.0)
    np.testing.assert_allclose(
        trained(embedder, tmp_path / "few", epochs=1.0, tokens_per_microbatch=64), whole, atol=2e-3
    )
    shared = load_embedder(embedder.name, mesh=make_mesh(data=4, fsdp=2))
    np.testing.assert_allclose(trained(shared, tmp_path / "mesh", epochs=1.0), whole, atol=2e-3)
    assert np.abs(trained(embedder, tmp_path / "other", epochs=2.0) - whole).max() > 0.05


def test_a_decoder_can_be_tuned_and_a_broken_rate_is_refused(tmp_path: Path) -> None:
    embedder = load_embedder("builtin:model", max_tokens=16)
    texts, labels = texts_and_labels(8)
    labels[:2, 0] = (0, 1)
    before = embedder.embed(texts)
    found = train_encoder(embedder, texts, labels, ["one"], folder=tmp_path / "a", config=config(epochs=0.1))
    assert np.isfinite(found.probabilities(texts)).all()
    np.testing.assert_array_equal(embedder.embed(texts), before)
    with pytest.raises(UserError, match="fine-tuning: batch_size = 0 is below 1"):
        train_encoder(embedder, texts, labels, ["one"], folder=tmp_path / "b", config=config(batch=0))
