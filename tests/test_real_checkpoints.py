"""Published checkpoints as they are found: logits of transformers, ids of their own chat template, and the commands
that take them.

    NTK_JAX_CHECKPOINTS=DIR pytest -n 0 -m slow tests/test_real_checkpoints.py

DIR holds folders of Llama- and Qwen-type instruct models with chat templates (some hundred million parameters are
enough, and minutes each); without it the tests skip. Keys that real config.json files have and that change nothing are
added to theirs first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ntk_jax as nj
from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import TokenRow, encode

HOME = Path(os.environ.get("NTK_JAX_CHECKPOINTS", "."))
FOUND = sorted(p.parent for p in HOME.glob("*/config.json")) if "NTK_JAX_CHECKPOINTS" in os.environ else []
NAMES = [pytest.param(folder, id=folder.name) for folder in FOUND]
NAMES = NAMES or [pytest.param(None, marks=pytest.mark.skip("NTK_JAX_CHECKPOINTS names no folder of checkpoints"))]
INERT = {
    "unk_token_id": 0,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "_model_name_or_path": "someone/some-model",
    "_attn_implementation_autoset": True,
    "_flash_attn_2_enabled": True,
    "_commit_hash": None,
    "is_llama_config": True,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "max_sequence_length": 8192,
    "model_max_length": 8192,
    "tie_encoder_decoder": False,
    "gradient_checkpointing": False,
    "neftune_noise_alpha": 5,
}
TALK = [
    {"role": "user", "content": "Explain to a child why the sky is blue, and why it is red in the evening."},
    {"role": "assistant", "content": "Sunlight looks white, but it is a mixture of all colours. " * 30},
]
pytestmark = [pytest.mark.slow, pytest.mark.reference, pytest.mark.timeout(3600), pytest.mark.filterwarnings("default")]


def with_keys(folder: Path, place: Path) -> Path:
    """The checkpoint with the inert keys in its config.json."""
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (place / "config.json").unlink()
    (place / "config.json").write_text(json.dumps(config | INERT))
    return place


@pytest.mark.parametrize("folder", NAMES)
def test_logits_and_ids_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    place = with_keys(folder, tmp_path / folder.name)
    model = nj.load_model(str(place))
    tokenizer = model.tokenizer
    row = encode({"id": "a", "source": "s", "messages": TALK}, tokenizer, rendering=Rendering("chat"))
    assert isinstance(row, TokenRow)
    ids = tokenizer.apply_chat_template(TALK, return_dict=False)
    assert row.ids.tolist() == list(ids) and len(ids) >= 400
    asked = tokenizer.apply_chat_template(TALK[:1], add_generation_prompt=True, return_dict=False)
    assert int(np.argmax(row.span)) == len(asked) - 1
    ids = ids[:400]
    given = {"input_ids": ids, "span": [1] * len(ids)}
    own = np.asarray(nj.logits(model, [given])[0])
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = reference(torch.tensor([ids])).logits[0].numpy()
    off = float(np.abs(own - theirs).max())
    print(f"{folder.name}: largest difference of {theirs.size:,} logits {off:.1e}, of up to {np.abs(theirs).max():.0f}")
    assert off <= 1e-3


CONFIG = """\
out: small
model: {{path: {model}, max_length: 160, overflow: truncate}}
data:
  domain: [{data}/medical/pubmedqa.train.jsonl.gz]
  pool: [{data}/general/alpaca.train.jsonl.gz, {data}/general/arc_easy.train.jsonl.gz]
  domain_limit: 8
  pool_limit: 16
lora: {{rank: 4, alpha: 8}}
warmup: {{epochs: 1, batch_size: 4}}
score: {{batch_tokens: 640}}
preselect: {{method: none}}
select: {{count: 4, methods: [kernel, random]}}
finetune: {{epochs: 1, batch_size: 4, tokens_per_microbatch: 640}}
evaluate: {{files: [{data}/medical/pubmedqa.test.jsonl.gz], limit: 8}}
"""


@pytest.mark.parametrize("folder", NAMES)
def test_doctor_run_and_export(folder: Path, tmp_path: Path, shared: Path) -> None:
    place = with_keys(folder, tmp_path / folder.name)
    (tmp_path / "small.yaml").write_text(CONFIG.format(model=place, data=shared / "data"))

    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ntk_jax", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=dict(os.environ),
        )
        print(f"$ ntk-jax {' '.join(words)}\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
        assert done.returncode == 0
        return done.stdout

    assert "weights" in command("doctor", "small.yaml")
    command("run", "small.yaml")
    assert (tmp_path / "small" / "report" / "index.html").exists()
    command("export", "small")
