"""What `ntk-jax doctor` checks: the numerics of the kernel on this machine, and whether a config's files fit
together."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.formats import Reading
from ntk_jax.data.sources import count_records, read_chosen, sample_indices
from ntk_jax.data.templates import render, uses_chat
from ntk_jax.data.tokens import ChoiceRow, Dropped, encode, encode_choices, encode_many
from ntk_jax.engine.doctor import Check, Doubt
from ntk_jax.errors import Note, UserError
from ntk_jax.evaluation.tasks import metrics_of
from ntk_jax.kernels import selftest
from ntk_jax.models.model import Model, dequantized, quantized
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.pipelines.common.examples import rendering_of
from ntk_jax.pipelines.common.model import run_model
from ntk_jax.pipelines.common.reading import how_read, reading_of

TOLERANCE = 1e-4  # relative, fp32
_SLOW = "differences of the same model in float64"
SAMPLE = 64  # records looked at in each set of files, a seeded sample of all
MUCH = 0.05  # share of examples or questions that are cut or dropped above which a check fails


def numerics() -> list[Check]:
    """Does this machine compute the kernel right?"""
    small = _Small()
    found: list[Check] = [
        ("mean gradient", small.mean_gradient),
        ("score, sum of logits", lambda: small.score("sum_logits")),
        ("score, cross-entropy", lambda: small.score("cross_entropy")),
        ("gradient of the head", small.head),
        ("packing", small.packing),
        ("centred head", small.centred_head),
    ]
    if len(jax.devices()) > 1:
        found.append(("several devices", small.devices))
    return found


def checks(config: Any) -> list[Check]:
    """Of a config with the sections model, lora, data, score and evaluate."""
    files = _Files(config)
    return [
        *_model(files),
        ("data.domain", lambda: files.examples("domain", config.data.domain, config.data.domain_limit)),
        ("data.pool", lambda: files.examples("pool", config.data.pool, config.data.pool_limit)),
        *(("evaluate.files", functools.partial(files.held_out, path)) for path in config.evaluate.files),
    ]


def model_checks(config: Any) -> list[Check]:
    """Of a config with the sections model, lora and evaluate: the model, and the files it is evaluated on."""
    files = _Files(config)
    held_out: list[Check] = [
        ("evaluate.files", functools.partial(files.held_out, path)) for path in config.evaluate.files
    ]
    return [*_model(files), *held_out]


def _model(files: _Files) -> list[Check]:
    section = files.config.model
    quantization = section.quantization
    return [
        *([("quantized weights", lambda: _quantized_products_agree(quantization))] if quantization else []),
        ("weights", files.weights),
        *([("config.json keys", files.ignored_keys)] if section.ignore_config_keys else []),
        ("tokenizer", files.tokenizer),
    ]


# -- the numerics ----------------------------------------------------------------------------------------------------


class _Small:
    """A small random model, and the checks of what this machine computes with it."""

    def __init__(self) -> None:
        self._model, rows = selftest.small_model(), selftest.small_rows(14)
        self._domain, self._pool = rows[:4], rows[4:]

    @functools.cached_property
    def _direction(self) -> Any:
        return selftest.direction(self._model, self._domain)

    @functools.cached_property
    def _scores(self) -> np.ndarray:
        return selftest.score(self._model, self._direction, self._pool, "sum_logits")

    def mean_gradient(self) -> str:
        return _agree(*selftest.projections(self._model, self._direction, self._domain), _SLOW)

    def score(self, objective: str) -> str:
        own = selftest.score(self._model, self._direction, self._pool, objective)
        return _agree(own, selftest.reference_score(self._model, self._direction, self._pool, objective), _SLOW)

    def head(self) -> str:
        return _agree(*selftest.head_gradients(self._model, self._domain), "softmax minus target, in float64")

    def packing(self) -> str:
        alone = selftest.score_alone(self._model, self._direction, self._pool, "sum_logits")
        return _agree(self._scores, alone, "every example by itself")

    def devices(self) -> str:
        count = len(jax.devices())
        layout: dict[str, Any] = {"mesh": make_mesh(), "rows_per_batch": count}
        along = selftest.direction(self._model, self._domain, **layout)
        many = selftest.score(self._model, along, self._pool, "sum_logits", **layout)
        return _agree(many, self._scores, f"one device, from {count}")

    def centred_head(self) -> str:
        left = selftest.score(selftest.centred(self._model), self._direction, self._pool, "sum_logits")
        share = np.abs(left).max() / np.abs(self._scores).max()
        if not share < TOLERANCE:
            raise UserError(
                f"sum-of-logits scores should vanish, but {share:.1e} of them is left; do not trust this device"
            )
        return f"{share:.0e} of the sum-of-logits score is left, as it must be"


def _quantized_products_agree(kind: str) -> str:
    model, rows = quantized(selftest.small_model(), kind), selftest.small_rows(14)
    scores, plain = (
        selftest.score(each, selftest.direction(each, rows[:4]), rows[4:], "sum_logits")
        for each in (model, dequantized(model))
    )
    return _agree(scores, plain, f"plain products of the same {kind} weights")


def _agree(a: np.ndarray, b: np.ndarray, other: str) -> str:
    off = selftest.difference(a, b)
    if not off < TOLERANCE:  # also NaN
        raise UserError(
            f"differs from {other} by {off:.1e} relative, more than {TOLERANCE:g}; do not trust this device"
        )
    return f"agrees with {other} to {off:.0e} relative"


# -- the config's files ----------------------------------------------------------------------------------------------


@dataclass
class _Files:
    """A config's model, loaded by the first check that needs it, and the checks that look at it and at the data."""

    config: Any
    notes: list[str] = field(default_factory=list)  # of what was read otherwise than it may seem

    @functools.cached_property
    def _loaded(self) -> Model | UserError:
        if not self.config.model.path:
            return UserError("model.path is empty; give a Hugging Face folder, a hub id, or builtin:model")
        try:
            with warnings.catch_warnings(record=True) as noted:
                warnings.simplefilter("always", Note)
                model = run_model(self.config).base
        except UserError as error:
            return error
        for warning in noted:
            if issubclass(warning.category, Note):
                self.notes.append(str(warning.message))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return model

    @property
    def model(self) -> Model | None:
        """The model; None where it cannot be loaded, which one check says and the others need not repeat."""
        return None if isinstance(self._loaded, UserError) else self._loaded

    def weights(self) -> str | Doubt:
        """Shape, sizes and the adapter's share."""
        model = self._loaded
        if isinstance(model, UserError):
            raise model
        base, adapter = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (model.base, model.lora))
        shape = f"{model.config.num_layers} layers, width {model.config.hidden_size}"
        held = f", the layers' matrices in {model.quantization}" if model.quantization else ""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.base))
        text = (
            f"{model.config.model_type}, {shape}, {base / 1e6:,.1f}M parameters in {model.dtype}{held} "
            f"({size / 1e6:,.1f} MB), LoRA {adapter / 1e6:,.2f}M ({100 * adapter / base:.2f}%), at most "
            f"{model.config.limit}"
        )
        return Doubt("; ".join([text, *self.notes])) if self.notes else text

    def ignored_keys(self) -> str | Doubt:
        """Keys of config.json that would be refused, but for model.ignore_config_keys."""
        if self.model is None:
            return Doubt("not looked at: the model cannot be loaded")
        keys = self.model.config.ignored_keys
        return Doubt(f"ignored at your word: {', '.join(keys)}") if keys else "none of those to ignore is there"

    def tokenizer(self) -> str | Doubt:
        """Ids, template, BOS."""
        model, section = self.model, self.config.model
        if model is None:
            return Doubt("not looked at: the model cannot be loaded")
        tokenizer, rendering = model.tokenizer, rendering_of(section)
        if tokenizer is None:
            raise UserError(f"{section.path} has no tokenizer files; put tokenizer.json beside the weights")
        record = {"id": "probe", "source": "doctor", "prompt": "How many legs has a spider?", "response": "It has 8."}
        prompt, response = render(record, tokenizer, rendering)
        row = encode(record, tokenizer, rendering=rendering)
        assert isinstance(row, TokenRow)
        bos = tokenizer.bos_token_id
        count = 0 if bos is None else int((row.ids[:8] == bos).sum())
        if count > 1 and bos != tokenizer.eos_token_id:
            raise UserError(
                f"an example starts with {count} BOS tokens ({tokenizer.bos_token}); check the chat template"
            )
        if not response.strip():
            raise UserError("the template gives an empty response; set model.template=plain")
        kind = "chat template" if uses_chat(tokenizer, rendering) else "plain template"
        ids = f"{len(tokenizer):,} of {model.config.vocab_size:,} ids"
        return f"{ids}, {kind}, {count} BOS, prompt ends {prompt[-20:]!r}"

    def examples(self, name: str, files: tuple[str, ...], limit: int | None) -> str | Doubt:
        """A seeded sample over all files of a set: lengths, what is cut and what is dropped."""
        if not files:
            raise UserError(f"data.{name} is empty; give at least one file")
        reading = reading_of(self.config, "data")
        section, total = self.config.model, count_records(files)
        if self.model is None:
            return _uncounted(f"{total:,} records")
        rows = [
            encode(
                record,
                self.model.tokenizer,
                max_length=section.max_length,
                span=self.config.score.span,
                overflow=section.overflow,
                rendering=rendering_of(section),
            )
            for record in _sampled(files, total, reading)
        ]
        kept: list[Any] = [row for row in rows if not isinstance(row, Dropped)]
        if not kept:
            raise UserError(f"none of {len(rows)} sampled examples is usable; check model.max_length and the responses")
        cut, dropped, lengths = sum(row.truncated for row in kept), len(rows) - len(kept), [len(r.ids) for r in kept]
        used = f", a sample of {limit:,} used" if limit is not None and limit < total else ""
        return _judged(
            f"{total:,} records{how_read(files, reading)}{used}; of {len(rows)} sampled over all files: "
            f"{dropped} dropped, {cut} truncated, median {int(np.median(lengths))} tokens, longest {max(lengths)}"
            f"{_noted(kept)}",
            cut + dropped,
            len(rows),
        )

    def held_out(self, path: str) -> str | Doubt:
        """Likewise of a file that models are evaluated on: its questions, or its examples where it has no choices."""
        section, total, reading = self.config.model, count_records(path), reading_of(self.config, "evaluate")
        sample = _sampled(path, total, reading)
        metrics = metrics_of(sample, path, self.config.evaluate.metrics)
        what = "questions" if "accuracy" in metrics else "examples"
        loss = ", by their loss" if "loss" in metrics else ""
        loss += ", by the answers that are written to them" if "generated" in metrics else ""
        if self.model is None:
            return _uncounted(f"{path}: {total:,} {what}{loss}")
        options: dict[str, Any] = {
            "max_length": section.max_length, "overflow": section.overflow, "rendering": rendering_of(section)
        }  # fmt: skip
        rows: list[Any]
        if "accuracy" in metrics:
            rows = [encode_choices(record, self.model.tokenizer, **options) for record in sample]
        else:
            rows = encode_many(sample, self.model.tokenizer, **options)
        kept: list[Any] = [row for row in rows if not isinstance(row, Dropped)]
        if not kept:
            raise UserError(f"{path}: none of {len(rows)} sampled {what} is usable; check model.max_length")
        cut, dropped = sum(row.truncated for row in kept), len(rows) - len(kept)
        of = ""
        if "accuracy" in metrics:
            choices = {len(row.choices) for row in kept}
            of = f", {min(choices)}" + (f" to {max(choices)}" if len(choices) > 1 else "") + " choices"
        return _judged(
            f"{path}: {total:,} {what}{how_read(path, reading)}{of}{loss}; of {len(rows)} sampled: {dropped} dropped, "
            f"{cut} truncated{_noted(kept)}",
            cut + dropped,
            len(rows),
        )


def _noted(rows: Sequence[TokenRow | ChoiceRow]) -> str:
    """What became of the words of examples or questions."""
    counts = Counter(note for row in rows for note in row.notes)
    return "".join(f"; {number} with {note}" for note, number in sorted(counts.items()))


def _sampled(files: Any, total: int, reading: Reading) -> list[Any]:
    chosen = sample_indices(total, SAMPLE, 0)
    return list(read_chosen(files, range(total) if chosen is None else chosen.tolist(), reading))


def _uncounted(text: str) -> Doubt:
    return Doubt(f"{text}; their tokens are not counted: the model cannot be loaded")


def _judged(text: str, lost: int, looked_at: int) -> str | Doubt:
    """The text, in doubt where much is lost: results would be of other texts than the files hold."""
    if lost <= MUCH * looked_at:
        return text
    return Doubt(f"{text}; {100 * lost / looked_at:.0f}% is much: raise model.max_length")
