"""Trains the small model that ntk_jax carries, tokenizer included: `python scripts/make_builtin_model.py`.

From scratch, on text of `ntk_jax.builtin.pretraining` only; about eight minutes on two free CPU cores. The seed is
fixed, so one machine gives one model; another machine may round differently.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ntk_jax.builtin.paths import MODEL
from ntk_jax.builtin.pretraining import examples
from ntk_jax.builtin.world import FAMILIAR, NOVEL, Dice
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.models.hub import save_weights
from ntk_jax.models.model import Model, random_model

VOCABULARY = 1536
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
ROW_LENGTH, ROWS = 192, 16  # tokens of a row, rows of a step
STEPS = 2000
LEARNING_RATE = 3e-3
PROMPT_WEIGHT = 0.2  # of a prompt token in the loss; a response token has 1


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE learned on the pre-training text; every invented word is one token, digits stay single."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [f"{prompt} {response}" for prompt, response in examples(20_000, Dice("tokenizer"))]
    # The words once more, so that each is frequent enough for a token of its own.
    tokenizer.train_from_iterator(text + [f" {word}" for word in FAMILIAR + NOVEL] * 200, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same as transformers reads and writes it."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def batches(tokenizer: Tokenizer, steps: int) -> Iterator[dict[str, np.ndarray]]:
    """Rows of whole examples: tokens, positions, segments, targets and the weight of each target, [B, T]."""
    dice = Dice("pre-training")
    waiting: list[tuple[list[int], int]] = []
    for _ in range(steps):
        names = ("tokens", "positions", "segments", "targets")
        batch = {name: np.zeros((ROWS, ROW_LENGTH), np.int32) for name in names}
        batch["weights"] = np.zeros((ROWS, ROW_LENGTH), np.float32)
        for row in range(ROWS):
            start, segment = 0, 1
            while True:
                if not waiting:
                    pairs = list(examples(1000, dice))
                    prompts = tokenizer.encode_batch([prompt for prompt, _ in pairs])
                    responses = tokenizer.encode_batch(
                        [f" {response}{EOS}" for _, response in pairs], add_special_tokens=False
                    )
                    waiting = [(a.ids + b.ids, len(a.ids)) for a, b in zip(prompts, responses, strict=True)]
                ids, prompt = waiting[-1]
                end = start + len(ids) - 1
                if end > ROW_LENGTH:
                    break
                waiting.pop()
                batch["tokens"][row, start:end] = ids[:-1]
                batch["targets"][row, start:end] = ids[1:]
                batch["positions"][row, start:end] = np.arange(len(ids) - 1)
                batch["segments"][row, start:end] = segment
                batch["weights"][row, start:end] = PROMPT_WEIGHT
                batch["weights"][row, start + prompt - 1 : end] = 1.0
                start, segment = end, segment + 1
        yield batch


def initial(config: ModelConfig) -> Model:
    """Normal weights, the ones that write to the residual stream scaled down with depth; norms at 1."""
    model = random_model(config, seed=0, std=0.02)
    down = (2 * config.num_layers) ** -0.5

    def scaled(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("norm"):
            return jnp.ones_like(leaf)
        return leaf * (down if "o_proj" in name or "down_proj" in name else 1.0)

    return dataclasses.replace(model, base=jax.tree_util.tree_map_with_path(scaled, model.base))


def train(model: Model, tokenizer: Tokenizer, steps: int) -> Model:
    """AdamW with warm-up and cosine decay on next-token prediction; the response counts more than the prompt."""
    rate = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, steps // 20, steps, 0.02 * LEARNING_RATE)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.1))

    def loss(base: Any, batch: Any) -> jax.Array:
        hidden = hidden_states(model.graphdef, {}, base, batch["tokens"], batch["positions"], batch["segments"])
        logits = hidden @ head_matrix(base).T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return (losses * batch["weights"]).sum() / batch["weights"].sum()

    @jax.jit
    def step(base: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(base, batch)
        updates, state = optimizer.update(gradient, state, base)
        return optax.apply_updates(base, updates), state, value

    base, state, begin = model.base, optimizer.init(model.base), time.monotonic()
    for i, batch in enumerate(batches(tokenizer, steps), 1):
        base, state, value = step(base, state, batch)
        if i % 25 == 0 or i == steps:
            print(f"step {i}/{steps} loss {float(value):.4f} {time.monotonic() - begin:.0f} s", flush=True)
    return dataclasses.replace(model, base=base)


def main() -> None:
    """Tokenizer, training, files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    tokenizer = make_tokenizer()
    config = ModelConfig(
        model_type="llama",
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        rope_theta=10000.0,
        norm_eps=1e-5,
        tied=True,
        max_positions=512,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = dataclasses.replace(initial(config), tokenizer=wrap_tokenizer(tokenizer))
    save_weights(options.out, train(model, tokenizer, options.steps))


if __name__ == "__main__":
    main()
