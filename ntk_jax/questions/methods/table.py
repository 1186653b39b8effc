"""The methods by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ntk_jax.questions.methods import calibration, documents, entities, facts, paraphrase, static, strategies
from ntk_jax.questions.methods.asked import Asked, Record
from ntk_jax.questions.question import Chunk
from ntk_jax.questions.voice import Voice

Write = Callable[[Sequence[Chunk], Voice, Asked], Iterator[Record]]


@dataclass(frozen=True)
class Method:
    """write: chunks, whoever is asked and what is wanted to records, until these have the tokens. title, paper: for
    people; paper: its arXiv number, where there is one. kind: what records are. A text has an empty prompt and is
    trained on whole; of qa (a question with its answer) the response is. measures: needs `Asked.likelihood`."""

    write: Write
    title: str
    paper: str
    kind: Literal["text", "qa"]
    measures: bool = False

    @property
    def trained_on(self) -> str:
        """In words."""
        return "the whole text" if self.kind == "text" else "the response"


METHODS = {
    static.NAME: Method(static.static, "Questions without feedback", "", "qa"),
    documents.NAME: Method(documents.documents, "The documents themselves", "", "text"),
    paraphrase.NAME: Method(paraphrase.paraphrase, "Paraphrases", "2401.16380", "text"),
    entities.NAME: Method(entities.entities, "Relations of entities (EntiGraph)", "2409.07431", "text"),
    strategies.NAME: Method(strategies.strategies, "Study strategies (Active Reading)", "2508.09494", "text"),
    facts.NAME: Method(facts.facts, "Facts as instructions (Knowledge-Instruct)", "2504.05571", "qa"),
    calibration.NAME: Method(
        calibration.calibration, "Facts it is unsure of (GraphGen)", "2505.20416", "qa", measures=True
    ),
}
