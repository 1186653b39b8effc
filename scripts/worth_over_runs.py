"""What `worth_of_run.py` found in several runs, together: how well each score foresees what training does.

    python scripts/worth_over_runs.py runs/worth/*.json --out worth.json

Of every score the rank correlation with minus the metagradient, the same with the length of the response taken out of
both (the partial rank correlation), the share of the best by score among the best by the metagradient, and LDS where
the files have it. Files called NAME-0, NAME-1, ... are seeds of a domain: they count together as one.

Intervals are 95% percentile bootstraps over the candidates, of which one that several files have is drawn for all of
them at once, and over the seeds of a domain, of which one fewer than there are is drawn (Rao & Wu, Journal of the
American Statistical Association 1988). They are about other candidates and seeds and say nothing of other domains. LDS
is of a file as a whole: its interval is over seeds, and there is none where a domain has only one.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiment_figures import forest
from scipy.stats import rankdata

from ntk_jax.errors import UserError
from ntk_jax.kernels.agreement import spearman, top_overlap
from ntk_jax.report.figures_matrix import standalone
from ntk_jax.report.markup import Html
from ntk_jax.storage.atomic import write_text

LENGTH = "response characters"
METAGRADIENT_LDS = "lds of the metagradient"
LEAST = 10  # candidates that have a score, in every file
Sample = Mapping[str, np.ndarray]  # of a file's candidates: "id", "worth" and every score
Foreseen = Mapping[str, float | None]  # LDS of a file's scores


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--top", type=int, default=10, help="N of the precision of the top")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--against", help="a score that the others have a difference to, length taken out of both")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--figure", type=Path, help="an SVG file: the mean rank correlation of every score")
    options = parser.parse_args()
    try:
        found = together(
            samples_of(options.files),
            options.top,
            options.resamples,
            lds=lds_of(options.files),
            against=options.against,
        )
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if options.out:
        options.out.write_text(json.dumps(found, indent=1, allow_nan=False), encoding="utf8")
    if options.figure:
        write_text(options.figure, standalone(figure(found)))
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


def lds_of(paths: Sequence[Path]) -> dict[str, Foreseen]:
    """By the files' names, {score: LDS}, that of the metagradient included; of those that have it."""
    found: dict[str, Foreseen] = {}
    for path in paths:
        scores = json.loads(path.read_text(encoding="utf8")).get("scores", {})
        values = {name: one["lds"]["value"] for name, one in scores.items() if "lds" in one}
        if values:
            found[path.stem] = values
    return found


def domain_of(file: str) -> str:
    """NAME of NAME-3, and else the name as it is."""
    return re.sub(r"-\d+$", "", file)


def together(
    samples: Mapping[str, Sample],
    top: int,
    resamples: int = 2000,
    *,
    lds: Mapping[str, Foreseen] | None = None,
    against: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """{"files": {name: candidates}, "candidates": different ones, "chance": of the top, "left_out": scores, "scores":
    {score: {measure: {"each": {domain: value}, value, low, high}}}} of the scores that every file has, by the mean
    correlation. A measure that is not defined in some file (a constant score) is left out.

    lds: from `lds_of`; of the files that all have it, and the metagradient's beside the scores' as "metagradient".
    against: the score that the others have a difference to, {"minus": {measure: {value, low, high}}}, paired.
    left_out: scores that a file lacks, or has for fewer than `LEAST` candidates.
    """
    files = list(samples)
    every = dict.fromkeys(name for sample in samples.values() for name in sample if name not in ("id", "worth"))
    names = [name for name in every if all(np.isfinite(s.get(name, ())).sum() >= LEAST for s in samples.values())]
    if not names:
        raise UserError("the files have no score in common")
    draws = drawn_places(list(samples.values()), resamples, seed)
    seeds = drawn_seeds(files, resamples, seed)
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
            by_file = np.array([_resampled(samples[f], name, of, d) for f, d in zip(files, draws, strict=True)])
            found[name][measure], drawn[name, measure] = _over_seeds(each, by_file, seeds)
    known_lds = _lds(lds or {}, files, seeds)
    for name in names:
        if name in known_lds:
            found[name]["lds"] = known_lds[name]
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
    scores = {name: found[name] for name in order}
    if "metagradient" in known_lds:
        kept[METAGRADIENT_LDS] = known_lds["metagradient"]
    return {**kept, "against": against, "left_out": left_out, "scores": scores}


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


def drawn_seeds(files: Sequence[str], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """[resamples, drawn] places among files of each domain's, one fewer than it has (one where it has one)."""
    rng = np.random.default_rng([seed, 1])
    found = {}
    for domain in dict.fromkeys(map(domain_of, files)):
        places = np.array([place for place, file in enumerate(files) if domain_of(file) == domain])
        found[domain] = places[rng.integers(0, len(places), (resamples, max(1, len(places) - 1)))]
    return found


def _over_seeds(
    each: Mapping[str, float], by_file: np.ndarray, seeds: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], np.ndarray]:
    """The mean over domains of the mean over their files, by_file [files, resamples]; and its resamples."""
    files = list(each)
    domains = {name: float(np.mean([each[f] for f in files if domain_of(f) == name])) for name in seeds}
    rows = np.arange(by_file.shape[1])[:, None]
    resampled = np.mean([by_file[places, rows].mean(axis=1) for places in seeds.values()], axis=0)
    return {"each": domains, **_interval(float(np.mean(list(domains.values()))), resampled)}, resampled


def _lds(lds: Mapping[str, Foreseen], files: Sequence[str], seeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{score: {"each", value, low, high}} where every file has it; low and high only where every domain has seeds."""
    resamples = len(next(iter(seeds.values())))
    several = min(Counter(map(domain_of, files)).values()) > 1
    found = {}
    for name in lds.get(files[0], {}):
        each = {file: value for file in files if (value := lds.get(file, {}).get(name)) is not None}
        if len(each) == len(files):
            of_draws = np.tile(np.array([*each.values()])[:, None], (1, resamples))
            one, _ = _over_seeds(each, of_draws, seeds)
            found[name] = one if several else {key: one[key] for key in ("each", "value")}
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
    domains = list(dict.fromkeys(map(domain_of, found["files"])))
    has_lds = any("lds" in measures for measures in found["scores"].values())
    titles = ["score", *domains, "mean", "length taken out"]
    titles += [f"the same minus {found['against']}"] if found["against"] else []
    titles += ["of the top", *(["LDS"] if has_lds else [])]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, measures in found["scores"].items():
        cells = [name, *(f"{measures['spearman']['each'][domain]:+.2f}" for domain in domains)]
        cells += [_cell(measures.get(key)) for key in ("spearman", "without_length")]
        cells += [_cell(measures.get("minus", {}).get("without_length"))] if found["against"] else []
        top = measures["top"]
        cells.append(f"{100 * top['value']:.0f}% [{100 * top['low']:.0f}, {100 * top['high']:.0f}]")
        cells += [_cell(measures.get("lds"))] if has_lds else []
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(f"Of the top {found['top']}, chance: {100 * found['chance']:.0f}%")
    if has_lds:
        lines.append(f"LDS of the metagradient itself: {_cell(found.get(METAGRADIENT_LDS))}")
    if found["left_out"]:
        lines.append(f"Left out, since a file has too few of these or only equal ones: {', '.join(found['left_out'])}")
    return lines


def figure(found: Mapping[str, Any]) -> Html:
    """A row a score, the best first; grey where the interval holds zero."""
    rows = [{"arm": name, **one["spearman"]} for name, one in found["scores"].items()]
    return forest(rows, "rank correlation with what examples are worth (minus the metagradient)")


def _cell(one: Mapping[str, float] | None) -> str:
    """Empty where there is no such measure."""
    if one is None:
        return ""
    return f"{one['value']:+.2f}" + (f" [{one['low']:+.2f}, {one['high']:+.2f}]" if "low" in one else "")


if __name__ == "__main__":
    main()
