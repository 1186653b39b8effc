"""Adapters: targets, start, folding, and PEFT's format out and in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parity_cases as cases
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_calls import hidden_of, logits_of
from safetensors.numpy import load_file, save_file

from ntk_jax.errors import UserError
from ntk_jax.kernels.parameters import refuse_fresh_lora
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import abstract_decoder
from ntk_jax.models.lora import LINEARS, LoRAConfig, fold, initial_lora, is_fresh, target_names
from ntk_jax.models.model import Model, load_model, random_model, with_lora
from ntk_jax.models.names import MODULES
from ntk_jax.models.peft import load_adapter, save_adapter
from ntk_jax.models.peft_config import KEYS, check_keys, shapes_of

CONFIG = ModelConfig("qwen3", 50, 32, 48, 3, 4, 2, 16, qk_norm=True)
LORA = LoRAConfig(rank=4, alpha=6.0)
TOKENS = np.random.default_rng(0).integers(0, 50, (2, 24)).astype(np.int32)


def hidden(model: Model) -> jax.Array:
    return hidden_of(model, TOKENS)


def same(a: Any, b: Any) -> bool:
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return all(jax.tree.leaves(equal))


@pytest.mark.parametrize(
    "patterns, names",
    [
        (("q_proj",), ("q_proj",)),
        (("down_proj", "q_proj"), ("q_proj", "down_proj")),
        (("(q|v)_proj",), ("q_proj", "v_proj")),
        ((".*_proj",), LINEARS),
        (("[qkvo]_proj", "up.*"), ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")),
    ],
)
def test_targets_are_patterns_over_whole_names(patterns: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert target_names(LoRAConfig(targets=patterns)) == names
    model = random_model(CONFIG, lora=LoRAConfig(rank=2, targets=patterns))
    assert set(model.lora["layers"]) == set(names)


@pytest.mark.parametrize(
    "lora, message",
    [
        (LoRAConfig(targets=("q_proj", "query")), "targets: 'query' matches no layer; the names are q_proj"),
        (LoRAConfig(targets=("q_pro",)), "'q_pro' matches no layer"),
        (LoRAConfig(targets=("(",)), "'(' is not a regular expression"),
        (LoRAConfig(targets=()), "targets is empty"),
        (LoRAConfig(rank=0), "rank must be a whole number of at least 1, got 0"),
        (LoRAConfig(rank="a"), "rank must be a whole number of at least 1, got 'a'"),  # type: ignore[arg-type]
        (LoRAConfig(alpha=float("nan")), "alpha must be a number above 0, got nan"),
    ],
)
def test_a_target_that_matches_nothing_is_a_mistake(lora: LoRAConfig, message: str) -> None:
    with pytest.raises(UserError) as caught:
        random_model(CONFIG, lora=lora)
    assert message in str(caught.value)


def test_a_fresh_adapter_starts_as_pefts_and_changes_nothing() -> None:
    plain, model = random_model(CONFIG), random_model(CONFIG, lora=LORA)
    shapes = abstract_decoder(CONFIG, LORA, jnp.float32)[1]
    fresh = initial_lora(shapes, seed=0)
    assert same(fresh, initial_lora(shapes, seed=0)) and not same(fresh, initial_lora(shapes, seed=1))
    a = np.asarray(fresh["layers"]["down_proj"]["a"])  # [L, 48, R], uniform within 1/√48
    assert np.abs(a).max() <= 48**-0.5 and np.abs(a).max() > 0.95 * 48**-0.5
    assert a.std() == pytest.approx((3 * 48) ** -0.5, rel=0.1)
    assert is_fresh(fresh) and not is_fresh(model.lora) and is_fresh({})
    assert np.array_equal(hidden(with_lora(model, fresh)), hidden(plain))
    gradient = jax.grad(lambda lora: hidden(with_lora(model, lora)).sum())(fresh)
    assert all(not leaf["a"].any() and leaf["b"].any() for leaf in gradient["layers"].values())


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_folding_gives_the_same_function(dtype: str) -> None:
    model = random_model(CONFIG, lora=LoRAConfig(rank=4, alpha=6.0, targets=("q_proj", "down_proj")), dtype=dtype)
    folded = fold(model.lora, model.base, model.scales)
    assert model.scales == {"q_proj": 1.5, "down_proj": 1.5} and random_model(CONFIG).scales == {}
    for name in LINEARS:
        changed = not same(folded["layers"][name], model.base["layers"][name])
        assert changed == (name in model.lora["layers"]) and folded["layers"][name]["kernel"].dtype == model.dtype
    if dtype == "float32":
        plain = dataclasses.replace(random_model(CONFIG), base=folded)
        assert np.abs(hidden(plain) - hidden(model)).max() < 1e-5 * np.abs(hidden(model)).max()


def test_an_adapter_of_another_shape_is_refused() -> None:
    model, other = random_model(CONFIG, lora=LORA), random_model(CONFIG, lora=LoRAConfig(rank=2))
    with pytest.raises(UserError, match="does not have the leaves and shapes"):
        with_lora(model, other.lora)
    with pytest.raises(UserError, match="does not have the leaves and shapes"):
        with_lora(model, {})


def test_an_adapter_comes_back_from_its_files(tmp_path: Path) -> None:
    model = random_model(CONFIG, lora=LoRAConfig(rank=4, alpha=2.5, targets=("v_proj", "up_proj")))
    for folder in ("one", "two"):
        save_adapter(tmp_path / folder, model.lora, model.lora_config or LORA, CONFIG, "a/model")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    lora, config = load_adapter(tmp_path / "one", CONFIG)
    assert same(lora, model.lora) and config == model.lora_config


def adapter(tmp_path: Path) -> Path:
    save_adapter(tmp_path, random_model(CONFIG, lora=LORA).lora, LORA, CONFIG, "a/model")
    return tmp_path


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("peft_type", "IA3", "peft_type 'IA3' is not supported; only LORA is"),
        ("use_dora", True, "use_dora = True is not supported"),
        ("modules_to_save", ["lm_head"], "modules_to_save = ['lm_head'] is not supported"),
        ("alora_invocation_tokens", [7], "alora_invocation_tokens = [7] is not supported; only plain LoRA"),
        ("use_next_thing", True, "use_next_thing = True is not supported (an unknown key, which may change what"),
        ("next_thing", 0, "next_thing = 0 is not supported (an unknown key"),
        ("lora_bias", True, "lora_bias = True is not supported"),
        ("velora_config", {}, "velora_config = {} is not supported"),
        (
            "rank_pattern",
            {"q_proj": 8},
            "q_proj.lora_A.weight has shape [4, 32], this model and adapter_config.json ask",
        ),
        ("rank_pattern", {"q_proj": "8"}, "rank_pattern of q_proj must be a positive number, got '8'"),
        ("rank_pattern", [8], "rank_pattern must map names to numbers, got [8]"),
        ("alpha_pattern", {"(": 8}, "is not a regular expression"),
        (
            "alpha_pattern",
            {"layers.1.mlp.up_proj": 3},
            "up_proj has the scale 1.5 in layer 0 and 0.75 in layer 1",
        ),
        ("layers_to_transform", [0], "layers.1.mlp.down_proj.lora_A.weight (and 27 more) has no place"),
        ("layers_to_transform", "0", "layers_to_transform must be layer numbers, got ['0']"),
        ("target_modules", 7, "target_modules must be a pattern or a list of names, got 7"),
        ("target_modules", "(", "'(' is not a regular expression"),
        ("target_modules", "(q_proj" * 2000, "is not a regular expression"),
        ("target_modules", ["query"], "no adapter for any of q_proj"),
        ("bias", "all", "bias = 'all' is not supported"),
        ("init_lora_weights", "pissa", "init_lora_weights = 'pissa' is not supported"),
        ("r", "4", "r must be a positive number, got '4'"),
        ("r", 8, "lora_A.weight has shape [4, 32], this model and adapter_config.json ask for [8, 32]"),
        ("lora_alpha", None, "lora_alpha must be a positive number, got None"),
        ("lora_alpha", float("nan"), "lora_alpha must be a positive number, got nan"),
    ],
)
def test_other_kinds_of_adapter_are_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    file = adapter(tmp_path) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(UserError) as caught:
        load_adapter(tmp_path, CONFIG)
    assert message in str(caught.value)


def _spoil(tensors: dict[str, np.ndarray], name: str) -> None:
    tensors[name] = np.full_like(tensors[name], np.nan)


_LAST = "base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(_LAST), f"tensor {_LAST} is missing, which adapter_config.json asks for"),
        (lambda t: _spoil(t, _LAST), f"tensor {_LAST} holds NaN or Inf"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": t[_LAST]}), "has no place in this model"),
        (lambda t: t.update({f"_orig_mod.{_LAST}": t[_LAST]}), "are the same tensor twice; keep one of them"),
        (lambda t: t.update({_LAST: t[_LAST].astype(np.int8)}), "is int8; only float adapters are supported"),
        (lambda t: t.clear(), "q_proj.lora_A.weight is missing, which adapter_config.json asks for"),
    ],
)
def test_spoilt_adapter_tensors_are_named(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], Any], message: str
) -> None:
    file = adapter(tmp_path) / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        load_adapter(tmp_path, CONFIG)
    assert message in str(caught.value)


def test_missing_and_broken_adapter_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no .* folder at"):
        load_adapter(tmp_path / "absent", CONFIG)
    (adapter(tmp_path) / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_adapter(tmp_path, CONFIG)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors is missing"):
        load_adapter(tmp_path, CONFIG)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="adapter_config.json is damaged, it is not JSON"):
        load_adapter(tmp_path, CONFIG)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of peft calling transformers
def test_our_adapter_gives_the_same_logits_in_peft_and_pefts_in_ours(tmp_path: Path) -> None:
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("peft")
    from parity_torch import torch_model, with_adapter

    folder = str(cases.write_checkpoint("qwen2", tmp_path / "model"))
    ours = with_lora(load_model(folder, lora=cases.LORA, tokenizer=False), cases.lora_leaves("qwen2"))
    ids = cases.token_ids("qwen2")[:, :64]
    save_adapter(tmp_path / "adapter", ours.lora, cases.LORA, ours.config, folder)
    theirs = with_adapter(torch_model(Path(folder)), tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(logits_of(ours, ids) - expected).max() < 2e-4 * np.abs(expected).max()
    bare = load_model(folder, tokenizer=False)
    assert np.abs(logits_of(bare, ids) - expected).max() > 0.05 * np.abs(expected).max()

    theirs.save_pretrained(str(tmp_path / "saved_by_peft"))
    back = load_model(folder, adapter=str(tmp_path / "saved_by_peft"), tokenizer=False)
    assert same(back.lora, jax.tree.map(np.asarray, ours.lora)) and back.lora_config == cases.LORA


@pytest.mark.reference
def test_every_key_of_pefts_config_is_in_the_table() -> None:
    peft = pytest.importorskip("peft")
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields - KEYS.keys() == set(), "a new key of PEFT: computed, inert, or refused?"
    assert KEYS.keys() - fields == set()
    defaults = json.loads(json.dumps(peft.LoraConfig().to_dict(), default=list))
    check_keys(defaults, Path("adapter_config.json"))
    for key, allowed in KEYS.items():
        assert isinstance(allowed, str) or allowed[0] == defaults[key], key


@pytest.mark.parametrize("value", (None, False, "", [], {}))
def test_an_unknown_key_that_is_switched_off_changes_nothing(tmp_path: Path, value: Any) -> None:
    file = adapter(tmp_path) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_next_thing": value}))
    assert load_adapter(tmp_path, CONFIG)[1] == LORA


def _padded(model: Model, rank: int) -> Model:
    """The same function and scale at a larger rank, with zeros behind A and B."""
    more = rank - LORA.rank
    lora = {
        name: {"a": np.pad(leaf["a"], ((0, 0), (0, 0), (0, more))), "b": np.pad(leaf["b"], ((0, 0), (0, more), (0, 0)))}
        for name, leaf in model.lora["layers"].items()
    }
    config = LoRAConfig(rank, LORA.alpha * rank / LORA.rank, LORA.targets)
    graphdef = abstract_decoder(CONFIG, config, jnp.float32)[0]
    return dataclasses.replace(model, graphdef=graphdef, lora={"layers": lora}, lora_config=config)


def test_zeros_behind_a_and_b_have_no_gradient_and_stay_zero() -> None:
    model = random_model(CONFIG, lora=LORA)
    padded = _padded(model, 7)
    assert padded.scales == model.scales

    def gradient(of: Model) -> Callable[[Any], Any]:
        return jax.jit(jax.grad(lambda leaves: (hidden(with_lora(of, leaves)) ** 2).mean()))

    once = gradient(padded)
    expected, found = gradient(model)(model.lora), once(padded.lora)
    for name, leaf in found["layers"].items():
        assert not leaf["a"][..., 4:].any() and not leaf["b"][:, 4:].any()
        for part, own in (("a", leaf["a"][..., :4]), ("b", leaf["b"][:, :4])):
            want = expected["layers"][name][part]
            assert np.abs(own - want).max() < 1e-4 * np.abs(want).max()
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    lora, state = padded.lora, optimizer.init(padded.lora)

    @jax.jit  # one program where eager operations are one for each shape
    def moved(gradient: Any, state: Any, lora: Any) -> Any:
        updates, state = optimizer.update(gradient, state, lora)
        return optax.apply_updates(lora, updates), state

    for _ in range(3):
        lora, state = moved(once(lora), state, lora)
    for name, leaf in lora["layers"].items():
        assert not leaf["a"][..., 4:].any() and not leaf["b"][:, 4:].any(), name
        assert (leaf["b"][:, :4] != padded.lora["layers"][name]["b"][:, :4]).all(), name


def test_layers_whose_adapters_are_zero_have_no_gradient() -> None:
    model = random_model(CONFIG, lora=LORA)
    keep = np.array([1.0, 0.0, 1.0], np.float32)[:, None, None]
    lora = jax.tree.map(lambda leaf: np.asarray(leaf) * keep, model.lora)
    found = jax.jit(jax.grad(lambda leaves: (hidden(with_lora(model, leaves)) ** 2).sum()))(lora)
    for leaf in jax.tree.leaves(found):
        assert not leaf[1].any() and leaf[0].any() and leaf[2].any()
    keep[2] = 0.0
    late = with_lora(model, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf) * keep), model.lora))
    refuse_fresh_lora(late, "lora")
    with pytest.raises(UserError, match="fresh"):
        refuse_fresh_lora(late, "lora[-2:]")


# What people write into an adapter's config, by what it does: (its keys, ranks and scales to expect are PEFT's own).
VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True, "r": 6, "lora_alpha": 5},
    "rank_pattern": {"rank_pattern": {"q_proj": 7, "mlp.up_proj": 2}, "alpha_pattern": {"q_proj": 14, "up_proj": 4}},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 1, r"layers\.\d+\.mlp\..*": 32}},
    "ranks by layer": {"rank_pattern": {"layers.1.mlp.up_proj": 8}, "alpha_pattern": {"layers.1.mlp.up_proj": 16}},
    "rslora with ranks": {"use_rslora": True, "rank_pattern": {"up_proj": 9}, "alpha_pattern": {"up_proj": 3}},
    "layers_to_transform": {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "one layer": {"layers_to_transform": 1},
    "excluded": {"exclude_modules": r".*\.2\.mlp\..*"},
    "a pattern": {"target_modules": r"model\.layers\.[02]\.(self_attn\.q_proj|mlp\.down_proj)"},
    "eva": {"init_lora_weights": "eva"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "fan_in_fan_out": {"fan_in_fan_out": True},
}


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:fan_in_fan_out")
@pytest.mark.filterwarnings("ignore:.*eva")
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_gives_pefts_logits_and_so_does_what_we_save_of_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from parity_torch import torch_model, with_adapter

    folder = cases.write_checkpoint("qwen2", tmp_path / "model")
    everywhere = ["q_proj", "v_proj", "up_proj", "down_proj"]
    options = {"r": 4, "lora_alpha": 8, "target_modules": everywhere, "task_type": "CAUSAL_LM", **settings}
    theirs = peft.get_peft_model(torch_model(folder), peft.LoraConfig(**options)).eval()
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ids = cases.token_ids("qwen2")[:, :32]
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    ours = load_model(str(folder), adapter=str(tmp_path / "theirs"), tokenizer=False)
    assert np.abs(logits_of(ours, ids) - expected).max() < 1e-4 * np.abs(expected).max()
    bare = load_model(str(folder), tokenizer=False)
    assert np.abs(logits_of(bare, ids) - expected).max() > 0.05 * np.abs(expected).max()
    folded = dataclasses.replace(bare, base=fold(ours.lora, ours.base, ours.scales))
    assert np.abs(logits_of(folded, ids) - expected).max() < 1e-4 * np.abs(expected).max()

    assert ours.lora_config is not None
    save_adapter(tmp_path / "ours", ours.lora, ours.lora_config, ours.config, str(folder))
    lora, config = load_adapter(tmp_path / "ours", ours.config)
    assert same(lora, ours.lora) and config == ours.lora_config
    with torch.no_grad():
        again = with_adapter(torch_model(folder), tmp_path / "ours")(torch.tensor(ids)).logits.numpy()
    assert np.abs(again - expected).max() < 1e-4 * np.abs(expected).max()


_modules = st.sampled_from(["q_proj", "self_attn.k_proj", "mlp.up_proj", "layers.1.mlp.down_proj", "mlp"])
_patterns = st.sampled_from(["up_proj", r".*\.1\..*", r"self_attn\..*", "model.layers.0.mlp.up_proj", "^model.*q_proj"])
_numbers = st.dictionaries(_patterns, st.integers(1, 9), max_size=3)


@pytest.mark.reference
@given(
    st.fixed_dictionaries(
        {
            "target_modules": _patterns | st.lists(_modules, min_size=1) | st.just("all-linear"),
            "exclude_modules": st.none() | _patterns | st.lists(_modules),
            "layers_to_transform": st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3)),
            "layers_pattern": st.none() | st.sampled_from(["layers", "h", ""]) | st.just(["h", "layers"]),
            "rank_pattern": _numbers,
            "alpha_pattern": _numbers,
            "use_rslora": st.booleans(),
        }
    )
)
def test_linears_ranks_and_scales_are_those_of_peft(settings: dict[str, Any]) -> None:
    pytest.importorskip("peft")
    from types import SimpleNamespace

    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    found = shapes_of({**settings, "r": 4, "lora_alpha": 6}, 3, Path("adapter_config.json"))
    assert found is not None
    theirs = SimpleNamespace(**settings)
    if theirs.target_modules == "all-linear":  # PEFT writes this out as the names of all linears before it matches
        theirs.target_modules = [module.partition(".")[2] for module in MODULES.values()]
    for layer in range(3):
        for name, module in MODULES.items():
            key = f"model.layers.{layer}.{module}"
            assert bool(check_target_module_exists(theirs, key)) == ((layer, name) in found), key
            if (layer, name) in found:
                shape = found[layer, name]
                rank = settings["rank_pattern"].get(get_pattern_key(list(settings["rank_pattern"]), key), 4)
                alpha = settings["alpha_pattern"].get(get_pattern_key(list(settings["alpha_pattern"]), key), 6)
                scale = alpha / rank**0.5 if settings["use_rslora"] else alpha / rank
                assert shape.rank == rank and shape.alpha / rank == pytest.approx(scale, rel=1e-12)
