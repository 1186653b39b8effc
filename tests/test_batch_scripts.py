"""The scripts for batch queues: nothing here needs Slurm, gcloud or kubectl, whose place small programs take."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from ntk_jax.cli import parser

ROOT = Path(__file__).resolve().parent.parent
SLURM, TPU = ROOT / "scripts" / "slurm", ROOT / "tpu"
SCRIPTS = [*sorted(SLURM.glob("*.sh")), *sorted(TPU.glob("*.sh"))]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
QUEUE = ["--name", "my-tpu", "--zone", "us-east5-a", "--type", "v6e-8"]
JOBSET = [
    *("--name", "run-1", "--image", "registry/ntk_jax:1", "--accelerator", "tpu-v6e-slice", "--topology", "4x4"),
    *("--chips", "4", "--claim", "runs", "--config", "/runs/a.yaml", "--out", "/runs/a"),
]
OPTIONS = {"NTK_", "SLURM_", "TPU_"}  # what the scripts read from the environment


class Sandbox:
    """A folder with programs of the test's own in front of PATH, and the log they write to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.log.touch()
        clean = {key: value for key, value in os.environ.items() if not any(key.startswith(p) for p in OPTIONS)}
        for name in ("ZONE", "PROJECT_ID", "ACCELERATOR_TYPE", "RUNTIME_VERSION", "SPOT", "IMAGE"):
            clean.pop(name, None)
        self.environment = clean | {
            "PATH": f"{self.programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "LOG": str(self.log),
            "SANDBOX": str(folder),
            "HOME": str(folder),
            "TMPDIR": str(folder),
        }

    def program(self, name: str, body: str = "", language: str = "bash") -> None:
        """A program that logs its name and its arguments as one line of shell words, and then does `body`."""
        if language == "bash":
            start = '#!/usr/bin/env bash\n{ printf %s "${0##*/}"; printf " %q" "$@"; echo; } >>"$LOG"\n'
        else:
            start = (
                f"#!{sys.executable} -IS\nimport os, re, shlex, shutil, subprocess, sys\nfrom pathlib import Path\n"
                'print(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), file=open(os.environ["LOG"], "a"))\n'
            )
        path = self.programs / name
        path.write_text(start + body + "\n")
        path.chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of every call of a program, in order."""
        lines = [shlex.split(line) for line in self.log.read_text().splitlines()]
        return [words[1:] for words in lines if words[0] == name]

    def start(self, script: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: Path, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
        """What a script wrote to its two outputs; the test fails if its exit code is another."""
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=100)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out, err


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def ntk_jax_lines(text: str) -> list[list[str]]:
    """The arguments of every ntk-jax in a dry run, each checked with the command line of the package."""
    found = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["srun"] and "ntk-jax" in words:
            words = words[words.index("ntk-jax") :]
        if words[:1] == ["ntk-jax"]:
            found.append(accepted(words[1:]))
    assert found, text
    return found


def accepted(words: list[str]) -> list[str]:
    _, rest = parser().parse_known_args(words)
    assert all(word.startswith("--") and "=" in word for word in rest), f"ntk-jax does not know {rest} of {words}"
    return words


def in_order(text: str, *parts: str) -> None:
    place = 0
    for part in parts:
        assert part in text[place:], f"{part!r} is not there, or too early, in\n{text}"
        place = text.index(part, place) + len(part)


def test_shellcheck() -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "shellcheck is not installed; pip install -e '.[test]' brings it"
    files = [*map(str, SCRIPTS), str(TPU / "flags.env"), str(ROOT / ".ci" / "run")]
    done = subprocess.run([program, "--external-sources", *files], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert len(SCRIPTS) >= 6
    for script in SCRIPTS:
        assert os.access(script, os.X_OK), script
        assert "set -euo pipefail" in script.read_text(), script


def test_help_names_every_option(sandbox: Sandbox) -> None:
    for script in SCRIPTS:
        out, _ = sandbox.run(script, "--help")
        assert out.startswith("Usage: "), script
        parsed = script.read_text().split("while [ $# -gt 0 ]", 1)[1].split("esac", 1)[0]
        options = set(re.findall(r"--[a-z][a-z-]+", parsed))
        assert "--dry-run" in options
        for option in options - {"--help"}:
            assert option in out, f"{script.name} --help says nothing of {option}"


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        (SLURM / "job.sh", ["score"], "--config FILE"),
        (SLURM / "job.sh", ["--config", "a"], "--out DIR"),
        (SLURM / "job.sh", ["--config", "a", "--out", "b"], "name a stage"),
        (SLURM / "job.sh", ["--config", "a", "--out", "b", "--shards", "4", "score"], "--array=0-3"),
        (SLURM / "job.sh", ["--config", "a", "--out", "b", "--shards", "4", "score", "select"], "one stage"),
        (SLURM / "job.sh", ["--config", "a", "--out", "b", "--shards", "x", "score"], "a number"),
        (SLURM / "job.sh", ["--config"], "needs a value"),
        (SLURM / "job.sh", ["--seed=1"], "behind --"),
        (SLURM / "multinode.sh", ["--config", "a"], "--out DIR"),
        (SLURM / "multinode.sh", ["--config", "a", "--out", "b", "--gpus", "many"], "number of GPUs"),
        (SLURM / "submit.sh", ["--shards", "4"], "--config FILE"),
        (SLURM / "submit.sh", ["--config", QUICKSTART], "--shards N"),
        (SLURM / "submit.sh", ["--config", QUICKSTART, "--shards", "4", "--dry-run", "--", "--sed=1"], "seed"),
        (SLURM / "submit.sh", ["--config", QUICKSTART, "--shards", "4", "--out", "az://a/b", "--dry-run"], "all nodes"),
        (TPU / "queue.sh", [], "say what to do"),
        (TPU / "queue.sh", ["loop", "--zone", "z"], "--name NAME"),
        (TPU / "queue.sh", ["loop", "--name", "n"], "--zone ZONE"),
        (TPU / "queue.sh", ["create", "--name", "n", "--zone", "z"], "--type TYPE"),
        (TPU / "queue.sh", ["create", "--name", "n", "--zone", "z", "--type", "v9-1"], "--runtime VERSION"),
        (TPU / "queue.sh", ["loop", *QUEUE], "--config FILE"),
        (TPU / "queue.sh", ["loop", *QUEUE, "--config", "a"], "--out DIR"),
        (TPU / "queue.sh", ["loop", *QUEUE, "--config", "a", "--out", "s3://a/b"], "gs://BUCKET/FOLDER"),
        (
            TPU / "queue.sh",
            ["loop", *QUEUE, "--config", "a", "--out", "gs://a/b", "--bucket", "gs://c"],
            "leave --bucket",
        ),
        (TPU / "queue.sh", ["loop", *QUEUE, "--config", "a", "--out", "b", "--bucket", "a/b"], "gs://BUCKET/FOLDER"),
        (TPU / "queue.sh", ["loop", *QUEUE, "--config", "a", "--out", "b", "--spot"], "takes its disks with it"),
        (TPU / "queue.sh", ["setup", "--name", "n", "--zone", "z", "--source", "/"], "--git URL@REF"),
        (TPU / "worker.sh", [], "setup or run"),
        (TPU / "worker.sh", ["run", "--out", "b"], "--config FILE"),
        (TPU / "worker.sh", ["run", "--config", "a"], "--out DIR"),
        (TPU / "worker.sh", ["run", "--config", "a", "--out", "s3://b"], "gs://BUCKET/FOLDER"),
        (TPU / "worker.sh", ["run", "--config", "a", "--out", "gs://b/c", "--bucket", "gs://d"], "leave --bucket out"),
        (TPU / "jobset.sh", [], "--name NAME"),
        (TPU / "jobset.sh", [*JOBSET, "--topology", "2x2x2"], "2 numbers"),
        (TPU / "jobset.sh", [*JOBSET, "--chips", "5"], "16 chips"),
        (TPU / "jobset.sh", [*JOBSET, "--out", "runs/a"], "would vanish with the pod"),
        (TPU / "jobset.sh", [*JOBSET, "--out", "gs://b/a"], "the 4 hosts need a run directory that all of them see"),
        (TPU / "jobset.sh", [*JOBSET, "--out", "gs://b"], "gs://BUCKET/FOLDER"),
        (TPU / "jobset.sh", [*JOBSET, "--image", "a b"], "is no image"),
        (TPU / "jobset.sh", [*JOBSET, "--frobnicate"], "unknown argument"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(sandbox: Sandbox, script: Path, arguments: list[str], says: str) -> None:
    for program in ("sbatch", "srun", "gcloud", "kubectl", "ntk-jax"):
        sandbox.program(program)
    out, err = sandbox.run(script, *arguments, code=2)
    assert out == ""
    assert err.count("\n") == 1 and err.startswith(f"{script.name}: error: ") and says in err
    assert sandbox.log.read_text() == "", "a refused command called something"


# Slurm


def test_submit_dry_run(sandbox: Sandbox) -> None:
    out, err = sandbox.run(
        SLURM / "submit.sh",
        *("--config", QUICKSTART, "--out", "a run", "--shards", "4", "--at-once", "2", "--setup", "env.sh"),
        *("--sbatch", "--partition=gpu", "--sbatch", "--gpus-per-node=1", "--dry-run"),
        *("--", "--preselect.method=votes", "--data.pool=[a.jsonl, b.jsonl]"),
    )
    assert err == "" and not (sandbox.folder / "a run.logs").exists()
    out_and_more = ["--out", "a run"]
    rest = ["--preselect.method=votes", "--data.pool=[a.jsonl, b.jsonl]"]
    assert ntk_jax_lines(out) == [
        [*words[:1], QUICKSTART, *out_and_more, *words[1:], *rest]
        for words in (
            ["warmup"],
            ["gradient"],
            ["preselect", "--shard", "0/4"],
            ["preselect", "--merge"],
            ["score", "--shard", "0/4"],
            ["score", "--merge"],
            ["select"],
            ["align"],
            ["finetune"],
            ["evaluate"],
            ["report"],
        )
    ]
    jobs = [shlex.split(line) for line in out.splitlines() if line.startswith("sbatch ")]
    assert ["--array=0-3%2" in job for job in jobs] == [False, True, False, True, False, False]
    assert all({"--partition=gpu", "--gpus-per-node=1"} <= set(job) for job in jobs)  # each computes with the model


def test_submit_merges_all_that_select_needs(sandbox: Sandbox) -> None:
    """Two stages with blocks, and a chain that begins with blocks, for no model is trained before."""
    for methods, wanted in (
        ("[paths, embedding]", ["warmup", "embed", "losses", "embed --merge", "losses --merge", "select"]),
        ("[bm25, random]", ["pool", "pool --merge", "select"]),
    ):
        override = f"--select.methods={methods}"
        out, _ = sandbox.run(
            *(SLURM / "submit.sh", "--config", QUICKSTART, "--shards", "1", "--out", "run", "--dry-run", "--", override)
        )
        found = [" ".join([words[0], *(w for w in words if w == "--merge")]) for words in ntk_jax_lines(out)]
        assert [line for line in found if line not in ("align", "finetune", "evaluate", "report")] == wanted


def test_submit_takes_a_bucket(sandbox: Sandbox) -> None:
    out, err = sandbox.run(
        *(SLURM / "submit.sh", "--config", QUICKSTART, "--out", "s3://b/runs/a/", "--shards", "2", "--dry-run")
    )
    assert err == "" and out.startswith("mkdir -p a.logs\n") and "--job-name ntk-jax-a.train" in out
    assert {tuple(line[2:4]) for line in ntk_jax_lines(out)} == {("--out", "s3://b/runs/a")}


def test_submit_chains_its_jobs(sandbox: Sandbox) -> None:
    """Every job waits for the one before; and the jobs, run as Slurm would, call ntk-jax as a run needs it."""
    sandbox.program("squeue", 'echo "7 ntk-jax-runner.train"')  # a chain of another run directory
    sandbox.program("sbatch", 'echo $((99 + $(wc -l <"$LOG")))";cluster"')
    sandbox.program("ntk-jax")
    out, _ = sandbox.run(
        SLURM / "submit.sh",
        *("--config", QUICKSTART, "--out", "run", "--", "--select.methods=[sketch, random]"),
        NTK_SHARDS="3",
        NTK_SBATCH="--account=me --time=1:00:00",
    )
    jobs = sandbox.calls("sbatch")
    names = [job[job.index("--job-name") + 1] for job in jobs]
    assert names == ["ntk-jax-run.train", "ntk-jax-run.sketch", "ntk-jax-run.select", "ntk-jax-run.finetune"]
    dependencies = [[word for word in job if word.startswith("--dependency")] for job in jobs]
    assert dependencies == [[], *[[f"--dependency=afterok:{n}"] for n in (101, 102, 103)]]
    assert [line.split() for line in out.splitlines()] == [
        [str(101 + number), name.removeprefix("ntk-jax-run.")] for number, name in enumerate(names)
    ]
    for job in jobs:
        assert {"--parsable", "--kill-on-invalid-dep=yes", "--account=me", "--time=1:00:00"} <= set(job)
        script = job.index(str(SLURM / "job.sh"))
        array = [word for word in job[:script] if word.startswith("--array=")]
        assert array in ([], ["--array=0-2"])
        for task in range(3) if array else [None]:
            ids = {"SLURM_JOB_ID": "9"} | ({} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)})
            sandbox.run(
                Path(job[script]), *job[script + 1 :], NTK_SHARDS="3", **ids
            )  # sbatch passes the environment on
    assert [accepted(call) for call in sandbox.calls("ntk-jax")] == [
        [*words[:1], QUICKSTART, "--out", "run", *words[1:], "--select.methods=[sketch, random]"]
        for words in (
            ["warmup"],
            ["sketch", "--shard", "0/3"],
            ["sketch", "--shard", "1/3"],
            ["sketch", "--shard", "2/3"],
            ["sketch", "--merge"],
            ["select"],
            ["align"],
            ["finetune"],
            ["evaluate"],
            ["report"],
        )
    ]


def test_submit_refuses_a_second_chain_on_one_run_directory(sandbox: Sandbox) -> None:
    sandbox.program("squeue", 'echo "7 ntk-jax-run.score"')
    sandbox.program("sbatch", "echo 8")
    _, err = sandbox.run(SLURM / "submit.sh", "--config", QUICKSTART, "--out", "a/run", "--shards", "2", code=2)
    assert err.startswith("submit.sh: error: jobs of ntk-jax-run are in the queue (7 ntk-jax-run.score); wait")
    assert not sandbox.calls("sbatch")


def test_submit_stops_where_sbatch_refuses(sandbox: Sandbox) -> None:
    sandbox.program("squeue")
    sandbox.program("sbatch", '[ "$(wc -l <"$LOG")" = 2 ] && echo 7 || { echo "sbatch: no" >&2; exit 1; }')
    _, err = sandbox.run(SLURM / "submit.sh", "--config", QUICKSTART, "--out", "run", "--shards", "2", code=1)
    assert err == "sbatch: no\n" and len(sandbox.calls("sbatch")) == 2


def test_job_ends_with_the_first_failure(sandbox: Sandbox) -> None:
    sandbox.program("ntk-jax", '[ "$1" != gradient ] || { echo "ntk-jax: error: correct this" >&2; exit 2; }')
    (sandbox.folder / "env.sh").write_text('FROM_SETUP=1; export FROM_SETUP; echo "setup $UNSET"\n')
    out, err = sandbox.run(
        SLURM / "job.sh",
        *("--config", "a", "--out", "b", "--setup", "env.sh", "warmup", "gradient", "score"),
        code=2,
        SLURM_JOB_ID="7",
    )
    assert (out, err) == ("setup \n", "ntk-jax: error: correct this\n")
    assert [call[0] for call in sandbox.calls("ntk-jax")] == ["warmup", "gradient"]


@pytest.mark.parametrize(
    ("script", "arguments", "runs", "environment", "requeued"),
    [
        (SLURM / "job.sh", ["warmup"], "ntk-jax", {"SLURM_JOB_ID": "7"}, "7"),
        (
            SLURM / "job.sh",
            ["--shards", "4", "score"],
            "ntk-jax",
            {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"},
            "7_3",
        ),
        (SLURM / "multinode.sh", [], "srun", {"SLURM_JOB_ID": "8"}, "8"),
        (SLURM / "job.sh", ["warmup"], "ntk-jax", {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "50"}, None),
    ],
)
def test_usr1_requeues(
    sandbox: Sandbox, script: Path, arguments: list[str], runs: str, environment: dict[str, str], requeued: str | None
) -> None:
    """The signal that --signal asks for: ntk-jax is ended, then the job, or one task of the array, is put back."""
    sandbox.program("scontrol")
    # Takes its time like a real one; answers SIGTERM, and says so.
    sandbox.program(runs, "trap 'echo ended >>\"$LOG\"; exit 143' TERM\ntouch started\nwhile :; do sleep 0.05; done")
    process = sandbox.start(script, "--config", "a", "--out", "b", *arguments, **environment)
    try:
        wait_for(lambda: (sandbox.folder / "started").exists())
        process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    log = sandbox.log.read_text().splitlines()
    if requeued is None:
        assert process.returncode == 1 and "--max-requeues" in err and log[1:] == ["ended"]
    else:
        assert process.returncode == 0, err
        assert log[1:] == ["ended", f"scontrol requeue {requeued}"]
    header = script.read_text()
    for option in ("--requeue", "--open-mode=append", "--signal=B:USR1@120"):
        assert f"\n#SBATCH {option}\n" in header


def test_multinode(sandbox: Sandbox) -> None:
    arguments = ["--config", "a b.yaml", "--out", "run", "--gpus", "4", "--", "--mesh.fsdp=8"]
    out, _ = sandbox.run(SLURM / "multinode.sh", "--dry-run", *arguments)
    in_order(out, "export JAX_LOCAL_DEVICE_IDS=0,1,2,3\n", "srun --ntasks-per-node=1 --kill-on-bad-exit=1 ntk-jax run ")
    assert ntk_jax_lines(out) == [["run", "a b.yaml", "--out", "run", "--mesh.fsdp=8"]]

    sandbox.program("srun", 'echo "devices ${JAX_LOCAL_DEVICE_IDS:-all}"; exit 3')
    out, _ = sandbox.run(SLURM / "multinode.sh", *arguments, code=3, SLURM_JOB_ID="1")
    assert out == "devices 0,1,2,3\n"
    out, _ = sandbox.run(SLURM / "multinode.sh", *arguments[:4], code=3, SLURM_JOB_ID="1", SLURM_GPUS_ON_NODE="2")
    assert out == "devices 0,1\n"
    out, _ = sandbox.run(SLURM / "multinode.sh", *arguments[:4], code=3, SLURM_JOB_ID="1")
    assert out == "devices all\n"


def wait_for(ready: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# TPU


def test_queue_dry_run(sandbox: Sandbox) -> None:
    out, err = sandbox.run(
        TPU / "queue.sh",
        *("loop", *QUEUE, "--project", "mine", "--spot", "--create", "--network=net", "--config", "configs/a.yaml"),
        *("--out", "runs/a", "--bucket", "gs://b/runs/a", "--data", "gs://b/data", "--dry-run"),
        *("--", "--evaluate.arms=[base, domain]"),
    )
    assert err == "" and sandbox.log.read_text() == ""
    queue, vm, place = (
        "gcloud compute tpus queued-resources",
        "gcloud compute tpus tpu-vm",
        "--zone us-east5-a --project mine",
    )
    in_order(
        out,
        f"{queue} create my-tpu {place} --node-id my-tpu --accelerator-type v6e-8 --runtime-version v2-alpha-tpuv6e"
        " --spot --network=net\n",
        f"{queue} describe my-tpu {place} '--format=value(state.state)'\n",
        f"{vm} scp ",
        f"{vm} ssh my-tpu {place} --worker=all ",
        "uv pip install ",
        "gcloud storage rsync --recursive gs://b/data ",
        f"{vm} ssh my-tpu {place} --worker=all ",
        "gcloud storage rsync --recursive gs://b/runs/a runs/a\n",
        "ntk-jax run ",
        "runs/a gs://b/runs/a\n",
        f"{queue} delete my-tpu {place} --force --quiet\n",
    )
    assert ntk_jax_lines(out) == [["run", "configs/a.yaml", "--out", "runs/a", "--evaluate.arms=[base, domain]"]]
    for verb in ("create", "wait", "setup", "state", "delete"):
        out, _ = sandbox.run(TPU / "queue.sh", verb, *QUEUE, "--git", "https://host/ntk_jax.git@main", "--dry-run")
        assert out.startswith("gcloud compute tpus "), out
        assert verb != "setup" or "git clone --quiet 'https://host/ntk_jax.git'" in out.replace("'\\''", "'")


def test_a_run_directory_in_a_bucket_needs_no_copying(sandbox: Sandbox) -> None:
    out, err = sandbox.run(
        *(TPU / "queue.sh", "loop", *QUEUE, "--spot", "--config", "a.yaml", "--out", "gs://b/runs/a", "--dry-run")
    )
    assert err == "" and "rsync" not in out and "[tpu,buckets]" in out
    assert ntk_jax_lines(out) == [["run", "a.yaml", "--out", "gs://b/runs/a"]]


# A stand-in for gcloud. A slice is the folder `host`; its states are those of the file `states`, one a look, of which
# the last stays. What `ssh` is to run runs here, with that folder as its home; a bucket is a folder of the same name.
GCLOUD = """
box = Path(os.environ["SANDBOX"])
host, states = box / "host", box / "states"
words = sys.argv[1:]
def option(name): return next(w.split("=", 1)[1] for w in words if w.startswith(f"--{name}="))
def place(name): return box / "bucket" / name.removeprefix("gs://") if name.startswith("gs://") else Path(name)
match words:
    case ["compute", "tpus", "queued-resources", "create", *_]:
        if states.exists(): sys.exit("ERROR: ALREADY_EXISTS")
        lives = box / "lives"
        life, *rest = lives.read_text().splitlines()
        lives.write_text("\\n".join(rest))
        states.write_text(life.replace(" ", "\\n"))
    case ["compute", "tpus", "queued-resources", "describe", *_]:
        if not states.exists(): sys.exit("ERROR: (gcloud) NOT_FOUND: my-tpu")
        now, *rest = states.read_text().splitlines()
        if rest: states.write_text("\\n".join(rest))
        if now == "ACTIVE": host.mkdir(exist_ok=True)
        print(now)
    case ["compute", "tpus", "queued-resources", "delete", *_]:
        states.unlink()
        shutil.rmtree(host, ignore_errors=True)
    case ["compute", "tpus", "tpu-vm", "describe", *_]:
        print("READY" if host.exists() else "PREEMPTED")
    case ["compute", "tpus", "tpu-vm", "scp", source, target, *_]:
        shutil.copy(source, host / target.split(":")[1])
    case ["compute", "tpus", "tpu-vm", "ssh", *_]:
        if not host.exists(): sys.exit(255)
        home = {**os.environ, "HOME": str(host)}
        done = subprocess.run(["bash", "-c", option("command")], cwd=host, env=home, start_new_session=True)
        sys.exit(255 if done.returncode < 0 else done.returncode)
    case ["storage", "ls", address]:
        if not place(address).exists(): sys.exit("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.")
    case ["storage", "rsync", "--recursive", *_, source, target]:
        excluded = [re.compile(e) for w in words if w.startswith("--exclude=") for e in w[10:].split(",")]
        listed = [p.relative_to(place(source)) for p in sorted(place(source).rglob("*")) if p.is_file()]
        if (box / "while_copying").exists(): subprocess.run(["bash", box / "while_copying"], check=True)
        for path in listed:
            if not any(e.match(str(path)) for e in excluded):
                (place(target) / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(place(source) / path, place(target) / path)
    case _:
        sys.exit(f"ERROR: the stand-in knows nothing of {words}")
"""

# A stand-in for ntk-jax with four blocks to compute. In its first life it computes three; when two are in the bucket,
# the machine and its disk are taken away, and with it all that runs there.
PREEMPTED = """
out=$4; mkdir -p "$out/score"
echo "starts with $(ls "$out/score" | tr '\\n' ' ')" >>"$SANDBOX/starts"
for block in 0 1 2 3; do
  [ ! -e "$out/score/block-$block" ] || continue
  if [ ! -e "$SANDBOX/preempted" ] && [ "$block" = 2 ]; then
    until [ -e "$SANDBOX/bucket/b/run/score/block-1" ]; do sleep 0.02; done
    touch "$out/score/block-2" "$SANDBOX/preempted"
    echo SUSPENDING >"$SANDBOX/states"; echo SUSPENDED >>"$SANDBOX/states"
    rm -r "$HOME"
    kill -KILL 0
  fi
  touch "$out/score/block-$block"
done
touch "$out/score/manifest.json"
"""


@pytest.fixture
def cloud(sandbox: Sandbox) -> Sandbox:
    """A sandbox with the stand-in for gcloud, and a checkout to copy."""
    source = sandbox.folder / "source"
    (source / "tpu").mkdir(parents=True)
    (source / "pyproject.toml").touch()
    for name in ("worker.sh", "flags.env"):
        shutil.copy(TPU / name, source / "tpu" / name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(source)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    sandbox.program("gcloud", GCLOUD, "python")
    sandbox.program("curl", "exit 7")  # no metadata server: one host
    sandbox.program("python3")  # pip and uv
    return sandbox


def loop_arguments(cloud: Sandbox) -> list[str]:
    return [
        *("loop", *QUEUE, "--spot", "--source", str(cloud.folder / "source"), "--config", "a.yaml", "--out", "runs/r"),
        *("--bucket", "gs://b/run", "--every", "0.3", "--poll", "0.01"),
    ]


def changes(log: Iterable[list[str]]) -> list[str]:
    """The calls of gcloud that change something, in short."""
    short = []
    for words in log:
        if words[0] == "compute" and words[3] in ("create", "delete", "scp"):
            short.append(words[3])
        if words[:4] == ["compute", "tpus", "tpu-vm", "ssh"]:
            command = next(word for word in words if word.startswith("--command="))
            short.append("setup" if "worker.sh setup" in command else "run" if "worker.sh run" in command else "ask")
    return short


def test_the_loop_survives_failure_and_preemption(cloud: Sandbox) -> None:
    cloud.program("ntk-jax", PREEMPTED)
    lives = ["CREATING FAILED", "ACCEPTED WAITING_FOR_RESOURCES ACTIVE", "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"]
    (cloud.folder / "lives").write_text("\n".join(lives))
    _, err = cloud.run(TPU / "queue.sh", *loop_arguments(cloud))
    assert changes(cloud.calls("gcloud")) == [
        *("create", "delete"),
        *("create", "scp", "setup", "run", "delete"),
        *("create", "scp", "setup", "run", "delete"),
    ]
    in_order(err, "FAILED", "ACCEPTED", "ACTIVE", "preempted", "SUSPENDED", "NONE", "PROVISIONING", "run is finished")
    first, second = (cloud.folder / "starts").read_text().splitlines()
    assert first == "starts with "
    assert second.startswith("starts with block-0 block-1 "), "the second life goes on from the bucket"
    kept = sorted(path.name for path in (cloud.folder / "bucket" / "b" / "run" / "score").iterdir())
    assert kept == ["block-0", "block-1", "block-2", "block-3", "manifest.json"]


def test_the_loop_stops_at_a_mistake_of_the_config(cloud: Sandbox) -> None:
    cloud.program("ntk-jax", 'echo "ntk-jax: error: correct this" >&2; exit 2')
    (cloud.folder / "lives").write_text("ACTIVE")
    _, err = cloud.run(TPU / "queue.sh", *loop_arguments(cloud), code=2)
    assert "ntk-jax: error: correct this" in err
    assert changes(cloud.calls("gcloud")) == ["create", "scp", "setup", "run", "ask"], "the slice must stay"


def test_the_loop_gives_up_on_what_keeps_failing(cloud: Sandbox) -> None:
    cloud.program("ntk-jax", "exit 1")
    (cloud.folder / "lives").write_text("ACTIVE")
    _, err = cloud.run(TPU / "queue.sh", *loop_arguments(cloud), "--attempts", "2", code=1)
    assert changes(cloud.calls("gcloud")) == ["create", *2 * ["scp", "setup", "run", "ask"]]
    assert "failed 2 times on a slice that is there" in err


def test_a_second_slice_is_never_asked_for_by_accident(cloud: Sandbox) -> None:
    """Neither when the request is there already, nor when gcloud cannot tell."""
    (cloud.folder / "states").write_text("ACTIVE")
    cloud.run(TPU / "queue.sh", "create", *QUEUE)
    cloud.run(TPU / "queue.sh", "wait", *QUEUE)
    assert changes(cloud.calls("gcloud")) == []
    assert cloud.run(TPU / "queue.sh", "state", *QUEUE)[0] == "ACTIVE\n"
    cloud.program("gcloud", 'echo "ERROR: the network is unreachable" >&2; exit 1')
    for verb in ("create", "wait", "delete"):
        _, err = cloud.run(TPU / "queue.sh", verb, *QUEUE, "--poll", "0", code=1)
        assert "the network is unreachable" in err
    assert changes(cloud.calls("gcloud")) == []


def test_the_first_request_refused_ends_the_loop(cloud: Sandbox) -> None:
    (cloud.folder / "lives").touch()  # the stand-in fails
    _, err = cloud.run(TPU / "queue.sh", *loop_arguments(cloud), code=1)
    assert "refused the request" in err and changes(cloud.calls("gcloud")) == ["create"]


def worker(cloud: Sandbox, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
    script = cloud.folder / "source" / "tpu" / "worker.sh"
    return cloud.run(script, "run", "--config", "a", "--out", "r", *arguments, code=code, **environment)


def test_manifests_reach_the_bucket_last(cloud: Sandbox) -> None:
    """A stage that ends while its files are being copied is not finished in the bucket before its files are there."""
    out = cloud.folder / "source" / "r"
    cloud.program(
        "ntk-jax", "mkdir -p r/a r/b r/.shards; touch r/a/data r/a/manifest.json r/.lock r/.shards/x r/.y.tmp"
    )
    (cloud.folder / "while_copying").write_text(f"touch {out}/b/data {out}/b/manifest.json")
    worker(cloud, "--bucket", "gs://b/run")
    bucket = cloud.folder / "bucket" / "b" / "run"
    found = sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file())
    assert found == ["a/data", "a/manifest.json"]
    worker(cloud, "--bucket", "gs://b/run")
    assert (bucket / "b" / "data").exists() and (bucket / "b" / "manifest.json").exists()
    assert (cloud.folder / ".ntk_jax" / "exit").read_text() == "0\n"


def test_worker_flags_and_exit_code(cloud: Sandbox) -> None:
    cloud.program("ntk-jax", 'echo "flags ${LIBTPU_INIT_ARGS}"; exit 5')
    out, _ = worker(cloud, code=5)
    assert out == "flags --xla_latency_hiding_scheduler_rerun=5\n"
    assert worker(cloud, code=5, LIBTPU_INIT_ARGS="--mine")[0] == "flags --mine\n"
    assert (cloud.folder / ".ntk_jax" / "exit").read_text() == "5\n"


def test_worker_begins_anew_only_where_the_bucket_is_known_to_be_empty(cloud: Sandbox) -> None:
    cloud.program("ntk-jax")
    cloud.program("gcloud", 'echo "ERROR: 503" >&2; exit 1')
    _, err = worker(cloud, "--bucket", "gs://b/run", code=1)
    assert "cannot read gs://b/run: ERROR: 503" in err and cloud.calls("ntk-jax") == []
    assert (cloud.folder / ".ntk_jax" / "exit").read_text() == "1\n"


@pytest.mark.parametrize("addresses", ["10.0.0.1,10.0.0.2", "a:0:10.0.0.1,b:1:10.0.0.2"])
def test_worker_of_several_hosts(cloud: Sandbox, addresses: str) -> None:
    """Each process gets its number and its coordinator, and the run directory must be one that all see."""
    cloud.program("ntk-jax")
    cloud.program("curl", f'case ${{!#}} in *endpoints) echo "{addresses}" ;; *) echo 1 ;; esac')
    _, err = worker(cloud, code=2)
    assert "has 2 hosts" in err and "--nfs" in err and cloud.calls("ntk-jax") == []
    assert (cloud.folder / ".ntk_jax" / "exit").read_text() == "2\n"
    worker(cloud, "--out", "/mnt/ntk_jax/r", "--bucket", "gs://b/run")
    (call,) = cloud.calls("ntk-jax")
    group = ["--coordinator", "10.0.0.1:8482", "--processes", "2", "--process", "1"]
    assert accepted(call) == ["run", "a", "--out", "/mnt/ntk_jax/r", *group]
    assert cloud.calls("gcloud") == [], "the first host alone keeps the copy"


def test_worker_ends_a_run_that_was_left_behind(cloud: Sandbox) -> None:
    """A run that outlived its ssh connection would hold the lock of the run directory."""
    cloud.program("ntk-jax", "[ -e again ] || { touch again; exec -a ntk-jax sleep 60; }")
    script = cloud.folder / "source" / "tpu" / "worker.sh"
    first = cloud.start(script, "run", "--config", "a", "--out", "r")
    try:
        wait_for(lambda: (cloud.folder / "source" / "again").exists())
        wait_for(lambda: (cloud.folder / ".ntk_jax" / "pid").exists())
        left = int((cloud.folder / ".ntk_jax" / "pid").read_text())
        _, err = worker(cloud)
        assert f"ending the earlier run, process {left}" in err
        assert first.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        first.communicate()


def test_worker_stopped_makes_a_last_copy(cloud: Sandbox) -> None:
    cloud.program("ntk-jax", "trap 'exit 143' TERM; mkdir -p r; touch r/block; while :; do sleep 0.05; done")
    script = cloud.folder / "source" / "tpu" / "worker.sh"
    process = cloud.start(script, "run", "--config", "a", "--out", "r", "--bucket", "gs://b/run")
    wait_for(lambda: (cloud.folder / "source" / "r" / "block").exists())
    wait_for(lambda: (cloud.folder / ".ntk_jax" / "pid").exists())
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143 and (cloud.folder / "bucket" / "b" / "run" / "block").exists()


# GKE


def manifest(out: str) -> dict[str, object]:
    first, *lines, last = out.splitlines()
    assert (first, last) == ("kubectl apply --filename - <<'MANIFEST'", "MANIFEST")
    assert "${" not in "\n".join(lines)
    return yaml.safe_load("\n".join(lines))


@pytest.mark.parametrize("spot", [False, True])
def test_jobset_manifest(sandbox: Sandbox, spot: bool) -> None:
    override = '--data.pool=["a.jsonl", b&c.jsonl]'
    arguments = [*JOBSET, "--max-restarts", "7", *(["--spot"] if spot else [])]
    out, _ = sandbox.run(TPU / "jobset.sh", *arguments, "--dry-run", "--", override)
    found: dict = manifest(out)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["metadata"]["name"] == "run-1"
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [2]}}
    ]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy demands it
    selector = {"cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice", "cloud.google.com/gke-tpu-topology": "4x4"}
    assert pod["nodeSelector"] == selector | ({"cloud.google.com/gke-spot": "true"} if spot else {})
    assert ("tolerations" in pod) == spot
    assert container["image"] == "registry/ntk_jax:1"
    assert container["resources"] == {"requests": {"google.com/tpu": 4}, "limits": {"google.com/tpu": 4}}
    assert container["command"][0] == "ntk-jax"
    assert accepted(container["command"][1:]) == ["run", "/runs/a.yaml", "--out", "/runs/a", override]
    assert container["env"] == [{"name": "LIBTPU_INIT_ARGS", "value": "--xla_latency_hiding_scheduler_rerun=5"}]
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"] for mount in container["volumeMounts"]]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "runs"}


def test_jobset_of_one_host_into_a_bucket(sandbox: Sandbox) -> None:
    one = ["--topology", "2x2", "--out", "gs://b/runs/a"]
    out, _ = sandbox.run(TPU / "jobset.sh", *JOBSET, *one, "--dry-run")
    found: dict = manifest(out)
    pod = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert accepted(pod["containers"][0]["command"][1:]) == ["run", "/runs/a.yaml", "--out", "gs://b/runs/a"]
    assert "buckets" in (TPU / "Dockerfile").read_text()


def test_jobset_is_applied(sandbox: Sandbox) -> None:
    sandbox.program("kubectl", "cat >manifest.yaml")
    sandbox.run(TPU / "jobset.sh", *JOBSET, "--topology", "2x4", "--chips", "8")
    assert sandbox.calls("kubectl") == [["apply", "--filename", "-"]]
    found = yaml.safe_load((sandbox.folder / "manifest.yaml").read_text())
    assert found["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 1
