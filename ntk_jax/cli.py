"""The command `ntk-jax`: parses, calls one function, and turns errors into exit codes.

0 is success, 2 a user's mistake (one line on stderr), 1 anything else, 130 an interruption from the keyboard.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import platform
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import NoReturn

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.version import VERSION

OVERRIDES = """\
Any value of the config can be set on the command line, and wins over the file:

  ntk-jax {name} configs/quickstart.yaml --seed=1 --score.objective=probe --data.pool='[a.jsonl, b.parquet]'

A stage that is finished in the run directory is skipped, one that was cut short goes on from its last committed
block. Changing a value that a finished stage depends on stops with the names of the keys that differ.
"""

SHARDS = """
Several processes fill the stage together (a job array): --shard i/n, i from 0 to n-1, computes the blocks whose number
leaves i when divided by n, and leaves the stage open; when all are done, --merge closes it. Killed, the same command
goes on. Blocks that are there are skipped whatever n they were computed with, so n may change on the way; the result
has the same bytes as that of one process.
"""

# sub-command -> (one line for the list, what its own --help says). All but `doctor` take a config, and all but
# `doctor` and `estimate` a run directory.
COMMANDS = {
    "run": (
        "all stages in order, resumable",
        "Runs warmup, gradient, preselect, score, select, finetune, evaluate and report in order (with select.by other "
        "than score: sketch instead of gradient and score), skips what is finished in the run directory, and prints "
        "the table of accuracies at the end.",
    ),
    "warmup": (
        "fine-tune LoRA on the domain",
        "Fine-tunes a LoRA adapter on the domain examples, so that the kernel is taken at a point that has seen the "
        "domain. Reads data.domain and the section warmup; writes warmup/.",
    ),
    "gradient": (
        "the domain's mean gradient",
        "One backward pass over the domain set at the warm-up adapter. Reads warmup/; writes "
        "gradient/direction.safetensors.",
    ),
    "preselect": (
        "the paper's votes, or nothing",
        "With preselect.method votes: each domain example votes for its nearest pool examples by mean hidden state, "
        "and those with most votes go on. With none, the default, the whole pool goes on. Writes preselect/.",
    ),
    "score": (
        "the kernel score of every candidate",
        "The mean kernel of every candidate with the domain: one forward-mode derivative along the direction of "
        "gradient/. Writes score/scores.zarr block by block.",
    ),
    "sketch": (
        "projected gradients of pool and domain, in zarr stores",
        "The gradient of every candidate and of every domain example, projected to sketch.dim numbers, whose inner "
        "products estimate the kernel. Reads warmup/ and preselect/; writes sketch/pool.zarr and sketch/domain.zarr "
        "block by block. select.by mean, cosine, max or round_robin selects by them.",
    ),
    "select": (
        "the top N as records",
        "Takes the select.count best by select.by: score, the exact kernel score of score/, or mean, cosine, max or "
        "round_robin of the stores of sketch/; ties in pool order. Writes select/selection.jsonl: the records with "
        "score, rank and method added.",
    ),
    "finetune": (
        "one adapter for each arm",
        "Fine-tunes one LoRA adapter an arm of evaluate.arms: domain only, domain + random, domain + selected, with "
        "the same number of steps. Writes finetune/<arm>/adapter, which peft loads.",
    ),
    "evaluate": (
        "accuracy of every arm",
        "Multiple-choice accuracy on evaluate.files with bootstrap intervals, and prints the table. Writes evaluate/.",
    ),
    "report": (
        "one HTML page of the whole run",
        "Makes report/index.html, a self-contained page, from what the other stages wrote.",
    ),
    "diagnose": (
        "does fine-tuning stay in the NTK regime?",
        "Fine-tunes on the domain from several LoRA seeds, keeps adapters on the way, and compares their kernels and "
        "the rankings they make of the pool: stability, cross-output cosines, approximations against the exact kernel, "
        "which score predicts the measured drop of the loss, and kernel regression against fine-tuning. Needs no other "
        "stage and is no part of `run`. Writes diagnose/: JSON and figures; `ntk-jax report` shows them.",
    ),
    "kernel": (
        "a kernel matrix between two files",
        "The exact neural tangent kernel of model.path, with the adapter model.adapter, between the examples of "
        "kernel.a and those of kernel.b, or kernel.a itself: over score.span and score.parameters, of kernel.kind "
        "trace, centered_trace, pseudo, probe or full. Needs no other stage and is no part of `run`. Writes kernel/: "
        "kernel.npz (kernel, ids_a, ids_b, kind), summary.json and data.json.",
    ),
    "estimate": (
        "what a run will cost, before it starts",
        "Tokens, FLOPs, device-hours, memory a device and disk of every stage, from what is on this machine (the "
        "model's config.json, its tokenizer, the records) and, for what is not, from the section estimate; lists every "
        "value it rests on. Writes nothing but FILE of --json FILE, and downloads nothing. --measure runs the score "
        "step and the training step on this machine's devices for a few seconds instead of taking a stated rate.",
    ),
    "doctor": (
        "check devices, numerics, weights and data",
        "Checks devices and versions, the numerics of the kernel on a small random model, and with a config also "
        "that its weights, tokenizer and data files load and fit together. Exits 2 if a check fails.",
    ),
}


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage and exits; here a mistake is one line like every other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(
        prog="ntk-jax",
        description="Which general examples, added to a scarce domain, make the model better there?",
        epilog="`ntk-jax COMMAND --help` says what a command reads and writes.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=110),
    )
    top.add_argument("-V", "--version", action=_Versions, nargs=0, help="print the versions and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, (line, description) in COMMANDS.items():
        config = "[CONFIG]" if name == "doctor" else "CONFIG"
        shared = name in ("preselect", "score", "sketch")
        own = {"run": "[--until STAGE] ", "estimate": "[--json FILE] [--measure] "}.get(name, "")
        own = "[--shard i/n | --merge] " if shared else own
        sub = commands.add_parser(
            name,
            help=line,
            description=textwrap.fill(description, 110),
            epilog=OVERRIDES.format(name=name) + (SHARDS if shared else ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            usage=f"ntk-jax {name} {config} [--out DIR] {own}[--section.key=value ...]",
        )
        sub.add_argument("config", metavar="CONFIG", nargs="?" if name == "doctor" else None, help="a YAML file")
        sub.add_argument(
            "--out", metavar="DIR", help="the run directory, or gs://... or s3://...; wins over `out` in the config"
        )
        if name == "run":
            stages = [stage for stage in COMMANDS if stage not in ("run", "diagnose", "kernel", "estimate", "doctor")]
            sub.add_argument("--until", metavar="STAGE", choices=stages, help="stop after this stage")
        if name == "estimate":
            sub.add_argument("--json", metavar="FILE", help="also write all numbers and their grounds there")
            sub.add_argument("--measure", action="store_true", help="measure the rate on this machine's devices")
        if name not in ("doctor", "estimate"):
            several = sub.add_argument_group(
                "several processes with one mesh (found without these under Slurm, Open MPI and on GKE's TPU slices)"
            )
            several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
            several.add_argument("--processes", metavar="N", type=int, help="how many there are")
            several.add_argument("--process", metavar="I", type=int, help="which of them this is, counted from 0")
            several.add_argument("--wait", metavar="S", type=int, default=300, help="seconds to wait for the others")
            several.add_argument(
                "--heartbeat", metavar="S", type=int, default=100, help="seconds until a silent one is given up"
            )
        if shared:
            either = sub.add_mutually_exclusive_group()
            either.add_argument("--shard", metavar="i/n", help="compute shard i of n only, counted from 0")
            either.add_argument("--merge", action="store_true", help="close the stage if all blocks are there")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (`sys.argv` by default) and returns its exit code."""
    try:
        arguments, rest = parser().parse_known_args(argv)
        _command(arguments, rest)
    except UserError as error:
        print(f"ntk-jax: error: {error}", file=sys.stderr)
        return _ended(2)
    except TryAgain as error:
        print(f"ntk-jax: error: {error}", file=sys.stderr)
        return _ended(1)
    except KeyboardInterrupt:
        print("\nntk-jax: interrupted; the same command goes on from the last committed block", file=sys.stderr)
        return _ended(130)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # jax has no exception of its own for this
            print(f"ntk-jax: error: {_out_of_memory(error)}", file=sys.stderr)
            return _ended(2)
        lost = (
            sys.modules["ntk_jax.parallel.hosts"].lost_process_line(error)
            if "ntk_jax.parallel.hosts" in sys.modules
            else None
        )
        if lost:
            print(f"ntk-jax: error: {lost}", file=sys.stderr)
            return _ended(1)  # no mistake: the same command again goes on
        traceback.print_exc()
        print("ntk-jax: this is a bug in ntk_jax; please report it with the lines above", file=sys.stderr)
        return _ended(1)
    return 0


def _ended(code: int) -> int:
    """The exit code of a command that failed; one of several processes ends at once, for the others will not come."""
    hosts = sys.modules.get("ntk_jax.parallel.hosts")  # not imported yet where nothing was started
    if hosts and hosts.is_distributed():
        hosts.exit_now(code)
    return code


def _command(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    for argument in rest:
        if not argument.startswith("--") or "=" not in argument:
            raise UserError(f"unknown argument {argument!r}; a config value is set as --section.key=value")

    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found": only tokenizers are used
    # Imported late, so that --help and a mistyped option answer at once.
    from ntk_jax.config import Config, load_config

    config = load_config(arguments.config, rest) if arguments.config else None
    if config is None and rest:
        raise UserError(f"{rest[0]} overrides a config, but no CONFIG is given")
    if config is not None and arguments.out is not None:
        config = dataclasses.replace(config, out=arguments.out)
    if arguments.command == "doctor":
        from ntk_jax import doctor

        doctor.examine(config)
        return
    assert isinstance(config, Config)
    if arguments.command == "estimate":
        from ntk_jax.estimate.command import estimate

        estimate(config, json=arguments.json, measure=arguments.measure)
        return
    if not config.out:
        raise UserError("no run directory: give --out DIR, or set `out` in the config")

    from ntk_jax import pipeline
    from ntk_jax.parallel import hosts
    from ntk_jax.progress import Progress
    from ntk_jax.stages.share import parse_share
    from ntk_jax.storage.bucket import is_address
    from ntk_jax.summary import diagnosis_lines, kernel_lines, summarize
    from ntk_jax.xla import keep_compiled

    shown: list[Progress] = []

    def progress(stage: str, total: int | None, unit: str) -> Progress:
        shown.append(Progress(stage, total, unit))
        return shown[-1]

    whole = arguments.command == "run"
    shard = getattr(arguments, "shard", None)
    share, merge = parse_share(shard) if shard is not None else None, getattr(arguments, "merge", False)
    if (
        arguments.coordinator
        or arguments.processes
        or arguments.process is not None
        or (not share and hosts.detected())
    ):
        hosts.start(
            *(arguments.coordinator, arguments.processes, arguments.process),
            wait=arguments.wait,
            heartbeat=arguments.heartbeat,
        )
    hosts.refuse_unjoined()
    keep_compiled()
    try:
        if whole:
            folder = pipeline.run(config, until=arguments.until, progress=progress)
        else:
            folder = pipeline.run(config, only=arguments.command, share=share, merge=merge, progress=progress)
    finally:
        for line in shown:  # so that an error begins on a line of its own
            line.close()
    if not hosts.is_primary():
        return
    if whole or arguments.command in ("select", "evaluate"):
        print(summarize(folder))
    if share:
        print(pipeline.shared_line(config, folder, arguments.command))
    if arguments.command == "kernel":
        print(kernel_lines(folder))
    if arguments.command == "diagnose":
        print(diagnosis_lines(folder))
    if is_address(config.out) and not share:
        print(f"The run directory is {config.out}; its working copy here is {folder}")


def _out_of_memory(error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line), "RESOURCE_EXHAUSTED")
    return (
        f"out of device memory ({first.strip()[:160]}); lower score.batch_tokens, warmup.tokens_per_microbatch and "
        "finetune.tokens_per_microbatch, set model.dtype=bfloat16 or model.quantization=int8, or shard the weights "
        "with mesh.fsdp"
    )


class _Versions(argparse.Action):
    """Looks the versions up only when they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        jax, flax = (importlib.metadata.version(name) for name in ("jax", "flax"))
        print(f"ntk-jax {VERSION} (jax {jax}, flax {flax}, Python {platform.python_version()})")
        parser.exit()
