"""What a selection leaves out, and which of its candidates it takes, without a run directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ntk_jax.data.evaluation_items import EvaluationItems, evaluation_items
from ntk_jax.data.near_duplicates import MinHash, signature
from ntk_jax.data.sources import read_records
from ntk_jax.errors import UserError
from ntk_jax.selection import diversity
from ntk_jax.selection.clean import Drop, NearTexts, leak, walk
from ntk_jax.selection.near_items import NearItems, nearest_items
from ntk_jax.selection.text_features import text_features
from ntk_jax.selection.texts import text_of


def decontaminate(
    pool: Any,
    evaluation: Any,
    *,
    ngram: int = 13,
    shortest: int = 5,
    share: float = 0.0,
    cosine: float | None = None,
    embeddings: tuple[Any, Any] | None = None,
) -> list[Drop]:
    """The examples of a pool that hold a piece of an evaluation item, or are like one by their embeddings.

    Source: a run of words that both share, as in Brown et al. 2020 (arXiv 2005.14165, appendix C), without upper case,
    punctuation and white space. An item is looked for by its prompt and by prompt and response together; what is
    shorter than a run is looked for whole, a prompt that has choices only with its response.

    Args:
        pool: records, or what `read_records` takes; streamed once.
        evaluation: the items, likewise; in memory are 16 bytes for each of their words.
        ngram: words of a run. shortest: items of fewer words are not looked for.
        share: least share of an item's runs that an example must have; 0: one run is enough. Raise it where the items
            share an instruction, which is no contamination.
        cosine: also what has such a cosine of embeddings with an item, such as a paraphrase; in (0, 1]. How large one
            of a copy is depends on what embeds. None: embeddings are not compared.
        embeddings: those of pool [N, D] and evaluation [m, D], in their order, as from `embeddings` of one model or
            from any encoder, of any norm; a row of NaN is not compared.

    Returns:
        A list in pool order, for each example that is not clean: `place` in the pool and `refusal`, whose `of` is the
        id of the item that it has the largest share of, `similarity` that share in (0, 1], and `shared` the first run
        of words that both have. Of one that is found by its embedding alone `reason` is `contamination by embedding`,
        `of` the nearest item and `similarity` their cosine.

    Raises:
        UserError: as `read_records`; ngram or shortest below 1, share outside [0, 1], or no item that is long enough
            where no cosine is given; a cosine outside (0, 1] or without embeddings, or embeddings of other shapes.

    Example:
        >>> import ntk_jax as nj
        >>> items = [{"id": "q1", "prompt": "What is the capital of France?", "response": "Paris"}]
        >>> pool = [{"prompt": "Name it: what is the capital of FRANCE", "response": "Paris"},
        ...         {"prompt": "What is the capital of Spain?", "response": "Madrid"}]
        >>> [(drop.place, drop.refusal.of, drop.refusal.similarity) for drop in nj.decontaminate(pool, items)]
        [(0, 'q1', 1.0)]
        >>> model = nj.load_model("builtin:model")
        >>> both = nj.embeddings(model, pool), nj.embeddings(model, items)
        >>> [drop.place for drop in nj.decontaminate(pool, items, cosine=0.5, embeddings=both)]
        [0, 1]
    """
    if not 0 <= share <= 1:
        raise UserError(f"share = {share} must be in [0, 1]")
    if ngram < 1 or shortest < 1:
        raise UserError(f"ngram = {ngram} and shortest = {shortest} must be at least 1")
    items = evaluation_items((("evaluation", record) for record in read_records(evaluation)), ngram, shortest)
    near = _near_items(items, cosine, embeddings)
    if not items.runs and near is None:
        raise UserError(f"none of {len(items.ids)} evaluation items has shortest = {shortest} words; lower it")
    found, place = [], -1
    for place, record in enumerate(read_records(pool)):
        if near and place >= len(near.cosine):
            raise UserError(
                f"the pool has more records than the {len(near.cosine)} embeddings given; give one for each"
            )
        overlap = items.overlap(text_of(record), share)
        refusal = leak(items, overlap) if overlap else near and near.refuse(place)
        if refusal:
            found.append(Drop(place, None, refusal))
    if near and place + 1 < len(near.cosine):
        raise UserError(f"the pool has {place + 1} records and {len(near.cosine)} embeddings; give one for each")
    return found


def _near_items(items: EvaluationItems, cosine: float | None, embeddings: tuple[Any, Any] | None) -> NearItems | None:
    if cosine is None and embeddings is None:
        return None
    if cosine is None or embeddings is None:
        raise UserError("cosine and embeddings go together: give the threshold and both sets' embeddings, or neither")
    if not isinstance(cosine, int | float) or not 0 < cosine <= 1:
        raise UserError(f"cosine = {cosine!r}: a threshold is a number above 0 and at most 1 (0.95 is usual)")
    if not isinstance(embeddings, tuple | list) or len(embeddings) != 2:
        raise UserError("embeddings are two: of the pool, [N, D], and of the evaluation items, [M, D]")
    pool, wanted = (np.asarray(rows) for rows in embeddings)
    if pool.ndim != 2 or wanted.ndim != 2 or pool.shape[1] != wanted.shape[1] or len(wanted) != len(items.ids):
        raise UserError(
            f"the embeddings of pool and evaluation have shapes {pool.shape} and {wanted.shape}; give [N, D] and "
            f"[{len(items.ids)}, D] of one model"
        )
    found = NearItems(cosine, items.ids, items.files, *nearest_items([pool], wanted), len(wanted))
    if len(pool) and np.isnan(found.cosine).all():
        raise UserError(
            "no embedding of the pool can be compared with one of the evaluation: all are zero or not finite"
        )
    return found


def near_duplicates(
    examples: Any,
    threshold: float = 0.8,
    *,
    order: Any = None,
    domain: Any = None,
    words: int = 5,
    permutations: int = 128,
) -> list[Drop]:
    """The examples that are nearly the same as a better one, by MinHash signatures of their runs of words.

    Source: Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3. The overlap (Jaccard) is an estimate
    with a standard deviation of √(J (1 - J) / permutations); two just at the threshold are found in 99% of cases.

    Args:
        examples: records, or what `read_records` takes; streamed once, with 4 bytes a permutation in memory for each.
        threshold: least overlap of two that are alike, in (0, 1].
        order: places in `examples`, best first, such as `select(...).order`; of two alike the earlier one stays. By
            default all, in their own order.
        domain: records that nothing may be alike, either.
        words: of a run. permutations: hashes of a signature.

    Returns:
        A list in `order`, for each example that is left out: `place`, `rank` in the order from 1, and `refusal`, whose
        `of` is the id of what it is like, `where` is `selection` or `domain`, and `similarity` the estimated overlap.

    Raises:
        UserError: as `read_records`; a threshold outside (0, 1], words or permutations below 1, or an order that names
            what is not there, or a place twice.

    Example:
        >>> import ntk_jax as nj
        >>> texts = ["The cat sat on a mat.", "the cat sat on a mat", "Dogs bark."]
        >>> records = [{"id": str(n), "prompt": text, "response": "yes"} for n, text in enumerate(texts)]
        >>> [(drop.place, drop.refusal.of) for drop in nj.near_duplicates(records)]
        [(1, '0')]
    """
    if not 0 < threshold <= 1:
        raise UserError(f"threshold = {threshold:g}: a threshold is above 0 and at most 1 (0.8 is usual)")
    if words < 1 or permutations < 1:
        raise UserError(f"words = {words} and permutations = {permutations} must be at least 1")
    hashing = MinHash(words, permutations)
    ids, signatures = [], []
    for record in read_records(examples):
        ids.append(str(record["id"]))
        signatures.append(signature(text_of(record), hashing))
    known = {} if domain is None else {str(r["id"]): signature(text_of(r), hashing) for r in read_records(domain)}
    places = np.arange(len(ids)) if order is None else np.asarray(order)
    outside = places[(places < 0) | (places >= len(ids))]
    if len(outside):
        raise UserError(f"order names the place {outside[0]}, and there are {len(ids)} examples")
    if len(np.unique(places)) < len(places):
        raise UserError("order names a place twice, which would be a duplicate of itself; give each place once")
    check = NearTexts(threshold, signatures.__getitem__, ids.__getitem__, permutations=permutations, domain=known)
    return walk(places, None, [check]).drops


def diversify(
    candidates: Any,
    count: int,
    *,
    method: str = "facility_location",
    quality: float = 0.1,
    beta: float = 10.0,
    dim: int = 512,
    groups: Sequence[str] | None = None,
    caps: Mapping[str, int] | None = None,
) -> np.ndarray:
    """The `count` of M candidates that greedily cover most of them, or repeat each other least.

    Source: facility location (Lin & Bilmes, ACL 2011) and the greedy MAP of a determinantal point process (Chen et al.,
    arXiv 1709.05135); `ntk_jax/selection/diversity.py` has the formulas, bounds, cost and memory.

    Args:
        candidates: best first: features [M, D], such as rows of sketches or embeddings; or records, or what
            `read_records` takes, which are compared by hashed words and pairs of words in `dim` columns.
        count: how many to take.
        method: `facility_location` or `dpp`.
        quality: λ in [0, 1], the weight of a candidate's rank: 1 takes the first `count`, 0 looks at features alone.
        beta: of `dpp`: the larger, the more two alike cost.
        dim: columns of the features of texts.
        groups: [M] names, of which caps, {group: number}, says how many of it may be taken.
        caps: see groups.

    Returns:
        [count] int64 places among the candidates in the order in which they are taken: its first n are those for n.

    Raises:
        UserError: an unknown method, a setting outside its range, features that are not finite, fewer candidates than
            `count`, caps that leave fewer; as `read_records`.

    Example:
        >>> import numpy as np
        >>> import ntk_jax as nj
        >>> features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> nj.diversify(features, 2, quality=0.2).tolist()
        [0, 2]
        >>> nj.diversify(features, 2, quality=1.0).tolist()
        [0, 1]
    """
    features = candidates
    if not isinstance(candidates, np.ndarray) and not hasattr(candidates, "__array__"):
        if dim < 1:
            raise UserError(f"dim = {dim} must be at least 1")
        features = text_features(_texts(candidates), dim)
    return diversity.diversify(
        np.asarray(features), count, method=method, quality=quality, beta=beta, groups=groups, caps=caps
    )


def _texts(records: Any) -> Iterator[str]:
    yield from (text_of(record) for record in read_records(records))
