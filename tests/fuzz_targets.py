"""What is fuzzed: configs and overrides, checkpoints and adapters, run directories. Each target takes a seed."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from fuzzing import ODD, mutated_bytes, mutated_tree

HOME = Path(os.environ.get("NTK_JAX_FUZZ_HOME") or tempfile.mkdtemp(prefix="fuzz-"))  # what is mutated; made once
CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))
YAML_PIECES = [
    "!!int x", "!!set {a}", "!!float [1]", "!!binary '%%%'", "!!python/object:os.system {}", "!!timestamp 5",
    "!!omap [a]",
    "!!pairs x", "2026-13-45", "2026-02-30 25:61:61", "1e400", "-.inf", ".nan", "0x" + "f" * 40, "9" * 5000, "1:99:99",
    "[" * 3000, "{a: " * 2000, "&a [*a]", "*nobody", "{? [a]: b}", "{? {a: b} : c}", "{<<: 3}", "&x {<<: *x}", "'\0'",
    "\"\\0\"", "\"\\ud800\"", "\"\\x1b[31m\"", "\"a\\nb\"", "y" * 100_000, "- a\n- b", "a: b: c", "%YAML 9.9",
    "--- a\n--- b", "\t",
    "&l [&m [&n [x,x,x,x,x,x,x,x],*n,*n,*n,*n,*n,*n,*n],*m,*m,*m,*m,*m,*m,*m]", "null", "~", "''", "{}",
    "[]", "=", "<<",
]  # fmt: skip


@functools.cache
def _inputs() -> Path:
    """The files of tiny_run."""
    from tiny_run import write_inputs

    if not (HOME / "model" / "config.json").exists():
        write_inputs(HOME)
    return HOME


# -- configs and overrides -------------------------------------------------------------------------------------------


def configs(seed: int) -> None:
    """A config and a command line, up to where a run would look at its files."""
    from ntk_jax.cli import _configured, parser
    from ntk_jax.engine.plan import check_settings

    random_ = random.Random(seed)
    path = HOME / f"config-{os.getpid()}.yaml"
    path.write_bytes(_config(random_))
    command = random_.choice(["run", "score", "kernel", "diagnose", "report", "estimate", "doctor"])
    words = [command, str(path), "--out", random_.choice(["out", "", "a\0b", "x" * 5000, "\ud800"])]
    words += [_override(random_) for _ in range(random_.choice([0, 0, 1, 2]))]
    arguments, rest = parser().parse_known_args(words)
    pipeline, config = _configured(arguments, rest)
    if pipeline is not None:
        check_settings(pipeline, config, pipeline.of(config))


def _config(random_: random.Random) -> bytes:
    data = random_.choice(CONFIGS).read_bytes()
    kind = random_.randrange(4)
    if kind == 0:
        return mutated_bytes(data, random_)
    if kind == 1:
        return json.dumps(mutated_tree(yaml.safe_load(data), random_)).encode("utf8", "surrogatepass")
    lines = data.decode().split("\n")
    place, piece = random_.randrange(len(lines)), random_.choice(YAML_PIECES)
    if kind == 2:
        lines[place] = f"{lines[place].partition(':')[0]}: {piece}"
    else:
        lines.insert(place, piece)
    return "\n".join(lines).encode("utf8", "surrogatepass")


def _override(random_: random.Random) -> str:
    name = random_.choice(["seed", "score.objective", "score.probes", "data.pool", "report", "a.b.c", "", ".",
                           "model.path", "select.methods", "warmup.learning_rate", "pipeline", "out",
                           "x" * 3000])  # fmt: skip
    value = random_.choice([*YAML_PIECES, "1", "true", "x", *(json.dumps(odd) for odd in ODD)])
    return random_.choice([f"--{name}={value}", f"--{name}", name, f"{name}={value}", f"--{name}=={value}"])


# -- checkpoints -----------------------------------------------------------------------------------------------------


@functools.cache
def _checkpoint() -> tuple[Path, Any]:
    """A folder with a model in several files and an adapter beside it, and the model."""
    from ntk_jax.models.hub import save_weights
    from ntk_jax.models.lora import LoRAConfig
    from ntk_jax.models.model import load_model
    from ntk_jax.models.peft import save_adapter

    home = HOME / "checkpoint"
    model = load_model(str(_inputs() / "model"), lora=LoRAConfig(rank=2))
    if not (home / "adapter" / "adapter_config.json").exists():
        save_weights(home / "model", load_model(str(_inputs() / "model")), shard_bytes=20_000)
        assert model.lora_config is not None
        save_adapter(home / "adapter", model.lora, model.lora_config, model.config, "base")
    return home, model


def checkpoints(seed: int) -> None:
    """One file of a checkpoint or an adapter changed, and what reads it."""
    from ntk_jax.models.decoder import abstract_decoder
    from ntk_jax.models.hub import load_tokenizer, load_weights, read_config
    from ntk_jax.models.peft import load_adapter

    random_ = random.Random(seed)
    home, model = _checkpoint()
    files = [path for path in sorted(home.rglob("*")) if path.is_file()]
    chosen = random_.choice(files)
    with _changed(chosen, random_):
        if chosen.parent.name == "adapter":
            load_adapter(home / "adapter", model.config)
        elif chosen.name.startswith("model"):
            load_weights(home / "model", model.config, _shapes())
        elif chosen.name == "config.json":
            config = read_config(home / "model")
            if config != model.config:
                load_weights(home / "model", config, abstract_decoder(config, None, "float32")[2])
        else:
            tokenizer = load_tokenizer(home / "model", model.config.vocab_size, model.config.special_tokens)
            tokenizer("a few words", add_special_tokens=False)


@functools.cache
def _shapes() -> Any:
    from ntk_jax.models.decoder import abstract_decoder

    return abstract_decoder(_checkpoint()[1].config, None, "float32")[2]


@contextlib.contextmanager
def _changed(path: Path, random_: random.Random) -> Any:
    """A file changed for a while: its bytes, or what it says."""
    data = path.read_bytes()
    try:
        path.write_bytes(_mutated(path.name, data, random_))
        if random_.random() < 0.03:
            path.unlink()
            if random_.random() < 0.5:
                path.mkdir()
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(data)


def _mutated(name: str, data: bytes, random_: random.Random) -> bytes:
    if random_.random() < 0.4:
        return mutated_bytes(data, random_)
    if name.endswith(".safetensors"):
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(mutated_tree(json.loads(data[8 : 8 + size]), random_)).encode("utf8", "surrogatepass")
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    with contextlib.suppress(ValueError, RecursionError):
        return json.dumps(mutated_tree(json.loads(data), random_)).encode("utf8", "surrogatepass")
    return mutated_bytes(data, random_)


# -- run directories -------------------------------------------------------------------------------------------------


def runs(seed: int) -> None:
    """A finished run without training, some files changed: reported, gone on with, closed, looked at."""
    _of_a_run(seed, *_finished("random", select={"methods": ["random", "bm25"], "count": 6}))


def whole_runs(seed: int) -> None:
    """The same of a run of all stages."""
    _of_a_run(seed, *_finished("whole", preselect={"method": "votes"}))


def _finished(name: str, **sections: Any) -> tuple[Path, Any]:
    from tiny_run import run, tiny_run_config

    config = tiny_run_config(_inputs(), name, **sections)
    if not (HOME / f"{name}.finished").exists():
        run(config, **({"until": "select"} if name == "random" else {}))
        (HOME / f"{name}.finished").write_text("")
    return HOME / name, config


def _of_a_run(seed: int, finished: Path, config: Any) -> None:
    import dataclasses

    from tiny_run import quiet

    from ntk_jax import pipelines
    from ntk_jax.engine.doctor import _run_directory
    from ntk_jax.engine.plan import Command
    from ntk_jax.engine.run import report
    from ntk_jax.pipelines import report_parts

    random_ = random.Random(seed)
    place = HOME / f"{finished.name}-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(finished, place)
    config = dataclasses.replace(config, out=str(place))
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and "report" not in path.parts]
    chunks = [path for path in files if "c" in path.parts]  # there are many of them
    some = [path for path in files if path not in chunks or random_.random() < 4 / len(chunks)]
    chosen = random_.sample(some, random_.choice([1, 1, 1, 2]))
    for path in chosen:
        path.write_bytes(_mutated(path.name, path.read_bytes(), random_))
    if random_.random() < 0.4:  # the stage is gone on with
        stage = chosen[0].relative_to(place).parts[0]
        if (place / stage).is_dir():
            (place / stage / "manifest.json").unlink(missing_ok=True)
    until = "select" if finished.name == "random" else None
    action = random_.randrange(4)
    with contextlib.redirect_stdout(io.StringIO()):
        if action == 0:
            report(config, report_parts())
            _run_directory(config.out)
        elif action == 1:
            first = "pool" if until else "score"
            pipelines.run("select", config, Command(only=first, merge=True), progress=quiet)
        else:
            pipelines.run("select", config, Command(until=until), progress=quiet)


def dies(seed: int) -> None:
    """Case 1 ends its process."""
    if seed == 1:
        os.abort()
