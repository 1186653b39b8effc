"""The command line: `ntk-jax COMMAND CONFIG`. Its grammar is in `parser.py`; here a command is run, and whatever ends
it becomes an exit code and a line.

May import everything but the Python API.

Exit codes: 0 success; 2 a user's mistake, one line that says what, where and the remedy; 130 an interruption from the
keyboard; 1 anything else, such as another process that is lost.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ntk_jax.cli.parser import COMMON, explained, parser
from ntk_jax.engine.stage import Pipeline
from ntk_jax.errors import Note, TryAgain, UserError, one_line, shown
from ntk_jax.pipelines import all_pipelines, report_parts

# What is wrong with a path that a config or the command line names, wherever it is first looked at.
PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)


@contextmanager
def _notes_as_lines() -> Iterator[None]:
    """Shows a `Note` without the place in the code that gave it."""
    plain = warnings.formatwarning

    def line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        return f"ntk-jax: note: {message}\n" if issubclass(category, Note) else plain(message, category, *where, **more)

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = plain


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (`sys.argv` by default) and returns its exit code."""
    try:
        arguments, rest = parser().parse_known_args(argv)
        with _notes_as_lines():
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
    if arguments.command == "export":
        from ntk_jax.engine.export import Wanted, export

        wanted = Wanted(arguments.arm, arguments.adapter, arguments.merged, arguments.selection)
        for line in export(arguments.config, wanted, all_pipelines(), out=arguments.out, overrides=rest):
            print(line)
        return
    if arguments.command == "search":
        from ntk_jax.engine.search import search

        texts = arguments.text or sys.stdin
        options = {"nearest": arguments.nearest, "index": arguments.index, "as_json": arguments.json}
        for line in search(arguments.config, texts, all_pipelines(), out=arguments.out, overrides=rest, **options):
            print(line, flush=True)
        return
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

    if arguments.command == "report" and (Path(arguments.config) / "config.yaml").is_file():
        # a run directory, wherever it lies now
        arguments.out = arguments.config if arguments.out is None else arguments.out
        arguments.config = str(Path(arguments.config) / "config.yaml")
    everyone = {pipeline.name: pipeline for pipeline in all_pipelines()}
    able = [
        pipeline
        for pipeline in everyone.values()
        if arguments.command in (pipeline.command, *(stage.name for stage in pipeline.stages), *COMMON)
    ]
    named = read_tree(arguments.config, overrides).get(PIPELINE)
    if named is not None and (not isinstance(named, str) or named not in everyone):
        raise UserError(f"{arguments.config}: pipeline = {shown(named)} is not one of {', '.join(everyone)}")
    meant = [named] if named is not None else _pipelines_beside(arguments.config)
    found = next((pipeline for pipeline in able if pipeline.name in meant), able[0])
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


def _pipelines_beside(config: str) -> list[str]:
    """The pipelines of the run directory that a config.yaml lies in: it has all their sections, and names none."""
    from ntk_jax.engine.plan import FILE
    from ntk_jax.storage.atomic import read_json

    path = Path(config).with_name(FILE)
    if Path(config).name != "config.yaml" or not path.is_file():
        return []
    return list(read_json(path, dict).get("pipelines", {}))


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

    lines: list[Progress] = []

    def progress(stage: str, total: int | None, unit: str) -> Progress:
        lines.append(Progress(stage, total, unit))
        return lines[-1]

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
        for line in lines:  # so that an error begins on a line of its own
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


def _out_of_memory(error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line), "RESOURCE_EXHAUSTED")
    return (
        f"out of device memory ({first.strip()[:160]}); lower score.batch_tokens, warmup.tokens_per_microbatch and "
        "finetune.tokens_per_microbatch, set model.dtype=bfloat16 or model.quantization=int8, or shard the weights "
        "with mesh.fsdp"
    )
