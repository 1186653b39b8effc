"""Mining by asking a language model about every text: the probability of YES against NO (AutoDS, arXiv 2402.07625).

The model reads a text and a question about it, and its next token decides: the score is p(YES) / (p(YES) + p(NO)), a
function of the two logits alone. No seeds, no labels and no reply that has to be parsed, but a pass of the model over
the whole corpus. The paper asks about the value of a text for mathematics; the question here is of any domain, in words
of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.packing import pack
from ntk_jax.data.templates import Rendering, uses_chat
from ntk_jax.data.tokens import ChoiceRow, encode_choices
from ntk_jax.errors import UserError
from ntk_jax.evaluation.packed import batch_shape, log_odds, row_length_of
from ntk_jax.models.model import Model

ANSWERS = ("YES", "NO")
QUESTION = (
    "Is the text above about {name} ({description}), and would someone who studies {name} learn from it? "
    "Answer YES or NO."
)
PLAIN_END = "\nAnswer:"  # where no chat template opens the answer

Progress = Callable[[int, int], None]


def yes_scores(model: Model, texts: Sequence[str], name: str, description: str, **options: Any) -> np.ndarray:
    """[N] float32 in 0 .. 1: p(YES) / (p(YES) + p(NO)). options, errors: as `yes_log_odds`, which orders texts of the
    highest scores where this is 1 for all of them."""
    odds = yes_log_odds(model, texts, name, description, **options).astype(np.float64)
    return (0.5 * (1 + np.tanh(odds / 2))).astype(np.float32)


def yes_log_odds(
    model: Model,
    texts: Sequence[str],
    name: str,
    description: str,
    *,
    question: str = QUESTION,
    max_length: int | None = None,
    rendering: Rendering = Rendering(),  # noqa: B008 (it cannot change)
    batch_tokens: int = 8192,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """[N] float32, in nats: log p(YES) - log p(NO) of the question about each text, one forward pass a text.

    name, description: of the domain; question: with {name} and {description}, asked behind the text. max_length: tokens
    of text and question; None: as many as the model has positions. A longer text loses its start, never the question.
    batch_tokens: of one compiled step, over all devices. progress: called with (texts done, of how many).
    Raises UserError: a model without a tokenizer, one whose tokenizer begins both answers with the same token, a
    max_length that the question alone fills, odds that are not finite.
    """
    if model.tokenizer is None:
        raise UserError(f"{model.name} was loaded without a tokenizer; asking about texts needs one")
    if not len(texts):
        return np.zeros(0, np.float32)
    end = "" if uses_chat(model.tokenizer, rendering) else PLAIN_END
    asked = question.format(name=name, description=description) + end
    most = min(max_length or model.config.max_positions, model.config.max_positions)
    rows, answers = _rows(model, texts, asked, most, rendering)
    length = row_length_of(max(len(row.ids) for row in rows))
    batches = pack(rows, **batch_shape(length, batch_tokens, mesh))
    finished = (lambda done: progress(done, len(rows))) if progress is not None else None
    found = log_odds(model, batches, len(rows), answers, mesh=mesh, finished=finished)
    if not np.isfinite(found).all():
        place = int(np.argmin(np.isfinite(found)))
        raise UserError(
            f"text {place} has odds that are not finite; look at the weights of {model.name} or compute in float32"
        )
    return found


def _rows(
    model: Model, texts: Sequence[str], asked: str, max_length: int, rendering: Rendering
) -> tuple[list[TokenRow], tuple[int, int]]:
    """(each text with the question and, as its one label, the answer; the first tokens of the answers)."""
    rows, firsts = [], set()
    for number, text in enumerate(texts):
        record = {"id": f"text {number}", "prompt": f"{text}\n\n{asked}", "choices": list(ANSWERS), "answer": 0}
        row = encode_choices(record, model.tokenizer, max_length=max_length, overflow="truncate", rendering=rendering)
        # A text that loses tokens may lose some of the question too: then there is no room for both.
        if not isinstance(row, ChoiceRow) or (row.truncated and not _whole(model, row, asked)):
            why = "the question leaves no room for a text" if isinstance(row, ChoiceRow) else row.reason
            raise UserError(f"text {number}: {why} in {max_length} tokens; raise max_length")
        firsts.add(tuple(int(choice[0]) for choice in row.choices))
        span = np.zeros(len(row.prompt) + 1, bool)
        span[-2] = True  # the position that predicts the answer
        rows.append(TokenRow(np.append(row.prompt, row.choices[0][:1]), span, row.id))
    answers = firsts.pop()
    if firsts or answers[0] == answers[1]:
        raise UserError(
            f"the tokenizer of {model.name} begins {' and '.join(ANSWERS)} with the same token or not always alike; "
            "take another template"
        )
    return rows, (answers[0], answers[1])


def _whole(model: Model, row: ChoiceRow, asked: str) -> bool:
    """Whether the question is still there."""
    assert model.tokenizer is not None
    return asked.strip() in model.tokenizer.decode(row.prompt.tolist(), clean_up_tokenization_spaces=False)
