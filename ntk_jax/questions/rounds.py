"""The calls of the adversarial loop, round by round: what is asked of every role, for all questions together."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ntk_jax.llm.request import Progress
from ntk_jax.llm.usable import Unusable
from ntk_jax.questions.agreement import agreement, consistency
from ntk_jax.questions.gaps import Asked, band, likelihood_gaps
from ntk_jax.questions.judge import divergence_wish
from ntk_jax.questions.question import Answer, Likelihood, Trace
from ntk_jax.questions.verify import any_sentence, consistency_of, fault_of_answer, found_quotes
from ntk_jax.questions.voice import Said, Voice, Wish, seed_of
from ntk_jax.questions.wording import (
    answer_wish,
    feedback_wish,
    question_wish,
    revision_wish,
    support_wish,
    target_wish,
)

AGREE = 0.5  # agreement by words from which on two answers say the same
JUDGED = ("divergence", "verdict")  # what is asked of the judge, by its names in `Try.said`
MakeProgress = Callable[[str, int], Progress]  # what is asked for in a round, how many


@dataclass(frozen=True)
class Voices:
    """Who plays which role. judge: scores how far answers disagree and whether an answer stands; None: nobody does, and
    only what needs no model is checked."""

    generator: Voice
    expert: Voice
    target: Voice
    reviser: Voice
    judge: Voice | None = None


@dataclass(frozen=True)
class Settings:
    """rounds: of rewriting, after the first. patience: rounds without a gain until a question is left alone. min_gain:
    by how much the gap must grow. enough: a gap from which on a question is left alone. calls: to all roles together,
    about; None: no bound. signal: one of `gaps.SIGNALS`. reference: one of `gaps.REFERENCES`. sees_document: the target
    answers with the passage, as the paper has it. feedback: what the answers show goes to the reviser. quotes:
    `copied`, the expert's own must stand in the passage; `found`, its sentence that says most of the answer serves
    where they do not. samples: of the expert and the target, for the signal band. again: further answers of the
    expert, drawn at draw_temperature, which must agree with its first by `consistency`; 0: none is."""

    rounds: int = 3
    patience: int = 2
    min_gain: float = 0.0
    enough: float | None = None
    calls: int | None = None
    signal: str = "nll"
    reference: str = "context"
    sees_document: bool = True
    feedback: bool = True
    quotes: str = "copied"
    samples: int = 4
    again: int = 3
    consistency: float = 0.55
    draw_temperature: float = 0.7
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 0.95
    question_tokens: int = 120
    answer_tokens: int = 240
    verdict_tokens: int = 160


@dataclass
class Try:
    """A version on its way through a round."""

    trace: Trace
    question: str
    said: dict[str, Said]
    feedback: str | None = None
    expert: Answer | None = None
    target: str | None = None
    signals: dict[str, float] = field(default_factory=dict)
    gap: float | None = None
    fault: str | None = None


def is_better(one: Try, settings: Settings) -> bool:
    standing = one.trace.standing
    return standing is None or grew(one.gap, standing.gap, settings.min_gain)


def grew(gap: float | None, before: float | None, least: float) -> bool:
    if gap is None:
        return False
    return before is None or gap > before + least


class Rounds:
    """The calls of a round, role by role, for all its questions together."""

    def __init__(
        self,
        voices: Voices,
        settings: Settings,
        target: Likelihood | None,
        expert: Likelihood | None,
        progress: MakeProgress | None,
    ) -> None:
        self.voices, self.settings, self.progress = voices, settings, progress
        self.target, self.expert = target, expert
        self.first = self._calls()

    def affordable(self, traces: list[Trace]) -> list[Trace]:
        """As many of them as the calls that are left pay for, every chunk's first before any has a second, and of these
        ones from all over; the others are stopped."""
        if self.settings.calls is None:
            return traces
        left = self.settings.calls - (self._calls() - self.first)
        many = max(0, left // self._calls_of_a_try())
        drawn = sorted(
            traces, key=lambda trace: (trace.slot.number, seed_of(self.settings.seed, trace.slot.id, "paid"))
        )
        for trace in drawn[many:]:
            trace.stopped = "budget"
        return [trace for trace in traces if trace.stopped is None]

    def asked(self, traces: list[Trace], among: Sequence[Trace], number: int) -> list[Try]:
        """A new question for each trace: rewritten, or asked anew where none stands."""
        s, earlier = self.settings, _earlier(among)
        again = [trace for trace in traces if trace.standing is not None]
        feedback = self._feedback(again, number) if s.feedback else {}
        wishes: dict[str, list[tuple[Trace, Wish]]] = {"reviser": [], "generator": []}
        how: dict[str, Any] = {"temperature": s.temperature, "top_p": s.top_p, "max_tokens": s.question_tokens}
        for trace in traces:
            slot, standing = trace.slot, trace.standing
            how |= {"seed": seed_of(s.seed, slot.id), "sample": number}
            before = [
                question for question in earlier[slot.chunks[0].id] if not standing or question != standing.question
            ]
            if standing is None:
                # What brought no question is left for another part of the chunk.
                focus = (
                    trace.focus if number == 0 else any_sentence(slot.chunks[0].text, seed_of(s.seed, slot.id, number))
                )
                wishes["generator"].append((trace, question_wish(slot, before, focus, **how)))
            else:
                said = feedback.get(slot.id)
                text = str(said.value) if said is not None and said.usable else None
                wishes["reviser"].append((trace, revision_wish(slot, standing.question, text, before, **how)))
        tries = []
        for role, pairs in wishes.items():
            voice = self.voices.reviser if role == "reviser" else self.voices.generator
            for (trace, _), said in zip(pairs, self._ask(voice, f"round {number}: questions", pairs), strict=True):
                one = Try(trace, str(said.value) if said.usable else "", {"question": said})
                if (given := feedback.get(trace.slot.id)) is not None and role == "reviser":
                    one.said["feedback"] = given
                    one.feedback = str(given.value) if given.usable else None
                one.fault = f"question: {said.value.reason}" if isinstance(said.value, Unusable) else None
                tries.append(one)
        place = {trace.slot.id: n for n, trace in enumerate(traces)}
        tries.sort(key=lambda one: place[one.trace.slot.id])
        _drop_repeated(tries, earlier)
        return tries

    def _feedback(self, traces: list[Trace], number: int) -> dict[str, Said]:
        """What the answers to the standing questions show, by slot; the same question is not looked at twice, for its
        answers are the same."""
        pairs = []
        for trace in traces:
            standing = trace.standing
            assert standing is not None and standing.expert is not None
            seed = seed_of(self.settings.seed, trace.slot.id, "feedback")
            tokens = self.settings.verdict_tokens
            wish = feedback_wish(
                trace.slot, standing.question, standing.expert.text, standing.target or "", seed=seed, max_tokens=tokens
            )
            pairs.append((trace, wish))
        voice = self.voices.judge or self.voices.expert
        said = self._ask(voice, f"round {number}: feedback", pairs)
        return {trace.slot.id: one for (trace, _), one in zip(pairs, said, strict=True)}

    def answered(self, tries: list[Try], number: int) -> None:
        """The expert's and the target's answers, and the signals of those that can be kept."""
        s = self.settings
        good = [one for one in tries if one.fault is None]
        wishes = [(one, answer_wish(one.trace.slot, one.question, max_tokens=s.answer_tokens)) for one in good]
        for one, said in zip(good, self._ask(self.voices.expert, f"round {number}: expert", wishes), strict=True):
            one.said["expert"] = said
            if isinstance(said.value, Unusable):
                one.fault = f"expert: {said.value.reason}"
                continue
            one.expert = found_quotes(one.trace.slot, said.value) if s.quotes == "found" else said.value
            one.fault = fault_of_answer(one.trace.slot, one.expert)
        good = [one for one in good if one.fault is None]
        asked = [(one, target_wish(one.question, self._passage(one), max_tokens=s.answer_tokens)) for one in good]
        for one, said in zip(good, self._ask(self.voices.target, f"round {number}: target", asked), strict=True):
            one.said["target"] = said
            one.target = str(said.value) if said.usable else ""  # to say nothing is an answer, and a wrong one
            if said.failed and s.signal in ("judge", "both"):  # but who was not heard has not answered wrongly
                one.fault = f"target: {said.value.reason}"
        self._signals([one for one in good if one.fault is None], number)

    def _signals(self, tries: list[Try], number: int) -> None:
        s = self.settings
        if s.signal in ("nll", "both") and tries:
            assert self.target is not None
            reference = self.expert if s.reference == "expert" else None
            asked = [Asked(one.question, one.trace.slot.passage, _text(one)) for one in tries]
            for one, found in zip(
                tries, likelihood_gaps(asked, self.target, reference, sees_document=s.sees_document), strict=True
            ):
                if found is None:
                    one.fault = "it does not fit the context with its passage"
                else:
                    one.signals |= found
        good = [one for one in tries if one.fault is None]
        if s.signal in ("judge", "both") and self.voices.judge is not None:
            wishes = [
                (
                    one,
                    divergence_wish(
                        one.question,
                        one.trace.slot.passage,
                        _text(one),
                        one.target or "(no answer)",
                        seed=seed_of(s.seed, one.trace.slot.id),
                        max_tokens=s.verdict_tokens,
                    ),
                )
                for one in good
            ]
            for one, said in zip(good, self._ask(self.voices.judge, f"round {number}: judge", wishes), strict=True):
                one.said["divergence"] = said
                if isinstance(said.value, Unusable):
                    one.fault = f"judge: {said.value.reason}"
                else:
                    one.signals["judge"] = said.value.value
        if s.signal == "band":
            self._bands(good, number)

    def _bands(self, tries: list[Try], number: int) -> None:
        """The signal band, from draws of both."""
        s = self.settings
        draws: dict[str, dict[int, list[str | None]]] = {"expert": defaultdict(list), "target": defaultdict(list)}
        for role in draws:
            pairs = [(n, self._draw(role, one, k)) for n, one in enumerate(tries) for k in range(s.samples)]
            voice = self.voices.expert if role == "expert" else self.voices.target
            said = self._ask(voice, f"round {number}: draws of the {role}", pairs)
            for (n, _), found in zip(pairs, said, strict=True):
                text = found.value.text if isinstance(found.value, Answer) else found.value
                draws[role][n].append(None if found.failed else str(text) if found.usable else "")
                tries[n].said[f"{role} {len(draws[role][n])}"] = found
        for n, one in enumerate(tries):
            heard = [text for text in draws["target"][n] if text is not None]  # no reply is no wrong answer
            if not heard:
                one.fault = f"target: {one.said['target 1'].value.reason}"
                continue
            right = [agreement(_text(one), text) >= AGREE for text in heard]
            one.signals["target_right"] = sum(right) / len(right)
            one.signals["consistency"] = consistency([_text(one), *(text or "" for text in draws["expert"][n])])
            one.signals["band"] = band(one.signals["target_right"], one.signals["consistency"])

    def _draw(self, role: str, one: Try, sample: int) -> Wish:
        s, seed = self.settings, seed_of(self.settings.seed, one.trace.slot.id, role)
        how: dict[str, Any] = {"seed": seed, "sample": sample, "temperature": s.draw_temperature}
        if role != "target":
            return answer_wish(one.trace.slot, one.question, max_tokens=s.answer_tokens, **how)
        return target_wish(one.question, self._passage(one), max_tokens=s.answer_tokens, **how)

    def judged(self, tries: list[Try], number: int) -> None:
        """What else those must pass whose gap grew: the judge's word that the passage gives that answer and no other,
        and that the expert gives it again."""
        better = [one for one in tries if one.fault is None and is_better(one, self.settings)]
        self._verdicts(better, number)
        self._again([one for one in better if one.fault is None], number)

    def _verdicts(self, tries: list[Try], number: int) -> None:
        voice, s = self.voices.judge, self.settings
        if voice is None:
            return
        pairs = [
            (one, support_wish(one.trace.slot, one.question, _text(one), max_tokens=s.verdict_tokens)) for one in tries
        ]
        for (one, _), said in zip(pairs, self._ask(voice, f"round {number}: verdicts", pairs), strict=True):
            one.said["verdict"] = said
            if isinstance(said.value, Unusable):
                one.fault = f"verdict: {said.value.reason}"
            elif not said.value:
                one.fault = "the judge finds that the passage does not give this answer"

    def _again(self, tries: list[Try], number: int) -> None:
        """Draws further answers of the expert: where they differ the question has no one answer, or the expert does not
        know it."""
        s = self.settings
        pairs = [(n, self._draw("again", one, k)) for n, one in enumerate(tries) for k in range(s.again)]
        found: list[list[Answer]] = [[] for _ in tries]
        unheard: dict[int, str] = {}
        for (n, _), said in zip(
            pairs, self._ask(self.voices.expert, f"round {number}: the expert again", pairs), strict=True
        ):
            tries[n].said[f"again {len(found[n]) + 1}"] = said
            # What cannot be read agrees with nothing.
            found[n].append(said.value if isinstance(said.value, Answer) else Answer(""))
            if said.failed:
                unheard[n] = f"expert, asked again: {said.value.reason}"
        for n, (one, answers) in enumerate(zip(tries, found, strict=True)):
            if answers:
                assert one.expert is not None
                one.signals["consistency"] = consistency_of(one.trace.slot, one.expert, answers)
                if one.signals["consistency"] < s.consistency:
                    one.fault = unheard.get(n, "the expert answers otherwise when it is asked again")

    def _passage(self, one: Try) -> str | None:
        return one.trace.slot.passage if self.settings.sees_document else None

    def _ask(self, voice: Voice, what: str, pairs: Sequence[tuple[Any, Wish]]) -> list[Said]:
        progress = self.progress(what, len(pairs)) if self.progress is not None and pairs else None
        return voice.ask([wish for _, wish in pairs], progress, what)

    def _calls(self) -> int:
        voices = {
            id(voice): voice for field in dataclasses.fields(self.voices) if (voice := getattr(self.voices, field.name))
        }
        return sum(voice.calls for voice in voices.values())

    def _calls_of_a_try(self) -> int:
        """At most, without what is asked for once more."""
        s, judged = self.settings, self.voices.judge is not None
        draws = s.again + (2 * s.samples if s.signal == "band" else 0)
        return 3 + (s.feedback and s.rounds > 0) + judged + (judged and s.signal in ("judge", "both")) + draws


def _text(one: Try) -> str:
    assert one.expert is not None
    return one.expert.text


def _earlier(traces: Sequence[Trace]) -> dict[str, list[str]]:
    """{chunk: the questions on it that were tried}, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for trace in traces:
        found[trace.slot.chunks[0].id] += [version.question for version in trace.versions if version.question]
    return found


def _drop_repeated(tries: Sequence[Try], earlier: dict[str, list[str]]) -> None:
    """A question that was tried on the same chunk before, or by an earlier slot of this round, is at fault."""
    known = {chunk: {question.casefold() for question in questions} for chunk, questions in earlier.items()}
    for one in tries:
        seen = known.setdefault(one.trace.slot.chunks[0].id, set())
        if one.fault is None and one.question.casefold() in seen:
            one.fault = "question: asked before"
        seen.add(one.question.casefold())
