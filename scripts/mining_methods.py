"""The ways of finding a domain's chunks that scripts/experiment_mining.py compares: each gives a score to every chunk.

They all get the same seeds of a draw. None sees where a chunk comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntk_jax.mining.classifier import HeadConfig, train_head
from ntk_jax.mining.keywords import keyword_scores
from ntk_jax.mining.labels import Labelled, background, label
from ntk_jax.mining.ngrams import train_ngrams
from ntk_jax.mining.search import best_of_block
from ntk_jax.mining.thresholds import suggest_excess
from ntk_jax.selection.bm25 import Bm25Options
from ntk_jax.selection.bm25 import rank as bm25_rank
from ntk_jax.selection.dsir import importance
from ntk_jax.selection.ranker import Candidates

TOP = 100  # nearest chunks kept of each seed

# What a person would type who was asked for a list of words; written before any result was looked at.
KEYWORDS = {
    "medical": """patient* disease* symptom* treatment* diagnos* doctor* physician* nurse* hospital* clinic* medicine*
        medical drug* dose* therap* surg* cancer* tumor* tumour* infection* virus* bacteria* blood heart lung* kidney*
        liver brain pain fever syndrome* disorder* gene* chronic acute vaccine* antibiotic* cell* tissue* health""",
    "legal": """court* law laws lawyer* attorney* legal statute* contract* agreement* clause* party parties plaintiff*
        defendant* judge* jury liable liability damages breach* hereby herein thereof pursuant indemnif* licens* lease*
        arbitration jurisdiction warrant* covenant* terminat* assign* tort* appeal* constitution* statut* plead*""",
    "financial": """bank* loan* invest* stock* bond* share shares shareholder* interest dividend* profit* price* market*
        revenue* income cash credit debt* asset* equity fund* financ* budget* cost* tax* currency inflation capital
        portfolio* accounting audit* earnings return* rate* money million billion""",
    "public affairs": """government* president* congress senate senator* election* vote* voter* policy policies
        political politic* party parties nation* citizen* democra* republic* public state* federal law* campaign*
        war peace people country military foreign reform* minister* parliament""",
}


@dataclass
class Task:
    """One draw of seeds over one sample of chunks.

    texts, vectors [N, D]: of the chunks; documents: [N] the document each is of. seed_texts, seed_vectors [S, D], own
    [S, M] bool: of the drawn seeds. names: of the M domains; place: of the wanted one. seed: of the draw. notes: what
    the methods say of themselves, JSON values.
    """

    domain: str
    texts: Sequence[str]
    vectors: np.ndarray
    documents: np.ndarray
    seed_texts: Sequence[str]
    seed_vectors: np.ndarray
    own: np.ndarray
    names: Sequence[str]
    place: int
    seed: int
    notes: dict[str, Any] = field(default_factory=dict)
    _mined: Labelled | None = None
    _best: np.ndarray | None = None

    @property
    def positives(self) -> list[str]:
        """The texts of the wanted domain's seeds."""
        return [text for text, own in zip(self.seed_texts, self.own[:, self.place], strict=True) if own]

    def best(self) -> np.ndarray:
        """[N, M] best cosine with a seed of each domain; the labelled set is made of it at the first call."""
        if self._best is None:
            ones = np.arange(len(self.vectors))
            block = best_of_block(self.vectors, ones, len(self.vectors), self.seed_vectors, self.own, top=TOP, first=0)
            self._best = np.asarray(block.best)
            suggested = [suggest_excess(self._best[:, place]) for place in range(len(self.names))]
            self._mined = label(
                self._best,
                np.asarray(block.best_seed),
                np.asarray(block.top_score),
                np.asarray(block.top_chunk),
                self.own,
                thresholds=[found.value for found in suggested],
                names=self.names,
                seed=self.seed,
            )
            self.notes["thresholds"] = {
                name: {"value": found.value, "kept": found.kept, "how": found.how}
                for name, found in zip(self.names, suggested, strict=True)
            }
            self.notes["labels"] = self._mined.counts
        return self._best

    def mined(self) -> Labelled:
        """The labelled set of this draw."""
        self.best()
        assert self._mined is not None
        return self._mined


def at_random(task: Task) -> np.ndarray:
    """A number from the draw's seed."""
    return np.random.default_rng([task.seed, 1]).random(len(task.texts))


def keywords(task: Task) -> np.ndarray:
    """Share of words on a list; the same in every draw."""
    return keyword_scores(task.texts, KEYWORDS[task.domain].split())


def bm25(task: Task) -> np.ndarray:
    """Okapi BM25 with the seeds of the domain as the query."""
    ones = np.ones(len(task.texts), np.int32)
    as_record = {"id": "", "source": "", "prompt": ""}
    candidates = Candidates(
        count=1,
        seed=task.seed,
        usable=ones.astype(bool),
        length=ones,
        span=ones,
        records=lambda: ({**as_record, "response": text} for text in task.texts),
        domain=[{**as_record, "response": text} for text in task.positives],
    )
    return bm25_rank(candidates, Bm25Options()).scores


def dsir(task: Task) -> np.ndarray:
    """Log importance weights of hashed n-grams, the domain's seeds against all chunks."""
    return importance(task.positives, task.texts).scores(task.texts)


def retrieval(task: Task) -> np.ndarray:
    """Cosine with the nearest seed of the domain."""
    return task.best()[:, task.place]


def retrieval_margin(task: Task) -> np.ndarray:
    """The same less the cosine with the nearest seed of any other domain."""
    best = task.best()
    others = np.delete(best, task.place, axis=1)
    return best[:, task.place] - (others.max(axis=1) if others.shape[1] else 0.0)


def tfidf_on_seeds(task: Task) -> np.ndarray:
    """scikit-learn's TF-IDF and logistic regression; the domain's seeds against the other seeds and random chunks."""
    chunks, _ = background(len(task.texts), 1, np.empty(0, np.int64), 10 * len(task.seed_texts), task.seed)
    texts = [*task.seed_texts, *(task.texts[chunk] for chunk in chunks)]
    return _tfidf(texts, np.append(task.own[:, task.place], np.zeros(len(chunks))), task.texts)


def tfidf_on_mined(task: Task) -> np.ndarray:
    """The same on the labelled set."""
    found = task.mined()
    used = ~np.isnan(found.labels[:, task.place])
    texts = [task.texts[chunk] for chunk in found.chunks[used]]
    return _tfidf(texts, found.labels[used, task.place], task.texts)


def seeds_as_classifier(task: Task) -> np.ndarray:
    """A head trained on the embeddings of the seeds themselves, with random chunks as further negatives."""
    chunks, zeros = background(
        len(task.texts), len(task.names), np.empty(0, np.int64), 10 * len(task.seed_texts), task.seed
    )
    head = train_head(
        np.concatenate([task.seed_vectors, task.vectors[chunks]]),
        np.concatenate([task.own.astype(np.float32), zeros]),
        task.names,
        seed=task.seed,
    )
    return head.logits(task.vectors)[:, task.place]


def classifier(task: Task, config: HeadConfig | None = None) -> np.ndarray:
    """The head on embeddings, trained on the labelled set of all domains."""
    found = task.mined()
    head = train_head(
        task.vectors[found.chunks],
        found.labels,
        task.names,
        groups=task.documents[found.chunks],
        seed=task.seed,
        config=config,
    )
    probabilities = head.probabilities(task.vectors)[:, task.place]
    task.notes["classifier"] = {
        "figures": head.calibration.figures[task.names[task.place]],
        "penalty": head.facts["training"]["penalty"],
        "kept": int((probabilities >= head.thresholds[task.place]).sum()),
    }
    return head.logits(task.vectors)[:, task.place]


def classifier_of_shuffled_labels(task: Task) -> np.ndarray:
    """The head on the labelled set with its rows of labels in random order: what is left when labels say nothing."""
    found = task.mined()
    order = np.random.default_rng([task.seed, 3]).permutation(len(found.chunks))
    head = train_head(
        task.vectors[found.chunks],
        found.labels[order],
        task.names,
        groups=task.documents[found.chunks],
        seed=task.seed,
    )
    return head.logits(task.vectors)[:, task.place]


def ngrams(task: Task) -> np.ndarray:
    """The linear model on hashed n-grams, trained on the labelled set of all domains."""
    found = task.mined()
    model = train_ngrams(
        [task.texts[chunk] for chunk in found.chunks],
        found.labels,
        task.names,
        groups=task.documents[found.chunks],
        seed=task.seed,
    )
    return model.logits(task.texts)[:, task.place]


def both(task: Task) -> np.ndarray:
    """The sum of both classifiers' logits, each divided by its deviation."""
    return sum((z / z.std() for z in (classifier(task), ngrams(task))), np.zeros(len(task.texts)))


def shuffled(task: Task) -> Task:
    """The same task with the domains of the seeds dealt anew, so that each new domain has seeds of every true one in
    equal shares: what is left of a domain then is in all of them."""
    rng = np.random.default_rng([task.seed, 2])
    count = len(task.own)
    order = np.lexsort((rng.random(count), task.own.argmax(axis=1)))
    step = next(n for n in range(round(0.618 * count), count + 1) if np.gcd(n, count) == 1)
    dealt = np.empty_like(task.own)
    dealt[order] = task.own[order][(np.arange(count) * step + int(rng.integers(count))) % count]
    return Task(**{**_given(task), "own": dealt})


METHODS: Mapping[str, Callable[[Task], np.ndarray]] = {
    "random": at_random,
    "keywords": keywords,
    "BM25": bm25,
    "DSIR": dsir,
    "TF-IDF + logistic regression, on seeds": tfidf_on_seeds,
    "TF-IDF + logistic regression, on mined labels": tfidf_on_mined,
    "retrieval only": retrieval,
    "retrieval, less the other domains": retrieval_margin,
    "seeds as classifier": seeds_as_classifier,
    "n-gram classifier": ngrams,
    "classifier": classifier,
    "classifier and n-gram classifier": both,
    "classifier, shuffled labels of chunks": classifier_of_shuffled_labels,
}
CONTROLS = {"retrieval only": retrieval, "classifier": classifier}  # also with shuffled seed labels


def _given(task: Task) -> dict[str, Any]:
    return {
        name: getattr(task, name)
        for name in ("domain", "texts", "vectors", "documents", "seed_texts", "seed_vectors", "names", "place", "seed")
    }


# Of C = 10, 1, 0.1 and 0.01 the last did best on mined labels: it was chosen on 3,000 chunks of the same corpus with
# the hidden labels in view, which favours this method.
def _tfidf(texts: Sequence[str], labels: np.ndarray, unseen: Sequence[str]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), stop_words="english")
    model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000)
    model.fit(vectorizer.fit_transform(texts), labels)
    return model.decision_function(vectorizer.transform(unseen))
