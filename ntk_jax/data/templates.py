"""From a record to two texts: the prompt as the model sees it and the response as the model is to write it.

A tokenizer with a chat template gets its template; any other gets `prompt + " " + response + EOS`. The two texts are
kept apart, and tokenised apart, so that the boundary of the span never falls inside a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from ntk_jax.errors import UserError

# Some templates print today's date. A score must not depend on the day it is computed, so the day stands still; it is
# the one that Llama's own template falls back to. Functions cannot be handed to a template, so a macro put before it
# takes the place of the clock. (Its newline is eaten; without it the template's first line would keep its indent.)
_DAY = "26 Jul 2024"
_CODES = {"%d": "26", "%-d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%-m": "7", "%Y": "2024", "%y": "24"}
_CODES |= {"%a": "Fri", "%A": "Friday", "%j": "208", "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM"}
_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in _CODES.items())
    + " }}{% endmacro %}\n"
)


def uses_chat(tokenizer: Any, template: str = "auto") -> bool:
    """Whether `template` (auto, chat or plain) means the tokenizer's chat template.

    Raises UserError: `chat` is asked for and the tokenizer has none.
    """
    if template not in ("auto", "chat", "plain"):
        raise UserError(f"template {template!r} is not one of auto, chat, plain")
    has_one = getattr(tokenizer, "chat_template", None) is not None
    if template == "chat" and not has_one:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise UserError(f"the tokenizer {name} has no chat template; take template = plain or auto")
    return template != "plain" and has_one


def render(record: Mapping[str, Any], tokenizer: Any, template: str = "auto", add_eos: bool = True) -> tuple[str, str]:
    """Returns (prompt_text, response_text); their concatenation is the whole example.

    record: checked by `check_record`. add_eos: plain template only, close the response with the EOS token.
    Raises UserError naming the record: the template refuses its messages, or does not extend the prompt it gave.
    """
    if uses_chat(tokenizer, template):
        return _render_chat(_messages(record), tokenizer, record["id"])
    if "messages" in record:
        prompt, response = _plain_prompt(record["messages"][:-1]), record["messages"][-1]["content"]
    else:
        prompt, response = record["prompt"], record["response"]
    eos = (getattr(tokenizer, "eos_token", None) or "") if add_eos else ""
    return prompt, _spaced(prompt, response) + ("" if eos and response.endswith(eos) else eos)


def render_choices(record: Mapping[str, Any], tokenizer: Any, template: str = "auto") -> tuple[str, str, list[str]]:
    """Returns (prompt_text, lead, choice_texts) of a multiple-choice record.

    lead: what a chat template puts between the prompt and the answer, the same for all choices, mostly nothing. The
    choice texts hold no end of turn and no EOS, because a choice is judged by its own words only; in the plain template
    they begin with the space that `render` puts there.
    """
    choices = list(record["choices"])
    if not uses_chat(tokenizer, template):
        prompt = record["prompt"] if "messages" not in record else _plain_prompt(_before_answer(record))
        return prompt, "", [_spaced(prompt, choice) for choice in choices]
    before = _before_answer(record)
    # A stand-in for the answer shows what the template puts around it.
    stand_in = "\u2756answer\u2756"
    prompt, around = _render_chat([*before, _message("assistant", stand_in)], tokenizer, record["id"])
    lead, found, tail = around.partition(stand_in)
    texts = []
    for choice in choices:
        prompt_again, text = _render_chat([*before, _message("assistant", choice)], tokenizer, record["id"])
        if not found or prompt_again != prompt or not text.startswith(lead) or not text.endswith(tail):
            raise UserError(
                f"{record['id']}: the chat template changes with the answer, so choices cannot share a prompt;"
                " take template = plain"
            )
        texts.append(text[len(lead) : len(text) - len(tail)])  # templates may strip the content
    return prompt, lead, texts


def _render_chat(messages: Sequence[Mapping[str, str]], tokenizer: Any, name: str) -> tuple[str, str]:
    # Templates that can think open an empty thought when asked not to; then the response is the answer alone. When the
    # response brings its own thought, the template puts it where the empty one was, and thinking must be on.
    for thinking in (False, True):
        prompt = _apply(tokenizer, messages[:-1], name, add_generation_prompt=True, enable_thinking=thinking)
        full = _apply(tokenizer, messages, name, add_generation_prompt=False, enable_thinking=thinking)
        if full.startswith(prompt):
            return prompt, full[len(prompt) :]
    raise UserError(
        f"{name}: the chat template writes the prompt differently once the response is there,"
        " so where the response begins cannot be seen; take template = plain"
    )


def _apply(tokenizer: Any, messages: Sequence[Mapping[str, str]], name: str, **options: Any) -> str:
    template = tokenizer.get_chat_template()
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=_CLOCK + template if "strftime_now" in template else None,
            tokenize=False,
            date_string=_DAY,
            **options,
        )
    except (jinja2.TemplateError, TypeError, KeyError, IndexError) as error:
        raise UserError(
            f"{name}: the chat template refuses the messages ({error}); correct them or take template = plain"
        ) from None


def _messages(record: Mapping[str, Any]) -> list[dict[str, str]]:
    if "messages" in record:
        return list(record["messages"])
    return [_message("user", record["prompt"]), _message("assistant", record["response"])]


def _before_answer(record: Mapping[str, Any]) -> list[dict[str, str]]:
    if "messages" not in record:
        return [_message("user", record["prompt"])]
    messages = list(record["messages"])
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _plain_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """One turn needs no names; in a longer talk the names tell who spoke."""
    if sum(message["role"] != "system" for message in messages) <= 1:
        return "\n\n".join(message["content"] for message in messages)
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


def _spaced(prompt: str, response: str) -> str:
    apart = not prompt or prompt[-1].isspace() or response[:1].isspace()
    return response if apart else " " + response
