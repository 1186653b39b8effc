"""Tokenizers, prompts and chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import (
    CHAT,
    CHAT_FORGETTING,
    CHAT_IN_WORDS,
    CHAT_ON_LINES,
    CHAT_THINKING,
    CHAT_WITH_BOS,
    byte_tokenizer,
    learnt_tokenizer,
)

from files_found.case import Case
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import check_record
from ntk_jax.data.templates import Rendering, render
from ntk_jax.data.tokens import CONTROL_IN_TEXT, Dropped, encode
from ntk_jax.errors import UserError

TITLE = "Tokenizers, prompts and templates"


def _record(prompt: str = "Lily said", response: str = "thank you", **more: Any) -> dict[str, Any]:
    return check_record({"id": "a", "source": "s", "prompt": prompt, "response": response, **more}, "here")


def _talk(**keys: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "How?", **keys}, {"role": "assistant", "content": "So.", **keys}]
    return {"id": "a", "source": "s", "messages": messages}


def _row(tokenizer: Any, record: dict[str, Any], **rendering: Any) -> TokenRow:
    row = encode(record, tokenizer, rendering=Rendering(**rendering))
    assert isinstance(row, TokenRow), row
    return row


def _counted(tokenizer: Any, row: TokenRow) -> list[str]:
    return tokenizer.convert_ids_to_tokens(row.ids[1:][row.span[:-1]])


def _sentencepiece(_: Path) -> None:
    for kind in ("prepend", "metaspace first", "metaspace always"):
        tokenizer = learnt_tokenizer(kind)
        assert _counted(tokenizer, _row(tokenizer, _record()))[0].startswith("\u2581t")
    for template in (CHAT_IN_WORDS, CHAT_ON_LINES):
        tokenizer = learnt_tokenizer("prepend", chat=template)
        row = _row(tokenizer, _record())
        whole = "".join(render(_record(), tokenizer, Rendering()))
        assert row.ids.tolist() == tokenizer(whole, add_special_tokens=not whole.startswith("<bos>"))["input_ids"]


def _straddling(_: Path) -> None:
    tokenizer = learnt_tokenizer("byte level", chat=CHAT_ON_LINES)
    assert _counted(tokenizer, _row(tokenizer, _record("a", "\n\n the")))[0] == "\u010a" * 3


def _trailing_space(_: Path) -> None:
    tokenizer = learnt_tokenizer("byte level")
    row = _row(tokenizer, _record("Answer: "))
    assert row.ids.tolist() == _row(tokenizer, _record("Answer:")).ids.tolist()
    assert _counted(tokenizer, row)[0].startswith("\u0120") and row.notes


def _slow(_: Path) -> None:
    class Slow(dict[str, Any]):
        chat_template = None
        __hash__ = object.__hash__  # type: ignore[assignment]

    with pytest.raises(UserError, match="does not say where its tokens lie"):
        encode(_record(), Slow())


def _control(_: Path) -> None:
    tokenizer, record = byte_tokenizer(chat=CHAT), _record("quote: <|end|><|assistant|>")
    ends = tokenizer.convert_tokens_to_ids("<|end|>")
    assert _row(tokenizer, record).ids.tolist().count(ends) == 2
    assert _row(tokenizer, record, control_tokens="keep").ids.tolist().count(ends) == 3
    dropped = encode(record, tokenizer, rendering=Rendering(control_tokens="drop"))
    assert dropped == Dropped(CONTROL_IN_TEXT, "a")


def _closed(_: Path) -> None:
    tokenizer = byte_tokenizer()
    assert (
        _row(tokenizer, _record(response="So.<eos>")).ids.tolist()
        == _row(tokenizer, _record(response="So.")).ids.tolist()
    )


def _bos(_: Path) -> None:
    tokenizer = byte_tokenizer(chat=CHAT_WITH_BOS, adds_bos=True)
    assert _row(tokenizer, _record()).ids.tolist().count(tokenizer.bos_token_id) == 1


def _no_template(_: Path) -> None:
    assert render(_record(), byte_tokenizer(), Rendering()) == ("Lily said", " thank you<eos>")
    with pytest.raises(UserError, match="has no chat template"):
        render(_record(), byte_tokenizer(), Rendering("chat"))


def _thinking(_: Path) -> None:
    tokenizer = byte_tokenizer(chat=CHAT_THINKING)
    assert render(_record(), tokenizer, Rendering())[0].endswith("<think></think>")
    assert render(_record(response="<think>Hm.</think>So."), tokenizer, Rendering())[1].startswith("<think>Hm.")


def _forgetting(_: Path) -> None:
    tokenizer = byte_tokenizer(chat=CHAT_FORGETTING)
    thought = _record(response="<think>Hm.</think>So.")
    for record in (thought, _record(response="So.")):
        assert render(record, tokenizer, Rendering()) == ("<bos><|user|>Lily said<|assistant|>", "So.<|end|>")
    assert _row(tokenizer, thought).notes and not _row(tokenizer, _record()).notes


def _named(_: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"tool_use": "T" + CHAT, "rag": "R" + CHAT}
    assert render(_record(), tokenizer, Rendering(options={"chat_template": "rag"}))[0].startswith("R")
    assert render(_record(), tokenizer, Rendering(options={"tools": [{}]}))[0].startswith("T")
    with pytest.raises(UserError, match="rag, tool_use"):
        render(_record(), tokenizer, Rendering())


def _raising(_: Path) -> None:
    for template in ("{{ raise_exception('no\nsystem') }}", "{{ 1 / 0 }}", "{% for", "{{ messages[9].x.y }}"):
        with pytest.raises(UserError, match="a: the chat template refuses the messages") as error:
            render(_record(), byte_tokenizer(chat=template), Rendering())
        assert "\n" not in str(error.value)


def _mute(_: Path) -> None:
    with pytest.raises(UserError, match="does not write the last message"):
        render(_record(), byte_tokenizer(chat="{{ messages[0].content }}{{ messages | length }}"), Rendering())


def _null_keys(_: Path) -> None:
    template = "{% for m in messages %}{% if 'tool_calls' in m %}{{ m.tool_calls | length }}{% endif %}{% endfor %}"
    assert render(_talk(tool_calls=None), byte_tokenizer(chat=template + CHAT), Rendering())[1] == "So.<|end|>"


def _options(folder: Path) -> None:
    asks = "{{ documents | length }}{{ tools | length }}" + CHAT
    options: dict[str, Any] = {"documents": [{}, {}], "tools": [{}]}
    assert render(_record(), byte_tokenizer(chat=asks), Rendering(options=options))[0].startswith("21")
    system = Rendering(options={"system": "Be brief."})
    assert render(_record(), byte_tokenizer(chat=CHAT), system)[0].startswith("<|system|>Be brief.")
    (folder / "own.jinja").write_text("F" + CHAT)
    own = Rendering(options={"chat_template": str(folder / "own.jinja")})
    assert render(_record(), byte_tokenizer(), own)[0].startswith("F")


def _day(_: Path) -> None:
    today = byte_tokenizer(chat="{{ strftime_now('%Y-%m-%d') }}" + CHAT)
    assert render(_record(), today, Rendering())[0].startswith("2024-07-26")


def _empty_prompt(_: Path) -> None:
    assert render(_record("", "A page."), byte_tokenizer(chat=CHAT), Rendering()) == ("", "A page.<eos>")


CASES = [
    Case(
        "SentencePiece-type tokenizers (Llama 2, Mistral: `Prepend`, `Metaspace`)",
        "prompt and response are tokenised as one text: no stray `▁` before a response",
        _sentencepiece,
    ),
    Case(
        "a token that holds the end of the prompt and the start of the response",
        "predicted with the response",
        _straddling,
    ),
    Case("a tokenizer without `tokenizer.json`", "refused: its tokens have no places in the text", _slow),
    Case(
        "a plain prompt that ends in white space",
        "the white space goes to the response or the choices; counted",
        _trailing_space,
    ),
    Case(
        "control tokens spelled in a record's text",
        "text; `model.control_tokens: keep` takes them for real, `drop` leaves the record out; counted",
        _control,
    ),
    Case("a plain response closed with the EOS token", "closed once", _closed),
    Case("a chat template that writes the BOS which the tokenizer adds too", "one BOS", _bos),
    Case("no chat template", '`prompt + " " + response + EOS`; `model.template: chat` is refused', _no_template),
    Case(
        "a template that can think (Qwen3)",
        "an empty thought before an answer without one; a response's own thought is part of the response",
        _thinking,
    ),
    Case(
        "a template that rewrites the finished turn (DeepSeek-R1: thoughts are cut)",
        "the response is what the finished talk holds behind the prompt; changed responses are counted",
        _forgetting,
    ),
    Case(
        "several named templates",
        "`default`, or `tool_use` with tools, or `model.template_options: {chat_template: NAME}`",
        _named,
    ),
    Case("a template that raises any error", "refused in one line with the record's id", _raising),
    Case("a template that does not write the last message", "refused", _mute),
    Case("null-valued keys in a message", "as if absent", _null_keys),
    Case(
        "`tools`, `documents`, `enable_thinking`, a system prompt, a template file",
        "`model.template_options`",
        _options,
    ),
    Case("a template that prints today's date", "always 26 July 2024", _day),
    Case("an empty prompt", "text of nobody's turn: no chat template, the whole text is the response", _empty_prompt),
]
