"""Has a language model write seeds: as many as were asked for, or a stated shortfall, with every failure counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.data.near_duplicates import near_duplicates
from ntk_jax.errors import UserError, listed, shown
from ntk_jax.llm.parsing import Failure, correction
from ntk_jax.llm.request import Client, Progress, Reply, Request
from ntk_jax.llm.usable import read_list
from ntk_jax.mining.seeds.dimensions import DIMENSIONS, Dimensions
from ntk_jax.mining.seeds.plan import Slot, plan_seeds
from ntk_jax.mining.seeds.prompts import prompt_id, seed_request, topics_request
from ntk_jax.mining.seeds.replies import Found, Unusable, read_reply
from ntk_jax.mining.seeds.seed import Seed, check_domains

FORMATS = ("auto", "json", "text")
PROBE = 16  # replies that decide for `auto` whether a model can write JSON
NEAR_DUPLICATE = "a near-duplicate of another seed"


@dataclass(frozen=True)
class Seeds:
    """What was written. failures: {reason: replies}, also of tries that a later one made good. rejected: each of these
    replies with its text. shortfall: {domain: seeds that are missing}, only where some are. repaired: replies that
    parsed after they were asked for again. format: json or text. planned: seeds that were asked for."""

    seeds: list[Seed]
    failures: dict[str, int]
    rejected: list[dict[str, Any]]
    shortfall: dict[str, int]
    repaired: int
    format: str
    planned: int
    asked: int  # requests, repairs among them

    def summary(self) -> dict[str, Any]:
        """What is to be shown of it, as JSON values."""
        names = ("planned", "asked", "repaired", "format", "failures", "shortfall")
        return {"written": len(self.seeds), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class _Asking:
    """How each reply is asked for and read."""

    domains: Mapping[str, str]
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    min_words: int


def write_seeds(
    client: Client,
    domains: Mapping[str, str],
    *,
    per_domain: int = 200,
    two_domain_share: float = 0.1,
    dimensions: Dimensions = DIMENSIONS,
    topics: Mapping[str, Sequence[str]] | None = None,
    format: str = "auto",
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 0.95,
    max_tokens: int = 1500,
    min_words: int = 20,
    similarity: float = 0.7,
    attempts: int = 2,
    progress: Progress | None = None,
) -> Seeds:
    """Writes `per_domain` seeds for each domain (`plan_seeds`: every one has its cell of the dimensions).

    A reply that is not JSON is asked for once more; what still cannot be read, a text that is unusable
    (`replies.unusable`) and a near-duplicate of an earlier seed (Jaccard similarity of word runs at least `similarity`)
    is counted by its reason, and its slot asked for anew, at most `attempts` times in all.

    Args:
        domains: {name: what belongs to it}.
        two_domain_share: share of a domain's seeds that belong to another domain, too.
        topics: of each domain, which the seeds then go through; without, the model chooses.
        format: `json` has the model fix topic, premise, author, audience and motive before it writes; `text` asks for
            the document alone, for small models; `auto` takes json unless more than half of the first replies fail it.
        max_tokens: of a reply; a slot's length may ask for fewer.

    Returns:
        The seeds in the order of their slots; the same replies give the same seeds, in whatever order they come.

    Raises:
        UserError: a domain is wrong (`check_domains`), a number is out of its range, nothing usable came back for a
            domain, or as the client (a refused key, a spent cap).
    """
    domains = check_domains(domains)
    if format not in FORMATS:
        raise UserError(f"format must be one of {listed(FORMATS)}, found {shown(format)}")
    if per_domain < 1 or attempts < 1 or not 0 <= two_domain_share <= 1:
        raise UserError("per_domain and attempts must be at least 1, and two_domain_share between 0 and 1")
    slots = plan_seeds(
        list(domains),
        per_domain=per_domain,
        two_domain_share=two_domain_share,
        dimensions=dimensions,
        topics=topics,
        seed=seed,
    )
    asking = _Asking(domains, seed, temperature, top_p, max_tokens, min_words)
    work = _Work(client, asking, progress, total=len(slots))
    kind = "text" if format == "text" else "json"
    if format == "auto":
        work.ask(slots[:PROBE], kind, 0)
        if 2 * len(work.found) < min(PROBE, len(slots)):
            kind = "text"
    for attempt in range(attempts):
        probed = format == "auto" and kind == "json" and attempt == 0
        work.ask([slot for slot in slots[PROBE if probed else 0 :] if slot.id not in work.found], kind, attempt)
        work.drop_near_duplicates(slots, similarity, attempt)
    seeds = [work.found[slot.id] for slot in slots if slot.id in work.found]
    shortfall = {name: n for name in domains if (n := per_domain - sum(name in s.domains for s in seeds))}
    result = Seeds(
        seeds, dict(work.failures.most_common()), work.rejected, shortfall, work.repaired, kind, len(slots), work.asked
    )
    _refuse_nothing(result, per_domain)
    return result


class _Work:
    """The seeds so far, by slot, and the account of what failed."""

    def __init__(self, client: Client, asking: _Asking, progress: Progress | None, total: int) -> None:
        self.client, self.asking, self.progress, self.total = client, asking, progress, total
        self.found: dict[str, Seed] = {}
        self.failures: Counter[str] = Counter()
        self.rejected: list[dict[str, Any]] = []
        self.repaired = self.asked = 0

    def ask(self, slots: Sequence[Slot], kind: str, attempt: int) -> None:
        """Fills slots that a usable reply comes for."""
        how, is_json = self.asking, kind == "json"
        requests = [
            seed_request(
                slot,
                how.domains,
                json_reply=is_json,
                seed=how.seed,
                sample=attempt,
                temperature=how.temperature,
                top_p=how.top_p,
                max_tokens=how.max_tokens,
            )
            for slot in slots
        ]
        replies = self._replies(requests)
        read = [self._read(request, reply, is_json) for request, reply in zip(requests, replies, strict=True)]
        broken = [i for i, one in enumerate(read) if isinstance(one, Unusable) and one.again]
        again = [correction(requests[i], Failure(_reason(read[i]), replies[i].text)) for i in broken]
        for i, reply in zip(broken, self._replies(again), strict=True):
            better = self._read(requests[i], reply, is_json)
            if isinstance(better, Found):
                read[i] = better
                self.repaired += 1
        for slot, request, reply, one in zip(slots, requests, replies, read, strict=True):
            if isinstance(one, Found):
                self.found[slot.id] = _seed(slot, one, prompt_id(request), self.client.name)
            else:
                self._reject(slot.id, attempt, one.reason, reply.text)

    def drop_near_duplicates(self, slots: Sequence[Slot], similarity: float, attempt: int) -> None:
        """Of seeds that are nearly the same the one of the earlier slot stays."""
        kept = [self.found[slot.id] for slot in slots if slot.id in self.found]
        first = near_duplicates([seed.text for seed in kept], similarity)
        for i, seed in enumerate(kept):
            if first[i] != i:
                del self.found[seed.id]
                self._reject(seed.id, attempt, NEAR_DUPLICATE, seed.text)

    def _reject(self, slot: str, attempt: int, reason: str, text: str) -> None:
        self.failures[reason] += 1
        self.rejected.append({"slot": slot, "attempt": attempt, "reason": reason, "text": text})

    def _read(self, request: Request, reply: Reply, is_json: bool) -> Found | Unusable:
        messages = request.messages
        question = messages if isinstance(messages, str) else " ".join(m["content"] for m in messages)
        return read_reply(reply, json_reply=is_json, question=question, min_words=self.asking.min_words)

    def _replies(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies in the order of their requests."""
        if not requests:
            return []
        before, total = self.asked, max(self.total, self.asked + len(requests))
        tell = self.progress

        def progress(done: int, of: int, spend: str) -> None:
            if tell is not None:
                tell(before + done, total, spend)

        replies: dict[int, Reply] = dict(self.client.ask(requests, progress))
        self.asked += len(requests)
        return [replies[i] for i in range(len(requests))]


def write_topics(
    client: Client, domains: Mapping[str, str], *, per_domain: int = 50, seed: int = 0, max_tokens: int = 1500
) -> dict[str, list[str]]:
    """Has the model list topics of each domain, one request each: for `topics` of `write_seeds`.

    Returns {domain: at most per_domain different topics}. Raises UserError: no topic can be read of a reply; as the
    client.
    """
    names = list(check_domains(domains))
    requests = [topics_request(name, domains[name], per_domain, seed=seed, max_tokens=max_tokens) for name in names]
    replies = dict(client.ask(requests))
    found = {name: read_list(replies[i].text)[:per_domain] for i, name in enumerate(names)}
    for i, name in enumerate(names):
        if not found[name]:
            reason = replies[i].reason or shown(replies[i].text)
            raise UserError(f"no topic of {shown(name)} came back ({reason}); give topics, or leave them out")
    return found


def _reason(one: Found | Unusable) -> str:
    return one.reason if isinstance(one, Unusable) else ""


def _seed(slot: Slot, found: Found, prompt: str, writer: str) -> Seed:
    facts = {
        "origin": "written",
        "type": slot.type,
        "length": slot.length.name,
        "demeanour": slot.demeanour,
        **({"topics": list(slot.topics)} if slot.topics else {}),
        **found.steps,
        **({"cut": True} if found.cut else {}),
        "writer": writer,
        "prompt_id": prompt,
    }
    return Seed(slot.id, found.text, slot.domains, facts)


def _refuse_nothing(result: Seeds, per_domain: int) -> None:
    """Raises UserError where a domain has no seed at all."""
    empty = [name for name, missing in result.shortfall.items() if missing == per_domain]
    if not empty:
        return
    reasons = ", ".join(f"{n} × {reason}" for reason, n in list(result.failures.items())[:3])
    begins = shown(" ".join(result.rejected[0]["text"].split())[:60]) if result.rejected else "nothing"
    raise UserError(
        f"no seed for {listed(empty)}: of {result.asked} replies 0 are usable ({reasons}; the first begins {begins}); "
        "take a model that follows instructions, the format text, or own documents"
    )
