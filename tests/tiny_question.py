"""A whole run of questions in seconds: a scripted world behind a server, a random tiny model as the target."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from faulty_server import Answer, FaultyServer, completion
from kernel_reference import tiny_config
from scripted_world import Scripted, World, world
from small_tokenizers import byte_tokenizer

from ntk_jax.engine.config import build
from ntk_jax.llm.request import Request
from ntk_jax.models.hub import save_weights
from ntk_jax.models.model import random_model
from ntk_jax.pipelines.question.config import QuestionConfig

CHUNKS = 6


def write_question_inputs(folder: Path, seed: int = 0) -> World:
    """model/, documents.jsonl and test.jsonl (yes/no items on every document)."""
    tokenizer = byte_tokenizer()
    config = tiny_config(
        "llama", vocab_size=len(tokenizer), num_layers=1, hidden_size=16, intermediate_size=24, max_positions=2048
    )
    save_weights(folder / "model", dataclasses.replace(random_model(config, std=0.1), tokenizer=tokenizer))
    made = world(seed, CHUNKS)
    rows = [{"id": c.document, "source": c.source, "title": c.title, "text": c.text} for c in made.chunks]
    write_lines(folder / "documents.jsonl", rows)
    items = []
    for number, chunk in enumerate(made.chunks):
        for place in range(2):
            answer = (number + place) % 2
            items.append(
                {"id": f"{chunk.document}-{place}", "source": "test", "document_id": chunk.document,
                 "prompt": f"Is {chunk.title} number {place} large?", "choices": ["Yes", "No"], "answer": answer}
            )  # fmt: skip
    write_lines(folder / "test.jsonl", items)
    write_lines(
        folder / "general.jsonl",
        [{"id": f"g-{i}", "source": "general", "prompt": f"{i} + 1 =", "response": str(i + 1)} for i in range(6)],
    )
    return made


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")


def serving(made: World) -> FaultyServer:
    """A server on which every model of the world answers."""
    return FaultyServer(lambda body, before: answer_of(made, body))


def answer_of(made: World, body: dict[str, Any]) -> Answer:
    """The world's reply to the body of a request."""
    messages = tuple(body.get("messages", ()))
    if "random sentence" in str(messages):  # what is asked to know the server
        return completion(f"A sentence, {body.get('seed')} and {body.get('temperature')}.", completion_tokens=8)
    if "Say hello" in str(messages):
        return completion('{"greeting": "hello"}', completion_tokens=8)
    request = Request(messages, temperature=body.get("temperature", 0.0), seed=body.get("seed", 0))
    return completion(Scripted(made).answer(request), prompt_tokens=100, completion_tokens=20)


def question_tree(folder: Path, url: str, out: str = "run", **sections: Any) -> dict[str, Any]:
    """The config of a run over `write_question_inputs`, as YAML has it; sections override keys."""
    expert = {"kind": "server", "model": "expert", "base_url": url, "price_in": 1.0, "price_out": 2.0, "workers": 4}
    tree: dict[str, Any] = {
        "out": str(folder / out),
        "model": {"path": str(folder / "model"), "max_length": 1536},
        "lora": {"rank": 2, "alpha": 4},
        "documents": {"files": [str(folder / "documents.jsonl")], "trained": 0.67},
        "expert": expert,
        "target": {**expert, "model": "target"},
        "ask": {
            **{"per_chunk": 2, "rounds": 2, "patience": 2, "negative": 0.0, "unanswerable": 0.01, "cross": 0.0},
            **{"cosine": 1.0, "answer_tokens": 16, "samples": 2},
        },
        "train": {
            **{"arms": ["adversarial", "static", "documents"], "epochs": 1, "batch_size": 4, "learning_rate": 1e-3},
            "tokens_per_microbatch": 2048,
        },
        "evaluate": {
            **{"files": [str(folder / "test.jsonl")], "general": [str(folder / "general.jsonl")], "bootstrap": 50},
            "by_document": "document_id",
        },
        "report": {"examples": 2},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    return tree


def question_config(folder: Path, url: str, out: str = "run", **sections: Any) -> QuestionConfig:
    """The same, built."""
    config: QuestionConfig = build(QuestionConfig, question_tree(folder, url, out, **sections), "test")
    return config
