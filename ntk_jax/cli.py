"""The command line: `ntk-jax COMMAND CONFIG`, with the commands of the pipelines' tables of stages.

Exit codes: 0 success; 2 a user's mistake, one line that says what, where and the remedy; 130 an interruption from the
keyboard; 1 anything else, such as another process that is lost.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib.metadata
import os
import platform
import re
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from ntk_jax.engine.stage import Pipeline, Stage, nothing
from ntk_jax.errors import TryAgain, UserError, one_line, shown
from ntk_jax.pipelines import all_pipelines, report_parts
from ntk_jax.version import VERSION

WIDTH = 110  # of help
# What is wrong with a path that a config or the command line names, wherever it is first looked at.
PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
OVERRIDES = """\
Any value of the config can be set on the command line, and wins over the file:

  ntk-jax {name} configs/quickstart.yaml --seed=1 --section.key=value --data.pool='[a.jsonl, b.parquet]'

A stage that is finished in the run directory is skipped, one that was cut short goes on from its last committed
block. Changing a value that a finished stage depends on stops with the names of the keys that differ.
"""

SHARDS = """
Several processes fill the stage together (a job array): --shard i/n, i from 0 to n-1, computes the blocks whose number
leaves i when divided by n, and leaves the stage open; when all are done, --merge closes it. Killed, the same command
goes on. Blocks that are there are skipped whatever n they were computed with, so n may change on the way; the result
has the same bytes as that of one process.
"""

# Commands that serve every pipeline: (one line for the list, what its own --help says).
COMMON = {
    "report": (
        "one HTML page of the whole run",
        "Makes report/index.html, a self-contained page, from what the stages wrote. Reads the run directory only.",
    ),
    "estimate": (
        "what a run will cost, before it starts",
        "Tokens, FLOPs, device time, memory a device and disk of every stage, from what is on this machine (the "
        "model's config.json, its tokenizer, the records) and, for what is not, from the section estimate; lists every "
        "value it rests on. Writes nothing but FILE of --json FILE, and downloads nothing. --measure runs the "
        "score step and the training step on this machine's devices for a few seconds instead of taking a stated rate.",
    ),
    "doctor": (
        "check devices, numerics, weights and data",
        "Checks devices and versions, the numerics of the kernel on a small random model, and with a config also that "
        "its weights, tokenizer and data files load and fit together. Exits 2 if a check fails.",
    ),
    "help": (
        "what the keys of a config mean",
        "Lists every key of every pipeline's config with its default, its values in brackets and its meaning, or those "
        "whose name begins with KEY: ntk-jax help score.objective, ntk-jax help finetune.",
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
        epilog="`ntk-jax COMMAND --help` says what a command reads and writes, `ntk-jax help KEY` what a key of a "
        "config means.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=WIDTH),
    )
    top.add_argument("-V", "--version", action=_Versions, nargs=0, help="print the versions and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for pipeline in all_pipelines():
        stages = [stage for stage in pipeline.stages if stage.name != pipeline.command]
        sub = _add(commands, pipeline.command, pipeline.help, pipeline.description, "[--until STAGE] " * bool(stages))
        sub.add_argument("-h", "--help", action=_HelpWithKeys, nargs=0, pipeline=pipeline, help="show this and exit")
        if stages:
            sub.add_argument("--until", metavar="STAGE", help="stop after this stage")
        _add_processes(sub)
        for stage in stages:
            if stage.name not in commands.choices:  # where pipelines share a name, the config says which is meant
                _add_stage(commands, stage)
    for name, (line, description) in COMMON.items():
        own = {"estimate": "[--json FILE] [--measure] "}.get(name, "")
        sub = _add(commands, name, line, description, own, config={"doctor": "[CONFIG]", "help": "[KEY]"}.get(name))
        sub.add_argument("-h", "--help", action="help", help="show this and exit")
        if name == "estimate":
            sub.add_argument("--json", metavar="FILE", help="also write all numbers and their grounds there")
            sub.add_argument("--measure", action="store_true", help="measure the rate on this machine's devices")
    return top


def _add(
    commands: Any, name: str, line: str, description: str, own: str, *, config: str | None = None, epilog: str = ""
) -> argparse.ArgumentParser:
    """A sub-command. own: its options in the usage. config: how its argument is written, CONFIG by default."""
    place = config or "CONFIG"
    rest = "" if place == "[KEY]" else f" [--out DIR] {own}[--section.key=value ...]"
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=line,
        description=textwrap.fill(description, WIDTH),
        epilog="" if place == "[KEY]" else OVERRIDES.format(name=name) + epilog,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=WIDTH),
        allow_abbrev=False,
        add_help=False,
        usage=f"ntk-jax {name} {place}{rest}",
    )
    if place == "[KEY]":
        sub.add_argument("config", metavar="KEY", nargs="?", default="", help="a key or the beginning of one")
        return sub
    sub.add_argument("config", metavar="CONFIG", nargs="?" if place == "[CONFIG]" else None, help="a YAML file")
    sub.add_argument(
        "--out", metavar="DIR", help="the run directory, or gs://... or s3://...; wins over `out` in the config"
    )
    return sub


def _add_stage(commands: Any, stage: Stage) -> None:
    shards = stage.stores is not nothing
    own, epilog = ("[--shard i/n | --merge] ", SHARDS) if shards else ("", "")
    sub = _add(commands, stage.name, stage.help, stage.description, own, epilog=epilog)
    sub.add_argument("-h", "--help", action="help", help="show this and exit")
    _add_processes(sub)
    if shards:
        either = sub.add_mutually_exclusive_group()
        either.add_argument("--shard", metavar="i/n", help="compute shard i of n only, counted from 0")
        either.add_argument("--merge", action="store_true", help="close the stage if all blocks are there")


def _add_processes(sub: argparse.ArgumentParser) -> None:
    several = sub.add_argument_group(
        "several processes with one mesh (found without these under Slurm, Open MPI and on GKE's TPU slices)"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    several.add_argument("--processes", metavar="N", type=_count, help="how many there are")
    several.add_argument("--process", metavar="I", type=_count, help="which of them this is, counted from 0")
    several.add_argument("--wait", metavar="S", type=_count, default=300, help="seconds to wait for the others")
    several.add_argument(
        "--heartbeat", metavar="S", type=_count, default=100, help="seconds until a silent one is given up"
    )


def _count(text: str) -> int:
    """A number of processes or seconds."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number below 10^9")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (`sys.argv` by default) and returns its exit code."""
    try:
        arguments, rest = parser().parse_known_args(argv)
        _command(arguments, rest)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return _ended(1)
    except UserError as error:
        print(f"ntk-jax: error: {error}", file=sys.stderr)
        return _ended(2)
    except TryAgain as error:
        print(f"ntk-jax: error: {error}", file=sys.stderr)
        return _ended(1)
    except KeyboardInterrupt:
        print("\nntk-jax: interrupted; the same command goes on from the last committed block", file=sys.stderr)
        return _ended(130)
    except OSError as error:
        if error.errno not in PATHS or error.filename is None:
            return _bug()
        path = one_line(f"{error.filename}: {error.strerror}; correct the path or what lies there")
        print(f"ntk-jax: error: {path}", file=sys.stderr)
        return _ended(2)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # jax has no exception of its own for this
            print(f"ntk-jax: error: {_out_of_memory(error)}", file=sys.stderr)
            return _ended(2)
        hosts = sys.modules.get("ntk_jax.parallel.hosts")  # not imported yet where nothing was started
        lost = hosts.lost_process_line(error) if hosts else None
        if lost:
            print(f"ntk-jax: error: {lost}", file=sys.stderr)
            return _ended(1)  # no mistake: the same command again goes on
        return _bug()
    return 0


def _bug() -> int:
    """What nobody thought of, with its traceback."""
    traceback.print_exc()
    print("ntk-jax: this is a bug in ntk_jax; please report it with the lines above", file=sys.stderr)
    return _ended(1)


def _ended(code: int) -> int:
    """The exit code of a command that failed; one of several processes ends at once, for the others will not come."""
    hosts = sys.modules.get("ntk_jax.parallel.hosts")
    if hosts and hosts.is_distributed():
        hosts.exit_now(code)
    return code


def _command(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    for argument in rest:
        if not argument.startswith("--") or "=" not in argument:
            raise UserError(f"unknown argument {argument!r}; a config value is set as --section.key=value")
    if arguments.command == "help":
        print(explained(arguments.config))
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found": only tokenizers are used
    pipeline, config = _configured(arguments, rest)
    if arguments.command == "doctor":
        _doctor(pipeline, config)
    elif arguments.command == "estimate":
        from ntk_jax.engine.estimate import estimate

        assert pipeline is not None
        estimate(pipeline, config, json=arguments.json, measure=arguments.measure)
    elif arguments.command == "report":
        from ntk_jax.engine.run import report

        print(f"Report: {report(config, report_parts()) / 'report' / 'index.html'}")
    else:
        assert pipeline is not None
        _run(arguments, pipeline, config)


def _configured(arguments: argparse.Namespace, overrides: Sequence[str]) -> tuple[Pipeline | None, Any]:
    """The pipeline that a command line is about, and its config; neither where `doctor` has none."""
    if arguments.config is None:
        if overrides:
            raise UserError(f"{overrides[0]} overrides a config, but no CONFIG is given")
        return None, None
    from ntk_jax.engine.config import PIPELINE, load_config, read_tree, refuse_unusable

    everyone = {pipeline.name: pipeline for pipeline in all_pipelines()}
    able = [
        pipeline
        for pipeline in everyone.values()
        if arguments.command in (pipeline.command, *(stage.name for stage in pipeline.stages), *COMMON)
    ]
    named = read_tree(arguments.config, overrides).get(PIPELINE)
    if named is not None and (not isinstance(named, str) or named not in everyone):
        raise UserError(f"{arguments.config}: pipeline = {shown(named)} is not one of {', '.join(everyone)}")
    found = next((pipeline for pipeline in able if pipeline.name == named), able[0])
    if named is not None and found.name != named:
        raise UserError(
            f"{arguments.config} is for pipeline {named}; type `ntk-jax {everyone[named].command} {arguments.config}`"
        )
    others = [pipeline.config.resolve() for pipeline in everyone.values() if pipeline is not found]
    config = load_config(arguments.config, found.config.resolve(), overrides, others)
    if arguments.out is not None:
        refuse_unusable(arguments.out, "--out")
        config = dataclasses.replace(config, out=arguments.out)
    return found, config


def _doctor(pipeline: Pipeline | None, config: Any) -> None:
    from ntk_jax.engine.doctor import examine
    from ntk_jax.pipelines.common.doctor import numerics

    examine(numerics, pipeline, config)


def _run(arguments: argparse.Namespace, pipeline: Pipeline, config: Any) -> None:
    """A whole pipeline, or one of its stages."""
    if not config.out:
        raise UserError("no run directory: give --out DIR, or set `out` in the config")
    from ntk_jax.engine import run as engine
    from ntk_jax.engine.plan import Command
    from ntk_jax.engine.progress import Progress
    from ntk_jax.engine.shards import parse_shard
    from ntk_jax.parallel import hosts
    from ntk_jax.storage.bucket import is_address
    from ntk_jax.xla import keep_compiled

    shown: list[Progress] = []

    def progress(stage: str, total: int | None, unit: str) -> Progress:
        shown.append(Progress(stage, total, unit))
        return shown[-1]

    only = None if arguments.command == pipeline.command else arguments.command
    text = getattr(arguments, "shard", None)
    shard = parse_shard(text) if text is not None else None
    command = Command(only, getattr(arguments, "until", None), shard, getattr(arguments, "merge", False))
    asked = arguments.coordinator or arguments.processes or arguments.process is not None
    if asked or (not shard and hosts.detected()):
        hosts.start(
            *(arguments.coordinator, arguments.processes, arguments.process),
            wait=arguments.wait,
            heartbeat=arguments.heartbeat,
        )
    hosts.refuse_unjoined()
    keep_compiled()
    try:
        folder = engine.run(pipeline, config, command, parts=report_parts(), progress=progress)
    finally:
        for line in shown:  # so that an error begins on a line of its own
            line.close()
    if not hosts.is_primary():
        return
    if only is not None and only not in pipeline.of(config):
        print(f"{only}: this config has no use for it; its stages are {', '.join(pipeline.of(config))}")
    elif only is not None and shard:
        print(engine.progress_of_shards(pipeline, config, folder, only))
    elif pipeline.terminal and (only is None or only in pipeline.spoken):
        print(pipeline.terminal(folder))
    if is_address(config.out) and not shard:
        print(f"The run directory is {config.out}; its working copy here is {folder}")


def explained(beginning: str = "", pipelines: Sequence[Pipeline] | None = None) -> str:
    """The keys of configs, with default, values and meaning: those whose name begins so, of all pipelines by default.

    Raises UserError: there is no such key (the nearest one is offered).
    """
    from ntk_jax.engine.config import explain_keys

    return explain_keys({p.name: p.config.resolve() for p in pipelines or all_pipelines()}, beginning, WIDTH)


def _out_of_memory(error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line), "RESOURCE_EXHAUSTED")
    return (
        f"out of device memory ({first.strip()[:160]}); lower score.batch_tokens, warmup.tokens_per_microbatch and "
        "finetune.tokens_per_microbatch, set model.dtype=bfloat16 or model.quantization=int8, or shard the weights "
        "with mesh.fsdp"
    )


class _HelpWithKeys(argparse.Action):
    """The help of a pipeline's command, which lists every key of its config."""

    def __init__(self, *arguments: Any, pipeline: Pipeline, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pipeline = pipeline

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(parser.format_help())
        print(f"The keys of its config:\n\n{explained('', [self.pipeline])}")
        parser.exit()


class _Versions(argparse.Action):
    """Looks the versions up only when they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        jax, flax = (importlib.metadata.version(name) for name in ("jax", "flax"))
        print(f"ntk-jax {VERSION} (jax {jax}, flax {flax}, Python {platform.python_version()})")
        parser.exit()
