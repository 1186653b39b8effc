"""Hugging Face folders in and out: strictness, real weights, shards, tokenizers, the hub when it cannot be reached."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import pytest
from files_found import checkpoints
from model_calls import hidden_of, logits_of
from safetensors.numpy import load_file, save_file
from small_tokenizers import byte_tokenizer

from ntk_jax.errors import UserError
from ntk_jax.models import hub
from ntk_jax.models.config import ModelConfig, parse_config
from ntk_jax.models.head import head_matrix, target_log_probs
from ntk_jax.models.hub import save_weights
from ntk_jax.models.lora import LoRAConfig, fold
from ntk_jax.models.model import Model, load_model, random_model
from ntk_jax.parallel.mesh import make_mesh

CONFIG = ModelConfig("qwen2", 40, 32, 48, 3, 4, 2, 8, qkv_bias=True, rope_theta=5e5, norm_eps=1e-5, eos_token_id=(3, 4))
UP = "model.layers.1.mlp.up_proj.weight"


def same(a: Any, b: Any) -> bool:
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return all(jax.tree.leaves(equal))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cases.write_checkpoint("qwen2", tmp_path / "model")


def test_every_tensor_lands_in_its_place(folder: Path) -> None:
    model, tensors = load_model(str(folder), tokenizer=False), cases.tensors("qwen2")
    layers = model.base["layers"]
    assert np.array_equal(layers["up_proj"]["kernel"][1], tensors[UP].T)
    assert np.array_equal(layers["k_proj"]["bias"][2], tensors["model.layers.2.self_attn.k_proj.bias"])
    assert np.array_equal(layers["post_attention_norm"][0], tensors["model.layers.0.post_attention_layernorm.weight"])
    assert np.array_equal(model.base["embed"], tensors["model.embed_tokens.weight"])
    assert sum(leaf.size for leaf in jax.tree.leaves(model.base)) == sum(value.size for value in tensors.values())
    assert model.lora == {} and model.lora_config is None and model.tokenizer is None


@pytest.mark.parametrize("shard_bytes", (1 << 30, 9000))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_a_model_comes_back_from_its_folder(tmp_path: Path, dtype: str, shard_bytes: int) -> None:
    model = random_model(CONFIG, lora=LoRAConfig(rank=2), dtype=dtype)
    save_weights(tmp_path, model, shard_bytes=shard_bytes)
    back = load_model(str(tmp_path), dtype=dtype, tokenizer=False)
    assert back.config == CONFIG and same(back.base, fold(model.lora, model.base, model.scales))
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    several = "model.safetensors.index.json" in files
    assert several == (shard_bytes == 9000) and several != ("model.safetensors" in files)
    assert not several or max(size for name, size in files.items() if name.endswith("tensors")) < 9000 + 2000
    # A second model in the same folder leaves nothing of the first behind.
    save_weights(tmp_path, random_model(CONFIG, dtype=dtype, seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_weights(tmp_path / name, random_model(CONFIG))
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.reference
@pytest.mark.parametrize(
    "config", [CONFIG, *(parse_config(cases.CASES[case], case) for case in ("mistral", "llama_yarn"))]
)
def test_transformers_reads_what_we_write(config: ModelConfig, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from parity_torch import torch_model

    model = random_model(config, lora=LoRAConfig(rank=2))
    save_weights(tmp_path, model, shard_bytes=9000)
    ids = np.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected = torch_model(tmp_path)(torch.tensor(ids)).logits.numpy()
    assert np.abs(logits_of(model, ids) - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::ntk_jax.errors.Note")
@pytest.mark.parametrize("found", ("beside shards", "head alone", "backbone alone", "value head", "buffers"))
def test_transformers_reads_the_same_of_what_people_have(tmp_path: Path, found: str) -> None:
    torch = pytest.importorskip("torch")
    from parity_torch import torch_model

    if found == "beside shards":
        checkpoints.beside_shards(tmp_path)
    else:
        edit = {"head alone": checkpoints.head_alone, "buffers": checkpoints.buffers, "backbone alone": _backbone}
        value_head = {"v_head.summary.weight": np.ones((1, 128), np.float32)}
        checkpoints.write(tmp_path, edit=edit.get(found, lambda t: t.update(value_head)))
    ids = np.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected = torch_model(tmp_path)(torch.tensor(ids)).logits.numpy()
    model = load_model(str(tmp_path), tokenizer=False)
    assert np.abs(logits_of(model, ids) - expected).max() < 2e-5 * np.abs(expected).max()
    case = load_model(str(cases.write_checkpoint("qwen2", tmp_path / "case")), tokenizer=False)
    assert same(model.base, case.base)


def _backbone(tensors: dict[str, np.ndarray]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


@pytest.mark.parametrize("sizes", ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)))
def test_a_sharded_load_is_the_unsharded_one_and_reads_each_byte_once(
    folder: Path, sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_model(str(folder), lora=LoRAConfig(rank=2), tokenizer=False)
    read: list[int] = []
    plain_open = hub.open_tensors

    class Counted:
        def __init__(self, inner: Any) -> None:
            self.inner, self.get_shape, self.get_dtype = inner, inner.get_shape, inner.get_dtype

        def __getitem__(self, index: Any) -> np.ndarray:
            value = self.inner[index]
            read.append(value.size)
            return value

    @contextlib.contextmanager
    def counting(path: Path) -> Iterator[dict[str, Any]]:
        with plain_open(path) as tensors:
            yield {name: Counted(inner) for name, inner in tensors.items()}

    monkeypatch.setattr(hub, "open_tensors", counting)
    model = load_model(str(folder), lora=LoRAConfig(rank=2), tokenizer=False, mesh=make_mesh(*sizes))
    assert same(model.base, expected.base) and same(model.lora, expected.lora)
    assert sum(read) == sum(value.size for value in cases.tensors("qwen2").values())
    kernel = model.base["layers"]["up_proj"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    assert kernel.addressable_shards[0].data.size == kernel.size // (sizes[1] * sizes[2])


def change(folder: Path, edit: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def _with(name: str, value: Any, place: int = 5) -> Callable[[dict[str, np.ndarray]], Any]:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].flat[place] = value

    return edit


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.pop(UP), f"tensor {UP} is missing; the checkpoint is not complete"),
        (lambda t: [t.pop(k) for k in list(t) if "norm" in k], "(and 6 more) is missing"),
        (lambda t: t.update({"model.layers.1.extra": t[UP]}), "tensor model.layers.1.extra has no place"),
        (lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": np.ones(32)}), "q_norm.weight has no place"),
        (
            lambda t: t.update({UP: t[UP].T.copy()}),
            f"tensor {UP} has shape [128, 160], config.json asks for [160, 128]",
        ),
        (lambda t: t.update({UP: t[UP].astype(np.int8)}), f"tensor {UP} is I8; only float weights"),
        (_with(UP, np.nan), f"tensor {UP} holds NaN or Inf"),
        (_with("model.norm.weight", np.inf), "tensor model.norm.weight holds NaN or Inf"),
        (_with("model.embed_tokens.weight", -np.inf), "tensor model.embed_tokens.weight holds NaN or Inf"),
        (lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), "but lm_head.weight differs"),
    ],
)
def test_a_spoilt_checkpoint_is_refused_by_name(
    folder: Path, edit: Callable[[dict[str, np.ndarray]], Any], message: str
) -> None:
    change(folder, edit)
    with pytest.raises(UserError) as caught:
        load_model(str(folder), tokenizer=False)
    assert message in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_value_beyond_the_range_of_the_dtype_is_refused(folder: Path) -> None:
    change(folder, _with(UP, 3.4e38))  # finite in fp32, infinite in bf16
    load_model(str(folder), tokenizer=False)
    with pytest.raises(UserError, match=f"tensor {UP} holds NaN or Inf .as bfloat16"):
        load_model(str(folder), tokenizer=False, dtype="bfloat16")


def test_a_tied_head_may_be_written_twice_and_old_buffers_are_ignored(folder: Path) -> None:
    expected = load_model(str(folder), tokenizer=False)
    change(
        folder,
        lambda t: t.update(
            {
                "lm_head.weight": t["model.embed_tokens.weight"].copy(),
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32),
            }
        ),
    )
    assert same(load_model(str(folder), tokenizer=False).base, expected.base)


def test_an_unknown_key_of_config_json_is_ignored_at_the_users_word(folder: Path) -> None:
    expected, file = load_model(str(folder), tokenizer=False), folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "brand_new_norm": True}))
    with pytest.raises(UserError, match="unknown key brand_new_norm"):
        load_model(str(folder), tokenizer=False)
    model = load_model(str(folder), tokenizer=False, ignore_config_keys=["brand_new_norm"])
    assert same(model.base, expected.base) and model.config.ignored_keys == ("brand_new_norm",)


def test_an_untied_model_without_a_head_is_refused(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": False}))
    with pytest.raises(UserError, match="no lm_head.weight, .* set tie_word_embeddings to true"):
        load_model(str(folder), tokenizer=False)


def test_broken_and_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(UserError) as caught:
            load_model(str(folder), tokenizer=False)
        return str(caught.value)

    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "not a whole safetensors file" in message()
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in message()
    save_file({UP: np.ones(2, np.float32)}, folder / "a.safetensors")
    save_file({UP: np.ones(2, np.float32)}, folder / "b.safetensors")
    (folder / hub.INDEX).write_text(json.dumps({"weight_map": {UP: "a.safetensors", "x": "b.safetensors"}}))
    assert f"{UP} is also in another file" in message()
    (folder / "b.safetensors").unlink()
    assert "b.safetensors is missing" in message()
    (folder / hub.INDEX).write_text('{"weight_map": [1]}')
    assert "weight_map must map tensors to files, got [1]" in message()
    (folder / "config.json").write_text("[]")
    assert "config.json is damaged, it must hold a JSON object" in message()
    (folder / "config.json").write_text("{'")
    assert "config.json is damaged, it is not JSON" in message()
    (folder / "config.json").unlink()
    assert "cannot read" in message()


@pytest.mark.parametrize(
    "path, message",
    [
        ("no/such/folder", "no model folder at 'no/such/folder'"),
        ("./missing", "no model folder at './missing'"),
        ("", "no model folder at ''"),
        (__file__, "is a file; give the folder it is in"),
        ("builtin:other", "no such builtin model"),
        ("nobody/there-is-no-such-model", "neither a folder here nor to be had from the hub"),
    ],
)
def test_a_path_that_leads_nowhere_is_one_clear_line(path: str, message: str) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_id_is_fetched_at_its_revision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_model("owner/name@v1", tokenizer=False).name == "owner/name@v1"
    assert asked["name"] == "owner/name" and asked["revision"] == "v1" and "*.safetensors" in asked["allow_patterns"]
    assert asked["ignore_patterns"] == ["consolidated*"]  # Mistral's own names for the same weights


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float16"}, "dtype 'float16' is not supported; use float32 or bfloat16"),
        ({"lora": LoRAConfig(), "adapter": "x"}, "give either a fresh adapter"),
        ({}, "no tokenizer.json; copy the model's tokenizer there, or load with tokenizer=False"),
    ],
)
def test_options_that_cannot_be_met_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_model(str(folder), **options)
    assert message in str(caught.value)


def write_tokenizer(folder: Path, words: int) -> None:
    from tokenizers import Tokenizer, models

    vocabulary = {f"w{i}": i for i in range(words)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def test_the_tokenizer_must_fit_the_embedding(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(folder, 320)
    model = load_model(str(folder))
    assert model.tokenizer.encode("w7") == [7]
    save_weights(tmp_path / "copy", model)
    assert load_model(str(tmp_path / "copy")).tokenizer.encode("w8") == [8]
    write_tokenizer(folder, 321)
    with pytest.raises(UserError, match="does not match the model: it has token id 320, the embedding 320 rows"):
        load_model(str(folder))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        load_model(str(folder))


def mean_log_prob(model: Model, text: str) -> float:
    ids = np.asarray(model.tokenizer.encode(text), np.int32)[None]
    hidden = hidden_of(model, ids)
    return float(target_log_probs(hidden[:, :-1], jnp.asarray(ids[:, 1:]), head_matrix(model.base)).mean())


STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big dog. The dog was very happy and wanted to play with her."
)


@pytest.mark.parametrize("name, nats", (("stories260K", -1.1), ("llama-7m", -4.5)))
def test_real_weights_know_english(shared: Path, name: str, nats: float) -> None:
    folder = str(shared / "data/weights" / name)
    model = load_model(folder)
    words = STORY.split()
    random = np.random.default_rng(0)
    shuffled = " ".join(words[i] for i in random.permutation(len(words)))
    assert mean_log_prob(model, STORY) > nats
    assert mean_log_prob(model, shuffled) < mean_log_prob(model, STORY) - 1.0
    half = load_model(folder, dtype="bfloat16", mesh=make_mesh(2, 2, 2))
    assert mean_log_prob(half, STORY) == pytest.approx(mean_log_prob(model, STORY), abs=0.03)


@pytest.mark.reference
def test_real_weights_give_pytorchs_logits(shared: Path) -> None:
    torch = pytest.importorskip("torch")
    from parity_torch import torch_model

    for name in ("stories260K", "llama-7m"):
        folder = shared / "data/weights" / name
        model = load_model(str(folder))
        ids = np.asarray(model.tokenizer.encode(STORY))[None]
        with torch.no_grad():
            expected = torch_model(folder)(torch.tensor(ids)).logits.numpy()
        assert np.abs(logits_of(model, ids) - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name, size", (("llama3", 128256), ("qwen2.5", 151936), ("smollm2", 49152)))
def test_real_tokenizers_are_read_as_they_are(shared: Path, tmp_path: Path, name: str, size: int) -> None:
    from tokenizers import Tokenizer

    folder = tmp_path / name
    shutil.copytree(shared / "data/tokenizers" / name, folder)
    # Whatever the model: transformers' AutoTokenizer alone would change the first and the last one here.
    (folder / "config.json").write_text(json.dumps(cases.CASES["qwen2"]))
    text = "Hello  world, it's 2024!\n\n  What’s up? naïve 日本 1234567"
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert hub.load_tokenizer(folder, size).encode(text) == expected
    with pytest.raises(UserError, match="does not match the model"):
        hub.load_tokenizer(folder, 1000)


def test_a_smaller_tokenizer_of_another_model_is_known_by_its_special_tokens(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)  # BOS 256, EOS 257
    for special in ({"bos": (256,), "eos": (0,)}, {"bos": (1,), "eos": (3, 257)}, {"bos": (), "eos": (0,)}, {}):
        hub.load_tokenizer(tmp_path, 8192, special)
    with pytest.raises(UserError, match="does not match the model: its BOS and EOS are 256 and 257, config.json says"):
        hub.load_tokenizer(tmp_path, 8192, {"bos": (0,), "eos": (0,)})


def test_a_random_model_has_nothing_at_a_neutral_value() -> None:
    model = random_model(parse_config(cases.CASES["llama_bias"], ""), lora=LoRAConfig(rank=2))
    for path, leaf in jax.tree_util.tree_leaves_with_path({"base": model.base, "lora": model.lora}):
        centre = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
        value = np.asarray(leaf)
        assert np.all(value != centre) and abs(value.mean() - centre) < 0.1 and 0.2 < value.std() < 0.4, path
    again = random_model(parse_config(cases.CASES["llama_bias"], ""), lora=LoRAConfig(rank=2))
    assert same((model.base, model.lora), (again.base, again.lora))
