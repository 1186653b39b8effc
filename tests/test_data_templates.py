"""Two texts out of a record: with a chat template, without one, and when a template cannot be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from real_tokenizers import real_tokenizer
from small_tokenizers import CHAT, CHAT_THINKING, CHAT_WITH_BOS, byte_tokenizer

from ntk_jax.data import templates
from ntk_jax.data.control import codec_of
from ntk_jax.data.templates import Rendering, template_file, uses_chat
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.inputs import model_hashes
from ntk_jax.pipelines.common.sections import ModelSection


def render(record: Any, tokenizer: Any, template: str = "auto", add_eos: bool = True, **more: Any) -> tuple[str, str]:
    return templates.render(record, tokenizer, Rendering(template, add_eos, **more))


def render_choices(record: Any, tokenizer: Any, template: str = "auto", **more: Any) -> tuple[str, list[str]]:
    """As people read it."""
    prompt, choices, _ = templates.write_choices(record, tokenizer, Rendering(template, **more))
    readable = codec_of(tokenizer).readable
    return readable(prompt), [readable(choice) for choice in choices]


RECORD = {"id": "a", "source": "s", "prompt": "How?", "response": "So."}
CHOICES = RECORD | {"choices": ["yes", "no"], "answer": 0}
TALK = {
    "id": "t",
    "source": "s",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2"},
    ],
}


def test_plain() -> None:
    tokenizer = byte_tokenizer()
    assert render(RECORD, tokenizer) == ("How?", " So.<eos>")
    assert render(RECORD, tokenizer, add_eos=False) == ("How?", " So.")
    assert render(RECORD | {"prompt": "How?\n"}, tokenizer) == ("How?", "\nSo.<eos>")
    assert render(RECORD | {"response": "\nSo."}, tokenizer) == ("How?", "\nSo.<eos>")
    assert render(RECORD | {"response": "So.<eos>"}, tokenizer) == ("How?", " So.<eos>")
    assert render(RECORD | {"prompt": ""}, tokenizer) == ("", "So.<eos>")
    assert render(RECORD, byte_tokenizer(eos=False)) == ("How?", " So.")


def test_plain_messages() -> None:
    tokenizer = byte_tokenizer()
    short = TALK | {"messages": [TALK["messages"][0], *TALK["messages"][3:]]}
    assert render(short, tokenizer) == ("Be brief.\n\nTwo?", " 2<eos>")
    prompt, response = render(TALK, tokenizer)
    assert prompt == "System: Be brief.\n\nUser: One?\n\nAssistant: 1\n\nUser: Two?\n\nAssistant:"
    assert response == " 2<eos>"


def test_chat() -> None:
    tokenizer = byte_tokenizer(chat=CHAT)
    assert render(RECORD, tokenizer) == ("<|user|>How?<|end|><|assistant|>", "So.<|end|>")
    assert render(RECORD, tokenizer, "plain") == ("How?", " So.<eos>")
    prompt, response = render(TALK, tokenizer, "chat")
    assert (
        prompt == "<|system|>Be brief.<|end|><|user|>One?<|end|><|assistant|>1<|end|><|user|>Two?<|end|><|assistant|>"
    )
    assert response == "2<|end|>"


def test_a_template_that_strips_is_prefix_stable() -> None:
    tokenizer = byte_tokenizer(chat=CHAT_WITH_BOS)
    record = RECORD | {"response": "  So. "}
    assert render(record, tokenizer) == ("<bos><|user|>How?<|end|><|assistant|>", "So.<|end|>")


def test_thoughts_stay_out_of_the_response_unless_it_brings_one() -> None:
    tokenizer = byte_tokenizer(chat=CHAT_THINKING)
    assert render(RECORD, tokenizer) == ("<|user|>How?<|end|><|assistant|><think></think>", "So.<|end|>")
    record = RECORD | {"response": "<think>Hm.</think>So."}
    assert render(record, tokenizer) == ("<|user|>How?<|end|><|assistant|>", "<think>Hm.</think>So.<|end|>")
    prompt, texts = render_choices(CHOICES, tokenizer)
    assert (prompt, texts) == ("<|user|>How?<|end|><|assistant|><think></think>", ["yes", "no"])


def test_the_day_stands_still() -> None:
    today = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }} {{ strftime_now('%Y-%m-%d') }} " + CHAT
    )
    prompt, _ = render(RECORD, byte_tokenizer(chat=today))
    assert prompt == "26 Jul 2024 2024-07-26 <|user|>How?<|end|><|assistant|>"
    asks = "  {% set now = strftime_now('%A, %-d %B %Y') %}\n{{ now }}\n" + CHAT
    assert render(RECORD, byte_tokenizer(chat=asks))[0] == "Friday, 26 July 2024\n<|user|>How?<|end|><|assistant|>"


def test_choices() -> None:
    assert render_choices(CHOICES, byte_tokenizer()) == ("How?", [" yes", " no"])
    prompt, texts = render_choices(CHOICES, byte_tokenizer(chat=CHAT))
    assert (prompt, texts) == ("<|user|>How?<|end|><|assistant|>", ["yes", "no"])
    stripped = render_choices(CHOICES | {"choices": [" yes", "no"]}, byte_tokenizer(chat=CHAT_WITH_BOS))
    assert stripped[1] == ["yes", "no"]
    ends_with_question = {"id": "t", "messages": TALK["messages"][:4], "choices": ["x", "y"], "answer": 0}
    for tokenizer, texts in ((byte_tokenizer(), [" x", " y"]), (byte_tokenizer(chat=CHAT), ["x", "y"])):
        prompt, found = render_choices(ends_with_question, tokenizer)
        assert found == texts
        assert prompt == render_choices(TALK | {"choices": ["x", "y"], "answer": 0}, tokenizer)[0]


def test_a_lead_before_the_answer_is_told_apart() -> None:
    template = CHAT.replace("<|{{ m['role'] }}|>{{", "<|{{ m['role'] }}|>{{ 'Says: ' if m['role'] == 'assistant' }}{{")
    assert render_choices(CHOICES, byte_tokenizer(chat=template)) == (
        "<|user|>How?<|end|><|assistant|>Says: ",
        ["yes", "no"],
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages | length }}: {{ messages[0]['content'] }}",
            "a: the chat template does not write the last message",
        ),
        (
            "{{ raise_exception('roles must alternate') }}",
            "a: the chat template refuses the messages (roles must alter",
        ),
        ("{{ messages[0]['nothing'] + 'x' }}", "a: the chat template refuses the messages"),
        ("{% for", "a: the chat template refuses the messages"),
    ],
)
def test_templates_that_cannot_be_used(template: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        render(RECORD, byte_tokenizer(chat=template))
    assert message in str(error.value) and "take template = plain" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_template_that_changes_with_the_answer_has_no_choices() -> None:
    template = CHAT.replace("<|end|>", "{{ m['content'] | length }}")
    with pytest.raises(UserError, match="a: the chat template changes with the answer, so choices cannot share"):
        render_choices(CHOICES, byte_tokenizer(chat=template))


def test_which_template() -> None:
    assert uses_chat(byte_tokenizer(chat=CHAT), Rendering()) and not uses_chat(byte_tokenizer(), Rendering())
    assert not uses_chat(byte_tokenizer(chat=CHAT), Rendering("plain"))
    with pytest.raises(UserError, match="has no chat template; take template = plain or auto"):
        uses_chat(byte_tokenizer(), Rendering("chat"))
    with pytest.raises(UserError, match="template = 'fancy' is not one of auto, chat, plain"):
        Rendering("fancy")


@pytest.fixture(scope="module")
def real() -> Any:
    """Loads a tokenizer of ../shared once."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "tokenizers"

    def load(name: str) -> Any:
        if not (folder / name).is_dir():
            pytest.skip(f"needs ../shared/data/tokenizers/{name}")
        return real_tokenizer(folder / name)

    return load


def test_llama3_without_a_chat_template(real: Any) -> None:
    assert render(RECORD, real("llama3")) == ("How?", " So.<|eot_id|>")


@pytest.mark.parametrize("name", ["qwen2.5", "smollm2"])
def test_real_chat_templates(real: Any, name: str) -> None:
    tokenizer = real(name)
    prompt, response = render(RECORD, tokenizer)
    assert prompt.endswith("<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.startswith("<|im_start|>system\nYou are a helpful ")
    assert response == "So.<|im_end|>\n"
    assert render_choices(CHOICES, tokenizer) == (prompt, ["yes", "no"])
    prompt, response = render(TALK, tokenizer)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
        "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert response == "2<|im_end|>\n"


def test_the_file_of_a_template_decides_the_results(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CHAT)
    assert template_file({"chat_template": str(file)}) == file
    for chosen in ("rag", CHAT, "~nobody-is-called-so/x", "a\0", None):
        assert template_file({"chat_template": chosen}) is None
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    section = ModelSection(path=str(model), template_options={"chat_template": str(file)})
    before = model_hashes(section)
    file.write_text("x" + CHAT)
    changed = {key for key, digest in model_hashes(section).items() if digest != before[key]}
    assert changed == {str(file)}
