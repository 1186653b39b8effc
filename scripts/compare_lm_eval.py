"""Compares the model `ntk-jax` with the harness's own `hf` on multiple-choice records, rendered as
lm-evaluation-harness renders ARC: the question, then "Answer:", and each choice as a continuation.

    pip install 'ntk_jax[lm-eval]' torch accelerate
    python scripts/compare_lm_eval.py MODEL_FOLDER QUESTIONS.jsonl.gz --limit 500

QUESTIONS: records with `prompt`, `choices` and `answer`; options that the prompt lists behind "Options:" are left out
of it, as ARC's own file has none. Prints accuracies (acc: by log likelihood; acc_norm: by log likelihood a byte), the
largest difference of two log likelihoods, and the log likelihood of the first questions as whole texts (rolling).
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import ntk_jax.lm_eval  # noqa: F401 (makes the model known)
from ntk_jax.data.sources import read_records

TASK = """\
task: questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
doc_to_choice: "{{{{choices.text}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


def write_task(questions: str, limit: int, folder: Path) -> list[str]:
    """A task of the harness over the questions; returns them as texts."""
    records = list(itertools.islice(read_records(questions), limit))
    texts = [record["prompt"].partition("\nOptions:")[0].removesuffix("\nAnswer:") for record in records]
    with (folder / "questions.jsonl").open("w") as file:
        for text, record in zip(texts, records, strict=True):
            labels = [chr(ord("A") + n) for n in range(len(record["choices"]))]
            choices = {"text": record["choices"], "label": labels}
            row = {"question": text, "choices": choices, "answerKey": labels[record["answer"]]}
            file.write(json.dumps(row) + "\n")
    (folder / "questions.yaml").write_text(TASK.format(file=folder / "questions.jsonl"))
    return texts


def likelihoods(model: str, args: dict[str, Any], folder: Path, texts: list[str], device: str) -> dict[str, Any]:
    """Accuracies, the log likelihoods of all choices, and those of whole texts."""
    lm = get_model(model).create_from_arg_obj(args, {"batch_size": 16, "device": device})
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(lm, tasks=["questions"], task_manager=manager, bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"]["questions"], key=lambda sample: sample["doc_id"])
    pairs = [response for sample in samples for response in sample["filtered_resps"]]
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    scores = found["results"]["questions"]
    return {
        "acc": scores["acc,none"],
        "acc_norm": scores["acc_norm,none"],
        "values": [float(value) for value, _ in pairs],
        "greedy": [str(greedy) == "True" for _, greedy in pairs],
        "rolling": lm.loglikelihood_rolling(rolling),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("questions")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--rolling", type=int, default=8, help="questions whose whole text is scored as well")
    parser.add_argument("--device", default="cpu", help="of the harness's model; this package takes jax's")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = write_task(given.questions, given.limit, Path(folder))
        long = ["\n\n".join(texts[: given.rolling]), *texts[: given.rolling]]
        args = {"pretrained": given.model, "dtype": "float32"}
        found = {name: likelihoods(name, args, Path(folder), long, given.device) for name in ("hf", "ntk-jax")}
    hf, own = found["hf"], found["ntk-jax"]
    for name, values in found.items():
        print(f"{name:8} acc {values['acc']:.4f}  acc_norm {values['acc_norm']:.4f}")
    furthest = {key: max(abs(a - b) for a, b in zip(hf[key], own[key], strict=True)) for key in ("values", "rolling")}
    print(f"largest difference: {furthest['values']:.1e} nats of {len(hf['values'])} choices, ", end="")
    print(f"{furthest['rolling']:.1e} of {len(long)} texts; greedy the same: {hf['greedy'] == own['greedy']}")
    short = {name: {"acc": values["acc"], "acc_norm": values["acc_norm"]} for name, values in found.items()}
    print(json.dumps({"questions": given.limit, **short, "furthest": furthest}))


if __name__ == "__main__":
    main()
