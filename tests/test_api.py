"""`import ntk_jax as nj`: what it takes as examples, its options, and its mistakes."""

from __future__ import annotations

import dataclasses
import inspect
import json

import jax
import numpy as np
import pytest
from kernel_reference import random_rows, tiny_model
from small_tokenizers import byte_tokenizer
from tiny_run import write_inputs

import ntk_jax as nj
from ntk_jax.data.templates import Rendering
from ntk_jax.data.tokens import encode_many
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.models.model import random_model
from ntk_jax.models.peft import save_adapter

pytestmark = pytest.mark.usefixtures("small_steps")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def model():
    tokenizer = byte_tokenizer()
    return dataclasses.replace(tiny_model(vocab_size=len(tokenizer)), tokenizer=tokenizer)


def test_path_records_and_token_rows_give_the_same_scores(inputs, model):
    path = inputs / "domain.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    direction = nj.mean_gradient(model, str(path))
    rows = [{"input_ids": r.ids.tolist(), "span": r.span.astype(int).tolist()} for r in nj.token_rows(model, str(path))]
    by_path, by_record, by_row = (nj.directional_scores(model, e, direction) for e in (str(path), records, rows))
    assert by_path.shape == (8,) and by_path.dtype == np.float32
    assert by_path.tolist() == by_record.tolist() == by_row.tolist()


def test_stacked_directions_score_each_target(model):
    rows = [{"input_ids": r.ids, "span": r.span} for r in random_rows(4)]
    both = nj.stack_directions([nj.mean_gradient(model, rows[:1]), nj.mean_gradient(model, rows[1:2])])
    scores = nj.directional_scores(model, rows, both)
    assert scores.shape == (4, 2)
    np.testing.assert_allclose(scores[0, 1], scores[1, 0], rtol=1e-4)  # the kernel is symmetric


def test_options_reach_the_kernel(model):
    rows = [{"input_ids": r.ids, "span": r.span} for r in random_rows(3)]
    plain = nj.mean_gradient(model, rows)
    summed = nj.mean_gradient(model, rows, normalize="sum")
    everything = nj.mean_gradient(model, rows, parameters="all")
    probes = nj.mean_gradient(model, rows, objective=nj.Objective("probe", probes=3), seed=5)
    low = nj.mean_gradient(model, rows, dtype="bfloat16")
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(probes) == 3 * size(plain) and size(everything) > 2 * size(plain)
    a = jax.tree.leaves(plain)[0]
    assert not np.allclose(a, jax.tree.leaves(summed)[0])
    assert 0 < np.abs(a - jax.tree.leaves(low)[0]).max() < 0.2 * np.abs(a).max()
    assert jax.tree.leaves(low)[0].dtype == np.float32


def test_a_callable_objective(model):
    rows = [{"input_ids": r.ids, "span": r.span} for r in random_rows(3)]
    target = lambda hidden, targets, head: (hidden * head[targets]).sum(axis=-1)  # noqa: E731
    mine = nj.mean_gradient(model, rows, objective=target)
    named = nj.mean_gradient(model, rows, objective="target_logit")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, named)


def test_the_exact_kernel_of_a_model(model, inputs):
    rows = [{"input_ids": r.ids, "span": r.span} for r in random_rows(3)]
    gram = nj.ntk(model, rows, kind="pseudo")
    assert gram.shape == (3, 3) and gram.dtype == np.float32
    # sum_logits is the pseudo-NTK but for its 1/V
    direction = nj.mean_gradient(model, rows[:1])
    scores = nj.directional_scores(model, rows, direction)
    np.testing.assert_allclose(gram[:, 0] * model.config.vocab_size, scores, rtol=1e-4)
    centred = nj.ntk(model, rows, rows[:2], kind="centered_trace", memory=2**20)
    products = nj.ntk(model, rows, rows[:2], kind="centered_trace", method="products")
    assert np.abs(centred - products).max() < 1e-5 * np.abs(centred).max()
    assert nj.ntk(model, str(inputs / "domain.jsonl"), rows, kind="probe", probes=2).shape == (8, 3)


def test_the_exact_kernel_of_a_function():
    weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    f = lambda params, x: params @ x  # noqa: E731
    np.testing.assert_allclose(nj.ntk(f, x, params=weights), 4 * x @ x.T, rtol=1e-5, atol=1e-5)
    with pytest.raises(nj.UserError, match="needs params=, its parameters"):
        nj.ntk(f, x)


def test_ntk_is_a_plain_function():
    import ntk_jax.kernels.score  # noqa: F401 (a package of that name once took its place)

    assert inspect.isfunction(nj.ntk)


@pytest.mark.parametrize("projection", ["rademacher", pytest.param("kronecker", marks=pytest.mark.slow)])
def test_sketches_of_the_api(model, projection):
    rows = [{"input_ids": r.ids, "span": r.span} for r in random_rows(4)]
    z = nj.sketch(model, rows, dim=256, projection=projection)
    assert z.shape == (4, 256) and z.dtype == np.float32
    again = nj.sketch(model, rows[::-1], dim=256, projection=projection, batch_tokens=64)[::-1]
    np.testing.assert_allclose(again, z, rtol=1e-4, atol=1e-4 * np.abs(z).max())
    other = nj.sketch(model, rows, dim=256, projection=projection, seed=1)
    assert np.abs(other - z).max() > 0.1 * np.abs(z).max()
    kernel = nj.ntk(model, rows, kind="pseudo") * model.config.vocab_size
    norms = np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))
    assert np.abs(z @ z.T - kernel).max() < 0.5 * norms.max()


@pytest.mark.slow  # the docs' example calls it too
def test_stability_over_saved_adapters(model, inputs, tmp_path):
    moved = jax.tree.map(lambda leaf: leaf * 1.1, model.lora)
    for name, lora in (("first", model.lora), ("second", moved)):
        save_adapter(tmp_path / name, lora, model.lora_config, model.config, "tiny")
    rows = [{"input_ids": r.ids, "span": r.span} for r in random_rows(12)]
    folders = [tmp_path / "first", str(tmp_path / "second")]
    report = nj.stability(model, rows[:3], folders, steps=[0, 7], candidates=rows, objectives=("sum_logits", "probe"))
    assert [point["step"] for point in report.points] == [0, 7]
    assert report.kernel_cosine[0, 1] == pytest.approx(report.kernel_cosine[1, 0]) and report.kernel_cosine[0, 1] < 1
    assert set(report.scores) == {"sum_logits", "probe"} and report.scores["probe"].shape == (2, 12)
    of_trees = nj.stability(model, rows[:3], {"seed 0": [model.lora], "seed 1": [moved]})
    assert [point["trajectory"] for point in of_trees.points] == ["seed 0", "seed 1"]
    np.testing.assert_allclose(of_trees.kernels, report.kernels, rtol=1e-5)

    other = random_model(model.config, lora=nj.LoRAConfig(rank=2), seed=1)
    save_adapter(tmp_path / "other", other.lora, other.lora_config, other.config, "tiny")
    with pytest.raises(nj.UserError, match="other: this adapter's rank is 2, the model's 4"):
        nj.stability(model, rows[:3], [tmp_path / "other"])
    with pytest.raises(nj.UserError, match="steps: 1 for 2 checkpoints"):
        nj.stability(model, rows[:3], folders, steps=[1])


def test_objectives_and_spans_long_and_short(model):
    rows = [{"input_ids": r.ids, "span": r.span} for r in random_rows(3)]
    short = nj.mean_gradient(model, rows, objective="cross_entropy", normalize="sum", span="response")
    long = nj.mean_gradient(model, rows, objective=nj.Objective("cross_entropy", "sum"), span=nj.Span("response"))
    both = nj.mean_gradient(model, rows, objective=nj.Objective("cross_entropy", "none"), normalize="sum")
    for other in (long, both):
        jax.tree.map(np.testing.assert_array_equal, short, other)
    probes = nj.Objective("probe", probes=2, seed=4)
    given = nj.mean_gradient(model, rows, objective=dataclasses.replace(probes, seed=1), seed=4)
    jax.tree.map(np.testing.assert_array_equal, nj.mean_gradient(model, rows, objective=probes), given)


class TestWhatASpanLeavesOut:
    """Two examples, the second too long for 64 tokens."""

    RECORDS = [
        {"id": "short", "prompt": "Which?", "response": "this one"},
        {"id": "long", "prompt": "x" * 100, "response": "y"},
        {"id": "empty", "prompt": "Nothing?", "response": ""},
    ]
    DROP = nj.Span(max_length=64, overflow="drop")
    CUT = nj.Span(max_length=64, overflow="truncate")

    def test_rows(self, model):
        found = nj.token_rows(model, self.RECORDS, span=self.DROP)
        assert found[0] is not None and found[1:] == [None, None]
        cut = nj.token_rows(model, self.RECORDS, span=self.CUT)
        assert len(cut[1].ids) == 64 and cut[1].truncated and cut[2] is None

    def test_the_rows_are_those_of_a_run_with_the_same_settings(self, model):
        settings = {"max_length": 40, "overflow": "truncate"}
        rendering = Rendering("plain", add_eos=False)
        expected = encode_many(self.RECORDS[:2], model.tokenizer, **settings, rendering=rendering)
        span = nj.Span(**settings, template="plain", add_eos=False)
        for mine, row in zip(nj.token_rows(model, self.RECORDS[:2], span=span), expected, strict=True):
            assert mine.ids.tolist() == row.ids.tolist() and mine.span.tolist() == row.span.tolist()

    def test_scores_and_gradients(self, model):
        direction = nj.mean_gradient(model, self.RECORDS, span=self.DROP)
        alone = nj.mean_gradient(model, self.RECORDS[:1])
        jax.tree.map(np.testing.assert_array_equal, direction, alone)
        scores = nj.directional_scores(model, self.RECORDS, direction, span=self.DROP)
        assert scores[0] > 0 and np.isnan(scores).tolist() == [False, True, True] and scores.dtype == np.float32
        cut = nj.directional_scores(model, self.RECORDS, direction, span=self.CUT)
        assert np.isnan(cut).tolist() == [False, False, True] and cut[0] == pytest.approx(scores[0], rel=1e-4)
        as_row = nj.token_rows(model, self.RECORDS[:2], span=self.CUT)[1]
        assert cut[1] == pytest.approx(nj.directional_scores(model, [as_row], direction)[0], rel=1e-4)

    def test_stacked_directions_kernels_and_logits(self, model):
        direction = nj.mean_gradient(model, self.RECORDS[:1])
        both = nj.directional_scores(model, self.RECORDS, nj.stack_directions([direction] * 2), span=self.DROP)
        assert both.shape == (3, 2) and np.isnan(both[1:]).all() and np.isfinite(both[0]).all()
        gram = nj.ntk(model, self.RECORDS, kind="pseudo", span=self.DROP)
        assert np.isfinite(gram).tolist() == [[True, False, False], [False] * 3, [False] * 3]
        found = nj.logits(model, self.RECORDS, span=self.DROP)
        row = nj.token_rows(model, self.RECORDS[:1])[0]
        assert [len(values) for values in found] == [row.span.sum(), 0, 0]

    def test_sketches(self, model, tmp_path):
        z = nj.sketch(model, self.RECORDS, dim=256, span=self.DROP)
        assert np.isfinite(z[0]).all() and np.isnan(z[1:]).all()
        store = nj.sketch(model, self.RECORDS, dim=256, span=self.DROP, out=tmp_path / "s", out_dtype="float32")
        assert store.read("status").tolist() == [0, 1, 2]
        np.testing.assert_allclose(store.read("sketch", 0, 1) * store.read("sketch_norm", 0, 1), z[:1], rtol=1e-4)
        projection = nj.Projection("rademacher", 256, seed=1)
        again = nj.sketch(model, self.RECORDS[:1], projection=projection)
        np.testing.assert_array_equal(again, nj.sketch(model, self.RECORDS[:1], dim=256, seed=1))

    def test_error_is_the_default_and_nothing_left_is_one(self, model):
        with pytest.raises(nj.UserError, match=r"example long: too long; leave it out \(at most 64 tokens; the model"):
            nj.token_rows(model, self.RECORDS, span=nj.Span(max_length=64))
        with pytest.raises(nj.UserError, match="example empty: no response tokens; leave it out, or take"):
            nj.mean_gradient(model, self.RECORDS[2:])
        with pytest.raises(nj.UserError, match=r"none of 2 examples can be used \(1 no response tokens, 1 too long\)"):
            nj.mean_gradient(model, self.RECORDS[1:], span=self.DROP)
        for options, message in (
            ({"which": "answer"}, "which = 'answer' is not one of response, all, last"),
            ({"overflow": "cut"}, "overflow = 'cut' is not one of error, drop, truncate"),
            ({"template": "chatml"}, "template = 'chatml' is not one of auto, chat, plain"),
            ({"max_length": 1}, "max_length = 1; an example needs at least 2"),
        ):
            with pytest.raises(nj.UserError, match=message):
                nj.Span(**options)
        with pytest.raises(nj.UserError, match="which = 'answer' is not one of"):
            nj.token_rows(model, self.RECORDS, span="answer")


def test_logits_are_those_of_each_example_alone(model):
    rows = random_rows(5)
    found = nj.logits(model, [{"input_ids": r.ids, "span": r.span} for r in rows])
    for row, values in zip(rows, found, strict=True):
        own = {
            "tokens": row.ids[None],
            "positions": np.arange(len(row.ids))[None],
            "segments": np.ones((1, len(row.ids))),
        }
        hidden = hidden_states(model.graphdef, model.lora, model.base, *own.values())
        expected = np.asarray(hidden[0].astype(np.float32) @ head_matrix(model.base).T)[row.span]
        assert values.shape == (row.span.sum(), model.config.vocab_size) and values.dtype == np.float32
        np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


class TestMistakes:
    def test_kernels_and_sketches_refuse_what_gradients_refuse(self, inputs, model):
        fresh = nj.load_model(str(inputs / "model"), lora=nj.LoRAConfig(rank=2))
        for function in (nj.ntk, nj.sketch):
            with pytest.raises(nj.UserError, match="the LoRA adapter is fresh"):
                function(fresh, str(inputs / "domain.jsonl"))
            with pytest.raises(nj.UserError, match="the list is empty"):
                function(model, [])
        with pytest.raises(nj.UserError, match="dim = 1048576 is larger than"):
            nj.sketch(model, str(inputs / "domain.jsonl"), dim=2**20)

    def test_fresh_adapter(self, inputs):
        fresh = nj.load_model(str(inputs / "model"), lora=nj.LoRAConfig(rank=2))
        with pytest.raises(nj.UserError, match="the LoRA adapter is fresh"):
            nj.mean_gradient(fresh, str(inputs / "domain.jsonl"))
        nj.mean_gradient(fresh, str(inputs / "domain.jsonl"), allow_fresh_lora=True)

    def test_no_adapter(self, inputs):
        bare = nj.load_model(str(inputs / "model"))
        with pytest.raises(nj.UserError, match="has no LoRA adapter"):
            nj.mean_gradient(bare, str(inputs / "domain.jsonl"))
        nj.mean_gradient(bare, str(inputs / "domain.jsonl"), parameters="all")

    def test_too_long(self, model, inputs):
        with pytest.raises(nj.UserError, match="box-0: too long; leave it out"):
            nj.mean_gradient(model, str(inputs / "domain.jsonl"), span=nj.Span(max_length=5))

    def test_longer_than_the_model(self, model):
        length = model.config.max_positions + 1
        with pytest.raises(nj.UserError, match=rf"too long; leave it out \(at most {length - 1} tokens"):
            nj.mean_gradient(model, [{"input_ids": [1] * length, "span": [1] * length}])

    def test_token_outside_the_vocabulary(self, model):
        with pytest.raises(nj.UserError, match="token id 9999"):
            nj.mean_gradient(model, [{"input_ids": [1, 9999], "span": [1, 0]}])

    @pytest.mark.parametrize("name", ["float16", "fp16"])
    def test_dtype(self, model, name):
        with pytest.raises(nj.UserError, match=f"dtype = '{name}' is not one of"):
            nj.mean_gradient(model, [{"input_ids": [1, 2], "span": [1, 0]}], dtype=name)

    def test_unknown_name(self):
        with pytest.raises(AttributeError, match="no attribute 'sketches'"):
            _ = nj.sketches
