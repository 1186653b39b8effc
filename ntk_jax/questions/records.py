"""Kept questions as records that any trainer takes, with the whole account of how they came to be."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ntk_jax.questions.keep import Candidate
from ntk_jax.questions.question import NO_GAIN, Trace, Version

SEPARATOR = ": "  # between who failed and why


def record_of(kept: Candidate, trace: Trace, *, rank: int, method: str, generation: int = 1) -> dict[str, Any]:
    """The question as prompt and the expert's answer as response, with where it comes from and its trace."""
    version, slot = kept.version, kept.slot
    assert version.expert is not None
    chunk = slot.chunks[0]
    return {
        "id": f"{method}-{generation}-{slot.id}",
        "source": chunk.source,
        "prompt": version.question,
        "response": version.expert.text,
        "document_id": chunk.document,
        "chunks": [one.id for one in slot.chunks],
        "method": method,
        "kind": slot.kind,
        "quotes": list(version.expert.quotes),
        "gap": version.gap,
        "round": version.round,
        "generation": generation,
        "rank": rank,
        "trace": trace_of(trace),
    }


def trace_of(trace: Trace, why: str | None = None) -> dict[str, Any]:
    """How the question of a slot came to be, as JSON values. why: it was not kept, None: it was."""
    return {
        "slot": trace.slot.id,
        "kind": trace.slot.kind,
        "chunks": [chunk.id for chunk in trace.slot.chunks],
        "stopped": trace.stopped,
        **({"not_kept": why} if why is not None else {}),
        "rounds": [version_of(version) for version in trace.versions],
        "calls": sum(version.calls for version in trace.versions),
        "prompt_tokens": sum(version.tokens[0] for version in trace.versions),
        "completion_tokens": sum(version.tokens[1] for version in trace.versions),
    }


def version_of(version: Version) -> dict[str, Any]:
    """A version as JSON values."""
    expert = dataclasses.asdict(version.expert) if version.expert is not None else None
    return {
        "round": version.round,
        "question": version.question,
        "expert": expert,
        "target": version.target,
        "signals": dict(version.signals),
        "gap": version.gap,
        "accepted": version.accepted,
        "fault": version.fault,
        "verdicts": dict(version.verdicts),
        "feedback": version.feedback,
        "prompts": dict(version.prompts),
        "calls": version.calls,
        "prompt_tokens": version.tokens[0],
        "completion_tokens": version.tokens[1],
    }


def reason_of(trace: Trace) -> str:
    """Why the trace has no verified question: the fault of the version that came furthest."""
    if not trace.versions:
        return "nothing was asked: the calls were spent"
    reached = max(trace.versions, key=_reached)
    return reached.fault or NO_GAIN


def outcomes(reasons: Mapping[int, str], kept: int) -> dict[str, int]:
    """{what became of it: slots}: kept, and each reason."""
    return {"kept": kept, **dict(Counter(reasons.values()).most_common())}


def _reached(version: Version) -> tuple[bool, bool, bool, bool, int]:
    """A version that only was no better than one before says nothing of why that one fell."""
    own = version.fault != NO_GAIN
    return own, version.gap is not None, version.expert is not None, bool(version.question), version.round
