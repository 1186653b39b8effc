"""Whether a model can judge answers: what it says of pairs that are planted to say the same or not, before a run relies
on it.

    python scripts/calibrate_judge.py MODEL RUN [--items 24] [--format text]

MODEL: a Hugging Face folder, in this process. RUN: a run of `ntk-jax question`, whose questions, chunks and answers the
pairs are planted on. Prints false accepts (of vague and contradicting answers) and false rejects (of identical and
reworded ones) with 95% intervals, as judge of the gap (two answers) and of answers (one), and of questions that their
passage answers taken for unanswerable and the other way round.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import measurement as ms

import ntk_jax as nj
from ntk_jax.errors import UserError
from ntk_jax.llm.sampler import ModelClient
from ntk_jax.questions.calibration import calibrate, calibrate_silence, calibrate_verdicts
from ntk_jax.questions.question import Chunk, passage_of
from ntk_jax.questions.voice import FORMS, Voice
from ntk_jax.storage.reading import read_json_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=int, default=24, help="questions that pairs are planted on")
    parser.add_argument("--format", choices=FORMS, default="auto")
    parser.add_argument("--max-tokens", type=int, default=64, help="of a verdict")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    items = planted_on(options.run)[: options.items]
    client = ModelClient(nj.load_model(options.model), slots=options.slots)
    figures: dict[str, Any] = {"benchmark": "judge", **ms.environment(())}
    for of, function in (("gap", calibrate), ("answers", calibrate_verdicts), ("unanswerable", calibrate_silence)):
        voice = Voice("judge", client, options.format)
        found = function(voice, items, seed=options.seed, max_tokens=options.max_tokens)
        if not found:
            print(f"judge of {of}: not measured, for {options.run} kept questions on one passage alone")
            continue
        figures[of] = found | {"form": voice.form}
        row = {"judge of": of, "form": voice.form, "pairs": found["pairs"]}
        row |= {f"{kind} called wrong": one["different"] for kind, one in found["kinds"].items()}
        row |= {key: found[key] for key in ("false_accept", "false_reject", "informedness")}
        ms.print_table(f"{options.model} on {len(items)} questions", [row])
    ms.finish(figures, options.out)


def planted_on(run: Path) -> list[tuple[str, str, str]]:
    """(question, passage, answer) of the kept questions that the passage answers."""
    lines = {
        name: read_json_lines(run / name, "run it again") for name in ("chunk/chunks.jsonl", "ask/questions.jsonl")
    }
    chunks = {line["id"]: Chunk(**line) for line in lines["chunk/chunks.jsonl"]}
    found = [
        (line["prompt"], passage_of([chunks[name] for name in line["chunks"]]), line["response"])
        for line in lines["ask/questions.jsonl"]
        if line["kind"] != "unanswerable"
    ]
    if not found:
        raise UserError(f"{run} kept no question that its chunks answer; give another run")
    return found


if __name__ == "__main__":
    ms.command_line(main)
