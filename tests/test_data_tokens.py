"""Token rows: one BOS, a span that predicts the response, what is cut and what is dropped, order, and given rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from real_tokenizers import real_tokenizer
from small_tokenizers import CHAT, CHAT_WITH_BOS, byte_tokenizer

from ntk_jax.data import tokens
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.control import Codec, Encoding
from ntk_jax.data.statistics import DataStatistics
from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import ChoiceRow, Dropped, as_rows, encode, encode_choices
from ntk_jax.errors import UserError

PLAIN, BOS, CHATTY = byte_tokenizer(), byte_tokenizer(adds_bos=True), byte_tokenizer(chat=CHAT)
BOTH = byte_tokenizer(chat=CHAT_WITH_BOS, adds_bos=True)


def record(prompt: str = "How?", response: str = "So.", name: str = "a", **extra: Any) -> dict[str, Any]:
    return {"id": name, "source": "s", "prompt": prompt, "response": response} | extra


def row_of(*args: Any, **options: Any) -> TokenRow:
    row = encode(*args, **options)
    assert isinstance(row, TokenRow)
    return row


def predicted(tokenizer: Any, row: TokenRow) -> str:
    """The text of the tokens that the span predicts."""
    return tokenizer.decode(row.ids[1:][row.span[:-1]])


def test_the_span_predicts_the_response() -> None:
    row = row_of(record(), PLAIN)
    assert row.ids.dtype == np.int32 and row.span.dtype == bool and row.id == "a" and not row.truncated
    assert PLAIN.decode(row.ids) == "How? So.<eos>"
    assert predicted(PLAIN, row) == " So.<eos>"
    assert not row.span[-1]
    np.testing.assert_array_equal(np.flatnonzero(row.span), np.arange(3, 8))
    assert predicted(CHATTY, row_of(record(), CHATTY)) == "So.<|end|>"


def test_the_other_spans() -> None:
    assert row_of(record(), PLAIN, span="all").span.all()
    last = row_of(record(), PLAIN, span="last").span
    assert last[-1] and last.sum() == 1


def test_one_bos_and_never_two() -> None:
    bos = BOS.bos_token_id
    assert list(row_of(record(), PLAIN).ids).count(bos) == 0
    row = row_of(record(), BOS)
    assert row.ids[0] == bos and list(row.ids).count(bos) == 1
    assert predicted(BOS, row) == " So.<eos>"
    kept = Rendering(control_tokens="keep")
    assert list(row_of(record(prompt="<bos>How?"), BOS, rendering=kept).ids) == list(row.ids)
    row = row_of(record(), BOTH)
    assert row.ids[0] == bos and list(row.ids).count(bos) == 1
    assert predicted(BOTH, row) == "So.<|end|>"
    choices = encode_choices(record(choices=["x", "y"], answer=0), BOTH)
    assert isinstance(choices, ChoiceRow) and list(choices.prompt).count(bos) == 1 and choices.prompt[0] == bos


def test_an_empty_prompt_is_predicted_from_the_bos() -> None:
    row = row_of(record(prompt=""), BOS)
    assert predicted(BOS, row) == "So.<eos>"
    # without a BOS nothing predicts the first token, so the span begins at the first one that can be predicted
    assert predicted(PLAIN, row_of(record(prompt=""), PLAIN)) == "o.<eos>"


def test_no_response_tokens() -> None:
    for tokenizer in (PLAIN, CHATTY):
        assert encode(record(response=" "), tokenizer) == Dropped("no response tokens", "a")
    assert isinstance(encode(record(response=""), PLAIN, span="all"), TokenRow)
    assert encode(record(prompt="", response=""), PLAIN, span="all", rendering=Rendering(add_eos=False)) == Dropped(
        "no response tokens", "a"
    )


def test_too_long_is_dropped_or_cut() -> None:
    whole = row_of(record("abcdefgh", "12"), BOS)  # <bos>abcdefgh 12<eos>: 13 tokens
    assert len(whole.ids) == 13
    assert encode(record("abcdefgh", "12"), BOS, max_length=12) == Dropped("too long", "a")
    assert not row_of(record("abcdefgh", "12"), BOS, max_length=13).truncated

    def cut(max_length: int, span: str = "response") -> tuple[str, str]:
        row = row_of(record("abcdefgh", "12"), BOS, max_length=max_length, overflow="truncate", span=span)
        assert row.truncated and len(row.ids) == max_length
        return BOS.decode(row.ids), predicted(BOS, row)

    assert cut(10) == ("<bos>defgh 12<eos>", " 12<eos>")  # from the start of the prompt, after the BOS
    assert cut(6) == ("<bos>h 12<eos>", " 12<eos>")  # one prompt token stays
    assert cut(5) == ("<bos>h 12", " 12")  # then from the end of the response
    assert cut(3) == ("<bos>h ", " ")
    assert cut(5, "all") == ("<bos>h 12", "h 12")
    last = row_of(record("abcdefgh", "12"), BOS, max_length=4, overflow="truncate", span="last")
    np.testing.assert_array_equal(last.span, [False, False, False, True])
    dropped = encode(record("abcdefgh", "12"), BOS, max_length=2, overflow="truncate")
    assert dropped == Dropped("too long", "a")  # nothing is left to predict


@settings(max_examples=80, deadline=None)
@example(" a", "x", 4, "response", BOS)  # space before the words is theirs, not the template's
@example(" a ", "x", 4, "response", BOS)  # also where the space behind them goes to the response
@given(
    st.text("ab é漢", max_size=12),
    st.text("xy é漢", max_size=12),
    st.integers(2, 30),
    st.sampled_from(["response", "all", "last"]),
    st.sampled_from([PLAIN, BOS, CHATTY, BOTH]),
)
def test_truncation(prompt: str, response: str, max_length: int, span: str, tokenizer: Any) -> None:
    whole = encode(record(prompt, response), tokenizer, span=span)
    row = encode(record(prompt, response), tokenizer, max_length=max_length, overflow="truncate", span=span)
    if isinstance(whole, Dropped) or isinstance(row, Dropped):
        assert isinstance(row, Dropped)
        return
    assert row.truncated == (len(whole.ids) > max_length)
    assert len(row.ids) == len(row.span) == min(len(whole.ids), max_length)
    assert row.span.any() and row.span[-1] == (span != "response")
    if span == "response":
        old, new = (list(r.ids[1:][r.span[:-1]]) for r in (whole, row))
        assert new == old[: len(new)] and new
        if len(new) < len(old):  # the response is cut only where the prompt can give no more
            frame = np.argmax(whole.span) + 1 - len(tokenizer(prompt.strip(), add_special_tokens=False)["input_ids"])
            assert np.argmax(row.span) <= max(frame - 1, 1)
    drop = encode(record(prompt, response), tokenizer, max_length=max_length, span=span)
    assert (drop == Dropped("too long", "a")) == row.truncated


def test_a_cut_prompt_keeps_what_the_template_puts_around_it() -> None:
    long = record("abcdefgh", "12")
    row = row_of(long, CHATTY, max_length=9, overflow="truncate")
    assert CHATTY.decode(row.ids) == "<|user|>fgh<|end|><|assistant|>12<|end|>"
    row = encode_choices(long | {"choices": ["12", "3"], "answer": 0}, CHATTY, max_length=9, overflow="truncate")
    assert isinstance(row, ChoiceRow) and row.truncated and len(row.prompt) == 7
    assert CHATTY.decode(row.prompt) == "<|user|>efgh<|end|><|assistant|>"
    talk = {"id": "t", "source": "s", "messages": [
        {"role": "system", "content": "abcdefgh"}, {"role": "user", "content": "q?"},
        {"role": "assistant", "content": "12"}]}  # fmt: skip
    row = row_of(talk, CHATTY, max_length=14, overflow="truncate")
    assert CHATTY.decode(row.ids).startswith("<|system|>") and "q?<|end|><|assistant|>12" in CHATTY.decode(row.ids)


def test_choices_are_the_choice_texts_only() -> None:
    question = record(choices=["yes", "no!"], answer=0)
    row = encode_choices(question, BOS)
    assert isinstance(row, ChoiceRow) and row.id == "a" and row.tokens == 5 + 4 + 4
    assert [BOS.decode(part) for part in (row.prompt, *row.choices)] == ["<bos>How?", " yes", " no!"]
    row = encode_choices(question, CHATTY)
    assert isinstance(row, ChoiceRow)
    assert [CHATTY.decode(part) for part in (row.prompt, *row.choices)] == [
        "<|user|>How?<|end|><|assistant|>",
        "yes",
        "no!",
    ]
    # the same tokens that training sees, up to the end of the answer
    trained = row_of(record(response="yes"), CHATTY)
    np.testing.assert_array_equal(trained.ids[:-1], np.r_[row.prompt, row.choices[0]])
    lead = byte_tokenizer(chat=CHAT.replace("|>{{ m", "|>{{ '<think></think>' if m['role'] == 'assistant' }}{{ m"))
    row = encode_choices(question, lead)
    assert isinstance(row, ChoiceRow)
    assert lead.decode(row.prompt).endswith("<|assistant|><think></think>")
    assert [lead.decode(choice) for choice in row.choices] == ["yes", "no!"]


def test_choices_that_do_not_fit() -> None:
    question = record("abcdef", choices=["x", "yyy"], answer=0)  # <bos>abcdef and " yyy": 11 tokens
    assert isinstance(encode_choices(question, BOS, max_length=11), ChoiceRow)
    assert encode_choices(question, BOS, max_length=10) == Dropped("too long", "a")
    row = encode_choices(question, BOS, max_length=8, overflow="truncate")
    assert isinstance(row, ChoiceRow) and BOS.decode(row.prompt) == "<bos>def" and row.truncated
    assert encode_choices(question, BOS, max_length=5, overflow="truncate") == Dropped("too long", "a")
    assert encode_choices(question | {"prompt": ""}, PLAIN) == Dropped("no prompt tokens", "a")
    with pytest.raises(UserError, match='a: the record has no "choices"; multiple choice needs "choices" and "answer"'):
        encode_choices(record(), PLAIN)


def test_rows_come_in_order_in_batches_equal_to_single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record("q" * (i % 7), "a" * (i % 3), f"r{i}") for i in range(50)]
    calls = []
    original = Codec.encode

    def counted(codec: Codec, texts: list[str]) -> list[Encoding]:
        calls.append(len(texts))
        return original(codec, texts)

    monkeypatch.setattr(Codec, "encode", counted)
    monkeypatch.setattr(tokens, "ENCODE_BATCH", 16)
    found = list(as_rows(iter(records), BOS, max_length=9))
    assert calls == [16, 16, 16, 2]
    assert [r["id"] for r, _ in found if r] == [r["id"] for r in records]
    for source, (_, row) in zip(records, found, strict=True):
        single = encode(source, BOS, max_length=9)
        assert type(row) is type(single) and row.id == source["id"]
        if isinstance(row, TokenRow) and isinstance(single, TokenRow):
            np.testing.assert_array_equal(row.ids, single.ids)
            np.testing.assert_array_equal(row.span, single.span)
        else:
            assert row == single


def test_rows_from_a_path_and_from_several(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record(name=name)) + "\n")
    assert [r["id"] for r, _ in as_rows(tmp_path / "x.jsonl", PLAIN) if r] == ["x"]
    assert [r["id"] for r, _ in as_rows(str(tmp_path / "*.jsonl"), PLAIN) if r] == ["x", "y"]
    assert [r["id"] for r, _ in as_rows([str(tmp_path / "y.jsonl"), tmp_path / "x.jsonl"], PLAIN) if r] == ["y", "x"]
    assert [r["id"] for r, _ in as_rows(record(name="one"), PLAIN) if r] == ["one"]


def test_a_text_longer_than_the_tokenizer_likes_is_no_warning() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 4
    assert len(row_of(record(), tokenizer).ids) == 9


def test_given_token_rows() -> None:
    given_row = TokenRow(np.array([1, 2, 3], np.int32), np.array([False, True, False]), "mine")
    mapping = {"input_ids": [1, 2, 3], "span": [0, 1, 0]}
    found = [row for _, row in as_rows([given_row, mapping], vocab_size=4)]
    assert all(isinstance(row, TokenRow) for row in found)
    for row in found:
        assert isinstance(row, TokenRow) and row.ids.dtype == np.int32 and row.span.dtype == bool
        np.testing.assert_array_equal(row.ids, [1, 2, 3])
        np.testing.assert_array_equal(row.span, [0, 1, 0])
    assert [row.id for row in found] == ["mine", "1"]
    assert [r for r, _ in as_rows([given_row])] == [None]
    ((_, row),) = as_rows([{"input_ids": [1, 2]}], span="all")
    assert isinstance(row, TokenRow) and row.span.all()
    ((_, row),) = as_rows(
        [{"input_ids": range(9), "span": [0, 0, 0, 1, 1, 1, 1, 1, 0]}], max_length=5, overflow="truncate"
    )
    assert isinstance(row, TokenRow) and row.truncated
    np.testing.assert_array_equal(row.ids, [3, 4, 5, 6, 7])
    np.testing.assert_array_equal(row.span, [1, 1, 1, 1, 0])
    assert list(as_rows([{"input_ids": [1, 2], "span": [0, 0]}])) == [(None, Dropped("no response tokens", "0"))]
    assert list(as_rows([{"input_ids": [1, 2], "span": [1, 0]}] * 2, max_length=2))  # ids may repeat: they are ordinals


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        (
            [{"input_ids": [1, 9], "span": [1, 0]}],
            {"vocab_size": 9},
            "example 0: token id 9 at position 1 is outside the",
        ),
        (
            [{"input_ids": [1, -1], "span": [1, 0]}],
            {},
            "example 0: token id -1 at position 1 is outside the vocabulary",
        ),
        ([{"input_ids": [1, 999], "span": [1, 0]}], {"tokenizer": PLAIN}, "(the vocabulary has 264); correct the row"),
        ([{"input_ids": [1, 2], "span": [1]}], {}, "example 0: span must be a list of 0 and 1, one for each of the 2"),
        ([{"input_ids": [1, 2], "span": [1, 2]}], {}, "example 0: span must be a list of 0 and 1"),
        ([{"input_ids": [1, 2]}], {}, 'example 0: the token row has no "span"; mark the positions that count'),
        ([{"input_ids": []}], {"span": "all"}, "example 0: input_ids must be a list of token ids, at least one"),
        ([{"input_ids": [0.5]}], {"span": "all"}, "example 0: input_ids must be a list of token ids"),
        ([{"input_ids": [[1], [1, 2]]}], {"span": "all"}, "example 0: input_ids must be a list of token ids"),
        ([{"input_ids": [1, 2], "span": [1, 0]}, record()], {}, "example 1: token rows and records cannot be mixed"),
        ([record(), {"input_ids": [1, 2], "span": [1, 0]}], {"tokenizer": PLAIN}, 'has no "prompt"'),
        ([], {}, "there are no examples: the list is empty"),
        ([record()], {}, "these examples are text, but no tokenizer is given"),
        ([record()], {"tokenizer": PLAIN, "span": "some"}, "span 'some' is not one of response, all, last"),
        ([record()], {"tokenizer": PLAIN, "overflow": "wrap"}, "overflow 'wrap' is not one of drop, truncate"),
        ([record()], {"tokenizer": PLAIN, "max_length": 1}, "max_length is 1; an example needs at least 2 tokens"),
    ],
)
def test_bad_examples(examples: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        list(as_rows(examples, **options))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_statistics() -> None:
    statistics = DataStatistics()
    examples = [
        record("q", "a" * n, f"r{n}", task="long" if n > 3 else "short") for n in range(8)
    ]  # n = 0 has no response, the others q, space, n letters, EOS
    for r, row in as_rows(examples, PLAIN, max_length=9, overflow="truncate"):
        statistics.add(r, row)
    for r, row in as_rows([record("q", "a" * 20, "big")], PLAIN, max_length=9):
        statistics.add(r, row)
    statistics.add(None, TokenRow(np.arange(4, dtype=np.int32), np.array([True, False, False, False])))
    lengths = [3 + n for n in range(1, 7)] + [9, 4]
    assert statistics.to_dict() == {
        "records": 10,
        "kept": 8,
        "truncated": 1,
        "dropped": {"no response tokens": 1, "too long": 1},
        "notes": {},
        "tokens": sum(lengths),
        "span_tokens": sum(n - 1 for n in lengths[:-1]) + 1,
        "lengths": {"5": 4, "25": 4, "50": 6, "75": 8, "95": 9, "max": 9},
        "span_lengths": {"5": 1, "25": 3, "50": 5, "75": 7, "95": 8, "max": 8},
        "families": {"long": 4, "short": 3},
    }
    assert DataStatistics().to_dict()["lengths"] == {}


@pytest.mark.parametrize("name", ["llama3", "qwen2.5", "smollm2"])
def test_real_tokenizers(shared: Path, name: str) -> None:
    tokenizer = real_tokenizer(shared / "data" / "tokenizers" / name)
    row = row_of(record("What is 2+2?", "It is 4, naïve 漢."), tokenizer)
    assert predicted(tokenizer, row).strip("\n") == {
        "llama3": " It is 4, naïve 漢.<|eot_id|>",
    }.get(name, "It is 4, naïve 漢.<|im_end|>")
    bos = [tokenizer.bos_token_id] if name == "llama3" else []
    assert list(row.ids[: len(bos)]) == bos
    if name == "llama3":
        assert list(row.ids).count(tokenizer.bos_token_id) == 1
        assert row.ids[0] != row.ids[1]
    else:  # the template's own text, tokenised in one piece, gives the same prompt
        talk = [{"role": "user", "content": "What is 2+2?"}]
        prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        assert list(row.ids[: len(prompt)]) == list(prompt)
        assert np.argmax(row.span) == len(prompt) - 1
    choices = encode_choices(record(choices=["yes", "no"], answer=0), tokenizer)
    assert isinstance(choices, ChoiceRow)
    space = " " if name == "llama3" else ""
    assert [tokenizer.decode(c) for c in choices.choices] == [space + "yes", space + "no"]
    assert [len(c) for c in choices.choices] == [1, 1]
