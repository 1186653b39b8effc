"""The model `ntk-jax` in lm-evaluation-harness: the numbers of transformers, for continuations and whole texts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from ntk_jax.builtin.paths import MODEL  # noqa: E402
from ntk_jax.errors import UserError  # noqa: E402

CASES = [
    ("A cat", " purrs"),
    ("A cat ", "purrs"),  # white space moves to the continuation
    ("A cat", " barks and sleeps"),
    ("Which animal barks?\nAnswer:", " a dog"),
    ("Which animal barks?\nAnswer:", " a cat"),
    ("", "A whole text"),
    ("word " * 300, "is cut from the left"),
]


def requests(kind: str, *args: tuple[str, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, 0) for one in args]


@pytest.fixture(scope="module")
def model() -> Any:
    import ntk_jax.lm_eval  # noqa: F401

    return get_model("ntk-jax")(str(MODEL), max_length=128)


@pytest.mark.reference
def test_likelihoods_are_those_of_the_harness_on_transformers(model: Any) -> None:
    pytest.importorskip("torch")
    other = get_model("hf")(str(MODEL), max_length=128, device="cpu", dtype="float32", batch_size=2)
    mine, theirs = (lm.loglikelihood(requests("loglikelihood", *CASES), disable_tqdm=True) for lm in (model, other))
    np.testing.assert_allclose([v for v, _ in mine], [v for v, _ in theirs], rtol=1e-4, atol=1e-4)
    assert [g for _, g in mine] == [g for _, g in theirs]
    # what greedy decoding writes is known to be that
    texts = requests("loglikelihood_rolling", ("A cat purrs. " * 60,), ("One.",))
    rolling = [lm.loglikelihood_rolling(texts) for lm in (model, other)]
    np.testing.assert_allclose(rolling[0], rolling[1], rtol=1e-5)


def test_a_greedy_continuation_is_known(model: Any) -> None:
    import jax.numpy as jnp

    import ntk_jax as nj

    ids = model.tok_encode("A cat")
    logits = nj.logits(nj.load_model(str(MODEL)), [{"input_ids": ids, "span": [0] * (len(ids) - 1) + [1]}])
    best = int(jnp.argmax(jnp.asarray(logits[0]).reshape(-1, jnp.asarray(logits[0]).shape[-1])[-1]))
    (right, greedy), (_, other) = model._loglikelihood_tokens([(None, ids, [best]), (None, ids, [best - 1])])
    assert greedy and not other and right < 0


def test_texts_begin_with_bos_where_it_is_asked_for(tmp_path: Path) -> None:
    """Also with a tokenizer that writes none by itself: the harness's own model then adds it."""
    import dataclasses

    from kernel_reference import tiny_config
    from small_tokenizers import byte_tokenizer

    import ntk_jax.lm_eval  # noqa: F401
    from ntk_jax.models.hub import save_weights
    from ntk_jax.models.model import random_model

    for adds_bos in (False, True):
        tokenizer = byte_tokenizer(adds_bos=adds_bos)
        config = tiny_config("llama", vocab_size=len(tokenizer), num_layers=1)
        save_weights(tmp_path, dataclasses.replace(random_model(config), tokenizer=tokenizer))
        plain = tokenizer.encode("ab", add_special_tokens=False)
        for asked, first in ((True, True), (False, False), (None, adds_bos)):
            other = get_model("ntk-jax")(str(tmp_path), add_bos_token=asked)
            expected = [tokenizer.bos_token_id] * first + plain
            assert other.tok_encode("ab") == expected
            assert other.tok_encode("<bos>ab") == [tokenizer.bos_token_id, *plain]
            assert other.tok_encode("ab", add_special_tokens=False) == plain
        with pytest.raises(UserError, match="a continuation of more than 2 tokens"):
            get_model("ntk-jax")(str(tmp_path), max_length=2).loglikelihood(requests("loglikelihood", ("a", "bcd")))


def test_text_is_not_written(model: Any) -> None:
    with pytest.raises(UserError, match="computes likelihoods and writes no text; take tasks of the kind"):
        model.generate_until([])


@pytest.mark.slow
def test_the_command_line_knows_the_model(tmp_path: Path) -> None:
    (tmp_path / "pets.jsonl").write_text('{"q": "A cat", "choices": ["purrs", "barks"], "answer": 0}\n' * 3)
    (tmp_path / "pets.yaml").write_text(
        f"task: pets\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/pets.jsonl}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: q\ndoc_to_target: answer\n"
        "doc_to_choice: choices\n"
    )
    command = [sys.executable, "-m", "ntk_jax.lm_eval", "--model", "ntk-jax", "--tasks", "pets"]
    command += ["--include_path", str(tmp_path)]
    for place, code, said in ((str(MODEL), 0, "|pets "), (str(tmp_path), 2, "ntk-jax: ")):
        done = subprocess.run(
            [*command, "--model_args", f"pretrained={place}"], capture_output=True, text=True, env=dict(os.environ)
        )
        assert done.returncode == code, done.stderr[-2000:]
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
