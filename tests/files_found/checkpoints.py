"""Checkpoints: which files, under which names, in which types."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import parity_cases as cases
import pytest
from safetensors.numpy import save_file
from small_tokenizers import byte_tokenizer

from files_found.case import Case
from ntk_jax.errors import Note, UserError
from ntk_jax.models.model import load_model

TITLE = "Checkpoints"
Tensors = dict[str, np.ndarray]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4096\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write(folder: Path, case: str = "qwen2", edit: Callable[[Tensors], Any] = lambda _: None, **config: Any) -> Path:
    """A small checkpoint with its tensors edited and keys of its config.json replaced."""
    cases.write_checkpoint(case, folder)
    tensors = cases.tensors(case)
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**cases.CASES[case], **config}))
    return folder


def shard(folder: Path, tensors: Tensors) -> None:
    """The tensors in two shards with their index, and no single file."""
    names = sorted(tensors)
    halves = names[::2], names[1::2]
    for file, half in zip(SHARDS, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file)
    places = {name: file for file, half in zip(SHARDS, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "model.safetensors").unlink(missing_ok=True)


def load(folder: Path) -> Any:
    return load_model(str(folder), tokenizer=False)


def is_the_case(folder: Path, case: str = "qwen2") -> None:
    """The folder gives the weights of the case, every one."""
    expected = load(cases.write_checkpoint(case, folder / "expected"))
    assert jax.tree.all(jax.tree.map(np.array_equal, load(folder).base, expected.base))


def renamed(how: Callable[[str], str], case: str = "qwen2") -> Callable[[Path], None]:
    """A check: the case under other names is the case."""

    def edit(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[how(name)] = tensors.pop(name)

    def check(folder: Path) -> None:
        write(folder, case, edit)
        is_the_case(folder, case)

    return check


def taken(edit: Callable[[Tensors], Any], case: str = "qwen2") -> Callable[[Path], None]:
    """A check: the case with its tensors edited so is the case still."""

    def check(folder: Path) -> None:
        write(folder, case, edit)
        is_the_case(folder, case)

    return check


def noted(make: Callable[[Path], Any], line: str) -> Callable[[Path], None]:
    """A check: what was made is the case, and one note says this."""

    def check(folder: Path) -> None:
        make(folder)
        with pytest.warns(Note, match=line) as notes:
            is_the_case(folder)
        assert len(notes) == 1 and "\n" not in str(notes[0].message)

    return check


def read_from(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """A check: what was made is the case."""

    def check(folder: Path) -> None:
        make(folder)
        is_the_case(folder)

    return check


def refused(make: Callable[[Path], Any], *parts: str) -> Callable[[Path], None]:
    """A check: what was made is refused in one line with these parts."""

    def check(folder: Path) -> None:
        path = make(folder)
        with pytest.raises(UserError) as caught:
            load(path if isinstance(path, Path) else folder)
        message = str(caught.value)
        assert all(part in message for part in parts) and "\n" not in message, message

    return check


def without_weights(folder: Path, **files: str) -> Path:
    """config.json and these files, no model.safetensors. (A dot in a name is written __.)"""
    write(folder)
    (folder / "model.safetensors").unlink()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def beside_shards(folder: Path) -> None:
    write(folder)
    shard(folder, {name: value + 1 for name, value in cases.tensors("qwen2").items()})
    write(folder)


def beside_gone_shards(folder: Path) -> None:
    beside_shards(folder)
    for name in SHARDS:
        (folder / name).unlink()


def sharded(folder: Path) -> None:
    write(folder)
    shard(folder, cases.tensors("qwen2"))


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    (folder / SHARDS[1]).unlink()


def without_the_index(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").unlink()


def empty_shard(folder: Path) -> None:
    sharded(folder)
    (folder / SHARDS[0]).write_bytes(b"")


def with_consolidated(folder: Path) -> None:
    sharded(folder)
    save_file({"tok_embeddings.weight": np.ones(3, np.float32)}, folder / "consolidated.safetensors")


def head_alone(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def buffers(tensors: Tensors) -> None:
    for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "rotary_emb.inv_freq"):
        tensors[name] = np.ones(16, np.float32)


def with_tensor(name: str, kind: Any = np.float32, *, instead: str = "") -> Callable[[Path], Any]:
    def edit(tensors: Tensors) -> None:
        shape = tensors.pop(instead).shape if instead else (4, 4)
        tensors[name] = np.ones(shape, kind)

    return lambda folder: write(folder, edit=edit)


def mixed_types(folder: Path) -> None:
    """Every number is exact in every type, so that the widened model is the one that was written."""
    kinds = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)
    tensors = {
        name: np.round(value * 4).astype(kinds[i % 4]) for i, (name, value) in enumerate(cases.tensors("qwen2").items())
    }
    write(folder, edit=lambda t: t.update(tensors))
    base = load(folder).base
    up = tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float32)
    assert np.array_equal(base["layers"]["up_proj"]["kernel"][1], up.T)
    assert {leaf.dtype for leaf in jax.tree.leaves(base)} == {np.dtype(np.float32)}


def with_added(folder: Path, **special: str) -> Path:
    """A checkpoint of as many rows as a byte tokenizer has tokens, and that tokenizer with more tokens."""
    tokenizer = byte_tokenizer()
    rows = len(tokenizer)
    write(
        folder,
        edit=lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:rows]}),
        vocab_size=rows,
        bos_token_id=256,
        eos_token_id=257,
    )
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return folder


def pad_beyond_the_rows(folder: Path) -> None:
    with_added(folder, pad_token="[PAD]")
    with pytest.warns(Note, match=r"the pad token '\[PAD\]' has no row in the embedding .264 rows. and is left aside"):
        tokenizer = load_model(str(folder)).tokenizer
    plain = byte_tokenizer()
    for text in ("two legs", "a [PAD] b<eos>", "<bos>naïve\n"):
        assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.pad_token is None and len(tokenizer) == 264
    assert (tokenizer.bos_token, tokenizer.eos_token_id) == ("<bos>", 257)


def word_beyond_the_rows(folder: Path) -> None:
    with_added(folder, unk_token="<|im_start|>")
    with pytest.raises(UserError, match=r"'<\|im_start\|>' was added to it: use the checkpoint whose emb"):
        load_model(str(folder))


def pointers(folder: Path) -> None:
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        byte_tokenizer().save_pretrained(write(folder))
        (folder / name).write_text(POINTER)
        with pytest.raises(UserError) as caught:
            load_model(str(folder))
        assert f"{folder / name} is a Git LFS pointer, not the file itself; run `git lfs pull`" in str(caught.value)


def adapter_beside(folder: Path) -> None:
    write(folder)
    (folder / "adapter_config.json").write_text("{}")


def adapter_as_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')


def training_folder(folder: Path) -> None:
    for step in (100, 200):
        write(folder / f"checkpoint-{step}")


def file_as_model(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(b"GGUF")
        return folder / name

    return make


def drop_head(folder: Path) -> None:
    write(folder, "llama", lambda t: t.pop("lm_head.weight"))


UP = "model.layers.1.mlp.up_proj"
CASES = [
    Case("shards and `model.safetensors.index.json`", "read", read_from(sharded)),
    Case(
        "`model.safetensors` beside the index of an earlier, sharded save",
        "the single file is read, as in transformers; a note says that the shards are left aside",
        noted(beside_shards, "model.safetensors is read; the index of a sharded save beside it"),
    ),
    Case(
        "the same, with the shards gone", "the same", noted(beside_gone_shards, "model.safetensors is read; the index")
    ),
    Case(
        "an index that names files that are gone", "refused: which", refused(without_a_shard, SHARDS[1], "1 of 2 files")
    ),
    Case("shards without their index", "refused: fetch it", refused(without_the_index, "model.safetensors.index.json")),
    Case("a file of 0 bytes", "refused: download it again", refused(empty_shard, SHARDS[0], "is empty (0 bytes)")),
    Case(
        "a Git LFS pointer as weights, `config.json` or tokenizer",
        "refused: `git lfs pull`",
        pointers,
    ),
    Case(
        "`pytorch_model.bin` alone",
        "refused, with the command that converts it",
        refused(
            lambda folder: without_weights(folder, pytorch_model__bin="x"), "pytorch_model.bin", "save_pretrained("
        ),
    ),
    Case("a `.gguf` file", "refused: give the original", refused(file_as_model("model.gguf"), "GGUF is not read")),
    Case(
        "a folder with a `.gguf` file alone",
        "refused: give the original",
        refused(lambda folder: without_weights(folder, m__gguf="GGUF"), "m.gguf is not read", "made from"),
    ),
    Case(
        "`consolidated.safetensors` (Mistral's own names) beside the shards",
        "the shards are read, and it is not downloaded",
        read_from(with_consolidated),
    ),
    Case(
        "`consolidated.safetensors` alone",
        "refused: fetch the files in Hugging Face format",
        refused(lambda folder: without_weights(folder, consolidated__safetensors="x"), "Mistral's own names"),
    ),
    Case(
        "an adapter's folder as `model.path`",
        "refused: set `model.adapter`, and `model.path` to the model that the adapter names",
        refused(adapter_as_model, "is a PEFT adapter", "owner/name"),
    ),
    Case(
        "`adapter_config.json` beside a model's weights",
        "the model without the adapter, with a note",
        noted(adapter_beside, "the adapter beside the weights .adapter_config.json. is left aside"),
    ),
    Case(
        "a trainer's folder, with `checkpoint-100/` in it",
        "refused: which folders to give",
        refused(training_folder, "checkpoint-100 (and 1 more)"),
    ),
    Case("tied weights stored as `lm_head.weight` only", "read", taken(head_alone)),
    Case(
        "tied weights stored twice, equal",
        "read",
        taken(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()})),
    ),
    Case(
        "`tie_word_embeddings: true`, and two matrices that differ",
        "refused: transformers 4 takes the embedding, 5 the head",
        refused(
            lambda folder: write(
                folder, edit=lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})
            ),
            "but lm_head.weight differs; untie it",
        ),
    ),
    Case("names without `model.` (a backbone saved alone), tied", "read", renamed(lambda n: n.removeprefix("model."))),
    Case("no `lm_head.weight`, not tied", "refused: a model without its head", refused(drop_head, "without its head")),
    Case("names that begin with `_orig_mod.` (torch.compile)", "read", renamed(lambda n: f"_orig_mod.{n}")),
    Case(
        "`module.` (data parallelism), `_fsdp_wrapped_module.`, `pretrained_model.` (TRL)",
        "read",
        renamed(lambda n: f"module.pretrained_model.{n}".replace("mlp.", "_fsdp_wrapped_module.mlp."), "llama"),
    ),
    Case("`rotary_emb.inv_freq`, in the layers or outside", "ignored: made from config.json", taken(buffers)),
    Case(
        "a value head (`v_head.*`, `value_head.*`)",
        "ignored, with a note",
        noted(with_tensor("v_head.summary.weight"), "the value head, v_head.summary.weight, is left aside"),
    ),
    Case("a classifier's `score.weight`", "refused", refused(with_tensor("score.weight"), "this is a classifier")),
    Case("any other tensor", "refused", refused(with_tensor("model.extra"), "model.extra has no place in the model")),
    Case(
        "an adapter saved unmerged into the weights (`base_layer`, `lora_A`)",
        "refused: `merge_and_unload()` first",
        refused(with_tensor(f"{UP}.base_layer.weight", instead=f"{UP}.weight"), "merge_and_unload()"),
    ),
    Case(
        "a multimodal model (`language_model.`, `visual.`)",
        "refused",
        refused(with_tensor("model.language_model.norm.weight"), "this is a multimodal model"),
    ),
    Case(
        "a mixture of experts",
        "refused",
        refused(with_tensor("model.layers.0.mlp.experts.0.up_proj.weight"), "this is a mixture of experts"),
    ),
    Case("float32, float16, bfloat16 and float64 mixed", "read, each number as it is", mixed_types),
    Case(
        "GPTQ or AWQ (`qweight`)",
        "refused: use the unquantized checkpoint",
        refused(with_tensor(f"{UP}.qweight", np.int32, instead=f"{UP}.weight"), "quantized weights", "unquantized"),
    ),
    Case(
        "FP8, with or without `weight_scale_inv`",
        "refused: use the unquantized checkpoint",
        lambda folder: [
            refused(make, "unquantized checkpoint")(folder)
            for make in (
                with_tensor(f"{UP}.weight_scale_inv"),
                with_tensor(f"{UP}.weight", ml_dtypes.float8_e4m3fn, instead=f"{UP}.weight"),
            )
        ][-1],
    ),
    Case(
        "a pad token added without a row in the embedding",
        "taken out of the tokenizer, with a note",
        pad_beyond_the_rows,
    ),
    Case(
        "another added token without a row in the embedding",
        "refused: use the checkpoint that was resized",
        word_beyond_the_rows,
    ),
]
