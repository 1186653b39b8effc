"""Every test sees eight simulated CPU devices and full fp32 matrix products."""

from __future__ import annotations

import functools
import gc
import inspect
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import hypothesis
import jax
import pytest

import ntk_jax as nj  # sets XLA's flags before the first computation
from ntk_jax.engine import provenance

ROOT = Path(__file__).resolve().parent.parent
# NTK_JAX_TEST_PLATFORM=cuda: on a GPU, what does not need several devices.
jax.config.update("jax_platforms", os.environ.get("NTK_JAX_TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
# Tests compile much and compute little: these settings leave less than half of the time. NTK_JAX_TEST_OPTIMIZED=1
# compiles as users do. An unknown flag ends the process, and jaxlib 0.12 no longer knows the first one; the second
# keeps each program in one piece, where XLA would cut it for more cores than a worker has.
if os.environ.get("NTK_JAX_TEST_OPTIMIZED") != "1":
    jax.config.update("jax_disable_most_optimizations", True)
    if version("jaxlib").startswith("0.10."):
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
# No persistent compilation cache: jax writes it without a lock and not atomically, so that a worker may read what
# another is writing, or what a killed child left.

# What the commands that tests start inherit: one device, as users have it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights, tokenizers and data beside the checkout; a test that asks for it skips without."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the data folder ../shared beside the checkout")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The encoder that scripts/fetch_encoder.py brings, in the folder of checkpoints that NTK_JAX_CHECKPOINTS names; a
    test that asks for it skips without."""
    folder = Path(os.environ.get("NTK_JAX_CHECKPOINTS", "/nonexistent")) / "all-MiniLM-L6-v2"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("needs all-MiniLM-L6-v2 in the folder that NTK_JAX_CHECKPOINTS names")
    return folder


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 256 tokens where the public functions take 8,192 by default, which a few short rows leave empty."""
    for name in nj.__all__:
        function = getattr(nj, name)
        if inspect.isfunction(function) and "batch_tokens" in (function.__kwdefaults__ or {}):
            monkeypatch.setitem(function.__kwdefaults__, "batch_tokens", 256)


# Every stage writes down the versions of the packages, which do not change while the tests run.
provenance.version = functools.cache(provenance.version)  # type: ignore[attr-defined]


# Tracing makes very many objects, none of them in cycles for long: by default a twentieth of the time is collecting.
gc.set_threshold(10_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs() -> Iterator[None]:
    """A compiled program is several memory maps, of which Linux grants a process 65,530. That is the likely reason why,
    without this, workers now and then died inside the compiler near the end of the suite; with it none has. The next
    modules compile much of the same, so programs are kept until an eighth of that is used."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 8_000:
        jax.clear_caches()


# A test is no stopwatch: on a busy machine one example of a property may take any time.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
