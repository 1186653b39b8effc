"""`ntk-jax estimate`: counts against arithmetic by hand, memory against XLA's own account.

What a finished run counted and wrote is compared in test_pipeline.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_run_config, write_inputs

from ntk_jax import cli, pipelines
from ntk_jax.data.batch import Batch, TokenRow
from ntk_jax.data.packing import pad_by_length
from ntk_jax.engine import estimate, rates
from ntk_jax.engine.config import build, load_config, to_tree
from ntk_jax.engine.costs import Grounds, Work
from ntk_jax.engine.estimate import hours_of
from ntk_jax.engine.estimate_text import as_text, device_time
from ntk_jax.engine.progress import Progress
from ntk_jax.engine.rates import Rate
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.step import Step, directional_step
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import abstract_decoder
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.memory import Shape, backward_bytes, score_bytes
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.parallel.rules import param_shardings
from ntk_jax.pipelines.common.pool import Pool
from ntk_jax.pipelines.common.shape import abstract_model
from ntk_jax.pipelines.select import load, measure, memory
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.selection.rankers import RANKERS
from ntk_jax.training.loss import loss_sum
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.order import count_seen, count_steps, step_indices

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
STATED: dict[str, Any] = {
    "model": {"path": "not/here", "max_length": 64},
    "lora": {"rank": 2},
    "data": {"domain": ["not/here.jsonl"], "pool": ["not/here/*.jsonl"]},
    "warmup": {"max_steps": 10, "batch_size": 10},
    "finetune": {"epochs": 2, "batch_size": 40},
    "score": {"batch_tokens": 512},
    "preselect": {"method": "votes", "keep": 400, "neighbours": 5},
    "select": {"count": 80},
    "evaluate": {"files": ["not/here.test.jsonl"], "arms": ["base", "domain", "kernel"]},
    "report": {"examples": 0},
    "estimate": {
        "shape": {
            "model_type": "llama",
            "vocab_size": 100,
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
        },
        "pool_examples": 1000,
        "domain_examples": 40,
        "tokens_per_example": 20,
        "response_share": 0.25,
        "questions": 30,
        "tokens_per_question": 30,
        "choice_tokens": 6,
        "devices": 1,
    },
}


def config(**sections: dict[str, Any]) -> SelectConfig:
    tree = {**STATED, **{n: {**STATED.get(n, {}), **s} for n, s in sections.items()}}
    found: SelectConfig = build(SelectConfig, tree, "test")
    return found


def changed(one: SelectConfig, **sections: dict[str, Any]) -> SelectConfig:
    found: SelectConfig = build(SelectConfig, {**to_tree(one), **sections}, "test")
    return found


def estimate_run(one: SelectConfig) -> dict[str, Any]:
    return estimate.estimate_run(pipelines.pipeline("select"), one)


def abstract_run(one: SelectConfig) -> SelectRun:
    pool = Pool(one.data.pool, None, one.seed, "auto", Progress)
    return SelectRun(one, Job(Path(one.out), Progress), abstract_model(one, Grounds()), pool)


def stage(found: dict[str, Any], name: str, part: str | None = None) -> dict[str, Any]:
    return next(row for row in found["stages"] if (row["stage"], row["part"]) == (name, part))


def ground(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(fact for fact in found["grounds"] if fact["name"] == name)


# -- counts ----------------------------------------------------------------------------------------------------------


def test_counts_are_those_by_hand() -> None:
    found = estimate_run(config())
    # a layer: q and o 8 × 8, k and v 8 × 4, three of 8 × 12; adapters of rank 2 on all seven
    trunk = 3 * (2 * 64 + 2 * 32 + 3 * 96)
    lora = 3 * 2 * (2 * (8 + 8) + 2 * (8 + 4) + 3 * (8 + 12))
    assert ground(found, "P")["value"] == trunk == 1440
    assert ground(found, "parameters")["value"] == {"base": 2 * 100 * 8 + trunk + 3 * 16 + 8, "lora": lora}
    # 10 steps of 10 of 40 examples, 20 tokens each, a quarter of them labels that meet a head of 100 × 8
    assert stage(found, "warmup")["tokens"] == 10 * 10 * 20
    assert stage(found, "warmup")["flops"] == 2000 * (4 * trunk + 6 * lora) + 500 * 4 * 800
    assert stage(found, "preselect")["tokens"] == 1040 * 20
    assert stage(found, "preselect")["flops"] == 20800 * 2 * (trunk + lora) + 2 * 40 * 1000 * 8
    assert stage(found, "score")["examples"] == 400
    assert stage(found, "score")["flops"] == 8000 * (4 * trunk + 6 * lora)
    assert stage(found, "gradient")["flops"] == 800 * (6 * trunk + 8 * lora)
    # 120 examples, 3 steps an epoch, two epochs; the domain alone as many steps of its one part of 40
    assert stage(found, "finetune", "kernel")["tokens"] == 240 * 20
    assert stage(found, "finetune", "domain")["tokens"] == 6 * 40 * 20
    assert stage(found, "evaluate")["tokens"] == 3 * 30 * 30
    assert stage(found, "evaluate")["flops"] == 2700 * 2 * (trunk + lora) + 3 * 30 * 6 * 2 * 800
    whole = found["whole_pool"]
    assert (whole["examples"], whole["tokens"]) == (1000, 20000)
    assert whole["flops"] == 20000 * (4 * trunk + 6 * lora) and whole["flops_of_4_p"] == 20000 * 4 * trunk
    assert found["total"]["flops"] == sum(row["flops"] for row in found["stages"])
    assert found["total"]["device_hours"] is None and "need a rate" in found["no_rate"]


def test_other_ways_to_select() -> None:
    found = estimate_run(config(preselect={"method": "none", "keep": None}, score={"objective": "probe", "probes": 3}))
    trunk, lora = 1440, ground(estimate_run(config()), "parameters")["value"]["lora"]
    assert stage(found, "score")["flops"] == 20000 * (8 * trunk + 14 * lora)  # (1 + 3) passes, LoRA (1 + 2 × 3)
    sketch = stage(
        estimate_run(
            config(select={"methods": ["sketch"], "count": 80}, evaluate={"arms": ["base"]}, sketch={"dim": 64})
        ),
        "sketch",
    )
    gradient = 6 * trunk + 8 * lora
    assert sketch["examples"] == 440
    assert sketch["flops"] == pytest.approx(8800 * gradient + 440 * 2 * lora * 64)
    assert sketch["flops_with_padding"] == pytest.approx(440 * 32 * gradient + 440 * 2 * lora * 64)  # a row of 32


def test_rankers_by_gradients_of_single_examples() -> None:
    """400 candidates of 20 tokens and a domain of 40; a quarter are labels that meet a head of 100 × 8."""
    trunk, lora = 1440, ground(estimate_run(config()), "parameters")["value"]["lora"]
    options = {"less": {"checkpoints": 3}, "low_rank": {"components": 5}, "count": 80}
    found = estimate_run(
        config(select={"methods": ["less", "low_rank"], **options}, evaluate={"arms": ["base"]}, sketch={"dim": 64})
    )
    gradient = 6 * trunk + 8 * lora
    less = stage(found, "less")
    labels = 440 * 5
    each = 8800 * gradient + labels * 3 * 2 * 800 + 440 * 2 * lora * 64
    assert less["examples"] == 3 * 440 and less["tokens"] == 3 * 8800
    assert less["flops"] == pytest.approx(3 * each)
    # All gradients of so small a domain are held at once, so that the Gram matrix takes each once.
    # Directions come four and one together: a forward pass each, and for each direction another and a backward pass.
    forward, backward = 2 * trunk + 2 * lora, 4 * trunk + 6 * lora
    made = 800 * (2 * forward + 5 * backward)
    assert stage(found, "subspace")["flops"] == pytest.approx(800 * gradient + made)
    assert stage(found, "low_rank")["flops"] == 8000 * ((1 + 5) * 2 * trunk + 2 * (1 + 2 * 5) * lora)
    assert found["disk"]["less"]["kept"] > 3 * 440 * 64 * 2


@pytest.mark.parametrize("settings", [{"epochs": 3.0}, {"epochs": 0.4}, {"max_steps": 0}, {"max_steps": 17}])
@pytest.mark.parametrize("examples", [1, 8, 23, 64])
def test_examples_seen(settings: dict[str, Any], examples: int) -> None:
    training = TrainConfig(batch_size=8, **settings)
    steps = range(count_steps(examples, training))
    assert count_seen(examples, training) == sum(len(step_indices(step, examples, 8, 0)) for step in steps)


@pytest.mark.parametrize(
    ("name", "billions", "trunk"),
    [
        ("llama3_8b", 8.03, 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)),
        ("qwen3_8b", 8.19, 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288)),
    ],
)
def test_the_recipes_of_8b(name: str, billions: float, trunk: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Their published parameter counts; the whole pool of 1.8M by 4 P tokens, beside the paper's hours."""
    found = estimate_run(load_config(CONFIGS / f"{name}.yaml", SelectConfig, ["--model.path=not/here"]))
    assert round(ground(found, "parameters")["value"]["base"] / 1e9, 2) == billions
    whole, tokens = found["whole_pool"], 1_800_000 * 256
    assert whole["tokens"] == tokens and whole["flops_of_4_p"] == 4 * trunk * tokens
    assert 1 < whole["flops"] / (4 * trunk * tokens) < 1.01  # the rest is LoRA
    assert whole["device_hours"] == pytest.approx(whole["flops"] / (312e12 * 0.4) / 3600)
    assert whole["device_hours_at_peak"] == pytest.approx(whole["flops"] / 312e12 / 3600)
    for key in ("tokens a pool example", "peak rate", "utilization", "model shape", "questions"):
        assert ground(found, key)["assumed"]
    assert cli.main(["estimate", str(CONFIGS / f"{name}.yaml"), "--model.path=not/here"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("31 A100-hours", "312 TFLOP/s for one A100 (NVIDIA's datasheet", "256 on average", "40% of the peak"):
        assert part in text
    assert "Too much for one device" not in text
    assert (
        cli.main(["estimate", str(CONFIGS / f"{name}.yaml"), "--model.path=not/here", "--score.batch_tokens=131072"])
        == 0
    )
    text = " ".join(capsys.readouterr().out.split())
    assert "Too much for one device of 80.0 GB: gradient, score, align. Lower score.batch_tokens or" in text


def test_rates_of_devices() -> None:
    names = {
        "NVIDIA A100-SXM4-80GB": "A100",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H200": "H200",
        "NVIDIA H100 PCIe": None,  # slower than the SXM card
        "TPU v4": "v4",
        "TPU v5 lite": "v5e",
        "TPU v5p": "v5p",
        "TPU v5": "v5p",
        "TPU v6 lite": "v6e",
        "cpu": None,
    }
    assert {name: rates.kind_of(name) for name in names} == names
    assert set(rates.SHEETS) == set(rates.PEAKS)
    bf16, hours = {"dtype": "bfloat16"}, {"device": "H200", "utilization": 0.5}
    found = estimate_run(config(model=bf16, estimate=hours))
    padded = stage(found, "preselect")["flops_with_padding"]
    assert stage(found, "preselect")["device_hours"] == pytest.approx(padded / (989e12 / 2) / 3600)
    assert estimate_run(config(estimate=hours))["rate"] is None  # float32 has another rate
    assert estimate_run(config(estimate={"rate": 1e12}))["rate"]["forward"] == pytest.approx(0.4e12)


def test_device_hours_follow_from_the_rates() -> None:
    rate = Rate(forward=2e12, backward=1e12, device="H200", peak=4e12)
    work = Work(1, 10, 1e15, 3.6e15)  # computed, with padding, is what takes the time
    assert hours_of(work, rate) == pytest.approx(0.5)
    assert hours_of(dataclasses.replace(work, kind="backward"), rate) == pytest.approx(1.0)
    assert hours_of(work, None) is None


def test_times_are_in_the_unit_that_suits_them() -> None:
    seconds = {0.5: "0.5 s", 9.94: "9.9 s", 12: "12 s", 99: "99 s", 100: "1.7 min", 300: "5 min", 3600: "60 min",
               5940: "1.6 h", 7200: "2.0 h", 360000: "100 h", 4.32e6: "1,200 h"}  # fmt: skip
    assert {each: device_time(each / 3600) for each in seconds} == seconds


def test_the_table_states_times_of_the_rate() -> None:
    found = estimate_run(config(estimate={"rate": 1e9, "utilization": 0.5}))
    hours = stage(found, "score")["flops_with_padding"] / 0.5e9 / 3600
    [line] = [line for line in as_text(found).splitlines() if line.startswith("score ")]
    assert f" {device_time(hours)} " in line and "device time" in as_text(found).splitlines()[0]
    assert found["total"]["device_hours"] == pytest.approx(sum(row["device_hours"] or 0 for row in found["stages"]))
    assert "0.001 TFLOP/s for one device" in as_text(found)
    silent = as_text(estimate_run(config()))
    assert "device time" not in silent.splitlines()[0] and "Device-hours need a rate: none is known for 'cpu'" in silent


def test_several_devices_share_the_time_of_one() -> None:
    found = estimate_run(config(estimate={"rate": 1e9, "devices": 4}, mesh={"data": 4}))
    wall = device_time(found["total"]["device_hours"] / 4)
    assert f"On 4 devices, if all are busy all the time: {wall}." in as_text(found)


def test_memory_on_a_cpu_includes_the_process() -> None:
    """Arrays lie in the memory of the process there; a device has memory of its own."""
    here, device = (estimate_run(config(estimate={"device": kind})) for kind in (None, "A100"))
    resident = here["process_memory"]
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert 0.5 * now < resident <= 1.1 * now and resident > 100e6
    assert stage(here, "score")["memory"] - resident == stage(device, "score")["memory"] < 10e6
    fact = ground(here, "memory of a process")
    assert not fact["assumed"] and fact["value"] == resident
    assert fact["text"] == f"{resident / 1e9:.1f} GB beside the arrays, in the column of memory"
    assert ground(device, "memory of a process")["text"].endswith("beside the arrays, on the host")
    assert here["device_memory"] is None and device["device_memory"] == 80e9


def test_a_pipeline_without_costs_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps({**STATED, "pipeline": "diagnose"}))
    assert cli.main(["estimate", str(tmp_path / "run.yaml")]) == 2
    line = "pipeline diagnose: its stage diagnose states no cost, so nothing can be estimated"
    assert capsys.readouterr().err == f"ntk-jax: error: {line}\n"


def test_every_stage_of_every_way_to_select_states_its_cost() -> None:
    every = list(RANKERS)
    for methods in (every, ["bm25", "random"], ["sketch"], ["less"], ["low_rank"], ["votes"], ["embedding"], ["paths"]):
        one = config(select={"methods": methods}, sketch={"dim": 64}, evaluate={"arms": None}, report={"examples": 3})
        if methods == ["bm25", "random"]:
            one = changed(one, preselect={"method": "none"})
        found = estimate_run(one)
        assert list(found["disk"]) == list(pipelines.pipeline("select").of(one))
        parts = [row["part"] for row in found["stages"] if row["stage"] == "finetune"]
        assert parts == ["domain", *methods[1:], methods[0]]
        assert all(disk["kept"] > 0 for disk in found["disk"].values())
        for name in found["disk"]:
            assert f"\n{name} " in as_text(found)


# -- files that are here ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SelectConfig:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return tiny_run_config(folder)


def test_a_sample_stands_for_the_pool(tiny: SelectConfig) -> None:
    before = estimate_run(tiny)
    assert not Path(tiny.out).exists()  # an estimate writes nothing
    few = estimate_run(changed(tiny, estimate={"sample": 20}))
    assert "standard error" in ground(few, "tokens a pool example")["text"]
    assert stage(few, "score")["tokens"] == pytest.approx(stage(before, "score")["tokens"], rel=0.3)
    again = estimate_run(changed(tiny, estimate={"sample": 20}))
    assert few["total"] | {"memory": 0} == again["total"] | {"memory": 0}  # the process grows meanwhile


def measured(one: SelectConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The JSON of `ntk-jax estimate --measure --json`, each step run no more often than it must."""
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    (folder / "run.yaml").write_text(json.dumps(to_tree(one)))
    target = folder / "estimate.json"
    assert cli.main(["estimate", str(folder / "run.yaml"), "--measure", "--json", str(target)]) == 0
    return json.loads(target.read_text())


def test_json_and_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one = config(mesh={"data": 1})
    found = measured(one, tmp_path, monkeypatch)
    assert [row["flops"] for row in found["stages"]] == [row["flops"] for row in estimate_run(one)["stages"]]
    assert found["rate"]["forward"] > 0 and found["rate"]["backward"] > 0 and found["rate"]["peak"] is None
    assert not ground(found, "score step")["assumed"] and ground(found, "weights of the measurement")["assumed"]
    score = stage(found, "score")
    assert score["device_hours"] == score["flops_with_padding"] / found["rate"]["forward"] / 3600 > 0
    text = capsys.readouterr().out
    assert "device time" in text and "measured here" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.slow
def test_measure_with_real_weights_on_a_mesh(
    tiny: SelectConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(changed(tiny, mesh={"fsdp": 4, "data": 2}), tmp_path, monkeypatch)
    assert not ground(found, "weights of the measurement")["assumed"] and found["devices"] == 8
    assert found["rate"]["forward"] > 0 and found["rate"]["backward"] > 0


@pytest.mark.slow
def test_random_weights_are_made_where_they_lie() -> None:
    shapes, mesh = abstract_run(config()).model.base, make_mesh(1, 4, 2)
    made = measure.random_weights(shapes.base, mesh)
    for leaf, shape in zip(jax.tree.leaves(made), jax.tree.leaves(shapes.base), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    kernel = made["layers"]["gate_proj"]["kernel"]
    assert 0.01 < float(jnp.std(kernel)) < 0.03 and kernel.addressable_shards[0].data.shape == (3, 2, 6)


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_users_compile() -> Iterator[None]:
    """The tests' compiler does not fuse; its account of memory is not that of a run."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_memory_against_the_compiler(as_users_compile: None) -> None:
    """Within a factor of 2 of `memory_analysis` (arguments and temporaries), for a shape that was not fitted."""
    shape = ModelConfig("llama", 20000, 192, 640, 3, 6, 2, 32)
    graphdef, lora, base = abstract_decoder(shape, LoRAConfig(4, 8.0), jnp.float32)
    rows, length, labels = 4, 192, 96
    integers = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    span = jax.ShapeDtypeStruct((rows, length), jnp.bool)

    def batch(*slots: int) -> Batch:
        given = jax.ShapeDtypeStruct(slots, jnp.int32)
        return Batch(integers, integers, integers, span, given, given, given)

    def account(compiled: Any) -> float:
        found = compiled.memory_analysis()
        return found.argument_size_in_bytes + found.temp_size_in_bytes

    lies = 4.0 * sum(leaf.size for leaf in jax.tree.leaves((base, lora)))
    direction = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, 1, *leaf.shape), jnp.float32), lora)
    step = Step(graphdef, jnp.dtype(jnp.float32), Objective("sum_logits"), "lora", 16)
    read = jax.ShapeDtypeStruct((1, 192), jnp.float32)
    score = directional_step.lower(step, lora, {"base": base}, read, direction, batch(rows, 1)).compile()
    assert 0.5 < (lies + score_bytes(shape, Shape(rows, length), 4, 1)) / account(score) < 2

    def loss(lora: Any, base: Any, batch: Batch) -> jax.Array:
        return loss_sum(graphdef, lora, base, batch, remat=True)[0]

    train = jax.jit(jax.value_and_grad(loss)).lower(lora, base, batch(1, rows * labels)).compile()
    model = backward_bytes(shape, Shape(rows, length, rows * labels), 4, True)
    assert 0.5 < (lies + model) / account(train) < 2


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_weights_are_split_as_the_rules_say(sizes: tuple[int, int, int]) -> None:
    """A device's part, against the arrays that really lie on one."""
    data, fsdp, tensor = sizes
    one = abstract_run(config(mesh={"data": data, "fsdp": fsdp, "tensor": tensor}, estimate={"devices": None}))
    real = make_mesh(*sizes)
    arrays = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), one.model.base.base)
    placed = jax.device_put(arrays, param_shardings(arrays, real))
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    gathered = 0.0
    if fsdp * tensor > 1:
        gathered = arrays["embed"].nbytes + sum(a.nbytes for a in jax.tree.leaves(arrays["layers"])) / 3 / tensor
    assert memory.weights(one) == pytest.approx(own + gathered)


def test_quantized_weights_count_as_they_are_held() -> None:
    plain, held = (abstract_run(config(model={"quantization": kind})) for kind in (None, "int8"))
    matrices = [leaf for leaf in jax.tree.leaves(plain.model.base.base["layers"]) if len(leaf.shape) == 3]
    scales = sum(4 * leaf.shape[0] * leaf.shape[2] for leaf in matrices)
    widened = 4 * max(leaf.size for leaf in matrices) / 3  # one matrix of one of the three layers
    saved = sum(3 * leaf.size for leaf in matrices) - scales - widened
    assert memory.weights(plain) - memory.weights(held) == pytest.approx(saved)
    made = measure.random_weights(held.model.base.base, None)
    assert jax.tree.map(lambda leaf: leaf.dtype, made) == jax.tree.map(lambda leaf: leaf.dtype, held.model.base.base)
    assert np.unique(made["layers"]["up_proj"]["kernel"]).size > 100


def test_memory_grows_with_the_batch() -> None:
    device = {"device": "A100"}  # of its own memory: a process grows between the two
    small, large = (estimate_run(config(score={"batch_tokens": n}, estimate=device)) for n in (512, 4096))
    assert stage(small, "score")["memory"] < stage(large, "score")["memory"]
    assert stage(small, "warmup")["memory"] == stage(large, "warmup")["memory"]


@pytest.mark.parametrize("count", [24, 100, 1000, 5000])
def test_padding_of_single_examples_is_that_of_their_batches(count: int) -> None:
    """Of as many examples as a block has; short ones lie in short rows, but for what is left over."""
    lengths = np.clip(np.random.default_rng(count).lognormal(4.4, 0.8, 1000).astype(int), 8, 512)
    theta = {"a": jax.ShapeDtypeStruct((100, 30), np.float32)}
    sections = {"model": {"max_length": 512}, "score": {"batch_tokens": 8192}, "sketch": {"block_examples": 2048}}
    section = SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in sections.items()})
    run = SimpleNamespace(
        config=section, model=SimpleNamespace(mesh=None), theta=theta, objective=SimpleNamespace(channels=1)
    )
    fill = load.single_fill(run, lengths, count)  # type: ignore[arg-type]
    taken = np.sort(lengths)[np.arange(min(count, 2048)) * 1000 // min(count, 2048)]
    rows = [TokenRow(np.zeros(n, np.int32), np.ones(n, bool)) for n in taken]
    made = pad_by_length(rows, row_length=512, rows_per_batch=16, most_rows=2**30 // 12000)
    assert fill == pytest.approx(taken.sum() / sum(packed.batch.tokens.size for packed in made))
    assert (fill > 0.6) if count >= 1000 else (0.1 < fill < 0.6)


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"estimate": {"shape": {}}}, "no config.json on this machine .* as estimate.shape"),
        ({"estimate": {"shape": {"model_type": "llama"}}}, "estimate.shape: hidden_size is missing"),
        ({"estimate": {"pool_examples": None}}, "data.pool: none of not/here/.* is here; .*estimate.pool_examples"),
        ({"estimate": {"domain_examples": None}}, "data.domain: none of .*estimate.domain_examples"),
        ({"estimate": {"questions": None}}, "evaluate.files: none of .*estimate.questions"),
        ({"estimate": {"tokens_per_example": None}}, "data.pool: its tokens cannot be counted .*tokens_per_example"),
        ({"estimate": {"device": "abacus"}}, "estimate.device = 'abacus' is not one of A100, .*estimate.rate"),
        ({"estimate": {"devices": 4}, "mesh": {"data": 3}}, "mesh data=3, fsdp=1, tensor=1 does not fit 4 devices"),
        ({"select": {"count": 1001}, "preselect": {"keep": 2000}}, "select.count = 1001 is larger than the pool"),
        (
            {"select": {"methods": ["sketch"]}, "evaluate": {"arms": ["base"]}, "sketch": {"dim": 8192}},
            "dim = 8192 is larger than the",
        ),
        ({"score": {"parameters": "nothing"}}, "matches no parameter"),
        ({"model": {"max_length": 128}}, "model.max_length = 128 is more than the 64 positions"),
        ({"model": {"path": "builtin:other"}}, "no such builtin model"),
    ],
)
def test_what_is_not_known_is_named(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        estimate_run(config(**sections))
    assert "\n" not in str(caught.value)


def test_a_stated_mistral_has_the_positions_that_are_stated() -> None:
    """A file that is silent about the window has one, the config does not."""
    shape = {**STATED["estimate"]["shape"], "model_type": "mistral", "max_position_embeddings": 32768}
    run = abstract_run(config(estimate={"shape": shape}, model={"max_length": 8192}))
    assert run.model.base.config.max_positions == 32768


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimate.pool_exampels=3"], "unknown key estimate.pool_exampels; did you mean estimate.pool_examples?"),
        (["--estimate.shape.hidden=3"], "unknown key estimate.shape.hidden; did you mean estimate.shape.hidden_size?"),
        (["--estimate.utilization=1.5"], "estimate.utilization = 1.5 must be between 0.01 and 1"),
        (["--frobnicate"], "unknown argument '--frobnicate'"),
        (["--measure"], "--measure: the steps need about"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measure, "memory_limit", lambda count: 1000)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(STATED))
    assert cli.main(["estimate", str(path), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ntk-jax: error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
