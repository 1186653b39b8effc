"""Our decoder against transformers' PyTorch models with PEFT adapters: logits and LoRA gradients.

Golden arrays are always compared; with torch and peft installed the same is done live and in full. The mutation tests
show that the comparison sees what public ports get wrong: each wrong model misses by a hundred tolerances.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_calls import logits_of, whole_rows

from ntk_jax.models.config import ModelConfig, config_to_hf, parse_config
from ntk_jax.models.decoder import abstract_decoder, hidden_states
from ntk_jax.models.head import head_matrix, target_log_probs
from ntk_jax.models.model import Model, load_model, with_lora
from ntk_jax.models.rope import inverse_frequencies
from ntk_jax.models.rope_scaling import LinearScaling, YarnScaling, rope_to_hf

LOGIT_TOLERANCE = 2e-4  # largest error over the largest logit; fp32 PyTorch against itself in fp64: 3e-5
GRADIENT_TOLERANCE = 5e-4  # root-mean-square error of a leaf, relative to the leaf's own
WIDE_MARGIN = 100  # a wrong model misses by at least so many tolerances: 2% of the largest logit


@functools.cache
def model_of(case: str, root: Path) -> Model:
    model = load_model(str(cases.write_checkpoint(case, root / case)), lora=cases.LORA, tokenizer=False)
    return with_lora(model, jax.tree.map(jnp.asarray, cases.lora_leaves(case)))


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    root = tmp_path_factory.mktemp("parity")
    return lambda case: model_of(case, root)


@functools.partial(jax.jit, static_argnums=0)
def gradient_of(graphdef: Any, lora: Any, base: Any, tokens: jax.Array) -> Any:
    def mean_log_prob(lora: Any) -> jax.Array:
        hidden = hidden_states(graphdef, lora, base, *whole_rows(tokens), remat=True)
        return target_log_probs(hidden[:, :-1], tokens[:, 1:], head_matrix(base), vocab_chunk=128).mean()

    return jax.grad(mean_log_prob)(lora)


def golden(case: str) -> Mapping[str, np.ndarray]:
    return np.load(cases.GOLDEN / f"parity_{case}.npz")


def logit_error(case: str, model: Model, length: int = cases.LENGTH) -> float:
    """Largest error at the golden positions of the first tokens, relative to the largest logit."""
    logits = logits_of(model, cases.token_ids(case)[:, :length])
    positions, entries = cases.logit_sample(case)
    within = positions < length
    expected = golden(case)["logits"][within]
    return float(np.abs(logits[0][np.ix_(positions[within], entries)] - expected).max() / np.abs(expected).max())


def leaf_error(value: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("case", cases.CASES)
def test_logits_are_those_of_the_golden_file(case: str, load: Callable[[str], Model]) -> None:
    assert logit_error(case, load(case)) < LOGIT_TOLERANCE


@pytest.mark.parametrize("case", cases.CASES)
def test_lora_gradients_are_those_of_the_golden_file(case: str, load: Callable[[str], Model]) -> None:
    model, expected = load(case), golden(case)
    gradient = gradient_of(model.graphdef, model.lora, model.base, jnp.asarray(cases.token_ids(case)))
    for name, parts in gradient["layers"].items():
        for part, value in parts.items():
            sample = np.asarray(value).ravel()[cases.gradient_sample(value.size)]
            assert leaf_error(sample, expected[f"{name}.{part}"]) < GRADIENT_TOLERANCE, f"{name}.{part}"


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of peft calling transformers
@pytest.mark.parametrize("case", cases.CASES)
def test_live_comparison_with_pytorch(case: str, load: Callable[[str], Model], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    from parity_torch import reference

    expected, gradients = reference(case, tmp_path)
    model, ids = load(case), jnp.asarray(cases.token_ids(case))
    logits = logits_of(model, ids)
    assert np.abs(logits - expected).max() < LOGIT_TOLERANCE * np.abs(expected).max()
    errors = jax.tree.map(leaf_error, gradient_of(model.graphdef, model.lora, model.base, ids), gradients)
    assert max(jax.tree.leaves(errors)) < GRADIENT_TOLERANCE, errors


def mutant(model: Model, base: Any = None, **changes: Any) -> Model:
    """The same weights under another config."""
    config: ModelConfig = dataclasses.replace(model.config, **changes)
    graphdef = abstract_decoder(config, model.lora_config, jnp.float32)[0]
    return dataclasses.replace(model, config=config, graphdef=graphdef, base=model.base if base is None else base)


def without(base: Mapping[str, Any], *paths: str) -> dict[str, Any]:
    """The base tree less some leaves of its layers, given as `q_norm` or `q_proj/bias`."""
    layers = {name: dict(leaf) if isinstance(leaf, dict) else leaf for name, leaf in base["layers"].items()}
    for path in paths:
        name, _, part = path.partition("/")
        del (layers[name] if part else layers)[part or name]
    return {**base, "layers": layers}


@pytest.mark.parametrize("case", cases.CASES)
def test_a_mutated_theta_is_seen(case: str, load: Callable[[str], Model]) -> None:
    model = load(case)
    assert logit_error(case, mutant(model, rope_theta=model.config.rope_theta * 1.1)) > WIDE_MARGIN * LOGIT_TOLERANCE


@pytest.mark.parametrize("case", [case for case in cases.CASES if parse_config(cases.CASES[case], case).rope_scaling])
def test_dropped_rope_scaling_is_seen(case: str, load: Callable[[str], Model]) -> None:
    assert logit_error(case, mutant(load(case), rope_scaling=None)) > WIDE_MARGIN * LOGIT_TOLERANCE


@pytest.mark.parametrize(
    "case, change",
    [
        ("llama", {"factor": 7.0}),
        ("llama", {"low_freq_factor": 1.5}),
        ("llama", {"original_max_positions": 200}),
        ("mistral", {"factor": 7.9}),
        ("qwen2_yarn", {"factor": 7.0}),
        ("qwen2_yarn", {"attention_factor": 1.0}),
        ("qwen2_yarn", {"truncate": False}),
        ("llama_yarn", {"original_max_positions": 200}),
        ("llama_yarn", {"beta_fast": 16.0}),
        ("llama_yarn", {"beta_slow": 1.0}),
        ("llama_yarn", {"truncate": True}),
        ("llama_yarn", {"mscale": None}),
        ("llama_yarn", {"mscale_all_dim": 0.6}),
    ],
)
def test_mutated_rope_scaling_is_seen(case: str, change: dict[str, Any], load: Callable[[str], Model]) -> None:
    model = load(case)
    assert model.config.rope_scaling is not None
    scaling = dataclasses.replace(model.config.rope_scaling, **change)
    assert logit_error(case, mutant(model, rope_scaling=scaling)) > WIDE_MARGIN * LOGIT_TOLERANCE


@pytest.mark.reference
@settings(deadline=None)
@given(
    width=st.sampled_from((32, 64, 80, 128)),
    theta=st.floats(1e3, 1e7),
    scaling=st.one_of(
        st.builds(LinearScaling, st.floats(1, 64)),
        st.builds(
            YarnScaling,
            factor=st.floats(1, 64),
            original_max_positions=st.integers(32, 65536),
            beta_fast=st.floats(8, 64),
            beta_slow=st.floats(0.25, 8),
            truncate=st.booleans(),
            attention_factor=st.none() | st.floats(0.5, 2),
            mscale=st.none() | st.floats(0.1, 2),
            mscale_all_dim=st.none() | st.floats(0.1, 2),
        ),
    ),
)
def test_scaled_frequencies_are_those_of_transformers(width: int, theta: float, scaling: Any) -> None:
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = parse_config(
        {**cases.CASES["llama"], "head_dim": width, "rope_theta": theta, **rope_to_hf(scaling)}, "config.json"
    )
    assert config.rope_scaling == scaling
    hf = config_to_hf(config)
    speeds, scale = ROPE_INIT_FUNCTIONS[hf["rope_scaling"]["rope_type"]](quietly(LlamaConfig, hf), "cpu")
    np.testing.assert_allclose(inverse_frequencies(config), speeds.numpy(), rtol=2e-6)
    assert getattr(scaling, "attention_scale", 1.0) == scale


def quietly(kind: Any, hf: Mapping[str, Any]) -> Any:
    """A config of transformers, without its opinion of the numbers."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return kind(**hf)
    finally:
        logging.set_verbosity(level)


@pytest.mark.reference
@pytest.mark.parametrize("length, same", ((64, True), (65, False)))
def test_a_window_matters_beyond_its_own_length_only(length: int, same: bool) -> None:
    """PyTorch's Mistral with a window and without: what a file with a window is held to, `max_positions` tokens."""
    torch = pytest.importorskip("torch")
    from transformers import MistralConfig, MistralForCausalLM

    hf = {**cases.CASES["mistral"], "sliding_window": 64}
    assert parse_config(hf, "config.json").max_positions == 64
    torch.manual_seed(0)
    windowed = MistralForCausalLM._from_config(MistralConfig(**hf), attn_implementation="eager")
    hf["sliding_window"] = None
    full = MistralForCausalLM._from_config(MistralConfig(**hf), attn_implementation="eager")
    full.load_state_dict(windowed.state_dict())
    ids = torch.tensor(cases.token_ids("mistral")[:, :length])
    with torch.no_grad():
        assert torch.equal(windowed(ids).logits, full(ids).logits) is same


def test_dropped_qk_norm_is_seen(load: Callable[[str], Model]) -> None:
    model = load("qwen3")
    wrong = mutant(model, base=without(model.base, "q_norm", "k_norm"), qk_norm=False)
    assert logit_error("qwen3", wrong) > WIDE_MARGIN * LOGIT_TOLERANCE


def test_dropped_biases_are_seen(load: Callable[[str], Model]) -> None:
    qwen = load("qwen2")
    wrong = mutant(qwen, base=without(qwen.base, "q_proj/bias", "k_proj/bias", "v_proj/bias"), qkv_bias=False)
    assert logit_error("qwen2", wrong) > WIDE_MARGIN * LOGIT_TOLERANCE
    llama = load("llama_bias")
    wrong = mutant(llama, base=without(llama.base, "o_proj/bias"), o_bias=False)
    assert logit_error("llama_bias", wrong) > WIDE_MARGIN * LOGIT_TOLERANCE


@pytest.mark.parametrize(  # the others have no other leaves, nor has llama any that llama_bias and qwen3 have not
    "case", (pytest.param("llama", marks=pytest.mark.slow), "llama_bias", "qwen2", "qwen3")
)
def test_every_single_leaf_matters(case: str, load: Callable[[str], Model]) -> None:
    """A leaf put back to what it would be if it did not exist (a norm 1, all else 0) is seen, one at a time, in the
    first 128 tokens."""
    model = load(case)
    assert logit_error(case, model, 128) < LOGIT_TOLERANCE
    leaves, treedef = jax.tree_util.tree_flatten_with_path({"base": model.base, "lora": model.lora})
    for i, (path, leaf) in enumerate(leaves):
        name = jax.tree_util.keystr(path)
        neutral = jnp.ones_like(leaf) if "norm" in name else jnp.zeros_like(leaf)
        tree = jax.tree.unflatten(treedef, [neutral if i == j else other for j, (_, other) in enumerate(leaves)])
        error = logit_error(case, dataclasses.replace(model, base=tree["base"], lora=tree["lora"]), 128)
        assert error > WIDE_MARGIN * LOGIT_TOLERANCE, name


def test_the_adapter_scale_is_seen(load: Callable[[str], Model]) -> None:
    model = load("llama")
    assert model.lora_config is not None
    other = dataclasses.replace(model.lora_config, alpha=model.lora_config.alpha * 1.1)
    graphdef = abstract_decoder(model.config, other, jnp.float32)[0]
    assert logit_error("llama", dataclasses.replace(model, graphdef=graphdef)) > WIDE_MARGIN * LOGIT_TOLERANCE
