"""Every test sees eight simulated CPU devices and full fp32 matrix products."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
import pytest

import ntk_jax  # noqa: F401 (sets XLA's flags before the first computation)

ROOT = Path(__file__).resolve().parent.parent
# Compiled programs are kept between test runs, for each jax, Python and test worker apart: jax writes its cache without
# a lock, and a half-written program, once read, ends the process.
CACHE = ROOT / ".cache" / f"jax-{jax.__version__}-py{sys.version_info.major}.{sys.version_info.minor}"
CACHE /= os.environ.get("PYTEST_XDIST_WORKER", "alone")

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
# Tests compile much and compute little: this halves their time. NTK_JAX_TEST_OPTIMIZED=1 compiles as users do.
jax.config.update("jax_disable_most_optimizations", os.environ.get("NTK_JAX_TEST_OPTIMIZED") != "1")
if os.environ.get("NTK_JAX_TEST_OPTIMIZED") == "1":
    CACHE /= "optimized"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# What the commands that tests start inherit: the same cache, but one device, as users have it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights, tokenizers and data beside the checkout; a test that asks for it skips without."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the data folder ../shared beside the checkout")
    return folder
