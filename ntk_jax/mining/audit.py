"""How right a labelling is, as a second opinion has it, and how far that opinion can be relied upon.

A judge (judge.py) is asked about a sample of the chunks that were labelled with each domain: the share it agrees with
is what DoPAMine reports (82.97%). That number alone says little, for judges tend to agree: so wrong labels are planted
among the questions, chunks under a domain that the classifier gives them little chance of, and the share of these that
the judge accepts is its false-accept rate f. With an agreement a and a judge that accepts a share s of what is right,

    a = p s + (1 - p) f,   so that the precision is p = (a - f) / (s - f) ≥ (a - f) / (1 - f),

s itself is measured where texts are given that are known to belong (the seeds). What is reported is the bound at the
lower end of the agreement's interval and the upper end of f's, as few verdicts allow no more. It holds for a judge that
accepts the labelling's own errors no more often than the planted labels; these are easier to see through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.evaluation.wilson import wilson
from ntk_jax.llm.request import Client, Progress
from ntk_jax.llm.verdicts import ask_verdicts
from ntk_jax.mining.judge import check_domains, question

Kind = Literal["labelled", "planted", "known"]
_STREAM = 0xAD1


@dataclass(frozen=True)
class Item:
    """One question: does the chunk (or, of kind `known`, the given text) of this ordinal belong to this domain?"""

    ordinal: int
    domain: str
    kind: Kind


@dataclass(frozen=True)
class Share:
    """right of judged, with its 95% Wilson interval; unread: questions without a verdict."""

    right: int
    judged: int
    unread: int

    @property
    def value(self) -> float:
        """NaN where nothing was judged."""
        return self.right / self.judged if self.judged else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Of the share, 95%."""
        return wilson(self.right, self.judged)


@dataclass(frozen=True)
class Audit:
    """shares: {domain, or "all": {kind: share of yes}}. rows: every question with its verdict, for people to read.
    failures: {why there is no verdict: how many}. judge: the model's name."""

    judge: str
    shares: Mapping[str, Mapping[Kind, Share]]
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    failures: Mapping[str, int]

    def precision_bound(self, domain: str = "all") -> float:
        """(a - f) / (1 - f) of the shares themselves, NaN where one of them was not measured."""
        own = self.shares[domain]
        return _bound(own["labelled"].value, own["planted"].value)

    def precision_at_least(self, domain: str = "all") -> float:
        """The same at the lower end of the interval of a and the upper end of that of f: what few verdicts allow."""
        own = self.shares[domain]
        known = own["labelled"].judged and own["planted"].judged
        return _bound(own["labelled"].interval[0], own["planted"].interval[1]) if known else float("nan")

    def table(self) -> list[dict[str, Any]]:
        """A row a domain, JSON values."""
        return [
            {
                "domain": domain,
                "agreement": own["labelled"].value,
                "agreement interval": list(own["labelled"].interval),
                "judged": own["labelled"].judged,
                "false accepts": own["planted"].value,
                "false accepts interval": list(own["planted"].interval),
                "planted": own["planted"].judged,
                "accepts known": own["known"].value if "known" in own else None,
                "precision at least": self.precision_at_least(domain),
                "unread": sum(share.unread for share in own.values()),
            }
            for domain, own in self.shares.items()
        ]


def audit_sample(
    assigned: np.ndarray,
    names: Sequence[str],
    *,
    probabilities: np.ndarray | None = None,
    per_domain: int = 50,
    planted: float = 0.25,
    known: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> list[Item]:
    """The questions of an audit, in an order that says nothing.

    assigned: [N, M] bool, which domains each chunk was labelled with. per_domain: labelled chunks asked about for each,
    fewer where there are fewer. planted: wrong labels for each labelled one; they are chunks without the domain, of the
    less probable half where `probabilities` [N, M] are given, half of them with another domain where there are such.
    known: {domain: ordinals of texts known to belong}, all asked about.
    Raises UserError: nothing is labelled at all, or a number outside its range.
    """
    if per_domain < 1 or planted < 0:
        raise UserError(f"per_domain = {per_domain}, planted = {planted}: give at least 1 and at least 0")
    if not assigned.any():
        raise UserError("no chunk was labelled with any domain: there is nothing to audit; lower the thresholds")
    rng = np.random.default_rng([seed, _STREAM])
    items = []
    for place, name in enumerate(names):
        own = rng.permutation(np.flatnonzero(assigned[:, place]))[:per_domain]
        items += [Item(int(chunk), name, "labelled") for chunk in own]
        without = ~assigned[:, place]
        if probabilities is not None and without.any():
            without &= probabilities[:, place] <= np.median(probabilities[without, place])
        wanted = int(np.ceil(planted * len(own)))
        others = rng.permutation(np.flatnonzero(without & assigned.any(axis=1)))[: wanted // 2]
        rest = rng.permutation(np.setdiff1d(np.flatnonzero(without), others))[: wanted - len(others)]
        items += [Item(int(chunk), name, "planted") for chunk in (*others, *rest)]
        items += [Item(int(number), name, "known") for number in (known or {}).get(name, ())]
    return [items[place] for place in rng.permutation(len(items))]


def audit(
    client: Client,
    items: Sequence[Item],
    domains: Mapping[str, str],
    text_of: Callable[[int], str],
    *,
    known_text: Callable[[int], str] | None = None,
    max_words: int = 300,
    max_tokens: int = 120,
    progress: Progress | None = None,
) -> Audit:
    """Asks the judge. domains: {name: description}. text_of: a chunk's text by its ordinal; known_text: a known text's.

    Raises UserError: a domain without a description, no verdict at all, or as `Client.ask`.
    """
    check_domains({item.domain: domains.get(item.domain, "") for item in items})
    texts = [
        known_text(item.ordinal) if item.kind == "known" and known_text else text_of(item.ordinal) for item in items
    ]
    requests = [
        question(text, item.domain, domains[item.domain], max_words=max_words, max_tokens=max_tokens)
        for item, text in zip(items, texts, strict=True)
    ]
    found = ask_verdicts(client, requests, progress=progress)
    if np.isnan(found.values).all():
        why = max(found.failures, key=lambda reason: found.failures[reason], default="no question")
        raise UserError(
            f"the judge {client.name} gave no verdict on any of {len(items)} questions ({why}); use another"
        )
    kinds: list[Kind] = ["labelled", "planted", *(["known"] if known_text else [])]  # type: ignore[list-item]
    shares: dict[str, dict[Kind, Share]] = {}
    for name in ["all", *dict.fromkeys(sorted(item.domain for item in items))]:
        shares[name] = {kind: _share(found.values[[_is(item, name, kind) for item in items]]) for kind in kinds}
    rows = [
        {
            "chunk" if item.kind != "known" else "known": item.ordinal,
            "domain": item.domain,
            "kind": item.kind,
            "verdict": {1.0: "yes", 0.0: "no"}.get(float(value)),
            "reason": reason,
        }
        for item, value, reason in zip(items, found.values, found.reasons, strict=True)
    ]
    return Audit(client.name, shares, rows, found.failures)


def _bound(agreement: float, false: float) -> float:
    if not (agreement == agreement and false == false) or false >= 1:
        return float("nan")
    return max(0.0, (agreement - false) / (1 - false))


def _is(item: Item, domain: str, kind: Kind) -> bool:
    return item.kind == kind and domain in ("all", item.domain)


def _share(verdicts: np.ndarray) -> Share:
    read = verdicts[~np.isnan(verdicts)]
    return Share(int(read.sum()), len(read), len(verdicts) - len(read))
