"""The command line: what is passed on, and what a mistake looks like."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ntk_jax import cli
from ntk_jax.engine import doctor, estimate, run
from ntk_jax.engine.config import keys, sections
from ntk_jax.engine.plan import Command
from ntk_jax.engine.shards import Shard
from ntk_jax.engine.stage import Address, Pipeline, Stage
from ntk_jax.errors import TryAgain, UserError
from ntk_jax.pipelines import all_pipelines

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = tuple(
    dict.fromkeys(
        [
            name
            for pipeline in all_pipelines()
            for name in (pipeline.command, *(stage.name for stage in pipeline.stages))
        ]
        + ["report", "export", "search", "estimate", "doctor", "help"]
    )
)
CONFIG = """
out: {out}
model: {{path: builtin:model}}
data: {{domain: builtin:domain.jsonl, pool: builtin:pool.jsonl}}
evaluate: {{files: builtin:kitchen.test.jsonl}}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(out=tmp_path / "out"))
    return str(path)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m ntk_jax` as a user has it, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "ntk_jax", *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "the following arguments are required: CONFIG; see ntk-jax run --help"),
        (["run", "no.yaml"], "cannot read no.yaml: No such file or directory; give the path of a YAML file"),
        (
            ["run", "no.yaml", "--frobnicate"],
            "unknown argument '--frobnicate'; a config value is set as --section.key=value",
        ),
        (["doctor", "--seed=1"], "--seed=1 overrides a config, but no CONFIG is given"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    result = command(*arguments)
    assert result.returncode == 2
    assert result.stderr == f"ntk-jax: error: {message}\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--score.objectve=probe"], "unknown key score.objectve; did you mean score.objective?"),
        (["--score.probes=many"], "score.probes must be int, got 'many'"),
        (["--score.objective=logits"], "score.objective = 'logits' is not one of sum_logits, probe,"),
        (["extra"], "unknown argument 'extra'"),
        (["--out="], "no run directory: give --out DIR, or set `out` in the config"),
        (["--out=http://bucket/run"], "give a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"),
        (["--until=nowhere"], "--until nowhere: a run of this config has no such stage; its stages are warmup,"),
        (["--until=sketch"], "--until sketch: a run of this config has no such stage"),  # no method needs it
        (["--pipeline=chosen"], "pipeline = 'chosen' is not one of select, mine, question, diagnose, kernel"),
        (["--pipeline=[select]"], "pipeline = ['select'] is not one of select, mine, question, diagnose, kernel"),
        (["--pipeline=kernel"], "run.yaml is for pipeline kernel; type `ntk-jax kernel"),
        (["--kernel.probes=3"], "override '--kernel.probes=3': this command has no section kernel; leave it out"),
    ],
)
def test_mistakes_in_a_config(
    config: str, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", config, *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ntk-jax: error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rum", "x.yaml"]) == 2
    assert "invalid choice: 'rum'" in capsys.readouterr().err


def test_version_and_help() -> None:
    result = command("--version")
    assert result.returncode == 0 and result.stdout.startswith("ntk-jax 0.") and "jax 0." in result.stdout
    result = command("--help")
    assert result.returncode == 0 and all(f"    {name} " in result.stdout for name in COMMANDS)
    assert max(map(len, result.stdout.splitlines())) <= 120


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    if name != "help":
        keys = {"export": "--model.path=DIR", "search": "--encoder.path=DIR"}.get(name, "--section.key=value")
        assert "--out DIR" in text and keys in text and len(text) > 600
    assert max(map(len, text.splitlines())) <= 120


def test_commands_are_those_of_the_tables_in_order() -> None:
    [action] = [action for action in cli.parser()._actions if action.dest == "command"]
    assert list(action.choices or ()) == list(COMMANDS)
    assert {"align", "pool", "help"} <= set(COMMANDS)


def test_help_of_a_pipeline_lists_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    for pipeline in all_pipelines():
        with pytest.raises(SystemExit):
            cli.main([pipeline.command, "--help"])
        text = capsys.readouterr().out
        for key in keys(pipeline.config.resolve()):
            assert f"  {key.name} = " in text, f"ntk-jax {pipeline.command} --help does not list {key.name}"


def test_help_of_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help"]) == 0
    whole = capsys.readouterr().out
    for pipeline in all_pipelines():
        assert all(f"  {key.name} = " in whole for key in keys(pipeline.config.resolve()))
    assert cli.main(["help", "score.batch"]) == 0
    text = capsys.readouterr().out
    assert "score.batch_tokens = 8192  [whole number, at least 1]" in text and "score.span" not in text
    assert cli.main(["help", "scroe"]) == 2
    assert capsys.readouterr().err == "ntk-jax: error: no key begins with scroe; did you mean score?\n"


def test_help_waits_for_nothing_slow() -> None:
    """The tables that the help is made of import neither jax nor what takes as long."""
    code = (
        "import sys\nfrom ntk_jax import cli\ntry: cli.main(['run', '--help'])\nexcept SystemExit: pass\n"
        "cli.main(['help', 'seed'])\n"
        "print([n for n in ('jax', 'flax', 'transformers', 'tensorstore', 'pyarrow', 'scipy') if n in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_a_note_is_one_line_on_stderr_and_comes_once() -> None:
    program = (
        "from ntk_jax import cli, errors\n"
        "def left_aside(*_):\n    for _ in range(2):\n        errors.note('a.json is left aside')\n"
        "cli._command = left_aside\n"
        "raise SystemExit(cli.main(['doctor']))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "ntk-jax: note: a.json is left aside\n")


def test_a_reader_that_has_enough_is_no_bug() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f"{sys.executable} -m ntk_jax help | head -n 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=60)
    assert result.stderr == "" and len(result.stdout.splitlines()) == 1


def addresses() -> list[tuple[str, Address]]:
    """Every function that a table names, and where."""
    found = []
    for pipeline in all_pipelines():
        for holder in (pipeline, *pipeline.stages):
            named = f"{pipeline.name}.{holder.name}" if isinstance(holder, Stage) else pipeline.name
            for name, value in vars(holder).items():
                if isinstance(value, Address):
                    found.append((f"{named}.{name}", value))
    return found


@pytest.mark.parametrize(("name", "address"), addresses(), ids=[name for name, _ in addresses()])
def test_every_address_of_the_tables_leads_somewhere(name: str, address: Address) -> None:
    assert callable(address.resolve())


def test_the_tables_hold_together() -> None:
    for pipeline in all_pipelines():
        config = pipeline.config.resolve()
        known = {name for name, _ in sections(config)} | {key.name for key in keys(config)}
        for stage in pipeline.stages:
            assert stage.title and len(stage.help) > 8 and len(stage.description) > 8, stage.name
            assert {*stage.keys(config()), *stage.shows} <= known, f"{stage.name} reads keys that there are not"
        assert len(pipeline.of(config())) >= 1
        assert set(pipeline.spoken) <= {stage.name for stage in pipeline.stages}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Pipeline, Any, Command]]:
    """What the engine was asked to do, without doing it."""
    seen: list[tuple[Pipeline, Any, Command]] = []

    def nothing(pipeline: Pipeline, config: Any, command: Command, **options: Any) -> Path:
        options.pop("progress")("warmup", None, "steps")
        assert set(options.pop("parts")) == {"select", "mine", "question", "diagnose", "kernel"} and not options
        seen.append((pipeline, config, command))
        return Path(config.out)

    monkeypatch.setattr(run, "run", nothing)
    monkeypatch.setattr(run, "progress_of_shards", lambda *_: "so many blocks")
    monkeypatch.setattr(Address, "__call__", lambda *_, **__: "")  # the closing text
    return seen


def test_what_is_passed_on(config: str, tmp_path: Path, calls: list[tuple[Pipeline, Any, Command]]) -> None:
    assert cli.main(["run", config]) == 0
    assert cli.main(["run", config, "--until", "select", "--seed=4"]) == 0
    assert cli.main(["score", config, "--out", "elsewhere", "--score.probes=9"]) == 0
    assert cli.main(["score", config, "--merge"]) == 0
    assert cli.main(["score", config, "--shard", "1/3"]) == 0
    assert cli.main(["diagnose", config]) == 0
    assert [pipeline.name for pipeline, _, _ in calls] == ["select"] * 5 + ["diagnose"]
    assert [command for _, _, command in calls] == [
        Command(),
        Command(until="select"),
        Command(only="score"),
        Command(only="score", merge=True),
        Command(only="score", shard=Shard(1, 3)),
        Command(),
    ]
    assert [c.out for _, c, _ in calls[:3]] == [str(tmp_path / "out"), str(tmp_path / "out"), "elsewhere"]
    assert (calls[1][1].seed, calls[2][1].score.probes) == (4, 9)


def test_a_stage_that_the_config_does_not_use(
    config: str, calls: list[tuple[Pipeline, Any, Command]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sketch", config]) == 0
    assert "sketch: this config has no use for it; its stages are warmup, gradient" in capsys.readouterr().out


@pytest.mark.parametrize("named", [None, "select", "diagnose", "kernel"])
def test_the_key_pipeline_chooses_for_estimate_and_doctor(
    named: str | None, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(
        estimate, "estimate", lambda pipeline, config, **_: seen.append((pipeline.name, type(config).__name__))
    )
    monkeypatch.setattr(
        doctor, "examine", lambda _, pipeline, config: seen.append((pipeline.name, type(config).__name__))
    )
    if named:
        text = f"pipeline: {named}\nkernel: {{probes: 2}}\n"
        if named == "kernel":  # its config has no data; that of the others is checked all the same
            text += "diagnose: {top: 3}\n"
        Path(config).write_text(Path(config).read_text() + text)
    assert cli.main(["estimate", config]) == cli.main(["doctor", config]) == 0
    name = named or "select"
    assert seen == [(name, f"{name.capitalize()}Config")] * 2
    assert cli.main(["estimate", config, "--pipeline=diagnose"]) == 0  # as any key
    assert seen[-1] == ("diagnose", "DiagnoseConfig")


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (UserError("pool.jsonl:3: no response"), 2, "ntk-jax: error: pool.jsonl:3: no response"),
        (ValueError("odd"), 1, "ntk-jax: this is a bug in ntk_jax; please report it with the lines above"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"),
            2,
            "ntk-jax: error: out of device memory (RESOURCE_EXHAUSTED: 9 GiB)",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "pool\n.jsonl"),
            2,
            "ntk-jax: error: pool\\n.jsonl: File name too long; correct the path or what lies there",
        ),
        (TryAgain("s3://a/b cannot be reached"), 1, "ntk-jax: error: s3://a/b cannot be reached"),
        (KeyboardInterrupt(), 130, "ntk-jax: interrupted; the same command goes on from the last committed block"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    last: str,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(run, "run", stopped)
    assert cli.main(["run", config]) == code
    text = capsys.readouterr().err
    assert text.rstrip().splitlines()[-1].startswith(last)
    assert ("Traceback" in text) == (type(error) is ValueError)
