"""This package against what others run: a loop of the LESS kind in PyTorch, on the same weights and examples.

    python scripts/benchmark_peers.py --shape 57m --repeats 3
    python scripts/benchmark_peers.py --shape 8b --dtype bfloat16 --tokens 16384 --length 1024 --out peers.json

The loop: transformers and peft, one example at a time, backward pass of its objective, dense Rademacher projection of
the LoRA gradients (LESS, arXiv 2402.04333). Projections: one written here, and those of traker and dattri where they
are installed. Where bergson is, its own collector runs beside the loop, on the same PyTorch model. docs/performance.md
says what each figure means.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch lives on the same device
os.environ.setdefault("TQDM_DISABLE", "1")  # bergson's progress bars; read when tqdm is imported

import measurement as ms
import numpy as np

import ntk_jax as nj
from ntk_jax.data.batch import TokenRow
from ntk_jax.kernels.agreement import spearman
from ntk_jax.models.hub import save_weights
from ntk_jax.models.model import Model
from ntk_jax.models.peft import save_adapter

Projector = Callable[[Any], Any]  # [G, P] gradients -> [G, K]

# The module each needs, and how it is had. traker and dattri serve with their projections, inside the same loop;
# bergson batches, differentiates, projects and scores by itself.
NEEDED = {
    "torch": "'ntk_jax[reference]'",
    "peft": "'ntk_jax[reference]'",
    "trak": "traker",
    "dattri": "dattri",
    "bergson": "bergson, or the fewer packages in docs/performance.md",
}


def main() -> None:
    parser = ms.parser(__doc__)
    parser.add_argument("--objective", choices=("cross_entropy", "sum_logits"), default="cross_entropy")
    parser.add_argument("--examples", type=int, default=32, help="candidates, of a log-normal length mix")
    parser.add_argument("--domain", type=int, default=8, help="examples whose mean gradient the scores are along")
    parser.add_argument("--dim", type=int, default=8192, help="K of the projections")
    parser.add_argument("--group", type=int, default=16, help="gradients that the loop projects at once")
    options = parser.parse_args()
    ms.check(options)
    about = ms.environment(("torch", "transformers", "peft", "traker", "dattri", "fast_jl", "bergson"))
    ms.print_environment(about)
    missing = {name for name in NEEDED if importlib.util.find_spec(name) is None}
    for name in sorted(missing):
        print(f"{name}: not installed: pip install {NEEDED[name]}", flush=True)
    if "bergson" not in missing and (reason := why_not_bergson(options.objective)):
        print(f"bergson: {reason}", flush=True)
        missing.add("bergson")

    model = ms.device_model(ms.SHAPES[options.shape], rank=options.rank, dtype=options.dtype, seed=options.seed)
    lengths = ms.lognormal_lengths(options.domain + options.examples, options.length, options.seed)
    vocabulary = model.config.vocab_size
    domain = ms.random_rows(lengths[: options.domain], vocabulary, options.seed, topic=0)
    pool = ms.random_rows(lengths[options.domain :], vocabulary, options.seed)
    runs = our_runs(model, domain, pool, options)
    figures: dict[str, Any] = {"benchmark": "peers", **about, "shape": options.shape, "dtype": options.dtype}
    figures |= {name: getattr(options, name) for name in ("tokens", "length", "rank", "repeats", "seed")}
    figures |= {name: getattr(options, name) for name in ("objective", "examples", "dim", "group")}
    figures |= {**ms.sizes(model), "mean_length": statistics.fmean(lengths)}
    figures |= {"torch_device": None, "torch_threads": None}

    results: dict[str, Any] = {}  # what is timed is also what is compared, computed once
    for run in runs.values():
        run()  # compiles
    if missing & {"torch", "peft"}:
        times, _ = ms.in_turns(runs, options.repeats, warm_up=0)
        agreement = None
    else:
        peer = load_peer(model)
        figures |= {"torch_device": str(peer.device), "torch_threads": peer.threads}
        projectors: dict[str, Projector] = {
            "rademacher": functools.partial(rademacher, dim=options.dim, seed=options.seed)
        }
        if "trak" not in missing:
            projectors["traker"] = traker_projector(peer, options)
        if "dattri" not in missing:
            projectors["dattri"] = functools.partial(dattri_project, peer=peer, options=options)
        loops: dict[str, Callable[[], Any]] = {"loop, gradients only": functools.partial(loop, peer, pool, options)}
        for name, projector in projectors.items():
            loops[f"loop, {name}"] = functools.partial(loop, peer, pool, options, projector)
        loop(peer, pool[:1], options)  # PyTorch compiles nothing: one example warms it up
        if "bergson" not in missing:
            loops |= bergson_runs(peer, domain, pool, options)
        every = {name: functools.partial(remember, results, name, run) for name, run in {**runs, **loops}.items()}
        times, _ = ms.in_turns(every, options.repeats, warm_up=0)
        # With the longest of the pool, so that rows have the same length and the steps above serve again.
        of_domain = our_sketches(model, [*domain, pool[-1]], options)
        agreement = agreement_with(peer, results, of_domain, domain, pool, options, projectors)

    comparable = figures["torch_device"] is not None and ("cuda" in figures["torch_device"]) == (
        about["platform"] in ("gpu", "cuda")
    )
    if not comparable:
        print("\nThere is no PyTorch loop on the device that JAX runs on, so there are no ratios to it.")
    found, table = {}, []
    for name in times:
        work = options.domain if name == "mean gradient" else options.examples
        seconds = statistics.median(times[name])
        found[name] = {
            "seconds": seconds,
            "seconds_of_repeats": times[name],
            "examples_per_second": work / seconds,
            "speed_over_loop": ms.ratio(times, "loop, rademacher", name, work / options.examples)
            if comparable
            else None,
        }
        row = {"what": name, "seconds": seconds, "examples/s": work / seconds}
        table.append({**row, "times the loop's speed": found[name]["speed_over_loop"]})
    ms.print_table(f"{options.objective}, {len(pool)} examples, K = {options.dim}, {options.dtype}", table)
    names = ("loop, gradients only", "loop, rademacher", "loop, traker", "loop, dattri", "bergson", "bergson, scores")
    figures["runs"] = {**dict.fromkeys(names), **found}
    figures["agreement"] = agreement
    if agreement is not None:
        ms.print_table(
            "Against the loop's own unprojected dot products ⟨ḡ, g(x)⟩",
            [{"scores": k, **v} for k, v in agreement.items()],
        )
    ms.finish(figures, options.out)


# ---------------------------------------------------------------------------------------------------------------
# This package


def our_runs(
    model: Model, domain: Sequence[TokenRow], pool: Sequence[TokenRow], options: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """What a user would call. The direction is made once; its cost has a line of its own."""
    shared: dict[str, Any] = {"objective": options.objective, "batch_tokens": options.tokens}
    mean = functools.partial(nj.mean_gradient, model, as_examples(domain), **shared)
    score = functools.partial(nj.directional_scores, model, as_examples(pool), mean(), **shared)
    return {"directional scores": score, "mean gradient": mean, **our_sketches(model, pool, options)}


def our_sketches(model: Model, rows: Sequence[TokenRow], options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """[N, K] sketches of the rows, of the loop's kind and of the cheapest kind."""
    shared: dict[str, Any] = {"objective": options.objective, "batch_tokens": options.tokens, "seed": options.seed}
    sketch = functools.partial(nj.sketch, model, as_examples(rows), dim=options.dim, **shared)
    return {f"sketch, {kind}": functools.partial(sketch, projection=kind) for kind in ("rademacher", "kronecker")}


def as_examples(rows: Sequence[TokenRow]) -> list[dict[str, Any]]:
    """Token rows as the Python API takes them."""
    return [{"input_ids": row.ids, "span": row.span} for row in rows]


# ---------------------------------------------------------------------------------------------------------------
# The loop


@dataclasses.dataclass(frozen=True)
class Peer:
    """A PyTorch model with a trainable PEFT adapter, its device and CPU threads, the adapter's parameters in order."""

    model: Any
    device: Any
    threads: int
    parameters: list[Any]


def load_peer(model: Model) -> Peer:
    """The same weights and adapter through the files that this package writes, loaded by transformers and peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # all that JAX has; by default it takes whole cores only
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert model.lora_config is not None
    with tempfile.TemporaryDirectory() as folder:
        save_weights(folder, dataclasses.replace(model, lora={}))  # the adapter apart, not folded in
        save_adapter(Path(folder) / "adapter", model.lora, model.lora_config, model.config, folder)
        dtype = getattr(torch, str(model.dtype))
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(device)
        adapted = PeftModel.from_pretrained(base, str(Path(folder) / "adapter"), is_trainable=True).to(device).eval()
    return Peer(adapted, device, torch.get_num_threads(), [p for p in adapted.parameters() if p.requires_grad])


def gradient(peer: Peer, row: TokenRow, objective: str) -> Any:
    """[P] fp32 on the device: the gradient of one example's objective, batch 1 as LESS takes it."""
    import torch

    ids = torch.from_numpy(row.ids.astype(np.int64))[None].to(peer.device)
    if objective == "cross_entropy":
        labels = torch.full_like(ids, -100)
        at = torch.from_numpy(np.flatnonzero(row.span) + 1).to(peer.device)  # position t predicts token t + 1
        labels[0, at] = ids[0, at]
        value = peer.model(input_ids=ids, labels=labels, use_cache=False).loss
    else:
        logits = peer.model(input_ids=ids, use_cache=False).logits
        value = logits[0, torch.from_numpy(row.span).to(peer.device)].float().sum(-1).mean()
    value.backward()
    flat = torch.cat([p.grad.reshape(-1).float() for p in peer.parameters])
    peer.model.zero_grad(set_to_none=True)
    return flat


def groups(peer: Peer, rows: Sequence[TokenRow], options: argparse.Namespace) -> Iterator[Any]:
    """[G, P] gradients of `group` examples after another."""
    import torch

    for start in range(0, len(rows), options.group):
        yield torch.stack([gradient(peer, row, options.objective) for row in rows[start : start + options.group]])


def loop(
    peer: Peer, rows: Sequence[TokenRow], options: argparse.Namespace, projector: Projector | None = None
) -> np.ndarray:
    """[N, K] projected gradients on the host; without a projector [N, 1], one entry of each, so that all is waited for.

    A group of gradients is projected at once, so that the signs are made once for all of them.
    """
    parts = [group[:, :1] if projector is None else projector(group) for group in groups(peer, rows, options)]
    return np.concatenate([part.float().cpu().numpy() for part in parts])


def rademacher(gradients: Any, *, dim: int, seed: int) -> Any:
    """[G, K]: products with ±1/√K, whose signs are made block by block, eight from a random byte."""
    import torch

    device, block = gradients.device, 4096
    total = torch.zeros(len(gradients), dim, device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    for part in gradients.split(block, dim=1):
        shape = (part.shape[1], -(-dim // 8))
        words = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator)
        bits = (words[..., None] >> shifts) & 1
        total += part @ (1.0 - 2.0 * bits.reshape(part.shape[1], -1)[:, :dim].float())
    return total / dim**0.5


def traker_projector(peer: Peer, options: argparse.Namespace) -> Projector:
    """TRAK's projection, the one LESS uses: its CUDA kernel where that is installed, else its blocks of 100 columns."""
    from trak.projectors import BasicProjector, CudaProjector, ProjectionType

    size = sum(p.numel() for p in peer.parameters)
    shape = {"grad_dim": size, "proj_dim": options.dim, "seed": options.seed, "device": peer.device}
    if peer.device.type == "cuda" and importlib.util.find_spec("fast_jl") is not None:
        made = CudaProjector(proj_type=ProjectionType.rademacher, max_batch_size=options.group, **shape)
    else:
        made = BasicProjector(proj_type=ProjectionType.rademacher, **shape)
    return lambda gradients: made.project(gradients, model_id=0) / options.dim**0.5


def dattri_project(gradients: Any, *, peer: Peer, options: argparse.Namespace) -> Any:
    """[G, K] by dattri's random projection of the same kind."""
    from dattri.func.projection import random_project

    project = random_project(
        gradients, len(gradients), options.dim, 16, options.seed, "rademacher", device=str(peer.device)
    )
    return project(gradients)  # divided by √K already, which TRAK's is not


# ---------------------------------------------------------------------------------------------------------------
# bergson, with its own batches, backward pass and projection


def why_not_bergson(objective: str) -> str | None:
    """Why bergson, which is installed, does not run; None: it does."""
    if objective != "cross_entropy":
        return f"has no objective {objective}; its rows are of cross_entropy"
    try:
        import bergson  # noqa: F401
    except ImportError as error:  # installed without a package that it imports
        return f"installed, but does not import: {error}"
    logging.disable(logging.INFO)  # importing it turns INFO on for every library, on standard output
    return None


def bergson_runs(
    peer: Peer, domain: Sequence[TokenRow], pool: Sequence[TokenRow], options: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """Its sketches, and its scores along the mean gradient, which is made once as ours is."""
    mean = bergson_collect(peer, domain, options, aggregation="mean").gradients
    bergson_collect(peer, domain[:1], options, dim=8)  # on a GPU this compiles the kernel that makes signs
    return {
        "bergson": functools.partial(bergson_sketch, peer, pool, options),
        "bergson, scores": functools.partial(bergson_scores, peer, pool, options, mean),
    }


def bergson_sketch(peer: Peer, rows: Sequence[TokenRow], options: argparse.Namespace) -> np.ndarray:
    """[N, K] by its "global" projection: one dense Rademacher matrix over all of the adapter, as the loop's is, and
    divided by √K already. (Its default projects each module to p by p, which is another estimate.)"""
    return bergson_collect(peer, rows, options, dim=options.dim).gradients["gradients"].float().numpy()


def bergson_scores(
    peer: Peer, rows: Sequence[TokenRow], options: argparse.Namespace, direction: dict[str, Any]
) -> np.ndarray:
    """[N] exact dot products with a direction, module by module during the backward pass; nothing is projected."""
    return bergson_collect(peer, rows, options, direction=direction).scores[:, 0].float().numpy()


def bergson_collect(
    peer: Peer,
    rows: Sequence[TokenRow],
    options: argparse.Namespace,
    *,
    dim: int | None = None,
    aggregation: str = "none",
    direction: dict[str, Any] | None = None,
) -> Any:
    """Its collector after one pass over the rows, which has `gradients` by module or, along a direction, `scores`.

    Batches are padded to their longest row and have at most --tokens tokens, as it makes them of rows sorted by length.
    """
    import torch
    from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector, PreprocessConfig, Scorer
    from bergson.data import allocate_batches
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from bergson.utils.peft import detect_peft_modules
    from datasets import Dataset

    labels = [np.where(np.roll(row.span, 1), row.ids, -100).tolist() for row in rows]  # position t predicts token t + 1
    data = Dataset.from_dict({"input_ids": [row.ids.tolist() for row in rows], "labels": labels})
    scorer = None
    if direction is not None:
        writer = InMemorySequenceScoreWriter(len(rows), 1)
        scorer = Scorer(direction, list(direction), writer, peer.device, torch.float32)
    with tempfile.TemporaryDirectory() as folder, only_embeddings_trainable(peer):
        config = IndexConfig(str(Path(folder) / "run"), loss_reduction="mean")  # its default, a sum, is not the loop's
        config.partial_run_path.mkdir()
        collector = InMemoryCollector(
            model=peer.model.base_model,
            target_modules=detect_peft_modules(peer.model),
            processor=GradientProcessor(projection_dim=dim, projection_target="global", projection_seed=options.seed),
            data=data,
            cfg=config,
            preprocess_cfg=PreprocessConfig(aggregation=aggregation),
            scorer=scorer,
        )
        batches = allocate_batches([len(row.ids) for row in rows], options.tokens)
        CollectorComputer(peer.model, data, collector=collector, batches=batches, cfg=config).run_with_collector_hooks()
    return collector


@contextlib.contextmanager
def only_embeddings_trainable(peer: Peer) -> Iterator[None]:
    """Parameters as bergson's own loader sets them: it makes gradients in hooks, so that PyTorch need not, and the
    embedding's is what makes PyTorch go back to the first layer."""
    before = {p: p.requires_grad for p in peer.model.parameters()}
    peer.model.requires_grad_(False)
    peer.model.get_input_embeddings().requires_grad_(True)
    try:
        yield
    finally:
        for parameter, value in before.items():
            parameter.requires_grad_(value)


# ---------------------------------------------------------------------------------------------------------------
# What was computed


def remember(results: dict[str, Any], name: str, run: Callable[[], Any]) -> Any:
    """What the run gives, which is kept; with a line, for a dense projection takes minutes on a CPU."""
    begin = time.perf_counter()
    results[name] = run()
    print(f"{name}: {time.perf_counter() - begin:.1f} s", flush=True)
    return results[name]


def agreement_with(
    peer: Peer,
    results: dict[str, Any],
    of_domain: dict[str, Callable[[], Any]],
    domain: Sequence[TokenRow],
    pool: Sequence[TokenRow],
    options: argparse.Namespace,
    projectors: dict[str, Projector],
) -> dict[str, dict[str, float]]:
    """How all that is timed above ranks the pool, against ⟨ḡ, g(x)⟩ of the loop's gradients themselves: alike up to
    rounding where it is exact, less so for projections, which estimate it."""
    mean = sum(group.sum(0) for group in groups(peer, domain, options)) / len(domain)
    exact = np.concatenate([(group @ mean).cpu().numpy() for group in groups(peer, pool, options)])
    scores = {"directional scores": results["directional scores"]}
    for kind in ("rademacher", "kronecker"):
        scores[f"sketch, {kind}"] = results[f"sketch, {kind}"] @ of_domain[f"sketch, {kind}"]()[: len(domain)].mean(0)
    for name, projector in projectors.items():
        scores[f"loop, {name}"] = results[f"loop, {name}"] @ loop(peer, domain, options, projector).mean(0)
    if "bergson" in results:
        scores["bergson"] = results["bergson"] @ bergson_sketch(peer, domain, options).mean(0)
        scores["bergson, scores"] = results["bergson, scores"]
    return {
        name: {
            "spearman": spearman(values, exact),
            "relative_error": float(np.linalg.norm(values - exact) / np.linalg.norm(exact)),
        }
        for name, values in scores.items()
    }


if __name__ == "__main__":
    ms.command_line(main)
