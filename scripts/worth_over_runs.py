"""What `worth_of_run.py` found in several runs, together: how well each score foresees what training does.

    python scripts/worth_over_runs.py runs/worth/*.json --out worth.json

Of every score the rank correlation with minus the metagradient in each file, their mean, the same with the length of
the response taken out of both (the partial rank correlation), and the share of the best by score among the best by the
metagradient. Intervals are 95% percentile bootstraps over the candidates, of which one that several files have is drawn
for all of them at once: they are about other candidates of these domains and say nothing of other domains.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ntk_jax.errors import UserError
from ntk_jax.kernels.agreement import spearman, top_overlap

LENGTH = "response characters"
LEAST = 10  # candidates that have a score, in every file
Sample = Mapping[str, np.ndarray]  # of a file's candidates: "id", "worth" and every score


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--top", type=int, default=10, help="N of the precision of the top")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--against", help="a score that the others have a difference to, length taken out of both")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    try:
        found = together(samples_of(options.files), options.top, options.resamples, against=options.against)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if options.out:
        options.out.write_text(json.dumps(found, indent=1, allow_nan=False), encoding="utf8")
    print("\n".join(table(found)))


def samples_of(paths: Sequence[Path]) -> dict[str, Sample]:
    """By the files' names. Raises UserError: two of one name, or as `sample_of`."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"two files are called {next(n for n in names if names.count(n) > 1)}; name them by domain")
    return {path.stem: sample_of(path) for path in paths}


def sample_of(path: Path) -> Sample:
    """Raises UserError: the file keeps no scores of its candidates."""
    candidates = json.loads(path.read_text(encoding="utf8"))["candidates"]
    if any("scores" not in one for one in candidates):
        raise UserError(f"{path} was made before scores were kept with the candidates; run worth_of_run.py again")
    names = candidates[0]["scores"]
    scores = {name: np.array([one["scores"][name] for one in candidates], float) for name in names}
    worth = -np.array([one["metagradient"] for one in candidates])
    return {"id": np.array([str(one["id"]) for one in candidates]), "worth": worth, **scores}


def together(
    samples: Mapping[str, Sample], top: int, resamples: int = 2000, *, against: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """{"files": {name: candidates}, "candidates": different ones, "chance": of the top, "left_out": scores, "scores":
    {score: {measure: {"each": {file: value}, value, low, high}}}} of the scores that every file has, by the mean
    correlation. A measure that is not defined in some file (a constant score) is left out.

    against: the score that the others have a difference to, {"minus": {measure: {value, low, high}}}, paired.
    left_out: scores that a file lacks, or has for fewer than `LEAST` candidates.
    """
    files = list(samples)
    every = dict.fromkeys(name for sample in samples.values() for name in sample if name not in ("id", "worth"))
    names = [name for name in every if all(np.isfinite(s.get(name, ())).sum() >= LEAST for s in samples.values())]
    if not names:
        raise UserError("the files have no score in common")
    draws = drawn_places(list(samples.values()), resamples, seed)
    measures: dict[str, Callable[[Sample, str], float]] = {
        "spearman": lambda sample, name: spearman(sample[name], sample["worth"]),
        "without_length": lambda sample, name: partial(sample[name], sample["worth"], sample[LENGTH]),
        "top": lambda sample, name: top_overlap(sample[name], sample["worth"], top),
    }
    found: dict[str, Any] = {name: {} for name in names}
    drawn: dict[tuple[str, str], np.ndarray] = {}
    for name in names:
        for measure, of in measures.items():
            if name == LENGTH and measure == "without_length":
                continue
            each = {file: of(known(samples[file], name), name) for file in files}
            if not all(np.isfinite(value) for value in each.values()):
                continue
            resampled = np.mean(
                [_resampled(samples[f], name, of, d) for f, d in zip(files, draws, strict=True)], axis=0
            )
            found[name][measure] = {"each": each, **_interval(float(np.mean(list(each.values()))), resampled)}
            drawn[name, measure] = resampled
    if against is not None:
        _differences(found, drawn, against)
    names = [name for name in names if "spearman" in found[name]]
    order = sorted(names, key=lambda name: -found[name]["spearman"]["value"])
    counts = {file: len(sample["worth"]) for file, sample in samples.items()}
    different = len({name for sample in samples.values() for name in sample["id"].tolist()})
    kept = {
        "files": counts,
        "candidates": different,
        "top": top,
        "chance": float(np.mean([top / count for count in counts.values()])),
    }
    left_out = [name for name in every if name not in names]
    return {**kept, "against": against, "left_out": left_out, "scores": {name: found[name] for name in order}}


def drawn_places(samples: Sequence[Sample], resamples: int, seed: int) -> list[list[np.ndarray]]:
    """Of each file the places of its candidates in every resample of all candidates that there are."""
    ids = np.unique(np.concatenate([sample["id"] for sample in samples]))
    draws = np.random.default_rng(seed).integers(0, len(ids), (resamples, len(ids)))
    found = []
    for sample in samples:
        order = np.argsort(sample["id"])
        place = np.full(len(ids), -1)
        place[np.searchsorted(ids, sample["id"][order])] = order
        found.append([there[there >= 0] for there in place[draws]])
    return found


def _differences(found: dict[str, Any], drawn: Mapping[tuple[str, str], np.ndarray], against: str) -> None:
    """Adds what each score has more than one of them."""
    if against not in found:
        raise UserError(f"--against {against}: the files have no such score in common; there are {', '.join(found)}")
    for name, measure in drawn:
        if name != against and (against, measure) in drawn:
            value = found[name][measure]["value"] - found[against][measure]["value"]
            apart = drawn[name, measure] - drawn[against, measure]
            found[name].setdefault("minus", {})[measure] = _interval(value, apart)


def _interval(value: float, resampled: np.ndarray) -> dict[str, float]:
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high)}


def known(sample: Sample, name: str) -> Sample:
    """The candidates that have the score."""
    there = np.isfinite(sample[name])
    return {key: values[there] for key, values in sample.items()}


def partial(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float:
    """The partial rank correlation of a and b given a third: of what is left of the ranks of each after a line in the
    ranks of the third; NaN where nothing is left."""
    ranks = [rankdata(values) for values in (a, b, given)]
    ranks = [values - values.mean() for values in ranks]
    third = ranks[2]
    scale = float(third @ third)
    left = [values - third * float(values @ third) / scale if scale else values for values in ranks[:2]]
    size = float(np.sqrt((left[0] @ left[0]) * (left[1] @ left[1])))
    return float(left[0] @ left[1]) / size if size > 1e-9 * len(a) else float("nan")


def _resampled(
    sample: Sample, name: str, of: Callable[[Sample, str], float], draws: Sequence[np.ndarray]
) -> list[float]:
    """By draw; NaN where too few of those drawn have the score."""
    parts = (known({key: values[draw] for key, values in sample.items()}, name) for draw in draws)
    return [of(part, name) if len(part["worth"]) >= 2 else float("nan") for part in parts]


def table(found: Mapping[str, Any]) -> list[str]:
    """Markdown lines."""
    files: Sequence[str] = list(found["files"])
    titles = ["score", *files, "mean", "length taken out", "of the top"]
    if found["against"]:
        titles.insert(-1, f"the same minus {found['against']}")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, measures in found["scores"].items():
        each = [f"{measures['spearman']['each'][file]:+.2f}" for file in files]
        rest = [_cell(measures[key]) if key in measures else "" for key in ("spearman", "without_length")]
        if found["against"]:
            apart = measures.get("minus", {}).get("without_length")
            rest.append(_cell(apart) if apart else "")
        top = measures["top"]
        share = f"{100 * top['value']:.0f}% [{100 * top['low']:.0f}, {100 * top['high']:.0f}]"
        lines.append("| " + " | ".join([name, *each, *rest, share]) + " |")
    lines.append(f"Of the top {found['top']}, chance: {100 * found['chance']:.0f}%")
    if found["left_out"]:
        lines.append(f"Left out, since a file has too few of these or only equal ones: {', '.join(found['left_out'])}")
    return lines


def _cell(one: Mapping[str, float]) -> str:
    return f"{one['value']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"


if __name__ == "__main__":
    main()
