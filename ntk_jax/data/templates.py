"""From a record to one text in two parts: the prompt as the model sees it, the response as the model is to write it.

A tokenizer with a chat template gets its template; any other, and a record with an empty prompt, which is nobody's
turn, gets `prompt + " " + response + EOS`. White space at the end of such a prompt goes to the response: tokenizers
write the space before a word with the word.

Most templates extend the prompt that they write for generation, and the response is what they add. Some write a
finished turn otherwise than generation begins it (DeepSeek-R1's opens a thought for the model, and cuts the thought out
of a turn that is over). There the prompt is the finished talk up to the words of the last turn.
"""

from __future__ import annotations

import contextlib
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntk_jax.data.control import Codec, codec_of, without_marks
from ntk_jax.errors import UserError, shown

TEMPLATES = ("auto", "chat", "plain")
CONTROL_TOKENS = ("literal", "keep", "drop")

# What may have become of an example's text, for the account.
SPACE_MOVED = "white space moved from the prompt to the response"
SPELLS_CONTROL = "control tokens in the text"
REWRITTEN = "response rewritten by the chat template"

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
# What `apply_chat_template` is called with here, and what would change the kind of its result.
_TAKEN = {"conversation", "messages", "add_generation_prompt", "continue_final_message", "tokenize", "return_dict"}
_TAKEN |= {"return_tensors", "return_assistant_tokens_mask", "tokenizer_kwargs"}
# Stand-ins, which show what stands around an answer; no record's words begin as they do, with a noncharacter.
_ANSWER, _OTHER_ANSWER = "\ufdd3answer\ufdd3", "\ufdd4reply\ufdd4"


@dataclass(frozen=True)
class Rendering:
    """How a record becomes text.

    template: `chat`, `plain`, or `auto`, the chat template where there is one. add_eos: close a plain response with the
    EOS token. control_tokens: those that a record's text spells are text (`literal`), or control tokens (`keep`), or
    the example is left out (`drop`). options: what the chat template is given besides the messages (`tools`,
    `documents`, `enable_thinking`, ...); `chat_template` is the name of one of several, a file, or a template's own
    text; `system` is a message put before talks that have no system message.
    Raises UserError: a value that is none of these.
    """

    template: str = "auto"
    add_eos: bool = True
    control_tokens: str = "literal"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("template", TEMPLATES), ("control_tokens", CONTROL_TOKENS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} = {getattr(self, name)!r} is not one of {', '.join(known)}")
        if not isinstance(self.options, Mapping):
            raise UserError(f"template_options = {shown(self.options)} must be a mapping from names")
        for name in ("chat_template", "system"):
            value = self.options.get(name)
            if value is not None and not isinstance(value, str):
                raise UserError(f"template_options: {name} = {shown(value)} must be text")
        if taken := sorted(_TAKEN & set(self.options)):
            raise UserError(f"template_options: {taken[0]} is decided for each example; leave it out")


@dataclass(frozen=True)
class Written:
    """An example's text; control tokens that the template wrote stand in it under the names that the codec gave them.

    notes: what became of the record's words, of SPACE_MOVED, SPELLS_CONTROL, REWRITTEN.
    """

    prompt: str
    response: str
    notes: tuple[str, ...] = ()


def uses_chat(tokenizer: Any, rendering: Rendering) -> bool:
    """Whether records get the tokenizer's chat template. Raises UserError: `chat` is asked for and there is none."""
    has_one = getattr(tokenizer, "chat_template", None) is not None or "chat_template" in rendering.options
    if rendering.template == "chat" and not has_one:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise UserError(f"the tokenizer {name} has no chat template; take template = plain or auto")
    return rendering.template != "plain" and has_one


def _in_turns(record: Mapping[str, Any], tokenizer: Any, rendering: Rendering) -> bool:
    """Whether this record gets the chat template: one with an empty prompt is nobody's turn."""
    return uses_chat(tokenizer, rendering) and record.get("prompt") != ""


def render(record: Mapping[str, Any], tokenizer: Any, rendering: Rendering) -> tuple[str, str]:
    """(prompt, response) of a checked record as people read them. Raises UserError as `write`."""
    written, codec = write(record, tokenizer, rendering), codec_of(tokenizer)
    return codec.readable(written.prompt), codec.readable(written.response)


def write(record: Mapping[str, Any], tokenizer: Any, rendering: Rendering) -> Written:
    """A checked record as text. Raises UserError naming the record: the template refuses its messages, or does not
    write the response."""
    codec = codec_of(tokenizer)
    if _in_turns(record, tokenizer, rendering):
        said = _said(record, codec, rendering)
        messages = _messages(said, rendering)
        prompt, response = _chat(messages, codec, tokenizer, rendering, record["id"])
        notes = [] if codec.named(messages[-1]["content"]).strip() in response else [REWRITTEN]
    else:
        eos = (getattr(tokenizer, "eos_token", None) or "") if rendering.add_eos else ""
        record = _without_end(record, eos)
        prompt, response, notes = _moved(*map(codec.named, plain_texts(_said(record, codec, rendering))))
        response += codec.named(eos)
    if codec.spells_control(_words(record)):
        notes.append(SPELLS_CONTROL)
    return Written(prompt, response, tuple(notes))


def write_choices(
    record: Mapping[str, Any], tokenizer: Any, rendering: Rendering
) -> tuple[str, list[str], tuple[str, ...]]:
    """(prompt, the choices, notes) of a multiple-choice record, as `Written` has texts.

    The prompt holds what a chat template puts before the answer. The choices hold no end of turn and no EOS, because a
    choice is judged by its own words only; in the plain template they begin with the white space before the answer.
    Raises UserError as `write`; a template that changes with the answer.
    """
    codec = codec_of(tokenizer)
    said = _said(record, codec, rendering)
    spelled = [SPELLS_CONTROL] if codec.spells_control([_words(record), record["choices"]]) else []
    choices: list[str] = list(said["choices"])
    if not _in_turns(record, tokenizer, rendering):
        asked = codec.named(plain_texts(said)[0])
        pairs = [_moved(asked, _spaced(asked, codec.named(choice))) for choice in choices]
        return pairs[0][0], [text for _, text, _ in pairs], tuple(pairs[0][2] + spelled)
    before = _messages(said, rendering)[:-1]

    def ask(answer: str) -> tuple[str, str]:
        return _chat([*before, _message("assistant", answer)], codec, tokenizer, rendering, record["id"])

    prompt, around = ask(_ANSWER)
    lead, found, tail = around.partition(_ANSWER)
    texts = []
    for again, text in map(ask, choices):
        if not found or again != prompt or not text.startswith(lead) or not text.endswith(tail):
            raise UserError(
                f"{record['id']}: the chat template changes with the answer, so choices cannot share a prompt;"
                " take template = plain"
            )
        texts.append(text[len(lead) : len(text) - len(tail)])  # templates may strip the content
    return prompt + lead, texts, tuple(spelled)


def write_question(
    messages: Sequence[Mapping[str, Any]] | str, tokenizer: Any, rendering: Rendering, name: str
) -> tuple[str, tuple[str, ...]]:
    """(what a model reads before it answers, notes), as `Written` has texts. A text is continued as it stands; so is a
    last message of the assistant's. name: of the question, for messages.

    Raises UserError: the template refuses the messages.
    """
    codec = codec_of(tokenizer)
    clean = without_marks if rendering.control_tokens == "keep" else codec.protect
    notes = (SPELLS_CONTROL,) if codec.spells_control(messages) else ()
    if isinstance(messages, str):
        return codec.named(clean(messages)), notes
    begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    asked = list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
    said = _messages({"messages": clean([*asked, _message("assistant", begun)])}, rendering)
    *before, last = said
    if not uses_chat(tokenizer, rendering):
        prompt = codec.named(plain_prompt(before))
        return prompt + _spaced(prompt, codec.named(last["content"])) if begun else prompt.rstrip(), notes
    quiet = {} if "enable_thinking" in rendering.options else {"enable_thinking": False}
    text = _apply(tokenizer, before, rendering, name, add_generation_prompt=True, **quiet)
    return codec.named(text) + codec.named(last["content"]), notes


# -- plain -----------------------------------------------------------------------------------------------------------


def plain_texts(said: Mapping[str, Any]) -> tuple[str, str]:
    """(prompt, response) of a record with a response, without a template; together they are its text."""
    if "messages" not in said:
        prompt, response = said["prompt"], said["response"]
    else:
        prompt, response = plain_prompt(said["messages"][:-1]), said["messages"][-1]["content"]
    return prompt, _spaced(prompt, response)


def plain_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """One turn needs no names; in a longer talk the names tell who spoke."""
    if sum(message["role"] != "system" for message in messages) <= 1:
        return "\n\n".join(message["content"] for message in messages)
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


def _spaced(prompt: str, response: str) -> str:
    apart = not prompt or prompt[-1].isspace() or response[:1].isspace()
    return response if apart else " " + response


def _moved(prompt: str, response: str) -> tuple[str, str, list[str]]:
    """White space at the prompt's end given to the response, and the note of it."""
    words = prompt.rstrip()
    return words, prompt[len(words) :] + response, [SPACE_MOVED] if words != prompt else []


# -- chat ------------------------------------------------------------------------------------------------------------


def _chat(
    messages: Sequence[Mapping[str, Any]], codec: Codec, tokenizer: Any, rendering: Rendering, name: str
) -> tuple[str, str]:
    """Prompt and response of a talk."""

    def text(messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        return codec.named(_apply(tokenizer, messages, rendering, name, **options))

    # Templates that can think open an empty thought when asked not to; then the response is the answer alone. When the
    # response brings its own thought, the template puts it where the empty one was, and thinking must be on.
    given = "enable_thinking" in rendering.options
    for thinking in ({},) if given else ({"enable_thinking": False}, {"enable_thinking": True}):
        prompt = text(messages[:-1], add_generation_prompt=True, **thinking)
        full = text(messages, add_generation_prompt=False, **thinking)
        if full.startswith(prompt):
            response = full[len(prompt) :]
            words = codec.named(messages[-1]["content"]).strip()
            # Some templates open no turn when asked to: what they write before the words is none of the response.
            if response.lstrip().startswith(words) or prompt != text(messages[:-1], **thinking):
                return prompt, response
    full = text(messages, add_generation_prompt=False)
    other = text([*messages[:-1], {**messages[-1], "content": _OTHER_ANSWER}], add_generation_prompt=False)
    if _OTHER_ANSWER not in other:
        raise UserError(f"{name}: the chat template does not write the last message; take template = plain")
    start = codec.whole(os.path.commonprefix([full, other]))
    return full[:start], full[start:]


def _apply(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], rendering: Rendering, name: str, **options: Any
) -> str:
    given = {key: value for key, value in rendering.options.items() if key not in ("chat_template", "system")}
    template = _template_text(tokenizer, rendering.options)
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=_CLOCK + template if "strftime_now" in template else template,
            tokenize=False,
            **({"date_string": _DAY} | given | options),
        )
    except Exception as error:  # a template is a program, and raises what it likes
        why = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"{name}: the chat template refuses the messages ({why}); correct them or take template = plain"
        ) from None


def _template_text(tokenizer: Any, options: Mapping[str, Any]) -> str:
    """The chat template: the tokenizer's, the one of several that the options name, or another."""
    own, chosen = tokenizer.chat_template, options.get("chat_template")
    if isinstance(own, Mapping):
        name = chosen or ("tool_use" if options.get("tools") and "tool_use" in own else "default")
        if name in own:
            return own[name]
        if chosen is None:
            raise UserError(
                f"the tokenizer has chat templates named {', '.join(sorted(own))} and none is the default;"
                f" name one: template_options: {{chat_template: {sorted(own)[0]}}}"
            )
    if chosen is None:
        return own
    if _is_template(chosen):
        return chosen
    try:
        return Path(chosen).expanduser().read_text("utf8")
    except (OSError, ValueError, RuntimeError):  # the last where ~name is nobody's folder
        known = f"; the tokenizer's own are {', '.join(sorted(own))}" if isinstance(own, Mapping) else ""
        raise UserError(
            f"chat_template {shown(chosen)} is no template's name and no file that can be read{known}; correct it"
        ) from None


def template_file(options: Mapping[str, Any]) -> Path | None:
    """The file that options name as the chat template, if it is one: its content decides what a model reads."""
    chosen = options.get("chat_template")
    if not isinstance(chosen, str) or _is_template(chosen):
        return None
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = Path(chosen).expanduser()
        return path if path.is_file() else None
    return None


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text


# -- a record's words ------------------------------------------------------------------------------------------------


def _said(record: Mapping[str, Any], codec: Codec, rendering: Rendering) -> dict[str, Any]:
    """What the template is given of a record. Keys without a value count as absent, and a record that is a question
    gets a last message for the answer."""
    said: dict[str, Any] = {key: record[key] for key in ("prompt", "response", "messages", "choices") if key in record}
    if "messages" in said:
        talk = [{key: value for key, value in message.items() if value is not None} for message in said["messages"]]
        said["messages"] = talk if talk[-1]["role"] == "assistant" else [*talk, _message("assistant", "")]
    said.setdefault("response", "")
    return without_marks(said) if rendering.control_tokens == "keep" else codec.protect(said)


def _without_end(record: Mapping[str, Any], eos: str) -> Mapping[str, Any]:
    """The record without an EOS token that its response is already closed with."""
    if "messages" not in record:
        return {**record, "response": record["response"].removesuffix(eos)}
    *before, last = record["messages"]
    return {**record, "messages": [*before, {**last, "content": last["content"].removesuffix(eos)}]}


def _words(record: Mapping[str, Any]) -> list[Any]:
    """Everything in a record that becomes text."""
    return [record[key] for key in ("prompt", "response", "messages") if key in record]


def _messages(said: Mapping[str, Any], rendering: Rendering) -> list[dict[str, Any]]:
    """The talk, with the system message of the options where it has none."""
    pair = [_message("user", said["prompt"]), _message("assistant", said["response"])] if "prompt" in said else []
    talk = list(said.get("messages", pair))
    system = rendering.options.get("system")
    if system and all(message["role"] != "system" for message in talk):
        talk.insert(0, _message("system", system))
    return talk


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
