"""Selections against each other, from the losses.json that the reports of experiments keep: the mean held-out loss of
arms and their paired differences, with intervals over seeds × examples, by domain and over all of them.

    python scripts/experiment_pairs.py REPORT/losses.json kernel:length_matched 'embeddings − kernel=embedding:kernel'

A:B is A minus B; an arm of a variant is VARIANT/arm; a name may stand before. Several files are the parts of one
experiment, such as its domains. --by-token takes the mean over tokens in place of that over examples. --figure draws
the differences on one scale. Behind a mean over domains stands that of each seed that all of them have.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measurement as ms
import numpy as np
from experiment_plan import BASE
from experiment_results import Column, Lines, Means, Part, estimate
from experiment_tables import pipes

from ntk_jax.errors import UserError
from ntk_jax.report.amounts import minus
from ntk_jax.report.figures import Mark, WhiskerRow, whiskers
from ntk_jax.report.figures_matrix import standalone
from ntk_jax.storage.atomic import make_folder, write_json, write_text
from ntk_jax.storage.reading import read_json

DIGITS = 5  # of a loss in nats a token
WIDTH = 860  # px of the figure, of which a third is for names
FILE = "losses.json"


class Pair(NamedTuple):
    """The difference of two arms, and what it is called."""

    name: str
    first: Column
    second: Column


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE.json|[NAME=]A:B", help="losses.json, then pairs of arms")
    parser.add_argument("--by-token", action="store_true", help="the mean over tokens, not over examples")
    parser.add_argument("--model", help="where there are several")
    parser.add_argument("--figure", type=Path, help="an SVG of the differences")
    options = parser.parse_intermixed_args()
    pairs = [pair_of(text) for text in options.files if not text.endswith(".json")]
    paths = [Path(text) for text in options.files if text.endswith(".json")]
    if not pairs or not paths:
        raise UserError("give at least one losses.json and one pair, such as kernel:length_matched")
    means = Means(read_losses(paths, options.model, by_token=options.by_token))
    known = {column for part in means.parts for lines in part.by_seed.values() for column in lines.values}
    for column in dict.fromkeys(column for pair in pairs for column in pair[1:]):
        if column not in known:
            names = ", ".join(sorted(map(text_of, known)))
            raise UserError(f"{text_of(column)}: no run has this arm; there are {names}")
    for pair in pairs:
        if not any({*pair[1:]} <= lines.values.keys() for part in means.parts for lines in part.by_seed.values()):
            raise UserError(f"{pair.name}: no domain and seed has both arms, so that there is nothing to pair")
    print("\n".join([*means_table(means, pairs), "", *differences_table(means, pairs)]))
    if options.figure:
        make_folder(options.figure.parent)
        write_text(options.figure, standalone(drawing(means, pairs)))


def pair_of(text: str) -> Pair:
    """Raises UserError: it is not two arms."""
    name, _, arms = text.rpartition("=")
    first, colon, second = arms.partition(":")
    if not (first and colon and second):
        raise UserError(f"{text}: a pair is two arms, A:B, with a name before it if you like (NAME=A:B)")
    return Pair(name or f"{first} − {second}", column_of(first), column_of(second))


def column_of(text: str) -> Column:
    """Of an arm, as `text_of` writes it."""
    variant, _, arm = text.rpartition("/")
    return variant or BASE, arm


def text_of(column: Column) -> str:
    """An arm's name; a variant's arm has the variant before it."""
    variant, arm = column
    return arm if variant == BASE else f"{variant}/{arm}"


# ---------------------------------------------------------------------------------------------------------------
# The file


def write_losses(path: Path, parts: Sequence[Part]) -> None:
    """A list of {model, domain, task, seeds}; of every seed the ids of its N examples, their documents where they have
    some, [N] tokens, and [N] losses in nats a token by arm. parts: of the mean over tokens."""
    found = []
    for part in parts:
        seeds = []
        for seed, lines in sorted(part.by_seed.items()):
            losses = {text_of(column): np.round(values, DIGITS).tolist() for column, values in lines.values.items()}
            tokens = [] if lines.weights is None else lines.weights.astype(int).tolist()
            seeds.append({"seed": seed, "ids": lines.ids, "groups": lines.groups, "tokens": tokens, "losses": losses})
        found.append({"model": part.model, "domain": part.domain, "task": part.task, "seeds": seeds})
    write_json(path, found)


def read_losses(paths: Sequence[Path], model: str | None = None, *, by_token: bool = False) -> list[Part]:
    """The tasks of one model, as `write_losses` wrote them. Raises UserError: no such file, several models or none, a
    domain that is in two files."""
    tables = [table for path in paths for table in _tables(path)]
    models = sorted({table["model"] for table in tables})
    if (model or (models[0] if len(models) == 1 else None)) not in models:
        raise UserError(f"--model: choose one of {', '.join(models)}")
    found: dict[tuple[str, str], Part] = {}
    for table in tables:
        if table["model"] != (model or models[0]):
            continue
        key = table["domain"], table["task"]
        if key in found:
            raise UserError(f"{table['domain']} is in two of these files; give each domain once")
        by_seed = {one["seed"]: _lines(one, by_token) for one in table["seeds"]}
        found[key] = Part(table["model"], *key, by_seed)
    return [found[key] for key in sorted(found)]


def _tables(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise UserError(f"{path}: no such file; `experiment.py --report DIR` writes DIR/{FILE}")
    found: list[dict[str, Any]] = read_json(path, "make the report again", list)
    return found


def _lines(one: Mapping[str, Any], by_token: bool) -> Lines:
    values = {column_of(text): np.array(losses, float) for text, losses in one["losses"].items()}
    weights = np.array(one["tokens"], float) if by_token else None
    return Lines(one["ids"], one["groups"], weights, values)


# ---------------------------------------------------------------------------------------------------------------
# Tables and the figure


def means_table(means: Means, pairs: Sequence[Pair]) -> list[str]:
    """The mean of every arm of the pairs: a row a domain, and their mean where there are several."""
    columns = list(dict.fromkeys(column for pair in pairs for column in pair[1:]))
    body = []
    for name, places in _scopes(means):
        found = [estimate(means, places, column, None) for column in columns]
        body.append([name, *("–" if one is None else f"{one['value']:.3f}" for one in found)])
    return pipes(["held-out loss", *map(text_of, columns)], body)


def differences_table(means: Means, pairs: Sequence[Pair]) -> list[str]:
    """A row a pair and domain: the difference, its interval, and that of each seed."""
    body = []
    for pair, domain, places, one in differences(means, pairs):
        seeds = ", ".join(f"{value:+.3f}" for value in by_seed(means, places, pair))
        value, low, high = (f"{one[key]:+.3f}" for key in ("value", "low", "high"))
        body.append([pair.name, domain, minus(value), minus(f"[{low}, {high}]"), minus(seeds)])
    return pipes(["difference", "domain", "value", "95% interval", "by seed"], body)


def by_seed(means: Means, places: Sequence[int], pair: Pair) -> list[float]:
    """The differences of the seeds that all of these parts have, each the mean over the parts."""
    seeds = set.intersection(*(set(means.seeds(place, pair[1:])) for place in places))
    if not seeds:
        return []
    each = []
    for place in places:
        first, second = means.of(place, pair[1:], sorted(seeds))
        each.append(first.minus(second).by_run[:, 0])
    return [float(value) for value in np.mean(each, axis=0)]


def drawing(means: Means, pairs: Sequence[Pair]) -> Any:
    """The differences, in the order of the pairs; grey where the interval holds zero."""
    rows = []
    for pair, domain, _, one in differences(means, pairs):
        color = "c-blue" if one["low"] > 0 or one["high"] < 0 else "c-grey"
        mark = Mark("normalized", one["value"], one["low"], one["high"], minus(f"{one['value']:+.3f}"))
        rows.append(WhiskerRow(f"{pair.name}: {domain}", color, (mark,)))
    about = "held-out loss, nats a token, difference"
    return whiskers(rows, title=about, reference=(0.0, "no difference"), width=WIDTH, description=about)


def differences(means: Means, pairs: Sequence[Pair]) -> list[tuple[Pair, str, list[int], dict[str, Any]]]:
    """Of every pair, in the domains that have both arms, and over these."""
    found = []
    for pair in pairs:
        for name, places in _scopes(means, pair):
            one = estimate(means, places, pair.first, pair.second)
            found += [(pair, name, places, one)] if one else []
    return found


def _scopes(means: Means, pair: Pair | None = None) -> list[tuple[str, list[int]]]:
    """Each domain with the places of its tasks, and all together; with a pair, of those that have it."""
    places = range(len(means.parts))
    own = [place for place in places if pair is None or means.seeds(place, pair[1:])]
    domains = dict.fromkeys(means.parts[place].domain for place in own)
    found = [(domain, [place for place in own if means.parts[place].domain == domain]) for domain in domains]
    return [*found, (f"mean of {len(domains)}", own)] if len(domains) > 1 else found


if __name__ == "__main__":
    ms.command_line(main)
