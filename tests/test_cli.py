"""The command line: what is passed on, and what a mistake looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ntk_jax import cli, pipeline
from ntk_jax.config import Config
from ntk_jax.errors import TryAgain, UserError

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
out: {out}
model: {{path: builtin:model}}
data: {{domain: builtin:domain.jsonl, pool: builtin:pool.jsonl}}
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
        (["run", "no.yaml"], "cannot read the config no.yaml: No such file or directory; give the path of a YAML file"),
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
        (["--until=nowhere"], "argument --until: invalid choice: 'nowhere'"),
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
    assert result.returncode == 0 and all(
        name in result.stdout for name in (*pipeline.STAGES, "run", "kernel", "doctor")
    )


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--out DIR" in text and "--section.key=value" in text and len(text) > 600
    assert max(map(len, text.splitlines())) <= 120


def test_commands_are_the_stages_in_order() -> None:
    alone = ("run", "diagnose", "kernel", "estimate", "doctor")
    assert [name for name in cli.COMMANDS if name not in alone] == list(pipeline.STAGES)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, dict[str, Any]]]:
    """What the pipeline was asked to do, without doing it."""
    seen: list[tuple[Config, dict[str, Any]]] = []

    def run(config: Config, **options: Any) -> Path:
        options.pop("progress")("warmup", None, "steps")
        seen.append((config, options))
        return Path(config.out)

    monkeypatch.setattr(pipeline, "run", run)
    return seen


def test_what_is_passed_on(config: str, tmp_path: Path, calls: list[tuple[Config, dict[str, Any]]]) -> None:
    assert cli.main(["run", config]) == 0
    assert cli.main(["run", config, "--until", "select", "--seed=4"]) == 0
    assert cli.main(["score", config, "--out", "elsewhere", "--score.probes=9"]) == 0
    assert cli.main(["score", config, "--merge"]) == 0
    options = [options for _, options in calls]
    assert options[:2] == [{"until": None}, {"until": "select"}]
    assert options[2:] == [{"only": "score", "share": None, "merge": merge} for merge in (False, True)]
    assert [c.out for c, _ in calls[:3]] == [str(tmp_path / "out"), str(tmp_path / "out"), "elsewhere"]
    assert (calls[1][0].seed, calls[2][0].score.probes) == (4, 9)


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
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run", run)
    assert cli.main(["run", config]) == code
    text = capsys.readouterr().err
    assert text.rstrip().splitlines()[-1].startswith(last)
    assert ("Traceback" in text) == (type(error) is ValueError)
