"""A whole mining run in seconds: a corpus of three subjects, a small random encoder of whole words, own seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from small_encoder import write_encoder
from tiny_run import write_inputs

from ntk_jax.engine.config import build
from ntk_jax.pipelines.mine.config import MineConfig

SUBJECTS = {
    "medicine": ["heart", "blood", "fever"],
    "law": ["court", "law", "stone"],
    "nature": ["star", "sea", "river", "dog"],
}
FILLERS = ["a", "the", "of", "and", "in", "to"]
DOCUMENTS = 30  # of each subject


def sentences(subject: str, count: int, seed: int) -> str:
    """Prose of a subject: words of it among fillers."""
    rng = np.random.default_rng([seed, *subject.encode()])
    own = SUBJECTS[subject]
    return " ".join(
        " ".join(str(rng.choice(own if rng.random() < 0.6 else FILLERS)) for _ in range(8)).capitalize() + "."
        for _ in range(count)
    )


def write_mine_inputs(folder: Path) -> None:
    """encoder/, corpus/*.jsonl, seeds.jsonl, and the model and test questions of a tiny run."""
    write_inputs(folder)
    (folder / "encoder").mkdir()
    write_encoder(folder / "encoder", std=0.1, num_hidden_layers=1)  # little more than its words' mean
    (folder / "corpus").mkdir()
    for number, subject in enumerate(SUBJECTS):
        rows = [
            {"id": f"{subject}-{i}", "source": subject, "text": sentences(subject, 3 + i % 4, i)}
            for i in range(DOCUMENTS)
        ]
        write_lines(folder / "corpus" / f"{number}.jsonl", rows)
    seeds = [
        {"text": sentences(subject, 3, 1000 + i), "domains": [subject]}
        for subject in ("medicine", "law")
        for i in range(4)
    ]
    write_lines(folder / "seeds.jsonl", seeds)
    held = [{"id": f"held-{i}", "source": "held", "text": sentences("medicine", 4, 2000 + i)} for i in range(3)]
    write_lines(folder / "held_out.jsonl", held)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")


def mine_tree(folder: Path, out: str = "run", **sections: Any) -> dict[str, Any]:
    """The config of a run over `write_mine_inputs`, as YAML has it; sections override keys."""
    tree: dict[str, Any] = {
        "out": str(folder / out),
        "domains": {"medicine": "hearts, blood and fever", "law": "courts and laws"},
        "model": {"path": str(folder / "model"), "max_length": 64},
        "lora": {"rank": 2, "alpha": 4},
        "seeds": {"per_domain": 0, "files": {"*": str(folder / "seeds.jsonl")}, "min_words": 3, "cosine": 1.0},
        "corpus": {
            **{"files": [str(folder / "corpus" / "*.jsonl")], "words": 24, "min_words": 4, "shards": 3},
            "near_duplicates": 0.99,
        },
        "encoder": {"path": str(folder / "encoder")},
        "embed": {"block_chunks": 32, "neighbours": 20},
        "label": {"share": 0.3, "negatives": 2.0, "per_seed": 8},
        "classify": {"near_duplicates": 1.0, "precision": 0.6},
        "report": {"examples": 2},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    return tree


def mine_config(folder: Path, out: str = "run", **sections: Any) -> MineConfig:
    """The same, built."""
    config: MineConfig = build(MineConfig, mine_tree(folder, out, **sections), "test")
    return config
