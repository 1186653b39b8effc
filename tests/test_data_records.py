"""What a record may be, and the one line that says what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from ntk_jax.data.records import check_record, family_of, prompt_text, response_text
from ntk_jax.errors import UserError

GOOD = {"id": "a", "source": "s", "prompt": "q", "response": "r"}
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]


def test_extra_keys_are_carried_through_untouched() -> None:
    record = GOOD | {"task": "t", "score": 1.5, "nothing": None, "answer": "free text without choices"}
    assert check_record(record, "f:1") == record
    assert check_record(record, "f:1") is not record


def test_id_and_source_are_filled_in() -> None:
    record = check_record({"prompt": "q", "response": "r"}, "f:7", default_id="f-7", default_source="f")
    assert record == {"id": "f-7", "source": "f", "prompt": "q", "response": "r"}
    assert check_record(GOOD | {"id": 12}, "f:1")["id"] == "12"


def test_null_counts_as_absent_under_known_keys() -> None:
    record = check_record(GOOD | {"messages": None, "choices": None, "answer": None}, "f:1")
    assert record == GOOD


def test_a_choice_record_needs_no_response() -> None:
    record = check_record({"id": "a", "source": "s", "prompt": "q", "choices": ["x", "y"], "answer": 1}, "f:1")
    assert record["response"] == "y"


def test_messages_may_end_with_the_question_where_there_are_choices() -> None:
    record = {"id": "a", "source": "s", "messages": TALK[:1], "choices": ["x", "y"], "answer": 0}
    checked = check_record(record, "f:1")
    assert checked == {**record, "messages": [*TALK[:1], {"role": "assistant", "content": "x"}]}
    assert (prompt_text(checked), response_text(checked)) == ("q", "x")
    assert len(record["messages"]) == 1, "the user's own object stays as it is"


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in GOOD.items() if k != key}


BAD = [
    ([1], "f:3: a record is a JSON object, found a list; put one object on each line"),
    (None, "f:3: a record is a JSON object, found null"),
    ("text", "f:3: a record is a JSON object, found a text"),
    (without("id"), 'f:3: the record has no "id"; give it one'),
    (
        without("response"),
        'f:3: the record has no "response"; a record is {"prompt", "response"} or {"messages"}; keys',
    ),
    (without("prompt") | {"instruction": "q"}, "keys found: id, instruction, response, source"),
    (GOOD | {"prompt": 5}, 'f:3: "prompt" must be text, got 5'),
    (GOOD | {"response": ["r"]}, "f:3: \"response\" must be text, got ['r']"),
    (GOOD | {"id": ""}, 'f:3: "id" is empty'),
    (GOOD | {"id": True}, 'f:3: "id" must be text, got True'),
    (GOOD | {"source": 1.5}, 'f:3: "source" must be text, got 1.5'),
    (GOOD | {"prompt": "half \ud83d"}, 'f:3: "prompt" holds half a surrogate pair'),
    (GOOD | {"messages": TALK}, 'f:3: the record has both "messages" and "prompt"; keep one of them'),
    ({"id": "a", "source": "s", "messages": []}, 'f:3: "messages" must be a list of {"role", "content"}, got []'),
    ({"id": "a", "source": "s", "messages": ["q"]}, "f:3: each of \"messages\" must be an object, got 'q'"),
    ({"id": "a", "source": "s", "messages": [{"role": "user"}]}, 'f:3: a message has no "content"'),
    ({"id": "a", "source": "s", "messages": TALK[:1]}, "f:3: the last message is the user's; end with the assistant's"),
    ({"id": "a", "source": "s", "messages": TALK[1:]}, 'f:3: "messages" holds the response only'),
    (
        {"id": "a", "source": "s", "messages": [{"role": "user", "content": [{"type": "text"}]}, TALK[1]]},
        'f:3: "messages.content" must be text',
    ),
    (GOOD | {"choices": ["only"], "answer": 0}, 'f:3: "choices" must be a list of at least two texts'),
    (GOOD | {"choices": "xy", "answer": 0}, 'f:3: "choices" must be a list of at least two texts'),
    (GOOD | {"choices": ["x", True], "answer": 0}, 'f:3: "choices" must be text, got True'),
    (GOOD | {"choices": ["x", " "], "answer": 0}, 'f:3: "choices" holds an empty text'),
    (GOOD | {"choices": ["x", "y"]}, 'f:3: the record has "choices" but no "answer"'),
    (GOOD | {"choices": ["x", "y"], "answer": "z"}, 'f:3: "answer" must be the index of the right choice'),
    (GOOD | {"choices": ["x", "y"], "answer": True}, 'f:3: "answer" must be the index of the right choice'),
    (GOOD | {"choices": ["x", "y"], "answer": 2}, 'f:3: "answer" is 2, but there are 2 choices, counted from 0'),
    (GOOD | {"choices": ["x", "y"], "answer": -1}, 'f:3: "answer" is -1, but there are 2 choices'),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_record_is_named(record: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_record(record, "f:3")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_families() -> None:
    assert family_of(GOOD) == "s"
    assert family_of(GOOD | {"task": "t"}) == "t"
    assert family_of(GOOD | {"task": "t"}, "source") == "s"
    assert family_of(GOOD | {"level": 3}, "level") == "3"
    assert family_of(GOOD, "level") == "(none)"


def test_texts_for_people() -> None:
    assert (prompt_text(GOOD), response_text(GOOD)) == ("q", "r")
    record = {"id": "a", "messages": [{"role": "system", "content": "be brief"}, *TALK]}
    assert (prompt_text(record), response_text(record)) == ("system: be brief\nuser: q", "r")
