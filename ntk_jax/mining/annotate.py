"""Labels by asking a language model about a sample of the corpus directly, without seeds (as WebOrganizer does, arXiv
2502.10341): one question a text, which names all domains with their descriptions, and the reply those it belongs to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.llm.parsing import Failure, ask_for_json
from ntk_jax.llm.request import Client, Progress, Request
from ntk_jax.llm.verdicts import first_words
from ntk_jax.mining.judge import check_domains


@dataclass(frozen=True)
class Annotated:
    """labels: [n, M] fp32, 1 belongs, 0 does not; a row of NaN where there is no usable reply. failures: {why: how
    many}."""

    labels: np.ndarray
    failures: Mapping[str, int]


def annotate(
    client: Client,
    texts: Sequence[str],
    domains: Mapping[str, str],
    *,
    max_words: int = 300,
    progress: Progress | None = None,
) -> Annotated:
    """The domains of each text as the model has them. domains: {name: description}.

    Names are compared without case; an unknown one is a failure, for it may be a domain misspelt. Raises UserError: a
    domain without a description, no usable reply at all, or as `Client.ask`.
    """
    check_domains(domains)
    names = list(domains)
    place = {name.strip().lower(): number for number, name in enumerate(names)}
    labels = np.full((len(texts), len(names)), np.nan, np.float32)
    failures: Counter[str] = Counter()

    def problem(value: Any) -> str | None:
        found = value.get("domains")
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            return 'no list of texts under "domains"'
        unknown = [name for name in found if name.strip().lower() not in place]
        return "a domain that is not on the list" if unknown else None

    requests = [annotation_request(text, domains, max_words=max_words) for text in texts]
    for row, found in ask_for_json(client, requests, check=problem, progress=progress):
        if isinstance(found, Failure):
            failures[found.reason] += 1
            continue
        labels[row] = 0.0
        for name in found.value["domains"]:
            labels[row, place[name.strip().lower()]] = 1.0
    if len(texts) and np.isnan(labels).all():
        why, times = failures.most_common(1)[0]
        raise UserError(f"{client.name} labelled none of {len(texts)} texts ({why}, {times} times); use another model")
    return Annotated(labels, dict(failures))


def annotation_request(
    text: str, domains: Mapping[str, str], *, max_words: int = 300, max_tokens: int = 120
) -> Request:
    """The question about one text, greedy."""
    listed = "\n".join(f"- {name}: {description}" for name, description in domains.items())
    schema = {
        "type": "object",
        "properties": {
            "reason": {"type": "string"},
            "domains": {"type": "array", "items": {"type": "string", "enum": list(domains)}},
        },
        "required": ["reason", "domains"],
    }
    return Request(
        messages=(
            {"role": "system", "content": "You sort texts by subject. A passing mention of a subject is not enough."},
            {
                "role": "user",
                "content": f"Domains:\n{listed}\n\nText:\n{first_words(text, max_words)}\n\nTo which of these domains "
                'does the text belong? To one, to several, or to none. Reply with JSON only, as {"reason": "one short '
                'sentence", "domains": ["..."]}, with an empty list for none.',
            },
        ),
        max_tokens=max_tokens,
        temperature=0.0,
        schema=schema,
    )
