"""The client on a model in this process: transformers' tokens, and replies that depend on nothing but their request."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import parity_cases as cases
import pytest
from small_tokenizers import CHAT, byte_tokenizer

import ntk_jax as nj
from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import encode_question, ends_of_turn
from ntk_jax.errors import UserError
from ntk_jax.llm.request import Reply, Request
from ntk_jax.llm.sampler import ModelClient
from ntk_jax.models.apart import taken_apart
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.lora import fold
from ntk_jax.models.model import Model, load_model, random_model
from ntk_jax.parallel.mesh import make_mesh

HOME = os.environ.get("NTK_JAX_CHECKPOINTS")
FOUND = sorted(file.parent for file in Path(HOME).glob("*/model.safetensors")) if HOME else []
FOUND = [folder for folder in FOUND if "bert" not in (folder / "config.json").read_text()]  # an encoder writes nothing
NAMES = [pytest.param(folder, id=folder.name) for folder in FOUND]
NAMES = NAMES or [pytest.param(None, marks=pytest.mark.skip("NTK_JAX_CHECKPOINTS names no folder of checkpoints"))]
WORDS = "How many legs has a spider? It has eight legs, and the cat sat on the mat beside the dog. "


@functools.cache
def builtin() -> Model:
    return load_model("builtin:model")


def answers(client: ModelClient, requests: list[Request]) -> list[Reply]:
    found = dict(client.ask(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[ordinal] for ordinal in range(len(requests))]


def differing(model: Model, reference: Any, requests: list[Request], slots: int) -> list[int]:
    """Which greedy replies have other tokens than the reference writes, asked one by one."""
    import torch

    client, wrong = ModelClient(model, slots=slots), []
    for ordinal, _, tokens in client.ask_with_tokens(requests):
        ids, _ = encode_question(requests[ordinal].messages, model.tokenizer)
        options = {"max_new_tokens": requests[ordinal].max_tokens, "do_sample": False}
        with torch.no_grad():
            given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones((1, len(ids)), dtype=torch.long)}
            out = reference.generate(**given, **options, eos_token_id=client.ends, pad_token_id=client.ends[0])
        if out[0, len(ids) :].tolist() != tokens:
            wrong.append(ordinal)
    return wrong


def mixed(count: int = 7) -> list[Request]:
    return [
        Request(
            WORDS[: 5 + 11 * n], max_tokens=3 + 5 * n, temperature=(n % 3) / 2, top_p=1 - 0.1 * (n % 2), seed=n, top_k=9
        )
        for n in range(count)
    ]


def test_greedy_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from parity_torch import torch_model

    folder = cases.write_checkpoint("qwen2", tmp_path / "model")
    model = replace(load_model(str(folder), tokenizer=False), tokenizer=byte_tokenizer())
    requests = [Request(WORDS[:length], max_tokens=20, temperature=0.0) for length in (1, 7, 31, 32, 33)]
    assert not differing(model, torch_model(folder), requests, slots=4)


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("folder", NAMES)
def test_greedy_tokens_of_real_checkpoints(folder: Path) -> None:
    pytest.importorskip("torch")
    from parity_torch import torch_model

    model, random = load_model(str(folder)), np.random.default_rng(0)
    text = " ".join(str(row["prompt"]) for row in nj.read_records("builtin:pool.jsonl"))
    requests = []
    for number in range(32):
        begin, length = (
            int(random.integers(len(text) - 2000)),
            int(random.integers(10, 1200 if number % 4 == 0 else 300)),
        )
        words = text[begin : begin + length]
        messages = ({"role": "user", "content": words},) if number % 2 else words
        requests.append(Request(messages, max_tokens=64, temperature=0.0))
    wrong = differing(model, torch_model(folder), requests, slots=16)
    print(f"{folder.name}: {len(requests) - len(wrong)} of {len(requests)} replies have the same tokens")
    assert not wrong


@pytest.mark.parametrize("apart", [True, False])
def test_a_reply_depends_on_nothing_but_its_request(apart: bool) -> None:
    client, requests = ModelClient(builtin(), slots=4, apart=apart), mixed()
    together = answers(client, requests)
    assert len({reply.text for reply in together}) > 3
    assert [answers(client, [request])[0] for request in requests] == together
    assert answers(client, requests[::-1])[::-1] == together
    beside = [Request(WORDS * 6, max_tokens=60, temperature=0.7, seed=n) for n in range(3)]  # a longer cache
    assert answers(client, [*beside, *requests])[3:] == together


def test_layers_apart_write_what_one_program_writes() -> None:
    requests = [replace(request, temperature=0.0, max_tokens=30) for request in mixed()]
    for model in (builtin(), random_model(builtin().config, seed=1, dtype="bfloat16")):
        model = replace(model, tokenizer=builtin().tokenizer)
        apart, whole = (
            sorted(ModelClient(model, slots=4, apart=value).ask_with_tokens(requests)) for value in (True, False)
        )
        assert apart == whole


def test_the_layers_apart_are_views_of_the_stacked_ones() -> None:
    model = random_model(replace(builtin().config, hidden_size=64), seed=0)
    stacked = jax.tree.leaves(model.base["layers"])
    begins = {leaf.unsafe_buffer_pointer() for leaf in stacked if leaf[0].nbytes % 64 == 0}
    first = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(taken_apart(model).layers[0])}
    assert begins and begins <= first


def test_seed_and_sample_decide_a_draw() -> None:
    client, asked = ModelClient(builtin(), slots=4), Request(WORDS[:20], max_tokens=12, temperature=1.5, seed=2**63 + 1)
    first, again, other, sample = answers(client, [asked, asked, replace(asked, seed=2), replace(asked, sample=1)])
    assert first == again and len({first.text, other.text, sample.text}) == 3


def test_a_stop_text_ends_the_reply_before_it() -> None:
    client, asked = ModelClient(builtin(), slots=4), Request(WORDS[:21], max_tokens=40, temperature=0.0)
    whole = answers(client, [asked])[0]
    assert len(whole.text) > 12
    for begin, length in ((3, 2), (8, 4)):
        stop = whole.text[begin : begin + length]
        found = answers(client, [replace(asked, stop=("never", stop))])[0]
        assert found.text == whole.text[: whole.text.index(stop)] and found.finish == "stop"
        assert 0 < found.completion_tokens < whole.completion_tokens
    assert answers(client, [replace(asked, stop=("\x00",))])[0] == whole


def test_a_control_token_may_be_a_stop_text() -> None:
    model = random_model(ModelConfig("llama", 264, 32, 48, 1, 2, 2, 16))
    client = ModelClient(replace(model, tokenizer=byte_tokenizer(chat=CHAT)), slots=2)
    client.ends = []
    request = Request("abc", max_tokens=8, temperature=0.0)
    [(_, whole, tokens)] = client.ask_with_tokens([request])
    assert whole.finish == "length" and len(set(tokens[:3])) > 1
    client.controls = {"<|end|>": tokens[2]}  # as if that token were it
    [(_, found, left)] = client.ask_with_tokens([replace(request, stop=("<|end|>", "never"))])
    place = tokens.index(tokens[2])
    assert (found.finish, found.completion_tokens, left) == ("stop", place + 1, tokens[: place + 1])
    assert whole.text.startswith(found.text) and ModelClient(client.model).controls["<|end|>"] > 255


def test_max_tokens_and_the_context_end_a_reply() -> None:
    model, progress = random_model(ModelConfig("llama", 264, 32, 48, 2, 2, 2, 16, max_positions=64)), []
    model = replace(model, tokenizer=byte_tokenizer(chat=CHAT))
    requests = [Request("a" * length, max_tokens=9, temperature=0.0) for length in (30, 60, 63, 64)]
    client = ModelClient(model, slots=3)
    client.ends = []
    found = dict(client.ask([*requests, Request("")], lambda *step: progress.append(step)))
    assert [found[n].finish for n in range(5)] == ["length", "length", "length", "failed", "failed"]
    assert [found[n].completion_tokens for n in range(4)] == [9, 4, 1, 0]
    assert "the prompt has 64 tokens; the context has 64" in str(found[3].reason) and found[4].reason
    assert [step[:2] for step in progress] == [(n, 5) for n in range(1, 6)] and progress[-1][2] == "14 tokens written"


def test_a_template_that_refuses_a_talk_fails_that_request_alone() -> None:
    refusing = CHAT.replace("{% for", "{% if messages[0]['role'] == 'system' %}{{ 1 / 0 }}{% endif %}{% for", 1)
    model = replace(
        random_model(ModelConfig("llama", 264, 32, 48, 1, 2, 2, 16)), tokenizer=byte_tokenizer(chat=refusing)
    )
    talks = [({"role": role, "content": "x"},) for role in ("system", "user")]
    refused, fine = answers(ModelClient(model), [Request(talk, max_tokens=2) for talk in talks])
    assert refused.finish == "failed" and "chat template refuses" in str(refused.reason) and fine.finish != "failed"


def test_weights_that_are_not_finite_fail_the_reply() -> None:
    model = builtin()
    broken = replace(model, base={**model.base, "norm": model.base["norm"] * np.nan})
    reply = answers(ModelClient(broken, slots=1), [Request("a", max_tokens=3)])[0]
    assert reply.finish == "failed" and "not finite" in str(reply.reason) and reply.text == ""


def test_on_a_mesh_the_replies_are_the_same() -> None:
    import jax

    mesh = make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    requests = [replace(request, temperature=0.0) for request in mixed(9)]
    client = ModelClient(load_model("builtin:model", mesh=mesh), slots=6, mesh=mesh)
    assert client.slots == 8
    assert answers(client, requests) == answers(ModelClient(builtin(), slots=8), requests)


def test_an_adapter_takes_part() -> None:
    config = ModelConfig("llama", 264, 32, 48, 2, 2, 2, 16)
    model = replace(random_model(config, lora=nj.LoRAConfig(rank=2)), tokenizer=byte_tokenizer())
    plain = replace(random_model(config), tokenizer=model.tokenizer)
    request = Request("abc", max_tokens=6, temperature=0.0)
    with_it, *_ = answers(ModelClient(model), [request])
    folded = replace(plain, base=fold(model.lora, model.base, model.scales))
    merged, *_ = answers(ModelClient(folded), [request])
    without, *_ = answers(ModelClient(plain), [request])
    assert with_it.text == merged.text != without.text


def test_questions_are_what_the_template_writes_before_an_answer() -> None:
    tokenizer, talk = byte_tokenizer(chat=CHAT, adds_bos=True), [{"role": "user", "content": "<|end|>hi "}]
    ids, notes = encode_question(talk, tokenizer)
    assert tokenizer.decode(ids) == "<bos><|user|><|end|>hi <|end|><|assistant|>" and notes
    assert ids.count(tokenizer.convert_tokens_to_ids("<|end|>")) == 1  # the other one is text
    begun, _ = encode_question([*talk, {"role": "assistant", "content": "Well"}], tokenizer)
    assert begun[: len(ids)] == ids and tokenizer.decode(begun[len(ids) :]) == "Well"
    plain, _ = encode_question(talk, tokenizer, Rendering("plain", options={"system": "Be kind."}))
    assert tokenizer.decode(plain) == "<bos>Be kind.\n\n<|end|>hi"
    assert ends_of_turn(tokenizer) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")}
    assert ends_of_turn(tokenizer, Rendering("plain")) == {tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"max_tokens": 0}, "max_tokens = 0 must be at least 1"),
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 0.0}, "top_p = 0.0 must be above 0"),
        ({"min_p": 1.5}, "min_p = 1.5"),
        ({"top_k": -1}, "top_k = -1"),
        ({"stop": ("a", "")}, "stop holds an empty text"),
        ({"messages": ()}, "has no messages"),
    ],
)
def test_settings_that_nothing_can_be_drawn_with(setting: dict[str, Any], words: str) -> None:
    client = ModelClient(builtin())
    with pytest.raises(UserError, match=words):
        list(client.ask([Request("a"), replace(Request("a"), **setting)]))


def test_clients_that_cannot_be() -> None:
    for options, words in (({"slots": 0}, "slots = 0"), ({"context": 1}, "context = 1 is outside 2")):
        with pytest.raises(UserError, match=words):
            ModelClient(builtin(), **options)
    with pytest.raises(UserError, match="without a tokenizer"):
        ModelClient(replace(builtin(), tokenizer=None))


def test_samples_stand_behind_their_prompt_and_are_those_of_one_prompt_alone() -> None:
    how: dict[str, Any] = {"max_tokens": 6, "temperature": 1.3, "seed": 5, "samples": 2, "slots": 4}
    prompts = ["A cat", [{"role": "user", "content": "How is the dish?"}]]
    replies = nj.sample(builtin(), prompts, **how)
    assert len(replies) == 4 and replies[0].text != replies[1].text
    assert replies[2:] == nj.sample(builtin(), prompts[1:], **how)
    assert replies[0::2] == nj.sample(builtin(), prompts, **{**how, "samples": 1})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("A cat", "prompts must be a list"),
        ([{"role": "user", "content": "hello"}], "number 0 is a message; a talk is a list"),
        (["a", 3], "number 1 must be a text or a list of messages"),
        ([[{"role": "user"}]], "number 0 must be a text or a list of messages"),
    ],
)
def test_prompts_that_are_none(prompts: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        nj.sample(builtin(), prompts)
