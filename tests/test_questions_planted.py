"""The loop where it is known what the target does not know: it finds that, and does not fall into the traps."""

from __future__ import annotations

import pytest
from scripted_world import GAPS, Scripted, World, fact_of, likelihood, world

from ntk_jax.questions.keep import Candidate, Limits, keep
from ntk_jax.questions.loop import search
from ntk_jax.questions.question import Slot
from ntk_jax.questions.rounds import Settings, Voices
from ntk_jax.questions.verify import second_opinion
from ntk_jax.questions.voice import Voice

ROUNDS = 10


def voices_of(made: World, judged: bool = True) -> Voices:
    names = ("generator", "expert", "target", "reviser")
    return Voices(
        *(Voice(name, Scripted(made, name)) for name in names),
        judge=Voice("judge", Scripted(made, "judge")) if judged else None,
    )


def calls_of(voices: Voices) -> int:
    return sum(v.calls for v in (voices.generator, voices.expert, voices.target, voices.reviser, voices.judge) if v)


def slots_of(made: World, each: int) -> list[Slot]:
    return [Slot(f"{c.id}/{n}", "answerable", (c,), n) for c in made.chunks for n in range(each)]


def kept_by_loop(made: World, seed: int = 0):
    voices = voices_of(made)
    slots = slots_of(made, GAPS)
    settings = Settings(rounds=ROUNDS, patience=ROUNDS, enough=2.0, seed=seed)
    found = search(slots, voices, settings, target=likelihood(made))
    verified = second_opinion(found.traces, None)
    candidates = [
        Candidate(n, trace.slot, version)
        for n, (trace, version) in enumerate(zip(found.traces, verified, strict=True))
        if version is not None
    ]
    return [one.version.question for one in keep(candidates, Limits(count=len(slots))).candidates], calls_of(voices)


def kept_by_static(made: World, calls: int, count: int):
    """Questions with the expert's answers, as many as the calls pay for, and of these the first `count` that are
    different and have their quote: nobody asks what the target knows."""
    voices = voices_of(made, judged=False)
    each = max(1, calls // (3 * len(made.chunks)))  # three calls a question, of which one asks the target
    found = search(slots_of(made, each), voices, Settings(rounds=0, again=0), target=likelihood(made))
    standing = [trace.standing.question for trace in found.traces if trace.standing is not None]
    # one of each chunk in turn, as the loop's have two of each
    order = sorted(range(len(standing)), key=lambda n: (n % each, n))
    return [standing[n] for n in order][:count], standing


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_gaps_are_found_and_traps_are_not_kept(seed: int) -> None:
    made = world(seed)
    kept, calls = kept_by_loop(made, seed)
    static, all_static = kept_by_static(made, calls, len(kept))
    hits = {fact_of(question) for question in kept} & made.gaps
    misses = {fact_of(question) for question in static} & made.gaps
    traps = sum(map(made.is_trap, kept)) / len(kept)
    of_static = sum(map(made.is_trap, static)) / len(static)
    print(
        f"planted: {len(made.gaps)} gaps; the loop keeps {len(kept)} questions after {calls} calls, with {len(hits)} "
        f"gaps ({len(hits) / len(made.gaps):.0%}) and {traps:.0%} traps; static keeps {len(static)} of "
        f"{len(all_static)}, with {len(misses)} gaps ({len(misses) / len(made.gaps):.0%}) and {of_static:.0%} traps"
    )
    assert len(hits) >= 0.9 * len(made.gaps)
    assert traps <= 0.05
    assert len(misses) <= 0.6 * len(hits)
