"""`ntk-jax doctor`: a list of what works on this machine and, with a config, whether its files fit together."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ntk_jax import selftest
from ntk_jax.config import Config
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.sources import count_records, read_records
from ntk_jax.data.templates import render, uses_chat
from ntk_jax.data.tokens import ChoiceRow, Dropped, encode, encode_choices
from ntk_jax.errors import TryAgain, UserError
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model, dequantized, load_model, quantized
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.pipeline import check_settings
from ntk_jax.stages.context import mesh_of
from ntk_jax.storage import bucket

TOLERANCE = 1e-4  # relative, fp32
SAMPLE = 64  # records looked at in each data file
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tensorflow-datasets", "numpy",
)  # fmt: skip


def examine(config: Config | None) -> None:
    """Prints one line a check; raises UserError at the end if any failed."""
    failed = 0

    def check(name: str, function: Callable[..., str], *arguments: Any) -> bool:
        nonlocal failed
        try:
            detail, word = function(*arguments), "ok"
        except (UserError, TryAgain) as error:
            detail, word = str(error), "FAIL"
            failed += 1
        print(f"{word:<5} {name:<24} {detail}", flush=True)
        return word == "ok"

    check("python", _python)
    check("packages", _packages)
    if check("devices", _devices):
        model, rows = selftest.small_model(), selftest.small_rows(14)
        domain, pool = rows[:4], rows[4:]
        check("score, sum of logits", _scores_are_exact, model, domain, pool, "sum_logits")
        check("score, cross-entropy", _scores_are_exact, model, domain, pool, "cross_entropy")
        check("packing", _packing_changes_nothing, model, domain, pool)
        check("centred head", _centred_head_gives_zero, model, domain, pool)
        if len(jax.devices()) > 1:
            check("several devices", _devices_agree, model, domain, pool)
        if config is not None:
            _examine_config(config, check)
    if failed:
        raise UserError(f"{failed} check{'s' if failed > 1 else ''} failed; see the lines marked FAIL")


def _examine_config(config: Config, check: Callable[..., bool]) -> None:
    loaded: list[Model] = []
    check("settings", _settings, config)
    if config.model.quantization:
        check("quantized weights", _quantized_products_agree, config.model.quantization)
    check("run directory", _run_directory, config)
    if not check("weights", _weights, config, loaded):
        return
    model = loaded[0]
    check("tokenizer", _tokenizer, config, model)
    data = config.data
    check("data.domain", _examples, config, model, "domain", data.domain, data.domain_limit)
    check("data.pool", _examples, config, model, "pool", data.pool, data.pool_limit)
    check("select.count", _count, config)
    for path in config.evaluate.files:
        check("evaluate.files", _questions, config, model, path)


# -- the machine -----------------------------------------------------------------------------------------------------


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"


def _packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"{name} is not installed; run pip install ntk_jax again in this environment") from None
    return ", ".join(found)


def _devices() -> str:
    try:
        devices = jax.devices()
    except RuntimeError as error:  # a driver or plug-in that does not start
        first = str(error).splitlines()[0]
        raise UserError(f"jax finds no device: {first}; set JAX_PLATFORMS=cpu or mend the driver") from None
    kinds = sorted({f"{device.platform} ({device.device_kind})" for device in devices})
    memory = (devices[0].memory_stats() or {}).get("bytes_limit") if devices[0].platform != "cpu" else None
    each = f", {memory / 2**30:.0f} GiB for jax on each" if memory else ""
    return f"{len(devices)} × {', '.join(kinds)}{each}"


# -- the numerics ----------------------------------------------------------------------------------------------------


def _scores_are_exact(model: Model, domain: list[TokenRow], pool: list[TokenRow], objective: str) -> str:
    fast = selftest.score(model, domain, pool, objective)
    return _agree(fast, selftest.explicit_score(model, domain, pool, objective), "explicit per-example gradients")


def _packing_changes_nothing(model: Model, domain: list[TokenRow], pool: list[TokenRow]) -> str:
    packed = selftest.score(model, domain, pool, "sum_logits")
    return _agree(packed, selftest.score(model, domain, pool, "sum_logits", packed=False), "one example a row")


def _devices_agree(model: Model, domain: list[TokenRow], pool: list[TokenRow]) -> str:
    count = len(jax.devices())
    many = selftest.score(model, domain, pool, "sum_logits", mesh=make_mesh(), rows_per_batch=count)
    return _agree(many, selftest.score(model, domain, pool, "sum_logits"), f"one device, from {count}")


def _centred_head_gives_zero(model: Model, domain: list[TokenRow], pool: list[TokenRow]) -> str:
    whole = np.abs(selftest.score(model, domain, pool, "sum_logits")).max()
    left = np.abs(selftest.score(selftest.centred(model), domain, pool, "sum_logits")).max() / whole
    if not left < TOLERANCE:
        raise UserError(f"sum-of-logits scores should vanish, but {left:.1e} of them is left; do not trust this device")
    return f"{left:.0e} of the sum-of-logits score is left, as it must be"


def _quantized_products_agree(kind: str) -> str:
    model, rows = quantized(selftest.small_model(), kind), selftest.small_rows(14)
    scores, plain = (selftest.score(m, rows[:4], rows[4:], "sum_logits") for m in (model, dequantized(model)))
    return _agree(scores, plain, f"plain products of the same {kind} weights")


def _agree(a: np.ndarray, b: np.ndarray, other: str) -> str:
    off = selftest.difference(a, b)
    if not off < TOLERANCE:  # also NaN
        raise UserError(
            f"differs from {other} by {off:.1e} relative, more than {TOLERANCE:g}; do not trust this device"
        )
    return f"agrees with {other} to {off:.0e} relative"


# -- the config's files ----------------------------------------------------------------------------------------------


def _run_directory(config: Config) -> str:
    if not config.out:
        raise UserError("none: give --out DIR, or set `out` in the config")
    place = bucket.run_folder(config.out).absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file; give another --out")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing} is not writable; give another --out")
    free = shutil.disk_usage(existing).free / 2**30
    if bucket.is_address(config.out):
        count = bucket.look_at(config.out)
        there = f"{count:,} objects" if count else "new"
        return f"{config.out} ({there}), working copy {place}, {free:,.0f} GiB free"
    return f"{config.out} ({'exists' if existing == place else 'new'}), {free:,.0f} GiB free"


def _settings(config: Config) -> str:
    check_settings(config)
    return "fit together"


def _weights(config: Config, loaded: list[Model]) -> str:
    section = config.model
    if not section.path:
        raise UserError("model.path is empty; give a Hugging Face folder, a hub id, or builtin:model")
    lora = None if section.adapter else LoRAConfig(config.lora.rank, config.lora.alpha, config.lora.targets)
    model = load_model(
        section.path,
        lora=lora,
        adapter=section.adapter,
        dtype=section.dtype,
        quantization=section.quantization,
        mesh=mesh_of(config),
    )
    loaded.append(model)
    base, adapter = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (model.base, model.lora))
    shape = f"{model.config.num_layers} layers, width {model.config.hidden_size}"
    held = f", the layers' matrices in {model.quantization}" if model.quantization else ""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.base))
    return (
        f"{model.config.model_type}, {shape}, {base / 1e6:,.1f}M parameters in {model.dtype}{held} "
        f"({size / 1e6:,.1f} MB), "
        f"LoRA {adapter / 1e6:,.2f}M ({100 * adapter / base:.2f}%)"
    )


def _tokenizer(config: Config, model: Model) -> str:
    tokenizer, template = model.tokenizer, config.model.template
    if tokenizer is None:
        raise UserError(f"{config.model.path} has no tokenizer files; put tokenizer.json beside the weights")
    # render refuses a template that rewrites the prompt once the response is there
    record = {"id": "probe", "source": "doctor", "prompt": "How many legs has a spider?", "response": "A spider has 8."}
    prompt, response = render(record, tokenizer, template, config.model.add_eos)
    row = encode(record, tokenizer, template=template, add_eos=config.model.add_eos)
    assert isinstance(row, TokenRow)
    bos = tokenizer.bos_token_id
    count = 0 if bos is None else int((row.ids[:8] == bos).sum())
    if count > 1 and bos != tokenizer.eos_token_id:
        raise UserError(f"an example starts with {count} BOS tokens ({tokenizer.bos_token}); check the chat template")
    if not response.strip():
        raise UserError("the template gives an empty response; set model.template=plain")
    kind = "chat template" if uses_chat(tokenizer, template) else "plain template"
    return f"{len(tokenizer):,} of {model.config.vocab_size:,} ids, {kind}, {count} BOS, prompt ends {prompt[-20:]!r}"


def _examples(config: Config, model: Model, name: str, files: tuple[str, ...], limit: int | None) -> str:
    if not files:
        raise UserError(f"data.{name} is empty; give at least one file")
    section, lengths, cut, dropped = config.model, [], 0, 0
    for record in itertools.islice(read_records(files), SAMPLE):
        row = encode(
            record,
            model.tokenizer,
            max_length=section.max_length,
            span=config.score.span,
            overflow=section.overflow,
            template=section.template,
            add_eos=section.add_eos,
        )
        if isinstance(row, Dropped):
            dropped += 1
        else:
            lengths.append(len(row.ids))
            cut += row.truncated
    if not lengths:
        raise UserError(f"none of the first {dropped} examples is usable; check model.max_length and the responses")
    total = count_records(files)
    used = f", a sample of {limit:,} used" if limit is not None and limit < total else ""
    return (
        f"{total:,} records{used}; of the first {len(lengths) + dropped}: {dropped} dropped, {cut} truncated, "
        f"median {int(np.median(lengths))} tokens, longest {max(lengths)}"
    )


def _questions(config: Config, model: Model, path: str) -> str:
    kept, cut, dropped, choices = 0, 0, 0, set()
    for record in itertools.islice(read_records(path), SAMPLE):
        section = config.model
        row = encode_choices(
            record,
            model.tokenizer,
            max_length=section.max_length,
            template=section.template,
            overflow=section.overflow,
        )
        if isinstance(row, ChoiceRow):
            kept += 1
            cut += row.truncated
            choices.add(len(row.choices))
        else:
            dropped += 1
    if not kept:
        raise UserError(f"{path}: none of the first {dropped} questions is usable; check model.max_length")
    span = f"{min(choices)}" if len(choices) == 1 else f"{min(choices)} to {max(choices)}"
    return (
        f"{path}: {count_records(path):,} questions, {span} choices; of the first {kept + dropped}: {dropped} dropped"
        f", {cut} truncated"
    )


def _count(config: Config) -> str:
    pool = count_records(config.data.pool)
    pool = min(pool, config.data.pool_limit or pool)
    if config.select.count > pool:
        raise UserError(f"select.count = {config.select.count:,} of a pool of {pool:,}; lower it or add pool files")
    return f"{config.select.count:,} of {pool:,} ({100 * config.select.count / pool:.1f}%)"
