"""The sampler against transformers' `generate`: the same weights, prompts and greedy replies, tokens a second.

    python scripts/benchmark_sampler.py MODEL --prompts 48 --repeats 3

MODEL is a Hugging Face folder or `builtin:model`. Prompts are texts of the built-in pool, of a log-normal mix of
lengths. transformers gets them in batches of --slots, sorted by length so that it pads little; the sampler gets all at
once and as many slots. Two cases: replies of one length (`even`), where refilled slots gain nothing, and of a mix
(`mixed`), where a batch of transformers runs until its longest reply is done; a token counts only where it was asked
for. Both run in turns, and a ratio is the median over repeats of quotients taken back to back.

    python scripts/benchmark_sampler.py MODEL --shared-prefix 200 --prompts 32 --length 64 --new 16

Without transformers: --alike prompts in a row begin with one passage of so many tokens, and have an own end of --length
at most. The time of a new client, and of one that was asked the same before, to that of one that keeps nothing.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from typing import Any

import measurement as ms
import numpy as np

import ntk_jax as nj
from ntk_jax.errors import UserError
from ntk_jax.llm.request import Request
from ntk_jax.llm.sampler import ModelClient
from ntk_jax.models.hub import resolve
from ntk_jax.models.model import Model


def main() -> None:
    parser = ms.parser(__doc__)
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--slots", type=int, default=16, help="replies at a time, on both sides")
    parser.add_argument("--new", type=int, default=64, help="tokens of a reply; of the longest one in the mix")
    parser.add_argument(
        "--shared-prefix", type=int, default=0, help="tokens that prompts share; 0: transformers instead"
    )
    parser.add_argument("--alike", type=int, default=8, help="prompts that share a passage")
    options = parser.parse_args()
    if min(options.prompts, options.slots, options.new - 7, options.length - 7, options.repeats) < 1:
        raise UserError("--prompts, --slots and --repeats must be at least 1, --new and --length at least 8")
    if min(options.shared_prefix, options.alike - 1) < 0:
        raise UserError("--shared-prefix must be at least 0, --alike at least 1")
    about = ms.environment(("transformers",) if options.shared_prefix else ("torch", "transformers"))
    ms.print_environment(about)
    model = nj.load_model(options.model, dtype=options.dtype)
    prompts = prompt_ids(model, options)
    figures: dict[str, Any] = {"benchmark": "sampler", **about, "dtype": options.dtype}
    figures |= {name: getattr(options, name) for name in ("model", "prompts", "slots", "new", "length", "repeats")}
    if options.shared_prefix:
        figures |= {"alike": options.alike, "shared_prefix": shared(model, prompts, options)}
        return ms.finish(figures, options.out)
    mix = ms.lognormal_lengths(options.prompts, options.new, options.seed + 1)
    for case, lengths in (("even", [options.new] * options.prompts), ("mixed", mix)):
        figures[case] = compared(model, prompts, lengths, options)
    ms.finish(figures, options.out)


def prompt_ids(model: Model, options: argparse.Namespace) -> list[list[int]]:
    """Prompts of --length tokens at most, the shortest first."""
    text = " ".join(str(row["prompt"]) for row in nj.read_records("builtin:pool.jsonl"))
    ids = model.tokenizer(text[:200_000], add_special_tokens=False)["input_ids"]
    begins = np.random.default_rng(options.seed).integers(0, len(ids) - options.length, options.prompts)
    lengths = sorted(ms.lognormal_lengths(options.prompts, options.length, options.seed))
    return [list(ids[begin : begin + length]) for begin, length in zip(begins, lengths, strict=True)]


def compared(model: Model, prompts: list[list[int]], lengths: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each, tokens a second, their ratio, and how many replies have the same tokens."""
    runs = {
        "sampler": functools.partial(ours, model, prompts, lengths, options.slots),
        "transformers": functools.partial(theirs, reference(options.model, options.dtype), prompts, lengths, options),
    }
    same = sum(a == b for a, b in zip(*(run() for run in runs.values()), strict=True))
    times, _ = ms.in_turns(runs, options.repeats, warm_up=0)
    rates = {name: sum(lengths) / statistics.median(taken) for name, taken in times.items()}
    found = {"tokens": sum(lengths), "seconds": times, "tokens_per_second": rates, "same_replies": same}
    found["ratio"] = ms.ratio(times, "transformers", "sampler")
    print(
        f"{sum(lengths):,} tokens of {len(lengths)} replies of {min(lengths)} to {max(lengths)}: sampler "
        f"{rates['sampler']:.1f} tokens/s, transformers {rates['transformers']:.1f}; {found['ratio']:.2f} x; "
        f"{same} of {len(lengths)} replies have the same tokens",
        flush=True,
    )
    return found


def shared(model: Model, ends: list[list[int]], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds with what is kept and without, and the ratios."""
    text = [token for ids in ends for token in ids]
    passages = [(text[number:] + text)[: options.shared_prefix] for number in range(-(-len(ends) // options.alike))]
    if len(passages[0]) < options.shared_prefix:
        raise UserError(f"--shared-prefix {options.shared_prefix} is more than twice the tokens of all ends; lower it")
    prompts = [passages[number // options.alike] + ids for number, ids in enumerate(ends)]
    lengths, slots = [options.new] * len(prompts), options.slots
    warm = ModelClient(model, slots=slots)
    runs = {
        "off": lambda: ours(model, prompts, lengths, slots, ModelClient(model, slots=slots, prefix_bytes=0)),
        "new client": lambda: ours(model, prompts, lengths, slots),
        "asked before": lambda: ours(model, prompts, lengths, slots, warm),
    }
    replies = [run() for run in (*runs.values(), runs["asked before"])]
    times, _ = ms.in_turns(runs, options.repeats, warm_up=0)
    found: dict[str, Any] = {"tokens": sum(map(len, prompts)), "seconds": times, "same": replies[1:] == replies[:-1]}
    found |= {"ratios": {name: ms.ratio(times, name, "off") for name in ("new client", "asked before")}}
    print(
        f"{len(prompts)} prompts of {found['tokens']:,} tokens, {options.alike} in a row share "
        f"{options.shared_prefix}; replies of {options.new}: {statistics.median(times['off']):.1f} s, nothing kept; "
        + "; ".join(f"{name} {ratio:.2f} x that time" for name, ratio in found["ratios"].items())
        + f"; the replies are {'the same' if found['same'] else 'NOT THE SAME'}",
        flush=True,
    )
    return found


def ours(
    model: Model, prompts: list[list[int]], lengths: list[int], slots: int, client: ModelClient | None = None
) -> list[list[int]]:
    """The tokens that the sampler writes; nothing but a length ends a reply."""
    client = client or ModelClient(model, slots=slots)
    client.ends = []
    requests = [Request("", max_tokens=length, temperature=0.0) for length in lengths]
    found = {ordinal: tokens for ordinal, _, tokens in client.ask_with_tokens(requests, prompts=prompts)}
    return [found[ordinal] for ordinal in range(len(prompts))]


@functools.cache
def reference(folder: str, dtype: str) -> Any:
    """The model of transformers, on the device that PyTorch has."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(resolve(folder), dtype=getattr(torch, dtype)).eval().to(device)


def theirs(model: Any, prompts: list[list[int]], lengths: list[int], options: argparse.Namespace) -> list[list[int]]:
    """The tokens that `generate` writes, in padded batches in the order given."""
    import torch

    found = []
    for begin in range(0, len(prompts), options.slots):
        part, limits = prompts[begin : begin + options.slots], lengths[begin : begin + options.slots]
        wide = max(map(len, part))
        ids = torch.tensor([[0] * (wide - len(row)) + row for row in part], device=model.device)
        mask = torch.tensor([[0] * (wide - len(row)) + [1] * len(row) for row in part], device=model.device)
        count = max(limits)
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        found += [row[wide : wide + limit] for row, limit in zip(out.tolist(), limits, strict=True)]
    return found


if __name__ == "__main__":
    ms.command_line(main)
