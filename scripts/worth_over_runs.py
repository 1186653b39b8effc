"""What `worth_of_run.py` found in several runs, together: how well each score foresees what training does.

    python scripts/worth_over_runs.py runs/worth/*.json --out worth.json

Of every score the rank correlation with minus the metagradient, the same with the length of the response taken out of
both (the partial rank correlation), the share of the best by score among the best by the metagradient, and LDS where
the files have it; and how far domains agree on the worth of the candidates that they share. Files called NAME-0,
NAME-1, ... are seeds of a domain: they count together as one.

Intervals are 95% percentile bootstraps over the candidates, of which one that several files have is drawn for all of
them at once, and over the seeds of a domain, of which one fewer than there are is drawn (Rao & Wu, Journal of the
American Statistical Association 1988), the same ones for all domains that have the same seeds. They are stretched for
how few these are, by Student's t (`ntk_jax/evaluation/hierarchical.py`). Where seeds have candidates of their own these
vary in both draws, so that intervals are rather too wide. They are about other candidates and seeds and say nothing of
other domains. LDS is of a file as a whole: its interval is Student's, over the means of the seeds, and there is none
where domains have only one or other ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiment_figures import forest
from experiment_tables import half_width
from resampled_ranks import partial, spearman, top_overlap

from ntk_jax.errors import UserError
from ntk_jax.evaluation.hierarchical import stretch_of
from ntk_jax.report.figures_matrix import standalone
from ntk_jax.report.markup import Html
from ntk_jax.storage.atomic import write_text

LENGTH = "response characters"
METAGRADIENT_LDS = "lds of the metagradient"
LEAST = 10  # candidates that have a score, in every file
Sample = Mapping[str, np.ndarray]  # of a file's candidates: "id", "worth" and every score
Foreseen = Mapping[str, float | None]  # LDS of a file's scores
Measure = Callable[[Sample, str, np.ndarray], np.ndarray]  # of a sample, a score and how often each candidate is there


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
    """NAME of NAME-3, and else the name as it is, also that of NAME-1e-3."""
    return re.sub(r"(?<!\de)-\d+$", "", file)


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
    correlation. A measure that is not defined in some file (a constant score) is left out. "alike": of `alike`, if any.

    lds: from `lds_of`; of the files that all have it, and the metagradient's beside the scores' as "metagradient".
    against: the score that the others have a difference to, {"minus": {measure: {value, low, high}}}, paired.
    left_out: scores that a file lacks, or has for fewer than `LEAST` candidates.
    """
    files = list(samples)
    every = dict.fromkeys(name for sample in samples.values() for name in sample if name not in ("id", "worth"))
    names = [name for name in every if all(np.isfinite(s.get(name, ())).sum() >= LEAST for s in samples.values())]
    if not names:
        raise UserError("the files have no score in common")
    times = drawn_times(list(samples.values()), resamples, seed)
    seeds = drawn_seeds(files, resamples, seed)
    measures: dict[str, Measure] = {
        "spearman": lambda sample, name, times: spearman(sample[name], sample["worth"], times),
        "without_length": lambda sample, name, times: partial(sample[name], sample["worth"], sample[LENGTH], times),
        "top": lambda sample, name, times: top_overlap(sample[name], sample["worth"], top, times),
    }
    found: dict[str, Any] = {name: {} for name in names}
    drawn: dict[tuple[str, str], np.ndarray] = {}
    values: dict[tuple[str, str], dict[str, float]] = {}
    for name in names:
        for measure, of in measures.items():
            if name == LENGTH and measure == "without_length":
                continue
            each = {file: float(_of(samples[file], name, of, None)[0]) for file in files}
            if not all(np.isfinite(value) for value in each.values()):
                continue
            by_file = np.stack([_of(samples[file], name, of, t) for file, t in zip(files, times, strict=True)])
            found[name][measure], drawn[name, measure] = _over_seeds(each, by_file, seeds)
            values[name, measure] = each
    known_lds = _lds(lds or {}, files)
    for name in names:
        if name in known_lds:
            found[name]["lds"] = known_lds[name]
    if against is not None:
        _differences(found, values, drawn, against)
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
    if (agreed := alike(samples, times, seed)) is not None:
        kept["alike"] = agreed
    left_out = [name for name in every if name not in names]
    scores = {name: found[name] for name in order}
    if "metagradient" in known_lds:
        kept[METAGRADIENT_LDS] = known_lds["metagradient"]
    return {**kept, "against": against, "left_out": left_out, "scores": scores}


def alike(samples: Mapping[str, Sample], times: Sequence[np.ndarray], seed: int = 0) -> dict[str, Any] | None:
    """{"pairs": {"a, b": shared candidates}, "spearman": {"each", value, low, high}, "without_length": the same}: of
    the worth that the candidates which files of two domains and one seed share have in the one and in the other, by
    pair of domains, and the mean. None: no two files share enough, or a correlation is not defined."""
    shared: dict[str, int] = {}
    each: dict[str, dict[str, float]] = {"spearman": {}, "without_length": {}}
    drawn: dict[str, list[np.ndarray]] = {measure: [] for measure in each}
    for (a, one), (b, other) in itertools.combinations(samples.items(), 2):
        _, here, there = np.intersect1d(one["id"], other["id"], return_indices=True)
        suffix = a.removeprefix(domain_of(a))
        if domain_of(a) == domain_of(b) or b.removeprefix(domain_of(b)) != suffix or len(here) < LEAST:
            continue
        pair = f"{domain_of(a)}, {domain_of(b)}{suffix}"
        shared[pair] = len(here)
        resampled = np.concatenate([np.ones((1, len(here)), int), times[list(samples).index(a)][:, here]])
        x, y, length = one["worth"][here], other["worth"][there], one[LENGTH][here]
        for measure, found in (
            ("spearman", spearman(x, y, resampled)),
            ("without_length", partial(x, y, length, resampled)),
        ):
            each[measure][pair] = float(found[0])
            drawn[measure].append(found[1:])
    if not shared or not np.isfinite([list(values.values()) for values in each.values()]).all():
        return None
    seeds = drawn_seeds(list(shared), len(times[0]), seed)
    return {"pairs": shared} | {name: _over_seeds(each[name], np.stack(drawn[name]), seeds)[0] for name in each}


def drawn_times(samples: Sequence[Sample], resamples: int, seed: int) -> list[np.ndarray]:
    """[resamples, M] of each file: how often each of its candidates is in every resample of all that there are."""
    ids = np.unique(np.concatenate([sample["id"] for sample in samples]))
    draws = np.random.default_rng(seed).integers(0, len(ids), (resamples, len(ids)))
    times = np.stack([np.bincount(draw, minlength=len(ids)) for draw in draws])
    return [times[:, np.searchsorted(ids, sample["id"])] for sample in samples]


def drawn_seeds(files: Sequence[str], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """[resamples, drawn] places among files of each domain's, one fewer than it has (one where it has one). Domains
    with the same seeds draw the same ones: a seed has one adapter and one sample of the pool in all of them."""
    found = {}
    for domain in dict.fromkeys(map(domain_of, files)):
        own = {file.removeprefix(domain): place for place, file in enumerate(files) if domain_of(file) == domain}
        places = np.array([own[name] for name in sorted(own)])
        rng = np.random.default_rng([seed, 1, *" ".join(sorted(own)).encode()])
        found[domain] = places[rng.integers(0, len(places), (resamples, max(1, len(places) - 1)))]
    return found


def _over_seeds(
    each: Mapping[str, float], by_file: np.ndarray, seeds: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], np.ndarray]:
    """The mean over domains of the mean over their files, by_file [files, resamples]; and its resamples."""
    domains = {name: float(np.mean([each[file] for file in each if domain_of(file) == name])) for name in seeds}
    rows = np.arange(by_file.shape[1])[:, None]
    resampled = np.mean([by_file[places, rows].mean(axis=1) for places in seeds.values()], axis=0)
    return {"each": domains, **_interval(float(np.mean(list(domains.values()))), resampled, by_seed(each))}, resampled


def by_seed(each: Mapping[str, float]) -> list[np.ndarray]:
    """[seeds] means over domains, where all of these have the same seeds; else [seeds] of each domain."""
    domains = list(dict.fromkeys(map(domain_of, each)))
    own = {name: sorted(file.removeprefix(name) for file in each if domain_of(file) == name) for name in domains}
    values = [np.array([each[name + seed] for seed in own[name]]) for name in domains]
    return [np.mean(values, axis=0)] if len(set(map(tuple, own.values()))) == 1 else values


def _lds(lds: Mapping[str, Foreseen], files: Sequence[str]) -> dict[str, Any]:
    """{score: {"each", value, low, high}} where every file has it; low and high, by the means over domains of a seed,
    where all domains have the same seeds, and several that differ."""
    domains = list(dict.fromkeys(map(domain_of, files)))
    found: dict[str, Any] = {}
    for name in lds.get(files[0], {}):
        of = {file: value for file in files if (value := lds.get(file, {}).get(name)) is not None}
        if len(of) < len(files):
            continue
        each = {domain: float(np.mean([of[file] for file in files if domain_of(file) == domain])) for domain in domains}
        value, seeds = float(np.mean(list(each.values()))), by_seed(of)
        found[name] = {"each": each, "value": value}
        if len(seeds) == 1 and len(set(seeds[0].tolist())) > 1:
            half = half_width(seeds[0].tolist())
            found[name] |= {"low": value - half, "high": value + half}
    return found


def _differences(
    found: dict[str, Any],
    values: Mapping[tuple[str, str], Mapping[str, float]],
    drawn: Mapping[tuple[str, str], np.ndarray],
    against: str,
) -> None:
    """Adds what each score has more than one of them. values: by file."""
    if against not in found:
        raise UserError(f"--against {against}: the files have no such score in common; there are {', '.join(found)}")
    for name, measure in drawn:
        if name != against and (against, measure) in drawn:
            value = found[name][measure]["value"] - found[against][measure]["value"]
            of, other = values[name, measure], values[against, measure]
            more = by_seed({file: of[file] - other[file] for file in of})
            apart = drawn[name, measure] - drawn[against, measure]
            found[name].setdefault("minus", {})[measure] = _interval(value, apart, more)


def _interval(value: float, resampled: np.ndarray, seeds: Sequence[np.ndarray]) -> dict[str, float]:
    """seeds: of `by_seed`, for how few they are."""
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    stretch = stretch_of(seeds, resampled[np.isfinite(resampled)], 0.95)
    return {
        "value": value,
        "low": value - stretch * (value - float(low)),
        "high": value + stretch * (float(high) - value),
    }


def _of(sample: Sample, name: str, of: Measure, times: np.ndarray | None) -> np.ndarray:
    """[resamples] over the candidates that have the score; times None: [1], each of them once."""
    there = np.isfinite(sample[name])
    known = {key: values[there] for key, values in sample.items()}
    return of(known, name, np.ones((1, int(there.sum())), int) if times is None else times[:, there])


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
    if "alike" in found:
        mean, rest = (_cell(found["alike"][measure]) for measure in ("spearman", "without_length"))
        pairs = f"{len(found['alike']['spearman']['each'])} pairs of domains"
        lines.append(f"What examples are worth in one domain and in another ({pairs}): {mean}, length taken out {rest}")
    if found["left_out"]:
        lines.append(f"Left out, since a file has too few of these or only equal ones: {', '.join(found['left_out'])}")
    return lines


def figure(found: Mapping[str, Any]) -> Html:
    """A row a score, the best first; grey where the interval holds zero."""
    rows = [{"arm": name, **one["spearman"]} for name, one in found["scores"].items()]
    return forest(rows, "rank correlation with what examples are worth (minus the metagradient)", zero="no correlation")


def _cell(one: Mapping[str, float] | None) -> str:
    """Empty where there is no such measure."""
    if one is None:
        return ""
    return f"{one['value']:+.2f}" + (f" [{one['low']:+.2f}, {one['high']:+.2f}]" if "low" in one else "")


if __name__ == "__main__":
    main()
