"""The metagradients of a small training, beside those that bergson's `magic` finds of the same model, adapter, batches,
weights and optimiser.

    python3 -m venv /tmp/bergson && /tmp/bergson/bin/pip install bergson
    python scripts/compare_bergson.py --python /tmp/bergson/bin/python

Prints Pearson's and Spearman's correlation and the largest difference. bergson's clipping divides by norm + 1e-6, and
its optimiser is torchopt's; both are given the learning rates of `learning_rates`, without clipping by default.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

STEPS, BATCH, CANDIDATES, HELD_OUT, SEED = 6, 8, 24, 8, 5


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--python", help="of an environment with bergson")
    arguments.add_argument("--fresh", action="store_true", help="from a fresh adapter (B = 0)")
    arguments.add_argument("--clip", type=float, default=0.0, help="max_grad_norm")
    arguments.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.peer:
        theirs(options.peer)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values, after = ours(folder, options.fresh, options.clip)
        command = [options.python or sys.executable, __file__, "--peer", str(folder)]
        subprocess.run(command, check=True, env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": name})
        found = json.loads((folder / "theirs.json").read_text())
    other = np.array(found["values"])
    from scipy.stats import spearmanr

    print(f"held-out loss after training: ours {after:.6f}, theirs {found['after']:.6f}")
    print(f"metagradients of {len(values)} examples through {STEPS} AdamW steps")
    print(f"  Pearson {np.corrcoef(values, other)[0, 1]:.6f}, Spearman {spearmanr(values, other).statistic:.4f}")
    print(f"  largest {np.abs(values).max():.4g}, largest difference {np.abs(values - other).max():.2g}")


def ours(folder: Path, fresh: bool, clip: float) -> tuple[np.ndarray, float]:
    """(values, the loss after); writes what the other side needs."""
    import ntk_jax as nj
    from ntk_jax.models.hub import resolve
    from ntk_jax.models.peft import save_adapter
    from ntk_jax.training.optimizer import learning_rates
    from ntk_jax.training.order import step_indices

    model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=4, alpha=8))
    domain = list(nj.read_records("builtin:kitchen.train.jsonl"))
    if not fresh:
        model = nj.finetune(model, domain[8:], training=nj.TrainConfig(max_steps=12, learning_rate=1e-3)).model
    pool = [row for row in nj.token_rows(model, list(nj.read_records("builtin:pool.jsonl"))[:CANDIDATES]) if row]
    held_out = [row for row in nj.token_rows(model, domain[:HELD_OUT]) if row]
    training = nj.TrainConfig(max_steps=STEPS, batch_size=BATCH, learning_rate=1e-3, max_grad_norm=clip)

    def plain(rows: list[Any]) -> list[dict[str, Any]]:
        return [{"input_ids": row.ids.tolist(), "span": row.span.astype(int).tolist()} for row in rows]

    found = nj.metagradient(model, plain(pool), plain(held_out), training=training, seed=SEED)
    assert model.lora_config is not None
    save_adapter(folder / "adapter", model.lora, model.lora_config, model.config, model.name)
    task = {
        "model": str(resolve("builtin:model")),
        "pool": plain(pool),
        "held_out": plain(held_out),
        "steps": [step_indices(step, len(pool), BATCH, SEED).tolist() for step in range(STEPS)],
        "rates": learning_rates(training, STEPS).tolist(),
        "clip": clip,
    }
    (folder / "task.json").write_text(json.dumps(task))
    return found.values, found.after


def theirs(folder: Path) -> None:
    """The same with bergson; runs in its environment."""
    import torch
    import torchopt
    from bergson.magic.trainer import BackwardState, Trainer
    from bergson.utils.math import weighted_causal_lm_ce
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    task = json.loads((folder / "task.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).eval()
    base.loss_function = weighted_causal_lm_ce

    def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)
        ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
        for place, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[place, :length] = torch.tensor(row["input_ids"])
            predicted = torch.tensor([0, *row["span"][:-1]]).bool()  # a label where the position before is in the span
            labels[place, :length][predicted] = ids[place, :length][predicted]
        return {"input_ids": ids, "labels": labels}

    rates = torch.tensor(task["rates"])
    optimizer = torchopt.adamw(
        lambda count: rates[int(count)], betas=(0.9, 0.999), eps=1e-8, eps_root=1e-36, weight_decay=0.0
    )
    trainer, state = Trainer.initialize(model, optimizer)
    weights = torch.ones(len(task["pool"]), requires_grad=True)
    clip = task["clip"] or None

    def inputs(chosen: list[int]) -> dict[str, Any]:
        return {**batch([task["pool"][i] for i in chosen]), "example_weight": weights[torch.tensor(chosen)]}

    states = []
    for chosen in task["steps"]:
        states.append(state)
        made = {k: v.detach() for k, v in inputs(chosen).items()}
        state = trainer.step(state, made, max_grad_norm=clip).detach_()
    with state.activate(model) as params:
        for leaf in params.values():
            leaf.requires_grad_(True)
        loss = model(**batch(task["held_out"])).loss
        gradient = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    moments = [torch.zeros_like(t) for t in state.differentiable_tensors()[len(state.params) :]]
    back = BackwardState(gradient, moments, torch.zeros_like(weights))
    for before, chosen in zip(reversed(states), reversed(task["steps"]), strict=True):
        before.detach_()
        before.requires_grad = True
        back = trainer.metagrad_step(before, inputs(chosen), back, weights, max_grad_norm=clip)
    found = {"values": back.weight_grads.tolist(), "after": loss.item()}
    (folder / "theirs.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
