"""How examples become token rows: template, length rule, and the positions that count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ntk_jax.data.templates import Rendering
from ntk_jax.errors import UserError

WHICH = ("response", "all", "last")
OVERFLOWS = ("error", "drop", "truncate")


@dataclass(frozen=True)
class Span:
    """How an example's text becomes tokens, and which of their positions count.

    Args:
        which: `response`, the positions that predict response tokens; `all`; or `last`.
        max_length: tokens of an example; None: as many as the model has positions.
        overflow: what becomes of a longer example, or of one without a response token. `error` refuses it. `drop`
            leaves it out. `truncate` cuts a longer one (first the start of the prompt's own words, then the end of the
            response) and leaves out what has no response token.
        template: `chat`, the tokenizer's chat template; `plain`, prompt and response behind each other; `auto`, the
            chat template where there is one. add_eos: close a plain response with the tokenizer's EOS token.
        control_tokens: those that a record's text spells, such as `<|im_end|>`, are text (`literal`), control tokens
            (`keep`), or the example is left out (`drop`).
        template_options: what the chat template is given besides the messages: `tools`, `documents`,
            `enable_thinking`, ...; `chat_template`, the name of one of several, a file, or a template's own text;
            `system`, a message for talks that have no system message.

    Raises:
        UserError: a value that is none of these.

    Example:
        >>> import ntk_jax as nj
        >>> span = nj.Span(max_length=512, overflow="truncate")
        >>> span.which, span.max_length
        ('response', 512)
    """

    which: str = "response"
    max_length: int | None = None
    overflow: str = "error"
    template: str = "auto"
    add_eos: bool = True
    control_tokens: str = "literal"
    template_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, known in (("which", WHICH), ("overflow", OVERFLOWS)):
            if getattr(self, name) not in known:
                raise UserError(f"span: {name} = {getattr(self, name)!r} is not one of {', '.join(known)}")
        _ = self.rendering
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"span: max_length = {self.max_length}; an example needs at least 2 tokens")

    @property
    def rendering(self) -> Rendering:
        """How a record becomes text. Raises UserError: a value that is none of those known."""
        return Rendering(self.template, self.add_eos, self.control_tokens, self.template_options)
