"""What the public functions say of themselves: all sections, every parameter, and an example that runs."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys

import numpy as np
import pytest

import ntk_jax as nj

pytestmark = pytest.mark.usefixtures("small_steps")

WITH_EXAMPLE = [
    *("directional_scores", "evaluate", "finetune", "logits", "mean_gradient", "ntk", "rank_sketches"),
    *("select", "sketch", "stability", "token_rows", "Span", "load_model", "merge_adapter", "read_records"),
    *("sample", "log_likelihoods", "embeddings", "losses", "decontaminate", "near_duplicates", "diversify"),
]


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_the_docstring_says_all_and_its_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # stores are written where the example is run
    found = getattr(nj, name)
    sections = re.findall(r"^ *(Args|Returns|Raises|Example):$", inspect.getdoc(found), re.MULTILINE)
    assert sections == [
        part for part in ("Args", "Returns", "Raises", "Example") if part != "Returns" or name != "Span"
    ]
    (test,) = [test for test in doctest.DocTestFinder(recurse=False).find(found, name, globs={}) if test.examples]
    said: list[str] = []
    assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize("name", sorted(set(WITH_EXAMPLE) - {"Span"}))
def test_every_parameter_is_described(name):
    text = inspect.getdoc(getattr(nj, name)).split("Returns:")[0]
    for parameter in inspect.signature(getattr(nj, name)).parameters:
        assert re.search(rf"\b{parameter}\b", text), f"{name} does not say what {parameter} is"


def test_the_options_that_all_share():
    """What the functions of gradients take, by the same names."""
    shared = {"objective", "span", "normalize", "parameters", "dtype", "batch_tokens", "seed", "mesh"}
    for function in (nj.mean_gradient, nj.directional_scores, nj.sketch):
        assert shared <= set(inspect.signature(function).parameters)


def test_the_package_is_imported_without_jax():
    code = "import sys, ntk_jax; sys.exit('jax' in sys.modules or set(ntk_jax.__all__) - set(dir(ntk_jax)) != set())"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert set(nj.__all__) == set(nj._DEFINED_IN)


def test_a_user_error_is_a_value_error():
    with pytest.raises(ValueError, match="is not a ranker"):
        nj.select(np.ones(2), 1, by="best")
    tree = {"a": np.ones((2, 3), np.float32)}
    with pytest.raises(
        nj.UserError, match=r"second moments of shape \(3, 2\) do not fit a direction of shape \(2, 3\)"
    ):
        nj.adam_preconditioned(tree, {"a": np.ones((3, 2), np.float32)})
