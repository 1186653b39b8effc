"""What the experiment over seeds makes of finished runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import synthetic_question

from ntk_jax.errors import UserError
from ntk_jax.questions.question import Chunk

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from calibrate_judge import planted_on  # noqa: E402
from experiment_questions import gathered, tables, with_interval  # noqa: E402


def test_runs_of_several_seeds_are_put_together(tmp_path: Path) -> None:
    runs = {seed: synthetic_question.make(tmp_path / str(seed)) for seed in (0, 1)}
    path = runs[1] / "evaluate" / "results.json"
    results = json.loads(path.read_text())
    loss = next(task for task in results["loss"]["tasks"] if task["name"] == "general")
    first = loss["results"]["static"]["by_example"]["loss"]
    loss["results"]["static"]["by_example"]["loss"] = first + 0.2
    path.write_text(json.dumps(results))
    found = {"command": "c", **gathered(runs, None)}
    kept = [json.loads((run / "ask" / "summary.json").read_text())["generations"][0]["kept"] for run in runs.values()]
    assert found["outcomes"]["kept"] == sum(kept)
    values = found["evaluation"]["held-out loss"]["general"]
    assert values["static"] == pytest.approx([first, first + 0.2])
    # Two seeds that are 0.2 apart: s = 0.2 / √2, and t of one degree of freedom is 12.71.
    assert f"| static | {first + 0.1:.3f} ± 1.271 |" in tables(found)
    assert found["training_tokens"]["static"] == [5_230, 5_230] and "| static | 5,230, 5,230 |" in tables(found)
    assert found["evaluation"]["balanced accuracy"]["test (unseen documents)"]["adversarial"] == [0.75, 0.75]
    assert with_interval([float(n) for n in range(11)]) == "5.000 ± 2.228" and with_interval([2.0]) == "2.000"


def test_pairs_are_planted_on_what_a_run_kept(tmp_path: Path) -> None:
    chunks = [Chunk(f"d#{n}", "d", "Lease", "s", f"Rent {n} is due.") for n in range(2)]
    kept = [{"prompt": f"q{n}?", "response": "May.", "chunks": [f"d#{n}"], "kind": "answerable"} for n in range(2)]
    silent = {**kept[0], "kind": "unanswerable"}
    for name, rows in (("chunk/chunks", [vars(one) for one in chunks]), ("ask/questions", [silent, *kept])):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert planted_on(tmp_path) == [(f"q{n}?", f"[Lease]\nRent {n} is due.", "May.") for n in range(2)]
    (tmp_path / "ask" / "questions.jsonl").write_text(json.dumps(silent) + "\n")
    with pytest.raises(UserError, match="kept no question that its chunks answer; give another run"):
        planted_on(tmp_path)
