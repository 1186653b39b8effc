"""Selecting, fine-tuning and evaluating with `import ntk_jax as nj` alone, without a run directory."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from kernel_reference import random_rows, tiny_model
from small_tokenizers import byte_tokenizer
from tiny_run import write_inputs

import ntk_jax as nj


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def model():
    tokenizer = byte_tokenizer()
    return dataclasses.replace(tiny_model(vocab_size=len(tokenizer)), tokenizer=tokenizer)


class TestSelecting:
    SCORES = np.array([0.5, np.nan, 2.0, 1.0, 0.0], np.float32)

    def test_by_score(self):
        found = nj.select(self.SCORES, 3)
        assert isinstance(found, nj.Ranking) and found.order.tolist() == [2, 3, 0]
        np.testing.assert_array_equal(found.scores, self.SCORES)

    def test_at_random(self, model):
        assert set(nj.select(self.SCORES, 4, by="random").order.tolist()) == {0, 2, 3, 4}, "only what has a score"
        records = [{"prompt": "p", "response": text} for text in ("one", "two", "")]
        rows = nj.token_rows(model, records, span=nj.Span(overflow="drop"))
        found = nj.select(np.array([np.nan, np.nan, 1.0]), 2, by="random", rows=rows)
        assert set(found.order.tolist()) == {0, 1}, "what was not scored may be drawn, what is no row may not"

    def test_of_matched_lengths(self, model):
        records = [{"prompt": "p", "response": "y" * length} for length in (3, 9, 3, 9, 4)]
        rows = nj.token_rows(model, records)
        scores = np.array([1.0, 2.0, 0.0, 0.0, 0.0])
        assert nj.select(scores, 2, by="length_matched", rows=rows).order.tolist() == [3, 2]
        to = nj.select(None, 1, by="length_matched", rows=rows, selected={"kernel": [0]})
        assert to.order.tolist() == [2]
        with pytest.raises(nj.UserError, match="have no response length; give the lengths"):
            nj.select(scores, 2, by="length_matched")
        with pytest.raises(nj.UserError, match="the ranker length_matched cannot look at its own selection"):
            nj.select(scores, 2, by="length_matched", options={"to": "length_matched"}, rows=rows)

    def test_by_words(self, inputs):
        pool, domain = inputs / "pool.jsonl", str(inputs / "domain.jsonl")
        found = nj.select(None, 6, by="bm25", pool=str(pool), domain=domain, options={"k1": 2.0})
        streamed = nj.select(None, 6, by="bm25", pool=nj.read_records(str(pool)), domain=domain, options={"k1": 2.0})
        assert found.order.max() < 20 and found.order.tolist() == streamed.order.tolist(), "the first 20 are balls"

    def test_by_sketches_and_votes(self, model, tmp_path):
        rows = [{"input_ids": r.ids, "span": r.span} for r in random_rows(5)]
        stores = [
            nj.sketch(model, part, dim=256, out=tmp_path / name) for name, part in (("p", rows), ("t", rows[3:4]))
        ]
        assert nj.select(None, 1, by="sketch", sketches=stores, options={"by": "max"}).order.tolist() == [3]
        steps = [(*stores, 0.5), (*stores, 0.5)]
        domain = [{"prompt": "p", "response": "r"}]
        assert nj.select(None, 1, by="less", checkpoints=steps, domain=domain).order.tolist() == [3]
        along = np.array([[1.0, 0.0], [np.nan, np.nan], [0.0, -3.0]])
        pieces = (along, [2.0, 1.0], [1.0, 0.5])
        assert nj.select(None, 1, by="low_rank", components=pieces).order.tolist() == [0]
        assert nj.select(None, 1, by="low_rank", components=pieces, options={"by": "energy"}).order.tolist() == [2]
        assert nj.select(None, 2, by="votes", votes=([1, -1, 3], [0.0, 0.0, 0.0])).order.tolist() == [2, 0]

    def test_what_cannot_be_meant_is_refused(self, model):
        records = [{"prompt": "A cat", "response": "purrs"}, {"prompt": "A dog", "response": "barks"}]
        with pytest.raises(nj.UserError, match="pooling = 'max' is not one of mean, position"):
            nj.embeddings(model, records, pooling="max")
        with pytest.raises(nj.UserError, match="order names a place twice"):
            nj.near_duplicates(records, order=[0, 1, 0])

    def test_by_embeddings_and_losses(self, model):
        rows = [{"input_ids": r.ids, "span": r.span} for r in random_rows(5)]
        made = nj.embeddings(model, rows), nj.embeddings(model, rows[3:4])
        for by in ("embedding", "tsds"):
            assert nj.select(None, 1, by=by, embeddings=made, options={"alpha": 1.0} if by == "tsds" else {}).order == [
                3
            ]
        made[0][3] = np.nan
        assert 3 not in nj.select(None, 4, by="embedding", embeddings=made).order, "it has none"
        other = nj.with_lora(model, jax.tree.map(lambda leaf: 2 * leaf, model.lora))
        both = nj.losses(model, rows), nj.losses(other, rows)
        share = (both[0] - both[1]) / both[0]
        assert nj.select(None, 2, by="paths", losses=both).order.tolist() == np.argsort(-share)[:2].tolist()
        lowest = nj.select(None, 1, by="perplexity", losses=both, options={"take": "lowest", "of": "warm"})
        assert lowest.order == [both[1].argmin()]
        spans = nj.token_rows(model, rows)
        assert nj.select(self.SCORES, 2, by="kernel_residual", rows=spans).order.shape == (2,)

    def test_mistakes(self, model):
        few = {"prompt": "a", "response": "b"}
        one, broken = np.ones((5, 3)), np.ones((5, 3))
        broken[2] = 0
        for message, arguments in (
            ("'best' is not a ranker; there are: kernel, sketch, ", {"by": "best"}),
            ("the ranker kernel has no option 'by'; its options: none", {"options": {"by": "max"}}),
            ("by = 'most' is not one of mean, cosine", {"by": "sketch", "options": {"by": "most"}}),
            ("b = 2 must be between 0 and 1", {"by": "bm25", "options": {"b": 2}}),
            ("the ranker sketch needs sketches", {"by": "sketch"}),
            ("hold no word to compare", {"by": "bm25"}),
            ("the ranker bm25 reads the pool's records; give pool", {"by": "bm25", "domain": [few]}),
            ("not of one pool: 5 scores, 2 votes", {"votes": ([1, 1], [0, 0])}),
            ("count = 9 is larger than the pool", {"count": 9}),
            ("the ranker paths needs losses", {"by": "paths"}),
            ("not of one pool: 5 scores, 5 losses before, 4 losses after", {"losses": (np.ones(5), np.ones(4))}),
            (r"shapes \(5,\) and \(5, 3\); give", {"by": "tsds", "embeddings": (one[:, 0], one)}),
            (r"shapes \(5, 3\) and \(2, 4\); give", {"by": "tsds", "embeddings": (one, np.ones((2, 4)))}),
            ("pool example number 2: its embedding is zero", {"by": "tsds", "embeddings": (broken, one)}),
            ("some scored examples have no response length", {"by": "kernel_residual"}),
            (r"scores have shape \(5, 1\)", {"scores": self.SCORES[:, None]}),
            ("nothing says how many examples there are", {"scores": None}),
        ):  # fmt: skip
            with pytest.raises(nj.UserError, match=message):
                nj.select(**{"scores": self.SCORES, "count": 2, **arguments})


class TestTraining:
    def test_a_whole_selection_in_a_notebook(self, inputs, tmp_path):
        """Warm-up, gradient, scores, selection, fine-tuning and evaluation, without a run directory."""
        base = nj.load_model(str(inputs / "model"), lora=nj.LoRAConfig(rank=2))
        few = nj.TrainConfig(max_steps=2, batch_size=4, learning_rate=1e-2, tokens_per_microbatch=256)
        domain, span = list(nj.read_records(str(inputs / "domain.jsonl"))), nj.Span(max_length=64, overflow="drop")
        pool = list(nj.read_records(str(inputs / "pool.jsonl")))
        warm = nj.finetune(base, domain, training=few, span=span, out=tmp_path / "warm")
        assert len(warm.history) == 2 and warm.examples == 8 and warm.flops > 0 and not warm.dropped
        saved = nj.load_model(str(inputs / "model"), adapter=str(tmp_path / "warm" / "adapter"))
        jax.tree.map(np.testing.assert_array_equal, saved.lora, warm.model.lora)
        direction = nj.adam_preconditioned(nj.mean_gradient(warm.model, domain, span=span), warm.second_moment)
        scores = nj.directional_scores(warm.model, pool, direction, span=span)
        chosen = [pool[place] for place in nj.select(scores, 5).order]
        final = nj.finetune(base, [*domain, *chosen, pool[-1]], training=few, span=span)
        assert final.examples == 13 and final.dropped == {"too long": 1}
        found = nj.evaluate({"base": base, "final": final.model}, str(inputs / "test.jsonl"), bootstrap=20)
        assert [task["name"] for task in found["tasks"]] == ["test"] and set(found["average"]) == {"base", "final"}
        assert len(found["predictions"]["final"]["test"]) == 12
        jax.tree.map(
            np.testing.assert_array_equal, base.lora["layers"]["q_proj"]["b"], 0 * base.lora["layers"]["q_proj"]["b"]
        )
        again = nj.finetune(base, domain, training=few, span=span, out=tmp_path / "warm")  # it was done before
        jax.tree.map(np.testing.assert_array_equal, again.model.lora, warm.model.lora)

    def test_records_are_one_task(self, inputs):
        base = nj.load_model(str(inputs / "model"))
        records = list(nj.read_records(str(inputs / "test.jsonl")))
        by_file = nj.evaluate(base, [inputs / "test.jsonl"], limit=5, bootstrap=20)
        by_record = nj.evaluate(base, records, limit=5, bootstrap=20)
        assert by_record["predictions"]["model"]["questions"] == by_file["predictions"]["model"]["test"]
        assert len(by_record["predictions"]["model"]["questions"]) == 5

    def test_mistakes(self, inputs):
        bare = nj.load_model(str(inputs / "model"))
        with pytest.raises(nj.UserError, match="has no LoRA adapter"):
            nj.finetune(bare, str(inputs / "domain.jsonl"))
        with pytest.raises(nj.UserError, match="there are no models"):
            nj.evaluate({}, str(inputs / "test.jsonl"))
        with pytest.raises(nj.UserError, match="files: no files to evaluate on"):
            nj.evaluate(bare, [])
        with pytest.raises(nj.UserError, match="has no choices"):
            nj.evaluate(bare, [{"prompt": "a", "response": "b"}], metrics=["accuracy"])
