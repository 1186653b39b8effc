"""What becomes of thresholds, labels, classifiers and judges' replies as they are found when a corpus is mined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from files_found.case import Case
from ntk_jax.errors import UserError
from ntk_jax.llm.request import Reply
from ntk_jax.llm.verdicts import read_verdict
from ntk_jax.mining.audit import audit_sample
from ntk_jax.mining.classifier import HeadConfig, load_head, train_head
from ntk_jax.mining.documents import labelled_documents
from ntk_jax.mining.labels import label, labels_of
from ntk_jax.mining.thresholds import check_threshold, suggest_share

TITLE = "Labels, thresholds and classifiers of a mined corpus"
_SCORES = np.array([0.2, 0.61, 0.4], np.float32)
_QUICK = HeadConfig(steps=20, batch=8, penalties=(0.1,))


def _refused(make: Callable[[Path], object], message: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        with pytest.raises(UserError, match=message):
            make(folder)

    return check


def _read(text: str, value: float) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        assert read_verdict(Reply(text, "stop"))[0] == value

    return check


def _unread(folder: Path) -> None:
    assert read_verdict(Reply("Yes and no.", "stop")).reason


def _named_twice(folder: Path) -> None:
    ones = np.zeros((2, 2), np.float32)
    label(ones, ones, ones, ones.astype(int), np.eye(2, dtype=bool), thresholds=[0, 0], names=["law", "law"])


def _head(folder: Path) -> None:
    x = np.eye(4, dtype=np.float32)
    train_head(x, np.array([[1.0], [1.0], [0.0], [0.0]]), ["law"], config=_QUICK, facts={"encoder": "a"}).save(folder)


def _other_width(folder: Path) -> None:
    _head(folder)
    load_head(folder).probabilities(np.ones((1, 3), np.float32))


def _other_encoder(folder: Path) -> None:
    _head(folder)
    load_head(folder).check_facts({"encoder": "b"})


def _damaged(folder: Path) -> None:
    _head(folder)
    (folder / "classifier.safetensors").write_bytes(b"cut short")
    load_head(folder)


def _documents(folder: Path, names: list[str], domain: str = "law") -> list[dict[str, Any]]:
    (folder / "own.jsonl").write_text('{"id": "a", "text": "One sentence here. And one more there."}')
    files = {name: [str(folder / "own.jsonl")] for name in {"law", domain}}
    return labelled_documents(files, names, words=3)


def _long_document(folder: Path) -> None:
    assert [row["text"] for row in _documents(folder, ["law"])][0] == "One sentence here."


def _of_both(folder: Path) -> None:
    assert all(sorted(row["domains"]) == ["law", "tax"] for row in _documents(folder, ["law", "tax"], "tax"))


CASES = [
    Case(
        "a threshold that keeps nothing",
        "refused: how many there are, and the best score",
        _refused(lambda folder: check_threshold(_SCORES, 0.85, "law"), "keeps 0 of 3; the best is 0.61"),
    ),
    Case(
        "a threshold that keeps everything",
        "refused: the lowest score",
        _refused(lambda folder: check_threshold(_SCORES, 0.1, "law"), "keeps all 3; the lowest is 0.20"),
    ),
    Case(
        "scores that are all equal",
        "no threshold is suggested: refused",
        _refused(lambda folder: suggest_share(np.ones(9), 0.1), "no threshold parts the scores"),
    ),
    Case("a domain named twice", "refused", _refused(_named_twice, "the domain 'law' is named twice")),
    Case(
        "a document of a domain that is not one of the run's",
        "refused: the document's number, and the domains there are",
        _refused(lambda folder: labels_of([["sport"]], ["law"]), "text 0 is of the domain 'sport'"),
    ),
    Case("own documents as labels, longer than a chunk of the corpus", "cut into chunks as it is", _long_document),
    Case("the same document in the files of two domains", "one document of both", _of_both),
    Case(
        "own documents of some of the domains alone",
        "refused: the domain without any",
        _refused(lambda folder: _documents(folder, ["law", "medicine"]), "medicine has no labelled document"),
    ),
    Case(
        "a domain without positive or without negative examples",
        "refused before training",
        _refused(lambda folder: train_head(np.eye(2), np.ones((2, 1)), ["law"]), "law has no negative example"),
    ),
    Case(
        "embeddings of another width than the classifier's",
        "refused",
        _refused(_other_width, "do not fit a classifier of width 4"),
    ),
    Case(
        "embeddings of another encoder than the classifier's",
        "refused: both are named",
        _refused(_other_encoder, "encoder 'b', but the classifier was trained with 'a'"),
    ),
    Case("a classifier's file that is cut short", "refused: train again", _refused(_damaged, "is damaged")),
    Case(
        "a labelling without a single label, to be audited",
        "refused",
        _refused(lambda folder: audit_sample(np.zeros((2, 1), bool), ["law"]), "there is nothing to audit"),
    ),
    Case(
        "a judge's reply that is JSON inside prose or a code block",
        "read",
        _read('Sure:\n```json\n{"reason": "r", "answer": "no"}\n```', 0.0),
    ),
    Case("a judge's reply that is a plain yes or no", "read", _read("Yes, it does.", 1.0)),
    Case("a judge's reply that says both, or neither", "asked once more, then counted as no verdict", _unread),
]
