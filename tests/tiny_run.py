"""A whole run in seconds: a random tiny model, a byte tokenizer, and three task families, all written to a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kernel_reference import tiny_config
from small_tokenizers import byte_tokenizer

from ntk_jax import pipelines
from ntk_jax.engine.config import build, to_tree
from ntk_jax.engine.plan import Command
from ntk_jax.models.hub import save_weights
from ntk_jax.models.model import random_model
from ntk_jax.pipelines.select.config import SelectConfig

COLOURS = ("red", "green", "blue")


def write_inputs(folder: Path) -> None:
    """model/, domain.jsonl, pool.jsonl and test.jsonl."""
    import dataclasses

    tokenizer = byte_tokenizer()
    config = tiny_config("llama", vocab_size=len(tokenizer), num_layers=1, hidden_size=16, intermediate_size=24)
    model = dataclasses.replace(random_model(config, std=0.1), tokenizer=tokenizer)
    save_weights(folder / "model", model)

    def question(number: int, name: str) -> dict[str, Any]:
        answer = number % 3
        prompt = f"{name} {number % 7} is {COLOURS[answer]}. Colour?"
        choices = list(COLOURS)
        return {"id": f"{name}-{number}", "source": name, "prompt": prompt, "response": choices[answer],
                "choices": choices, "answer": answer}  # fmt: skip

    def write(name: str, records: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf8")

    pool = [question(i, "ball") for i in range(20)]
    pool += [{"id": f"sum-{i}", "source": "sums", "prompt": f"{i} + 1 =", "response": str(i + 1)} for i in range(20)]
    pool += [{"id": f"long-{i}", "source": "long", "prompt": "x" * 300, "response": "y"} for i in range(3)]
    write("domain.jsonl", [question(i, "box") for i in range(8)])
    write("pool.jsonl", pool)
    write("test.jsonl", [question(i, "jar") for i in range(12)])


def tiny_tree(folder: Path, out: str = "run", **sections: dict[str, Any]) -> dict[str, Any]:
    """The config of a run over `write_inputs`, as YAML has it; sections override keys, e.g. score={"probes": 1}."""
    train = {
        "max_steps": 3,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "tokens_per_microbatch": 256,
        "checkpoint_every": 8,  # the last step alone: each save costs more than all steps
    }
    tree: dict[str, Any] = {
        "out": str(folder / out),
        "model": {"path": str(folder / "model"), "max_length": 64},
        "lora": {"rank": 2, "alpha": 4},
        "data": {"domain": [str(folder / "domain.jsonl")], "pool": [str(folder / "pool.jsonl")]},
        "warmup": train,
        "score": {"batch_tokens": 512, "block_examples": 16, "probes": 2},
        "sketch": {"dim": 64, "block_examples": 16},
        "select": {"count": 6},
        "finetune": dict(train),
        "evaluate": {"files": [str(folder / "test.jsonl")], "bootstrap": 50},
        "report": {"examples": 2, "useful": ["ball"]},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    return tree


def tiny_run_config(folder: Path, out: str = "run", **sections: Any) -> SelectConfig:
    """The same, built."""
    config: SelectConfig = build(SelectConfig, tiny_tree(folder, out, **sections), "test")
    return config


def quiet(*_: Any) -> Any:
    """Progress that nobody reads."""
    return lambda *_: None


def run(config: Any, pipeline: str = "select", progress: Any = quiet, **command: Any) -> Path:
    """Runs a pipeline in this process; command: only, until, shard, merge."""
    folder: Path = pipelines.run(pipeline, config, Command(**command), progress=progress)
    return folder


def write_config(folder: Path, config: Any) -> Path:
    """The same as a YAML file (JSON is YAML)."""
    path = folder / "config.json"
    path.write_text(json.dumps(to_tree(config)), encoding="utf8")
    return path
