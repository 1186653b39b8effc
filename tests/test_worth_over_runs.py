"""Worth of scores over several runs: the statistics, and what its command prints."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import run, tiny_run_config, write_inputs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import resampled_ranks  # noqa: E402
import worth_of_run as measuring  # noqa: E402
import worth_over_runs as over  # noqa: E402

import ntk_jax as nj  # noqa: E402
from ntk_jax.kernels.agreement import spearman, top_overlap  # noqa: E402
from ntk_jax.training import datamodels  # noqa: E402


def sample(seed: int, count: int = 40) -> dict[str, np.ndarray]:
    """A score that foresees, one that only follows length, which is worth something, and one of nothing."""
    rng = np.random.default_rng(seed)
    length, useful = rng.permutation(count).astype(float), rng.normal(size=count)
    worth = useful - 0.1 * length
    return {
        "id": np.array([f"{seed}-{i}" for i in range(count)]),
        "worth": worth,
        "good": useful + 0.1 * rng.normal(size=count),
        "short": -length + 3 * rng.normal(size=count),
        "nothing": rng.normal(size=count),
        over.LENGTH: length,
    }


@given(st.integers(0, 2**16))
def test_the_partial_correlation_is_the_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, 12))
    ab, ac, bc = spearman(a, b), spearman(a, c), spearman(b, c)
    expected = (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))
    assert resampled_ranks.partial(a, b, c, np.ones((1, 12), int))[0] == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 2**16), st.booleans())
def test_a_resample_is_as_if_it_were_written_out(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = rng.integers(0, 4, (3, 15)).astype(float) if ties else rng.normal(size=(3, 15))
    times = np.stack([np.bincount(rng.integers(0, 15, 15), minlength=15) for _ in range(3)])
    rhos, rests = resampled_ranks.spearman(a, b, times), resampled_ranks.partial(a, b, c, times)
    tops = resampled_ranks.top_overlap(a, b, 5, times)
    for row, rho, rest, top in zip(times, rhos, rests, tops, strict=True):
        x, y, z = (np.repeat(values, row) for values in (a, b, c))
        np.testing.assert_allclose(rho, spearman(x, y), atol=1e-9)
        np.testing.assert_allclose(rest, resampled_ranks.partial(x, y, z, np.ones((1, 15), int))[0], atol=1e-9)
        assert ties or top == pytest.approx(top_overlap(x, y, 5))


def test_length_is_taken_out() -> None:
    found = over.together({"one": sample(0), "two": sample(1)}, top=5, resamples=200, against="short")
    short, good = (found["scores"][name] for name in ("short", "good"))
    assert short["spearman"]["value"] > 0.5 and abs(short["without_length"]["value"]) < 0.3
    assert good["without_length"]["value"] > 0.8 and good["without_length"]["low"] > 0
    assert found["scores"][over.LENGTH]["spearman"]["value"] < -0.5
    assert "without_length" not in found["scores"][over.LENGTH]
    each = [spearman(s["good"], s["worth"]) for s in (sample(0), sample(1))]
    assert good["spearman"]["value"] == pytest.approx(np.mean(each))
    assert good["spearman"]["low"] < good["spearman"]["value"] < good["spearman"]["high"]
    assert found["chance"] == 5 / 40
    apart = good["minus"]["without_length"]
    assert apart["value"] == pytest.approx(good["without_length"]["value"] - short["without_length"]["value"])
    assert 0 < apart["low"] < apart["value"] < apart["high"] and "minus" not in short
    assert over.table(found)[0].split(" | ")[-3:-1] == ["length taken out", "the same minus short"]
    with pytest.raises(over.UserError, match="--against bad: .* there are good, short"):
        over.together({"one": sample(0)}, 5, 20, against="bad")


def test_a_score_that_some_candidates_lack_is_compared_over_the_others() -> None:
    whole = sample(0)
    part = {**whole, "good": np.where(np.arange(40) < 5, np.nan, whole["good"])}
    value = over.together({"one": part}, top=5, resamples=200)["scores"]["good"]["spearman"]["value"]
    assert value == pytest.approx(spearman(whole["good"][5:], whole["worth"][5:]))


def test_a_candidate_of_several_files_is_drawn_for_all_of_them_at_once() -> None:
    whole = sample(0)
    part = {name: values[::-2] for name, values in whole.items()}  # half of them, in another order
    of_whole, of_part = over.drawn_times([whole, part], 20, 0)
    assert (of_whole.sum(axis=1) == 40).all()
    np.testing.assert_array_equal(of_part, of_whole[:, ::-2])
    twice = over.together({"one": whole, "again": whole}, top=5, resamples=200)["scores"]["good"]["spearman"]
    once = over.together({"one": whole}, top=5, resamples=200)["scores"]["good"]["spearman"]
    assert (twice["low"], twice["high"]) == pytest.approx((once["low"], once["high"])), "no more is known"


def test_files_of_a_domain_are_its_seeds() -> None:
    """Their mean is one column, one domain weighs as another, and what differs between seeds widens the interval."""
    seeds = {f"kitchen-{seed}": sample(seed) for seed in range(3)} | {"gloves-1": sample(7)}
    found = over.together(seeds, top=5, resamples=400)
    good = found["scores"]["good"]["spearman"]
    each = {name: spearman(one["good"], one["worth"]) for name, one in seeds.items()}
    kitchen = float(np.mean([each[f"kitchen-{seed}"] for seed in range(3)]))
    assert list(good["each"]) == ["kitchen", "gloves"] and good["each"]["kitchen"] == pytest.approx(kitchen)
    assert good["value"] == pytest.approx((kitchen + each["gloves-1"]) / 2)
    assert over.table(found)[0].startswith("| score | kitchen | gloves | mean |")

    assert [over.domain_of(name) for name in ("a-b-12", "ab", "a-1e-4")] == ["a-b", "ab", "a-1e-4"]
    one, other = sample(0), sample(1)
    apart = {"d-0": one, "d-1": {**other, "good": -other["good"]}}  # what one seed says the other denies
    wide, narrow = (
        over.together(samples, 5, 400)["scores"]["good"]["spearman"] for samples in (apart, {"d-0": one, "d-1": other})
    )
    assert wide["high"] - wide["low"] > 1.2 > 0.6 > narrow["high"] - narrow["low"]
    # Seeds that all domains have are drawn together: what one says in both is not averaged away.
    drawn = over.drawn_seeds([f"{d}-{seed}" for d in ("a", "b") for seed in (3, 4, 5)] + ["c-3", "c-4", "c-6"], 99, 0)
    assert (drawn["a"] + 3 == drawn["b"]).all() and (drawn["c"] != drawn["a"] + 6).any()


def test_intervals_over_few_seeds_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seeds, each with an effect that is the same in both domains, in the mean of all seeds 0: at least 90% of
    100 trials hold it, and fewer without the stretch for few seeds."""
    rng, hits, plain = np.random.default_rng(4), 0, 0
    for trial in range(100):
        files = {}
        for seed in range(3):
            effect = rng.normal(0, 0.5)
            for domain in "ab":
                score, length = rng.normal(size=(2, 120))
                ids = np.array([f"{domain}{seed}-{n}" for n in range(120)])
                worth = effect * score + rng.normal(size=120)
                files[f"{domain}-{seed}"] = {"id": ids, "worth": worth, "score": score, over.LENGTH: length}
        found = over.together(files, 5, 120, seed=trial)["scores"]["score"]["spearman"]
        hits += found["low"] <= 0 <= found["high"]
        with monkeypatch.context() as patched:
            patched.setattr(over, "stretch_of", lambda *_: 1.0)
            found = over.together(files, 5, 120, seed=trial)["scores"]["score"]["spearman"]
        plain += found["low"] <= 0 <= found["high"]
    assert hits >= 0.90 * 100 > plain


def test_how_far_domains_agree() -> None:
    """Of candidates that files of one seed share; the same order is 1, with and without length."""
    one, other = sample(0), sample(1)
    shared = {**other, "id": np.concatenate([one["id"][:20], other["id"][20:]])}
    shared["worth"] = np.concatenate([2 * one["worth"][:20] + 1, other["worth"][20:]])
    found = over.together({"a-0": one, "b-0": shared, "b-1": one, "c-0": sample(5)}, 5, 200)["alike"]
    assert found["pairs"] == {"a, b-0": 20}
    for measure in ("spearman", "without_length"):
        assert found[measure] == {
            "each": {"a, b": pytest.approx(1)},
            **dict.fromkeys(("value", "low", "high"), pytest.approx(1)),
        }
    noise = {**one, "worth": np.random.default_rng(9).normal(size=40)}
    three = {"a": one, "b": one, "c": noise}
    mean = over.together(three, 5, 400)["alike"]["spearman"]
    apart = scipy.stats.spearmanr(one["worth"], noise["worth"]).statistic
    assert mean["value"] == pytest.approx((1 + 2 * apart) / 3)
    assert mean["low"] < mean["value"] < mean["high"] < 1
    assert "alike" not in over.together({"a": one, "c": sample(5)}, 5, 50)
    lines = over.table(over.together({f"{d}-{n}": one for d in "abc" for n in "12"}, 5, 50))
    assert any("in one domain and in another (3 pairs of domains): +1.00 [" in line for line in lines)
    flat = {"a": one, "b": {**one, "worth": -one[over.LENGTH]}}
    assert "alike" not in over.together(flat, 5, 50), "of nothing but length nothing is left without it"


def test_lds_over_seeds() -> None:
    samples = {f"{domain}-{seed}": sample(seed) for domain in "ab" for seed in range(3)}
    values = {name: {"good": 0.1 * place, "metagradient": 0.5} for place, name in enumerate(samples)}
    values["a-0"] = values["a-0"] | {"short": 0.3}  # the other files do not have it
    found = over.together(samples, 5, 400, lds=values)
    good = found["scores"]["good"]["lds"]
    assert good["each"] == pytest.approx({"a": 0.1, "b": 0.4}) and good["value"] == pytest.approx(0.25)
    half = scipy.stats.t.ppf(0.975, 2) * np.std([0.15, 0.25, 0.35], ddof=1) / 3**0.5
    assert [good["low"], good["high"]] == pytest.approx([0.25 - half, 0.25 + half])
    fewer = {name: one for name, one in samples.items() if name != "b-2"}
    assert "low" not in over.together(fewer, 5, 50, lds=values)["scores"]["good"]["lds"], "other seeds"
    assert "lds" not in found["scores"]["short"] and found[over.METAGRADIENT_LDS]["value"] == pytest.approx(0.5)
    assert over.table(found)[0].endswith("| of the top | LDS |")
    assert any(line == "LDS of the metagradient itself: +0.50" for line in over.table(found)), "three that are equal"
    alone = over.together({"a-0": sample(0)}, 5, 50, lds=values)["scores"]["good"]["lds"]
    assert alone == {"each": {"a": 0.0}, "value": 0.0}, "one seed says nothing of another"


def test_scores_that_cannot_be_compared_are_left_out() -> None:
    few = np.where(np.arange(40) < 4, 1.0, np.nan)
    found = over.together({"one": {**sample(0), "few": few, "none": few * np.nan, "same": np.ones(40)}}, 5, 50)
    assert found["left_out"] == ["few", "none", "same"]
    json.dumps(found, allow_nan=False)
    with pytest.raises(over.UserError, match="no score in common"):
        over.together({"one": {"id": sample(0)["id"], "worth": few, "a": few}}, 5, 50)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        made = sample(number)
        names = [name for name in made if name not in ("id", "worth") and (number or name != "nothing")]
        candidates = [
            {
                "id": f"{number}-{i}",
                "metagradient": -made["worth"][i],
                "scores": {name: made[name][i] for name in names},
            }
            for i in range(40)
        ]
        (tmp_path / f"d{number}.json").write_text(json.dumps({"candidates": candidates}))
    script = over.__file__
    paths = [str(tmp_path / f"d{number}.json") for number in range(2)]
    monkeypatch.setattr(
        sys,
        "argv",
        [script, *paths, "--top", "5", "--resamples", "100", "--out", str(tmp_path / "out.json")]
        + ["--figure", str(tmp_path / "worth.svg")],
    )
    runpy.run_path(script, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| score | d0 | d1 | mean | length taken out | of the top |"
    assert lines[2].startswith("| short | +0.") and not any(line.startswith("| nothing") for line in lines)
    assert lines[-2] == "Of the top 5, chance: 12%"
    assert lines[-1] == "Left out, since a file has too few of these or only equal ones: nothing"
    assert json.loads((tmp_path / "out.json").read_text())["files"] == {"d0": 40, "d1": 40}
    drawn = (tmp_path / "worth.svg").read_text()
    assert drawn.startswith("<svg") and all(name in drawn for name in ("short", "good")) and "nothing" not in drawn

    monkeypatch.setattr(sys, "argv", [script, paths[0], str(tmp_path / "other" / "d0.json")])
    with pytest.raises(SystemExit, match="two files are called d0; name them by domain"):
        runpy.run_path(script, run_name="__main__")
    monkeypatch.setattr(sys, "argv", [script, *paths])
    (tmp_path / "d0.json").write_text(json.dumps({"candidates": [{"id": "x", "metagradient": 0.1}]}))
    with pytest.raises(SystemExit, match=r"d0.json was made before scores were kept .*; run worth_of_run.py again"):
        runpy.run_path(script, run_name="__main__")


def killed(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_shuffled_responses_are_all_there_and_none_is_its_own() -> None:
    examples = [{"id": str(n), "prompt": f"p{n}", "response": f"r{n}"} for n in range(7)]
    found = measuring.shuffled(examples, 3)
    assert [one["prompt"] for one in found] == [one["prompt"] for one in examples]
    assert {one["response"] for one in found} == {one["response"] for one in examples}
    assert measuring.kept_responses(examples, found) == 0
    alike = [{**one, "response": "r0" if n < 5 else one["response"]} for n, one in enumerate(examples)]
    assert measuring.kept_responses(alike, measuring.shuffled(alike, 3)) >= 3 / 7


@pytest.mark.slow
def test_a_finished_run_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(tmp_path)
    run(tiny_run_config(tmp_path, "run", select={"methods": ["kernel", "bm25"], "count": 6}), until="select")
    script, out = str(Path(over.__file__).with_name("worth_of_run.py")), tmp_path / "out.json"
    sizes = {"candidates": 12, "domain": 4, "held-out": 4, "batch": 4, "top": 3, "longest": 60, "direction": 4}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    options += ["--objectives", "cross_entropy", "--start", "fresh", "--learning-rate", "2e-3"]
    command = [script, str(tmp_path / "run"), *options]
    more = ["--cosines", "cross_entropy", "--subsets", "5"]
    monkeypatch.setattr(sys, "argv", [*command, *more, "--out", str(out)])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(nj, "lds", killed)
        runpy.run_path(script, run_name="__main__")
    assert (tmp_path / "out.json.way" / "back.npz").exists() and not out.exists()
    runpy.run_path(script, run_name="__main__")
    assert not (tmp_path / "out.json.way").exists(), "what was on the way is deleted at the end"
    found = json.loads(out.read_text())
    candidates = found["candidates"]
    assert found["training"]["learning_rate"] == 2e-3
    assert all(-1 <= one["lds"]["value"] <= 1 for one in found["scores"].values())
    assert over.lds_of([out])["out"].keys() == {*candidates[0]["scores"], "metagradient"}
    assert len(candidates) == 12 and not any(one["id"].startswith("long") for one in candidates)
    names = {"kernel", "bm25", over.LENGTH, "cross_entropy, here", "cosine, cross_entropy, here"}
    assert set(candidates[0]["scores"]) == names
    together = over.together({"run": over.sample_of(out)}, top=3, resamples=20)
    assert set(together["scores"]) == names and together["files"] == {"run": 12}

    again = [*command, "--again", str(out), "--directions", "domain", "held-out-adam", "pool", "shuffled", "few"]
    again += ["--out", str(tmp_path / "again.json")]
    monkeypatch.setattr(sys, "argv", again)
    runpy.run_path(script, run_name="__main__")
    second = json.loads((tmp_path / "again.json").read_text())
    assert set(second["candidates"][0]["scores"]) == names | {
        f"cross_entropy, {direction}" for direction in ("held-out-adam", "pool", "shuffled", "few")
    }
    for name in names:
        first, repeated = ([one["scores"][name] for one in made["candidates"]] for made in (found, second))
        np.testing.assert_allclose(repeated, first, rtol=1e-4, atol=1e-7, err_msg=name)
    assert [one["metagradient"] for one in second["candidates"]] == [one["metagradient"] for one in candidates]
    assert second["scores"]["bm25"] == found["scores"]["bm25"], "LDS, too"
    with monkeypatch.context() as patched:
        patched.setattr(datamodels, "_losses_after", killed)  # the losses are kept: nothing is trained on again
        patched.setattr(sys, "argv", [*again, "--subsets", "5"])
        runpy.run_path(script, run_name="__main__")
    scored = json.loads((tmp_path / "again.json").read_text())["scores"]
    assert scored["cross_entropy, pool"]["lds"]["scored"] == 12 and scored["bm25"] == found["scores"]["bm25"]
    assert scored["bm25"]["lds"]["partial"]["value"] is not None

    repeat = [*command, "--again", str(out), "--repeat-seed", "1", "--out", str(tmp_path / "repeat.json")]
    monkeypatch.setattr(sys, "argv", repeat)
    runpy.run_path(script, run_name="__main__")
    other = json.loads((tmp_path / "repeat.json").read_text())
    earlier = [one["scores"]["metagradient of --again"] for one in other["candidates"]]
    np.testing.assert_allclose(earlier, [-one["metagradient"] for one in candidates], rtol=1e-6)
    assert [one["metagradient"] for one in other["candidates"]] != [one["metagradient"] for one in candidates]
    assert [one["id"] for one in other["candidates"]] == [one["id"] for one in candidates]
    assert over.together({"run": over.sample_of(tmp_path / "repeat.json")}, top=3, resamples=20)
    # The seed itself, however much at once: the same training.
    other_run = ["--at", "fresh", "--rankings", f"small={tmp_path / 'run'}"]  # the same run, as if it were another
    monkeypatch.setattr(
        sys, "argv", [*command, "--again", str(out), *other_run, "--out", str(tmp_path / "ranked.json")]
    )
    runpy.run_path(script, run_name="__main__")
    ranked = json.loads((tmp_path / "ranked.json").read_text())["candidates"]
    at = [[one["scores"][f"cross_entropy, here{end}"] for one in ranked] for end in ("", ", fresh")]
    assert not np.allclose(*at) and np.isfinite(at).all()
    for one in ranked:
        assert [one["scores"][f"{name} of small"] for name in ("kernel", "bm25")] == [
            one["scores"][name] for name in ("kernel", "bm25")
        ]
    monkeypatch.setattr(sys, "argv", [*command, "--rankings", str(tmp_path / "run"), "--out", str(out)])
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    monkeypatch.setattr(sys, "argv", [*repeat[:-3], "0", "--microbatch", "200", *repeat[-2:]])
    runpy.run_path(script, run_name="__main__")
    same = json.loads((tmp_path / "repeat.json").read_text())
    assert [one["metagradient"] for one in same["candidates"]] == [one["metagradient"] for one in candidates]

    monkeypatch.setattr(sys, "argv", [*command, "--again", str(out), "--start", "warm", "--out", str(out)])
    runpy.run_path(script, run_name="__main__")
    third = json.loads(out.read_text())
    assert third["options"]["start"] == "warm"
    assert set(third["candidates"][0]["scores"]) == {*names, "metagradient of --again"}
    assert [one["metagradient"] for one in third["candidates"]] != [one["metagradient"] for one in candidates]
    assert not any("lds" in one for one in third["scores"].values()), "that was of another training"
    monkeypatch.setattr(sys, "argv", [*again, "--candidates", "11"])
    with pytest.raises(SystemExit, match=r"error: --again .*out.json: it has other candidates"):
        runpy.run_path(script, run_name="__main__")
    monkeypatch.setattr(sys, "argv", [*again, "--held-out", "3"])
    with pytest.raises(SystemExit, match=r"error: --again .*out.json: its held-out is 4, and not 3"):
        runpy.run_path(script, run_name="__main__")
    (tmp_path / "other.json").write_text(json.dumps({**third, "run": "other"}))
    monkeypatch.setattr(sys, "argv", [*command, "--again", str(tmp_path / "other.json"), "--out", str(out)])
    with pytest.raises(SystemExit, match=r"error: --again .*other.json: its run is other, and not "):
        runpy.run_path(script, run_name="__main__")
