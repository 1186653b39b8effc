"""The tokens of a reply as text, and where a stop text ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Words:
    """Reads replies to one prompt. before: the prompt's last token, because some tokenizers drop the space before the
    first word of what they are given."""

    tokenizer: Any
    before: int

    def of(self, ids: Sequence[int]) -> str:
        """The text of tokens, without control tokens."""
        lead, whole = self._decoded([self.before]), self._decoded([self.before, *ids])
        return whole[len(lead) :] if whole.startswith(lead) else self._decoded(list(ids))

    def stopped(self, ids: Sequence[int], stops: Sequence[str], fresh: int) -> tuple[str, int] | None:
        """(the text before the first stop text, the tokens up to the one that completed it), or None. Only the last
        `fresh` tokens can have completed one."""
        text = self.of(ids)
        if not any(stop in text for stop in stops):
            return None
        for count in range(max(len(ids) - fresh, 0) + 1, len(ids) + 1):
            text = self.of(ids[:count])
            if found := [place for place in map(text.find, stops) if place >= 0]:
                return text[: min(found)], count
        return text[: min(place for place in map(text.find, stops) if place >= 0)], len(ids)

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
