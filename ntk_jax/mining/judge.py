"""The question whether a text belongs to a domain: the domain's name and description, and the text's beginning."""

from __future__ import annotations

from collections.abc import Mapping

from ntk_jax.errors import UserError
from ntk_jax.llm.request import Request
from ntk_jax.llm.verdicts import SCHEMA, first_words


def question(text: str, name: str, description: str, *, max_words: int = 300, max_tokens: int = 120) -> Request:
    """The request for one verdict, greedy. max_words: of the text that are shown."""
    return Request(
        messages=(
            {
                "role": "system",
                "content": "You sort texts by subject. Judge what the text is about, not its quality or its form. "
                "Be strict: a passing mention of a subject is not enough.",
            },
            {
                "role": "user",
                "content": f"Domain: {name}\nWhat belongs to it: {description}\n\nText:\n{first_words(text, max_words)}"
                '\n\nDoes the text belong to this domain? Reply with JSON only, as {"reason": "one short sentence", '
                '"answer": "yes"} or with "no".',
            },
        ),
        max_tokens=max_tokens,
        temperature=0.0,
        schema=SCHEMA,
    )


def check_domains(domains: Mapping[str, str]) -> None:
    """Raises UserError: no domain, or one without a description, which a judge cannot judge by."""
    if not domains:
        raise UserError("there is no domain to judge; give each a name and a description")
    for name, description in domains.items():
        if not description.strip():
            raise UserError(f"the domain {name} has no description, and a judge needs one; give a sentence")
