"""Losses that reports of experiments keep, and what is read from them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ntk_jax.errors import UserError

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import experiment_pairs as pairs  # noqa: E402
from experiment_results import Lines, Means, Part  # noqa: E402

IDS = ["a", "b", "c", "d"]
TOKENS = np.array([1.0, 1.0, 1.0, 5.0])
KERNEL, RANDOM, OTHER = ("base", "kernel"), ("base", "random"), ("cold", "kernel")


def part(domain: str, gain: float, *, model: str = "small", seeds: tuple[int, ...] = (0, 1)) -> Part:
    """Two seeds in which the kernel is `gain` (and a hundredth for each seed) below random on every example but the
    last, on which it is one above."""
    by_seed = {}
    for seed in seeds:
        random = np.array([1.0, 2.0, 3.0, 4.0]) + seed
        kernel = random + np.array([-1, -1, -1, 0]) * (gain + seed / 100) + np.array([0, 0, 0, 1.0])
        by_seed[seed] = Lines(IDS, ["x", "x", "y", "z"], TOKENS, {RANDOM: random, KERNEL: kernel, OTHER: kernel + 0.5})
    return Part(model, domain, "test", by_seed)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pairs.write_losses(tmp_path / "losses.json", [part("one", 0.2), part("two", 0.4, seeds=(0, 1, 2))])
    return tmp_path / "losses.json"


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["experiment_pairs.py", *arguments])
    pairs.main()


def test_losses_are_read_as_they_were_written(file: Path) -> None:
    one, two = pairs.read_losses([file], by_token=True)
    assert (one.domain, two.domain, list(two.by_seed)) == ("one", "two", [0, 1, 2])
    before = part("two", 0.4, seeds=(0, 1, 2)).by_seed[2]
    after = two.by_seed[2]
    assert after.ids == IDS and after.groups == before.groups
    assert after.weights is not None and after.weights.tolist() == TOKENS.tolist()
    assert set(after.values) == {KERNEL, RANDOM, OTHER}
    for column, values in before.values.items():
        np.testing.assert_allclose(after.values[column], values, atol=1e-5)
    assert pairs.read_losses([file])[0].by_seed[0].weights is None


def test_differences_by_domain_by_seed_and_over_domains(file: Path) -> None:
    pair = pairs.pair_of("kernel:random")
    means = Means(pairs.read_losses([file]))
    found = {domain: (places, one) for _, domain, places, one in pairs.differences(means, [pair])}
    assert list(found) == ["one", "two", "mean of 2"]
    # Three of four examples gain 0.2 and 0.21, or 0.4 to 0.42; the last loses one.
    by_seed = {domain: pairs.by_seed(means, places, pair) for domain, (places, _) in found.items()}
    assert by_seed["one"] == pytest.approx([0.25 - 0.15, 0.25 - 0.1575])
    assert by_seed["two"] == pytest.approx([0.25 - 0.3, 0.25 - 0.3075, 0.25 - 0.315])
    assert by_seed["mean of 2"] == pytest.approx([0.25 - 0.225, 0.25 - 0.2325]), "of the seeds that both have"
    for domain, (_, one) in found.items():
        assert one["value"] == pytest.approx(np.mean(by_seed[domain])) and one["low"] < one["value"] < one["high"]
    by_token = Means(pairs.read_losses([file], by_token=True))
    places = found["one"][0]
    assert pairs.by_seed(by_token, places, pair) == pytest.approx([(5 - 0.6) / 8, (5 - 0.63) / 8])


def test_tables_and_the_figure(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = tmp_path / "new" / "pairs.svg"
    names = ("cold less warm=cold/kernel:kernel", "random:kernel")
    run(str(file), names[0], "--figure", str(figure), names[1], monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| held-out loss | cold/kernel | kernel | random |"
    assert "| one | 3.596 | 3.096 | 3.000 |" in lines, "means of 1 to 4 and 2 to 5 without a gain"
    assert "| cold less warm | one | +0.500 | [+0.500, +0.500] | +0.500, +0.500 |" in lines
    assert any(line.startswith("| random − kernel | one | −0.096 | [") for line in lines)
    drawn = figure.read_text()
    assert drawn.startswith("<svg") and "cold less warm: mean of 2" in drawn


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{file}"], "give at least one losses.json and one pair"),
        (["{file}", "kernel"], "kernel: a pair is two arms, A:B"),
        (["{file}", "kernel:bm25"], "bm25: no run has this arm; there are cold/kernel, kernel, random"),
        (["{folder}/none.json", "kernel:random"], "none.json: no such file; `experiment.py --report DIR` writes"),
        (["{file}", "{file}", "kernel:random"], "one is in two of these files; give each domain once"),
        (["{file}", "{folder}/large.json", "kernel:random"], "--model: choose one of large, small"),
        (["{file}", "kernel:random", "--model", "huge"], "--model: choose one of small"),
    ],
)
def test_what_cannot_be_compared_is_said(
    arguments: list[str], said: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs.write_losses(tmp_path / "large.json", [part("one", 0.1, model="large")])
    with pytest.raises(UserError, match=said):
        run(*(text.format(file=file, folder=tmp_path) for text in arguments), monkeypatch=monkeypatch)


def test_one_model_of_several(file: Path, tmp_path: Path) -> None:
    pairs.write_losses(tmp_path / "large.json", [part("one", 0.1, model="large")])
    (only,) = pairs.read_losses([file, tmp_path / "large.json"], "large")
    assert only.model == "large"


def test_a_pair_whose_arms_never_meet_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = part("one", 0.2), part("two", 0.4)
    for lines in one.by_seed.values():
        del lines.values[KERNEL]
    for lines in two.by_seed.values():
        del lines.values[RANDOM]
    pairs.write_losses(tmp_path / "losses.json", [one, two])
    with pytest.raises(UserError, match="kernel − random: no domain and seed has both arms"):
        run(str(tmp_path / "losses.json"), "kernel:random", monkeypatch=monkeypatch)
