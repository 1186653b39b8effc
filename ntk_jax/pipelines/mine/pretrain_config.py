"""The settings of continual pre-training: what is mixed, for how long, and what is measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ntk_jax.settings import Count, Fraction, Natural, NotNegative, Positive, Range, setting

Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class PretrainSection:
    """Continual pre-training on mined text with general text replayed beside it: one model for each arm, the same
    number of tokens each. The paper states the mix, 25 to 75, and nothing else of its recipe."""

    tokens: Natural = setting(0, "tokens that each arm is trained on, exactly; 0: nothing is trained")
    arms: tuple[str, ...] = setting(
        ("general", "random", "retrieval", "dsir", "seeds_classifier", "dopamine"),
        "what is trained on and compared; base, the model as it was, always stands beside them; autods, by the model's "
        "own yes or no, costs a pass of it over the corpus a domain",
    )
    shares: tuple[Share, ...] = setting(
        (0.25,), "share of an arm's own text in its tokens, the rest is replayed; several are a sweep over all arms"
    )
    replay: tuple[str, ...] = setting(
        (), "files of general text, read from their start as far as needed; none: a random draw of the corpus"
    )
    held_out: tuple[str, ...] = setting((), "files of the domain's text that no arm reads, to take the perplexity of")
    held_out_general: tuple[str, ...] = setting(
        (), "files of general text that no arm reads: what a model forgets shows there"
    )
    columns: Mapping[str, Any] | None = setting(
        None, "where the text of these files is, as {text: body}; null: they are recognised"
    )
    held_out_limit: Count | None = setting(
        None, "a seeded sample of so many documents of each held-out file; null: all"
    )
    held_out_tokens: Annotated[int, Range(2)] | None = setting(
        2048, "tokens of a held-out document that are read, from its start; null: all"
    )
    apart: Natural = setting(
        50, "documents that share a run of so many words with a held-out document are not trained on; 0: all are"
    )
    evaluations: Count = setting(4, "times that the perplexity is taken along the way, evenly, the last at the end")
    parameters: Literal["lora", "all"] = setting("lora", "train an adapter, or all the weights")
    row_length: Annotated[int, Range(2)] | None = setting(
        None, "tokens of a row; longer documents are cut into windows; null: model.max_length"
    )
    batch_tokens: Count = setting(131_072, "tokens of an optimiser step, in whole rows")
    learning_rate: Positive = setting(1e-4, "peak of the learning rate, which is warmed up again")
    schedule: Literal["linear", "cosine", "constant"] = setting(
        "cosine", "course of the learning rate after its warm-up"
    )
    warmup_ratio: Fraction = setting(0.03, "share of the steps over which the learning rate rises; below 1")
    floor: Fraction = setting(0.1, "share of the peak at which the learning rate ends; below 1")
    weight_decay: NotNegative = setting(0.01, "AdamW's weight decay, on matrices")
    beta1: Fraction = setting(0.9, "decay of Adam's first moment; below 1")
    beta2: Fraction = setting(0.95, "decay of Adam's second moment; below 1")
    max_grad_norm: NotNegative = setting(1.0, "the gradient is clipped to this norm; 0: no clipping")
    tokens_per_microbatch: Count = setting(8192, "gradient accumulation: a step runs as many microbatches as it needs")
    checkpoint_every: Count = setting(50, "optimiser steps between two checkpoints")
    bootstrap: Count = setting(1000, "resamples of the held-out documents")
    confidence: Annotated[float, Range(0, 1, open=True)] = setting(0.95, "level of the intervals")

    @property
    def files(self) -> tuple[str, ...]:
        """All files that this section names."""
        return (*self.replay, *self.held_out, *self.held_out_general)
