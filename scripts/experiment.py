"""Arms × seeds × domains × models: a queue of ordinary `ntk-jax run` runs, and what they show together.

    python scripts/experiment.py configs/experiments/builtin.yaml --dry-run
    python scripts/experiment.py configs/experiments/builtin.yaml --jobs 2 --report docs/results/builtin
    python scripts/experiment.py configs/experiments/real.yaml --only seed-0 --until select -- --data.pool_limit=500

The YAML: base (path of a config, from the YAML's own folder, or the config itself), out, models {name: path or
settings}, domains {name: settings, such as data.domain, evaluate.files, report.useful}, seeds, seeds_of (everything; or
repeats: the first seed's warm-up and scores, with the random selections and trainings of each), methods, arms,
overrides (of all runs), variants {name: settings} and worth (settings of a diagnosis). Settings may be dotted
(finetune.loss).

One run directory a model, domain and seed has all methods, so they share the warm-up and what they score by. A variant
or a repeat starts from a copy of the stages that its settings leave as they are. A finished run is skipped, a run that
was stopped goes on, one that fails is reported with its line while the queue goes on (exit 1 at the end); its output is
in OUT/logs. With `worth`, every run with scores of its own is then compared with the metagradient (`ntk-jax diagnose`).
--report DIR writes results.json, results.md and figures from what is finished; --transfer adds how alike models score
one pool. Settings behind -- are for all runs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import fnmatch
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measurement as ms
from experiment_plan import Experiment, Run, data_files, mark_path, merged, read_experiment, shared_stages

from ntk_jax import cli
from ntk_jax.engine.estimate import estimate_run
from ntk_jax.engine.plan import Command, stages_asked
from ntk_jax.errors import UserError
from ntk_jax.pipelines.diagnose.config import DiagnoseConfig
from ntk_jax.pipelines.select.stages import PIPELINE
from ntk_jax.report.amounts import metric
from ntk_jax.storage.atomic import make_folder, read_json, write_json

ENOUGH_FOR_WORTH = (None, "select")  # a diagnosis looks at scores and not at what was trained
WAIT = 0.2  # seconds between two looks at the processes
START = "$ ntk-jax "  # before the output of each start
INTERRUPTED = 130  # the exit code of Ctrl-C
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Job:
    """A process of the queue. name: what it is called. after: jobs that must have ended well before. prepare: what is
    done before it starts. mark: of what it is finished for, kept where it ended well."""

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...]
    prepare: Callable[[], None]
    mark: dict[str, Any]


def main() -> None:
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--out", type=Path, help="in place of the file's")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument(
        "--together", action="store_true", help="all in this process: programs that runs share are compiled once"
    )
    parser.add_argument(
        "--only",
        default="",
        help="the run MODEL/DOMAIN/seed-N+VARIANT, all whose names have this, or (with *, ? or [) end as it says",
    )
    parser.add_argument("--until", help="the last stage of every run")
    parser.add_argument("--no-worth", action="store_true", help="leave out the diagnoses of what scores are worth")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and their FLOPs, and do nothing")
    parser.add_argument("--report", type=Path, help="a folder for tables and figures of what is finished")
    parser.add_argument("--transfer", action="store_true", help="compare the scores of different models in the report")
    parser.add_argument("--against", nargs="+", default=[], metavar="ARM", help="controls in the report, beside random")
    options = parser.parse_args(sys.argv[1:place])
    if options.jobs < 1 or (options.together and options.jobs > 1):
        raise UserError("--jobs is at least 1, and --together is for one at a time")
    experiment = read_experiment(options.experiment, sys.argv[place + 1 :], options.out)
    if options.no_worth:
        experiment = dataclasses.replace(experiment, worth=None)
    if options.transfer and (not options.report or len(experiment.models) < 2):
        raise UserError(
            "--transfer compares the scores of different models in the report; give --report and two models"
        )
    runs = runs_named(experiment.runs, options.only)
    if not runs:
        raise UserError(f"--only {options.only}: no run has this; names are such as {experiment.runs[0].name}")
    for run in runs:
        if options.until:
            stages_asked(PIPELINE, run.config, Command(until=options.until))
    if options.dry_run:
        for line in dry_run(experiment, runs, options.until):
            print(line, flush=True)  # each run's data are read for its estimate, which takes seconds
        return
    queue = jobs_of(experiment, runs, options.until)
    failed = work_here(experiment.out, queue) if options.together else work(experiment.out, queue, options.jobs)
    if options.report:
        from experiment_report import write_results

        print(write_results(experiment, options.report, transfer=options.transfer, against=options.against))
    for name, line in failed.items():
        print(f"FAILED {name}: {line}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


# ---------------------------------------------------------------------------------------------------------------
# What is to be done


def runs_named(runs: Sequence[Run], only: str) -> list[Run]:
    """The runs that `--only` means: the one of this whole name; or those whose names end as a pattern says, so that
    seed-[01] leaves out the variants of these seeds, seed-[01]* does not; or those that have it in their names."""
    if whole := [run for run in runs if run.name == only]:
        return whole
    if any(sign in only for sign in "*?["):
        return [run for run in runs if fnmatch.fnmatch(run.name, f"*{only}")]
    return [run for run in runs if only in run.name]


def jobs_of(experiment: Experiment, runs: Sequence[Run], until: str | None) -> list[Job]:
    """The processes of runs, each behind the run it starts from, and their diagnoses at the end."""
    found = [_job(experiment, run, until) for run in runs]
    if experiment.worth is not None and until in ENOUGH_FOR_WORTH:
        found += [_worth_job(experiment, run) for run in runs if run.after is None]
    return found


def _job(experiment: Experiment, run: Run, until: str | None) -> Job:
    path = config_path(experiment, run.name)

    def prepare() -> None:
        if run.after:
            take_over(experiment, run)
        make_folder(path.parent)
        write_json(path, run.tree)

    command = ("run", str(path), *(("--until", until) if until else ()))
    mark = {"config": run.fingerprint, "until": until, "data": data_files(run.config)}
    return Job(run.name, command, (run.after,) if run.after else (), prepare, mark)


def _worth_job(experiment: Experiment, run: Run) -> Job:
    name = f"worth/{run.name}"
    known = DiagnoseConfig.__dataclass_fields__
    tree = merged(
        {key: value for key, value in run.tree.items() if key in known},
        experiment.worth or {},
        {"out": str(experiment.out / name), "diagnose.rankings": [str(run.folder)]},
    )
    tree.get("evaluate", {}).pop("arms", None)
    path = config_path(experiment, name)

    def prepare() -> None:
        make_folder(path.parent)
        write_json(path, tree)

    # With the run's own fingerprint, for the diagnosis reads the scores that the run made.
    mark = {"config": tree, "until": None, "data": data_files(run.config), "run": run.fingerprint}
    return Job(name, ("diagnose", str(path)), (run.name,), prepare, mark)


def take_over(experiment: Experiment, run: Run) -> None:
    """Makes the run directory of a variant or a repeat of the finished stages that it shares with the run it starts
    from. The copy is made beside and renamed, so that it is whole or not there."""
    if run.folder.exists() or run.after is None:
        return
    source = experiment.run(run.after).folder
    beside = run.folder.with_name(f".{run.folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    make_folder(beside)
    for stage in shared_stages(experiment, run):
        if not (source / stage / "manifest.json").exists():
            continue
        shutil.copytree(source / stage, beside / stage)
        clock = Path(".clock") / stage  # or its time would be that of a second look at it
        if (source / clock).is_dir():
            shutil.copytree(source / clock, beside / clock)
    beside.rename(run.folder)


def config_path(experiment: Experiment, name: str) -> Path:
    """Where a run's config is written (JSON is YAML)."""
    return experiment.out / "configs" / f"{name}.json"


def dry_run(experiment: Experiment, runs: Sequence[Run], until: str | None) -> Iterator[str]:
    """A line a run: its stages and their FLOPs by `ntk-jax estimate`, then the sum; every seed costs what one does."""
    known: dict[tuple[Any, ...], tuple[float, str]] = {}
    total = 0.0
    for run in runs:
        key = (run.model, run.domain, run.variant, shared_stages(experiment, run))
        if key not in known:
            known[key] = _estimated(experiment, run, until)
        flops, about = known[key]
        if flops and run.after:
            about += f" (the others from {run.after})"
        total += flops
        state = "finished" if finished(experiment.out, _job(experiment, run, until)) else "to do"
        yield f"{run.name}  {metric(flops, 'FLOP')}  {about}  [{state}]"
    yield f"{len(runs)} runs, {metric(total, 'FLOP')}"
    worth = experiment.worth is not None and until in ENOUGH_FOR_WORTH
    count = sum(run.after is None for run in runs)
    if worth:
        yield f"and {count} diagnoses of what scores are worth, which are not estimated"


def _estimated(experiment: Experiment, run: Run, until: str | None) -> tuple[float, str]:
    shared, config = shared_stages(experiment, run), run.config
    asked = [name for name in stages_asked(PIPELINE, config, Command(until=until)) if name not in shared]
    try:
        found = estimate_run(PIPELINE, config)
    except UserError as error:  # the queue reports it too, and goes on
        return 0.0, f"cannot be estimated: {error}"
    flops = sum(row["flops"] for row in found["stages"] if row["stage"] in asked)
    return flops, ", ".join(asked)


# ---------------------------------------------------------------------------------------------------------------
# The queue


def finished(out: Path, job: Job) -> bool:
    """Whether a job ended well with this config and these data files, no earlier than it is asked for."""
    path = mark_path(out, job.name)
    if not path.exists():
        return False
    mark = read_json(path, dict)
    same = all(mark.get(key) == job.mark.get(key) for key in ("config", "data", "run"))
    return same and mark["until"] in (None, job.mark["until"])


def work(out: Path, jobs: Sequence[Job], at_once: int) -> dict[str, str]:
    """Runs all that is not finished, so many at a time; {name: line} of what failed."""
    waiting = [job for job in jobs if not finished(out, job)]
    print(f"{len(jobs)} in all, {len(jobs) - len(waiting)} of them finished", flush=True)
    ahead = {job.name for job in waiting}  # an earlier run that is not in this queue is not waited for
    running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            for job in [job for job in waiting if len(running) < at_once]:
                lost = [name for name in job.after if name in failed]
                if lost:
                    waiting.remove(job)
                    failed[job.name] = f"not started, because {lost[0]} failed"
                elif not set(job.after) & ahead and len(running) < at_once:
                    waiting.remove(job)
                    job.prepare()
                    running[job.name] = (job, _start(out, job), time.monotonic())
                    print(f"start {job.name}", flush=True)
            for name, (job, process, begin) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                ahead.discard(name)
                if process.returncode:
                    failed[name] = failure(log_path(out, name), process.returncode)
                    print(f"FAILED {name}: {failed[name]}", flush=True)
                else:
                    make_folder(mark_path(out, name).parent)
                    write_json(mark_path(out, name), job.mark)
                    print(f"done {name} ({time.monotonic() - begin:.0f} s)", flush=True)
            time.sleep(WAIT)
    finally:
        for _, process, _ in running.values():
            process.terminate()
            process.wait()
    return failed


def work_here(out: Path, jobs: Sequence[Job]) -> dict[str, str]:
    """As `work`, one after another in this process, which small models need less time for than for compiling."""
    waiting = [job for job in jobs if not finished(out, job)]
    print(f"{len(jobs)} in all, {len(jobs) - len(waiting)} of them finished", flush=True)
    failed: dict[str, str] = {}
    for job in waiting:
        if lost := [name for name in job.after if name in failed]:
            failed[job.name] = f"not started, because {lost[0]} failed"
            continue
        job.prepare()
        print(f"start {job.name}", flush=True)
        begin, path = time.monotonic(), log_path(out, job.name)
        make_folder(path.parent)
        with path.open("a", encoding="utf8") as log:
            log.write(f"{START}{' '.join(job.command)}\n")
            log.flush()
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                code = cli.main(job.command)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            failed[job.name] = failure(path, code)
            print(f"FAILED {job.name}: {failed[job.name]}", flush=True)
        else:
            make_folder(mark_path(out, job.name).parent)
            write_json(mark_path(out, job.name), job.mark)
            print(f"done {job.name} ({time.monotonic() - begin:.0f} s)", flush=True)
    return failed


def log_path(out: Path, name: str) -> Path:
    """Where the output of a process goes, all starts one behind the other."""
    return out / "logs" / f"{name.replace('/', '_')}.log"


def _start(out: Path, job: Job) -> subprocess.Popen[bytes]:
    path = log_path(out, job.name)
    make_folder(path.parent)
    with path.open("ab") as log:
        log.write(f"{START}{' '.join(job.command)}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "ntk_jax", *job.command],
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_with_parent,
        )


def _with_parent() -> None:
    """Where this queue is killed, what it started ends too: or it would hold the run directory against the next one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGTERM)


def failure(log: Path, code: int) -> str:
    """The line that a process failed with."""
    latest = f"\n{log.read_text('utf8', 'replace')}".rpartition(f"\n{START}")[2]
    lines = [line for line in latest.splitlines()[1:] if line.strip()]
    errors = [line for line in lines if line.startswith("ntk-jax: error:")]
    line = (errors or lines or ["it said nothing"])[-1]
    return f"{line.removeprefix('ntk-jax: error: ')} (exit {code}, {log})"


if __name__ == "__main__":
    ms.command_line(main)
